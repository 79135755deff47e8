"""The sanity check on files: images x methods, each a record on disk, and one table.

Each network of a cascade (:mod:`minexp.sanity`) explains its own decision: once the head is
shuffled, a class's index means nothing. The first entry, of no layer, is the intact network once
more: for ours with another seed of the search, which says how alike two masks of one decision are.
``chance`` is the Dice that two masks of such areas have if nothing links them, ``excess`` the share
of the way from there to 1. ``blank``: whether the network says of a blank image what it says of the
picture; where it does, any mask suffices, and an empty one resembles nothing.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minexp import jobs, peers, records, results, sanity, summary
from minexp.classifier import Classifier
from minexp.config import ExplainConfig
from minexp.errors import InputError
from minexp.explain import explain
from minexp.paths import write_text
from minexp.references import is_path, open_reference, stem
from minexp.sanity import SIMILARITIES
from minexp.sufficiency import probability

SCHEMA = "minexp-sanity/1"
CODE = (  # the files a record depends on
    *results.CODE,
    *("attention", "baselines", "metrics", "robustness", "peers", "sanity", "sanity_run"),
)
METHODS = ("ours", *(name for name, peer in peers.PEERS.items() if not peer.areas))
COLUMNS = (
    *("image", "model", "method", "layers", "layer", "decision_index", "confidence"),
    *("feasible", "area", "blank", *SIMILARITIES, "chance", "excess"),
)
MEANS = (*SIMILARITIES, "chance", "excess", "area", "confidence", "feasible", "blank")


def check_image(
    reference: str, method: str, model: Classifier, config: ExplainConfig, out: Path,
    *, stages: int, seed: int, force: bool = False,
) -> dict:  # fmt: skip
    """Cascade one image by one method; write ``out/<method>/<stem>.json``, or keep a finished one.

    ``cascade`` holds an entry a stage; its similarities are None where the shuffled network's
    output, or the map, is not finite. ``config`` is ours'.

    Raises:
        InputError: an unknown method, ``stages`` < 1, an image that cannot be read, or one the
            method cannot take.
        RunError: the file cannot be written.
    """
    _check_methods([method], stages)
    image, digest = open_reference(reference, model)
    inputs = {
        **{"schema": SCHEMA, "sha256": digest, "model": model.name, "method": method},
        **{"weights_sha256": model.weights_sha256, "stages": stages, "seed": seed},
        "config": json.loads(json.dumps(asdict(config))) if method == "ours" else None,
        "code_sha256": records.code_digest(CODE),
    }
    path = out / method / f"{stem(reference)}.json"
    if not force and (found := records.finished(path, inputs, ("cascade",))) is not None:
        return found
    started = time.perf_counter()
    entries = _entries(image.to(model.device), method, model, config, stages, seed)
    record = {**inputs, "seconds": round(time.perf_counter() - started, 3), "cascade": entries}
    records.write(path, record)
    return record


def _check_methods(methods: Sequence[str], stages: int) -> None:
    for method in methods:
        if method not in METHODS:
            raise InputError(f"unknown method {method!r}; choose one of: {', '.join(METHODS)}")
    if stages < 1:
        raise InputError(f"stages={stages}: expected an integer >= 1")


def _entries(
    image: Tensor, method: str, model: Classifier, config: ExplainConfig, stages: int, seed: int
) -> list[dict]:
    own, _ = _explained(model, image, method, config)
    again = replace(config, seed=config.seed + 1)
    networks = [(0, "", model, again)]
    found = [_entry(networks[0], own, image, method)]
    for count, layer, network in sanity.cascade(model, image, stages=stages, seed=seed):
        found.append(_entry((count, layer, network, config), own, image, method))
    return found


def _entry(
    stage: tuple[int, str, Classifier, ExplainConfig],
    own: Tensor | None,
    image: Tensor,
    method: str,
) -> dict:
    """What a stage's network explains, beside ``own``, the intact one's map (1, 1, H, W)."""
    count, layer, network, config = stage
    saliency, about = _explained(network, image, method, config)
    entry = {"layers": count, "layer": layer, **about, **dict.fromkeys(SIMILARITIES)}
    if own is None or saliency is None:
        return entry
    areas = (own.mean().item(), saliency.mean().item()) if method == "ours" else (sanity.TOP,) * 2
    alike: dict = sanity.similarities(own, saliency)
    chance = sanity.chance_dice(*areas)
    excess = None if chance == 1 else (alike["dice"] - chance) / (1 - chance)
    return entry | alike | {"chance": chance, "excess": excess}


def _explained(
    model: Classifier, image: Tensor, method: str, config: ExplainConfig
) -> tuple[Tensor | None, dict]:
    """The map of a network's own decision, None if its output is not finite; and about it."""
    with torch.no_grad():
        logits, nothing = model(image), model(torch.zeros_like(image))
    about: dict = dict.fromkeys(("decision_index", "confidence", "feasible", "area", "blank"))
    if not logits.isfinite().all():
        return None, about
    label = int(logits.argmax())
    about |= {"decision_index": label, "confidence": probability(logits, label)}
    about["blank"] = bool(nothing.isfinite().all()) and int(nothing.argmax()) == label
    if method == "ours":
        found = explain(model, image, config)
        return found.mask, about | {"feasible": found.feasible, "area": found.area}
    saliency = peers.PEERS[method].attribute(model, image, label)
    return (saliency if saliency.isfinite().all() else None), about


