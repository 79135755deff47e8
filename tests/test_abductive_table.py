"""Results of the explainer as numbers and figures, by hand."""

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from minexp import abductive_plots, abductive_table, mnist
from minexp.abductive_run import Plan, run
from minexp.errors import InputError
from minexp.style import PAGE_WIDTH, PALETTE

matplotlib.use("agg")


@pytest.fixture(autouse=True)
def _close():
    yield
    abductive_plots.plt.close("all")


def result(index: int = 3, **cells) -> dict:
    made = {"index": index, "label_index": 0, "correct": True, "eps": 0.1, "seconds": 2.0}
    made |= {"fixed": [], "unknown": [], "subset_minimal": True, "mask_pixels": None, "mask": None}
    return made | {"audit": {"wrong": 0, "proof": "safe"}} | cells


def test_ink_and_background_are_told_apart():
    digit = mnist.digits()[0][3].ravel()
    ink, paper = np.flatnonzero(digit >= 0.5), np.flatnonzero(digit < 0.5)
    assert 50 < len(ink) < 300
    fixed = sorted([*ink[:3].tolist(), *paper[:5].tolist()])
    row = abductive_table.row(result(fixed=fixed, unknown=[1, 2], subset_minimal=False))
    assert (row["fixed"], row["ink"], row["unknown"], row["minimal"]) == (8, 3, 2, False)
    assert row["set"] == 10, "the proof is of both"
    assert (row["mask"], row["mask_verdict"], row["added"]) == (None, None, None)


def test_a_summary_by_hand():
    verdict = {"safe_eps": 0.5, "unsafe_eps": 0.6, "feasible": True, "audit": {"wrong": 0}}
    verdict |= {"added_unknown": [], "wrong": 0}
    given = [
        result(1, fixed=[], mask_pixels=[1, 2], mask=verdict | {"verdict": "safe", "added": []}),
        result(2, fixed=list(range(9)), mask_pixels=[1] * 4, seconds=8.0,
               mask=verdict | {"verdict": "unsafe", "added": [5, 6], "added_unknown": [7],
                               "audit": {"wrong": 1}, "wrong": 2}),
        result(4, unknown=[3], subset_minimal=False, seconds=60.0,
               audit={"wrong": 2, "proof": "unknown"}),
    ]  # fmt: skip
    found = abductive_table.summarise([abductive_table.row(one) for one in given])
    counts = ("digits", "settled", "none_needed", "wrong", "proven_again")
    assert [found[name] for name in counts] == [3, 2, 1, 5, 2]
    medians = ("fixed", "mask", "added", "seconds", "mask_safe_eps", "set")
    assert [found[name]["value"] for name in medians] == [0, 3, 1.5, 8, 0.5, 1]
    only = found["not_empty"]  # the second, and the third, of which a pixel may have to be fixed
    assert (only["digits"], only["mask_verdicts"]["unsafe"], only["masks_feasible"]) == (2, 1, 1)
    assert only["fixed"]["value"] == 4.5
    unasked = abductive_table.row(result(1, audit={"wrong": 0, "proof": "not asked"}))
    assert abductive_table.summarise([unasked])["proven_again"] is None
    assert found["mask_verdicts"] == {"safe": 1, "unsafe": 1, "unknown": 0}
    assert found["ink_share"] == 0, "the corner of a digit is paper"
    nothing = abductive_table.summarise([abductive_table.row(given[0])])
    assert nothing["ink_share"] is None and nothing["not_empty"]["fixed"] is None


def test_results_are_read_in_order_and_their_absence_is_said(tmp_path):
    list(run([1004, 3], "mnist_cnn_small", Plan(0.05, side=7, fillings=9, restarts=1), tmp_path))
    assert [one["index"] for one in abductive_table.read(tmp_path)] == [3, 1004]
    before = abductive_table.digest(tmp_path)
    (tmp_path / "3.abductive.json").unlink()
    assert abductive_table.digest(tmp_path) != before
    with pytest.raises(InputError, match="minexp abductive INDEX"):
        abductive_table.read(tmp_path / "none")
    list(run([3], "mnist_cnn_small", Plan(0.1, side=7, fillings=9, restarts=1), tmp_path))
    with pytest.raises(InputError, match="differ in their plan"):
        abductive_table.read(tmp_path)


def test_marked_pixels_have_their_colour():
    digit = np.zeros((28, 28))
    digit[0, 1] = 1
    image = abductive_plots.coloured(digit, {"fixed": [0, 1], "unknown": [28], "ours": [783]})
    named = {(0, 0): "background", (0, 1): "ink", (1, 0): "unknown", (27, 27): "ours"}
    for place, kind in named.items():
        assert np.allclose(image[place], to_rgb(PALETTE[kind]))
    assert np.allclose(image[5, 5], 0.25) and image.shape == (28, 28, 3)


def test_a_grid_of_digits_and_the_sizes():
    cells = [(np.zeros((28, 28)), {"fixed": [1, 2], "unknown": []})] * 3
    figure = abductive_plots.overlay({"eps 0.1": cells, "our mask": cells})
    assert figure.get_size_inches()[0] == PAGE_WIDTH and len(figure.axes) == 6
    assert [ax.get_ylabel() for ax in figure.axes[::3]] == ["eps 0.1", "our mask"]
    assert figure.axes[0].get_xlabel() == "2, 0"
    (ax,) = abductive_plots.sizes({"0.1": [0, 0, 10, 30]}, [20, 20]).axes
    x, share = ax.lines[0].get_data()
    assert share[np.flatnonzero(x <= 15)[-1]] == 0.75, "steps, not slopes"
