"""Does a mask hold whatever is painted where it is off, and from seed to seed?"""

import math
from collections.abc import Iterator, Sequence
from itertools import combinations, islice
from types import MappingProxyType

import torch
from scipy import ndimage
from torch import Tensor

from minexp.classifier import Classifier
from minexp.errors import InputError
from minexp.masking import apply_mask, gaussian_background
from minexp.metrics import BATCH, probabilities
from minexp.sufficiency import CHECK_SEED

BLUR, PATCH, SIDE = 10, 32, 224  # a fill's sigma and patch, in pixels of an image of this side

# One background (1, C, H, W) each: of the image alone, or also of chance.
FIXED = MappingProxyType(
    {
        "zero": lambda model, image: torch.zeros_like(image),
        "mean": lambda model, image: image.mean((2, 3), keepdim=True).expand_as(image),
        "black": lambda model, image: model.normalize(torch.zeros_like(image)),
        "white": lambda model, image: model.normalize(torch.ones_like(image)),
        "blurred": lambda model, image: _blurred(image),
    }
)
RANDOM = MappingProxyType(
    {
        "gaussian": lambda model, image, others, chance: gaussian_background(model, 1, chance),
        "uniform": lambda model, image, others, chance: model.normalize(
            torch.rand(image.shape, generator=chance).to(image)
        ),
        "shuffled": lambda model, image, others, chance: _shuffled(image, chance),
        "patches": lambda model, image, others, chance: _mosaic(others, chance),
    }
)


def robustness_panel(
    model: Classifier,
    image: Tensor,
    mask: Tensor,
    label: int,
    *,
    others: Tensor,
    draws: int = 32,
    seed: int = CHECK_SEED,
    fills: Sequence[str] = (*FIXED, *RANDOM),
) -> dict[str, dict[str, float]]:
    """What the masked image keeps on each fill: name -> kept, draws, low, high, confidence.

    ``kept`` is the share of ``draws`` backgrounds that keep the label, ``low`` to ``high`` its
    95 % interval (:func:`wilson`), ``confidence`` the mean. The fills: zero; the image's mean
    colour; black and white (0 and 1 in pixel space); the image blurred (sigma 10 pixels at 224);
    Gaussian noise as in the search; uniform noise in pixel space, each pixel and channel by itself;
    the image's own pixels permuted, whole colours; a mosaic of square patches (32 pixels at 224)
    cut at random from ``others`` (M, C, H, W), normalised photographs.
    A fill without chance is one draw: repeating it would feign precision. Each fill starts afresh
    from ``seed``, hence does not depend on which others are asked, and is drawn one at a time,
    hence not on the batch. Raises InputError on an unknown fill, no draws, or unfit ``others``.
    """
    if unknown := set(fills) - FIXED.keys() - RANDOM.keys():
        raise InputError(f"fills {sorted(unknown)}: expected some of {', '.join(FIXED | RANDOM)}")
    if draws < 1 or not len(others) or others.shape[1:] != image.shape[1:]:
        raise InputError(f"draws={draws}, others {tuple(others.shape)}: expected at least one each")
    panel = {}
    for name in fills:
        chance = torch.Generator().manual_seed(seed)
        if name in FIXED:
            backgrounds = iter([FIXED[name](model, image)])
        else:
            fill = RANDOM[name]
            backgrounds = (fill(model, image, others, chance) for _ in range(draws))
        panel[name] = _survival(model, image, mask, label, backgrounds)
    return panel


def _survival(
    model: Classifier, image: Tensor, mask: Tensor, label: int, backgrounds: Iterator[Tensor]
) -> dict[str, float]:
    kept, confidence, draws = 0, 0.0, 0
    while batch := list(islice(backgrounds, BATCH)):
        shares = probabilities(model, apply_mask(image, mask, torch.cat(batch)))
        kept += int((shares.argmax(1) == label).sum())
        confidence += shares[:, label].double().sum().item()
        draws += len(batch)
    low, high = wilson(kept, draws)
    return {
        **{"kept": kept / draws, "draws": draws, "low": low, "high": high},
        "confidence": confidence / draws,
    }


def _blurred(image: Tensor) -> Tensor:
    sigma = BLUR * min(image.shape[2:]) / SIDE
    blurred = ndimage.gaussian_filter(image.detach().cpu().numpy(), (0, 0, sigma, sigma))
    return torch.from_numpy(blurred).to(image)


def _shuffled(image: Tensor, chance: torch.Generator) -> Tensor:
    pixels = image.flatten(2)
    order = torch.randperm(pixels.shape[2], generator=chance).to(image.device)
    return pixels[..., order].view_as(image)


def _mosaic(others: Tensor, chance: torch.Generator) -> Tensor:
    """Squares of ``others`` (M, C, H, W), each from any of them and anywhere; those at the right
    and lower edge are cut off there.
    """
    height, width = others.shape[2:]
    side = max(1, round(PATCH * min(height, width) / SIDE))
    mosaic = torch.empty_like(others[:1])
    for i in range(0, height, side):
        for j in range(0, width, side):
            ends = len(others), height - side + 1, width - side + 1
            which, top, left = (int(torch.randint(end, (), generator=chance)) for end in ends)
            room = mosaic[0, :, i : i + side, j : j + side]
            patch = others[which, :, top : top + side, left : left + side]
            room[:] = patch[:, : room.shape[1], : room.shape[2]]
    return mosaic


def wilson(successes: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Score interval of a binomial share (Wilson 1927): all p with |share - p| <= z sqrt(p q / n).

    (0, 1) if n = 0. Raises InputError unless 0 <= successes <= n.
    """
    if not 0 <= successes <= n:
        raise InputError(f"{successes} of {n}: expected 0 <= successes <= n")
    if n == 0:
        return 0.0, 1.0
    share = successes / n
    middle = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low, high = ((middle + sign * half) / (1 + z * z / n) for sign in (-1, 1))
    # exactly 0 and 1 at the ends, where rounding would leave 1e-17
    return (low if successes else 0.0), (high if successes < n else 1.0)


def dice(a: Tensor, b: Tensor) -> float:
    """Overlap 2 |a and b| / (|a| + |b|) of two masks of one shape; 1 if both are empty."""
    if a.shape != b.shape:
        raise InputError(f"masks {tuple(a.shape)}, {tuple(b.shape)}: expected one shape")
    a, b = a > 0.5, b > 0.5
    total = (a.sum() + b.sum()).item()
    return 2 * (a & b).sum().item() / total if total else 1.0


def mean_pairwise_dice(masks: Sequence[Tensor]) -> float:
    """Mean of :func:`dice` over all pairs, for stability over seeds; nan with fewer than two."""
    pairs = [dice(a, b) for a, b in combinations(masks, 2)]
    return sum(pairs) / len(pairs) if pairs else math.nan