def run(
    model: str, references: Sequence[str], methods: Sequence[str], out: Path,
    *, config: ExplainConfig, stages: int, seed: int = 0, n_jobs: int = 1, force: bool = False,
    on_item: Callable[[str], None] | None = None,
) -> dict:  # fmt: skip
    """Every image by every method: records, ``results.csv`` and ``summary.json`` in ``out``.

    Returns the summary: for each method a list of stages with the means of the similarities over
    the images that know them and their 95 % bootstrap intervals. Raises InputError and RunError as
    :func:`check_image` does.
    """
    _check_methods(methods, stages)
    results.check_inputs(references, jobs.model(model), [config], out)
    out = Path(out).absolute()  # a worker's working directory may be another
    settings = {"config": config, "out": out, "stages": stages, "seed": seed, "force": force}
    items = [(reference, method) for method in methods for reference in references]
    rows = []
    done = jobs.run(partial(_item, model=model, settings=settings), items, jobs=n_jobs)
    for (reference, method), entries in zip(items, done, strict=True):
        named = {"image": _name(reference), "model": model, "method": method}
        rows += [{name: (named | entry).get(name) for name in COLUMNS} for entry in entries]
        if on_item is not None:
            on_item(method)
    numbers = {"model": model, "images": len(references), "stages": stages, "seed": seed}
    numbers["methods"] = {method: _stages(rows, method) for method in methods}
    write_text(out / "results.csv", summary.as_csv(rows, COLUMNS))
    write_text(out / "summary.json", json.dumps(numbers, indent=2) + "\n")
    return numbers


def _name(reference: str) -> str:
    return Path(reference).name if is_path(reference) else reference


def _item(item: tuple[str, str], *, model: str, settings: Mapping) -> list[dict]:
    reference, method = item
    return check_image(reference, method, jobs.model(model), **settings)["cascade"]


def _stages(rows: Sequence[Mapping], method: str) -> list[dict]:
    own = [row for row in rows if row["method"] == method]
    found = []
    for count, layer in dict.fromkeys((row["layers"], row["layer"]) for row in own):
        here = [row for row in own if row["layers"] == count]
        means = {name: summary.interval(summary.values(here, name), np.mean) for name in MEANS}
        finite = sum(row["dice"] is not None for row in here)
        found.append({"layers": count, "layer": layer, "finite": finite, **means})
    return found


def table(numbers: Mapping) -> str:
    """A Markdown table of a summary: a line a method and stage, means [95 % intervals]."""
    head = (
        "| method | layers shuffled | finite | Spearman | SSIM | Dice | Dice by chance | area "
        "| blank says the same |"
    )
    lines = [head, "|" + "---|" * 9]
    for method, stages in numbers["methods"].items():
        for stage in stages:
            names = (*SIMILARITIES, "chance", "area", "blank")
            cells = [summary.shown(stage[name], ".2f") for name in names]
            what = "0 (another seed)" if method == "ours" and not stage["layers"] else ""
            cells = [method, what or str(stage["layers"]), str(stage["finite"]), *cells]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
