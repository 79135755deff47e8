"""Data and axes in, axes out. No computation of results, no files."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from minexp.pictures import show_image, show_mask
from minexp.style import COLUMN_WIDTH, PAGE_WIDTH, PALETTE, style


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


def boxes(rows: Sequence[Mapping]) -> Figure:
    """A benchmark's masks: area and pieces, a box a method, a column a criterion.

    ``rows`` as :func:`minexp.summary.read` gives them. Boxes hold the middle half with the median,
    whiskers the rest within 1.5 of its width; the scales are logarithmic.
    """
    criteria = [name for name in ("confidence", "label") if any(_of(rows, name))]
    with style():
        figure, axes = plt.subplots(
            2, len(criteria), figsize=(PAGE_WIDTH, 4.6), squeeze=False, sharey="row",
            layout="constrained",
        )  # fmt: skip
        for column, criterion in zip(axes.T, criteria, strict=True):
            found = _of(rows, criterion)
            methods = sorted(
                {row["method"] for row in found},
                key=lambda name: (np.median(_values(found, name)), name),
            )
            for ax, name in zip(column, ("area", "components"), strict=True):
                drawn = ax.boxplot(
                    [_values(found, method, name) for method in methods], patch_artist=True,
                    widths=0.6, flierprops={"marker": ".", "markersize": 2},
                    medianprops={"color": PALETTE["image"]},
                )  # fmt: skip
                for box, method in zip(drawn["boxes"], methods, strict=True):
                    box.set_facecolor(PALETTE["ours" if method.startswith("ours") else "baseline"])
                ax.set_yscale("log")
                ax.set_xticks(range(1, len(methods) + 1), [m.replace("_", "\n") for m in methods])
            column[0].set_title(f"criterion: {criterion}")
        axes[0, 0].set_ylabel("area, fraction of pixels")
        axes[1, 0].set_ylabel("pieces")
    return figure


def _of(rows: Sequence[Mapping], criterion: str) -> list[Mapping]:
    return [row for row in rows if row["criterion"] == criterion]


def _values(rows: Sequence[Mapping], method: str, name: str = "area") -> list[float]:
    return [row[name] for row in rows if row["method"] == method]


def survival(panels: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Figure:
    """Label kept on every fill with its 95 % Wilson interval; a marker a mask.

    ``panels``: a mask's name -> its :func:`minexp.robustness.robustness_panel`.
    """
    with style():
        figure, ax = plt.subplots(figsize=(PAGE_WIDTH, 2.4), layout="constrained")
        for i, (name, panel) in enumerate(panels.items()):
            kept, low, high = (
                np.array([fill[key] for fill in panel.values()]) for key in ("kept", "low", "high")
            )
            ax.errorbar(
                np.arange(len(panel)) + 0.12 * (i - (len(panels) - 1) / 2), kept,
                yerr=np.clip([kept - low, high - kept], 0, None), fmt="os^Dv"[i % 5], markersize=3,
                linewidth=0.8, capsize=2, label=name,
                color=PALETTE["ours" if name.startswith("explanation") else "baseline"],
            )  # fmt: skip
            ax.set_xticks(range(len(panel)), list(panel))
        ax.set(ylabel="label kept", ylim=(-0.03, 1.05))
        ax.legend(ncols=4, loc="upper center", bbox_to_anchor=(0.5, 1.22))
    return figure


def curve(areas: np.ndarray, confidences: np.ndarray, own: float, auc: float) -> Figure:
    """A confidence-area curve: steps (P,), the image's own confidence, the area under the steps."""
    with style():
        figure, ax = plt.subplots(figsize=(COLUMN_WIDTH, 2.2), layout="constrained")
        ax.step(
            np.append(areas, 1.0), np.append(confidences, confidences[-1]), where="post",
            color=PALETTE["ours"], label=f"masks of one run, area under it {auc:.2f}",
        )  # fmt: skip
        ax.axhline(own, color=PALETTE["image"], linestyle="--", label="image's own")
        ax.set(xscale="log", xlabel="area, fraction of pixels", ylabel="confidence", ylim=(0, 1.02))
        figure.legend(loc="outside upper center", ncols=2)
    return figure
