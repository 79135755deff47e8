"""One image, one frozen classifier -> the smallest feasible mask found, 1-minimal on a grid."""

import difflib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from minexp import taps
from minexp.classifier import Classifier, checked_taps, folded
from minexp.config import ExplainConfig, default_preset, preset
from minexp.deletion import minimal_mask
from minexp.errors import InputError
from minexp.masking import apply_mask
from minexp.minimality import Certificate, cell_side, certify
from minexp.search import Seen, Target, search
from minexp.sufficiency import Judge, check_mask, probability

CANDIDATES = 48  # smallest masks of a run that are judged; beyond them every fourth


@dataclass(frozen=True)
class Explanation:
    """A mask and the record of how it was found.

    ``mask`` (1, 1, H, W) holds 0 and 1; ``masked`` is m x, (1, C, H, W) normalised. ``feasible``
    says whether the mask met the criterion, ``label_kept`` whether the masked image keeps the
    label; where no mask tested was feasible, ``mask`` is the most confident one seen.
    ``certificate`` says what the mask is without any one of its cells; None where the
    configuration asks for no minimal mask or the mask is not feasible.
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
    certificate: Certificate | None
    history: list[dict[str, float]]
    config: ExplainConfig
    forward_passes: int
    backward_passes: int
    seconds: float


def explain(
    model: Classifier,
    image: Tensor,
    config: ExplainConfig | None = None,
    *,
    label: int | None = None,
    allowed: Tensor | None = None,
    on_step: Callable[[dict[str, float]], None] | None = None,
) -> Explanation:
    """Train a mask network on one image (paper 000, section 3).

    Args:
        model: a frozen classifier; its device is used.
        image: normalised input (1, C, H, W).
        config: see :class:`minexp.config.ExplainConfig`; None: the preset for the model's input
            size (:func:`minexp.config.default_preset`).
        label: the class to explain; None: the network's own decision, the image's top-1 class.
            Of another class the mask asks which pixels would make the network say that instead.
            All pixels never do, so there may be no such mask; then ``feasible`` is False and
            ``mask`` the most confident one seen. Under the criterion "confidence" the class must
            come first and have at least its own, lower, confidence on the image, which its coming
            first mostly implies; and the terms that match the image's activations and distribution
            go on pulling towards the network's own decision.
        allowed: (1, 1, H, W), the pixels a mask may use; None: all.
        on_step: called with each step's record.

    Raises:
        InputError: the image's or ``allowed``'s shape is not the model's, the grid is
            finer than the image, the label is out of range, a tap weight
            names no tap, or the model is not frozen.
    """
    config = config or preset(default_preset(model.size, len(model.mean)))
    started = time.perf_counter()
    image = _checked_image(model, image, config)
    if config.taps is not None:
        model = replace(model, taps=checked_taps(model, config.taps))
    if allowed is not None:
        _check_allowed(model, allowed, config)
    fast = _folded(model, image)
    with taps.count(fast.module) as passes:
        target = _read_target(fast, image, label, allowed)
        seen, history = search(fast, target, config, on_step)
        mask, feasible = _choose(fast, target, seen, config)
    with taps.count(model.module) as more:
        certificate = None
        if feasible and config.minimal:  # by the model itself: what is reported holds for it
            certificate = certify(Judge(model, image, target.label, config), mask, config.deleted)
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
        certificate=certificate,
        history=history,
        config=config,
        forward_passes=sum(passes) + sum(more),  # of one image each
        backward_passes=2 * config.steps,
        seconds=time.perf_counter() - started,
    )


def label_index(model: Classifier, label: str) -> int:
    """The class that a text names: by its name in ``model.class_names``, else by its index.

    Raises InputError for no class, with the nearest names, and for a name that several bear.
    """
    named = [index for index, name in enumerate(model.class_names) if name == label]
    if len(named) == 1:
        return named[0]
    if named:
        raise InputError(f"label {label!r}: classes {named} bear that name; give the index")
    # Python converts no number of thousands of digits
    if label.isdecimal() and len(label) < 10 and int(label) < len(model.class_names):
        return int(label)
    near = difflib.get_close_matches(label, model.class_names, n=5)
    nearest = f"; the nearest: {', '.join(near)}" if near else ""
    last = len(model.class_names) - 1
    raise InputError(f"label {label!r}: no class of {model.name}, 0 to {last}{nearest}")


def _checked_image(model: Classifier, image: Tensor, config: ExplainConfig) -> Tensor:
    expected = (1, len(model.mean), *model.size)
    if tuple(image.shape) != expected:
        raise InputError(f"image of shape {tuple(image.shape)}: {model.name} expects {expected}")
    check_settings(model, config)
    trained = model.module.training or any(p.requires_grad for p in model.module.parameters())
    if trained:  # its statistics and gradients would change, and with them what is explained
        raise InputError(f"{model.name} is not frozen: call .eval() and .requires_grad_(False)")
    return image.to(model.device)


def _check_allowed(model: Classifier, allowed: Tensor, config: ExplainConfig) -> None:
    if allowed.shape != (1, 1, *model.size):
        raise InputError(f"allowed of shape {tuple(allowed.shape)}: expected (1, 1, H, W)")
    if config.patch is not None:
        most = F.max_pool2d(allowed.float(), config.patch)
        if not torch.equal(most, -F.max_pool2d(-allowed.float(), config.patch)):
            raise InputError(f"allowed: expected whole patches of {config.patch} x {config.patch}")


def _folded(model: Classifier, image: Tensor) -> Classifier:
    """The model made faster, unless a tap then gives something else.

    As one on a convolution does that the normalisation after it is folded into.
    """
    fast = folded(model, image)
    if fast is model:
        return model
    own, others = (_activations(one, image)[1] for one in (model, fast))
    same = all(
        torch.allclose(others[tap], own[tap], rtol=0, atol=1e-3 * float(own[tap].abs().amax()))
        for tap in own
    )
    return fast if same else model


def _activations(model: Classifier, image: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The logits and the taps' activations."""
    with torch.no_grad(), taps.read(model.module, model.taps) as activations:
        logits = model(image)
    return logits, dict(activations)


