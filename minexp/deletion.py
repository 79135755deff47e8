"""Deletion: cut a feasible mask down until no single cell of a grid can go.

The deletion-based reduction of Marques-Silva 2010 and of delta debugging, Zeller and Hildebrandt
2002, which prove 1-minimality and no more: a smaller mask may exist where several cells go at once.
"""

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from minexp.masking import components
from minexp.minimality import CHUNK, active_cells, cell_side, without_cells
from minexp.sufficiency import Judge

TRIAL_DRAWS, MORE = 8, 2  # of the hardest backgrounds, which a trial meets; more once they misled
LEAD, SHARE = 1.0, 0.6  # kept on them while much can go: logits, at most a share of now's
PATIENCE = 4  # refusals, one part at a time, that end a round while much can go
CHECK = 0.15  # of the area gone: all backgrounds are asked, before more is built on it


def minimal_mask(judge: Judge, mask: Tensor, cell: int | None = None) -> Tensor:
    """Delete from a feasible mask (1, 1, H, W) whatever can go, until nothing can.

    Whole components, the smallest first, and blocks of cells and cells, the least needed first but
    from the outside in, so that what remains is few pieces; then components and single cells until
    none can go. The result is feasible and 1-minimal: in a last round no component and no cell
    could go. The last cell stays, needed or not.
    """
    cell, draws = cell_side(judge.model, cell), TRIAL_DRAWS
    for side in (2 * cell, cell):
        mask, _, draws = _without(judge, mask, _components(mask), draws)
        parts = _outside_in(mask, _by_need(judge, mask, _cells(mask, side)))
        mask, _, draws = _without(judge, mask, parts, draws, spare=True)
    # what was needed rarely becomes free: cells that some background refused are asked last
    mask, draws = _exhausted(judge, mask, parts, draws)
    return _exhausted(judge, mask, _cells(mask, cell), draws)[0]


def _exhausted(judge: Judge, mask: Tensor, parts: list[Tensor], draws: int) -> tuple[Tensor, int]:
    """A feasible mask less components and parts until none of either can go; the draws."""
    while True:
        parts = [part for part in parts if (mask * part).any()]
        mask, fewer, draws = _without(judge, mask, _components(mask), draws)
        mask, smaller, draws = _without(judge, mask, parts, draws)
        if not fewer and not smaller:
            return mask, draws


def _without(
    judge: Judge, mask: Tensor, parts: list[Tensor], draws: int, *, spare: bool = False
) -> tuple[Tensor, bool, int]:
    """A feasible mask less some of the parts; whether a trial let any go; the draws to go on with.

    Trials meet the hardest ``draws`` backgrounds and, with ``spare``, keep some of their lead on
    them, for the rounds to come: a mask that is cut to the quick on a few backgrounds early fails
    on others and cannot be cut where it would cost less. Without ``spare`` every part is tried.
    """
    lead = min(LEAD, SHARE * float(judge.hardest(mask))) if spare else 0.0
    trail, removed, refusals, size = [mask], False, 0, len(parts)
    # ever smaller groups of the first parts, then one after the other
    while parts and not (spare and refusals >= PATIENCE):
        trial = trail[-1] * ~torch.stack(parts[:size]).any(0)
        if _holds(judge, trial, draws, lead):
            trail.append(trial)
            parts, removed, refusals, size = parts[size:], True, 0, 2 * size
        elif size == 1:
            parts, refusals = parts[1:], refusals + 1
        else:
            size //= 2
        size = max(1, min(size, len(parts)))
        if trail[-1].sum() < (1 - CHECK) * trail[0].sum():
            trail, draws = _settled(judge, trail, draws)
    trail, draws = _settled(judge, trail, draws)
    return trail[-1], removed, draws


def _holds(judge: Judge, trial: Tensor, draws: int, lead: float) -> bool:
    """Whether a trial keeps something, and the criterion on the draws with a lead beyond its own.

    One background first: most refusals are its.
    """
    asked, judge.room = judge.room, judge.room + lead
    try:
        return bool(trial.any()) and judge.feasible(trial, 1) and judge.on_noise(trial, draws)
    finally:
        judge.room = asked


