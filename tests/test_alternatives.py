"""The confidence-area curve against brute force; explanations that share nothing."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from minexp import config, references, taps
from minexp.alternatives import Curve, confidence_area_curve, disjoint, envelope
from minexp.classifier import Classifier
from minexp.config import Preset, configure, preset
from minexp.errors import InputError
from minexp.explain import explain
from minexp.masking import apply_mask
from minexp.minimality import active_cells
from minexp.sufficiency import is_feasible

QUICK = configure(preset("digits"), {"steps": 8, "criterion": "label", "noise_draws": 0, "cell": 2})


@pytest.fixture(scope="module")
def digit(mnist_cnn):
    return references.open_reference("mnist:4", mnist_cnn)[0]


@pytest.fixture(scope="module")
def explained(mnist_cnn, digit):
    return explain(mnist_cnn, digit, replace(QUICK, criterion="confidence"))


@pytest.fixture(scope="module")
def curve(mnist_cnn, digit, explained):
    return confidence_area_curve(mnist_cnn, digit, explained)


@pytest.fixture(scope="module")
def apart(mnist_cnn, digit):
    return disjoint(mnist_cnn, digit, QUICK, most=3, budget=1.0)


def at(curve: Curve, area: float) -> float:
    """The curve's height at an area; 0 before its first step."""
    reached = curve.confidences[curve.areas <= area]
    return reached[-1] if len(reached) else 0.0


def best_within(points, area: float) -> float:
    return max((confidence for own, confidence in points if own <= area), default=0.0)


def literal_auc(points) -> float:
    """Interval by interval between any two areas that occur."""
    edges = sorted({0.0, 1.0, *(area for area, _ in points)})
    return sum((b - a) * best_within(points, a) for a, b in itertools.pairwise(edges))


def check_curve(curve: Curve) -> None:
    assert curve.areas.shape == curve.confidences.shape and curve.areas.ndim == 1
    assert (np.diff(curve.areas) >= 0).all() and (np.diff(curve.confidences) >= 0).all()
    assert curve.areas.min() >= 0 and curve.areas.max() <= 1
    assert isinstance(curve.auc, float) and 0 <= curve.auc <= 1


@pytest.mark.parametrize(
    ("points", "auc"),
    [
        ([(1.0, 0.9)], 0.0),
        ([(0.0, 0.9)], 0.9),
        ([(0.0, 1.0), (1.0, 1.0)], 1.0),
        ([(0.25, 0.4), (1.0, 1.0)], 0.3),
        ([(0.5, 0.8), (0.25, 0.4), (1.0, 1.0)], 0.5),
        ([(0.25, 0.8), (0.5, 0.4), (1.0, 0.6)], 0.6),  # what falls is lifted
        ([(0.5, 0.2), (0.5, 0.6), (0.5, 0.4), (1.0, 0.0)], 0.3),  # the best of one area
    ],
)
def test_the_area_under_a_curve_by_hand(points, auc):
    curve = envelope(points)
    check_curve(curve)
    assert curve.auc == pytest.approx(auc)


@pytest.mark.parametrize("seed", range(8))
def test_the_envelope_against_brute_force(seed):
    generator = np.random.default_rng(seed)
    count = int(generator.integers(1, 40))
    areas = generator.integers(0, 21, count) / 20  # some occur twice
    points = list(zip(areas.tolist(), generator.random(count).tolist(), strict=True))
    curve, before = envelope(points), list(points)
    check_curve(curve)
    assert points == before
    for area in np.linspace(0, 1, 101):
        assert at(curve, area) == best_within(points, area)
    assert curve.auc == pytest.approx(literal_auc(points))
    shuffled = [points[i] for i in generator.permutation(count)]
    assert envelope(shuffled).auc == curve.auc


def test_the_curve_of_a_digit(digit, explained, curve):
    """It is no lower than any mask of the run, and reaches the image's confidence at 1."""
    check_curve(curve)
    assert explained.area in curve.areas and curve.areas[-1] == 1
    assert at(curve, explained.area) >= explained.explanation_confidence
    assert curve.confidences[-1] >= explained.confidence
    for record in explained.history:
        assert at(curve, record["area"]) >= record["confidence"]


