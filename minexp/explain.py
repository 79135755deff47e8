"""The optimisation loop: one image, one frozen classifier -> the smallest feasible mask seen."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import ModuleType

import torch
from torch import Tensor

from minexp import losses, taps
from minexp.config import ExplainConfig, LossWeights
from minexp.errors import InputError
from minexp.masking import apply_mask, binarize, gaussian_background
from minexp.masknet import UNet
from minexp.models import Classifier
from minexp.sufficiency import check_mask, drop_specks, is_confident, is_feasible, probability

BIAS_LEARNING_RATE = 0.2  # of the untied bias, in logits a step: a cell can flip in a few steps
BUDGET_START, BUDGET_SHRINK, BUDGET_GROW = 0.8, 0.95, 1.02  # fractions of all pixels; factors
DEFAULT_GRID = 56
STREAK = 3  # steps in a row that pass, each on a background of its own, make a mask promising


@dataclass(frozen=True)
class Explanation:
    """A mask and the record of how it was found.

    ``mask`` (1, 1, H, W) holds 0 and 1; ``masked`` is m x, (1, C, H, W) normalised. ``feasible``
    says whether the mask met the criterion, ``label_kept`` whether the masked image keeps the
    label; where no mask tested was feasible, ``mask`` is the most confident one seen.
    ``history`` has a dict a step: every unweighted loss term, the hard mask's area, its
    confidences, the budget.
    """

    mask: Tensor
    masked: Tensor
    label: int
    label_name: str
    confidence: float
    explanation_confidence: float
    label_kept: bool
    feasible: bool
    area: float
    history: list[dict[str, float]]
    config: ExplainConfig
    forward_passes: int
    backward_passes: int
    seconds: float


@dataclass(frozen=True)
class _Target:
    """What the mask must reproduce."""

    image: Tensor
    logits: Tensor
    activations: dict[str, Tensor]
    label: int
    confidence: float


@dataclass(frozen=True)
class _Seen:
    """A mask seen on the way, with what its one step said of it."""

    mask: Tensor
    area: float
    confidence: float
    promising: bool


def explain(
    model: Classifier,
    image: Tensor,
    config: ExplainConfig | None = None,
    *,
    label: int | None = None,
    on_step: Callable[[dict[str, float]], None] | None = None,
) -> Explanation:
    """Train a mask network on one image (paper 000, section 3).

    Args:
        model: a frozen classifier; its device is used.
        image: normalised input (1, C, H, W).
        config: see :class:`minexp.config.ExplainConfig`; None: the default preset.
        label: the class to explain; None: the top-1 class of the image.
        on_step: called with each step's record.

    Raises:
        InputError: the image's shape is not the model's, the grid is finer than the image, or
            the label is out of range; a tap weight names no tap; the model is not frozen.
    """
    config = config or ExplainConfig()
    started = time.perf_counter()
    image = _checked_image(model, image, config)
    with taps.count(model.module) as passes:
        target = _read_target(model, image, label)
        seen, history = _search(model, target, config, on_step)
        mask, feasible = _choose(model, target, seen, config)
        check = check_mask(model, image, mask, target.label, draws=0)
    return Explanation(
        mask=mask,
        masked=apply_mask(image, mask),
        label=target.label,
        label_name=model.class_names[target.label],
        confidence=check.confidence,
        explanation_confidence=check.explanation_confidence,
        label_kept=check.label_kept,
        feasible=feasible,
        area=check.area,
        history=history,
        config=config,
        forward_passes=sum(passes),  # of one image each
        backward_passes=2 * config.steps,
        seconds=time.perf_counter() - started,
    )


def _search(
    model: Classifier,
    target: _Target,
    config: ExplainConfig,
    on_step: Callable[[dict[str, float]], None] | None,
) -> tuple[list[_Seen], list[dict[str, float]]]:
    """Optimise the mask network; every mask seen, and a record a step."""
    network = _seeded_network(model, config)
    optimizer = torch.optim.Adam(_parameter_groups(network, config))
    generator = torch.Generator().manual_seed(config.seed)
    budget, streak, seen, history = BUDGET_START, 0, [], []
    for step in range(config.steps):
        soft = network(target.image)
        mask = binarize(soft)
        terms, logits = _forward(model, target, soft, mask, generator, config)
        weights = _weights_now(config, terms["area"].item(), budget)
        optimizer.zero_grad()
        losses.total(terms, weights).backward()
        optimizer.step()

        record = _record(step, terms, logits.detach(), mask.detach(), target.label, budget)
        streak = streak + 1 if _passes(record, target.confidence, config) else 0
        seen.append(
            _Seen(mask.detach().bool(), record["area"], record["confidence"], streak >= STREAK)
        )
        budget = _next_budget(budget, streak, record["loss_area"])
        history.append(record)
        if on_step is not None:
            on_step(record)
    return seen, history


def _checked_image(model: Classifier, image: Tensor, config: ExplainConfig) -> Tensor:
    expected = (1, len(model.mean), *model.size)
    if tuple(image.shape) != expected:
        raise InputError(f"image of shape {tuple(image.shape)}: {model.name} expects {expected}")
    check_settings(model, config)
    trained = model.module.training or any(p.requires_grad for p in model.module.parameters())
    if trained:  # its statistics and gradients would change, and with them what is explained
        raise InputError(f"{model.name} is not frozen: call .eval() and .requires_grad_(False)")
    return image.to(model.device)


def check_settings(model: Classifier, config: ExplainConfig) -> None:
    """Raise InputError where a setting does not fit the model: the grid's side, a tap's name."""
    side = min(model.size)
    if config.grid is not None and config.grid > side:
        raise InputError(f"grid={config.grid}: expected at most the image's side {side}")
    if unknown := config.tap_weights.keys() - set(model.taps):
        taps_there = ", ".join(model.taps)
        raise InputError(f"tap_weights: no tap {min(unknown)!r} of {model.name}: {taps_there}")


def _read_target(model: Classifier, image: Tensor, label: int | None) -> _Target:
    with torch.no_grad(), taps.read(model.module, model.taps) as activations:
        logits = model(image)
    if label is not None and not 0 <= label < logits.shape[1]:
        raise InputError(f"label {label}: expected an index from 0 to {logits.shape[1] - 1}")
    label = int(logits.argmax()) if label is None else label
    return _Target(image, logits, dict(activations), label, probability(logits, label))


def _seeded_network(model: Classifier, config: ExplainConfig) -> UNet:
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay as they were
        torch.default_generator.manual_seed(config.seed)
        grid = config.grid or min(DEFAULT_GRID, *model.size)
        return UNet(len(model.mean), model.size, grid).to(model.device)


def _parameter_groups(network: UNet, config: ExplainConfig) -> list[dict]:
    rest = [value for name, value in network.named_parameters() if name != "bias"]
    return [
        {"params": rest, "lr": config.learning_rate},
        {"params": [network.bias], "lr": BIAS_LEARNING_RATE},
    ]


def _forward(
    model: Classifier,
    target: _Target,
    soft: Tensor,
    mask: Tensor,
    generator: torch.Generator,
    config: ExplainConfig,
) -> tuple[dict[str, Tensor], Tensor]:
    """All seven terms, and the logits (2, K) of the masked and of the noise-filled image."""
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
    """The step's lambdas: fixed ones, or no area weight while the mask is within its budget."""
    if config.adapt and area <= budget:
        return replace(config.weights, area=0.0)
    return config.weights


