"""A complete proof by cases: split ReLUs on their sign until linear bounds decide every case.

Branch and bound as in beta-CROWN (Wang et al., NeurIPS 2021): each assumption cuts the bounds of
the ReLUs behind it and enters by a multiplier, and slopes and multipliers are optimised together.
Which ReLU to split is tried out first (filtered smart branching, De Palma et al., 2021, section
4.2).

Shapes: D cases at a time, N all ReLUs together, n_0 inputs.
"""

from dataclasses import dataclass, replace
from functools import reduce

import torch
from torch import Tensor

from minexp.attack import worst
from minexp.bounds import Layers, Relaxation, back, bound_rows, least

# An output counts as positive only if proven above this: far more than what single precision
# loses in the digits' networks (about 1e-5; every audit measures it), and a hundred times HiGHS's
# tolerance on one constraint.
PROOF = 1e-4
BATCH = 64
CANDIDATES = 4  # ReLUs whose split is tried out
POLISH = 20  # times the steps, for cases that cannot be split further
DECAY = 0.98  # of the optimiser's step from one to the next


@dataclass(frozen=True)
class Split:
    """What the cases said: ``proven``, a ``witness`` (n_0,) with an output <= 0, or neither.

    ``leaves`` are the cases of a proof, a cover of the box; a later, similar question may begin
    with them. Without a proof there are none. ``count``: how many new
    cases were bounded.
    """

    proven: bool
    witness: Tensor | None
    leaves: "Cases | None"
    count: int


@dataclass
class Cases:
    """Cases side by side, each with the slopes and multipliers of its best bound so far."""

    signs: Tensor  # (D, N): 1 where z >= 0 is assumed, -1 where z <= 0, else 0
    slopes: Tensor  # (D, N)
    multipliers: Tensor  # (D, N), >= 0
    low: Tensor  # (D, N), bounds of the ReLUs' inputs
    high: Tensor
    bound: Tensor  # (D,)

    def take(self, index: Tensor) -> "Cases":
        return Cases(*(part[index] for part in vars(self).values()))

    def join(self, other: "Cases") -> "Cases":
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Cases(*(torch.cat(pair) for pair in pairs))


def prove(
    layers: Layers,
    row: int,
    relaxation: Relaxation,
    lower: Tensor,
    upper: Tensor,
    *,
    cases: int,
    leaves: Cases | None = None,
    steps: int = 12,
) -> Split:
    """Decide whether output ``row`` is above ``PROOF`` in a whole box (n_0,).

    Args:
        relaxation: the bounds of the ReLUs' inputs over the box, B = 1.
        cases: the budget; no new ones are begun once so many are bounded.
        leaves: of an earlier proof over a box no larger; None: begin without an assumption.
        steps: of optimisation a case.
    """
    if not layers.widths:  # no sign to assume
        return Split(False, None, None, 0)
    problem = _Problem(layers, row, relaxation, lower, upper)
    closed, count, open_ = [], 0, problem.begin(relaxation)
    if leaves is not None:  # most hold in the new box as they are
        open_, points = problem.again(leaves)
        if worst(layers, points).amin() <= 0:
            return Split(False, points[worst(layers, points).argmin()], None, count)
        done = open_.bound > PROOF
        closed, open_ = [open_.take(done)], open_.take(~done)
    while len(open_.bound) and count < cases:
        order = open_.bound.argsort()
        here, open_ = open_.take(order[:BATCH]), open_.take(order[BATCH:])
        here, met, points = problem.optimise(problem.tighten(here), steps)
        count += len(here.bound)
        values = worst(layers, points)
        if values.amin() <= 0:
            return Split(False, points[values.argmin()], None, count)
        done = here.bound > PROOF
        closed.append(here.take(done))
        scores = problem.scores(here, met)[~done]
        left, whole = here.take(~done), scores.amax(1) <= 0
        if whole.any():  # every sign is assumed: only better multipliers can help
            polished = problem.optimise(left.take(whole), POLISH * steps)[0]
            closed.append(polished)
            if not bool((polished.bound > PROOF).all()):
                break
        open_ = open_.join(problem.branch(left.take(~whole), scores[~whole]))
    else:
        if not len(open_.bound):
            return Split(True, None, reduce(Cases.join, closed), count)
    return Split(False, None, None, count)


