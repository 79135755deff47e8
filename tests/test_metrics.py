"""Metrics of saliency maps and masks: each against its definition, spelled out in float64."""

import copy
import math
import statistics
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from minexp import metrics, references, robustness
from minexp.classifier import Classifier
from minexp.errors import InputError
from minexp.masking import gaussian_background
from minexp.metrics import (
    AREAS,
    curve,
    deletion_auc,
    drop,
    drop_and_increase,
    insertion_auc,
    noisy_linear_imputation,
    rise_blur,
    road,
    smallest_area,
    smallest_areas,
    top,
)
from minexp.robustness import (
    FIXED,
    RANDOM,
    dice,
    mean_pairwise_dice,
    robustness_panel,
    wilson,
)
from minexp.sufficiency import CHECK_SEED, TOLERANCE, noise_kept

SIDE = 12
EVERY = (*FIXED, *RANDOM)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def classifier(module: nn.Module, size, mean, std) -> Classifier:
    module.eval().requires_grad_(False)
    return Classifier(
        name="tiny", family="test", module=module, mean=mean, std=std, size=size,
        class_names=("a", "b", "c"), taps=(), transform=None, weights_sha256=None,
    )  # fmt: skip


@pytest.fixture(scope="module")
def tiny():
    """Two channels, three classes, a convolution and random weights large enough to matter."""
    module = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(4 * SIDE * SIDE, 3)
    )
    for number, parameter in enumerate(module.parameters()):
        parameter.data = 0.25 * torch.randn(parameter.shape, generator=seeded(number))
    return classifier(module, (SIDE, SIDE), (0.4, 0.5), (0.2, 0.3))


@pytest.fixture(scope="module")
def image():
    return torch.randn(1, 2, SIDE, SIDE, generator=seeded(10))


@pytest.fixture(scope="module")
def label(tiny, image):
    return int(tiny(image).argmax())


@pytest.fixture(scope="module")
def digit(mnist_cnn):
    return references.open_reference("mnist:4", mnist_cnn)[0]


def noise_map(seed: int, side: int = SIDE) -> torch.Tensor:
    return torch.rand(1, 1, side, side, generator=seeded(seed))


MAPS = [noise_map(1), noise_map(2).round(decimals=1), (noise_map(3) > 0.7).float() - 0.5]


@pytest.fixture(params=range(3), ids=["continuous", "tied", "binary"])
def saliency(request):
    return MAPS[request.param]


# --- the definitions, one pixel and one image at a time, in float64


def literal_order(saliency) -> list[tuple[int, int]]:
    pixels = [(i, j) for i in range(saliency.shape[2]) for j in range(saliency.shape[3])]
    return sorted(pixels, key=lambda at: -saliency[0, 0, at[0], at[1]].item())  # sorted is stable


def literal_mask(saliency, count: int) -> torch.Tensor:
    mask = torch.zeros(1, 1, *saliency.shape[2:], dtype=torch.float64)
    for i, j in literal_order(saliency)[:count]:
        mask[0, 0, i, j] = 1
    return mask


def literal_shares(model, image) -> list[float]:
    logits = copy.deepcopy(model.module).double()(image.double())[0].tolist()
    powers = [math.exp(value - max(logits)) for value in logits]
    return [power / sum(powers) for power in powers]


def mixed(image, mask, background) -> torch.Tensor:
    return torch.where(mask.bool(), image.double(), background.double())


def literal_smallest(model, image, saliency, label, criterion):
    own = literal_shares(model, image)[label]
    for area in AREAS:
        count = max(1, round(area * saliency.numel()))
        mask = literal_mask(saliency, count)
        shares = literal_shares(model, mixed(image, mask, torch.zeros_like(image)))
        confident = criterion == "label" or shares[label] >= own - TOLERANCE
        if count == saliency.numel() or (shares.index(max(shares)) == label and confident):
            return mask


def literal_curve(model, start, finish, saliency, label, step):
    now, points, order = start.double().clone(), [], literal_order(saliency)
    for done in range(0, len(order) + step, step):
        points.append((min(done, len(order)) / len(order), literal_shares(model, now)[label]))
        for i, j in order[done : done + step]:
            now[0, :, i, j] = finish[0, :, i, j].double()
        if done >= len(order):
            return points


def literal_area(points) -> float:
    return sum((right[0] - left[0]) * (left[1] + right[1]) / 2 for left, right in pairwise(points))


