"""What an evaluation of circuits shows: data in, a figure out."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from minexp.style import COLUMN_WIDTH, PAGE_WIDTH, PALETTE, style

LOOKS = {  # ranking -> how its curve is drawn; the paper's is ours
    "energy": {"color": PALETTE["ours"]},
    "departure": {"color": PALETTE["noise"]},
    "integrated": {"color": PALETTE["gradient"]},
    "integrated_other": {"color": PALETTE["gradient"], "linestyle": ":"},
    "random": {"color": PALETTE["baseline"]},
    "random_energy": {"color": PALETTE["baseline"], "linestyle": "--"},
}
MEASURES = {"kept": "label kept by the circuit alone", "lost": "label lost without the circuit"}


def curves(tables: Mapping[str, Mapping], ablation: str = "mean") -> Figure:
    """Faithfulness and completeness over the share of channels, means with 95 % intervals.

    ``tables``: a network's name -> :func:`minexp.circuit_table.evaluate_many`'s summary; a row
    each. The other channels, or the circuit's, are replaced as ``ablation`` says.
    """
    with style():
        figure, axes = plt.subplots(
            len(tables), 2, figsize=(PAGE_WIDTH, 1.9 * len(tables) + 0.3), squeeze=False,
            sharex=True, sharey=True, layout="constrained",
        )  # fmt: skip
        for row, (network, table) in zip(axes, tables.items(), strict=True):
            for ax, (measure, title) in zip(row, MEASURES.items(), strict=True):
                for ranking, look in LOOKS.items():
                    _curve(ax, points(table, ranking, ablation), measure, label=ranking, **look)
                ax.set_title(f"{network}: {title}")
        for ax in axes[-1]:
            ax.set_xlabel("channels of each layer in the circuit")
        for row in axes:
            row[0].set_ylabel("share of images")
        lines, names = axes[0, 0].get_legend_handles_labels()
        figure.legend(lines, names, loc="outside lower center", ncols=len(names))
    return figure


def points(table: Mapping, ranking: str, ablation: str = "mean") -> list[Mapping]:
    """A summary's curve of one ranking, shortcuts left open."""
    return [
        row for row in table["curves"]
        if (row["ranking"], row["ablation"], row["shortcuts"]) == (ranking, ablation, False)
    ]  # fmt: skip


def _curve(ax: Axes, rows: Sequence[Mapping], measure: str, **look) -> None:
    at = [row["fraction"] for row in rows]
    ax.plot(at, [row[measure]["value"] for row in rows], marker=".", markersize=3, **look)
    low, high = ([row[measure][end] for row in rows] for end in ("low", "high"))
    ax.fill_between(at, low, high, color=look["color"], alpha=0.12, linewidth=0)


def heat_map(similarity: np.ndarray, groups: Sequence[str]) -> Figure:
    """Jaccard's index of every two circuits (N, N), those of a group side by side.

    ``groups``: the group of each, (N,); lines part them.
    """
    starts = [k for k, name in enumerate(groups) if k == 0 or groups[k - 1] != name]
    with style():
        figure, ax = plt.subplots(figsize=(COLUMN_WIDTH, 2.9), layout="constrained")
        sns.heatmap(
            similarity, ax=ax, vmin=0, vmax=1, cmap="cividis", square=True,
            xticklabels=False, yticklabels=False, cbar_kws={"label": "nodes shared (Jaccard)"},
        )  # fmt: skip
        for start in starts[1:]:
            ax.axhline(start, color="white", linewidth=1)
            ax.axvline(start, color="white", linewidth=1)
        middles = [(a + b) / 2 for a, b in zip(starts, [*starts[1:], len(groups)], strict=True)]
        ax.set_xticks(middles, [groups[k] for k in starts])
        ax.set_yticks(middles, [groups[k] for k in starts], rotation=0)
    return figure