def _next_budget(budget: float, streak: int, area: float) -> float:
    """Shrink after a streak of passing steps, grow after a failure."""
    if streak == 0:
        return min(1.0, budget * BUDGET_GROW)
    return min(budget, area) * BUDGET_SHRINK if streak >= STREAK else budget


def _record(
    step: int, terms: dict[str, Tensor], logits: Tensor, mask: Tensor, label: int, budget: float
) -> dict[str, float]:
    """A step in numbers; the losses' names get the prefix ``loss_``."""
    probabilities = logits.softmax(1)[:, label].tolist()
    kept = (logits.argmax(1) == label).tolist()
    return {
        "step": step,
        "area": mask.mean().item(),
        "confidence": probabilities[0],
        "noise_confidence": probabilities[1],
        "label_kept": kept[0],
        "noise_kept": kept[1],
        "budget": budget,
        **{f"loss_{name}": term.item() for name, term in terms.items()},
    }


def _passes(record: dict[str, float], confidence: float, config: ExplainConfig) -> bool:
    """The criterion on this step's one background, at no cost beyond the step's own passes."""
    confident = is_confident(record["confidence"], confidence, config)
    robust = config.noise_draws == 0 or record["noise_kept"]
    return bool(record["label_kept"] and confident and robust)


def _choose(
    model: Classifier, target: _Target, seen: list[_Seen], config: ExplainConfig
) -> tuple[Tensor, bool]:
    """The smallest promising mask that is feasible, less the specks it does not need.

    Returns the mask (1, 1, H, W) float and whether it is feasible. Where no promising one is: the
    most confident one seen, whatever it is worth.
    """
    image, label = target.image, target.label
    for candidate in sorted((s for s in seen if s.promising), key=lambda s: s.area):
        mask = candidate.mask.to(image.dtype)
        if is_feasible(model, image, mask, label, config):
            return drop_specks(model, image, mask, label, config), True
    mask = max(seen, key=lambda s: s.confidence).mask.to(image.dtype)
    return mask, is_feasible(model, image, mask, label, config)


class _Callable(ModuleType):
    """Lets ``minexp.explain(model, image)`` work although importing this file rebinds that name."""

    def __call__(self, *args, **kwargs) -> Explanation:
        return explain(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
