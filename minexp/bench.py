"""Many images, several methods, one table: ``results.csv`` and ``summary.json``.

A method is a name and a configuration; every image × method is an explanation on disk, so an
interrupted run goes on where it stopped.
"""

import csv
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch

from minexp import images, jobs, mnist, results, samples
from minexp.config import ExplainConfig, configure, preset
from minexp.errors import InputError, RunError
from minexp.models import load_model
from minexp.paths import write_text
from minexp.references import check_distinct

COLUMNS = (
    *("image", "model", "method", "criterion", "label_index", "correct", "feasible"),
    *("label_kept", "confidence_before", "confidence_after", "area", "components", "noise_kept"),
    *("seconds", "forward_passes", "backward_passes"),
)
DIGITS_A_CLASS = 10
RESAMPLES = 2000


def suite(name: str, criterion: str, limit: int | None) -> tuple[str, list[str], dict]:
    """The model, the image references and the methods of a suite.

    Args:
        name: "bundled", "mnist", or a folder of images.
        criterion: see :class:`minexp.config.ExplainConfig`.
        limit: the first so many images only.

    Returns:
        (model name, references, method -> configuration).
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit={limit}: expected an integer >= 1")
    if name == "mnist":
        digits = configure(preset("digits"), {"criterion": criterion})
        quiet = configure(digits, {"noise_draws": 0, "robustness": 0.0})
        methods = {"ours_no_noise": quiet, "ours": digits}
        return "mnist_cnn", _digits()[:limit], methods
    ours = {"ours": configure(preset("default"), {"criterion": criterion})}
    if name == "bundled":
        return "efficientnet_lite0", [f"bundled:{k}" for k in samples.BUNDLED][:limit], ours
    found = [str(path) for path in images.list_images(name)]
    check_distinct(found)
    return "efficientnet_lite0", found[:limit], ours


def _digits() -> list[str]:
    """The first ten test digits of each class, as references, in the order of the classes."""
    _, labels = mnist.digits()
    _, test = mnist.split()
    chosen = [
        index for digit in range(10) for index in test[labels[test] == digit][:DIGITS_A_CLASS]
    ]
    return [f"mnist:{index}" for index in chosen]


def truth(reference: str) -> int | None:
    """The true class of a suite's image where it is known: digits and manifested samples."""
    kind, _, name = reference.partition(":")
    if kind == "mnist":
        return int(mnist.digits()[1][int(name)])
    known = {
        str(entry["path"].resolve()): entry["index"] for entry in samples.sample_images().values()
    }
    return None if kind == "bundled" else known.get(str(Path(reference).resolve()))


def run(
    model: str,
    references: Sequence[str],
    methods: Mapping[str, ExplainConfig],
    out: Path,
    *,
    n_jobs: int = 1,
    force: bool = False,
    on_row: Callable[[dict], None] | None = None,
) -> dict:
    """Explain every image by every method; write results, table and summary to ``out``.

    Returns:
        The summary: per method the medians and means with 95 % bootstrap intervals.
    """
    results.check_inputs(references, _model(model), methods.values(), out)
    out = Path(out).absolute()  # a worker's working directory may be another
    pairs = [(reference, method) for method in methods for reference in references]
    job = partial(_row, model=model, methods=dict(methods), out=out, force=force)
    rows = []
    for row in jobs.run(job, pairs, jobs=n_jobs):
        rows.append(row)
        if on_row is not None:
            on_row(row)
    summary = {
        "model": model,
        "images": len(references),
        "threads": torch.get_num_threads() if n_jobs == 1 else 1,
        "jobs": n_jobs,
        "processors": os.cpu_count(),
        "methods": {
            method: summarise([r for r in rows if r["method"] == method]) for method in methods
        },
    }
    try:
        write_text(out / "results.csv", _table(rows))
        write_text(out / "summary.json", json.dumps(summary, indent=2) + "\n")
    except OSError as error:
        raise RunError(f"cannot write {out}: {error.strerror or error}") from error
    return summary


@cache
def _model(name: str):
    return load_model(name)  # once a worker, not once an image


def _row(pair: tuple[str, str], *, model: str, methods: dict, out: Path, force: bool) -> dict:
    reference, method = pair
    result, _ = results.explain_to_files(
        reference, _model(model), methods[method], out / method, force=force
    )
    known = truth(reference)
    return {
        "image": reference if ":" in reference else Path(reference).name,
        "model": model,
        "method": method,
        "criterion": methods[method].criterion,
        "label_index": result["label_index"],
        "correct": "" if known is None else known == result["label_index"],
        "feasible": result["feasible"],
        "label_kept": result["label_kept"],
        "confidence_before": result["confidence"],
        "confidence_after": result["explanation_confidence"],
        "area": result["area"],
        "components": result["components"],
        "noise_kept": result["robustness"]["gaussian"]["kept"],
        "seconds": result["seconds"],
        "forward_passes": result["forward_passes"],
        "backward_passes": result["backward_passes"],
    }


def summarise(rows: Sequence[Mapping]) -> dict:
    """Counts of a method's rows, and medians and means with their 95 % bootstrap intervals."""
    change = [row["confidence_after"] - row["confidence_before"] for row in rows]
    columns = {name: [float(row[name]) for row in rows] for name in _SUMMARISED}
    columns["confidence_change"] = change
    return {
        "images": len(rows),
        "feasible": sum(row["feasible"] for row in rows),
        "label_kept": sum(row["label_kept"] for row in rows),
        **{
            f"{name}_{kind}": _interval(values, statistic)
            for name, values in columns.items()
            for kind, statistic in (("median", np.median), ("mean", np.mean))
        },
    }


_SUMMARISED = ("area", "components", "noise_kept", "seconds")


def _interval(values: Sequence[float], statistic: Callable) -> dict[str, float]:
    """Percentile bootstrap, seeded: the same rows give the same interval."""
    values = np.asarray(values)
    draws = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.percentile(statistic(values[draws], axis=1), [2.5, 97.5])
    return {"value": float(statistic(values)), "low": float(low), "high": float(high)}


def _table(rows: Sequence[Mapping]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
