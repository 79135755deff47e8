"""A second complete solver: the network as a mixed-integer program, given to HiGHS.

The encoding of Tjeng et al. (ICLR 2019), section 4: one binary for each ReLU without a known sign,
with its bounds over the box as the big M. HiGHS (Huangfu and Hall, 2018) comes with SciPy. It is
asked for any point at which an output is not above ``PROOF``: "infeasible" is then a proof with
room for the solver's own tolerances, and a point counts only if a forward pass confirms it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import block_array, csr_array, diags_array
from torch import Tensor

from minexp.attack import descend, worst
from minexp.bounds import Layers, Relaxation
from minexp.errors import InputError
from minexp.splitting import PROOF

INFEASIBLE = 2  # scipy.optimize.milp's status, which it also gives to a program HiGHS refused
LARGEST = 1e9  # of a bound: far below what HiGHS takes for infinite, or refuses


@dataclass(frozen=True)
class Answer:
    """``verdict`` is "safe", "unsafe" (then ``witness`` (n_0,) has an output <= 0) or "unknown"."""

    verdict: str
    witness: Tensor | None = None


def query(
    layers: Layers,
    relaxation: Relaxation,
    lower: Tensor,
    upper: Tensor,
    *,
    seconds: float,
    rows: Sequence[int] | None = None,
) -> Answer:
    """Are the outputs ``rows`` (None: all) above ``PROOF`` in a whole box (n_0,)?

    Args:
        relaxation: bounds of the ReLUs' inputs over the box, B = 1.
        seconds: after which the answer is "unknown"; HiGHS looks at its clock now and then.

    Raises InputError for no row or seconds <= 0.
    """
    rows = list(range(len(layers.biases[-1])) if rows is None else rows)
    if not rows or seconds <= 0:
        raise InputError(f"rows={rows}, seconds={seconds}: expected a row, and seconds > 0")
    low, high, whole, constraints = _program(layers, rows, relaxation, lower, upper)
    if not all((part.abs() <= LARGEST).all() for part in (*relaxation.low, *relaxation.high)):
        return Answer("unknown")
    found = milp(
        np.zeros(len(low)),
        integrality=whole,
        bounds=Bounds(low, high),
        constraints=constraints,
        options={"time_limit": seconds},
    )
    if found.status == INFEASIBLE and "infeasible" in found.message:
        return Answer("safe")
    if found.x is None:
        return Answer("unknown")
    return _confirmed(layers, torch.from_numpy(found.x[: len(lower)]).clamp(lower, upper),
                      lower, upper)  # fmt: skip


def _confirmed(layers: Layers, x: Tensor, lower: Tensor, upper: Tensor) -> Answer:
    """The solver's point, moved downhill; within its tolerances it may lie on the wrong side."""
    if worst(layers, x[None]) > 0:
        x = descend(layers, lower[None], upper[None], x[None], steps=50)[0][0]
    return Answer("unsafe", x) if worst(layers, x[None]) <= 0 else Answer("unknown")


def _program(
    layers: Layers, rows: list[int], relaxation: Relaxation, lower: Tensor, upper: Tensor
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[LinearConstraint]]:
    """Bounds and integrality (V,) of the variables, and the constraints.

    The variables in order: the input, then for each layer its ReLUs' outputs and their binaries
    (1: the input is >= 0), then one binary a row: 1 for the output that is not above ``PROOF``.
    """
    low, high, whole = [lower.numpy()], [upper.numpy()], [np.zeros(len(lower))]
    matrices, least, most = [], [], []
    for k, width in enumerate(layers.widths):
        below, above = relaxation.low[k][0].numpy(), relaxation.high[k][0].numpy()
        matrix, bottom, top = _relus(layers, k, below, above)
        matrices.append(matrix)
        least.append(bottom)
        most.append(top)
        # where both bounds are 0 the output is, whatever the binary is
        low += [np.zeros(width), ((below >= 0) & (above > 0)).astype(float)]
        high += [np.maximum(above, 0), (above > 0).astype(float)]
        whole += [np.zeros(width), np.ones(width)]
    last = -2 if layers.widths else -1  # past the binaries of the last layer, if there are any
    matrix, top = _outputs(layers, rows, low[last], high[last])
    low.append(np.zeros(len(rows)))
    high.append(np.ones(len(rows)))
    whole.append(np.ones(len(rows)))
    total = sum(map(len, low))
    constraints, first = [], 0
    for part, bottom, cap, size in zip(matrices, least, most, layers.widths, strict=True):
        constraints.append(_placed(part, first, total, bottom, cap))
        first += part.shape[1] - 2 * size  # the next layer begins at this one's outputs
    constraints.append(_placed(matrix, first, total, np.full(len(rows), -np.inf), top))
    one = csr_array(np.r_[np.zeros(total - len(rows)), np.ones(len(rows))][None])
    constraints.append(LinearConstraint(one, 1, np.inf))
    return np.concatenate(low), np.concatenate(high), np.concatenate(whole), constraints


def _placed(matrix, first: int, total: int, least, most) -> LinearConstraint:
    """A constraint on the variables from ``first`` on, as one on all of them."""
    left = csr_array((matrix.shape[0], first))
    right = csr_array((matrix.shape[0], total - first - matrix.shape[1]))
    return LinearConstraint(block_array([[left, matrix, right]], format="csr"), least, most)


def _relus(layers: Layers, k: int, low: np.ndarray, high: np.ndarray) -> tuple:
    """y = relu(z) for layer k, z = W p + b, over the variables (p, p's binaries, y, a).

    y - z >= 0, y - z - l a <= -l and y - u a <= 0, where l is the lower bound of z cut at 0 from
    above and u the upper one cut at 0 from below: the same rows serve a known sign, where a is
    fixed to it.
    """
    weight, bias = csr_array(layers.weights[k].numpy()), layers.biases[k].numpy()
    width, before = weight.shape
    unit = diags_array(np.ones(width))
    gap = csr_array((width, before if k else 0))  # of the layer before, its binaries
    nothing, none = csr_array((width, before)), csr_array((width, width))
    low, high = np.minimum(low, 0), np.maximum(high, 0)
    matrix = block_array(
        [
            [-weight, gap, unit, none],
            [-weight, gap, unit, diags_array(-low)],
            [nothing, gap, unit, diags_array(-high)],
        ],
        format="csr",
    )
    infinite = np.full(width, np.inf)
    least = np.concatenate([bias, -infinite, -infinite])
    return matrix, least, np.concatenate([infinite, bias - low, np.zeros(width)])


def _outputs(layers: Layers, rows: list[int], low: np.ndarray, high: np.ndarray) -> tuple:
    """w · y + b <= PROOF + M (1 - d) for each row, over the last layer's (y, a) and d.

    y is in [low, high]; M is what the output can exceed PROOF by.
    """
    weight, bias = layers.weights[-1][rows].numpy(), layers.biases[-1][rows].numpy()
    most = (np.maximum(weight, 0) * high + np.minimum(weight, 0) * low).sum(1) + bias
    big = np.maximum(most - PROOF, 0)
    gap = csr_array(weight.shape if len(layers.widths) else (len(rows), 0))
    matrix = block_array([[csr_array(weight), gap, diags_array(big)]], format="csr")
    return matrix, PROOF - bias + big
