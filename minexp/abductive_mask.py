"""A learned mask as a formal explanation: is what it keeps sufficient, and if not, what is missing?

The search for a mask asks for the label on one fill, or on noise; a proof asks about the worst
filling of all. These are two questions, and here the second is put to the answer of the first.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from minexp.abductive import Abduction, domain, explain
from minexp.errors import InputError
from minexp.verifier import Budget, Verifier

HALVINGS = 8


@dataclass(frozen=True)
class Guarantee:
    """The radii within which a mask's complement is ``safe`` and at which it is ``unsafe``.

    Between them lie radii that no judge decided within the budget, or nobody asked about: the gap
    is halved 8 times. ``safe`` is 0 if none was proven, ``unsafe`` None if not even the whole
    range was refuted.
    """

    safe: float
    unsafe: float | None


def pixels(mask: Tensor) -> list[int]:
    """The pixels that a mask (1, 1, H, W) keeps, row by row."""
    return mask.flatten().nonzero()[:, 0].tolist()


def verdict(module: nn.Module, image: Tensor, mask: Tensor, eps: float, budget: Budget) -> str:
    """ "safe", "unsafe" or "unknown": do the pixels a mask keeps suffice within eps?

    Args:
        image: (1, C, H, W) in [0, 1]; mask: (1, 1, H, W), 1 where kept.

    Raises InputError for a mask of another size, or eps outside (0, 1].
    """
    if mask.shape[-2:] != image.shape[-2:]:
        raise InputError(f"mask {tuple(mask.shape[-2:])}: expected {tuple(image.shape[-2:])}")
    free = (mask == 0).expand_as(image).flatten()
    return Verifier(module, image, *domain(image, eps)).decide(free, budget).verdict


def guarantee(module: nn.Module, image: Tensor, mask: Tensor, budget: Budget) -> Guarantee:
    """Between which radii a mask's sufficiency ends, by bisection; it ends once, for boxes grow."""
    found = verdict(module, image, mask, 1.0, budget)
    if found == "safe":
        return Guarantee(1.0, None)
    safe, unsafe, open_ = 0.0, 1.0 if found == "unsafe" else None, 1.0
    for _ in range(HALVINGS):
        middle = (safe + open_) / 2
        found = verdict(module, image, mask, middle, budget)
        if found == "safe":
            safe = middle
        else:
            open_ = middle
            unsafe = middle if found == "unsafe" else unsafe
    return Guarantee(safe, unsafe)


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