def test_the_curve_of_a_digit_is_the_envelope_of_all_its_masks(mnist_cnn, digit, explained, curve):
    """Cells go by literal order: the ones whose absence leaves the most confidence first."""
    points = [(record["area"], record["confidence"]) for record in explained.history]
    points += [(explained.area, explained.explanation_confidence), (1.0, explained.confidence)]
    certificate, left = explained.certificate, explained.mask.clone()
    need = {(c.row, c.column): c.confidence for c in certificate.cells}
    assert len(need) > 2
    while len(need) > 1:
        row, column = max(need, key=need.get)
        del need[row, column]
        for i, j in itertools.product(range(28), range(28)):
            if (i // certificate.cell, j // certificate.cell) == (row, column):
                left[..., i, j] = 0
        confidence = mnist_cnn.module(digit * left)[0].softmax(0)[explained.label].item()
        points.append((left.mean().item(), confidence))
    assert len(points) == len(curve.areas)
    assert curve.areas == pytest.approx(np.array(sorted(area for area, _ in points)))
    for area in np.linspace(0, 1, 57) + 1e-5:  # off the steps: areas there may differ by rounding
        assert at(curve, area) == pytest.approx(best_within(points, area), abs=1e-5)
    assert curve.auc == pytest.approx(literal_auc(points), abs=1e-5)
    assert curve.areas[0] < explained.area


def test_the_curve_costs_a_pass_a_cell_or_none(mnist_cnn, digit, explained, curve):
    """The image's own pass and one a cell but the last; nothing without a certificate."""
    mask = explained.mask.clone()
    with taps.count(mnist_cnn.module) as passes:
        again = confidence_area_curve(mnist_cnn, digit, explained)
    assert explained.certificate.active - 1 <= sum(passes) <= explained.certificate.active
    assert np.array_equal(again.areas, curve.areas) and again.auc == curve.auc
    assert torch.equal(explained.mask, mask)
    with taps.count(mnist_cnn.module) as passes:
        bare = confidence_area_curve(mnist_cnn, digit, replace(explained, certificate=None))
    assert passes == []
    check_curve(bare)
    assert at(bare, explained.area) >= explained.explanation_confidence
    assert bare.areas[-1] == 1 and bare.auc <= curve.auc


def test_the_curve_of_a_run_without_certificate(mnist_cnn, digit):
    found = explain(mnist_cnn, digit, replace(QUICK, minimal=False, steps=4))
    assert found.certificate is None
    points = [(record["area"], record["confidence"]) for record in found.history]
    points += [(found.area, found.explanation_confidence), (1.0, found.confidence)]
    curve = confidence_area_curve(mnist_cnn, digit, found)
    check_curve(curve)
    assert curve.auc == pytest.approx(literal_auc(points))


def test_disjoint_explanations_share_no_cell_and_no_pixel(mnist_cnn, digit, apart):
    assert len(apart) > 1
    for one, other in itertools.combinations(apart, 2):
        assert not (one.mask.bool() & other.mask.bool()).any()
        assert not set(active_cells(one.mask, 2)) & set(active_cells(other.mask, 2))
    label = int(mnist_cnn(digit).argmax())
    for found in apart:
        assert found.feasible and found.label == label and found.config == QUICK
        assert is_feasible(mnist_cnn, digit, found.mask, label, QUICK)
        assert int(mnist_cnn(apply_mask(digit, found.mask)).argmax()) == label
        assert found.certificate.removable == 0


def test_the_first_of_them_is_the_one_explanation(mnist_cnn, digit, apart):
    assert torch.equal(apart[0].mask, explain(mnist_cnn, digit, QUICK).mask)


def test_whole_patches_go_to_one_of_them_each(mnist_cnn, digit):
    patches = replace(QUICK, cell=None, patch=7)
    apart = disjoint(mnist_cnn, digit, patches, most=3, budget=1.0)
    assert len(apart) > 1
    for found in apart:
        places = active_cells(found.mask, 7)
        assert found.certificate.cell == 7 and len(places) == found.certificate.active
        assert found.mask.sum() == 49 * len(places), "a patch is on or off as a whole"
    for one, other in itertools.combinations(apart, 2):
        assert not set(active_cells(one.mask, 7)) & set(active_cells(other.mask, 7))


def test_without_a_configuration_the_preset_is_the_models(mnist_cnn, digit, monkeypatch):
    short = {"digits": Preset(QUICK, "cut short"), "default": config.PRESETS["default"]}
    monkeypatch.setattr(config, "PRESETS", short)
    (found,) = disjoint(mnist_cnn, digit, most=1, budget=1.0)
    assert found.config == QUICK


@pytest.mark.parametrize("most", [1, 2])
def test_no_more_than_asked_for(mnist_cnn, digit, apart, most):
    fewer = disjoint(mnist_cnn, digit, QUICK, most=most, budget=1.0)
    assert len(fewer) == most
    for one, other in zip(fewer, apart, strict=False):
        assert torch.equal(one.mask, other.mask)


def test_the_first_beyond_the_budget_ends_it(mnist_cnn, digit, apart):
    """An area of just the budget is within; the greedy order does not change with the budget."""
    areas = [found.area for found in apart]
    ends = set()
    for budget in sorted({*areas, min(areas) / 2}):
        expected = list(itertools.takewhile(lambda area, most=budget: area <= most, areas))
        found = disjoint(mnist_cnn, digit, QUICK, most=len(areas), budget=budget)
        assert [one.area for one in found] == expected
        ends.add(len(found))
    assert {0, len(areas)} <= ends


@pytest.mark.parametrize(
    "wrong", [{"most": 0}, {"most": -1}, {"budget": 0.0}, {"budget": -0.1}, {"budget": 1.01}]
)
def test_no_such_number_or_budget(mnist_cnn, digit, wrong):
    with taps.count(mnist_cnn.module) as passes, pytest.raises(InputError, match="expected most"):
        disjoint(mnist_cnn, digit, QUICK, **wrong)
    assert passes == []


def test_nan_is_no_budget(mnist_cnn, digit):
    with pytest.raises(InputError, match="budget=nan"):
        disjoint(mnist_cnn, digit, QUICK, budget=float("nan"))


class Redundant(nn.Module):
    """Class 0's logit is the fullest of some 2 x 2 squares of an 8 x 8 image, less 2.5."""

    def __init__(self, corners):
        super().__init__()
        self.count = nn.Conv2d(1, len(corners), 8, bias=False)
        nn.init.zeros_(self.count.weight)
        with torch.no_grad():
            for i, (row, column) in enumerate(corners):
                self.count.weight[i, 0, row : row + 2, column : column + 2] = 1

    def forward(self, x):
        score = self.count(x).flatten(1).amax(1) - 2.5
        return torch.stack([score, torch.zeros_like(score)], 1)


def redundant(*corners) -> Classifier:
    return Classifier(
        name="redundant", family="test", module=Redundant(corners).eval().requires_grad_(False),
        mean=(0.0,), std=(1.0,), size=(8, 8), class_names=("there", "not there"),
        taps=("count",), transform=None, weights_sha256=None,
    )  # fmt: skip


@pytest.mark.parametrize("cell", [1, 2])
@pytest.mark.parametrize("corners", [[(2, 2)], [(0, 0), (4, 6)], [(0, 6), (4, 0), (6, 4)]])
def test_as_many_explanations_as_there_is_evidence(corners, cell):
    """Three pixels of any one square do; what is left of the squares then does not."""
    image, config = torch.ones(1, 1, 8, 8), replace(QUICK, cell=cell, steps=8)
    model = redundant(*corners)
    found = disjoint(model, image, config, most=9, budget=1.0)
    assert len(found) == len(corners)
    used = set()
    for one in found:
        assert one.label == 0 and is_feasible(model, image, one.mask, 0, config)
        places = {(i, j) for i, j in one.mask[0, 0].nonzero().tolist()}
        counts = {
            (row, column): sum(row <= i < row + 2 and column <= j < column + 2 for i, j in places)
            for row, column in corners
        }
        full = [corner for corner, count in counts.items() if count >= 3]
        assert len(full) == 1 and len(places) == (3 if cell == 1 else 4)
        used.update(full)
    assert used == set(corners)


def test_a_label_of_which_nothing_shows_has_no_explanation():
    model, image = redundant((2, 2)), torch.ones(1, 1, 8, 8)
    assert disjoint(model, image, replace(QUICK, steps=3), label=1, budget=1.0) == []
