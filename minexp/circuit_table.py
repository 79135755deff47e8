"""Many images' circuits evaluated: ``results.csv``, ``edges.csv`` and ``summary.json``."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from minexp import ablation, jobs, samples
from minexp.ablation import Reference
from minexp.circuit_evaluate import MEASURES, Plan, areas
from minexp.circuit_item import Task, item
from minexp.classifier import Classifier
from minexp.edges import EDGES
from minexp.errors import InputError
from minexp.path_patching import EFFECTS
from minexp.paths import write_text
from minexp.references import is_path, open_reference
from minexp.shortcuts import Roads
from minexp.summary import as_csv, interval, values

REFERENCES = 16  # other images, for means and resampling
CURVE = ("ranking", "ablation", "shortcuts", "fraction")
COLUMNS = ("image", "model", "label_index", *CURVE, *MEASURES, "needed", "fall")
SCORES = tuple(f"{score}_{effect}" for score in EDGES for effect in EFFECTS)
EDGE_COLUMNS = ("image", "model", "label_index", "layers", "edges", *SCORES)


def others(model: Classifier, given: Sequence[str]) -> list[str]:
    """References of images to take means over: the model's kind, none of those given.

    Digits for a grey network of their size; else the pictures of MINEXP_IMAGES, spread over its
    classes, or the bundled photographs.
    """
    if len(model.mean) == 1 and model.size == (28, 28):
        known = [f"mnist:{index}" for index in range(7, 5000, 17)]
    else:
        known = [str(entry["path"]) for entry in samples.sample_images().values()]
        known = known or [f"bundled:{name}" for name in samples.BUNDLED]
    taken = {_where(name) for name in given}
    left = [name for name in known if _where(name) not in taken]
    if not left:
        raise InputError("no reference image is left; set MINEXP_IMAGES to a folder of pictures")
    return left[:: max(1, len(left) // REFERENCES)][:REFERENCES]


def _where(name: str) -> str:
    return str(Path(name).resolve()) if is_path(name) else name


def make_reference(
    model: Classifier, given: Sequence[str], roads: Roads | None = None
) -> Reference:
    """The channels' means over :func:`others`."""
    return ablation.reference(
        model, [open_reference(name, model)[0] for name in others(model, given)], roads
    )


def evaluate_many(
    model: str,
    references: Sequence[str],
    out: Path,
    plan: Plan | None = None,
    *,
    ranking: str = "energy",
    nodes: int = 6,
    n_jobs: int = 1,
    force: bool = False,
    on_item: Callable[[], None] | None = None,
) -> dict:
    """Curves and edges of every image, a record each and three tables; returns the summary.

    ``model``: its name. ``ranking`` and ``nodes`` choose the circuit whose edges are cut.
    """
    around = tuple(others(jobs.model(model), references))
    task = Task(model, plan or Plan(), ranking, nodes, around, out, force)
    rows, edges, seconds = [], [], []
    for record in jobs.run(partial(item, task=task), references, jobs=n_jobs):
        about = {"image": Path(record["image"]).name, "model": model}
        about["label_index"] = record["label_index"]
        rows += [about | row for row in record["rows"]]
        edges += [about | row for row in record["edges"]]
        seconds.append(record["circuit_seconds"])
        if on_item is not None:
            on_item()
    summary = {
        "model": model,
        "images": len(references),
        "reference_images": len(around),
        "edges_of": {"ranking": ranking, "channels": nodes},
        "circuit_seconds": float(np.median(seconds)),
        "curves": _curves(rows),
        "areas": _areas(rows),
        "edges": _edges(edges),
    }
    write_text(out / "results.csv", as_csv(rows, COLUMNS))
    write_text(out / "edges.csv", as_csv(edges, EDGE_COLUMNS))
    write_text(out / "summary.json", json.dumps(summary, indent=1) + "\n")
    return summary


def read(folder: Path) -> dict:
    """The summary of a finished evaluation. Raises InputError where the folder has none."""
    path = folder / "summary.json"
    if not path.is_file():
        raise InputError(
            f"{folder}: no evaluation; write it with: minexp circuit --evaluate IMAGE ... "
            f"--out {folder}"
        )
    return json.loads(path.read_text(encoding="utf-8"))


def _curves(rows: Sequence[dict]) -> list[dict]:
    """Means over the images with 95 % bootstrap intervals, a row a point of a curve."""
    points: dict[tuple, list[dict]] = {}
    for row in rows:
        points.setdefault(tuple(row[name] for name in CURVE), []).append(row)
    return [
        dict(zip(CURVE, key, strict=True))
        | {
            name: interval(values(found, name), np.mean)
            for name in (*MEASURES, "needed", "fall")
            if values(found, name)
        }
        for key, found in points.items()
    ]


def _areas(rows: Sequence[dict]) -> list[dict]:
    images: dict[str, list[dict]] = {}
    for row in rows:
        images.setdefault(row["image"], []).append(row)
    each: dict[tuple, list[dict]] = {}
    for found in images.values():
        for area in areas(found):
            each.setdefault(tuple(area[name] for name in CURVE[:3]), []).append(area)
    return [
        dict(zip(CURVE, key, strict=False))
        | {name: interval(values(found, name), np.mean) for name in MEASURES}
        for key, found in each.items()
    ]


def _edges(rows: Sequence[dict]) -> dict[str, dict | None]:
    """A correlation is first averaged over an image's pairs of layers (the class's pair left out:
    there score and effect are all but the same thing), then over the images."""
    found = {}
    for name in SCORES:
        images: dict[str, list[float]] = {}
        for row in rows:
            if name in row and not str(row["layers"]).endswith("class"):
                images.setdefault(row["image"], []).append(row[name])
        found[name] = interval([float(np.mean(each)) for each in images.values()], np.mean)
    return found


def table(summary: dict, fraction: float = 0.2) -> str:
    """Markdown: a line a ranking, at one fraction, channels at their means."""
    lines = [
        "| channels by | label kept | logit recovered | label lost | needed |",
        "|" + "---|" * 5,
    ]
    for row in summary["curves"]:
        if (row["ablation"], row["shortcuts"], row["fraction"]) == ("mean", False, fraction):
            cells = [row["ranking"]] + [
                f"{row[m]['value']:.2f} [{row[m]['low']:.2f}, {row[m]['high']:.2f}]"
                if row.get(m) else "–"
                for m in ("kept", "recovered", "lost", "needed")
            ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| edges by | moves the channel | moves the logit |", "|---|---|---|"]
    for score in EDGES:
        found = [summary["edges"][f"{score}_{effect}"] for effect in EFFECTS]
        shown = [f"{f['value']:.2f} [{f['low']:.2f}, {f['high']:.2f}]" if f else "–" for f in found]
        lines.append(f"| {score} | {' | '.join(shown)} |")
    return "\n".join(lines)
