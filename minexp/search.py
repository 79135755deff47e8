"""The optimisation loop: a mask network is trained on one image; every mask it passes is kept."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from minexp import losses, taps
from minexp.classifier import Classifier
from minexp.config import ExplainConfig, LossWeights
from minexp.masking import apply_mask, binarize, gaussian_background
from minexp.masknet import UNet
from minexp.sufficiency import lead, lowest_confidence, room

BIAS_LEARNING_RATE = 0.2  # of the untied bias, in logits a step: a cell can flip in a few steps
BUDGET_START, BUDGET_SHRINK, BUDGET_GROW = 0.8, 0.95, 1.02  # fractions of all pixels; factors
DEFAULT_GRID = 56
SPARE = 2.0  # logits by which a step's background must be won beyond what all must be
SHARE = 0.75  # at most: of the image's own lead
REST = 0.2  # of total variation's weight, while the mask is within its budget
STREAK = 3  # steps in a row that pass, each on a background of its own, make a mask promising


@dataclass(frozen=True)
class Target:
    """What the mask must reproduce, and the pixels it may use (1, 1, H, W); None: all."""

    image: Tensor
    logits: Tensor
    activations: dict[str, Tensor]
    label: int
    confidence: float
    allowed: Tensor | None = None


@dataclass(frozen=True)
class Seen:
    """A mask (1, 1, H, W) bool seen on the way, with what its own step said of it.

    With a soft mask (``hard=False``) the step saw that, not this one: its word is a guess.
    """

    mask: Tensor
    area: float
    confidence: float
    promising: bool


def search(
    model: Classifier,
    target: Target,
    config: ExplainConfig,
    on_step: Callable[[dict[str, float]], None] | None = None,
) -> tuple[list[Seen], list[dict[str, float]]]:
    """Optimise the mask network; every mask seen, and a record a step (see :func:`_record`)."""
    network = _seeded_network(model, config)
    optimizer = torch.optim.Adam(_parameter_groups(network, config))
    generator = torch.Generator().manual_seed(config.seed)
    budget, streak, seen, history = BUDGET_START, 0, [], []
    for step in range(config.steps):
        soft = network(target.image)
        if target.allowed is not None:
            soft = soft * target.allowed
        mask = binarize(soft)
        given = mask if config.hard else soft
        terms, logits = _forward(model, target, soft, given, generator, config)
        weights = _weights_now(config, terms["area"].item(), budget)
        optimizer.zero_grad()
        losses.total(terms, weights).backward()
        optimizer.step()

        record = _record(step, terms, logits.detach(), mask.detach(), target.label, budget)
        streak = streak + 1 if _passes(record, target, config) else 0
        seen.append(
            Seen(mask.detach().bool(), record["area"], record["confidence"], streak >= STREAK)
        )
        budget = _next_budget(budget, streak, record["loss_area"])
        history.append(record)
        if on_step is not None:
            on_step(record)
    return seen, history


def _seeded_network(model: Classifier, config: ExplainConfig) -> UNet:
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay as they were
        torch.default_generator.manual_seed(config.seed)
        grid = config.grid or min(DEFAULT_GRID, *model.size)
        if config.patch is not None:  # one logit a patch, and no smooth outline between them
            grid = model.size[0] // config.patch
        mode = "bilinear" if config.patch is None else "nearest-exact"
        return UNet(len(model.mean), model.size, grid, mode=mode).to(model.device)


def _parameter_groups(network: UNet, config: ExplainConfig) -> list[dict]:
    rest = [value for name, value in network.named_parameters() if name != "bias"]
    return [
        {"params": rest, "lr": config.learning_rate},
        {"params": [network.bias], "lr": BIAS_LEARNING_RATE},
    ]


def _forward(
    model: Classifier,
    target: Target,
    soft: Tensor,
    mask: Tensor,
    generator: torch.Generator,
    config: ExplainConfig,
) -> tuple[dict[str, Tensor], Tensor]:
    """All seven terms, and the logits (2, K) of the masked and of the noise-filled image.

    ``mask`` is what the network meets: ``soft``, or that thresholded.
    """
    background = gaussian_background(model, 1, generator)
    masked = apply_mask(target.image, mask)
    noisy = apply_mask(target.image, mask, background)
    with taps.read(model.module, model.taps) as read:
        logits = model(torch.cat([masked, noisy]))
        explained = {tap: value[:1] for tap, value in read.items()}
    terms = {
        "activation": losses.activation(target.activations, explained, config.tap_weights),
        "label": losses.label(logits[:1], target.label),
        "distribution": losses.distribution(target.logits, logits[:1]),
        "area": losses.area(soft),
        "binarization": losses.binarization(soft),
        "total_variation": losses.total_variation(soft),
        "robustness": losses.robustness(logits[1:], target.label),
    }
    return terms, logits


def _weights_now(config: ExplainConfig, area: float, budget: float) -> LossWeights:
    """The step's lambdas: fixed ones, or, while the mask is within its budget, hardly any pull.

    There the area term rests, and total variation nearly: its pull is inwards too (the shortest
    outline is none), and at full strength a mask that fails can never grow where it needs to.
    """
    if config.adapt and area <= budget:
        outline = REST * config.weights.total_variation
        return replace(config.weights, area=0.0, total_variation=outline)
    return config.weights


def _next_budget(budget: float, streak: int, area: float) -> float:
    """Shrink after a streak of passing steps, grow after a failure."""
    if streak == 0:
        return min(1.0, budget * BUDGET_GROW)
    return min(budget, area) * BUDGET_SHRINK if streak >= STREAK else budget


def _record(
    step: int, terms: dict[str, Tensor], logits: Tensor, mask: Tensor, label: int, budget: float
) -> dict[str, float]:
    """A step in numbers; the losses' names get the prefix ``loss_``.

    ``area`` is the thresholded mask's, confidences are those of what the network met.
    """
    probabilities = logits.softmax(1)[:, label].tolist()
    kept = (logits.argmax(1) == label).tolist()
    return {
        "step": step,
        "area": mask.mean().item(),
        "confidence": probabilities[0],
        "noise_confidence": probabilities[1],
        "label_kept": kept[0],
        "noise_kept": kept[1],
        "noise_lead": lead(logits[1:], label).item(),
        "budget": budget,
        **{f"loss_{name}": term.item() for name, term in terms.items()},
    }


def _passes(record: dict[str, float], target: Target, config: ExplainConfig) -> bool:
    """The criterion on this step's one background, at no cost beyond the step's own passes.

    One background says little of the hardest among many: before a budget shrinks, it must be won by
    more than they must.
    """
    asked = room(target.logits, target.label, config)
    if config.adapt:
        asked += min(SPARE, max(0.0, SHARE * lead(target.logits, target.label).item() - asked))
    confident = record["confidence"] >= lowest_confidence(target.confidence, config)
    robust = config.noise_draws == 0 or record["noise_lead"] > asked
    return bool(record["label_kept"] and confident and robust)
