"""Does a mask suffice? Plain forward passes that judge any binary mask, however it arose."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from minexp.config import ExplainConfig
from minexp.masking import apply_mask, components, gaussian_background
from minexp.models import Classifier

TOLERANCE = 1e-5  # of confidences: the same image in another batch differs by float32 rounding
CHECK_SEED = 2**31  # the noise of check_mask, never that of any optimisation
BATCH = 4  # backgrounds a forward pass: memory does not grow with the draws


@dataclass(frozen=True)
class Check:
    """What plain forward passes say of a mask.

    ``confidence`` is the softmax probability of the label on the image, ``explanation_confidence``
    on the masked image; ``noise_kept`` the share of ``noise_draws`` Gaussian backgrounds that
    keep the label; ``area`` the fraction of pixels on; ``components`` its 4-connected regions.
    """

    confidence: float
    explanation_confidence: float
    label_kept: bool
    noise_kept: float
    noise_draws: int
    area: float
    components: int


def check_mask(
    model: Classifier,
    image: Tensor,
    mask: Tensor,
    label: int,
    *,
    draws: int = 32,
    seed: int = CHECK_SEED,
) -> Check:
    """Judge any binary mask (1, 1, H, W) by plain forward passes, independent of how it arose.

    ``draws`` Gaussian backgrounds come from ``seed``, which no optimisation uses; with 0 draws
    ``noise_kept`` is nan.
    """
    with torch.no_grad():
        logits = torch.cat([model(image), model(apply_mask(image, mask))])
    return Check(
        confidence=probability(logits[:1], label),
        explanation_confidence=probability(logits[1:], label),
        label_kept=int(logits[1].argmax()) == label,
        noise_kept=noise_kept(model, image, mask, label, draws=draws, seed=seed),
        noise_draws=draws,
        area=mask.float().mean().item(),
        components=components(mask),
    )


def noise_kept(
    model: Classifier, image: Tensor, mask: Tensor, label: int, *, draws: int, seed: int
) -> float:
    """Share of ``draws`` seeded Gaussian backgrounds on which the masked image keeps the label."""
    kept = [batch.sum().item() for batch in _kept_on_noise(model, image, mask, label, draws, seed)]
    return sum(kept) / draws if draws else float("nan")


def _kept_on_noise(
    model: Classifier, image: Tensor, mask: Tensor, label: int, draws: int, seed: int
) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, draws, BATCH):
        background = gaussian_background(model, min(BATCH, draws - start), generator)
        with torch.no_grad():
            yield model(apply_mask(image, mask, background)).argmax(1) == label


def is_feasible(
    model: Classifier, image: Tensor, mask: Tensor, label: int, config: ExplainConfig
) -> bool:
    """Whether a mask meets the criterion of ``config``.

    The masked image keeps the label; so does every one of ``noise_draws`` Gaussian backgrounds
    (their seed is ``config.seed + 1``); under "confidence" the masked image's confidence is at
    least the image's own, less ``confidence_slack``.
    """
    check = check_mask(model, image, mask, label, draws=0)
    confident = is_confident(check.explanation_confidence, check.confidence, config)
    if not (check.label_kept and confident):
        return False
    kept = _kept_on_noise(model, image, mask, label, config.noise_draws, config.seed + 1)
    return all(batch.all() for batch in kept)  # lazily: the first background lost ends it


def is_confident(masked: float, own: float, config: ExplainConfig) -> bool:
    """The confidence part of the criterion: the masked image's against the image's own."""
    lowest = own - config.confidence_slack - TOLERANCE
    return config.criterion == "label" or masked >= lowest


def drop_specks(
    model: Classifier, image: Tensor, mask: Tensor, label: int, config: ExplainConfig
) -> Tensor:
    """Switch off the smallest components of a feasible mask, as many as bisection finds can go.

    Total variation only discourages specks; what the decision does not need is dropped here.
    Every mask kept on the way was tested, so the result, (1, 1, H, W), is feasible.
    """
    labelled, count = ndimage.label(mask[0, 0].cpu().numpy())
    sizes = ndimage.sum_labels(labelled > 0, labelled, range(1, count + 1))
    ascending = sizes.argsort(kind="stable") + 1
    droppable, refused = 0, count  # all of them would leave nothing
    while refused - droppable > 1:
        middle = (droppable + refused) // 2
        if is_feasible(model, image, _without(mask, labelled, ascending[:middle]), label, config):
            droppable = middle
        else:
            refused = middle
    return _without(mask, labelled, ascending[:droppable])


def _without(mask: Tensor, labelled: np.ndarray, chosen: np.ndarray) -> Tensor:
    off = torch.from_numpy(np.isin(labelled, chosen))
    return mask.masked_fill(off.to(mask.device), 0)


def probability(logits: Tensor, label: int) -> float:
    """The softmax probability of ``label`` in the first row of ``logits`` (N, K)."""
    return logits.softmax(1)[0, label].item()
