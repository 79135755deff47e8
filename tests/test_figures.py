"""One writer of figures: the same bytes each time, a sidecar that says where from."""

import json
import subprocess
from importlib.metadata import version
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from minexp import figures, plots, provenance
from minexp.paths import ROOT
from minexp.style import PALETTE

matplotlib.use("agg")

GIVEN = {
    "notebook": "01_explanations",
    "parameters": {"seed": 0, "steps": 3},
    "inputs": {"coffee": "ab" * 32},
    "numbers": [{"area": 0.25}],
}


@pytest.fixture(autouse=True)
def _close():
    yield
    plots.plt.close("all")


def rows(count: int, channels: int = 3) -> list[dict]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for number in range(count):
        pixels = torch.rand(1, channels, 16, 16, generator=generator)
        mask = (torch.rand(1, 1, 16, 16, generator=generator) > 0.5).float()
        made.append({
            "pixels": pixels, "mask": mask, "masked": pixels * mask, "label": f"cat {number}",
            "confidence": 0.9, "explanation_confidence": 0.875, "area": 0.125,
            "label_kept": number != 1,
            "feasible": number != 1,
        })  # fmt: skip
    return made


def steps(count: int) -> list[dict]:
    return [
        {"step": k, "area": 1 / (k + 1), "confidence": 0.5, "noise_confidence": 0.25}
        for k in range(count)
    ]


# (method, criterion) -> areas; by its mean, ours would come last
AREAS = {
    ("rise", "confidence"): (0.1, 0.2, 0.3),
    ("integrated_gradients", "confidence"): (0.4, 0.5, 0.7, 0.8),
    ("ours", "confidence"): (0.01, 0.02, 0.99),
    ("ours", "label"): (0.02, 0.04),
    ("rise", "label"): (0.01, 0.03),
}


def benchmark(*criteria: str) -> list[dict]:
    return [
        {"method": method, "criterion": criterion, "area": area, "components": 1 + 100 * area}
        for (method, criterion), areas in AREAS.items()
        if criterion in criteria
        for area in areas
    ]


SURVIVAL = {
    "first": {
        "zero": {"kept": 1.0, "low": 0.2, "high": 1.0},
        "gaussian": {"kept": 0.75, "low": 0.6, "high": 0.875},
    },
    "second": {
        "zero": {"kept": 0.0, "low": 0.0, "high": 0.8},
        "gaussian": {"kept": 0.5, "low": 0.25, "high": 0.75},
    },
}
CURVE = (np.array([0.01, 0.1, 0.4]), np.array([0.25, 0.5, 0.75]), 0.7, 0.6225)
FIGURES = {
    "panel": lambda: plots.panel(rows(2)),
    "digits": lambda: plots.digits(rows(3, channels=1)),
    "history": lambda: plots.history(steps(20), 0.8),
    "boxes": lambda: plots.boxes(benchmark("confidence", "label")),
    "survival": lambda: plots.survival(SURVIVAL),
    "curve": lambda: plots.curve(*CURVE),
}


@pytest.fixture
def figure():
    return plots.panel(rows(1))


def test_three_files_and_a_closed_figure(figure, tmp_path):
    png = figures.save(figure, "one", **GIVEN, folder=tmp_path / "new")
    assert png == tmp_path / "new" / "one.png"
    assert {path.name for path in png.parent.iterdir()} == {"one.png", "one.svg", "one.json"}
    with Image.open(png) as picture:
        picture.load()
        assert picture.size[0] == pytest.approx(7 * 200, abs=2)
    assert "<svg" in (tmp_path / "new" / "one.svg").read_text()
    assert not plots.plt.fignum_exists(figure.number)


def test_the_sidecar_says_where_it_came_from(figure, tmp_path):
    figures.save(figure, "one", **GIVEN, folder=tmp_path)
    sidecar = json.loads((tmp_path / "one.json").read_text())
    assert {name: sidecar[name] for name in GIVEN} == GIVEN
    assert sidecar["figure"] == "one" and sidecar["commit"] == provenance.commit()
    assert {"minexp", "torch", "timm", "matplotlib", "python"} <= sidecar["versions"].keys()
    assert sidecar["versions"]["torch"] == version("torch")


def test_the_commit_is_gits():
    done = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True
    )
    if done.returncode:
        assert provenance.commit() is None
    else:
        assert provenance.commit().rstrip("+") == done.stdout.strip()


