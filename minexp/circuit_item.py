"""One image's circuit evaluated and kept on disk: an interrupted evaluation goes on.

What is evaluated may be a picture, or a result's JSON: then also the circuits that are read off its
explanation.
"""

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import networkx as nx
import torch
from torch import Tensor

from minexp import ablation, channels, circuit_evaluate, jobs, path_patching, records, shortcuts
from minexp.ablation import Reference
from minexp.channels import Reading
from minexp.circuit import build, choose, nodes_of
from minexp.circuit_evaluate import Plan
from minexp.classifier import Classifier, checked_taps
from minexp.errors import InputError
from minexp.masking import apply_mask
from minexp.references import beside, open_reference, stem
from minexp.results import read_mask, read_result
from minexp.shortcuts import Roads

SCHEMA = "minexp-circuit/3"
CUTS = (("chosen", "mean"), ("chosen", "zero"), ("random", "mean"))  # nodes, what an edge carries
CODE = (  # the files a record depends on
    *("images", "classifier", "folding", "taps", "channels", "tracing", "operations", "transfer"),
    *("edges", "circuit", "shortcuts", "ablation", "path_patching", "circuit_evaluate"),
    "circuit_item",
)


@dataclass(frozen=True)
class Task:
    """What all images of an evaluation share.

    ``others``: the images the means are taken over. ``ranking`` and ``nodes`` (a layer) choose
    the circuit whose edges are cut one by one; so are those of as many random channels. ``taps``:
    of the layers to look at; none: the model's own.
    """

    model: str
    taps: tuple[str, ...]
    plan: Plan
    ranking: str
    nodes: int
    others: tuple[str, ...]
    out: Path
    force: bool = False


def is_result(given: str) -> bool:
    """Whether an argument is a result's JSON rather than a picture."""
    return given.endswith(".json")


def image_of(given: str) -> str:
    """The image reference behind an argument: itself, or the one that a result explains."""
    if not is_result(given):
        return given
    return beside(Path(given), read_result(Path(given))["image"]["path"])


def label_of(given: str) -> int | None:
    """The class that a result explains; of a picture None, the network's decision."""
    return read_result(Path(given))["label_index"] if is_result(given) else None


def network(model: str, taps: Sequence[str] = ()) -> Classifier:
    """The model of a name, tapped where asked. Raises InputError for a tap that it has not."""
    found = jobs.model(model)
    return replace(found, taps=checked_taps(found, taps)) if taps else found


def item(given: str, *, task: Task) -> dict:
    """Evaluate one image; write ``task.out/images/<stem>.json``, or keep a finished record.

    Returns the record: ``rows`` of :func:`minexp.circuit_evaluate.evaluate`, ``edges`` of
    :func:`minexp.path_patching.correlations`, with the ``nodes`` and the ``ablation`` of the cuts.

    Raises:
        InputError: the image cannot be read.
        RunError: the file cannot be written.
    """
    model, reference = network(task.model, task.taps), image_of(given)
    image, digest = open_reference(reference, model)
    mask, label = read_mask(Path(given)) if is_result(given) else None, label_of(given)
    inputs = {
        **{"schema": SCHEMA, "image": reference, "sha256": digest, "model": task.model},
        "label_asked": label,
        **{"weights_sha256": model.weights_sha256, "taps": list(model.taps)},
        **{"ranking": task.ranking, "nodes": task.nodes, "mask": _digest(mask)},
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
    reading = channels.read(model, image, label)
    chosen = choose(reading, task.ranking, channels=task.nodes, means=others.means)
    graph = build(model, reading, chosen, ranking=task.ranking, means=others.means)
    took = time.perf_counter() - ready
    # one seed for all would drop the same channels and draw the same circuits on every image
    plan = replace(task.plan, seed=task.plan.seed + int(digest[:8], 16))
    masked = None if mask is None else apply_mask(image, mask.to(image))
    rows = circuit_evaluate.evaluate(
        model, image, others, plan, label=label, masked=masked, roads=roads
    )
    record = {
        **inputs,
        "label_index": reading.label,
        "seconds": round(time.perf_counter() - started, 3),
        "circuit_seconds": round(took, 3),  # of which the circuit alone
        "rows": rows,
        "edges": list(_edges(model, reading, graph, others, plan)),
    }
    records.write(path, record)
    return record


def _digest(mask: Tensor | None) -> str | None:
    return None if mask is None else hashlib.sha256(mask.bool().numpy().tobytes()).hexdigest()


def _edges(
    model: Classifier,
    reading: Reading,
    graph: nx.DiGraph,
    others: Reference,
    plan: Plan,
) -> Iterator[dict]:
    """How well each score foretells the cuts: of the circuit's edges, and of random channels'."""
    generator = torch.Generator().manual_seed(plan.seed)
    sizes = {tap: value.shape[1] for tap, value in reading.activations.items()}
    drawn = {
        tap: torch.randperm(sizes[tap], generator=generator)[: len(kept)].tolist()
        for tap, kept in nodes_of(graph).items()
    }
    graphs = {"chosen": graph, "random": build(model, reading, drawn, means=others.means)}
    for name, carried in CUTS:
        filled = ablation.fill(model, carried, others)
        cuts = path_patching.cut_edges(model, reading, graphs[name], filled)
        for row in path_patching.correlations(graphs[name], cuts):
            yield {"nodes": name, "ablation": carried, **row}


@cache
def _opened(task: Task) -> list[tuple[Tensor, str]]:
    """The other images and their digests, once a worker."""
    model = network(task.model, task.taps)
    return [open_reference(name, model) for name in task.others]


@cache
def _around(task: Task) -> tuple[Reference, Roads | None]:
    """The other images' means, once a worker, and the ways around the taps if it can be traced."""
    model = network(task.model, task.taps)
    roads = traceable(model)
    return ablation.reference(model, [image for image, _ in _opened(task)], roads), roads


def traceable(model: Classifier) -> Roads | None:
    """The shortcuts around the model's taps, or None where it cannot be traced."""
    blank = torch.zeros(1, len(model.mean), *model.size, device=model.device)
    try:
        return shortcuts.roads(model, blank)
    except InputError:
        return None
