"""From a table's rows to what it says: medians, bootstrap intervals, paired differences, failures.

Functions of rows, dicts by the columns of :mod:`minexp.bench`; a cell that is "", None or
missing is unknown and leaves its row out of that column's numbers only.
"""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np

RESAMPLES = 2000
REFERENCE = "ours"  # what the other methods are paired with
COLUMNS = (
    *("area", "components", "noise_kept", "seconds", "insertion", "deletion"),
    *("forward_passes", "backward_passes", "removable", "confidence_change"),
)
PAIRED = ("area", "seconds")
NAMES = ("image", "model", "method", "criterion")  # text, whatever it looks like


def build(rows: Sequence[Mapping], expected: Mapping[tuple[str, str], int]) -> dict:
    """``methods`` and ``paired`` of a table.

    ``expected`` says, for each (method, criterion), how many images there should be. Keys are
    the method's name under the criterion "confidence" and "<method>@label" under "label". Each
    holds the numbers of all images and, where the true class is known, under ``correct`` and
    ``misclassified``, those of the images that the classifier names rightly and wrongly.
    """
    chosen = {pair: [row for row in rows if _pair(row) == pair] for pair in expected}
    return {
        "methods": {
            _key(pair): summarise(found, expected[pair])
            | {name: summarise(part) for name, part in _parts(found).items()}
            for pair, found in chosen.items()
        },
        "paired": {
            _key(pair): compare(found, ours)
            | {name: compare(part, ours) for name, part in _parts(found).items()}
            for pair, found in chosen.items()
            if pair[0] != REFERENCE and (ours := chosen.get((REFERENCE, pair[1])))
        },
    }


def _pair(row: Mapping) -> tuple[str, str]:
    return row["method"], row["criterion"]


def _key(pair: tuple[str, str]) -> str:
    method, criterion = pair
    return method if criterion == "confidence" else f"{method}@{criterion}"


def _parts(rows: Sequence[Mapping]) -> dict[str, list[Mapping]]:
    groups = {
        "correct": [row for row in rows if row["correct"] is True],
        "misclassified": [row for row in rows if row["correct"] is False],
    }
    return groups if any(groups.values()) else {}


def summarise(rows: Sequence[Mapping], expected: int | None = None) -> dict:
    """Counts of a method's rows, and medians and means with their 95 % bootstrap intervals.

    ``expected`` images; None: as many as there are rows. An interval is {value, low, high}, None
    where no row knows the column. ``average_drop`` and ``average_increase`` are shares, not
    percentages, of Chattopadhay et al.'s metrics.
    """
    feasible, kept = (sum(bool(row[name]) for row in rows) for name in ("feasible", "label_kept"))
    columns = {name: values(rows, name) for name in COLUMNS}
    return {
        "images": len(rows),
        "feasible": feasible,
        "label_kept": kept,
        "failures": {
            "not_finished": (len(rows) if expected is None else expected) - len(rows),
            "not_feasible": len(rows) - feasible,
            "label_lost": len(rows) - kept,
        },
        **{
            f"{name}_{kind}": interval(column, statistic)
            for name, column in columns.items()
            for kind, statistic in (("median", np.median), ("mean", np.mean))
        },
        "average_drop": interval(values(rows, "drop"), np.mean),
        "average_increase": interval(values(rows, "increase"), np.mean),
    }


def values(rows: Sequence[Mapping], name: str) -> list[float]:
    """The known cells of a column; ``confidence_change`` is after less before."""
    return [value for row in rows if (value := _cell(row, name)) is not None]


def _cell(row: Mapping, name: str) -> float | None:
    if name == "confidence_change":
        before, after = _cell(row, "confidence_before"), _cell(row, "confidence_after")
        return None if before is None or after is None else after - before
    value = row.get(name)
    return None if value is None or value == "" else float(value)