def literal_neighbours(i, j, height, width):
    for di in (-1, 0, 1):
        for dj in (-1, 0, 1):
            if (di or dj) and 0 <= i + di < height and 0 <= j + dj < width:
                yield i + di, j + dj, 1 / 6 if di == 0 or dj == 0 else 1 / 12


def literal_imputation(image, mask) -> torch.Tensor:
    """A dense system: a known pixel is itself, a missing one its neighbours' weighted mean."""
    height, width = mask.shape[2:]
    system = torch.eye(height * width, dtype=torch.float64)
    right = image[0].double().flatten(1).T.clone()
    for i in range(height):
        for j in range(width):
            if mask[0, 0, i, j] == 0:
                near = list(literal_neighbours(i, j, height, width))
                right[i * width + j] = 0
                for k, m, weight in near:
                    system[i * width + j, k * width + m] = -weight / sum(w for *_, w in near)
    return torch.linalg.solve(system, right).T.reshape(image.shape)


# --- the most salient pixels


def test_top_takes_exactly_the_most_salient(saliency):
    before = saliency.clone()
    for fraction in (0.0, 0.001, 0.005, 0.1, 0.25, 0.5, 0.77, 1.0):
        mask = top(saliency, fraction)
        count = max(1, round(fraction * SIDE * SIDE))
        assert mask.shape == saliency.shape and mask.dtype == torch.float32
        assert torch.equal(mask.double(), literal_mask(saliency, count)) and mask.sum() == count
    assert torch.equal(saliency, before)


def test_ties_go_in_reading_order():
    mask = top(torch.zeros(1, 1, 4, 5), 0.35)
    assert mask.flatten().tolist() == [1] * 7 + [0] * 13


def test_tops_are_nested_and_do_not_depend_on_the_scale(saliency):
    masks = [top(saliency, area) for area in AREAS]
    assert all((small <= large).all() for small, large in pairwise(masks))
    assert torch.equal(top(8 * saliency + 3, 0.3), top(saliency, 0.3))


@pytest.mark.parametrize("fraction", [-0.1, 1.01, math.nan])
def test_a_fraction_out_of_range_is_refused(fraction):
    with pytest.raises(InputError, match="fraction"):
        top(MAPS[0], fraction)


def test_a_map_that_is_none_is_refused(tiny, image):
    for bad in (MAPS[0][0], MAPS[0].expand(1, 2, -1, -1), MAPS[0] * math.nan, MAPS[0] + math.inf):
        with pytest.raises(InputError, match="saliency"):
            top(bad, 0.5)
        with pytest.raises(InputError, match="saliency"):
            drop_and_increase(tiny, image, bad, 0)


# --- the smallest area


def test_the_grid_of_areas():
    assert len(AREAS) == 110 and AREAS[0] == 0.005 and AREAS[19] == 0.1 and AREAS[-1] == 1
    steps = np.diff(AREAS)
    assert np.allclose(steps[:19], 0.005) and np.allclose(steps[19:], 0.01)


def test_smallest_areas_against_the_definition(tiny, image, saliency):
    for label in range(3):
        found = smallest_areas(tiny, image, saliency, label)
        assert list(found) == ["label", "confidence"]
        for criterion, mask in found.items():
            expected = literal_smallest(tiny, image, saliency, label, criterion)
            assert torch.equal(mask.double(), expected)
            assert torch.equal(smallest_area(tiny, image, saliency, label, criterion), mask)
        assert found["label"].sum() <= found["confidence"].sum()


class Counter(nn.Module):
    """Class 0's logit is a weighted sum over 8 x 8 pixels, less 2.5; the others' are 0 and -9."""

    def __init__(self, weights):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(64))
        self.weight.data[: len(weights)] = torch.tensor(weights)

    def forward(self, x):
        score = (x.flatten(1) * self.weight).sum(1) - 2.5
        return torch.stack([score, torch.zeros_like(score), torch.full_like(score, -9)], 1)


ONES = torch.ones(1, 1, 8, 8)
READING = -torch.arange(64.0).view(1, 1, 8, 8)  # the first pixel is the most salient


def counter(*weights: float) -> Classifier:
    return classifier(Counter(weights), (8, 8), (0.0,), (1.0,))


def test_smallest_areas_by_hand():
    """Of four pixels that count, three make the label, four the confidence."""
    found = smallest_areas(counter(1.0, 1.0, 1.0, 1.0), ONES, READING, 0)
    assert found["label"].sum() == 3 and found["confidence"].sum() == 4
    assert smallest_areas(counter(1.0, 1.0, 1.0, 1.0), ONES, -READING, 0)["label"].sum() == 63


