"""Does a circuit hold? Curves over its size for one image, as rows of numbers.

Faithfulness keeps only the circuit and ablates the rest: ``kept``, the label; ``recovered``, the
share of the way from the logit of nothing to the logit of everything. Completeness ablates the
circuit: ``lost``, the label; ``removed``, the share of that way that goes. Each size is a fraction
of every layer's channels, the first by a ranking. A share may leave 0 to 1: a circuit without the
channels that speak against the class says more for it than the whole network does. Circuits here
are sets of channels of the tapped layers: all edges between them, and all layers that are not
tapped, stay.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from minexp import ablation, channels
from minexp.ablation import ABLATIONS, Fill, Reference
from minexp.channels import RANKINGS, Reading
from minexp.classifier import Classifier
from minexp.errors import InputError
from minexp.shortcuts import Roads

FRACTIONS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
# Controls: as many channels at random; the last ranking's circuits with every channel exchanged
# for one of about its energy.
RANDOM = ("random", "random_energy")
# Control: the same ranking for a class that has nothing to do with the image. Its kept says *that*
# label: where it is high too, the ranking can make the network say whatever it is asked to say.
# Its lost is of the image's own label: where it is low, the loss by the own circuit is specific.
OTHER = "_other"
# The ranking as the masked image gives it, the paper's way; what it keeps is of the whole image.
EXPLANATION = "_explanation"
EXCHANGED = 8  # channels of neighbouring energies among which random_energy exchanges
MEASURES = ("kept", "recovered", "lost", "removed")


@dataclass(frozen=True)
class Plan:
    """What is tried on each image."""

    rankings: Sequence[str] = RANKINGS
    ablations: Sequence[str] = ABLATIONS
    fractions: Sequence[float] = FRACTIONS
    draws: int = 2  # of each random control, and other images in resample ablation
    dropped: int = 12  # nodes dropped alone, at each size up to 0.3; 0: none
    seed: int = 0

    def __post_init__(self):
        for names, known in ((self.rankings, RANKINGS), (self.ablations, ABLATIONS)):
            for name in names:
                if name not in known:
                    raise InputError(f"{name!r}: expected one of {', '.join(known)}")
        inside = all(0 <= fraction <= 1 for fraction in self.fractions)
        if not inside or list(self.fractions) != sorted({0.0, *self.fractions, 1.0}):
            raise InputError(f"fractions={self.fractions}: expected ascending ones, from 0 to 1")
        if self.draws < 1 or self.dropped < 0:
            raise InputError(f"draws={self.draws}, dropped={self.dropped}: expected >= 1, >= 0")


def evaluate(
    model: Classifier,
    image: Tensor,
    reference: Reference,
    plan: Plan | None = None,
    *,
    label: int | None = None,
    masked: Tensor | None = None,
    roads: Roads | None = None,
) -> list[dict]:
    """The rows of one image (1, C, H, W), one for ranking x ablation x shortcuts x fraction.

    ``masked``, what an explanation leaves of the image: also circuits by its energies, and by the
    last ranking on it. ``roads``: also with the shortcuts around the taps closed, by their means;
    the reference must have been made with them. Rates of controls are means over draws.
    """
    plan = plan or Plan()
    reading = channels.read(model, image, label)
    orders = dict(_orders(model, reading, reference, plan))
    if masked is not None:
        seen = channels.read(model, masked, reading.label)
        for name in dict.fromkeys(("energy", plan.rankings[-1])):
            scores = channels.scores(seen, name, reference.means)
            orders[name + EXPLANATION] = (reading.label, [scores])
    rows, labels = [], {target for target, _ in orders.values()}
    around = roads is not None and bool(roads.shortcuts)
    for name, closed in [*((name, None) for name in plan.ablations), *[("mean", roads)] * around]:
        fills = [
            ablation.fill(model, name, reference, draw=draw, roads=closed)
            for draw in (_donors(labels, reference, plan) if name == "resample" else (0,))
        ]
        ends = [_nothing(model, reading, filled, closed) for filled in fills]
        for ranking, (target, draws) in orders.items():
            many = [
                _curve(model, reading, target, scores, filled, nothing, plan, closed)
                for scores in draws
                for filled, nothing in zip(fills, ends, strict=True)
            ]
            about = {"ranking": ranking, "ablation": name, "shortcuts": bool(closed)}
            rows += [about | row for row in _averaged(many, plan.fractions)]
    if plan.dropped:
        _add_minimality(model, reading, orders, reference, plan, rows)
    return rows


def _donors(labels: Collection[int], reference: Reference, plan: Plan) -> list[int]:
    """Reference images for resampling, of none of the labels asked for where there are any."""
    known = reference.labels.tolist()
    apart = [i for i, label in enumerate(known) if label not in labels] or list(range(len(known)))
    return [apart[(plan.seed + draw) % len(apart)] for draw in range(plan.draws)]


def _nothing(model: Classifier, reading: Reading, filled: Fill, closed: Roads | None) -> Tensor:
    """The logits (1, K) where no channel of the taps is left."""
    none = {
        tap: torch.zeros(1, value.shape[1], dtype=torch.bool, device=value.device)
        for tap, value in reading.activations.items()
    }
    return ablation.run(model, reading.image, none, filled, closed)


Order = tuple[int, list[dict[str, Tensor]]]  # the label asked for; a dict tap -> (C,) a draw


def _orders(
    model: Classifier, reading: Reading, reference: Reference, plan: Plan
) -> Iterator[tuple[str, Order]]:
    """Every ranking and control by name."""
    classes = reading.logits.shape[1]
    other = (reading.label + classes // 2) % classes
    second = channels.read(model, reading.image, other)
    for name in plan.rankings:
        yield name, (reading.label, [channels.scores(reading, name, reference.means)])
        if name != "energy":  # that is the same for every class
            scores = channels.scores(second, name, reference.means)
            yield name + OTHER, (other, [scores])
    generator = torch.Generator().manual_seed(plan.seed)
    energies = channels.scores(reading, "energy")
    yield "random", (reading.label, [_shuffled(energies, generator) for _ in range(plan.draws)])
    last = channels.scores(reading, plan.rankings[-1], reference.means)
    alike = [_exchanged(last, energies, generator) for _ in range(plan.draws)]
    yield "random_energy", (reading.label, alike)


def _shuffled(energies: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    return {
        tap: torch.rand(len(energy), generator=generator).to(energy)
        for tap, energy in energies.items()
    }


def _exchanged(
    scores: Mapping[str, Tensor], energies: Mapping[str, Tensor], generator: torch.Generator
) -> dict[str, Tensor]:
    """The scores shuffled among channels of neighbouring energies: at every size as many channels
    of each level of energy as the ranking's own circuit has."""
    found = {}
    for tap, score in scores.items():
        found[tap] = torch.empty_like(score)
        for group in energies[tap].argsort(descending=True, stable=True).split(EXCHANGED):
            found[tap][group] = score[group][torch.randperm(len(group), generator=generator)]
    return found


