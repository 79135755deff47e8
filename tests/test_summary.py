"""Medians, intervals, pairs and failures against values by hand and a slow bootstrap."""

import csv
import io
import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from tables import build, row

from minexp import summary
from minexp.errors import InputError

EITHER = {"noise_lost": 0, "whole_image": 0}


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


def slow_difference(first, second) -> tuple[float, float]:
    """U and Cliff's delta, pair by pair."""
    larger = sum(a > b for a in first for b in second)
    smaller = sum(a < b for a in first for b in second)
    pairs = len(first) * len(second)
    return larger + (pairs - larger - smaller) / 2, (larger - smaller) / pairs


def exact_p(first, second) -> float:
    """Two-sided, over every way to deal the values out: as far from the middle as this one."""
    both, size = [*first, *second], len(first)
    middle = size * len(second) / 2
    seen = abs(slow_difference(first, second)[0] - middle)
    deals = []
    for chosen in combinations(range(len(both)), size):
        rest = [both[k] for k in range(len(both)) if k not in chosen]
        deals.append(abs(slow_difference([both[k] for k in chosen], rest)[0] - middle) >= seen)
    return sum(deals) / len(deals)


def test_a_difference_by_hand():
    generator = np.random.default_rng(2)
    first, second = generator.gamma(2.0, size=5).tolist(), generator.gamma(3.0, size=6).tolist()
    found = summary.difference(first, second)
    u, delta = slow_difference(first, second)
    assert (found["first"], found["second"], found["u"]) == (5, 6, u)
    assert found["delta"]["value"] == pytest.approx(delta)
    assert found["p"] == pytest.approx(exact_p(first, second))
    assert found["medians"] == [slow_interval(values, np.median) for values in (first, second)]


def test_the_interval_of_a_difference_by_a_slow_bootstrap():
    first, second = [1.0, 2.0, 2.0, 5.0], [2.0, 3.0, 0.0, 4.0, 7.0]
    generator, drawn = np.random.default_rng(0), []
    for _ in range(2000):
        one = [first[k] for k in generator.integers(0, 4, 4)]
        other = [second[k] for k in generator.integers(0, 5, 5)]
        drawn.append(slow_difference(one, other)[1])
    found = summary.difference(first, second)["delta"]
    assert found["low"] == pytest.approx(np.percentile(drawn, 2.5))
    assert found["high"] == pytest.approx(np.percentile(drawn, 97.5))
    assert found == summary.difference(first, second)["delta"], "the same values, the same interval"


def test_groups_apart_and_alike_and_empty():
    apart = summary.difference([3.0, 4.0, 5.0], [0.0, 1.0, 2.0])
    assert apart["delta"] == {"value": 1.0, "low": 1.0, "high": 1.0} and apart["u"] == 9
    alike = summary.difference([1.0] * 12, [1.0] * 9)
    assert (alike["delta"]["value"], alike["p"]) == (0.0, 1.0)
    empty = summary.difference([], [1.0])
    assert (empty["u"], empty["p"], empty["delta"]) == (None, None, None)
    assert empty["medians"] == [None, {"value": 1.0, "low": 1.0, "high": 1.0}]


def test_areas_by_decision_count_an_image_once_and_only_where_feasible():
    rows = [
        row("a", area=0.1, correct=True, confidence_before=0.9),
        row("a", area=0.1, correct=True, confidence_before=0.9),
        row("a", "ours_right", area=0.7, correct=True),
        row("b", area=0.2, correct=False, confidence_before=0.5),
        row("c", area=0.3, correct=False, confidence_before=0.95),
        row("d", area=0.4, correct=False, feasible=False),
        row("e", area=0.5),
        row("f", criterion="label", area=0.6, correct=True),
    ]
    assert summary.by_decision(rows, "confidence") == {"wrong": [0.2, 0.3], "right": [0.1]}
    sure = summary.by_decision(rows, "confidence", "confidence_before")
    assert (len(sure["wrong"]), len(sure["right"])) == (2, 1) and 0 < min(sure["wrong"]) < 1
    assert summary.by_decision(rows, "label") == {"wrong": [], "right": [0.6]}


def test_a_methods_numbers_by_hand():
    areas = [0.1, 0.4, 0.2, 0.3, 0.9]
    rows = [
        row(str(k), area=area, feasible=k < 3, label_kept=k < 4, drop=area, increase=k > 3)
        for k, area in enumerate(areas)
    ]
    rows[0]["confidence_after"], rows[1]["insertion"], rows[2]["insertion"] = "", 0.5, ""
    found = summary.summarise(rows, expected=7)
    assert (found["images"], found["feasible"], found["label_kept"]) == (5, 3, 4)
    assert found["failures"] == {"not_finished": 2, "not_feasible": 2, "label_lost": 1, **EITHER}
    assert found["area_median"] == slow_interval(areas, np.median)
    assert found["area_mean"] == slow_interval(areas, np.mean)
    assert found["average_drop"]["value"] == pytest.approx(0.38)
    assert found["average_increase"]["value"] == pytest.approx(0.2)
    assert found["confidence_change_mean"] == {"value": 0.25, "low": 0.25, "high": 0.25}
    assert found["insertion_median"]["value"] == 0.5  # of the one row that knows it
    assert found["removable_median"] is None and found["deletion_mean"] is None


def test_noise_lost_and_the_whole_image_are_counted():
    cells = [("a", 1, 0.5), ("b", 31 / 32, 1.0), ("c", "", 1.0)]
    rows = [row(image, noise_kept=kept, area=area) for image, kept, area in cells]
    failures = summary.summarise(rows)["failures"]
    assert (failures["noise_lost"], failures["whole_image"]) == (1, 2)


def test_no_rows_at_all():
    found = summary.summarise([], expected=3)
    assert found["images"] == found["feasible"] == 0
    assert found["failures"] == {"not_finished": 3, "not_feasible": 0, "label_lost": 0, **EITHER}
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
    pieces = [row("a", components=2), row("b", components=3)]
    found = summary.compare([row("b", components=6)], pieces, ["components"])
    assert set(found) == {"against", "components"}
    assert found["components"]["ratio_median"]["value"] == 2


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
    assert summary.agreed(rows, "a") == 1 and summary.agreed(rows, "b") == 0.1
    assert summary.agreed([{"a": 1}, {"a": 2}], "a") is None is summary.agreed([{"a": ""}], "a")


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


def test_no_table_is_refused(tmp_path):
    with pytest.raises(InputError, match="no table; write it with: minexp bench"):
        summary.read(tmp_path)
