"""Data and axes in, axes out. No computation of results, no files."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from minexp.style import PAGE_WIDTH, PALETTE, style


def show_image(ax: Axes, pixels: Tensor, title: str = "") -> Axes:
    """A picture (1, C, H, W) with values in [0, 1]; one channel is drawn in grey."""
    array = pixels[0].permute(1, 2, 0).cpu().numpy()  # (H, W, C)
    if array.shape[-1] == 1:
        return _bare(ax.imshow(array[..., 0], cmap="gray", vmin=0, vmax=1).axes, title)
    return _bare(ax.imshow(array).axes, title)


def show_mask(ax: Axes, mask: Tensor, title: str = "") -> Axes:
    """A binary mask (1, 1, H, W): on is white, as in the paper's Figure 2."""
    return _bare(ax.imshow(mask[0, 0].cpu().numpy(), cmap="gray", vmin=0, vmax=1).axes, title)


def _bare(ax: Axes, title: str) -> Axes:
    ax.set_title(title)
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(True)
        spine.set_linewidth(0.4)
    return ax


def panel(rows: Sequence[Mapping]) -> Figure:
    """Image, mask and explanation side by side, a row an explanation (top row of Figure 2).

    Each row has ``pixels`` and ``masked`` (1, C, H, W) in [0, 1], ``mask`` (1, 1, H, W), and the
    result's ``label``, ``confidence``, ``explanation_confidence``, ``area``, ``label_kept`` and
    ``feasible``.
    """
    with style():
        height = PAGE_WIDTH * 0.36 * len(rows)
        figure, axes = plt.subplots(
            len(rows), 3, figsize=(PAGE_WIDTH, height), squeeze=False, layout="constrained"
        )
        for (left, middle, right), row in zip(axes, rows, strict=True):
            show_image(left, row["pixels"], f"{row['label']}: {row['confidence']:.2f}")
            show_mask(middle, row["mask"], f"mask: {100 * row['area']:.1f} % of pixels")
            kept = "" if row["label_kept"] else ", label lost"
            kept += "" if row["feasible"] else ", not feasible"
            show_image(
                right, row["masked"], f"explanation: {row['explanation_confidence']:.2f}{kept}"
            )
    return figure


def digits(rows: Sequence[Mapping]) -> Figure:
    """Digits above, their explanations below (Figure 8); fields as in :func:`panel`."""
    with style():
        figure, axes = plt.subplots(
            2, len(rows), figsize=(PAGE_WIDTH, 1.9), squeeze=False, layout="constrained"
        )
        for top, bottom, row in zip(*axes, rows, strict=True):
            show_image(top, row["pixels"], f"{row['label']}: {row['confidence']:.2f}")
            show_image(
                bottom,
                row["masked"],
                f"{row['explanation_confidence']:.2f}\n{100 * row['area']:.1f} %",
            )
    return figure


def history(steps: Sequence[Mapping[str, float]], confidence: float) -> Figure:
    """How one optimisation went: area, confidence and noise confidence at every step."""
    step = np.array([record["step"] for record in steps])
    with style():
        figure, ax = plt.subplots(figsize=(PAGE_WIDTH, 2.2), layout="constrained")
        for name, colour, label in (
            ("area", PALETTE["baseline"], "area of the mask"),
            ("confidence", PALETTE["ours"], "confidence, masked image"),
            ("noise_confidence", PALETTE["noise"], "confidence, on noise"),
        ):
            ax.plot(step, [record[name] for record in steps], color=colour, label=label)
        ax.axhline(confidence, color=PALETTE["image"], linestyle="--", label="image's own")
        ax.set(xlabel="step", ylabel="fraction", ylim=(0, 1.02), xlim=(0, max(1, step[-1])))
        ax.legend(ncols=4, loc="upper center", bbox_to_anchor=(0.5, 1.2))
    return figure
