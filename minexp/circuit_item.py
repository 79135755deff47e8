"""One image's circuit evaluated and kept on disk: an interrupted evaluation goes on."""

import json
import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from minexp import ablation, channels, circuit_evaluate, jobs, path_patching, records, shortcuts
from minexp.ablation import Reference
from minexp.circuit import build, choose
from minexp.circuit_evaluate import Plan
from minexp.classifier import Classifier
from minexp.errors import InputError
from minexp.references import open_reference, stem
from minexp.shortcuts import Roads

SCHEMA = "minexp-circuit/1"
CODE = (  # the files a record depends on
    *("images", "classifier", "folding", "taps", "channels", "tracing", "operations", "transfer"),
    *("edges", "circuit", "shortcuts", "ablation", "path_patching", "circuit_evaluate"),
    "circuit_item",
)


@dataclass(frozen=True)
class Task:
    """What all images of an evaluation share.

    ``others``: the images the means are taken over. ``ranking`` and ``nodes`` (a layer) choose
    the circuit whose edges are cut one by one.
    """

    model: str
    plan: Plan
    ranking: str
    nodes: int
    others: tuple[str, ...]
    out: Path
    force: bool = False


def item(reference: str, *, task: Task) -> dict:
    """Evaluate one image; write ``task.out/images/<stem>.json``, or keep a finished record.

    Returns the record: ``rows`` of :func:`minexp.circuit_evaluate.evaluate`, ``edges`` of
    :func:`minexp.path_patching.correlations`.

    Raises:
        InputError: the image cannot be read.
        RunError: the file cannot be written.
    """
    model = jobs.model(task.model)
    image, digest = open_reference(reference, model)
    inputs = {
        **{"schema": SCHEMA, "image": reference, "sha256": digest, "model": task.model},
        **{"weights_sha256": model.weights_sha256, "taps": list(model.taps)},
        **{"ranking": task.ranking, "nodes": task.nodes},
        "others": [digest for _, digest in _opened(task)],
        "plan": json.loads(json.dumps(asdict(task.plan))),
        "code_sha256": records.code_digest(CODE),
    }
    path = task.out / "images" / f"{stem(reference)}.json"
    if not task.force and (found := records.finished(path, inputs, ("rows", "edges"))) is not None:
        return found
    started = time.perf_counter()
    others, roads = _around(task)
    image = image.to(model.device)
    ready = time.perf_counter()
    reading = channels.read(model, image)
    chosen = choose(reading, task.ranking, channels=task.nodes, means=others.means)
    graph = build(model, reading, chosen, ranking=task.ranking, means=others.means)
    took = time.perf_counter() - ready
    rows = circuit_evaluate.evaluate(model, image, others, task.plan, roads=roads)
    cuts = path_patching.cut_edges(model, reading, graph, ablation.fill(model, "mean", others))
    record = {
        **inputs,
        "label_index": reading.label,
        "seconds": round(time.perf_counter() - started, 3),
        "circuit_seconds": round(took, 3),  # of which the circuit alone
        "rows": rows,
        "edges": path_patching.correlations(graph, cuts),
    }
    records.write(path, record)
    return record


@cache
def _opened(task: Task) -> list[tuple[Tensor, str]]:
    """The other images and their digests, once a worker."""
    model = jobs.model(task.model)
    return [open_reference(name, model) for name in task.others]


@cache
def _around(task: Task) -> tuple[Reference, Roads | None]:
    """The other images' means, once a worker, and the ways around the taps if it can be traced."""
    model = jobs.model(task.model)
    roads = traceable(model)
    return ablation.reference(model, [image for image, _ in _opened(task)], roads), roads


def traceable(model: Classifier) -> Roads | None:
    """The shortcuts around the model's taps, or None where it cannot be traced."""
    blank = torch.zeros(1, len(model.mean), *model.size, device=model.device)
    try:
        return shortcuts.roads(model, blank)
    except InputError:
        return None