def _settled(judge: Judge, trail: list[Tensor], draws: int) -> tuple[list[Tensor], int]:
    """The trail's last mask that all backgrounds let pass, as a new trail, and the draws."""
    if draws >= judge.config.noise_draws:  # every trial met them all
        return trail[-1:], draws
    last = _last_feasible(judge, trail)
    return [last], draws if last is trail[-1] else draws + MORE


def _last_feasible(judge: Judge, trail: list[Tensor]) -> Tensor:
    """The last mask of a trail that every background lets pass, by bisection; the first does."""
    if len(trail) == 1 or judge.on_noise(trail[-1]):
        return trail[-1]
    good, bad = 0, len(trail) - 1
    while bad - good > 1:
        middle = (good + bad) // 2
        if judge.on_noise(trail[middle]):
            good = middle
        else:
            bad = middle
    return trail[good]


def _by_need(judge: Judge, mask: Tensor, parts: list[Tensor]) -> list[Tensor]:
    """The parts that two hard backgrounds and the fill let go, the least needed first.

    The need of a part is what the mask loses without it, of the confidence it has to spare or of
    its lead on the hard backgrounds, whichever is the larger share.
    """
    if len(parts) < 2:  # the last part stays: an empty mask explains nothing
        return []
    spare = float(judge.on_fill(mask)[1]) - judge.lowest + 1e-6
    room = float(judge.hardest(mask))
    candidates = []
    for start in range(0, len(parts), CHUNK):
        some = parts[start : start + CHUNK]
        trials = mask * ~torch.stack(some)
        _, confidence, holds = judge.on_fill(trials)
        kept = holds.nonzero().flatten().tolist()
        leads: Tensor | list = judge.hardest(trials[kept]) if kept else []
        for i, margin in zip(kept, leads, strict=True):
            if margin > 0:
                left = (float(confidence[i]) - judge.lowest) / spare
                candidates.append((min(left, float(margin) / room), some[i]))
    return [part for _, part in sorted(candidates, key=lambda pair: -pair[0])]


def _outside_in(mask: Tensor, parts: list[Tensor]) -> list[Tensor]:
    """The parts in an order in which few of them, taken away in turn, break the mask or pierce it.

    The order given, with those put off, sweep by sweep, that leave more regions, of the mask or of
    the rest: blocks that are not simple, as digital topology says of pixels (Kong and Rosenfeld
    1989).
    """
    ordered, waiting, count = [], list(parts), _regions(mask)
    while waiting:
        put_off = []
        for part in waiting:
            fewer = mask * ~part
            if (regions := _regions(fewer)) > count:
                put_off.append(part)
            else:
                mask, count = fewer, regions
                ordered.append(part)
        if len(put_off) == len(waiting):
            return ordered + put_off
        waiting = put_off
    return ordered


def _regions(mask: Tensor) -> int:
    """The 4-connected regions of a mask (1, 1, H, W) and the 8-connected ones of all else."""
    rest = mask[0, 0].cpu().numpy() == 0
    return components(mask) + ndimage.label(rest, np.ones((3, 3)))[1]


def _components(mask: Tensor) -> list[Tensor]:
    """All 4-connected regions (1, H, W) but the largest, the smallest first."""
    labelled, count = ndimage.label(mask[0, 0].cpu().numpy())
    order = ndimage.sum_labels(labelled > 0, labelled, range(1, count + 1)).argsort()
    labelled = torch.from_numpy(labelled).to(mask.device)
    return [(labelled == i + 1)[None] for i in order[:-1]]


def _cells(mask: Tensor, cell: int) -> list[Tensor]:
    everything = torch.ones_like(mask)
    return [
        (without_cells(everything, [place], cell) == 0)[0] for place in active_cells(mask, cell)
    ]
