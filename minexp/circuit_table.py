"""Many images' circuits evaluated: ``results.csv``, ``edges.csv`` and ``summary.json``."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from minexp import ablation, cifar, jobs, samples
from minexp.ablation import Reference
from minexp.circuit_evaluate import MEASURES, Plan, areas
from minexp.circuit_item import CUTS, Task, image_of, item, network
from minexp.classifier import Classifier
from minexp.edges import EDGES
from minexp.errors import InputError
from minexp.path_patching import EFFECTS
from minexp.paths import write_text
from minexp.references import is_path, open_reference
from minexp.shortcuts import Roads
from minexp.summary import as_csv, interval, shown, values

REFERENCES = 16  # other images, for means and resampling: always the same ones of a kind
TIMES = 3  # as often as random channels a circuit should keep the label
CURVE = ("ranking", "ablation", "shortcuts", "fraction")
COLUMNS = ("image", "model", "label_index", *CURVE, *MEASURES, "needed", "fall")
MEDIANS = ("recovered", "removed", "fall")  # shares of a way that may be short
SCORES = tuple(f"{score}_{effect}" for score in EDGES for effect in EFFECTS)
EDGE_COLUMNS = ("image", "model", "label_index", "nodes", "ablation", "layers", "edges", *SCORES)


def others(model: Classifier, given: Sequence[str]) -> list[str]:
    """References of images to take means over: the model's kind, none of those given.

    Digits for a grey network of their size, CIFAR-10's test pictures for one of its classes; else
    pictures of MINEXP_IMAGES, or the bundled photographs. Sixteen, evenly spread over all: what is
    given elsewhere changes none.
    """
    if len(model.mean) == 1 and model.size == (28, 28):
        known = [f"mnist:{index}" for index in range(7, 5000, 17)]
    elif model.class_names == cifar.CLASSES:
        known = [f"cifar10:{index}" for index in range(11, 10000, 25)]
    else:
        known = [str(entry["path"]) for entry in samples.sample_images().values()]
        known = known or [f"bundled:{name}" for name in samples.BUNDLED]
    taken = {_where(name) for name in given}
    spread = known[:: max(1, len(known) // REFERENCES)][:REFERENCES]
    left = [name for name in spread if _where(name) not in taken]
    if not left:
        raise InputError(
            f"all {len(spread)} reference images are among those given; leave one out: {spread[0]}"
        )
    return left


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
    taps: Sequence[str] = (),
    ranking: str = "energy",
    nodes: int = 6,
    n_jobs: int = 1,
    force: bool = False,
    on_item: Callable[[], None] | None = None,
) -> dict:
    """Curves and edges of every image, a record each and three tables; returns the summary.

    ``model``: its name; ``taps``: of its layers, none: its own. ``references``: of images, or
    results' JSON. ``ranking`` and ``nodes`` choose the circuit whose edges are cut.
    """
    around = tuple(others(network(model, taps), [image_of(given) for given in references]))
    task = Task(model, tuple(taps), plan or Plan(), ranking, nodes, around, out, force)
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
        "taps": list(network(model, taps).taps),
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
    """Means over the images, of shares medians, with 95 % bootstrap intervals: a row a point.

    ``margin``: of ``kept`` less ``TIMES`` that of as many random channels, image by image; absent
    where that is more than all images.
    """
    chance = {
        (row["image"], *(row[name] for name in CURVE[1:])): row["kept"]
        for row in rows
        if row["ranking"] == "random"
    }
    points: dict[tuple, list[dict]] = {}
    for row in rows:
        by = chance[row["image"], *(row[name] for name in CURVE[1:])]
        margin = {"margin": row["kept"] - TIMES * by}
        points.setdefault(tuple(row[name] for name in CURVE), []).append(row | margin)
    shown = []
    for key, found in points.items():
        names = [name for name in (*MEASURES, "needed", "fall") if values(found, name)]
        least = np.mean([row["kept"] - row["margin"] for row in found])  # TIMES random's share
        shown.append(
            dict(zip(CURVE, key, strict=True))
            | {
                name: interval(values(found, name), np.median if name in MEDIANS else np.mean)
                for name in (*names, *["margin"] * bool(least < 1))
            }
        )
    return shown


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
        | {name: interval(values(found, name), np.mean) for name in ("kept", "lost")}
        for key, found in each.items()
    ]


def _edges(rows: Sequence[dict]) -> list[dict]:
    """A row a kind of cut. A correlation is first averaged over an image's pairs of layers (the
    class's pair left out: there score and effect are all but the same), then over the images."""
    found = []
    for nodes, carried in CUTS:
        part = [row for row in rows if (row["nodes"], row["ablation"]) == (nodes, carried)]
        correlations = {}
        for name in SCORES:
            images: dict[str, list[float]] = {}
            for row in part:
                if name in row and not str(row["layers"]).endswith("class"):
                    images.setdefault(row["image"], []).append(row[name])
            each = [float(np.mean(values)) for values in images.values()]
            correlations[name] = interval(each, np.mean)
        found.append({"nodes": nodes, "ablation": carried, **correlations})
    return found


def table(summary: dict, fraction: float = 0.2) -> str:
    """Markdown: a line a ranking, at one fraction, channels at their means; what no channel at all
    keeps stands first."""
    lines = [
        "| channels by | label kept | logit recovered | label lost | needed |",
        "|" + "---|" * 5,
    ]
    open_means = [
        r for r in summary["curves"] if (r["ablation"], r["shortcuts"]) == ("mean", False)
    ]
    none = [r | {"ranking": "(no channel)"} for r in open_means if r["fraction"] == 0][:1]
    for row in [*none, *(r for r in open_means if r["fraction"] == fraction)]:
        measures = (row.get(m) for m in ("kept", "recovered", "lost", "needed"))
        lines.append(f"| {row['ranking']} | {' | '.join(shown(m, '.2f') for m in measures)} |")
    head = "| channels | edge carries | edges by | moves the channel | moves the logit |"
    lines += ["", head, "|" + "---|" * 5]
    for row in summary["edges"]:
        for score in EDGES:
            cells = [row["nodes"], row["ablation"], score]
            cells += [shown(row[f"{score}_{effect}"], ".2f") for effect in EFFECTS]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
