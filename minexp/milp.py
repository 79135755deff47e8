"""A second complete solver: the network as a mixed-integer program, given to HiGHS.

The encoding of Tjeng et al. (ICLR 2019), section 4: one binary for each ReLU, fixed where its sign
is known, with its bounds over the box as the big M. HiGHS (Huangfu and Hall, 2018) comes with
SciPy. It is asked for the least of one output among the points where that is not above ``PROOF``:
"infeasible" is then a proof with room for the solver's own tolerances, and a point counts only if
a forward pass confirms it.
"""

import ctypes
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
# HiGHS takes a binary within 1e-6 of 0 or 1 for that. From bounds of 3e6 on it was seen to call
# programs infeasible that are not, up to 1e6 in none of a thousand.
LARGEST = 1e4
SMALLEST = 1e-9  # of a weight: HiGHS drops those that are no larger
_printing = threading.Lock()


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

    What HiGHS cannot be trusted with, bounds above 1e4 or weights of at most 1e-9 that are not 0,
    is "unknown". A witness may be another output's.

    Args:
        relaxation: bounds of the ReLUs' inputs over the box, B = 1.
        seconds: shared by the rows, what one leaves is the others'; HiGHS looks at its clock now
            and then.

    Raises InputError for no row, seconds <= 0 or an empty box.
    """
    rows = list(range(len(layers.biases[-1]))) if rows is None else rows
    if not rows or seconds <= 0:
        raise InputError(f"rows={rows}, seconds={seconds}: expected a row, and seconds > 0")
    if bool((lower > upper).any()):
        raise InputError("an empty box: expected lower <= upper")
    bounds = (lower, upper, *relaxation.low, *relaxation.high)
    if not all((part.abs() <= LARGEST).all() for part in bounds) or any(
        ((part.abs() <= SMALLEST) & (part != 0)).any() for part in layers.weights
    ):
        return Answer("unknown")
    end, verdicts = time.perf_counter() + seconds, set()
    for done, row in enumerate(rows):
        share = max(end - time.perf_counter(), 0.0) / (len(rows) - done)
        answer = _row(layers, row, relaxation, lower, upper, share)
        if answer.verdict == "unsafe":
            return answer
        verdicts.add(answer.verdict)
    return Answer("safe") if verdicts == {"safe"} else Answer("unknown")


def _row(
    layers: Layers, row: int, relaxation: Relaxation, lower: Tensor, upper: Tensor, seconds: float
) -> Answer:
    objective, low, high, whole, constraints = _program(layers, row, relaxation, lower, upper)
    with _quiet():
        found = milp(
            objective,
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


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the line that HiGHS prints, by C's printf, when it repairs a candidate.

    No option stops it, and Python's own redirection does not see it. The candidate is judged by a
    forward pass here, so that nothing is lost.
    """
    if os.name != "posix":
        yield
        return
    flush = ctypes.CDLL(None).fflush
    with _printing, open(os.devnull, "wb") as nowhere:
        flush(None)
        kept = os.dup(1)
        os.dup2(nowhere.fileno(), 1)
        try:
            yield
        finally:
            flush(None)
            os.dup2(kept, 1)
            os.close(kept)


def _confirmed(layers: Layers, x: Tensor, lower: Tensor, upper: Tensor) -> Answer:
    """The solver's point, moved downhill; within its tolerances it may lie on the wrong side."""
    if worst(layers, x[None]) > 0:
        x = descend(layers, lower[None], upper[None], x[None], steps=50)[0][0]
    return Answer("unsafe", x) if worst(layers, x[None]) <= 0 else Answer("unknown")


def _program(
    layers: Layers, row: int, relaxation: Relaxation, lower: Tensor, upper: Tensor
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, list[LinearConstraint]]:
    """The objective, bounds and integrality (V,) of the variables, and the constraints.

    The variables in order: the input, then for each layer its ReLUs' outputs and their binaries
    (1: the input is >= 0). The objective is the output's own: a point that meets the constraints
    would do, but what it leads to is what the search branches on and cuts by.
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
    total = sum(map(len, low))
    constraints, first = [], 0
    for part, bottom, cap, size in zip(matrices, least, most, layers.widths, strict=True):
        constraints.append(_placed(part, first, total, bottom, cap))
        first += part.shape[1] - 2 * size  # the next layer begins at this one's outputs
    weight = layers.weights[-1][row].numpy()
    objective = np.zeros(total)
    objective[first : first + len(weight)] = weight
    cap = PROOF - layers.biases[-1][row].item()
    constraints.append(LinearConstraint(csr_array(objective[None]), -np.inf, cap))
    return objective, np.concatenate(low), np.concatenate(high), np.concatenate(whole), constraints


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
