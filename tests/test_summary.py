"""Medians, intervals, pairs and failures against values by hand and a slow bootstrap."""

import csv
import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from minexp import summary


def row(image, method="ours", criterion="confidence", **cells) -> dict:
    return {
        "image": image,
        "method": method,
        "criterion": criterion,
        "correct": "",
        "feasible": True,
        "label_kept": True,
        "confidence_before": 0.5,
        "confidence_after": 0.75,
        "area": 0.1,
        "seconds": 2.0,
        **cells,
    }


def slow_interval(values, statistic) -> dict:
    """The percentile bootstrap, one draw at a time."""
    generator = np.random.default_rng(0)
    draws = generator.integers(0, len(values), (2000, len(values)))
    resampled = sorted(statistic([values[k] for k in draw]) for draw in draws)
    return {
        "value": pytest.approx(statistic(values)),
        "low": pytest.approx(np.percentile(resampled, 2.5)),
        "high": pytest.approx(np.percentile(resampled, 97.5)),
    }


@pytest.mark.parametrize("statistic", [np.median, np.mean])
def test_intervals_by_a_slow_bootstrap(statistic):
    values = np.random.default_rng(1).gamma(2.0, size=13).tolist()
    assert summary.interval(values, statistic) == slow_interval(values, statistic)


def test_intervals_of_one_value_and_of_none():
    assert summary.interval([3], np.median) == {"value": 3.0, "low": 3.0, "high": 3.0}
    assert summary.interval([], np.mean) is None


def test_a_methods_numbers_by_hand():
    areas = [0.1, 0.4, 0.2, 0.3, 0.9]
    rows = [
        row(str(k), area=area, feasible=k < 3, label_kept=k < 4, drop=area, increase=k > 3)
        for k, area in enumerate(areas)
    ]
    rows[0]["confidence_after"], rows[1]["insertion"], rows[2]["insertion"] = "", 0.5, ""
    found = summary.summarise(rows, expected=7)
    assert (found["images"], found["feasible"], found["label_kept"]) == (5, 3, 4)
    assert found["failures"] == {"not_finished": 2, "not_feasible": 2, "label_lost": 1}
    assert found["area_median"] == slow_interval(areas, np.median)
    assert found["area_mean"] == slow_interval(areas, np.mean)
    assert found["average_drop"]["value"] == pytest.approx(0.38)
    assert found["average_increase"]["value"] == pytest.approx(0.2)
    assert found["confidence_change_mean"] == {"value": 0.25, "low": 0.25, "high": 0.25}
    assert found["insertion_median"]["value"] == 0.5  # of the one row that knows it
    assert found["removable_median"] is None and found["deletion_mean"] is None


def test_no_rows_at_all():
    found = summary.summarise([], expected=3)
    assert found["images"] == found["feasible"] == 0
    assert found["failures"] == {"not_finished": 3, "not_feasible": 0, "label_lost": 0}
    assert found["area_median"] is None and found["average_drop"] is None


def test_pairs_by_hand():
    ours = [
        row(k, area=area, seconds=10.0) for k, area in zip("abcd", (0.1, 0.2, 0.4, 0), strict=True)
    ]
    theirs = [
        row(k, "rise", area=area, seconds=seconds)
        for k, area, seconds in (("d", 0.3, ""), ("a", 0.3, 5.0), ("c", 0.2, 20.0), ("z", 0.9, 1.0))
    ]
    found = summary.compare(theirs, ours)
    assert found["against"] == "ours"
    area, seconds = found["area"], found["seconds"]
    assert (area["pairs"], area["ours_smaller"], area["ours_larger"]) == (3, 2, 1)
    assert area["difference_median"] == slow_interval([0.3, 0.2, -0.2], np.median)
    assert area["ratio_median"] == slow_interval([3.0, 0.5], np.median)  # ours of d is empty
    assert (seconds["pairs"], seconds["ours_smaller"], seconds["ours_larger"]) == (2, 1, 1)
    assert seconds["difference_median"]["value"] == 2.5
    nothing = summary.compare([row("z")], ours)["area"]
    assert nothing["pairs"] == 0 and nothing["ratio_median"] is None


