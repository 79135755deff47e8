"""From a table's rows to what it says: medians, bootstrap intervals, paired differences, failures.

Functions of rows, dicts by the columns of :mod:`minexp.bench`; a cell that is "", None or
missing is unknown and leaves its row out of that column's numbers only.
"""

import csv
import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from scipy import stats

from minexp.errors import InputError

RESAMPLES = 2000
REFERENCE = "ours"  # what the other methods are paired with
COLUMNS = (
    *("area", "components", "noise_kept", "seconds", "insertion", "deletion"),
    *("forward_passes", "backward_passes", "removable", "confidence_change", "last_area"),
)
PAIRED = ("area", "seconds")
NAMES = ("image", "model", "method", "criterion", "layer")  # text, whatever it looks like


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

    Among the failures: ``not_feasible`` by the method's own test, ``noise_lost`` on one or more of
    the fresh backgrounds, ``whole_image`` where nothing less than all pixels met the criterion.

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
            "noise_lost": sum(value < 1 for value in columns["noise_kept"]),
            "whole_image": sum(value == 1 for value in columns["area"]),
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


def compare(
    rows: Sequence[Mapping], ours: Sequence[Mapping], columns: Sequence[str] = PAIRED
) -> dict:
    """Columns of a method's rows against those of ours, on the images that both have.

    For each column: ``pairs``; ``difference_median`` (theirs less ours) and ``ratio_median``
    (theirs over ours, where ours is not 0) with 95 % bootstrap intervals over the images;
    ``ours_smaller`` and ``ours_larger``, in how many pairs.
    """
    known = {row["image"]: row for row in ours}
    both = [(row, known[row["image"]]) for row in rows if row["image"] in known]
    return {"against": REFERENCE, **{name: _paired(both, name) for name in columns}}


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
    array = np.asarray(values, dtype=float)
    low, high = np.percentile(statistic(array[_draws(len(array))], axis=1), [2.5, 97.5])
    return {"value": float(statistic(array)), "low": float(low), "high": float(high)}


@cache
def _draws(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, count, (RESAMPLES, count))


def difference(first: Sequence[float], second: Sequence[float]) -> dict:
    """Do two groups, say wrong and right decisions, differ in a quantity?

    ``first`` and ``second``: how many values; their ``medians``, with 95 % bootstrap intervals;
    ``u``, the pairs in which the first's is the larger, ties half, and ``p``, two-sided (Mann and
    Whitney 1947; exact if a group has at most 8 values and there are no ties, else normal);
    ``delta``, the share of pairs in which the first's is larger less that in which it is smaller
    (Cliff 1993), from -1 to 1, with a 95 % bootstrap interval over both groups. None where a group
    is empty.
    """
    counts = {"first": len(first), "second": len(second)}
    medians = [interval(values, np.median) for values in (first, second)]
    if not len(first) or not len(second):
        return {**counts, "medians": medians, "u": None, "p": None, "delta": None}
    test = stats.mannwhitneyu(first, second, alternative="two-sided")
    signs = np.sign(np.subtract.outer(np.asarray(first, float), np.asarray(second, float)))
    generator = np.random.default_rng(0)
    drawn = [
        signs[np.ix_(*(generator.integers(0, size, size) for size in signs.shape))].mean()
        for _ in range(RESAMPLES)
    ]
    low, high = np.percentile(drawn, [2.5, 97.5])
    delta = {"value": float(signs.mean()), "low": float(low), "high": float(high)}
    numbers = {"u": float(test.statistic), "p": float(test.pvalue), "delta": delta}
    return {**counts, "medians": medians, **numbers}


def by_decision(
    rows: Sequence[Mapping], criterion: str, column: str = "area"
) -> dict[str, list[float]]:
    """A column of our feasible masks, each image once: of "wrong" and of "right" decisions."""
    own = {
        row["image"]: row
        for row in rows
        if (row["method"], row["criterion"]) == (REFERENCE, criterion) and row["feasible"]
    }
    return {
        name: [row[column] for row in own.values() if row["correct"] is right]
        for name, right in (("wrong", False), ("right", True))
    }


def agreed(rows: Sequence[Mapping], name: str) -> object:
    """What all rows that know a column have in it; None if they differ or none knows it."""
    found = {row[name] for row in rows} - {""}
    return found.pop() if len(found) == 1 else None


def as_csv(rows: Sequence[Mapping], columns: Sequence[str]) -> str:
    """The rows as CSV text with a header, the same bytes for the same rows."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def table(summary: Mapping) -> str:
    """A Markdown table of a summary's failures and medians [95 % intervals], a line a method.

    Means are the label kept on noise and the share of active cells that could go.
    """
    lines = [
        "| method | images | not finished | label lost on noise | whole image | area | pieces "
        "| on noise | removable | insertion | deletion | seconds | forward | backward "
        "| area / ours |",
        "|" + "---|" * 15,
    ]
    for name, numbers in summary["methods"].items():
        failures = numbers["failures"]
        ratio = summary["paired"].get(name, {}).get("area", {}).get("ratio_median")
        cells = [
            name,
            *(str(numbers["images"]), str(failures["not_finished"])),
            *(str(failures["noise_lost"]), str(failures["whole_image"])),
            shown(numbers["area_median"], ".1%"),
            shown(numbers["components_median"], ".0f"),
            *(shown(numbers[f"{k}_mean"], ".0%") for k in ("noise_kept", "removable")),
            *(shown(numbers[f"{k}_median"], ".2f") for k in ("insertion", "deletion")),
            shown(numbers["seconds_median"], ".1f"),
            *(shown(numbers[f"{k}_passes_median"], ".0f") for k in ("forward", "backward")),
            shown(ratio, ".2f"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def shown(estimate: Mapping | None, form: str) -> str:
    """An estimate with its interval; a dash where there is none."""
    if estimate is None:
        return "–"
    value, low, high = (format(estimate[name], form) for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def with_interval(estimate: Mapping, form: str) -> str:
    """An estimate and its interval in words, for prose."""
    value, low, high = (format(estimate[name], form) for name in ("value", "low", "high"))
    return f"{value} (95 % interval {low} to {high})"


def read(folder: Path) -> tuple[list[dict], dict]:
    """A finished benchmark's rows, their cells as numbers, booleans or text, and its summary.

    Raises InputError where the folder has no table.
    """
    if not (folder / "summary.json").is_file():
        raise InputError(
            f"{folder}: no table; write it with: minexp bench --suite SUITE --out {folder}"
        )
    with (folder / "results.csv").open(encoding="utf-8", newline="") as file:
        rows = [
            {name: cell if name in NAMES else _typed(cell) for name, cell in row.items()}
            for row in csv.DictReader(file)
        ]
    return rows, json.loads((folder / "summary.json").read_text(encoding="utf-8"))


def digest(folder: Path) -> str:
    """sha256 of a finished benchmark's table, for a figure's sidecar."""
    return hashlib.sha256((folder / "results.csv").read_bytes()).hexdigest()


def _typed(cell: str) -> bool | float | str:
    if cell in ("True", "False"):
        return cell == "True"
    try:
        return float(cell)
    except ValueError:
        return cell