def test_smallest_at_which_it_holds_not_from_which_on():
    """One pixel suffices, the second spoils it, the rest mends it: one pixel is the answer."""
    model = counter(4.0, -9.0, *[1.0] * 10)
    assert smallest_areas(model, ONES, READING, 0)["label"].sum() == 1
    assert model(ONES * top(READING, 2 / 64)).argmax() == 1


def test_the_full_image_is_the_last_resort():
    """Class 2 is never the answer, so only the definition makes the full image hold."""
    found = smallest_areas(counter(1.0), ONES, READING, 2)
    assert all(torch.equal(mask, torch.ones(1, 1, 8, 8)) for mask in found.values())


def forwards(module, function) -> list[int]:
    """The sizes of the batches that a function sends through a module."""
    sizes = []
    handle = module.register_forward_hook(lambda _, given, __: sizes.append(len(given[0])))
    function()
    handle.remove()
    return sizes


def test_the_sweep_stops_early_and_batches_are_small(tiny, image):
    model = counter(4.0)
    assert forwards(model.module, lambda: smallest_areas(model, ONES, READING, 0)) == [1, 8]
    assert forwards(model.module, lambda: curve(model, ONES, ONES, READING, 0, 1)) == [8] * 8 + [1]
    given = dict(others=image, fills=("shuffled",), draws=19)
    assert forwards(
        tiny.module, lambda: robustness_panel(tiny, image, MAPS[2] + 0.5, 0, **given)
    ) == [8, 8, 3]


def test_unknown_criteria_are_refused():
    with pytest.raises(InputError, match="'size'"):
        smallest_area(counter(1.0), ONES, READING, 0, "size")


# --- insertion and deletion


@pytest.mark.parametrize("step", [1, 7, 12, 144, 500])
def test_curves_against_the_definition(tiny, image, label, saliency, step):
    black = torch.full_like(image, -1.5)
    for function, start, finish in (
        (insertion_auc, black, image),
        (deletion_auc, image, black),
    ):
        area, points = function(tiny, image, saliency, label, step=step, substrate=black)
        expected = literal_curve(tiny, start, finish, saliency, label, step)
        assert points.shape == (2, len(expected))
        assert points.T.tolist() == pytest.approx(np.array(expected), abs=1e-6)
        assert area == pytest.approx(literal_area(expected), abs=1e-6) and 0 <= area <= 1


def test_default_substrates_and_step(tiny, image, label):
    area, points = deletion_auc(tiny, image, MAPS[0], label)
    assert area == pytest.approx(
        literal_area(literal_curve(tiny, image, torch.zeros_like(image), MAPS[0], label, 3)),
        abs=1e-6,
    )
    assert points.shape == (2, 49)  # 144 pixels, 144 / 56 rounded up to 3 a step
    area, points = insertion_auc(tiny, image, MAPS[0], label)
    assert area == pytest.approx(
        literal_area(literal_curve(tiny, rise_blur(image), image, MAPS[0], label, 3)), abs=1e-6
    )


def test_insertion_by_hand():
    """One pixel at a time, only the first counts: a jump in the first step of 64."""
    area, points = insertion_auc(
        counter(5.0), ONES, READING, 0, step=1, substrate=torch.zeros_like(ONES)
    )
    low, high = (math.exp(s) / (math.exp(s) + 1 + math.exp(-9)) for s in (-2.5, 2.5))
    assert points[1].tolist() == pytest.approx([low] + [high] * 64, abs=1e-6)
    assert area == pytest.approx((low + high) / 128 + 63 * high / 64, abs=1e-6)


def test_inserting_is_deleting_backwards(tiny, image, label):
    black = torch.full_like(image, -1.5)
    inserted, forth = insertion_auc(tiny, image, MAPS[0], label, step=12, substrate=black)
    deleted, back = deletion_auc(tiny, image, -MAPS[0], label, step=12, substrate=black)
    assert torch.allclose(forth[1], back[1].flip(0), atol=1e-6)
    assert inserted == pytest.approx(deleted, abs=1e-6)


@pytest.mark.parametrize("step", [0, -1, 2.5])
def test_a_step_that_is_none_is_refused(tiny, image, step):
    with pytest.raises(InputError, match="step"):
        deletion_auc(tiny, image, MAPS[0], 0, step=step)