def test_keys_groups_and_pairs_of_a_table():
    rows = [
        *(row(k, criterion=c, correct=k != "b") for c in ("label", "confidence") for k in "abc"),
        *(row(k, "rise", criterion="label", area=0.2, correct=k != "b") for k in "ab"),
    ]
    expected = {
        ("ours", "label"): 3,
        ("ours", "confidence"): 3,
        ("rise", "label"): 3,
        ("rise", "confidence"): 3,
    }
    built = summary.build(rows, expected)
    assert list(built["methods"]) == ["ours@label", "ours", "rise@label", "rise"]
    assert list(built["paired"]) == ["rise@label", "rise"]
    ours = built["methods"]["ours"]
    assert (ours["images"], ours["correct"]["images"], ours["misclassified"]["images"]) == (3, 2, 1)
    assert built["methods"]["rise@label"]["failures"]["not_finished"] == 1
    paired = built["paired"]["rise@label"]
    parts = (paired, paired["correct"], paired["misclassified"])
    assert [part["area"]["pairs"] for part in parts] == [2, 1, 1]
    assert paired["area"]["ratio_median"]["value"] == 2.0
    assert built["methods"]["rise"]["images"] == built["paired"]["rise"]["area"]["pairs"] == 0


def test_without_a_true_class_there_are_no_groups():
    built = summary.build([row("a")], {("ours", "confidence"): 1})
    assert "correct" not in built["methods"]["ours"] and built["paired"] == {}
    without = summary.build([row("a", "rise")], {("rise", "confidence"): 1})
    assert without["paired"] == {}  # ours was not asked for


def test_the_table_has_a_line_a_method_and_survives_empty_cells():
    rows = [row("a"), row("a", "rise", area=0.25)]
    expected = {("ours", "confidence"): 1, ("rise", "confidence"): 1, ("rise", "label"): 1}
    lines = summary.table(summary.build(rows, expected)).splitlines()
    widths = {line.count("|") for line in lines}
    assert len(lines) == 5 and len(widths) == 1
    assert "| rise | 1 | 0 | 0 | 0 | 25.0% [25.0%, 25.0%] |" in lines[3]
    assert lines[3].endswith("| 2.50 [2.50, 2.50] |") and "| rise@label | 0 | 1 |" in lines[4]


def test_csv_and_what_rows_agree_on():
    rows = [{"a": 1, "b": ""}, {"a": 1, "b": 0.1}]
    text = summary.as_csv(rows, ("a", "b"))
    assert text == "a,b\n1,\n1,0.1\n" == summary.as_csv(rows, ("a", "b"))
    assert list(csv.DictReader(io.StringIO(text)))[1] == {"a": "1", "b": "0.1"}
    assert summary.agreed(rows, "a", 9) == 1 and summary.agreed(rows, "b", 9) == 9
    assert summary.agreed([], "a", 9) == 9 and summary.agreed([{"a": ""}], "a", 9) == 9


def build(rows) -> dict:
    return summary.build(rows, Counter((row["method"], row["criterion"]) for row in rows))


def write(folder: Path, rows, numbers) -> Path:
    (folder / "results.csv").write_text(summary.as_csv(rows, list(rows[0])), encoding="utf-8")
    (folder / "summary.json").write_text(json.dumps(numbers), encoding="utf-8")
    return folder


def test_read_gives_back_what_was_written(tmp_path):
    rows = [
        row("mnist:3", correct=True, area=0.1 + 0.2, seconds=3),
        row("é, «b».png", "rise", correct=False, feasible=False, area=1e-7, seconds=""),
    ]
    found, numbers = summary.read(write(tmp_path, rows, build(rows)))
    assert found == rows and numbers == build(rows) == build(found)


def test_read_tells_flags_numbers_and_text_apart(tmp_path):
    cells = {"image": "4.png", "correct": "", "feasible": True, "area": 0.25, "label_index": 281}
    ((found,), numbers) = summary.read(write(tmp_path, [cells], {"refused": []}))
    assert found == cells and numbers == {"refused": []}
    assert [type(cell) for cell in found.values()] == [str, str, bool, float, float]


def photographs(method, criterion="confidence", **columns) -> list[dict]:
    """A row for each of the columns' cells."""
    cells = [dict(zip(columns, line, strict=True)) for line in zip(*columns.values(), strict=True)]
    return [row(str(k), method, criterion, **line) for k, line in enumerate(cells)]


MINE = [
    *photographs(
        "ours", area=(0.3, 0.05, 0.07), seconds=(10, 20, 12), components=(9, 5, 7),
        noise_kept=(1, 1, 0.94), feasible=(True, False, True), removable=(0, 0, 0),
        peak_rss_mib=(512, 1024, 768),
    ),
    *photographs(
        "ours", "label", area=(0.06, 0.02, 0.01), seconds=(1, 1, 1), components=(6, 1, 2),
        noise_kept=(1, 0.9, 0.95), removable=(0, 0.25, 0), peak_rss_mib=(2048, 1024, 512),
    ),
]  # fmt: skip
VARIANTS = [
    *photographs("ours_no_noise", area=(0.001,)),
    *photographs("ours_no_noise", "label", area=(0.001,)),
    *photographs("ours+tv=20", area=(0.002,)),
    *photographs("ours+tv=20", "label", area=(0.002,)),
]
OTHERS = [
    *photographs("rise", area=(0.2, 0.5, 0.6)),
    *photographs("rise", "label", area=(0.2, 0.1, 0.05)),
    *photographs("gradcam", area=(0.3, 0.4, 0.7)),
    *photographs("gradcam", "label", area=(0.2, 0.2, 0.2)),
]
EXTREMAL = photographs("extremal", area=(0.9, 0.9, 0.9), seconds=(100, 50, 36))
REX = photographs("rex", area=(0.9, 0.9, 0.9), seconds=(200, 200, 36))


