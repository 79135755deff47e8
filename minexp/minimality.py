"""Is every piece of a mask needed? Its cells, and the certificate of what it is without each.

Any mask will do, by whatever method it was found. It is cut by a grid of square cells; a mask is
1-minimal on that grid when no single cell can be switched off with the criterion still holding.
:mod:`minexp.deletion` makes it so.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minexp.classifier import Classifier
from minexp.errors import InputError
from minexp.sufficiency import Judge

CELLS_A_SIDE = 28  # of the default grid: 8 x 8 pixels of a 224 x 224 image, single ones of a digit
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
    the criterion (a network that calls a black image a "1"); deletion keeps it.
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
