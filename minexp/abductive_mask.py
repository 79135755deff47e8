"""A learned mask as a formal explanation: is what it keeps sufficient, and if not, what is missing?

The search for a mask asks for the label on one fill, or on noise; a proof asks about the worst
filling of all. These are two questions, and here the second is put to the answer of the first.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minexp.abductive import Abduction, domain, explain
from minexp.abductive_audit import audit
from minexp.errors import InputError
from minexp.milp import Answer
from minexp.verifier import Budget, Verifier

HALVINGS = 8


@dataclass(frozen=True)
class Guarantee:
    """The radii within which a mask's complement is ``safe`` and at which it is ``unsafe``.

    Between them lie radii that no judge decided within the budget, or nobody asked about: the gap
    is halved 8 times. ``safe`` is 0 if none was proven, ``unsafe`` None if not even the whole
    range was refuted; else ``witness`` (n_0,) is the image that shows it.
    """

    safe: float
    unsafe: float | None
    witness: Tensor | None


def pixels(mask: Tensor) -> list[int]:
    """The pixels that a mask (1, 1, H, W) keeps, row by row."""
    return mask.flatten().nonzero()[:, 0].tolist()


def verdict(module: nn.Module, image: Tensor, mask: Tensor, eps: float, budget: Budget) -> Answer:
    """Do the pixels a mask keeps suffice within eps? An "unsafe" has its witness (n_0,).

    Args:
        image: (1, C, H, W) in [0, 1]; mask: (1, 1, H, W), 1 where kept.

    Raises InputError for a mask of another size, or eps outside (0, 1].
    """
    if mask.shape[-2:] != image.shape[-2:]:
        raise InputError(f"mask {tuple(mask.shape[-2:])}: expected {tuple(image.shape[-2:])}")
    free = (mask == 0).expand_as(image).flatten()
    return Verifier(module, image, *domain(image, eps)).decide(free, budget)


def guarantee(module: nn.Module, image: Tensor, mask: Tensor, budget: Budget) -> Guarantee:
    """Between which radii a mask's sufficiency ends, by bisection; it ends once, for boxes grow."""
    found = verdict(module, image, mask, 1.0, budget)
    if found.verdict == "safe":
        return Guarantee(1.0, None, None)
    safe, unsafe, open_ = 0.0, 1.0 if found.witness is not None else None, 1.0
    witness = found.witness
    for _ in range(HALVINGS):
        middle = (safe + open_) / 2
        found = verdict(module, image, mask, middle, budget)
        if found.verdict == "safe":
            safe = middle
            continue
        open_ = middle
        if found.witness is not None:
            unsafe, witness = middle, found.witness
    return Guarantee(safe, unsafe, witness)


def refuted(
    module: nn.Module,
    image: Tensor,
    mask: Tensor,
    eps: float,
    answer: Answer,
    fillings: int,
    restarts: int,
) -> bool:
    """Whether a check contradicts a verdict: of a safe one random fillings and an attack, of an
    unsafe one its witness. Arguments as of :func:`verdict` and of the audit."""
    if answer.verdict == "unknown":
        return False
    free, shown = mask == 0, []
    if answer.witness is not None:
        shown, free = [(answer.witness.view_as(image), free)], torch.zeros_like(free)
        fillings = restarts = 0
    found = audit(
        module, image, *domain(image, eps), free, shown, fillings=fillings, restarts=restarts
    )
    return found.wrong > 0


def complete(
    module: nn.Module,
    image: Tensor,
    mask: Tensor,
    eps: float,
    budget: Budget,
    *,
    on_step: Callable[[dict[str, int]], None] | None = None,
) -> Abduction:
    """A subset-minimal addition to a mask that makes it provably sufficient within eps.

    It is the explanation's needed and unknown pixels; the mask's own are its ``kept``. Other
    additions may be smaller.
    """
    lower, upper = domain(image, eps)
    return explain(module, image, lower, upper, keep=pixels(mask), budget=budget, on_step=on_step)
