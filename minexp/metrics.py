"""What any saliency map is worth: areas, curves, drops, imputation; numbers only.

Plain forward passes of at most ``BATCH`` images. Throughout ``model`` is the
classifier, ``image`` (1, C, H, W) its normalised input, ``label`` the class that is explained,
``saliency`` (1, 1, H, W) any finite map, higher more relevant, and a mask (1, 1, H, W) of 0 and 1;
"zero" is zero after normalisation and "confidence" the softmax probability of ``label``.

Pixels are taken in descending saliency. Ties are broken by position, in reading order (a stable
sort), so that every count is met exactly, also for binary maps.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage, sparse
from scipy.sparse.linalg import spsolve
from torch import Tensor

from minexp.classifier import Classifier
from minexp.config import CRITERIA
from minexp.errors import InputError
from minexp.masking import apply_mask
from minexp.sufficiency import CHECK_SEED, TOLERANCE

BATCH = 8  # images a forward pass: memory does not grow with areas, steps or draws
AREAS = tuple(k / 200 for k in range(1, 21)) + tuple(k / 100 for k in range(11, 101))
STEPS = 56  # of a curve: at 224 x 224 a step is 896 pixels
NEIGHBOURS = tuple(  # (down, right), weight: those with an edge in common count double
    ((down, right), 1 / 12 if down and right else 1 / 6)
    for down in (-1, 0, 1)
    for right in (-1, 0, 1)
    if down or right
)


@torch.no_grad()
def probabilities(model: Classifier, images: Tensor) -> Tensor:
    """Probabilities (N, K) of a batch (N, C, H, W)."""
    return model(images).softmax(1)


def _ranks(saliency: Tensor) -> Tensor:
    """Each pixel's place, from 0, in descending saliency; (1, 1, H, W) int64."""
    order = _checked(saliency).flatten().argsort(descending=True, stable=True)
    return order.argsort().view_as(saliency)


def _checked(saliency: Tensor) -> Tensor:
    if saliency.ndim != 4 or saliency.shape[:2] != (1, 1) or not saliency.isfinite().all():
        raise InputError(f"saliency {tuple(saliency.shape)}: expected finite numbers (1, 1, H, W)")
    return saliency


def _first(ranks: Tensor, counts: Sequence[int]) -> Tensor:
    """One mask (N, 1, H, W) float32 for each count: that many first-ranked pixels are on."""
    return (ranks < torch.tensor(counts, device=ranks.device)[:, None, None, None]).float()


def _pixels(fraction: float, total: int) -> int:
    return max(1, round(fraction * total))


def top(saliency: Tensor, fraction: float) -> Tensor:
    """The mask of the round(fraction * H * W), at least one, most salient pixels.

    Raises InputError if ``fraction`` is not in [0, 1].
    """
    if not 0 <= fraction <= 1:
        raise InputError(f"fraction={fraction!r}: expected a number from 0 to 1")
    return _first(_ranks(saliency), [_pixels(fraction, saliency.numel())])


def smallest_area(
    model: Classifier, image: Tensor, saliency: Tensor, label: int, criterion: str
) -> Tensor:
    """The mask of :func:`smallest_areas` for one criterion; its mean is the area."""
    return smallest_areas(model, image, saliency, label, (criterion,))[criterion]


def smallest_areas(
    model: Classifier,
    image: Tensor,
    saliency: Tensor,
    label: int,
    criteria: Sequence[str] = CRITERIA,
) -> dict[str, Tensor]:
    """Criterion -> the smallest mask, of the areas ``AREAS``, with which it holds on a zero fill.

    "label": the most salient pixels alone keep the label; "confidence": they also keep the image's
    own confidence, less ``TOLERANCE``. It is the smallest area at which the criterion holds, not
    the one from which on it always holds: generous to the saliency map. The full image counts as
    holding by definition, so there always is one. Raises InputError on an unknown criterion.
    """
    if unknown := set(criteria) - set(CRITERIA):
        raise InputError(f"criteria {sorted(unknown)}: expected some of {', '.join(CRITERIA)}")
    own = probabilities(model, image)[0, label]
    ranks = _ranks(saliency)
    found: dict[str, Tensor] = {}
    counts = [_pixels(area, saliency.numel()) for area in AREAS[:-1]]  # 1.0 needs no test
    for start in range(0, len(counts), BATCH):
        masks = _first(ranks, counts[start : start + BATCH])
        shares = probabilities(model, apply_mask(image, masks))
        kept = shares.argmax(1) == label
        holds = {"label": kept, "confidence": kept & (shares[:, label] >= own - TOLERANCE)}
        for criterion in set(criteria) - found.keys():
            if holds[criterion].any():
                found[criterion] = masks[holds[criterion]][:1].clone()
        if len(found) == len(set(criteria)):
            break
    return {name: found.get(name, torch.ones_like(saliency).float()) for name in criteria}


