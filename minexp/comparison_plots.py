"""The comparisons' figures: data in, a figure out. No computation of results, no files."""

from collections.abc import Iterable, Mapping, Sequence
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from torch import Tensor

from minexp.pictures import show_image, show_mask
from minexp.style import COLUMN_WIDTH, PAGE_WIDTH, PALETTE, style

MAPS = "cividis"  # of heat maps: ordered by lightness, the same to colour-blind readers
LETTERS = 120  # of a title, that fit on the page's width


def gallery(rows: Sequence[Sequence[Mapping]]) -> Figure:
    """Pictures, maps and masks in rows (Figure 4 of paper 000), as many in each row.

    A cell has ``title`` and one of ``image`` (1, C, H, W) in [0, 1], ``mask`` (1, 1, H, W) of 0
    and 1, or ``map`` (1, 1, H, W), drawn from its own least to its greatest value.
    """
    columns = len(rows[0])
    side = 0.92 * PAGE_WIDTH / columns  # beside the scale
    with style():
        figure, axes = plt.subplots(
            len(rows), columns, figsize=(PAGE_WIDTH, (side + 0.16) * len(rows) + 0.2),
            squeeze=False, layout="constrained",
        )  # fmt: skip
        drawn = None
        for ax, cell in zip(axes.flat, (cell for row in rows for cell in row), strict=True):
            lines = cell["title"].splitlines()
            title = "\n".join(fill(line, LETTERS // columns) for line in lines)
            if "image" in cell:
                show_image(ax, cell["image"], title)
            elif "mask" in cell:
                show_mask(ax, cell["mask"], title)
            else:
                drawn = _show_map(ax, cell["map"], title)
        if drawn is not None:
            share = 0.9 if len(rows) == 1 else 0.4
            bar = figure.colorbar(drawn, ax=axes, shrink=share, aspect=50 * share, pad=0.01)
            bar.set_ticks([0, 1], labels=["least", "most"])
            bar.set_label("relevance")
    return figure


def _show_map(ax: Axes, values: Tensor, title: str):
    show_mask(ax, values, title).images[0].remove()  # its frame and title
    array = values[0, 0].detach().cpu().double().numpy()
    scaled = (array - array.min()) / (np.ptp(array) or 1.0)
    return ax.imshow(scaled, cmap=MAPS, vmin=0, vmax=1)


def forest(
    estimates: Mapping[str, Mapping[str, Mapping[str, float] | None]], reference: str | None = None
) -> Figure:
    """Medians and 95 % intervals, a line a method, a column a quantity.

    ``estimates``: quantity -> method -> {value, low, high}, None where it is not known. The
    ``reference`` method's value is drawn through. Areas and pieces, above 0, are logarithmic.
    """
    names = list(next(iter(estimates.values())))
    with style():
        figure, axes = plt.subplots(
            1, len(estimates), figsize=(PAGE_WIDTH, 0.16 * len(names) + 0.9), squeeze=False,
            sharey=True, layout="constrained",
        )  # fmt: skip
        for ax, (quantity, methods) in zip(axes[0], estimates.items(), strict=True):
            for place, name in enumerate(names):
                _whisker(ax, methods[name], place, name == reference)
            if reference is not None and (own := methods[reference]) is not None:
                ax.axvline(own["value"], color=PALETTE["ours"], linewidth=0.6, linestyle="--")
            known = [one["low"] for one in methods.values() if one is not None]
            if quantity.startswith(("area", "pieces")) and min(known, default=0) > 0:
                ax.set_xscale("log")
                _plain(ax.xaxis)
            else:
                ax.locator_params(axis="x", nbins=5)
            ax.set_xlabel(quantity)
        _letters(axes[0])
        axes[0, 0].set_yticks(range(len(names)), names)
        axes[0, 0].set_ylim(len(names) - 0.5, -0.5)
    return figure


def _whisker(ax: Axes, estimate: Mapping[str, float] | None, place: int, ours: bool) -> None:
    if estimate is None:
        return
    value, low, high = (estimate[name] for name in ("value", "low", "high"))
    ax.errorbar(
        value, place, xerr=np.clip([[value - low], [high - value]], 0, None), fmt="o",
        markersize=3, linewidth=0.8, capsize=2, color=PALETTE["ours" if ours else "image"],
    )  # fmt: skip


def grids(
    tables: Mapping[str, np.ndarray], rows: Sequence[object], columns: Sequence[object],
    *, row_label: str, column_label: str,
) -> Figure:  # fmt: skip
    """Heat maps of quantities over two settings, each with its scale and its numbers.

    ``tables``: quantity -> (rows, columns), nan where it is not known. Three to a line.
    """
    across = min(len(tables), 3)
    down = -(-len(tables) // across)
    with style():
        figure, axes = plt.subplots(
            down, across, figsize=(PAGE_WIDTH, (0.8 * PAGE_WIDTH / across + 0.3) * down),
            squeeze=False, layout="constrained",
        )  # fmt: skip
        panels = axes.flat[: len(tables)]
        for ax in axes.flat[len(tables) :]:
            ax.remove()
        for ax, (quantity, table) in zip(panels, tables.items(), strict=True):
            drawn = ax.imshow(table, cmap=MAPS, aspect="equal")
            low, high = drawn.get_clim()
            for (i, j), value in np.ndenumerate(table):
                dark = value < (low + high) / 2
                text = "–" if np.isnan(value) else f"{value:.3g}"
                ax.text(j, i, text, ha="center", va="center", color="w" if dark else "k", size=6)
            ax.set_xticks(range(len(columns)), columns)
            ax.set_yticks(range(len(rows)), rows)
            ax.set(title=quantity, xlabel=column_label, ylabel=row_label)
            figure.colorbar(drawn, ax=ax, shrink=0.8, pad=0.03)
        _letters(panels)
    return figure


def groups(values: Mapping[str, Sequence[float]], label: str) -> Figure:
    """Distributions side by side: every value, the middle half and the median; logarithmic."""
    colours = (PALETTE["ours"], PALETTE["gradient"], PALETTE["baseline"])
    generator = np.random.default_rng(0)
    with style():
        figure, ax = plt.subplots(figsize=(COLUMN_WIDTH, 2.4), layout="constrained")
        ax.boxplot(
            list(values.values()), widths=0.5, showfliers=False,
            medianprops={"color": PALETTE["image"], "linewidth": 1.6},
        )  # fmt: skip
        for place, (one, colour) in enumerate(zip(values.values(), colours, strict=False), 1):
            beside = place + generator.uniform(-0.18, 0.18, len(one))
            ax.plot(beside, one, ".", markersize=3, color=colour, alpha=0.6, zorder=0)
        names = [f"{name}\n{len(one)} images" for name, one in values.items()]
        ax.set_xticks(range(1, len(values) + 1), names)
        ax.set(yscale="log", ylabel=label)
        _plain(ax.yaxis)
    return figure


def cascade(methods: Mapping[str, Sequence[Mapping]]) -> Figure:
    """How alike a map stays to the intact network's while layers are shuffled, the last first.

    ``methods``: method -> the stages of :func:`minexp.sanity_run.run`'s summary. A column a
    similarity, means with 95 % intervals; dotted, the Dice of two masks that nothing links. The
    last column is the masks' area: where it is the whole picture, being alike says nothing.
    """
    shown = {"spearman": "Spearman", "ssim": "SSIM", "dice": "Dice", "area": "area of the mask"}
    with style():
        figure, axes = plt.subplots(
            1, len(shown), figsize=(PAGE_WIDTH, 2.1), sharex=True, sharey=True, layout="constrained"
        )
        for ax, (name, title) in zip(axes, shown.items(), strict=True):
            for place, (method, stages) in enumerate(methods.items()):
                colour = PALETTE["ours" if method == "ours" else "baseline"]
                marker = {"color": colour, "marker": "os^Dv"[place % 5], "markersize": 3}
                _curve(ax, stages, name, label=method, **marker)
                if name == "dice":
                    _curve(ax, stages, "chance", color=colour, linestyle=":", linewidth=0.8)
            ax.set(title=title, xlabel="layers shuffled")
        _letters(axes)
        axes[0].set_ylabel("similarity; fraction of pixels")
        axes[0].legend()
    return figure


def _curve(ax: Axes, stages: Sequence[Mapping], name: str, **look) -> None:
    known = [(stage["layers"], stage[name]) for stage in stages if stage[name] is not None]
    if not known:
        return
    layers = [count for count, _ in known]
    value, low, high = ([one[key] for _, one in known] for key in ("value", "low", "high"))
    ax.plot(layers, value, **look)
    if name != "chance":
        ax.fill_between(layers, low, high, color=look["color"], alpha=0.2, linewidth=0)


def _letters(axes: Iterable[Axes]) -> None:
    """Name a figure's panels a, b, c, ..., for a text to refer to."""
    for letter, ax in zip("abcdefgh", axes, strict=False):
        ax.set_title(letter, loc="left", weight="bold")


def _plain(axis: Axis) -> None:
    """Of a logarithmic axis: 0.2, 0.5, 1, not powers of ten, of which few are in its range."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