class _Problem:
    """One output over one box."""

    def __init__(self, layers: Layers, row: int, relaxation: Relaxation, lower, upper):
        self.layers, self.widths = layers, layers.widths
        self.row = layers.weights[-1][row][None, None]  # (1, 1, n_{L-1})
        self.constant = layers.biases[-1][row][None, None]
        self.lower, self.upper = lower[None], upper[None]
        self.low, self.high = torch.cat(relaxation.low, 1), torch.cat(relaxation.high, 1)

    def begin(self, relaxation: Relaxation) -> Cases:
        """The box itself, nothing assumed."""
        slopes = torch.cat([s[:, 0] for s in relaxation.slopes()], 1)  # (1, N)
        nothing = torch.zeros_like(slopes)
        bound = torch.full((1,), -torch.inf, dtype=torch.float64)
        return Cases(nothing, slopes, nothing, self.low, self.high, bound)

    def cut(self, signs: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Bounds (D, N) cut at 0 where a sign is assumed.

        Where that leaves nothing the case is empty, and any bounds are sound: 0 and 0.
        """
        low, high = (
            torch.where(signs > 0, low.clamp(min=0), low),
            torch.where(signs < 0, high.clamp(max=0), high),
        )
        empty = low > high
        return low.masked_fill(empty, 0), high.masked_fill(empty, 0)

    def tighten(self, cases: Cases) -> Cases:
        """The cases with bounds of the deeper ReLUs that heed the assumptions before them."""
        low, high = list(cases.low.split(self.widths, 1)), list(cases.high.split(self.widths, 1))
        signs = cases.signs.split(self.widths, 1)
        for k in range(1, len(self.widths)):
            wide = ((low[k] < 0) & (high[k] > 0)).any(0).nonzero()[:, 0]
            if not len(wide) or not any(bool(sign.any()) for sign in signs[:k]):
                continue  # nothing to tighten, or nothing assumed before it
            weight, bias = self.layers.weights[k][wide], self.layers.biases[k][wide]
            bound = bound_rows(
                self.layers, torch.cat([weight, -weight])[None], torch.cat([bias, -bias])[None],
                Relaxation(tuple(low[:k]), tuple(high[:k])), self.lower, self.upper,
            )  # fmt: skip
            below, above = bound.chunk(2, 1)
            low[k], high[k] = low[k].clone(), high[k].clone()
            low[k][:, wide] = torch.maximum(low[k][:, wide], below)
            high[k][:, wide] = torch.minimum(high[k][:, wide], -above)
            low[k], high[k] = self.cut(signs[k], low[k], high[k])
        return replace(cases, low=torch.cat(low, 1), high=torch.cat(high, 1))

    def relaxation(self, cases: Cases) -> Relaxation:
        return Relaxation(cases.low.split(self.widths, 1), cases.high.split(self.widths, 1))

    def bound(self, cases: Cases, slopes: Tensor, multipliers: Tensor) -> tuple:
        """Bounds (D,), the linear functions' coefficients (D, n_0), rows as they met (D, N)."""
        rows, constants, met = back(
            self.layers,
            self.row,
            self.constant,
            self.relaxation(cases),
            [s[:, None] for s in slopes.split(self.widths, 1)],
            [m[:, None] for m in (cases.signs * multipliers).split(self.widths, 1)],
        )
        met = [m.expand(len(slopes), 1, -1) for m in met]
        value = least(rows, constants, self.lower, self.upper)[:, 0]
        return value, rows[:, 0], torch.cat(met, 2)[:, 0]

    def optimise(self, cases: Cases, steps: int) -> tuple[Cases, Tensor, Tensor]:
        """The cases with better bounds, the rows as met (D, N), the lines' least points (D, n_0).

        A case's best bound is kept, with the slopes and multipliers that gave it.
        """
        slopes = cases.slopes.clone().requires_grad_()
        multipliers = cases.multipliers.clone().requires_grad_()
        groups = [{"params": [slopes], "lr": 0.15}, {"params": [multipliers], "lr": 0.1}]
        optimizer = torch.optim.Adam(groups)
        best = replace(cases)
        for step in range(steps + 1):
            value, rows, met = self.bound(cases, slopes, multipliers)
            with torch.no_grad():
                better = value > best.bound
                best.bound = torch.where(better, value, best.bound)
                best.slopes = torch.where(better[:, None], slopes, best.slopes)
                best.multipliers = torch.where(better[:, None], multipliers, best.multipliers)
            if step == steps or bool((best.bound > PROOF).all()):
                break
            optimizer.zero_grad()
            (-value[best.bound <= PROOF].sum()).backward()
            optimizer.step()
            with torch.no_grad():
                slopes.clamp_(0, 1)
                multipliers.clamp_(min=0)
            for group in optimizer.param_groups:
                group["lr"] *= DECAY
        return best, met.detach(), torch.where(rows.detach() > 0, self.lower, self.upper)

    def again(self, cases: Cases) -> tuple[Cases, Tensor]:
        """The cases of another box with this box's bounds, and the lines' least points (D, n_0)."""
        low, high = self.cut(cases.signs, self.low.expand_as(cases.low), self.high)
        bound = torch.full_like(cases.bound, -torch.inf)
        fresh = replace(cases, low=low, high=high, bound=bound)
        index = torch.arange(len(bound)).split(4 * BATCH)
        found, _, points = zip(*(self.optimise(fresh.take(i), 0) for i in index), strict=True)
        return reduce(Cases.join, found), torch.cat(points)

    def scores(self, cases: Cases, met: Tensor) -> Tensor:
        """How much each ReLU's relaxation may cost (D, N): weight times the triangle's height."""
        low, high = cases.low, cases.high
        free = (low < 0) & (high > 0) & (cases.signs == 0)
        height = -low * high / (high - low).clamp(min=1e-300)
        return torch.where(free, met.abs() * height + 1e-300, 0.0)

    def branch(self, cases: Cases, scores: Tensor) -> Cases:
        """Both halves of each case, split where the worse half comes out best at once."""
        tried = scores.topk(min(CANDIDATES, scores.shape[1]), 1)
        count = tried.indices.shape[1]
        parts = cases.take(torch.arange(len(scores)).repeat_interleave(count))
        at = torch.arange(len(parts.bound)), tried.indices.flatten()
        halves = []
        for sign in (1.0, -1.0):
            signs = parts.signs.clone()
            signs[at] = sign
            low, high = self.cut(signs, parts.low, parts.high)
            half = replace(parts, signs=signs, low=low, high=high)
            with torch.no_grad():
                value = self.bound(half, half.slopes, half.multipliers)[0]
            halves.append(replace(half, bound=torch.maximum(value, parts.bound)))
        gain = torch.minimum(halves[0].bound, halves[1].bound).view(-1, count)
        gain = gain.masked_fill(tried.values <= 0, -torch.inf)  # not one that is already known
        chosen = torch.arange(len(scores)) * count + gain.argmax(1)
        return halves[0].take(chosen).join(halves[1].take(chosen))