def _curve(
    model: Classifier,
    reading: Reading,
    target: int,
    scores: Mapping[str, Tensor],
    filled: Fill,
    nothing: Tensor,
    plan: Plan,
    closed: Roads | None,
) -> dict[str, np.ndarray]:
    keep = ablation.first(scores, plan.fractions[1:-1])
    rest = {tap: ~mask for tap, mask in keep.items()}
    ran = (ablation.run(model, reading.image, k, filled, closed) for k in (keep, rest))
    inner, without = ran if len(plan.fractions) > 2 else (nothing[:0], nothing[:0])
    alone = torch.cat([nothing, inner, reading.logits])
    without = torch.cat([reading.logits, without, nothing])
    kept = (alone.argmax(1) == target).double().cpu().numpy()
    lost = (without.argmax(1) != reading.label).double().cpu().numpy()
    if target != reading.label:  # a control's share of a way that may lead nowhere says nothing
        return {"kept": kept, "lost": lost}
    most, least = reading.logits[0, target], nothing[0, target]
    return {
        "kept": kept,
        "recovered": ((alone[:, target] - least) / (most - least)).double().cpu().numpy(),
        "lost": lost,
        "removed": ((most - without[:, target]) / (most - least)).double().cpu().numpy(),
    }


def _averaged(many: Sequence[Mapping[str, np.ndarray]], fractions: Sequence[float]) -> list[dict]:
    means = {name: np.mean([curve[name] for curve in many], axis=0) for name in many[0]}
    return [
        {"fraction": fraction, **{name: float(mean[i]) for name, mean in means.items()}}
        for i, fraction in enumerate(fractions)
    ]


def _add_minimality(
    model: Classifier,
    reading: Reading,
    orders: Mapping[str, Order],
    reference: Reference,
    plan: Plan,
    rows: list[dict],
) -> None:
    """``needed``: of nodes dropped alone from a circuit, the rest at their means, the share that
    the logit falls without; ``fall``: by how much of the way to nothing, in the mean. Of the
    first random circuit too, for what a share means."""
    filled = ablation.fill(model, "mean", reference)
    empty = _nothing(model, reading, filled, None)[0, reading.label]
    for row in rows:
        wanted = row["ablation"] == "mean" and not row["shortcuts"] and 0 < row["fraction"] <= 0.3
        if not wanted or row["ranking"] not in (*plan.rankings, "random"):
            continue
        keep = ablation.first(orders[row["ranking"]][1][0], [row["fraction"]])
        fewer = _dropped(keep, plan)
        masks = {tap: torch.cat([keep[tap], fewer[tap]]) for tap in keep}
        whole, *without = ablation.run(model, reading.image, masks, filled)[:, reading.label]
        falls = whole - torch.stack(without)
        row["needed"] = (falls > 0).double().mean().item()
        row["fall"] = (falls.mean() / (whole - empty)).item()


def _dropped(keep: Mapping[str, Tensor], plan: Plan) -> dict[str, Tensor]:
    """Circuits less one node each, drawn from all nodes of all layers."""
    nodes = [(tap, int(c)) for tap, mask in keep.items() for c in mask[0].nonzero()]
    generator = torch.Generator().manual_seed(plan.seed)
    picked = torch.randperm(len(nodes), generator=generator)[: plan.dropped]
    masks = {tap: mask.repeat(len(picked), 1) for tap, mask in keep.items()}
    for row, index in enumerate(picked.tolist()):
        tap, channel = nodes[index]
        masks[tap][row, channel] = False
    return masks


def areas(rows: Sequence[Mapping]) -> list[dict]:
    """The area under each curve of :func:`evaluate` over the fraction, by trapezoids."""
    curves: dict[tuple, list[Mapping]] = {}
    for row in rows:
        curves.setdefault((row["ranking"], row["ablation"], row["shortcuts"]), []).append(row)
    found = []
    for (ranking, name, closed), points in curves.items():
        x = [point["fraction"] for point in points]
        known = [m for m in MEASURES if m in points[0]]
        under = {m: float(np.trapezoid([p[m] for p in points], x)) for m in known}
        found.append({"ranking": ranking, "ablation": name, "shortcuts": closed, **under})
    return found