def compare(rows: Sequence[Mapping], ours: Sequence[Mapping]) -> dict:
    """Area and seconds of a method against ours, on the images that both have.

    For each column: ``pairs``; ``difference_median`` (theirs less ours) and ``ratio_median``
    (theirs over ours, where ours is not 0) with 95 % bootstrap intervals over the images;
    ``ours_smaller`` and ``ours_larger``, in how many pairs.
    """
    known = {row["image"]: row for row in ours}
    both = [(row, known[row["image"]]) for row in rows if row["image"] in known]
    return {"against": REFERENCE, **{name: _paired(both, name) for name in PAIRED}}


def _paired(both: Sequence[tuple[Mapping, Mapping]], name: str) -> dict:
    cells = [(_cell(theirs, name), _cell(ours, name)) for theirs, ours in both]
    pairs = [(a, b) for a, b in cells if a is not None and b is not None]
    return {
        "pairs": len(pairs),
        "difference_median": interval([a - b for a, b in pairs], np.median),
        "ratio_median": interval([a / b for a, b in pairs if b], np.median),
        "ours_smaller": sum(b < a for a, b in pairs),
        "ours_larger": sum(b > a for a, b in pairs),
    }


def interval(values: Sequence[float], statistic: Callable) -> dict[str, float] | None:
    """Percentile bootstrap, seeded: the same values give the same interval; None without values."""
    if not len(values):
        return None
    values = np.asarray(values, dtype=float)
    low, high = np.percentile(statistic(values[_draws(len(values))], axis=1), [2.5, 97.5])
    return {"value": float(statistic(values)), "low": float(low), "high": float(high)}


@cache
def _draws(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, count, (RESAMPLES, count))


def agreed(rows: Sequence[Mapping], name: str, otherwise: object) -> object:
    """What all rows have in a column if they agree and know it, else ``otherwise``."""
    found = {row[name] for row in rows}
    return found.pop() if len(found) == 1 and found != {""} else otherwise