@pytest.mark.parametrize("name", FIGURES)
def test_two_saves_give_the_same_bytes(name, tmp_path):
    for folder in ("a", "b"):
        figures.save(FIGURES[name](), name, **GIVEN, folder=tmp_path / folder)
    for suffix in ("png", "json", "svg"):
        one, two = (tmp_path / folder / f"{name}.{suffix}" for folder in ("a", "b"))
        assert one.read_bytes() == two.read_bytes(), suffix


def test_text_in_an_svg_stays_text(tmp_path):
    figures.save(plots.panel(rows(1)), "panel", **GIVEN, folder=tmp_path)
    assert "cat 0: 0.90</text>" in (tmp_path / "panel.svg").read_text()


def test_no_machine_path_in_the_files(figure, tmp_path):
    figures.save(figure, "one", **GIVEN, folder=tmp_path)
    for path in tmp_path.iterdir():
        assert str(tmp_path).encode() not in path.read_bytes()
        assert str(Path.home()).encode() + b"/" not in path.read_bytes()


class Failing(Figure):
    """A figure that cannot be saved in one format."""

    def savefig(self, path, *, format, **options):
        path.write(b"half")
        if format == self.refused:
            raise OSError("no space left on device")
        super().savefig(path, format=format, **options)


@pytest.mark.parametrize("refused", ["png", "svg"])
def test_a_failing_save_leaves_nothing(tmp_path, refused):
    figure = Failing()
    figure.refused = refused
    with pytest.raises(OSError, match="no space"):
        figures.save(figure, "one", **GIVEN, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_numbers_that_are_not_json_leave_nothing(figure, tmp_path):
    with pytest.raises(TypeError):
        figures.save(figure, "one", **GIVEN | {"numbers": object()}, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_failing_panel_leaves_nothing(tmp_path):
    figure = Failing()
    figure.refused = "png"
    with pytest.raises(OSError, match="no space"):
        figures.save_panel(tmp_path / "one.panel.png", figure)
    assert list(tmp_path.iterdir()) == []


def test_save_panel(figure, tmp_path):
    figures.save_panel(tmp_path / "one.panel.png", figure)
    assert [path.name for path in tmp_path.iterdir()] == ["one.panel.png"]
    with Image.open(tmp_path / "one.panel.png") as picture:
        assert picture.size[0] == pytest.approx(7 * 200, abs=2)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_panel_has_three_axes_a_row(count):
    figure = plots.panel(rows(count))
    titles = [ax.get_title() for ax in figure.axes]
    assert isinstance(figure, Figure) and len(titles) == 3 * count
    assert titles[:3] == ["cat 0: 0.90", "mask: 12.5 % of pixels", "explanation: 0.88"]
    assert all(("label lost" in title) == (k == 5) for k, title in enumerate(titles))


def test_panel_draws_what_it_was_given():
    (row,) = rows(1)
    pixels, mask, masked = (ax.images[0].get_array() for ax in plots.panel([row]).axes)
    assert torch.equal(torch.tensor(pixels).permute(2, 0, 1)[None], row["pixels"])
    assert torch.equal(torch.tensor(mask)[None, None], row["mask"])
    assert torch.equal(torch.tensor(masked).permute(2, 0, 1)[None], row["masked"])


@pytest.mark.parametrize("count", [1, 10])
def test_digits_have_two_axes_each(count):
    figure = plots.digits(rows(count, channels=1))
    assert isinstance(figure, Figure) and len(figure.axes) == 2 * count
    assert figure.axes[0].get_title() == "cat 0: 0.90"
    assert figure.axes[count].get_title() == "0.88\n12.5 %"
    assert all(len(ax.images) == 1 for ax in figure.axes)


def test_history_draws_four_lines():
    (ax,) = plots.history(steps(20), 0.8).axes
    assert len(ax.lines) == 4 and len(ax.get_legend().get_texts()) == 4
    assert list(ax.lines[0].get_ydata()) == [record["area"] for record in steps(20)]
    assert ax.get_xlabel() == "step" and ax.get_ylabel()


def test_history_of_a_single_step():
    (ax,) = plots.history(steps(1), 0.8).axes
    assert len(ax.lines) == 4


def methods(ax) -> list[str]:
    return [tick.get_text() for tick in ax.get_xticklabels()]


@pytest.mark.parametrize("criteria", [("confidence", "label"), ("confidence",), ("label",)])
def test_boxes_have_a_column_a_criterion(criteria):
    figure = plots.boxes(benchmark(*reversed(criteria)))
    assert figure.axes[0].get_gridspec().get_geometry() == (2, len(criteria))
    upper, lower = figure.axes[: len(criteria)], figure.axes[len(criteria) :]
    assert [ax.get_title() for ax in upper] == [f"criterion: {name}" for name in criteria]
    for ax, criterion in zip((*upper, *lower), 2 * criteria, strict=True):
        assert len(ax.patches) == sum(pair[1] == criterion for pair in AREAS)
        assert ax.get_yscale() == "log"
    assert upper[0].get_ylabel() == "area, fraction of pixels" and lower[0].get_ylabel() == "pieces"


def test_boxes_are_sorted_by_the_median_area():
    """Of each criterion by itself; the pieces beneath keep the order of the areas."""
    rows = benchmark("confidence", "label")
    rows = [row | {"components": 1 / row["area"]} for row in rows]
    for ax in plots.boxes(rows).axes[::2]:
        assert methods(ax) == ["ours", "rise", "integrated\ngradients"]
    for ax in plots.boxes(rows[::-1]).axes[1::2]:
        assert methods(ax) == ["rise", "ours"]


def test_boxes_hold_the_middle_half():
    area, pieces = plots.boxes(benchmark("confidence")).axes
    quartiles = np.array([(0.015, 0.505), (0.15, 0.25), (0.475, 0.725)])
    for ax, expected in ((area, quartiles), (pieces, 1 + 100 * quartiles)):
        heights = [patch.get_path().vertices[:, 1] for patch in ax.patches]
        assert [(min(h), max(h)) for h in heights] == pytest.approx(expected)


def test_only_ours_is_in_its_colour():
    rows = benchmark("confidence", "label")
    rows += [row | {"method": "ours_no_noise"} for row in rows if row["method"] == "ours"]
    for ax in plots.boxes(rows).axes:
        for name, patch in zip(methods(ax), ax.patches, strict=True):
            colour = PALETTE["ours" if name.startswith("ours") else "baseline"]
            assert to_hex(patch.get_facecolor()) == colour.lower()


def test_survival_draws_every_share_and_its_interval():
    (ax,) = plots.survival(SURVIVAL).axes
    assert methods(ax) == ["zero", "gaussian"] and ax.get_ylabel() == "label kept"
    for drawn, panel in zip(ax.containers, SURVIVAL.values(), strict=True):
        points, _, (whiskers,) = drawn.lines
        x, kept = points.get_data()
        assert list(kept) == [fill["kept"] for fill in panel.values()]
        assert np.round(x).tolist() == [0, 1]  # each beside its fill's tick
        for at, fill, segment in zip(x, panel.values(), whiskers.get_segments(), strict=True):
            assert segment == pytest.approx(np.array([(at, fill["low"]), (at, fill["high"])]))


def test_survival_tells_the_masks_apart():
    (ax,) = plots.survival(SURVIVAL).axes
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["first", "second"]
    first, second = (drawn.lines[0] for drawn in ax.containers)
    assert first.get_marker() != second.get_marker()
    places = np.array([first.get_xdata(), second.get_xdata()])
    assert all(places[0] < places[1]) and places.mean(0) == pytest.approx([0, 1])


def test_survival_of_a_single_mask():
    (ax,) = plots.survival({"only": SURVIVAL["first"]}).axes
    assert ax.containers[0].lines[0].get_xdata().tolist() == [0, 1]


def test_curve_draws_steps_to_the_whole_image_and_its_own_confidence():
    figure = plots.curve(*CURVE)
    (ax,), (legend,) = figure.axes, figure.legends
    line, own = ax.lines
    assert line.get_xdata().tolist() == [0.01, 0.1, 0.4, 1.0]
    assert line.get_ydata().tolist() == [0.25, 0.5, 0.75, 0.75]
    assert line.get_drawstyle() == "steps-post" and ax.get_xscale() == "log"
    assert set(own.get_ydata()) == {0.7} and own.get_linestyle() == "--"
    assert [text.get_text() for text in legend.get_texts()] == [
        "masks of one run, area under it 0.62", "image's own",
    ]  # fmt: skip
