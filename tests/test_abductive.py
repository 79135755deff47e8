"""Abductive explanations: equal to brute force on 8 inputs; resumed, killed, refused on files."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tiny
import torch

from minexp import (
    abductive,
    abductive_mask,
    abductive_run,
    attack,
    bounds,
    milp,
    models,
    splitting,
    verifier,
)
from minexp.cli import main
from minexp.errors import InputError
from minexp.milp import Answer
from minexp.verifier import Budget, Verifier

EPS = [0.1, 0.3, 1.0]
each_case = pytest.mark.parametrize(("seed", "eps"), [(s, e) for s in range(4) for e in EPS])


def brute_force(module, image, lower, upper, free, points=5):
    """The least margin over a grid of the free inputs, by plain forward passes in float64."""
    layers, x = tiny.margins(module, x=image), image.flatten().double()
    low = torch.where(free, lower.flatten().double(), x)
    high = torch.where(free, upper.flatten().double(), x)
    return attack.worst(layers, tiny.grid(low, high, points)).amin().item()


# --- one query


@each_case
def test_verdicts_agree_with_a_grid(seed, eps):
    module, image = tiny.net(seed=seed), tiny.image(seed)
    lower, upper = abductive.domain(image, eps)
    judge = Verifier(module, image, lower, upper)
    generator = torch.Generator().manual_seed(seed)
    for count in (0, 2, 4, 6, 8):
        free = torch.zeros(8, dtype=torch.bool)
        free[torch.randperm(8, generator=generator)[:count]] = True
        answer = judge.decide(free, Budget())
        least = brute_force(module, image, lower, upper, free)
        assert answer.verdict != "unknown"
        assert answer.verdict == "safe" or least < 0.2  # between the grid's points it may be lower
        assert answer.verdict == "unsafe" or least > 0
        if answer.witness is not None:
            witness = answer.witness.view_as(image)
            assert module(witness).argmax() != judge.label
            assert (witness >= lower).all() and (witness <= upper).all()
            assert (witness == image)[~free.view_as(image)].all()
    assert judge.counts.total() == judge.counts["milp"] + 5


@pytest.mark.parametrize("missing", ["bounds", "attack", "cases", "milp"])
def test_each_judge_can_be_missed(missing, monkeypatch):
    """Verdicts are the same whichever of the judges holds its tongue."""
    questions = [(seed, eps) for seed in range(3) for eps in EPS]
    wanted = [_verdict(*question) for question in questions]
    assert {"safe", "unsafe"} == set(wanted)
    if missing == "bounds":
        nothing = bounds.bound_outputs

        def silent(*arguments, **options):
            bound, relaxation = nothing(*arguments, **options)
            return torch.full_like(bound, -1.0), relaxation

        monkeypatch.setattr(verifier, "bound_outputs", silent)
    elif missing == "attack":
        monkeypatch.setattr(Verifier, "_attacked", lambda *_arguments: None)
    elif missing == "cases":
        none = splitting.Split(False, None, None, 0)
        monkeypatch.setattr(splitting, "prove", lambda *_arguments, **_options: none)
    else:
        monkeypatch.setattr(milp, "query", lambda *_arguments, **_options: milp.Answer("unknown"))
    found = [_verdict(*question) for question in questions]
    known = [pair for pair in zip(found, wanted, strict=True) if pair[0] != "unknown"]
    assert all(one == other for one, other in known)
    assert len(known) >= len(wanted) - (missing == "milp")  # nothing else backs up the cases


def _verdict(seed, eps):
    module, image = tiny.net(seed=seed), tiny.image(seed)
    lower, upper = abductive.domain(image, eps)
    label = int(module(image).argmax())
    return verifier.verify(module, lower, upper, label).verdict


def test_without_a_budget_a_hard_query_is_unknown(monkeypatch):
    monkeypatch.setattr(Verifier, "_attacked", lambda *_arguments: None)
    module, image = tiny.net(seed=1), tiny.image(1)
    lower, upper = abductive.domain(image, 1.0)
    judge = Verifier(module, image, lower, upper)
    assert judge.decide(torch.ones(8, dtype=torch.bool), Budget(0, 0)).verdict == "unknown"


def test_a_witness_counts_only_if_forward_passes_confirm_it():
    module, image = tiny.net(), tiny.image()
    judge = Verifier(module, image, *abductive.domain(image, 1.0))
    assert judge.confirmed(image.flatten().double()) is None


def test_bad_queries_are_refused():
    module, image = tiny.net(), tiny.image()
    with pytest.raises(InputError, match="does not hold the image"):
        Verifier(module, image, image + 0.1, image + 0.2)
    with pytest.raises(InputError, match="does not hold the image"):
        verifier.verify(module, image, image - 0.1, 0)
    with pytest.raises(InputError, match="expected 0 to 2"):
        verifier.verify(module, image, image, 3)
    with pytest.raises(InputError, match="below 0"):
        Budget(-1)


# --- one explanation


@each_case
def test_explanations_are_those_of_brute_force_deletion(seed, eps):
    module, image = tiny.net(seed=seed), tiny.image(seed)
    lower, upper = abductive.domain(image, eps)
    found = abductive.explain(module, image, lower, upper)
    judge = Verifier(module, image, lower, upper)
    order = abductive.ranked(judge, torch.eye(8, dtype=torch.bool), "bound")
    free = torch.zeros(8, dtype=torch.bool)
    for unit in order:
        more = free.clone()
        more[unit] = True
        least = tiny_least(module, image, lower, upper, more)
        assert (least > 0) == (unit in found.free), "a margin near 0 would be another matter"
        free = more if least > 0 else free
    assert found.unknown == found.kept == () and found.subset_minimal
    assert sorted(found.free + found.needed) == list(range(8))
    check_witnesses(module, image, lower, upper, found)


def tiny_least(module, image, lower, upper, free):
    """As low as a fine grid and then descent find."""
    x, layers = image.flatten().double(), tiny.margins(module, x=image)
    low = torch.where(free, lower.flatten().double(), x)
    high = torch.where(free, upper.flatten().double(), x)
    points = tiny.grid(low, high, 3)
    ends = low.expand_as(points), high.expand_as(points)
    return attack.descend(layers, *ends, points, steps=60)[1].amin().item()


def check_witnesses(module, image, lower, upper, found):
    masks = abductive.units(2, 4, found.side)
    label = int(module(image).argmax())
    assert found.label == label and len(found.witnesses) == len(found.needed)
    for unit, witness in zip(found.needed, found.witnesses, strict=True):
        may = masks[[*found.free, unit]].any(0).view_as(witness)
        assert module(witness[None]).argmax() != label
        assert (witness == image[0])[~may].all()
        assert (witness >= lower[0]).all() and (witness <= upper[0]).all()


@pytest.mark.parametrize("order", abductive.ORDERS)
@pytest.mark.parametrize("side", [1, 2])
def test_any_order_and_patches_give_a_minimal_set(order, side):
    module, image = tiny.net(seed=2), tiny.image(2)
    lower, upper = abductive.domain(image, 0.3)
    found = abductive.explain(module, image, lower, upper, order=order, side=side)
    masks = abductive.units(2, 4, side)
    assert sorted(found.free + found.needed) == list(range(len(masks)))
    check_witnesses(module, image, lower, upper, found)
    free = masks[list(found.free)].any(0)
    assert brute_force(module, image, lower, upper, free) > 0


def test_what_is_unknown_is_neither_free_nor_needed(monkeypatch):
    module, image = tiny.net(seed=2), tiny.image(2)
    monkeypatch.setattr(Verifier, "decide", lambda self, _free, _budget: milp.Answer("unknown"))
    found = abductive.explain(module, image, *abductive.domain(image, 0.01))
    assert found.unknown == tuple(range(8)) and not found.free and not found.needed
    assert not found.subset_minimal and found.witnesses.shape == (0, 1, 2, 4)


def test_what_stayed_undecided_is_attacked_again_once_more_is_free():
    """A unit that no judge decided early on is needed beside all that was freed since."""
    module, image = tiny.net(seed=1), tiny.image(1)
    box = abductive.domain(image, 1.0)
    found = abductive.explain(module, image, *box)
    masks = abductive.units(2, 4, 1).repeat(1, image.shape[1])
    search = abductive._Search(Verifier(module, image, *box), masks, Budget(), None)
    search.free, search.unknown = set(found.free), set(found.needed)
    search.revisit()
    assert search.free == set(found.free)
    assert set(search.needed) | search.unknown == set(found.needed)
    assert len(search.needed) >= len(found.needed) / 2, "an attack finds most of them"
    free = masks[list(found.free)].any(0)
    for unit, witness in search.needed.items():
        changed = (witness.view_as(image) != image).flatten()
        assert not changed[~(free | masks[unit])].any()
        label = int(module(image).argmax())
        assert int(module(witness.view_as(image).float()).argmax()) != label


def test_units_kept_are_not_asked_about():
    module, image = tiny.net(seed=2), tiny.image(2)
    steps = []
    found = abductive.explain(
        module, image, *abductive.domain(image, 0.3), keep=[1, 6], on_step=steps.append
    )
    assert found.kept == (1, 6) and not found.subset_minimal
    assert sorted(found.free + found.needed) == [0, 2, 3, 4, 5, 7]
    assert steps[-1]["pending"] == 0 and steps[-1]["free"] == len(found.free)


def test_units():
    assert torch.equal(abductive.units(2, 4, 1), torch.eye(8, dtype=torch.bool))
    assert abductive.units(2, 4, 2).int().tolist() == [[1, 1, 0, 0] * 2, [0, 0, 1, 1] * 2]
    with pytest.raises(InputError, match="side 3"):
        abductive.units(2, 4, 3)


def test_bad_explanations_are_refused():
    module, image = tiny.net(), tiny.image()
    box = abductive.domain(image, 0.1)
    with pytest.raises(InputError, match="bound, gradient, random"):
        abductive.explain(module, image, *box, order="best")
    with pytest.raises(InputError, match="from 0 to 7"):
        abductive.explain(module, image, *box, keep=[8])
    for eps in (0, -0.1, 1.1, float("nan")):
        with pytest.raises(InputError, match="eps="):
            abductive.domain(image, eps)


# --- a mask


def test_a_mask_is_sufficient_up_to_a_radius_and_no_further():
    module, image = tiny.net(seed=1), tiny.image(1)
    mask = torch.zeros(1, 1, 2, 4)
    mask[..., :2] = 1
    ends = abductive_mask.guarantee(module, image, mask, Budget())
    assert 0 < ends.safe < ends.unsafe and ends.unsafe - ends.safe <= 2**-7
    assert abductive_mask.verdict(module, image, mask, ends.safe, Budget()).verdict == "safe"
    assert abductive_mask.verdict(module, image, mask, ends.unsafe, Budget()).verdict == "unsafe"
    witness = ends.witness.view_as(image)
    assert (witness - image).abs().max() <= ends.unsafe + 1e-6
    assert torch.equal(witness[..., :2], image[..., :2]), "the mask's own pixels stay"
    assert module(witness).argmax() != module(image).argmax()
    whole = abductive_mask.guarantee(module, image, torch.ones_like(mask), Budget())
    assert (whole.safe, whole.unsafe, whole.witness) == (1.0, None, None)
    added = abductive_mask.complete(module, image, mask, 1.0, Budget())
    assert added.kept == (0, 1, 4, 5) and added.needed
    more = mask.clone().flatten()
    more[list(added.needed)] = 1
    found = abductive_mask.verdict(module, image, more.view_as(mask), 1.0, Budget())
    assert found.verdict == "safe"
    with pytest.raises(InputError, match="expected"):
        abductive_mask.verdict(module, image, mask[..., :2], 0.1, Budget())


def test_a_wrong_verdict_on_a_mask_is_found():
    """Nothing kept, all free: never safe; and an image of the same class is no witness."""
    model = models.load_model("mnist_cnn_small")
    image, tried = tiny_digit(model), (200, 20)
    mask, same = torch.zeros(1, 1, 28, 28), image.flatten()
    answers = [Answer("safe"), Answer("unsafe", same), Answer("unknown")]
    asked = model.module, image, mask, 1.0
    assert [abductive_mask.refuted(*asked, a, *tried) for a in answers] == [True, True, False]
    true = abductive_mask.verdict(model.module, image, mask, 1.0, Budget())
    assert true.verdict == "unsafe"
    assert not abductive_mask.refuted(*asked, true, *tried)


def test_a_box_in_double_precision_is_not_made_smaller():
    image = tiny.image().double() + 1e-9
    found = Verifier(tiny.net(), image, image - 1e-12, image + 1e-12)
    assert (found.low <= image.flatten() - 1e-12).all()
    assert (found.high >= image.flatten() + 1e-12).all()
    assert torch.equal(found.low, found.low.float().double())


# --- files and the command line


@pytest.fixture
def small(monkeypatch):
    """mnist_cnn_small with random weights, whatever file there is or is not."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = models.load_model("mnist_cnn_small", weights=None)
    for p in model.module.parameters():
        p.mul_(2)
    monkeypatch.setattr(abductive_run.jobs, "model", lambda _name: model)
    return model


