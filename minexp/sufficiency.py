"""Does a mask suffice? Plain forward passes that judge any binary mask, however it arose."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from minexp.classifier import Classifier
from minexp.config import ExplainConfig
from minexp.masking import apply_mask, components, gaussian_background

TOLERANCE = 1e-5  # of confidences: the same image in another batch differs by float32 rounding
CHECK_SEED = 2**31  # the noise of check_mask, never that of any optimisation
BATCH = 4  # images a forward pass: memory does not grow with draws or masks


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
    generator, kept = torch.Generator().manual_seed(seed), 0
    for start in range(0, draws, BATCH):
        background = gaussian_background(model, min(BATCH, draws - start), generator)
        with torch.no_grad():
            logits = model(apply_mask(image, mask, background))
        kept += int((logits.argmax(1) == label).sum())
    return kept / draws if draws else float("nan")


class Judge:
    """The criterion of a configuration for one image, ready to judge many masks.

    The masked image keeps the label; so does every one of ``noise_draws`` Gaussian backgrounds
    (their seed is ``config.seed + 1``), the label's logit leading the next by more than
    :func:`room`; under "confidence" the masked image's confidence is at
    least the image's own, less ``confidence_slack``.

    It is a class because it remembers: the backgrounds, drawn once, the hardest first, so that a
    bad mask costs few passes; and how many passes it has spent. No verdict depends on that order.
    """

    def __init__(self, model: Classifier, image: Tensor, label: int, config: ExplainConfig):
        self.model, self.image, self.label, self.config = model, image, label, config
        self.passes = 0  # forward passes so far, of one image each
        own = self._logits(image)
        self.confidence = probability(own, label)
        self.room = room(own, label, config)
        self.lowest = lowest_confidence(self.confidence, config)
        generator = torch.Generator().manual_seed(config.seed + 1)
        self._backgrounds = gaussian_background(model, config.noise_draws, generator)
        self._order = list(range(config.noise_draws))

    def _logits(self, images: Tensor) -> Tensor:
        self.passes += len(images)
        with torch.no_grad():
            return self.model(images)

    def on_fill(self, masks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Top-1 label (N,), confidence (N,) and verdict (N,) of masks (N, 1, H, W) on the fill."""
        masked = (apply_mask(self.image, some) for some in masks.split(BATCH))
        logits = torch.cat([self._logits(some) for some in masked])
        top, confidence = logits.argmax(1), logits.softmax(1)[:, self.label]
        return top, confidence, (top == self.label) & (confidence >= self.lowest)

    def on_noise(self, mask: Tensor, draws: int | None = None) -> bool:
        """Whether a mask (1, 1, H, W) keeps the label, with room, on every background.

        ``draws``: on so many of the hardest. What these refuse, all refuse.
        """
        leads: dict[int, float] = {}
        asked = self._order[:draws]
        for start in range(0, len(asked), BATCH):
            some = asked[start : start + BATCH]
            logits = self._logits(apply_mask(self.image, mask, self._backgrounds[some]))
            leads |= zip(some, lead(logits, self.label).tolist(), strict=True)
            if min(leads.values()) <= self.room:
                break
        # stable: what was not asked stays behind what was, but for what lost
        self._order.sort(key=lambda draw: leads.get(draw, math.inf))
        return min(leads.values(), default=math.inf) > self.room

    def hardest(self, masks: Tensor) -> Tensor:
        """By how much masks (N, 1, H, W) lead the least on the two hardest backgrounds, (N,).

        Beyond the room asked for; inf without noise. Where it is not positive the mask is not
        feasible; where it is, it may still lose on another background.
        """
        worst = torch.full((len(masks),), torch.inf, device=masks.device)
        for draw in self._order[:2]:
            filled = (
                apply_mask(self.image, some, self._backgrounds[draw : draw + 1])
                for some in masks.split(BATCH)
            )
            leads = torch.cat([lead(self._logits(some), self.label) for some in filled])
            worst = torch.minimum(worst, leads)
        return worst - self.room

    def feasible(self, mask: Tensor, draws: int | None = None) -> bool:
        """Whether a mask (1, 1, H, W) meets the criterion; ``draws``: as in :meth:`on_noise`."""
        return bool(self.on_fill(mask)[2]) and self.on_noise(mask, draws)


def lowest_confidence(own: float, config: ExplainConfig) -> float:
    """The least confidence the criterion allows a masked image, of the image's own."""
    return 0.0 if config.criterion == "label" else own - config.confidence_slack - TOLERANCE


def lead(logits: Tensor, label: int) -> Tensor:
    """By how much the label's logit exceeds the highest other one, (N,) of logits (N, K)."""
    others = logits.clone()
    others[:, label] = -torch.inf
    return logits[:, label] - others.amax(1)


def room(logits: Tensor, label: int, config: ExplainConfig) -> float:
    """The lead asked for on noise: ``noise_lead``, at most half the image's own, in logits (1, K).

    So all pixels are always feasible, of an image the model is unsure of too.
    """
    return min(config.noise_lead, max(0.0, lead(logits, label).item() / 2))


def is_feasible(
    model: Classifier, image: Tensor, mask: Tensor, label: int, config: ExplainConfig
) -> bool:
    """Whether a mask (1, 1, H, W) meets the criterion of ``config``: see :class:`Judge`."""
    return Judge(model, image, label, config).feasible(mask)


def probability(logits: Tensor, label: int) -> float:
    """The softmax probability of ``label`` in the first row of ``logits`` (N, K)."""
    return logits.softmax(1)[0, label].item()
