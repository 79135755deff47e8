"""Does any filling of the free pixels change the class? Safe, unsafe with a witness, or unknown.

Four judges in turn, the cheap ones first: linear bounds, an attack, cases, and HiGHS. "Safe" is a
statement about the network's function in real arithmetic, its margin proven above ``PROOF``;
"unsafe" holds only for a witness whose class plain forward passes in float32 and float64 say has
changed. A budget counts cases, not seconds, so that a busy machine changes no verdict; only HiGHS
is held to seconds.
"""

from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from minexp import attack, milp, splitting
from minexp.bounds import as_layers, bound_outputs, margins
from minexp.errors import InputError
from minexp.milp import Answer
from minexp.splitting import PROOF

SLOPES = 15  # steps of optimised slopes
KEPT = 16  # points near the class's border that later attacks begin from


@dataclass(frozen=True)
class Budget:
    """What one query may cost: cases bounded, and then seconds of HiGHS (0: none)."""

    cases: int = 500
    seconds: float = 60.0

    def __post_init__(self) -> None:
        if self.cases < 0 or self.seconds < 0:
            raise InputError(f"budget {self.cases} cases, {self.seconds} s: expected none below 0")

    def within(self, other: "Budget") -> "Budget":
        """The lesser of both, in each part."""
        return Budget(min(self.cases, other.cases), min(self.seconds, other.seconds))


@dataclass
class Verifier:
    """Queries about one image x: free some inputs within a box, keep the others as they are.

    It remembers points near the border and the cases of the last proof of each output, for the
    next query is nearly the same; what is remembered changes the time, never a verdict's meaning.

    Args:
        module: a Sequential, see :func:`minexp.bounds.as_layers`.
        image: (1, C, H, W) in the module's own units.
        lower, upper: (1, C, H, W), the domain of each input when it is free.
        label: None: the module's own.
    """

    module: nn.Module
    image: Tensor
    lower: Tensor
    upper: Tensor
    label: int | None = None
    seed: int = 0
    counts: Counter = field(default_factory=Counter)

    def __post_init__(self) -> None:
        # float32 values: a witness rounded to float32 cannot leave a box with such edges
        self.x = self.image.detach().flatten().float().double()
        self.low, self.high = _outward(self.lower, -torch.inf), _outward(self.upper, torch.inf)
        if not bool((self.low <= self.x).all() & (self.x <= self.high).all()):
            raise InputError("the domain does not hold the image: expected lower <= x <= upper")
        layers = as_layers(self.module, self.image.shape[1:])
        own = int(layers(self.x[None]).argmax())
        self.label = own if self.label is None else self.label
        self.layers = margins(layers, self.label)
        self.generator = torch.Generator().manual_seed(self.seed)
        self.points = self.x[None]  # (S, n_0)
        self.leaves: dict[int, splitting.Cases | None] = {}

    def box(self, free: Tensor) -> tuple[Tensor, Tensor]:
        """The box (n_0,), (n_0,) in which the inputs ``free`` (n_0,) bool vary."""
        return torch.where(free, self.low, self.x), torch.where(free, self.high, self.x)

    def decide(self, free: Tensor, budget: Budget) -> Answer:
        """Whether the class stays wherever the inputs ``free`` (n_0,) bool go in their domain."""
        answer = self._decide(*self.box(free), budget)
        self.counts[answer.verdict] += 1
        return answer

    def _decide(self, lower: Tensor, upper: Tensor, budget: Budget) -> Answer:
        bound, relaxation = bound_outputs(self.layers, lower[None], upper[None])
        if bool((bound > PROOF).all()):
            return Answer("safe")
        if (found := self._attacked(lower, upper)) is not None:
            return found
        bound, relaxation = bound_outputs(self.layers, lower[None], upper[None], steps=SLOPES)
        left, spent = [], 0
        for row in self._open(bound[0]):
            split = splitting.prove(
                self.layers, row, relaxation, lower, upper,
                cases=max(budget.cases - spent, 0), leaves=self.leaves.get(row),
            )  # fmt: skip
            spent += split.count
            if split.witness is not None:
                if (found := self.confirmed(split.witness)) is not None:
                    return found
                return Answer("unknown")  # a margin within rounding of 0
            if split.proven:
                self.leaves[row] = split.leaves
            else:
                left.append(row)
                if not budget.seconds:
                    return Answer("unknown")
        if not left:
            return Answer("safe")
        answer = milp.query(
            self.layers, relaxation, lower, upper, seconds=budget.seconds, rows=left
        )
        self.counts["milp"] += 1
        if answer.witness is None:
            return answer
        return self.confirmed(answer.witness) or Answer("unknown")

    def _open(self, bound: Tensor) -> list[int]:
        """The outputs that bounds alone leave open, the least first."""
        rows = (~(bound > PROOF)).nonzero()[:, 0]  # a NaN is no proof
        return rows[bound[rows].argsort()].tolist()

    def _attacked(self, lower: Tensor, upper: Tensor) -> Answer | None:
        point, value = attack.attack(
            self.layers, lower, upper, generator=self.generator, starts=self.points
        )
        self.remember(point[None])
        return self.confirmed(point) if value <= 0 else None

    def remember(self, points: Tensor) -> None:
        """Keep points (S, n_0) as later attacks' starts, the latest ``KEPT``."""
        self.points = torch.cat([self.points, points])[-KEPT:]

    def confirmed(self, point: Tensor) -> Answer | None:
        """An "unsafe" with the point (n_0,) in float32, if forward passes say so; else None."""
        witness = point.float()
        with torch.no_grad():
            logits = self.module(witness.view(self.image.shape))[0]
        changed = int(logits.argmax()) != self.label
        exact = attack.worst(self.layers, witness.double()[None]).item()
        return Answer("unsafe", witness) if changed and exact < 0 else None


def _outward(edge: Tensor, way: float) -> Tensor:
    """An edge of a box (1, C, H, W) as float32 values (n_0,), no nearer to the box's middle."""
    exact = edge.detach().flatten().double()
    near = exact.float()
    short = near.double() > exact if way < 0 else near.double() < exact
    return torch.where(short, near.nextafter(torch.full_like(near, way)), near).double()


def verify(
    module: nn.Module,
    lower: Tensor,
    upper: Tensor,
    label: int,
    *,
    budget: Budget | None = None,
) -> Answer:
    """Whether the class is ``label`` everywhere in a box, (1, C, H, W) each.

    Raises InputError for an unsupported module, an empty box or no such label.
    """
    verifier = Verifier(module, lower, lower, upper, label)
    return verifier.decide(torch.ones(lower.numel(), dtype=torch.bool), budget or Budget())
