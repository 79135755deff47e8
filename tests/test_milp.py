"""Two complete solvers, cases and HiGHS, against a linear program for every pattern of signs."""

import ctypes

import pytest
import tiny
import torch

from minexp import attack, bounds, milp, splitting
from minexp.errors import InputError

WIDTHS = [0.03, 0.1, 0.2, 0.4]


def question(seed, width, widths=(8, 4, 3, 3)):
    """Margins at a random image and a box about it, and the bounds of the ReLUs over it."""
    x = tiny.image(seed)
    layers = tiny.margins(tiny.net(*widths, seed=seed), x=x)
    lower, upper = x.flatten().double() - width, x.flatten().double() + width
    return layers, bounds.relax(layers, lower[None], upper[None]), lower, upper


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("seed", range(5))
def test_both_agree_with_the_exact_least_value(seed, width):
    layers, relaxation, lower, upper = question(seed, width)
    least = [tiny.exact_least(layers, row, lower, upper) for row in range(2)]
    found = bounds.bound_outputs(layers, lower[None], upper[None], steps=10)[0][0]
    assert all(bound <= exact + 1e-9 for bound, exact in zip(found.tolist(), least, strict=True))
    for row, exact in enumerate(least):
        answer = milp.query(layers, relaxation, lower, upper, seconds=60, rows=[row])
        assert answer.verdict == ("safe" if exact > splitting.PROOF else "unsafe")
        split = splitting.prove(layers, row, relaxation, lower, upper, cases=4000)
        if split.witness is None:
            assert split.proven and exact > splitting.PROOF
        else:
            assert not split.proven and min(least) <= 0
    whole = milp.query(layers, relaxation, lower, upper, seconds=60)
    assert whole.verdict == ("safe" if min(least) > splitting.PROOF else "unsafe")


@pytest.mark.parametrize("seed", range(3))
def test_a_witness_is_in_the_box_and_is_one(seed):
    layers, relaxation, lower, upper = question(seed, 0.6, (8, 10, 8, 3))
    answer = milp.query(layers, relaxation, lower, upper, seconds=60)
    split = splitting.prove(layers, 0, relaxation, lower, upper, cases=4000)
    assert answer.verdict == "unsafe"
    for witness in filter(lambda w: w is not None, (answer.witness, split.witness)):
        assert (witness >= lower).all() and (witness <= upper).all()
        assert attack.worst(layers, witness[None]) <= 0


def test_a_relu_whose_bounds_are_both_zero_is_zero():
    """Its binary has no sign to follow; the output beside it, here -0.5, decides."""
    weights = (torch.zeros(1, 2).double(), torch.ones(1, 1).double())
    layers = bounds.Layers(weights, (torch.zeros(1).double(), torch.tensor([-0.5]).double()))
    nothing = (torch.zeros(1, 1).double(),)
    relaxation = bounds.Relaxation(nothing, nothing)
    lower, upper = torch.zeros(2).double(), torch.ones(2).double()
    assert milp.query(layers, relaxation, lower, upper, seconds=10).verdict == "unsafe"


@pytest.mark.parametrize("seed", range(3))
def test_the_program_holds_where_the_network_goes(seed):
    """Every point of the box, with what the layers make of it, meets all constraints but the last,
    which caps the output; and the objective is that output without its bias."""
    layers, relaxation, lower, upper = question(seed, 0.3, (8, 10, 8, 3))
    generator = torch.Generator().manual_seed(seed)
    for x in attack.corners(lower, upper, 20, generator):
        *hidden, outputs = layers.preactivations(x[None])
        parts = [part for z in hidden for part in (z[0].relu(), (z[0] >= 0).double())]
        point = torch.cat([x, *parts]).numpy()
        for row, output in enumerate(outputs[0].tolist()):
            objective, low, high, whole, (*encoding, cap) = milp._program(
                layers, row, relaxation, lower, upper
            )
            assert (low <= point).all() and (point <= high).all()
            for rule in encoding:
                assert (rule.A @ point >= rule.lb - 1e-9).all()
                assert (rule.A @ point <= rule.ub + 1e-9).all()
            bias = layers.biases[-1][row].item()
            assert objective @ point + bias == pytest.approx(output)
            assert (cap.A @ point).item() + bias == pytest.approx(output)
            assert cap.ub + bias == pytest.approx(splitting.PROOF)
            assert whole.sum() == sum(layers.widths)


