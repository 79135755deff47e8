"""Rows of a benchmark's table, and the summary of them, as its tests write them."""

from collections import Counter

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


def build(rows) -> dict:
    return summary.build(rows, Counter((row["method"], row["criterion"]) for row in rows))