def check_settings(model: Classifier, config: ExplainConfig) -> None:
    """Raise InputError where a setting does not fit the model: grid, cell, patch, a tap's name."""
    side = min(model.size)
    cell_side(model, config.cell)
    if config.patch is not None:
        if model.size[0] != model.size[1] or side % config.patch or config.patch == side:
            raise InputError(
                f"patch={config.patch}: expected a part of the square image's side {side}"
            )
        if config.cell is not None and config.cell % config.patch:
            raise InputError(f"cell={config.cell}: expected a multiple of patch={config.patch}")
    if config.grid is not None and config.grid > side:
        raise InputError(f"grid={config.grid}: expected at most the image's side {side}")
    matched = model.taps if config.taps is None else checked_taps(model, config.taps)
    if unknown := config.tap_weights.keys() - set(matched):
        taps_there = ", ".join(matched)
        raise InputError(f"tap_weights: no tap {min(unknown)!r} of {model.name}: {taps_there}")


def _read_target(
    model: Classifier, image: Tensor, label: int | None, allowed: Tensor | None
) -> Target:
    logits, activations = _activations(model, image)
    if label is not None and not 0 <= label < logits.shape[1]:
        raise InputError(f"label {label}: expected an index from 0 to {logits.shape[1] - 1}")
    label = int(logits.argmax()) if label is None else label
    confidence = probability(logits, label)
    return Target(image, logits, activations, label, confidence, allowed)


def _choose(
    model: Classifier, target: Target, seen: list[Seen], config: ExplainConfig
) -> tuple[Tensor, bool]:
    """The smallest feasible mask seen, less what it does not need.

    Where none is feasible: all allowed pixels, to be cut down; where these are not feasible
    either, or are not to be cut down, the most confident mask seen, whatever it is worth.
    """
    judge = Judge(model, target.image, target.label, config)
    mask = _smallest_feasible(judge, seen)
    if mask is None:
        everything = torch.ones_like(target.image[:, :1])
        mask = everything if target.allowed is None else target.allowed.to(everything)
        if not config.minimal or not judge.feasible(mask):
            best = max(seen, key=lambda s: s.confidence)
            mask = best.mask.to(everything.dtype)
            return mask, judge.feasible(mask)
    return (minimal_mask(judge, mask, config.deleted) if config.minimal else mask), True


def _smallest_feasible(judge: Judge, seen: list[Seen]) -> Tensor | None:
    """Of the masks with a pixel on: an empty one explains nothing, even where it suffices."""
    ascending = sorted((s for s in seen if s.promising and s.area > 0), key=lambda s: s.area)
    for candidate in ascending[:CANDIDATES] + ascending[CANDIDATES::4]:
        mask = candidate.mask.to(judge.image.dtype)
        if judge.feasible(mask):
            return mask
    return None


class _Callable(ModuleType):
    """Lets ``minexp.explain(model, image)`` work although importing this file rebinds that name."""

    def __call__(self, *args, **kwargs) -> Explanation:
        return explain(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
