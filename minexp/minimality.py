"""Is every piece of a mask needed? Deletion to a 1-minimal mask, and the certificate of it.

Any mask will do, by whatever method it was found. It is cut by a grid of square cells; a mask is
1-minimal on that grid when no single cell can be switched off with the criterion still holding
(the deletion-based reduction of Marques-Silva 2010 and of delta debugging, Zeller and Hildebrandt
2002, which prove the same and no more: a smaller mask may exist where several cells go at once).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy import ndimage
from torch import Tensor

from minexp.errors import InputError
from minexp.models import Classifier
from minexp.sufficiency import Judge

CELLS_A_SIDE = 28  # of the default grid: 8 x 8 pixels of a 224 x 224 image, single ones of a digit
TRIAL_DRAWS = 8  # of the hardest backgrounds, which a trial meets
PATIENCE = 8  # refusals in a row that end a round which removed something
CHUNK = 64  # masks at a time in memory


@dataclass(frozen=True)
class Cell:
    """An active cell and what is left without it: top-1 label, the explained label's confidence.

    ``removable``: the criterion still holds without it, on the fill and on every background.
    """

    row: int
    column: int
    label_index: int
    confidence: float
    removable: bool


@dataclass(frozen=True)
class Certificate:
    """What happens to a mask when any one cell goes. ``cell`` is the cell's side in pixels."""

    cell: int
    cells: tuple[Cell, ...]
    forward_passes: int

    @property
    def active(self) -> int:
        """Cells with a pixel on."""
        return len(self.cells)

    @property
    def removable(self) -> int:
        """Cells that could go alone; 0 means 1-minimal."""
        return sum(cell.removable for cell in self.cells)


def cell_side(model: Classifier, cell: int | None = None) -> int:
    """The side of a cell in pixels; None: a 28th of the image's shorter side, at least 1.

    Raises InputError where it exceeds the image's.
    """
    side = min(model.size)
    if cell is None:
        return max(1, side // CELLS_A_SIDE)
    if not 1 <= cell <= side:
        raise InputError(f"cell={cell}: expected a side from 1 to the image's {side} pixels")
    return cell


def certify(judge: Judge, mask: Tensor, cell: int | None = None) -> Certificate:
    """Switch off each active cell of a binary mask (1, 1, H, W) alone and judge what is left.

    The last cell is judged like any other: one cell, removable, says that the fill alone meets
    the criterion (a network that calls a black image a "1"); :func:`minimal_mask` keeps it.
    """
    cell = cell_side(judge.model, cell)
    before = judge.passes
    places = active_cells(mask, cell)
    cells = []
    for start in range(0, len(places), CHUNK):
        some = places[start : start + CHUNK]
        trials = torch.cat([without_cells(mask, [place], cell) for place in some])
        top, confidence, holds = judge.on_fill(trials)
        for i, (row, column) in enumerate(some):
            removable = bool(holds[i]) and judge.on_noise(trials[i : i + 1])
            cells.append(Cell(row, column, int(top[i]), float(confidence[i]), removable))
    return Certificate(cell, tuple(cells), judge.passes - before)


def active_cells(mask: Tensor, cell: int) -> list[tuple[int, int]]:
    """(row, column) of every cell with a pixel on, in reading order; those at the far edges may be
    cut off by the image's."""
    blocks = torch.nn.functional.max_pool2d(mask.float(), cell, ceil_mode=True)[0, 0]
    return [tuple(place) for place in blocks.nonzero().tolist()]


def without_cells(mask: Tensor, places: Sequence[tuple[int, int]], cell: int) -> Tensor:
    """A mask (1, 1, H, W) with the cells at the places (row, column) switched off."""
    left = mask.clone()
    for row, column in places:
        left[..., row * cell : (row + 1) * cell, column * cell : (column + 1) * cell] = 0
    return left


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
