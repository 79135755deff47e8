"""Digits and what must stay fixed in them: data in, a figure out."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from minexp.abductive_table import INK
from minexp.style import COLUMN_WIDTH, PAGE_WIDTH, PALETTE, style

KINDS = {"ink": "fixed, ink", "background": "fixed, background", "unknown": "unknown",
         "ours": "our mask"}  # fmt: skip


def overlay(columns: Mapping[str, Sequence[tuple[np.ndarray, Mapping]]]) -> Figure:
    """Fixed pixels on their digits (Figure 5 of paper 000), a digit a column, a case a row.

    ``columns``: the case's name -> (digit (28, 28) in [0, 1], pixels) for each digit, pixels a
    dict with lists of places, row by row, under ``fixed``, ``unknown`` or ``ours``.
    """
    count = len(next(iter(columns.values())))
    with style():
        side = PAGE_WIDTH / (count + 0.8)
        figure, axes = plt.subplots(
            len(columns), count, figsize=(PAGE_WIDTH, side * len(columns) + 0.3), squeeze=False,
            layout="constrained",
        )  # fmt: skip
        for row, (name, cells) in zip(axes, columns.items(), strict=True):
            for ax, (digit, pixels) in zip(row, cells, strict=True):
                ax.imshow(coloured(digit, pixels))
                ax.set(xticks=[], yticks=[])
                ax.set_xlabel(", ".join(str(len(found)) for found in pixels.values()), labelpad=1)
            row[0].set_ylabel(name)
        handles = [Patch(color=PALETTE[kind], label=text) for kind, text in KINDS.items()]
        figure.legend(handles=handles, loc="outside upper center", ncols=len(KINDS))
    return figure


def coloured(digit: np.ndarray, pixels: Mapping[str, Sequence[int]]) -> np.ndarray:
    """The digit (28, 28) in [0, 1] as (28, 28, 3), pale, with its marked pixels in their colours.

    Ink is lighter than background on the page as in the data; a marked pixel keeps no shade.
    """
    image = np.repeat(0.25 + 0.6 * digit.reshape(-1, 1), 3, axis=1)
    for name, places in pixels.items():
        for place in places:
            kind = name
            if name == "fixed":
                kind = "ink" if digit.flat[place] >= INK else "background"
            image[place] = to_rgb(PALETTE[kind])
    return image.reshape(*digit.shape, 3)


def sizes(values: Mapping[str, Sequence[int]], mask: Sequence[int] = ()) -> Figure:
    """How many digits have a proven set of so many pixels or fewer, a curve a case; dashed, our
    masks."""
    with style():
        figure, ax = plt.subplots(figsize=(COLUMN_WIDTH, 2.3), layout="constrained")
        shades = plt.get_cmap("cividis")(np.linspace(0, 0.85, len(values)))
        for (name, counts), shade in zip(values.items(), shades, strict=True):
            ax.ecdf(counts, label=name, color=shade)
        if len(mask):
            ax.ecdf(mask, label="our masks", color=PALETTE["ours"], linestyle="--")
        ax.set(xlabel="pixels", ylabel="share of digits", xlim=(-0.02 * 784, 784))
        ax.legend()
    return figure
