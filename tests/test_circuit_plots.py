"""The figures of an evaluation of circuits hold what they were given."""

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_hex

from minexp import circuit_plots as plots
from minexp.style import COLUMN_WIDTH, PAGE_WIDTH, PALETTE

matplotlib.use("agg")


@pytest.fixture(autouse=True)
def _close():
    yield
    plots.plt.close("all")


def point(ranking: str, fraction: float, kept: float, **other) -> dict:
    row = {"ranking": ranking, "ablation": "mean", "shortcuts": False, "fraction": fraction}
    bounds = [{"value": v, "low": v - 0.1, "high": v + 0.1} for v in (kept, 1 - kept)]
    return row | dict(zip(("kept", "lost"), bounds, strict=True)) | other


def test_curves_of_every_network():
    rankings = list(plots.LOOKS)
    rows = [point(name, f, k / 10 + f / 2) for k, name in enumerate(rankings) for f in (0, 0.2, 1)]
    hidden = [point("energy", 0.2, 9.0, ablation="zero"), point("energy", 0.2, 9.0, shortcuts=True)]
    figure = plots.curves({"a": {"curves": hidden + rows}, "b": {"curves": rows}})
    assert figure.get_size_inches()[0] == PAGE_WIDTH
    kept, lost = figure.axes[2:]
    assert [ax.get_title()[:2] for ax in figure.axes] == ["a:", "a:", "b:", "b:"]
    for ax in figure.axes[:2]:
        assert len(ax.lines) == len(rankings) == len(ax.collections)
    for k, line in enumerate(kept.lines):
        assert np.allclose(line.get_xdata(), [0, 0.2, 1])
        assert np.allclose(line.get_ydata(), k / 10 + np.array([0, 0.1, 0.5]))
        assert np.allclose(lost.lines[k].get_ydata(), 1 - line.get_ydata())
    assert to_hex(kept.lines[0].get_color()).upper() == PALETTE["ours"], "the paper's ranking"
    band = kept.collections[0].get_paths()[0].vertices[:, 1]
    assert np.isclose(band.min(), -0.1) and np.isclose(band.max(), 0.6)
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == rankings


def test_a_heat_map_of_groups():
    alike = np.array([[1, 0.5, 0.1], [0.5, 1, 0.2], [0.1, 0.2, 1]])
    ax = plots.heat_map(alike, ["one", "one", "two"]).axes[0]
    assert ax.figure.get_size_inches()[0] == COLUMN_WIDTH
    assert np.array_equal(ax.collections[0].get_array(), alike)
    assert [text.get_text() for text in ax.get_xticklabels()] == ["one", "two"]
    assert list(ax.get_xticks()) == [1.0, 2.5], "each name in the middle of its group"
    assert [line.get_xdata()[0] for line in ax.lines if line.get_xdata()[0] > 0] == [2]