def as_csv(rows: Sequence[Mapping], columns: Sequence[str]) -> str:
    """The rows as CSV text with a header, the same bytes for the same rows."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def table(summary: Mapping) -> str:
    """A Markdown table of a summary's medians [95 % intervals] and failures, a line a method."""
    lines = [
        "| method | images | not finished | not feasible | label lost | area | pieces | on noise "
        "| insertion | deletion | seconds | forward | backward | area / ours |",
        "|" + "---|" * 14,
    ]
    for name, numbers in summary["methods"].items():
        failures = numbers["failures"]
        ratio = summary["paired"].get(name, {}).get("area", {}).get("ratio_median")
        cells = [
            name,
            *(str(numbers["images"]), str(failures["not_finished"])),
            *(str(failures["not_feasible"]), str(failures["label_lost"])),
            _shown(numbers["area_median"], ".1%"),
            _shown(numbers["components_median"], ".0f"),
            _shown(numbers["noise_kept_mean"], ".0%"),
            *(_shown(numbers[f"{k}_median"], ".2f") for k in ("insertion", "deletion")),
            _shown(numbers["seconds_median"], ".1f"),
            *(_shown(numbers[f"{k}_passes_median"], ".0f") for k in ("forward", "backward")),
            _shown(ratio, ".2f"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _shown(estimate: Mapping | None, form: str) -> str:
    if estimate is None:
        return "–"
    value, low, high = (format(estimate[name], form) for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def read(folder: Path) -> tuple[list[dict], dict]:
    """A finished benchmark's rows, their cells as numbers, booleans or text, and its summary."""
    with (folder / "results.csv").open(encoding="utf-8", newline="") as file:
        rows = [
            {name: cell if name in NAMES else _typed(cell) for name, cell in row.items()}
            for row in csv.DictReader(file)
        ]
    return rows, json.loads((folder / "summary.json").read_text(encoding="utf-8"))


def _typed(cell: str) -> bool | float | str:
    if cell in ("True", "False"):
        return cell == "True"
    try:
        return float(cell)
    except ValueError:
        return cell


def goals(rows: Sequence[Mapping], numbers: Mapping, slow: Mapping) -> list[dict]:
    """What the project set out to reach on photographs, and what a benchmark of them measured.

    A dict each: ``measure``, ``sign`` and ``goal``, ``value`` (None where the benchmark lacks what
    it takes), ``met``. An area's ratio is that of the medians, ours over the best other method's;
    one of seconds the median of the images', ours over theirs, from ``slow``, the summary of a run
    of extremal perturbation, ReX and ours on few images.
    """
    methods = numbers["methods"]
    ours, by_label = methods.get("ours", {}), methods.get("ours@label", {})
    mine = [row for row in rows if row["method"] == REFERENCE]
    peak = max(values(mine, "peak_rss_mib"), default=None)
    measured = (
        ("feasible, criterion confidence", ">=", 0.97, _feasible(ours)),
        ("median area, confidence", "<=", 0.08, _value(ours, "area_median")),
        ("its ratio to the best other's", "<=", 0.15, _ratio(methods, "confidence")),
        ("median area, label", "<=", 0.03, _value(by_label, "area_median")),
        ("its ratio to the best other's", "<=", 0.33, _ratio(methods, "label")),
        ("kept on fresh noise, mean, confidence", ">=", 0.97, _value(ours, "noise_kept_mean")),
        ("kept on fresh noise, mean, label", ">=", 0.97, _value(by_label, "noise_kept_mean")),
        (
            "share of cells removable, the most",
            "<=",
            0,
            max(values(mine, "removable"), default=None),
        ),
        ("seconds an image, median, confidence", "<=", 15, _value(ours, "seconds_median")),
        ("its ratio to extremal perturbation's", "<=", 0.2, _faster(slow, "extremal")),
        ("its ratio to ReX's", "<=", 0.1, _faster(slow, "rex")),
        ("peak memory, GiB", "<=", 1.5, peak and peak / 1024),
        ("median pieces, confidence", "<=", 6, _value(ours, "components_median")),
        ("median pieces, label", "<=", 6, _value(by_label, "components_median")),
    )
    return [
        {
            **{"measure": measure, "sign": sign, "goal": goal, "value": value},
            "met": value is not None and (value <= goal if sign == "<=" else value >= goal),
        }
        for measure, sign, goal, value in measured
    ]


def _feasible(numbers: Mapping) -> float | None:
    """Of all images there should be: one that is not finished is not feasible."""
    if not numbers:
        return None
    return numbers["feasible"] / (numbers["images"] + numbers["failures"]["not_finished"])


def _value(numbers: Mapping, name: str) -> float | None:
    estimate = numbers.get(name)
    return None if estimate is None else estimate["value"]


def _faster(numbers: Mapping, method: str) -> float | None:
    """Our seconds over a method's, from the median of theirs over ours."""
    ratio = numbers["paired"].get(method, {}).get("seconds", {}).get("ratio_median")
    return 1 / ratio["value"] if ratio and ratio["value"] else None


def _ratio(methods: Mapping, criterion: str) -> float | None:
    """Our median area over the smallest of the other methods', by one criterion."""
    ours = REFERENCE if criterion == "confidence" else f"{REFERENCE}@{criterion}"
    mine = _value(methods.get(ours, {}), "area_median")
    others = [
        area
        for name, numbers in methods.items()
        if not name.startswith(REFERENCE) and ("@label" in name) == (criterion == "label")
        if (area := _value(numbers, "area_median")) is not None
    ]
    return mine / min(others) if mine is not None and others else None


def goals_table(goals: Sequence[Mapping]) -> str:
    """A Markdown table of :func:`goals`."""
    lines = ["| measure | goal | measured | met |", "|---|---|---|---|"]
    for goal in goals:
        value = "not measured" if goal["value"] is None else f"{goal['value']:.3g}"
        met = "yes" if goal["met"] else "no"
        lines.append(f"| {goal['measure']} | {goal['sign']} {goal['goal']:g} | {value} | {met} |")
    return "\n".join(lines)
