"""One look for every figure; the same colour means the same thing in each.

The palette is Okabe and Ito's, told apart by colour-blind readers too.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib.pyplot as plt

PALETTE = {
    "ours": "#0072B2",  # anything this paper's method made
    "image": "#000000",  # the unmasked image; forward edges of a circuit
    "gradient": "#D55E00",  # gradients; gradient edges of a circuit
    "noise": "#E69F00",  # Gaussian backgrounds
    "baseline": "#999999",  # other methods
    "ink": "#CC3311",  # of a formal explanation: fixed pixels of the digit (Figure 5's red)
    "background": "#56B4E9",  # and fixed pixels beside it (its blue)
    "unknown": "#F0E442",  # undecided ones
}
COLUMN_WIDTH = 3.4  # inches, one column of a two-column page
PAGE_WIDTH = 7.0  # inches, both columns

_RC: dict = {
    "figure.dpi": 110,
    "savefig.dpi": 200,
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "minexp",  # the same figure gives the same file
    "image.interpolation": "nearest",
}


@contextmanager
def style() -> Iterator[None]:
    """Draw in the paper's look inside the block."""
    with plt.rc_context(_RC):
        yield