def test_what_highs_prints_is_not_shown_and_what_comes_after_is(capfd):
    printf = ctypes.CDLL(None).printf  # by C, as HiGHS does, into a buffer of C's own
    with pytest.raises(KeyError), milp._quiet():
        printf(b"of no use\n")
        raise KeyError
    printf(b"shown\n")
    ctypes.CDLL(None).fflush(None)
    assert capfd.readouterr().out == "shown\n"


def test_highs_is_given_the_output_to_minimise_and_is_kept_quiet(monkeypatch, capfd):
    def solver(objective, **given):
        seen.append((objective, given["constraints"][-1].A))
        ctypes.CDLL(None).printf(b"of no use\n")
        return solve(objective, **given)

    seen, solve = [], milp.milp
    monkeypatch.setattr(milp, "milp", solver)
    layers, relaxation, lower, upper = question(0, 0.1)
    milp.query(layers, relaxation, lower, upper, seconds=60, rows=[1])
    ((objective, capped),) = seen
    assert objective.any() and (objective == capped.toarray()[0]).all()
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(
    ("answers", "whole", "asked"),
    [
        (["safe", "safe"], "safe", 2),
        (["unknown", "safe"], "unknown", 2),
        (["safe", "unknown"], "unknown", 2),
        (["unknown", "unsafe"], "unsafe", 2),
        (["unsafe", "safe"], "unsafe", 1),
    ],
)
def test_a_box_is_safe_if_every_output_is(monkeypatch, answers, whole, asked):
    def one(*arguments):
        seconds.append(arguments[-1])
        return milp.Answer(answers[len(seconds) - 1])

    seconds: list[float] = []
    monkeypatch.setattr(milp, "_row", one)
    assert milp.query(*question(0, 0.1), seconds=60).verdict == whole
    assert len(seconds) == asked
    assert all(0 < each <= most for each, most in zip(seconds, (30, 60), strict=False))


def test_no_budget_is_no_answer():
    layers, relaxation, lower, upper = hard()
    split = splitting.prove(layers, 0, relaxation, lower, upper, cases=0)
    assert (split.proven, split.witness, split.count) == (False, None, 0)
    answer = milp.query(layers, relaxation, lower, upper, seconds=1e-6, rows=[0])
    assert answer == milp.Answer("unknown")


def hard():
    """A box that takes cases to prove: its least value is 0.17 once the output is moved there."""
    layers, relaxation, lower, upper = question(1, 0.4, (8, 12, 10, 3))
    weights, biases = (*layers.weights[:-1], layers.weights[-1][:1]), layers.biases
    alone = bounds.Layers(weights, (*biases[:-1], biases[-1][:1]))
    generator = torch.Generator().manual_seed(0)
    least = attack.attack(alone, lower, upper, restarts=200, generator=generator)[1]
    moved = (*biases[:-1], biases[-1][:1] + 0.17 - least)
    return bounds.Layers(weights, moved), relaxation, lower, upper


def test_cases_are_a_cover_and_serve_again():
    layers, relaxation, lower, upper = hard()
    first = splitting.prove(layers, 0, relaxation, lower, upper, cases=20_000)
    assert first.proven and first.count > 1 and len(first.leaves.bound) > 1
    signs = first.leaves.signs
    points = lower + torch.rand(2000, 8).double() * (upper - lower)
    z = torch.cat(layers.preactivations(points)[:-1], 1)  # (2000, N)
    inside = ((z[:, None] * signs[None]) >= 0).all(2)
    assert inside.any(1).all()
    again = splitting.prove(layers, 0, relaxation, lower, upper, cases=20_000, leaves=first.leaves)
    assert again.proven and again.count <= first.count // 2


def test_cases_of_a_smaller_box_do_not_prove_a_larger_one():
    layers, relaxation, lower, upper = hard()
    first = splitting.prove(layers, 0, relaxation, lower, upper, cases=20_000)
    wide = lower - 0.5, upper + 0.5
    larger = bounds.relax(layers, wide[0][None], wide[1][None])
    split = splitting.prove(layers, 0, larger, *wide, cases=2000, leaves=first.leaves)
    assert not split.proven