COMMAND = ["abductive", "7", "--eps", "0.01", "--side", "14", "--fillings", "50"]
COMMAND += ["--seconds", "5"]


def run(*arguments, capsys):
    code = main(list(arguments))
    out, err = capsys.readouterr()
    return code, out, err


def test_files_of_a_digit(tmp_path, capsys, small):
    code, out, _ = run(*COMMAND, "--out", str(tmp_path), capsys=capsys)
    path = tmp_path / "7.abductive.json"
    result = abductive_run.read(path)
    assert code == 0 and out.startswith("mnist:7: ") and "0 wrong" in out
    pixels = result["fixed"] + result["free"] + result["unknown"]
    assert sorted(pixels) == list(range(784))
    first, images = abductive_run.read_witnesses(path)
    assert len(first) == len(images) == len(result["fixed"]) // 14**2
    assert images.shape[1:] == (1, 28, 28) and images.dtype == np.float32
    assert result["label_index"] == small(tiny_digit(small)).argmax().item()
    assert result["audit"]["wrong"] == 0 and result["mask"] is None


def tiny_digit(model):
    from minexp.references import open_reference

    return open_reference("mnist:7", model)[0]


def test_a_finished_digit_is_kept_and_another_question_is_not(tmp_path, capsys, small):
    path, out = tmp_path / "7.abductive.json", ["--out", str(tmp_path)]
    run(*COMMAND, *out, capsys=capsys)
    before = path.read_bytes()
    assert "(kept result)" in run(*COMMAND, *out, capsys=capsys)[1]
    assert path.read_bytes() == before
    (tmp_path / "7.witnesses.npz").write_bytes(b"PK")
    assert "(kept result)" not in run(*COMMAND, *out, capsys=capsys)[1]
    path.write_text(path.read_text()[:-20])
    assert "(kept result)" not in run(*COMMAND, *out, capsys=capsys)[1]
    for change in (["--force"], ["--cases", "3"]):
        assert "(kept result)" not in run(*COMMAND, *change, *out, capsys=capsys)[1]
    assert json.loads(path.read_text())["plan"]["cases"] == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["5000", "--eps", "0.1"], "mnist:0 to mnist:4999"),
        (["7", "--eps", "0"], "eps=0"),
        (["7", "--eps", "0.1", "--side", "3"], "side 3"),
        (["7", "--eps", "0.1", "--order", "best"], "bound, gradient, random"),
        (["7", "--eps", "0.1", "--cases", "-1"], "below 0"),
        (["7", "--eps", "0.1", "--fillings", "-1"], "below 0"),
        (["7", "--eps", "0.1", "--jobs", "0"], "jobs=0"),
        (["7", "--eps", "0.1", "--masks", "nowhere"], "mnist-7.json"),
        (["seven", "--eps", "0.1"], "invalid int"),
        (["7"], "--eps"),
    ],
)
def test_errors_are_one_line(arguments, words, tmp_path, monkeypatch, capsys, small):
    monkeypatch.chdir(tmp_path)
    try:
        code = main(["abductive", *arguments])
    except SystemExit as left:
        code = left.code
    out, err = capsys.readouterr()
    assert code == 2 and out == "" and words in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_network_without_bounds_is_refused(tmp_path, capsys):
    command = ["abductive", "7", "--eps", "0.1", "--model", "mnist_vit", "--out", str(tmp_path)]
    code, _, err = run(*command, capsys=capsys)
    assert code == 2 and "VisionTransformer" in err and list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(not models.usable_offline("mnist_cnn_small"), reason="not trained yet")
def test_a_killed_run_leaves_whole_files_and_goes_on(tmp_path, capsys):
    digits = [str(index) for index in range(0, 5000, 250)]
    command = ["abductive", *digits, "--eps", "0.01", "--side", "14", "--fillings", "50"]
    command += ["--out", str(tmp_path)]
    with subprocess.Popen(
        [sys.executable, "-m", "minexp", *command],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        deadline = time.monotonic() + 300
        while len(list(tmp_path.glob("[!.]*.json"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
    finished = sorted(tmp_path.glob("[!.]*.json"))
    assert 2 <= len(finished) < 20
    for path in finished:
        abductive_run.read(path)
        abductive_run.read_witnesses(path)
    code, out, _ = run(*command, capsys=capsys)
    assert code == 0 and out.count("(kept result)") == len(finished)
    assert len(list(tmp_path.glob("[!.]*.json"))) == 20
