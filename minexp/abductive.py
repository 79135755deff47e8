"""Abductive explanations: pixels that, kept as they are, prove the class whatever the others do.

Ignatiev et al. (AAAI 2019) and VeriX (Wu et al., NeurIPS 2023): a set S of pixels is sufficient
if no filling of the others within their domain changes the class, and subset-minimal if no pixel
of S can be freed besides. A pixel is "free", "needed" (a witness shows that freeing it lets the
class change) or "unknown" (no judge decided within the budget; it stays as it is).

A witness found on the way stays one: later only more pixels are free. What is free is freed in
runs along an order, the longest that an attack does not refute first (binary search, Wu et al.,
2024), and one by one where runs fail.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minexp import attack
from minexp.bounds import back, bound_outputs
from minexp.errors import InputError
from minexp.verifier import Budget, Verifier

ORDERS = ("bound", "gradient", "random")
SWEPT = 128  # units attacked at once
LENGTHS = 12  # of runs attacked at once
REVISITED = 32  # undecided units attacked at once
RUN = Budget(200, 5.0)  # for a run of several units; what fails is tried again in parts


@dataclass(frozen=True)
class Abduction:
    """The verdict on every unit of an image, pixels or square patches, by number (row by row).

    ``free`` units need not be kept; ``needed`` ones each have a witness in ``witnesses``
    (K, C, H, W) float32: an image that differs from the original only in free units and the one
    needed, and has another class; ``unknown`` units were not decided; ``kept`` were not asked
    about. The sufficient set is needed + unknown + kept.
    """

    label: int
    side: int
    free: tuple[int, ...]
    needed: tuple[int, ...]
    unknown: tuple[int, ...]
    kept: tuple[int, ...]
    witnesses: Tensor
    seconds: float
    queries: dict[str, int]

    @property
    def subset_minimal(self) -> bool:
        """Whether no unit of the sufficient set can be freed; not claimed if any is unknown."""
        return not self.unknown and not self.kept


def units(height: int, width: int, side: int) -> Tensor:
    """Square patches as masks (U, H * W) bool, row by row; each pixel is in one.

    Raises InputError for a side that does not divide both.
    """
    if side < 1 or height % side or width % side:
        raise InputError(f"side {side}: expected a divisor of {height} and {width}")
    number = torch.arange(height)[:, None] // side * (width // side) + torch.arange(width) // side
    return number.flatten() == torch.arange(height * width // side**2)[:, None]


def domain(image: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Where each pixel may go: within eps of its value and within [0, 1]. Raises InputError."""
    if not 0 < eps <= 1:
        raise InputError(f"eps={eps}: expected more than 0, at most 1 (the whole range)")
    return (image - eps).clamp(0, 1), (image + eps).clamp(0, 1)


def explain(
    module: nn.Module,
    image: Tensor,
    lower: Tensor,
    upper: Tensor,
    *,
    side: int = 1,
    order: str = "bound",
    budget: Budget | None = None,
    keep: Sequence[int] = (),
    seed: int = 0,
    on_step: Callable[[dict[str, int]], None] | None = None,
) -> Abduction:
    """Free what can be freed of one image; see the module's docstring.

    Args:
        module: a Sequential of Conv2d, Linear, ReLU and Flatten on pixels in [0, 1].
        image, lower, upper: (1, C, H, W), the image and the domain of each pixel.
        side: of a unit, in pixels; all channels of a pixel go together.
        order: in which units are freed: "bound" (least share in the linear bound of the whole
            domain first), "gradient" (least slope at the image first) or "random".
        budget: of one query about one unit.
        keep: units that stay as they are and are not asked about.
        on_step: called with the numbers of free, needed, unknown and pending units.

    Raises:
        InputError: an unsupported module, order, side, unit or domain.
    """
    if order not in ORDERS:
        raise InputError(f"order {order!r}: expected one of {', '.join(ORDERS)}")
    started = time.perf_counter()
    height, width = image.shape[-2:]
    masks = units(height, width, side).repeat(1, image.shape[1])  # (U, n_0)
    if wrong := [unit for unit in keep if not 0 <= unit < len(masks)]:
        raise InputError(f"keep {wrong[:3]}: expected units from 0 to {len(masks) - 1}")
    verifier = Verifier(module, image, lower, upper, seed=seed)
    search = _Search(verifier, masks, budget or Budget(), on_step)
    search.run([unit for unit in ranked(verifier, masks, order) if unit not in set(keep)])
    search.revisit()
    needed = sorted(search.needed)
    assert verifier.label is not None  # it was given or found
    return Abduction(
        label=verifier.label,
        side=side,
        free=tuple(sorted(search.free)),
        needed=tuple(needed),
        unknown=tuple(sorted(search.unknown)),
        kept=tuple(sorted(keep)),
        witnesses=torch.stack([search.needed[unit] for unit in needed]).view(-1, *image.shape[1:])
        if needed else image.new_zeros(0, *image.shape[1:]),
        seconds=time.perf_counter() - started,
        queries={name: verifier.counts[name] for name in ("safe", "unsafe", "unknown", "milp")},
    )  # fmt: skip


def ranked(verifier: Verifier, masks: Tensor, order: str) -> list[int]:
    """The units (U, n_0) in the order in which they are to be freed."""
    if order == "random":
        return torch.randperm(len(masks), generator=verifier.generator).tolist()
    width = verifier.high - verifier.low
    if order == "gradient":
        slope = attack.gradient(verifier.layers, verifier.x[None])[0]
    else:
        slope = _bound_slope(verifier)
    return (masks.double() @ (slope.abs() * width)).argsort(stable=True).tolist()


