"""Deletion: cut a feasible mask down until no single cell of a grid can go.

The deletion-based reduction of Marques-Silva 2010 and of delta debugging, Zeller and Hildebrandt
2002, which prove 1-minimality and no more: a smaller mask may exist where several cells go at once.
"""

import torch
from scipy import ndimage
from torch import Tensor

from minexp.minimality import CHUNK, active_cells, cell_side, without_cells
from minexp.sufficiency import Judge

TRIAL_DRAWS = 8  # of the hardest backgrounds, which a trial meets
PATIENCE = 8  # refusals in a row that end a round which removed something


def minimal_mask(judge: Judge, mask: Tensor, cell: int | None = None) -> Tensor:
    """Delete from a feasible mask (1, 1, H, W) whatever can go, until nothing can.

    First large blocks of cells, then, in turn, whole components, so that what remains is few
    pieces, and single cells; the least needed first. Trials meet the hardest backgrounds only, a
    round's result all of them. The result is feasible and 1-minimal: in a last round no component
    and no cell could go. The last cell stays, needed or not.
    """
    cell, draws = cell_side(judge.model, cell), TRIAL_DRAWS
    for side in (4 * cell, 2 * cell):
        mask = _last_feasible(judge, _sweep(judge, mask, _cells(mask, side), draws))
    while True:
        pieces = _sweep(judge, mask, _components(mask), draws)
        fewer = _last_feasible(judge, pieces)
        cells = _sweep(judge, fewer, _cells(fewer, cell), draws)
        mask = _last_feasible(judge, cells)
        if len(pieces) == len(cells) == 1:
            return mask
        if fewer is not pieces[-1] or mask is not cells[-1]:
            draws *= 2  # too few: what they let pass another background refused


def _sweep(judge: Judge, mask: Tensor, parts: list[Tensor], draws: int) -> list[Tensor]:
    """Ever smaller masks: ``mask``, then one for each time that some of the parts could go.

    A round that removes nothing has tried every part.
    """
    trail = [mask]
    if len(parts) < 2:  # the last part stays: an empty mask explains nothing
        return trail
    left, refusals = _by_need(judge, mask, parts), 0
    size = len(left)
    # ever smaller groups of the least needed, then one after the other
    while left and (len(trail) == 1 or refusals < PATIENCE):
        trial = trail[-1] * ~torch.stack(left[:size]).any(0)
        if trial.any() and judge.feasible(trial, draws):
            trail.append(trial)
            left, refusals = left[size:], 0
        elif size == 1:
            left, refusals = left[1:], refusals + 1
        size = max(1, min(size // 2, len(left)))
    return trail


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
    judge.on_noise(mask)  # the hardest backgrounds of this very mask come first now
    spare = float(judge.on_fill(mask)[1]) - judge.lowest + 1e-6
    room = float(judge.hardest(mask))
    candidates = []
    for start in range(0, len(parts), CHUNK):
        some = parts[start : start + CHUNK]
        trials = mask * ~torch.stack(some)
        _, confidence, holds = judge.on_fill(trials)
        kept = holds.nonzero().flatten().tolist()
        leads = judge.hardest(trials[kept]) if kept else []
        for i, margin in zip(kept, leads, strict=True):
            if margin > 0:
                left = (float(confidence[i]) - judge.lowest) / spare
                candidates.append((min(left, float(margin) / room), some[i]))
    return [part for _, part in sorted(candidates, key=lambda pair: -pair[0])]


def _components(mask: Tensor) -> list[Tensor]:
    labelled, count = ndimage.label(mask[0, 0].cpu().numpy())
    labelled = torch.from_numpy(labelled).to(mask.device)
    return [(labelled == i)[None] for i in range(1, count + 1)]


def _cells(mask: Tensor, cell: int) -> list[Tensor]:
    everything = torch.ones_like(mask)
    return [
        (without_cells(everything, [place], cell) == 0)[0] for place in active_cells(mask, cell)
    ]
