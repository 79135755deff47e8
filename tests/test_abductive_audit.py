"""The audit finds what is wrong: a set too small, a witness that is none."""

from dataclasses import replace

import pytest
import tiny
import torch

from minexp import abductive, abductive_audit, bounds, milp
from minexp.errors import InputError

FEW = {"fillings": 2500, "restarts": 20}


@pytest.fixture(scope="module")
def case():
    """A net, an image, its domain, what is free, and witnesses for what is needed."""
    module, image = tiny.net(seed=1), tiny.image(1)
    box = abductive.domain(image, 1.0)
    found = abductive.explain(module, image, *box)
    masks = torch.eye(8, dtype=torch.bool).view(8, 1, 1, 2, 4)
    pairs = [(w[None], masks[u]) for w, u in zip(found.witnesses, found.needed, strict=True)]
    assert pairs and found.free
    return module, image, *box, masks[list(found.free)].any(0), pairs


def test_a_right_explanation_passes(case):
    found = abductive_audit.audit(*case, **FEW, seconds=60)
    assert (found.wrong, found.fillings_wrong, found.attacks_wrong) == (0, 0, 0)
    assert (found.fillings, found.attacks, found.witnesses) == (2500, 20, len(case[-1]))
    assert found.witnesses_wrong == () and found.proof == "safe"


def test_a_set_too_small_is_found_by_each_check(case):
    module, image, lower, upper, free, _ = case
    everything = torch.ones_like(free)
    found = abductive_audit.audit(module, image, lower, upper, everything, [], **FEW, seconds=60)
    assert found.fillings_wrong > 0 and found.attacks_wrong > 0 and found.proof == "unsafe"
    assert found.wrong == 1


def test_a_witness_that_is_none_is_named(case):
    module, image, lower, upper, free, pairs = case
    witness, unit = pairs[0]
    outside = witness.clone()
    outside[unit] = upper[unit] + 0.1
    elsewhere = witness.clone()
    elsewhere[~(free | unit)] = 0.5 * elsewhere[~(free | unit)] + 0.01
    bad = [(image, unit), (outside, unit), (elsewhere, unit), (witness, unit)]
    found = abductive_audit.audit(module, image, lower, upper, free, bad, **FEW)
    assert found.witnesses_wrong == (0, 1, 2) and found.wrong == 3 and found.proof == "not asked"


def test_matrices_that_are_not_the_network_prove_nothing(case, monkeypatch):
    right = abductive_audit.audit(*case, **FEW)
    assert 0 < right.deviation < 1e-5
    true = abductive_audit.as_layers

    def other(module, shape):
        layers = true(module, shape)
        return replace(layers, biases=(*layers.biases[:-1], layers.biases[-1] + 0.01))

    monkeypatch.setattr(abductive_audit, "as_layers", other)
    found = abductive_audit.audit(*case, **FEW)
    assert found.deviation == pytest.approx(0.01, abs=1e-4) and found.wrong == 1


def test_a_deviation_that_is_no_number_is_wrong():
    passed = abductive_audit.Audit(1, 0, 1, 0, 0, (), "safe", 0.0)
    assert passed.wrong == 0 and replace(passed, deviation=float("nan")).wrong == 1


def test_nothing_free_and_nothing_tried(case):
    module, image, lower, upper, free, _ = case
    none = torch.zeros_like(free)
    found = abductive_audit.audit(module, image, lower, upper, none, [], fillings=7, restarts=0)
    assert found.wrong == 0 and (found.fillings, found.attacks) == (7, 0)


def test_intervals_hold_and_their_proof_agrees_with_crowns():
    for seed in range(6):
        x = tiny.image(seed).flatten().double()
        layers = tiny.margins(tiny.net(seed=seed), x=tiny.image(seed))
        lower, upper = x - 0.2, x + 0.2
        loose = abductive_audit.intervals(layers, lower, upper)
        points = lower + torch.rand(3000, 8).double() * (upper - lower)
        for z, low, high in zip(layers.preactivations(points)[:-1], loose.low, loose.high,
                                strict=True):  # fmt: skip
            assert (z >= low).all() and (z <= high).all()
        tight = bounds.relax(layers, lower[None], upper[None])
        verdicts = [milp.query(layers, r, lower, upper, seconds=60).verdict for r in (loose, tight)]
        assert verdicts[0] == verdicts[1] != "unknown"


@pytest.mark.parametrize("name", ["fillings", "restarts", "seconds"])
def test_a_negative_number_is_refused(case, name):
    with pytest.raises(InputError, match="none below 0"):
        abductive_audit.audit(*case, **{name: -1})