def test_rise_blur_against_its_kernel():
    """RISE's gkern: a 1 smoothed by a Gaussian of radius 20, reflected at the ends of 11 pixels."""
    weights = [math.exp(-k * k / 50) for k in range(-20, 21)]
    folded = [0.0] * 11
    for k, weight in zip(range(-20, 21), weights, strict=True):
        at = (5 + k) % 22  # reflected about both edges, the period is 22
        folded[min(at, 21 - at)] += weight / sum(weights)
    picture = torch.randn(1, 2, 13, 9, generator=seeded(5))
    expected = torch.zeros(1, 2, 13, 9, dtype=torch.float64)
    for i in range(13):
        for j in range(9):
            for k in range(max(0, i - 5), min(13, i + 6)):
                for m in range(max(0, j - 5), min(9, j + 6)):
                    weight = folded[k - i + 5] * folded[m - j + 5]
                    expected[0, :, i, j] += weight * picture[0, :, k, m].double()
    assert torch.allclose(rise_blur(picture).double(), expected, atol=1e-6)


# --- drop and increase


def test_drop_and_increase_against_the_definition(tiny, image):
    seen = set()
    for saliency in (MAPS[0], -MAPS[1], MAPS[2], 1 - MAPS[2]):
        for label in range(3):
            low, high = saliency.min().item(), saliency.max().item()
            scaled = (saliency.double() - low) / (high - low)
            before = literal_shares(tiny, image)[label]
            after = literal_shares(tiny, image.double() * scaled)[label]
            lost, gained = drop_and_increase(tiny, image, saliency, label)
            assert lost == pytest.approx(max(0, before - after) / before, abs=1e-5)
            assert gained is (after > before)
            assert gained is False or lost == 0
            seen.add(gained)
    assert seen == {True, False}


def test_full_and_empty_masks_keep_all_and_nothing(tiny, image, label):
    ones = torch.ones(1, 1, SIDE, SIDE)
    assert drop_and_increase(tiny, image, ones, label) == (0.0, False)
    before = literal_shares(tiny, image)[label]
    after = literal_shares(tiny, 0 * image)[label]
    lost, _ = drop_and_increase(tiny, image, 0 * ones, label)
    assert lost == pytest.approx(max(0, before - after) / before, abs=1e-5)


def test_drop_by_hand():
    assert drop(0.8, 0.2) == pytest.approx(0.75)
    assert drop(0.2, 0.8) == 0 and drop(0.0, 0.0) == 0 and drop(0.5, 0.0) == 1


# --- ROAD


HOLES = {
    "one": 1 - top(MAPS[0], 1 / 144),
    "scattered": 1 - top(MAPS[0], 0.4),
    "most": top(MAPS[0], 0.1),
    "block": torch.ones(1, 1, SIDE, SIDE).index_fill(2, torch.arange(5), 0),
    "all but a corner": top(torch.zeros(1, 1, SIDE, SIDE), 1 / 144),
}


@pytest.mark.parametrize("mask", HOLES.values(), ids=HOLES)
def test_imputation_solves_its_equations(image, mask):
    filled = noisy_linear_imputation(image, mask, seeded(0), noise=0)
    assert torch.allclose(filled.double(), literal_imputation(image, mask), atol=1e-5)
    known = mask.bool().expand_as(image)
    assert torch.equal(filled[known], image[known])
    for i, j in (mask[0, 0] == 0).nonzero().tolist():
        near = list(literal_neighbours(i, j, SIDE, SIDE))
        mean = sum(w * filled[0, :, k, m].double() for k, m, w in near) / sum(w for *_, w in near)
        assert torch.allclose(filled[0, :, i, j].double(), mean, atol=2e-6)
    for before, after in zip(image[0], filled[0], strict=True):  # no new extremes
        assert after.min() >= before[mask[0, 0] == 1].min() - 1e-5
        assert after.max() <= before[mask[0, 0] == 1].max() + 1e-5


def test_imputation_of_one_channel_that_is_not_square():
    picture = torch.randn(1, 1, 5, 9, generator=seeded(4))
    mask = (torch.rand(1, 1, 5, 9, generator=seeded(5)) > 0.6).float()
    filled = noisy_linear_imputation(picture, mask, seeded(0), noise=0)
    assert torch.allclose(filled.double(), literal_imputation(picture, mask), atol=1e-5)