def _bound_slope(verifier: Verifier) -> Tensor:
    """Coefficients (n_0,) of the linear bound of the output that is worst over the domain."""
    layers, lower, upper = verifier.layers, verifier.low[None], verifier.high[None]
    bound, relaxation = bound_outputs(layers, lower, upper)
    rows, _, _ = back(
        layers, layers.weights[-1][None], layers.biases[-1][None], relaxation, relaxation.slopes()
    )
    return rows[0, bound[0].argmin()]


class _Search:
    """The state of one deletion: what is free, needed (with its witness) and unknown so far."""

    def __init__(self, verifier: Verifier, masks: Tensor, budget: Budget, on_step):
        self.verifier, self.masks, self.budget, self.on_step = verifier, masks, budget, on_step
        self.free: set[int] = set()
        self.needed: dict[int, Tensor] = {}  # unit -> witness (n_0,)
        self.unknown: set[int] = set()

    def open(self, more: Sequence[int] = ()) -> Tensor:
        """The inputs (n_0,) bool that are free, with those of ``more`` units."""
        return self.masks[[*self.free, *more]].any(0)

    def run(self, pending: list[int]) -> None:
        """Settle all of ``pending``, units in the order in which they are to be freed.

        A run that failed is not tried again inside a longer one, for what frees more is no safer;
        where it fails is found by halving.
        """
        failed: int | None = None  # the last unit of the shortest run that failed
        while pending:
            before = pending.index(failed) if failed in pending else None
            size = self.length(pending[:before])
            if before is not None:
                size = max(1, min(size, before // 2))
            run = pending[:size]
            # everything at once is worth as much as one unit: proven, it ends the search
            full = size == 1 or (size == len(pending) and not self.free)
            budget = self.budget if full else self.budget.within(RUN)
            answer = self.verifier.decide(self.open(run), budget)
            if answer.verdict == "safe":
                self.free |= set(run)
                pending = self.sweep(pending[size:])
            elif size > 1:
                failed = run[-1]
            else:
                self.settle(run[0], answer.witness)
                pending, failed = pending[1:], None
            self.report(len(pending))

    def revisit(self) -> None:
        """Attack what stayed undecided once more: since then more has become free."""
        left = sorted(self.unknown)
        self.unknown = set()
        while left:
            boxes = [self.verifier.box(self.open([unit])) for unit in left[:REVISITED]]
            points, values = self.attacked(boxes, steps=100)
            for unit, point, value in zip(left, points, values.tolist(), strict=False):
                answer = self.verifier.confirmed(point) if value <= 0 else None
                self.settle(unit, None if answer is None else answer.witness)
            left = left[REVISITED:]
            self.report(0)

    def settle(self, unit: int, witness: Tensor | None) -> None:
        if witness is None:
            self.unknown.add(unit)
        else:
            self.needed[unit] = witness

    def report(self, pending: int) -> None:
        if self.on_step is not None:
            counts = {name: len(getattr(self, name)) for name in ("free", "needed", "unknown")}
            self.on_step({**counts, "pending": pending})

    def length(self, pending: list[int]) -> int:
        """The longest run that an attack on several lengths at once leaves standing, at least 1."""
        if len(pending) < 2:
            return 1
        even = torch.logspace(0, torch.tensor(len(pending)).log10().item(), LENGTHS)
        lengths = sorted({max(1, min(round(n.item()), len(pending))) for n in even})
        boxes = [self.verifier.box(self.open(pending[:n])) for n in lengths]
        values = self.attacked(boxes)[1]
        standing = [n for n, value in zip(lengths, values, strict=True) if value > 0]
        return max(standing, default=1)

    def attacked(self, boxes: list[tuple[Tensor, Tensor]], steps: int = 20) -> tuple:
        """The worst point (B, n_0) and value (B,) of each box, from the verifier's points."""
        lower, upper = (torch.stack(part) for part in zip(*boxes, strict=True))
        starts = self.verifier.points[-4:]
        count = len(starts)
        points, values = attack.descend(
            self.verifier.layers, lower.repeat_interleave(count, 0),
            upper.repeat_interleave(count, 0), starts.repeat(len(boxes), 1), steps=steps,
        )  # fmt: skip
        values = values.view(-1, count)
        best = torch.arange(len(boxes)) * count + values.argmin(1)
        return points[best], values.amin(1)

    def sweep(self, pending: list[int]) -> list[int]:
        """Settle the units that an attack shows to be needed; the others, in their order."""
        while pending:
            near = self.nearest(pending)
            boxes = [self.verifier.box(self.open([unit])) for unit in near]
            points, values = self.attacked(boxes)
            hits = 0
            for unit, point, value in zip(near, points, values.tolist(), strict=True):
                answer = self.verifier.confirmed(point) if value <= 0 else None
                if answer is not None:
                    self.settle(unit, answer.witness)
                    hits += 1
            pending = [unit for unit in pending if unit not in self.needed]
            if 2 * hits < len(near):
                break
        return pending

    def nearest(self, pending: list[int]) -> list[int]:
        """The units that, to first order at the points found last, lower the margin most."""
        slope = attack.gradient(self.verifier.layers, self.verifier.points[-4:]).abs()
        reach = slope * (self.verifier.high - self.verifier.low)  # (4, n_0)
        drop = (reach @ self.masks[pending].double().T).amax(0)
        return [pending[k] for k in drop.topk(min(SWEPT, len(pending))).indices.tolist()]
