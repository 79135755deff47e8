"""Rows of a benchmark's table, and the summary of them, as its tests write them."""

import json
from collections import Counter
from pathlib import Path

from minexp import bench, summary


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


def build(rows) -> dict:
    return summary.build(rows, Counter((row["method"], row["criterion"]) for row in rows))


def write(folder: Path, rows, **about) -> None:
    """A finished benchmark's table with these rows, as :func:`minexp.bench.run` leaves it."""
    folder.mkdir(parents=True)
    cells = [{name: one.get(name, "") for name in bench.COLUMNS} for one in rows]
    (folder / "results.csv").write_text(summary.as_csv(cells, bench.COLUMNS))
    numbers = {"model": "mnist_cnn", "images": len({one["image"] for one in rows}), **about}
    (folder / "summary.json").write_text(json.dumps(numbers | build(rows)))