def test_imputation_noise_is_seeded_small_and_only_where_imputed(mnist_cnn, digit):
    mask = top(noise_map(6, 28), 0.4)
    clean = noisy_linear_imputation(digit, mask, seeded(0), noise=0)
    noisy = noisy_linear_imputation(digit, mask, seeded(0))
    again = noisy_linear_imputation(digit, mask, seeded(0))
    assert torch.equal(noisy, again)
    assert not torch.equal(noisy, noisy_linear_imputation(digit, mask, seeded(1)))
    added = noisy - clean
    assert (added[mask == 1] == 0).all() and added[mask == 0].std() == pytest.approx(0.01, rel=0.15)
    alone = noisy_linear_imputation(0 * digit, mask, seeded(0))  # does not depend on the image
    assert torch.allclose(added[mask == 0], alone[mask == 0], atol=1e-6)
    fewer = noisy_linear_imputation(0 * digit, top(noise_map(6, 28), 0.6), seeded(0))
    both = fewer != 0  # nor, pixel by pixel, on the mask
    assert torch.equal(fewer[both], alone[both])


def test_imputation_of_nothing_and_of_everything(image):
    assert torch.equal(noisy_linear_imputation(image, torch.ones_like(MAPS[0]), seeded(0)), image)
    with pytest.raises(InputError, match="every pixel"):
        noisy_linear_imputation(image, torch.zeros_like(MAPS[0]), seeded(0))


def test_road_against_the_definition(tiny, image, saliency):
    percentiles = (20, 50, 90)
    for label in range(3):
        expected = []
        for percentile in percentiles:
            removed = round(percentile / 100 * 144)
            most = 1 - literal_mask(saliency, removed)
            least = literal_mask(saliency, 144 - removed)
            after = [
                literal_shares(tiny, literal_imputation(image, mask))[label]
                for mask in (least, most)
            ]
            expected.append((after[0] - after[1]) / 2)
        score = road(tiny, image, saliency, label, percentiles, noise=0)
        assert score == pytest.approx(statistics.mean(expected), abs=1e-5)


def test_road_is_seeded_and_odd_in_the_order(tiny, image, label):
    score = road(tiny, image, MAPS[0], label)
    assert score == road(tiny, image, MAPS[0], label, seed=CHECK_SEED)
    assert score != road(tiny, image, MAPS[0], label, seed=1)
    assert score == pytest.approx(road(tiny, image, MAPS[0], label, noise=0), abs=0.02)
    assert road(tiny, image, -MAPS[0], label) == pytest.approx(-score, abs=1e-6)


@pytest.mark.parametrize("percentiles", [(), (0,), (20, 100)])
def test_percentiles_out_of_range_are_refused(tiny, image, percentiles):
    with pytest.raises(InputError, match="percentiles"):
        road(tiny, image, MAPS[0], 0, percentiles)


# --- robustness


@pytest.fixture(scope="module")
def others():
    return torch.randn(3, 2, SIDE, SIDE, generator=seeded(20))


HALF = top(MAPS[0], 0.5)


def literal_mosaic(others, generator):
    """Squares of 2 pixels: 32 at 224 are 1.7 at 12."""
    mosaic = torch.zeros(1, *others.shape[1:])
    for i in range(0, SIDE, 2):
        for j in range(0, SIDE, 2):
            which, row, column = (
                torch.randint(end, (), generator=generator).item()
                for end in (len(others), SIDE - 1, SIDE - 1)
            )
            for di in range(2):
                for dj in range(2):
                    mosaic[0, :, i + di, j + dj] = others[which, :, row + di, column + dj]
    return mosaic


def literal_blur(image):
    """Sigma 10 * 12 / 224 pixels, cut at four sigma, reflected about the outermost pixels' edge."""
    sigma = 10 * SIDE / 224
    weights = {k: math.exp(-k * k / (2 * sigma**2)) for k in (-2, -1, 0, 1, 2)}
    blurred = torch.zeros_like(image, dtype=torch.float64)
    for i in range(SIDE):
        for j in range(SIDE):
            for k, down in weights.items():
                for m, right in weights.items():
                    row, column = (
                        -1 - at if at < 0 else 2 * SIDE - 1 - at if at >= SIDE else at
                        for at in (i + k, j + m)
                    )
                    blurred[0, :, i, j] += down * right * image[0, :, row, column].double()
    return blurred / sum(weights.values()) ** 2