@pytest.mark.parametrize("high", [2.0, 1e16, float("inf"), float("nan")])
def test_what_highs_refuses_is_no_proof(high):
    """relu(x) - 0.5 over [0, 1] is not safe, and that bound's size is not the network's fault."""
    weights = (torch.ones(1, 1).double(), torch.ones(1, 1).double())
    layers = bounds.Layers(weights, (torch.zeros(1).double(), torch.tensor([-0.5]).double()))
    ends = ((torch.full((1, 1), end).double(),) for end in (-1.0, high))
    lower, upper = torch.zeros(1).double(), torch.ones(1).double()
    answer = milp.query(layers, bounds.Relaxation(*ends), lower, upper, seconds=10)
    assert answer.verdict == ("unsafe" if high == 2 else "unknown")


@pytest.mark.parametrize(
    ("scale", "verdict"), [(1e2, "unsafe"), (1e4, "unknown"), (1e7, "unknown")]
)
def test_bounds_too_wide_for_the_solvers_tolerance_prove_nothing(scale, verdict):
    """The box holds a point whose least output is -0.01; from 3e6 on HiGHS called it infeasible."""
    x = tiny.image(101)
    layers = tiny.margins(tiny.net(8, 6, 5, 3, seed=101), x=x)
    lower, upper = x.flatten().double() - 0.4, x.flatten().double() + 0.4
    generator = torch.Generator().manual_seed(0)
    least = attack.attack(layers, lower, upper, restarts=40, generator=generator)[1]
    moved = (*layers.biases[:-1], layers.biases[-1] - 0.01 - least)
    layers = bounds.Layers(layers.weights, moved)
    tight = bounds.relax(layers, lower[None], upper[None])
    wide = bounds.Relaxation(
        tuple(torch.where(low < 0, low * scale, low) for low in tight.low),
        tuple(torch.where(high > 0, high * scale, high) for high in tight.high),
    )
    assert milp.query(layers, wide, lower, upper, seconds=10).verdict == verdict


def test_a_weight_that_the_solver_would_drop_proves_nothing():
    """0.05 - 1e-9 relu(1e8 x - 1e7) is -0.04 at 1, where HiGHS would see 0.05."""
    weights = (torch.full((1, 1), 1e8).double(), torch.full((1, 1), -1e-9).double())
    layers = bounds.Layers(weights, (torch.tensor([-1e7]).double(), torch.tensor([0.05]).double()))
    lower, upper = torch.zeros(1).double(), torch.ones(1).double()
    relaxation = bounds.relax(layers, lower[None], upper[None])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(milp, "LARGEST", 1e9)
        answer = milp.query(layers, relaxation, lower, upper, seconds=10)
    assert answer == milp.Answer("unknown")


def test_an_empty_box_is_refused():
    layers, relaxation, lower, upper = question(0, 0.1)
    with pytest.raises(InputError, match="lower <= upper"):
        milp.query(layers, relaxation, upper, lower, seconds=1)


def test_a_program_that_highs_refuses_is_told_from_an_infeasible_one(monkeypatch):
    monkeypatch.setattr(milp, "LARGEST", float("inf"))
    test_what_highs_refuses_is_no_proof(1e16)


def test_a_net_without_relus():
    x = tiny.image()
    layers = tiny.margins(tiny.net(8, 3), x=x)
    lower, upper = x.flatten().double() - 0.01, x.flatten().double() + 0.01
    relaxation = bounds.relax(layers, lower[None], upper[None])
    bound = bounds.bound_outputs(layers, lower[None], upper[None])[0].amin()
    answer = milp.query(layers, relaxation, lower, upper, seconds=10)
    assert answer.verdict == ("safe" if bound > 0 else "unsafe")
    split = splitting.prove(layers, 0, relaxation, lower, upper, cases=10)
    assert not split.proven and split.witness is None, "there is no sign to assume"


def test_a_point_that_no_forward_pass_confirms_is_no_witness():
    layers, _, lower, upper = question(0, 0.01)
    assert bounds.bound_outputs(layers, lower[None], upper[None])[0].amin() > 0
    assert milp._confirmed(layers, lower, lower, upper) == milp.Answer("unknown")


@pytest.mark.parametrize(("rows", "seconds"), [([], 1), ([0], 0), ([0], -1)])
def test_nothing_to_ask(rows, seconds):
    layers, relaxation, lower, upper = question(0, 0.1)
    with pytest.raises(InputError, match="expected a row"):
        milp.query(layers, relaxation, lower, upper, seconds=seconds, rows=rows)