def curve(
    model: Classifier, start: Tensor, finish: Tensor, saliency: Tensor, label: int, step: int | None
) -> Tensor:
    """Confidence while pixels of ``start`` (1, C, H, W) become those of ``finish``.

    In descending saliency, ``step`` pixels at a time (None: H * W / ``STEPS``, rounded up); the
    last step may be shorter. Returns (2, T + 1): fractions of pixels changed, from 0 to 1, and
    confidences. Raises InputError if ``step`` is no positive integer.
    """
    ranks, total = _ranks(saliency), saliency.numel()
    step = math.ceil(total / STEPS) if step is None else step
    if type(step) is not int or step < 1:
        raise InputError(f"step={step!r}: expected a number of pixels >= 1")
    counts = [*range(0, total, step), total]
    shares = [
        probabilities(model, apply_mask(finish, _first(ranks, counts[at : at + BATCH]), start))[
            :, label
        ]
        for at in range(0, len(counts), BATCH)
    ]
    confidence = torch.cat(shares)
    return torch.stack([torch.tensor(counts).to(confidence) / total, confidence])


def insertion_auc(
    model: Classifier,
    image: Tensor,
    saliency: Tensor,
    label: int,
    *,
    step: int | None = None,
    substrate: Tensor | None = None,
) -> tuple[float, Tensor]:
    """Area in [0, 1] under the confidence as pixels come in, and that :func:`curve`; high is good.

    Petsiuk et al. 2018 (RISE), section 4, "Evaluation Metrics": from ``substrate`` (1, C, H, W),
    None: the image blurred by :func:`rise_blur`, to the image; trapezoids.
    """
    substrate = rise_blur(image) if substrate is None else substrate
    points = curve(model, substrate, image, saliency, label, step)
    return _area_under(points), points


def deletion_auc(
    model: Classifier,
    image: Tensor,
    saliency: Tensor,
    label: int,
    *,
    step: int | None = None,
    substrate: Tensor | None = None,
) -> tuple[float, Tensor]:
    """As :func:`insertion_auc`, but from the image to ``substrate``, None: zero; low is good."""
    substrate = torch.zeros_like(image) if substrate is None else substrate
    points = curve(model, image, substrate, saliency, label, step)
    return _area_under(points), points


def _area_under(points: Tensor) -> float:
    return torch.trapezoid(points[1].double(), points[0].double()).item()


def rise_blur(image: Tensor) -> Tensor:
    """The image (N, C, H, W) under the 11 x 11 kernel of RISE's code (gkern(11, 5)), zero-padded.

    That kernel is scipy's response to a single 1 in 11 x 11 zeros, sigma 5: the tails are
    reflected back in, so that it is nearly flat. Lengths are pixels, whatever the image's size.
    """
    impulse = np.zeros((11, 11))
    impulse[5, 5] = 1
    kernel = torch.from_numpy(ndimage.gaussian_filter(impulse, 5)).to(image)
    channels = image.shape[1]
    kernel = kernel.expand(channels, 1, 11, 11)
    return torch.nn.functional.conv2d(image, kernel, padding=5, groups=channels)


def drop(before: float, after: float) -> float:
    """Share of a confidence lost, max(0, before - after) / before; 0 where none was to lose."""
    return max(0.0, before - after) / before if before > 0 else 0.0