def literal_backgrounds(name, model, image, others, draws, seed):
    mean, std = (torch.tensor(v).double()[:, None, None] for v in (model.mean, model.std))
    g = seeded(seed)
    if name in FIXED:
        yield {
            "zero": lambda: 0 * image,
            "mean": lambda: image.double().mean((2, 3), keepdim=True).expand_as(image),
            "black": lambda: (0 * image - mean) / std,
            "white": lambda: (0 * image + 1 - mean) / std,
            "blurred": lambda: literal_blur(image),
        }[name]()
        return
    for _ in range(draws):
        if name == "gaussian":
            pixels = (0.5 + 0.25 * torch.randn(image.shape, generator=g)).clamp(0, 1)
            yield (pixels - mean) / std
        elif name == "uniform":
            yield (torch.rand(image.shape, generator=g) - mean) / std
        elif name == "shuffled":
            order = torch.randperm(SIDE * SIDE, generator=g).tolist()
            pixels = [image[0, :, at // SIDE, at % SIDE] for at in order]
            yield torch.stack(pixels, 1).view_as(image)
        else:
            yield literal_mosaic(others, g)


@pytest.mark.parametrize("name", EVERY)
def test_every_fill_against_the_definition(tiny, image, others, name):
    for label, seed in ((0, 5), (1, 6), (2, 5)):
        given = dict(others=others, draws=11, seed=seed, fills=(name,))
        said = robustness_panel(tiny, image, HALF, label, **given)[name]
        shares = [
            literal_shares(tiny, mixed(image, HALF, background))
            for background in literal_backgrounds(name, tiny, image, others, 11, seed)
        ]
        kept = sum(share.index(max(share)) == label for share in shares)
        low, high = wilson(kept, len(shares))
        assert said == pytest.approx(
            {
                **{"kept": kept / len(shares), "draws": len(shares), "low": low, "high": high},
                "confidence": statistics.mean(share[label] for share in shares),
            },
            abs=1e-5,
        )
        assert said["draws"] == (1 if name in FIXED else 11)


def test_the_panel_is_seeded_and_each_fill_independent(tiny, image, others):
    given = dict(others=others, draws=5)
    panel = robustness_panel(tiny, image, HALF, 0, **given)
    assert tuple(panel) == EVERY and panel == robustness_panel(tiny, image, HALF, 0, **given)
    for name in reversed(EVERY):
        alone = robustness_panel(tiny, image, HALF, 0, **given, fills=(name,))
        assert alone == {name: panel[name]}
    reseeded = robustness_panel(tiny, image, HALF, 0, **given, seed=3)
    same = {name for name in EVERY if reseeded[name] == panel[name]}
    assert same == set(FIXED)


def test_the_full_mask_keeps_all_on_every_fill(tiny, image, label, others):
    panel = robustness_panel(tiny, image, torch.ones_like(HALF), label, others=others, draws=9)
    own = literal_shares(tiny, image)[label]
    for said in panel.values():
        assert said["kept"] == 1 and said["confidence"] == pytest.approx(own, abs=1e-6)


def test_with_the_empty_mask_only_the_background_counts(tiny, image, others):
    empty = torch.zeros_like(HALF)
    one = robustness_panel(tiny, image, empty, 1, others=others, draws=9)
    other = robustness_panel(tiny, others[:1], empty, 1, others=others, draws=9)
    for name in ("zero", "black", "white", "gaussian", "uniform", "patches"):
        assert one[name] == other[name]
    assert one["shuffled"] != other["shuffled"]


def test_gaussian_is_the_noise_of_check_mask(mnist_cnn, digit):
    label = int(mnist_cnn(digit).argmax())
    for area in (0.15, 0.4, 0.7):
        mask = top(rise_blur(digit), area)
        said = robustness_panel(mnist_cnn, digit, mask, label, others=digit, fills=("gaussian",))
        share = noise_kept(mnist_cnn, digit, mask, label, draws=32, seed=CHECK_SEED)
        assert said["gaussian"]["kept"] == share


def test_patches_of_one_flat_photograph_are_flat(tiny, image):
    flat = torch.full_like(image, 0.3)
    given = dict(others=flat, draws=3, fills=("patches",))
    said = robustness_panel(tiny, image, HALF, 0, **given)["patches"]
    share = literal_shares(tiny, mixed(image, HALF, flat))[0]
    assert said["confidence"] == pytest.approx(share, abs=1e-6)


def test_a_mosaic_need_not_fit_the_image():
    """65 pixels: squares of 9, the last of a row and of a column 2 wide."""
    picture = torch.arange(65.0 * 70).view(1, 1, 65, 70)
    mosaic = robustness._mosaic(picture, seeded(0))
    assert mosaic.shape == picture.shape
    inner = mosaic[0, 0, 63:, :9]
    assert (inner.diff(dim=1) == 1).all() and (inner.diff(dim=0) == 70).all()


def test_unfit_input_to_the_panel_is_refused(tiny, image, others):
    for given, said in (
        ({"fills": ("pink",)}, "pink"),
        ({"draws": 0}, "draws=0"),
        ({"others": others[:0]}, "others"),
        ({"others": others[:, :1]}, "others"),
    ):
        with pytest.raises(InputError, match=said):
            robustness_panel(tiny, image, HALF, 0, **({"others": others} | given))


# --- batches and side effects


def everything(model, image, label, others) -> list:
    saliency = MAPS[1]
    found = smallest_areas(model, image, saliency, label)
    panel = robustness_panel(model, image, HALF, label, others=others, draws=10)
    return [
        *(mask.sum().item() for mask in found.values()),
        insertion_auc(model, image, saliency, label)[0],
        deletion_auc(model, image, saliency, label)[0],
        *drop_and_increase(model, image, saliency, label),
        road(model, image, saliency, label),
        *(number for said in panel.values() for number in said.values()),
    ]


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_nothing_depends_on_the_batch(tiny, image, label, others, monkeypatch, batch):
    expected = everything(tiny, image, label, others)
    monkeypatch.setattr(metrics, "BATCH", batch)
    monkeypatch.setattr(robustness, "BATCH", batch)
    assert everything(tiny, image, label, others) == pytest.approx(expected, abs=1e-6)


def test_no_gradients_no_global_chance_no_changes(tiny, image, label, others):
    given = [image, others, MAPS[1], HALF]
    before, state = [one.clone() for one in given], torch.get_rng_state()
    everything(tiny, image, label, others)
    assert all(torch.equal(one, old) for one, old in zip(given, before, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    with torch.enable_grad():
        tiny.module.requires_grad_(True)
        points = deletion_auc(tiny, image, MAPS[1], label)[1]
        tiny.module.requires_grad_(False)
    assert not points.requires_grad


# --- intervals and overlaps


@pytest.mark.parametrize(
    "successes, n, low, high",
    [  # Newcombe 1998, Statistics in Medicine 17, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_against_a_textbook(successes, n, low, high):
    assert wilson(successes, n) == pytest.approx((low, high), abs=6e-5)
    mirrored = wilson(n - successes, n)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=6e-5)


def test_wilson_solves_its_equation():
    """At both ends |share - p| is z standard errors of p."""
    for n in (1, 7, 32, 1000):
        for successes in {0, 1, n // 2, n - 1, n}:
            for z in (1.0, 1.96, 2.576):
                low, high = wilson(successes, n, z)
                share = successes / n
                assert 0 <= low <= share <= high <= 1
                for end in (low, high):
                    error = z * math.sqrt(end * (1 - end) / n)
                    assert abs(share - end) == pytest.approx(error, abs=1e-9)
    assert wilson(0, 5)[0] == 0.0 and wilson(5, 5)[1] == 1.0 and wilson(0, 0) == (0.0, 1.0)


def test_wilson_covers():
    chance = np.random.default_rng(0)
    for share in (0.5, 0.8, 0.95):
        drawn = chance.binomial(32, share, size=4000)
        intervals = {k: wilson(k, 32) for k in set(drawn.tolist())}
        covered = np.mean([intervals[k][0] <= share <= intervals[k][1] for k in drawn.tolist()])
        assert 0.92 <= covered <= 0.99


@pytest.mark.parametrize("successes, n", [(-1, 3), (4, 3), (0, -1)])
def test_impossible_counts_are_refused(successes, n):
    with pytest.raises(InputError, match="successes"):
        wilson(successes, n)


def test_dice():
    a, b = top(MAPS[0], 0.3), top(MAPS[1], 0.4)
    one, two = ({tuple(at) for at in mask.nonzero().tolist()} for mask in (a, b))
    expected = 2 * len(one & two) / (len(one) + len(two))
    assert 0 < expected < 1 and dice(a, b) == dice(b, a) == pytest.approx(expected)
    assert dice(a, a) == 1 and dice(a, 1 - a) == 0
    assert dice(0 * a, 0 * a) == 1 and dice(0 * a, a) == 0
    assert dice(a.bool(), b.int()) == dice(a, b)
    with pytest.raises(InputError, match="one shape"):
        dice(a, a[..., :1])


def test_mean_pairwise_dice():
    masks = [top(saliency, 0.3) for saliency in MAPS]
    pairs = [dice(masks[0], masks[1]), dice(masks[0], masks[2]), dice(masks[1], masks[2])]
    assert mean_pairwise_dice(masks) == pytest.approx(statistics.mean(pairs))
    assert mean_pairwise_dice(masks[:1] * 4) == 1
    assert mean_pairwise_dice(torch.cat(masks)) == mean_pairwise_dice(masks)
    assert math.isnan(mean_pairwise_dice(masks[:1])) and math.isnan(mean_pairwise_dice([]))


# --- the real networks


def test_on_a_digit(mnist_cnn, digit):
    """The ink is a better map than its negative, by every metric."""
    label, ink = int(mnist_cnn(digit).argmax()), rise_blur(digit) + digit
    for criterion, mask in smallest_areas(mnist_cnn, digit, ink, label).items():
        shares = literal_shares(mnist_cnn, digit * mask)
        own = literal_shares(mnist_cnn, digit)[label]
        assert shares.index(max(shares)) == label
        assert criterion == "label" or shares[label] >= own - 2 * TOLERANCE
        paper = smallest_area(mnist_cnn, digit, -ink, label, criterion)
        assert mask.mean() < paper.mean()
    good, bad = ((mnist_cnn, digit, saliency, label) for saliency in (ink, -ink))
    assert insertion_auc(*good)[0] > insertion_auc(*bad)[0]
    assert deletion_auc(*good)[0] < deletion_auc(*bad)[0]
    assert insertion_auc(*good)[1].shape == (2, 57)
    assert drop_and_increase(*good)[0] < drop_and_increase(*bad)[0]
    assert road(*good) > 0 > road(*bad)
    panel = robustness_panel(mnist_cnn, digit, top(ink, 0.3), label, others=digit, draws=4)
    assert panel["zero"] == panel["black"]  # for digits zero is black


def test_on_a_photograph(lite0, coffee):
    label = int(lite0(coffee).argmax())
    line = torch.linspace(-1, 1, 224)
    centre = -(line[:, None] ** 2 + line**2)[None, None]
    area, points = deletion_auc(lite0, coffee, centre, label, step=12544)
    own = lite0(coffee).softmax(1)[0, label].item()
    assert points[0].tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert points[1, 0].item() == pytest.approx(own, abs=1e-4) and 0 < area < own
    assert -0.5 < road(lite0, coffee, centre, label, (20, 80)) < 0.5
    mask = smallest_area(lite0, coffee, centre, label, "label")
    assert int(lite0(coffee * mask).argmax()) == label and mask.mean() < 0.5
    panel = robustness_panel(lite0, coffee, mask, label, others=coffee.flip(3), draws=2)
    assert tuple(panel) == EVERY and panel["zero"]["kept"] == 1
    noise = gaussian_background(lite0, 1, seeded(CHECK_SEED))
    first = robustness_panel(lite0, coffee, mask, label, others=coffee, draws=1, fills=["gaussian"])
    share = lite0(torch.where(mask.bool(), coffee, noise)).softmax(1)[0, label].item()
    assert first["gaussian"]["confidence"] == pytest.approx(share, abs=1e-5)


# --- other people's code, where it happens to be installed


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # theirs, from numpy 2
def test_road_is_that_of_pytorch_grad_cam(mnist_cnn, digit, monkeypatch):
    reference = pytest.importorskip("pytorch_grad_cam.metrics.road")
    targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    label, saliency = int(mnist_cnn(digit).argmax()), noise_map(8, 28)
    for area in (0.05, 0.5, 0.95):
        mask = top(saliency, area)
        theirs = reference.NoisyLinearImputer(noise=0)(digit[0], mask[0, 0])
        ours = noisy_linear_imputation(digit, mask, seeded(0), noise=0)[0]
        assert torch.allclose(ours, theirs, atol=1e-6)
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)  # ROADCombined's noise is fixed
    theirs = reference.ROADCombined([20, 40, 60, 80])(
        digit, saliency[0].numpy(), [targets.ClassifierOutputSoftmaxTarget(label)], mnist_cnn.module
    )
    ours = road(mnist_cnn, digit, saliency, label, noise=0)
    assert ours == pytest.approx(theirs.item(), abs=1e-6)
