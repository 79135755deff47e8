"""A search for counter-examples in a box by projected gradient descent (Madry et al., ICLR 2018).

What it finds is one (the caller confirms it by a forward pass); what it does not find proves
nothing.
"""

import torch
from torch import Tensor

from minexp.bounds import Layers


def worst(layers: Layers, x: Tensor) -> Tensor:
    """The least output (B,) of ``layers`` at inputs (B, n_0); below 0 a class has overtaken."""
    return layers(x).amin(1)


def descend(
    layers: Layers,
    lower: Tensor,
    upper: Tensor,
    start: Tensor,
    *,
    rows: Tensor | None = None,
    steps: int = 30,
) -> tuple[Tensor, Tensor]:
    """Lower the least output within boxes from given points, by signed gradient steps.

    The step shrinks from half the box's width to a hundredth of it. Gradients of a network of few
    layers are cheap by hand: two products with each matrix.

    Args:
        layers: its outputs are margins, see :func:`minexp.bounds.margins`.
        lower, upper, start: (B, n_0).
        rows: lower this output only, (B,) int64; None: the least of all, anew in each step.

    Returns:
        The best points (B, n_0) on the way, and their values (B,).
    """
    x = start.clamp(lower, upper)
    best, least = x, torch.full((len(x),), torch.inf, dtype=x.dtype)
    for step in range(steps + 1):
        value, gradient = _gradient(layers, x, rows)
        better = value < least
        best, least = torch.where(better[:, None], x, best), torch.where(better, value, least)
        size = 0.5 * (0.02 ** (step / max(steps, 1)))
        x = (x - size * (upper - lower) * gradient.sign()).clamp(lower, upper)
    return best, least


def _gradient(layers: Layers, x: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor]:
    found = layers.preactivations(x)
    chosen = found[-1].argmin(1) if rows is None else rows
    value = found[-1].gather(1, chosen[:, None])[:, 0]
    gradient = layers.weights[-1][chosen]  # (B, n_{L-1})
    for z, weight in zip(reversed(found[:-1]), reversed(layers.weights[:-1]), strict=True):
        gradient = (gradient * (z > 0)) @ weight
    return value, gradient


def gradient(layers: Layers, x: Tensor) -> Tensor:
    """Of the least output, at inputs (B, n_0): (B, n_0)."""
    return _gradient(layers, x, None)[1]


def corners(lower: Tensor, upper: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Random points of one box (n_0,): half of them corners, half uniform inside; (count, n_0)."""
    share = torch.rand(count, len(lower), generator=generator, dtype=lower.dtype)
    share[::2] = share[::2].round()
    return lower + share * (upper - lower)


def attack(
    layers: Layers,
    lower: Tensor,
    upper: Tensor,
    *,
    restarts: int = 20,
    steps: int = 40,
    generator: torch.Generator,
    starts: Tensor | None = None,
) -> tuple[Tensor, float]:
    """The worst point (n_0,) found in one box, and its least output.

    One of the outputs in turn is lowered from each random start, and the least of all from each of
    ``starts`` (S, n_0).
    """
    outputs = len(layers.biases[-1])
    points = corners(lower, upper, restarts, generator)
    rows = torch.arange(restarts) % outputs
    found, value = descend(
        layers, lower.expand_as(points), upper.expand_as(points), points, rows=rows, steps=steps
    )
    if starts is not None and len(starts):
        more, values = descend(
            layers, lower.expand_as(starts), upper.expand_as(starts), starts, steps=steps
        )
        found, value = torch.cat([found, more]), torch.cat([value, values])
    value = worst(layers, found)  # a row may have been lowered less than another on the way
    k = int(value.argmin())
    return found[k], float(value[k])