def drop_and_increase(
    model: Classifier, image: Tensor, saliency: Tensor, label: int
) -> tuple[float, bool]:
    """Confidence lost and whether any was gained when the image is multiplied by its map.

    Chattopadhay et al. 2018 (Grad-CAM++), section 4.1: the published "average drop %" and
    "% increase in confidence" are 100 times the means over images. The map is scaled to [0, 1];
    a constant one, which has no scale, counts as 1 if positive, else as 0, so that full and empty
    masks mean the full and the empty image.
    """
    lowest, highest = _checked(saliency).aminmax()
    scaled = (saliency - lowest) / (highest - lowest)
    scaled = scaled if highest > lowest else (saliency > 0).to(saliency.dtype)
    before, after = probabilities(model, torch.cat([image, scaled * image]))[:, label].tolist()
    return drop(before, after), after > before


def noisy_linear_imputation(
    image: Tensor, mask: Tensor, generator: torch.Generator, noise: float = 0.01
) -> Tensor:
    """The image (1, C, H, W) with the pixels that are off in the mask imputed; the others stay.

    Rong et al. 2022 (ROAD), "Noisy Linear Imputation", weights of the authors' code: each missing
    pixel is the mean of its neighbours within the image, direct ones weighing 1/6, diagonal ones
    1/12; the sparse system is solved in float64. Then Gaussian noise of standard deviation
    ``noise``, in normalised units, is added to it, drawn for the whole image so that a seed
    means the same noise for every mask. Raises InputError if all pixels are missing.
    """
    known = mask.flatten().cpu().numpy() > 0.5
    if not known.any():
        raise InputError("every pixel is missing: expected some to impute the others from")
    drawn = noise * torch.randn(image.shape, generator=generator).to(image)
    if known.all():
        return image.clone()
    values = image.detach().cpu().double().numpy().reshape(image.shape[1], -1).T.copy()  # (H W, C)
    equations = _laplacian(*image.shape[2:])[~known]
    right = -(equations[:, known] @ values[known])
    solved = spsolve(equations[:, ~known].tocsc(), right)
    values[~known] = solved.reshape(right.shape)  # scipy drops the axis of a single channel
    imputed = torch.from_numpy(values.T.reshape(image.shape)).to(image) + drawn
    return torch.where(mask > 0.5, image, imputed)


def _laplacian(height: int, width: int) -> sparse.csr_matrix:
    """(H W, H W): each row is a pixel less the weighted mean of its neighbours within the image,
    times their weights' sum.
    """
    numbers = np.arange(height * width).reshape(height, width)
    padded = np.pad(numbers, 1, constant_values=-1)
    rows, columns, weights = [], [], []
    for (down, right), weight in NEIGHBOURS:
        near = padded[1 + down : 1 + down + height, 1 + right : 1 + right + width]
        inside = near >= 0
        rows.append(numbers[inside])
        columns.append(near[inside])
        weights.append(np.full(inside.sum(), weight))
    entries = np.concatenate(weights), (np.concatenate(rows), np.concatenate(columns))
    adjacency = sparse.csr_matrix(entries, shape=(numbers.size, numbers.size))
    return (sparse.diags(np.asarray(adjacency.sum(1)).ravel()) - adjacency).tocsr()


def road(
    model: Classifier,
    image: Tensor,
    saliency: Tensor,
    label: int,
    percentiles: Sequence[float] = (20, 40, 60, 80),
    *,
    seed: int = CHECK_SEED,
    noise: float = 0.01,
) -> float:
    """Mean over p of (L_p - M_p) / 2, in [-1/2, 1/2]; high is good.

    L_p is the confidence after the p % least salient pixels are removed, M_p after the p % most
    salient ones are; removed is imputed by :func:`noisy_linear_imputation`, each time with the
    noise of ``seed``. Rong et al. 2022, combined as ROADCombined of pytorch-grad-cam does (there p
    is the share that stays; the default set is the same either way). Raises InputError if a
    percentile is not between 0 and 100, or there is none.
    """
    if not percentiles or not all(0 < p < 100 for p in percentiles):
        raise InputError(f"percentiles={percentiles!r}: expected numbers between 0 and 100")
    ranks, differences = _ranks(saliency), []
    for percentile in percentiles:
        removed = round(percentile / 100 * saliency.numel())
        masks = _first(ranks, [saliency.numel() - removed]), 1 - _first(ranks, [removed])
        imputed = [
            noisy_linear_imputation(image, mask, torch.Generator().manual_seed(seed), noise)
            for mask in masks
        ]
        without_least, without_most = probabilities(model, torch.cat(imputed))[:, label].tolist()
        differences.append((without_least - without_most) / 2)
    return sum(differences) / len(differences)
