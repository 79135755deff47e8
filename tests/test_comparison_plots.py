"""The comparisons' figures hold what they were given."""

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

from minexp import comparison_plots as plots
from minexp import figures
from minexp.style import COLUMN_WIDTH, PAGE_WIDTH, PALETTE

matplotlib.use("agg")


@pytest.fixture(autouse=True)
def _close():
    yield
    plots.plt.close("all")


def estimate(value: float) -> dict[str, float]:
    return {"value": value, "low": 0.5 * value, "high": 1.5 * value}


def drawable(figure, tmp_path, width: float) -> None:
    """It can be written, at the page's width."""
    given = {"notebook": "t", "parameters": {}, "inputs": {}, "numbers": []}
    assert figure.get_size_inches()[0] == width
    assert figures.save(figure, "it", folder=tmp_path, **given).stat().st_size > 1000


def test_a_gallery_of_pictures_maps_and_masks(tmp_path):
    pixels = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    heat = 4 * pixels[:, :1] - 1
    cells = [
        {"image": pixels, "title": "cat"},
        {"map": heat, "title": "Grad-CAM"},
        {"mask": (heat > 0).float(), "title": "mask"},
    ]
    figure = plots.gallery([cells, cells])
    image, drawn, mask = (ax.images[0].get_array() for ax in figure.axes[3:6])
    assert np.allclose(image, pixels[0].permute(1, 2, 0))
    assert np.allclose(drawn, (heat[0, 0] - heat.min()) / (heat.max() - heat.min()))
    assert np.array_equal(mask, (heat > 0)[0, 0])
    assert [ax.get_title() for ax in figure.axes[:3]] == ["cat", "Grad-CAM", "mask"]
    assert all(len(ax.images) == 1 for ax in figure.axes[:6])
    assert len(figure.axes) == 7, "one scale for all maps"
    drawable(figure, tmp_path, PAGE_WIDTH)


def test_a_title_is_as_wide_as_its_picture():
    title = "Greater Swiss Mountain dog: 0.22\nthe second line"
    cell = {"mask": torch.zeros(1, 1, 4, 4), "title": title}
    for columns, lines in ((1, title.splitlines()), (6, ["Greater Swiss", "Mountain dog: 0.22"])):
        found = plots.gallery([[cell] * columns]).axes[0].get_title().splitlines()
        assert found == [*lines[: len(found) - 1], "the second line"]


def test_a_gallery_without_maps_has_no_scale_and_a_constant_map_is_drawn():
    cell = {"mask": torch.zeros(1, 1, 4, 4), "title": ""}
    assert len(plots.gallery([[cell]]).axes) == 1
    (ax, _) = plots.gallery([[{"map": torch.full((1, 1, 4, 4), 3.0), "title": ""}]]).axes
    assert np.array_equal(ax.images[0].get_array(), np.zeros((4, 4)))


def test_a_forest_of_medians(tmp_path):
    areas = {"base": estimate(0.1), "soft": estimate(0.2), "without": None}
    kept = {"base": estimate(0.0), "soft": estimate(1.0), "without": None}
    figure = plots.forest({"area": areas, "kept": kept}, "base")
    first, second = figure.axes
    assert [label.get_text() for label in first.get_yticklabels()] == list(areas)
    assert (first.get_xscale(), second.get_xscale()) == ("log", "linear")
    base, soft = first.containers
    assert base.lines[0].get_xydata().tolist() == [[0.1, 0]]
    assert soft.lines[0].get_xydata().tolist() == [[0.2, 1]]
    assert np.allclose(soft.lines[2][0].get_segments(), [[[0.1, 1], [0.3, 1]]])
    assert to_hex(base.lines[0].get_color()).upper() == PALETTE["ours"]
    drawable(figure, tmp_path, PAGE_WIDTH)


def test_grids_are_numbered_heat_maps(tmp_path):
    areas, pieces = np.array([[0.1, np.nan], [0.3, 0.9]]), np.arange(4.0).reshape(2, 2)
    figure = plots.grids(
        {"area": areas, "pieces": pieces}, (0, 5), (1, 2), row_label="rows", column_label="columns"
    )
    first = figure.axes[0]
    assert np.array_equal(first.images[0].get_array().filled(np.nan), areas, equal_nan=True)
    assert [text.get_text() for text in first.texts] == ["0.1", "–", "0.3", "0.9"]
    colours = [text.get_color() for text in first.texts]
    assert colours == ["w", "k", "w", "k"], "readable on dark, on light and on no ground"
    assert (first.get_xlabel(), first.get_ylabel()) == ("columns", "rows")
    assert len(figure.axes) == 4, "each with its own scale"
    drawable(figure, tmp_path, PAGE_WIDTH)
    numbered = {str(k): pieces for k in range(4)}
    figure = plots.grids(numbered, (0, 5), (1, 2), row_label="rows", column_label="columns")
    maps = [ax for ax in figure.axes if ax.get_title()]
    assert [ax.get_title(loc="left") for ax in maps] == ["a", "b", "c", "d"]
    assert len({round(ax.get_position().x0, 2) for ax in maps}) == 3, "three to a line"


def test_groups_show_every_value(tmp_path):
    values = {"right": [0.1, 0.2, 0.4], "wrong": [0.5, 0.7]}
    figure = plots.groups(values, "area")
    (ax,) = figure.axes
    dots = [line.get_ydata().tolist() for line in ax.lines if line.get_marker() == "."]
    assert dots == list(values.values()) and ax.get_yscale() == "log"
    names = [label.get_text() for label in ax.get_xticklabels()]
    assert names == ["right\n3 images", "wrong\n2 images"]
    drawable(figure, tmp_path, COLUMN_WIDTH)


def test_a_cascade_leaves_out_what_is_not_known(tmp_path):
    stages = [
        {"layers": k, "spearman": estimate(1 - k / 10), "ssim": None, "chance": estimate(0.1),
         "dice": None if k == 3 else estimate(0.5), "area": estimate(0.2)}
        for k in (0, 1, 3)
    ]  # fmt: skip
    of_maps = [stage | {"area": None} for stage in stages]
    figure = plots.cascade({"ours": stages, "gradcam": of_maps})
    ranks, ssim, dice, area = figure.axes
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["a", "b", "c", "d"]
    assert ranks.lines[0].get_xydata().tolist() == [[0, 1], [1, 0.9], [3, 0.7]]
    assert not ssim.lines and len(dice.lines) == 4
    assert dice.lines[0].get_xdata().tolist() == [0, 1]
    (of_ours,) = area.lines
    assert of_ours.get_ydata().tolist() == [0.2] * 3
    drawable(figure, tmp_path, PAGE_WIDTH)