def test_goals_by_hand():
    rows, slow = [*MINE, *VARIANTS, *OTHERS], [*MINE, *EXTREMAL, *REX]
    goals = summary.goals(rows, build(rows), build(slow))
    assert [(goal["value"], goal["met"]) for goal in goals] == [
        (pytest.approx(2 / 3), False),  # feasible
        (0.07, True),  # area, confidence
        (pytest.approx(0.07 / 0.4), False),  # of gradcam, whose smallest is not the smallest
        (0.02, True),  # area, label
        (pytest.approx(0.02 / 0.1), True),  # of rise
        (pytest.approx(0.98), True),  # on noise, confidence
        (pytest.approx(0.95), False),  # on noise, label
        (0.25, False),  # removable, by either criterion
        (12, True),  # seconds
        (pytest.approx(1 / 3), False),  # of extremal, 10, 2.5 and 3 times ours
        (pytest.approx(0.1), True),  # of ReX, 20, 10 and 3 times ours
        (2.0, False),  # GiB, by either criterion
        (7, False),  # pieces, confidence
        (2, True),  # pieces, label
    ]


def test_what_was_not_measured_is_not_met():
    rows = [*MINE, *VARIANTS]
    unknown = [
        k
        for k, goal in enumerate(summary.goals(rows, build(rows), build(rows)))
        if not_measured(goal)
    ]
    assert unknown == [2, 4, 9, 10]  # no other method, neither extremal nor ReX
    rows += OTHERS
    unknown = [
        k
        for k, goal in enumerate(summary.goals(rows, build(rows), build(rows)))
        if not_measured(goal)
    ]
    assert unknown == [9, 10]
    rows = [row("a"), row("a", criterion="label")]  # areas, feasible and seconds alone
    known = [
        k
        for k, goal in enumerate(summary.goals(rows, build(rows), build(rows)))
        if not not_measured(goal)
    ]
    assert known == [0, 1, 3, 8]


def not_measured(goal) -> bool:
    assert goal["value"] is not None or goal["met"] is False
    return goal["value"] is None


@pytest.mark.parametrize(("beyond", "met"), [(0, True), (1e-6, False)])
def test_a_value_at_its_goal_meets_it(beyond, met):
    """Each is at its goal, or beyond it by a millionth and one image that is not feasible."""
    more, less = 1 + beyond, 1 - beyond
    cells = {
        "components": 6 * more, "noise_kept": "", "seconds": 15.0 * more,
        "removable": beyond, "peak_rss_mib": 1536 * more,
    }  # fmt: skip
    rows = [
        row(str(k), criterion=criterion, area=area * more, feasible=k >= (3 if met else 4), **cells)
        for criterion, area in (("confidence", 0.08), ("label", 0.03))
        for k in range(100)
    ]
    rows[0]["noise_kept"] = rows[100]["noise_kept"] = 0.97 * less
    rows += [row("0", "rise", area=0.08 / 0.15), row("0", "rise", "label", area=0.03 / 0.33)]
    rows += [row("0", "extremal", area=1.0, seconds=75.0), row("0", "rex", area=1.0, seconds=150.0)]
    assert {goal["met"] for goal in summary.goals(rows, build(rows), build(rows))} == {met}


def test_the_goals_table_has_a_line_a_goal():
    goals = [
        {"measure": "median area", "sign": "<=", "goal": 0.08, "value": 0.0624999, "met": True},
        {"measure": "feasible", "sign": ">=", "goal": 0.97, "value": 0.5, "met": False},
        {"measure": "seconds", "sign": "<=", "goal": 15, "value": None, "met": False},
    ]
    assert summary.goals_table(goals).splitlines() == [
        "| measure | goal | measured | met |",
        "|---|---|---|---|",
        "| median area | <= 0.08 | 0.0625 | yes |",
        "| feasible | >= 0.97 | 0.5 | no |",
        "| seconds | <= 15 | not measured | no |",
    ]
    measured = summary.goals(MINE, build(MINE), build(MINE))
    lines = summary.goals_table(measured).splitlines()[2:]
    assert [line.split(" | ")[0] for line in lines] == [f"| {g['measure']}" for g in measured]
