"""Many images, several methods, two criteria, one table: ``results.csv`` and ``summary.json``.

Every image × method is a file on disk, so an interrupted run goes on where it stopped. Ours lies in
``ours`` (criterion "confidence") and ``ours_label``, a peer, judged by both criteria at once, in
the folder of its name; what our results do not say of their cost in ``costs``.

``seconds`` and passes are those of a peer's map, not of trying its areas, and of our mask with its
certificate. ``feasible`` asks peers for their label on all of 32 fresh backgrounds, ours on those
of its own final test; ``noise_kept`` is the share of fresh ones for all alike. ``correct`` is the
network's decision, whichever class was explained. ``insertion`` and ``deletion`` are empty for
ours: a binary mask ranks nothing. ``removable`` is the share of ``active_cells`` (8 x 8 pixels)
that can go alone, on the zero fill; of our masks that of the certificate, judged on noise too, if
there is one; ``last_area`` that of the mask our search ended with, be it feasible or not, before
anything is chosen or cut. ``drop`` and ``increase`` are those of the confidence when the image is
multiplied by the map (ours: the mask); ``peak_rss_mib`` is the most memory the process held up to
the end of that image, never less than for the image before.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from minexp import jobs, metrics, peers, results, summary
from minexp.config import ExplainConfig
from minexp.errors import InputError, RunError
from minexp.paths import write_text
from minexp.references import stem
from minexp.suites import Setting, asked, truth

COLUMNS = (
    *("image", "model", "method", "criterion", "label_index", "correct", "feasible"),
    *("label_kept", "confidence_before", "confidence_after", "area", "components", "noise_kept"),
    *("insertion", "deletion", "seconds", "forward_passes", "backward_passes"),
    *("removable", "active_cells", "drop", "increase", "last_area", "threads", "peak_rss_mib"),
)


def run(
    model: str,
    references: Sequence[str],
    methods: Mapping[str, Setting],
    out: Path,
    *,
    n_jobs: int = 1,
    force: bool = False,
    table_only: bool = False,
    about: Mapping | None = None,
    on_item: Callable[[str, list[dict]], None] | None = None,
) -> dict:
    """Every image by every method: results, table and summary in ``out``; returns the summary.

    A method that an image or a model does not suit (InputError) leaves no row, counts as not
    finished and is named under ``refused``; any other error ends the run. With ``table_only``
    nothing is computed: the table is that of the finished results (RunError if there are none).
    The table replaces an older one. ``about`` goes into the summary; ``on_item`` is called with
    the folder and the rows of each image × method.
    """
    configs = [setting for setting in methods.values() if isinstance(setting, ExplainConfig)]
    results.check_inputs(references, jobs.model(model), configs, out)
    out = Path(out).absolute()  # a worker's working directory may be another
    task = _Task(model, dict(methods), out, force, table_only)
    items = [(reference, folder) for folder in methods for reference in references]
    rows, refused = [], []
    done = jobs.run(partial(_item, task=task), items, jobs=1 if table_only else n_jobs)
    for (_, folder), (found, error) in zip(items, done, strict=True):
        rows += found
        refused += [error] if error else []
        if on_item is not None:
            on_item(folder, found)
    if table_only and not rows:
        raise RunError(f"{out}: no finished result of these images, methods and this code")
    expected = {pair: len(references) for item in methods.items() for pair in _pairs(*item)}
    numbers = {
        "model": model,
        "images": len(references),
        **(about or {}),
        "threads": summary.agreed(rows, "threads"),
        "processors": os.cpu_count(),
        "refused": refused,
        **summary.build(rows, expected),
    }
    try:
        write_text(out / "results.csv", summary.as_csv(rows, COLUMNS))
        write_text(out / "summary.json", json.dumps(numbers, indent=2) + "\n")
    except OSError as error:
        raise RunError(f"cannot write {out}: {error.strerror or error}") from error
    return numbers


@dataclass(frozen=True)
class _Task:
    """What all items of a run share."""

    model: str
    methods: dict[str, Setting]
    out: Path
    force: bool
    table_only: bool


def _pairs(folder: str, setting: Setting) -> list[tuple[str, str]]:
    """The (method, criterion) pairs of a folder."""
    if isinstance(setting, ExplainConfig):
        return [(folder.removesuffix(f"_{setting.criterion}"), setting.criterion)]
    return [(folder, criterion) for criterion in setting]


def _item(item: tuple[str, str], *, task: _Task) -> tuple[list[dict], dict | None]:
    """The rows of one image × method, and what was refused."""
    reference, folder = item
    setting = task.methods[folder]
    try:
        if isinstance(setting, ExplainConfig):
            rows = _ours(reference, folder, setting, task)
        else:
            rows = _peer(reference, folder, setting, task)
    except InputError as error:
        return [], {"image": _name(reference), "method": folder, "error": str(error)}
    return [{name: row.get(name, "") for name in COLUMNS} for row in rows], None


def _name(reference: str) -> str:
    return reference if ":" in reference else Path(reference).name


def _common(reference: str, pair: tuple[str, str], result: Mapping) -> dict:
    """The cells that our results and a peer's have alike."""
    known = truth(reference)
    decision = result.get("decision_index", result["label_index"])  # peers explain no other
    return {
        **{name: result[name] for name in COLUMNS if name in result},
        "image": _name(reference),
        "method": pair[0],
        "criterion": pair[1],
        "correct": "" if known is None else known == decision,
        "confidence_before": result["confidence"],
    }


def _ours(reference: str, folder: str, config: ExplainConfig, task: _Task) -> list[dict]:
    model = jobs.model(task.model)
    out, label = task.out / folder, asked(folder, reference, model)
    cost = task.out / "costs" / folder / f"{stem(reference)}.json"
    if task.table_only:
        result = results.finished(reference, model, config, out, label=label)
    else:
        result, made = results.explain_to_files(
            reference, model, config, out, label=label, force=task.force
        )
        if made:
            seen = {"threads": torch.get_num_threads(), "peak_rss_mib": peers.peak_rss_mib()}
            write_text(cost, json.dumps({"seconds": result["seconds"], **seen}) + "\n")
    if not result:
        return []
    before, after = result["confidence"], result["explanation_confidence"]
    row = {
        **_common(reference, _pairs(folder, config)[0], result),
        "confidence_after": after,
        "noise_kept": result["robustness"]["gaussian"]["kept"],
        "drop": metrics.drop(before, after),
        "increase": after > before,
        "last_area": results.read_history(out / f"{stem(reference)}.json")[-1]["area"],
        **_cost(cost, result),
    }
    if (minimality := result["minimality"]) is not None:
        active = minimality["active"]
        row |= {"removable": minimality["removable"] / max(1, active), "active_cells": active}
    return [row]


def _peer(reference: str, method: str, criteria: tuple[str, ...], task: _Task) -> list[dict]:
    make = peers.finished if task.table_only else partial(peers.judge, force=task.force)
    record = make(reference, jobs.model(task.model), method, task.out)
    if not record:
        return []
    return [
        _common(reference, (method, criterion), record) | record["criteria"][criterion]
        for criterion in criteria
    ]


def _cost(path: Path, result: Mapping) -> dict:
    """Threads and memory of a result made here; its seconds tell it from one made since."""
    try:
        cost = json.loads(path.read_text(encoding="utf-8"))
        return cost if cost.pop("seconds") == result["seconds"] else {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}
