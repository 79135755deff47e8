"""One of the methods to compare against, on one image: its map, judged, and on disk.

Beside ``<stem>.json`` lies ``<stem>.map.npy``, the map (H, W) as float16, scaled to [0, 1] because
float16 would flatten the tiny values of integrated gradients; for drawing, not for judging.
"""

import json
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minexp import baselines, metrics, records, taps
from minexp.classifier import Classifier, folded
from minexp.config import CRITERIA
from minexp.errors import InputError, RunError
from minexp.masking import apply_mask
from minexp.metrics import BATCH
from minexp.minimality import active_cells, without_cells
from minexp.paths import replacing, write_text
from minexp.references import open_reference, stem
from minexp.sufficiency import TOLERANCE, check_mask

SCHEMA = "minexp-peer/1"
# the files a judgement depends on
CODE = (
    *("images", "mnist", "cifar", "builders", "taps", "folding", "classifier", "entries"),
    *("models", "references", "masking", "sufficiency", "minimality", "attention", "baselines"),
    *("metrics", "peers"),
)
CELL = 8  # pixels, the side of the cells that are switched off one at a time
CELLS = 32  # of them are tried at most: a forward pass each
GRADIENT_STEPS = 50
# Five areas instead of baselines' seven, 800 steps as published: what a processor affords.
SWEPT, EXTREMAL_STEPS = (0.05, 0.1, 0.2, 0.4, 0.7), 800


@dataclass(frozen=True)
class Peer:
    """A method: (model, image, label) -> map (1, 1, H, W), or a mask (A, 1, H, W) an area.

    ``backward_passes`` of one image each, by construction: Captum differentiates with respect to
    detached inputs, where a hook on the module would count wrongly. ``areas`` are those swept.
    """

    attribute: Callable[[Classifier, Tensor, int], Tensor]
    backward_passes: int = 0
    areas: tuple[float, ...] = ()


PEERS: Mapping[str, Peer] = {  # the cheapest first
    "centre": Peer(baselines.centre),
    "random": Peer(baselines.random_map),
    "gradcam": Peer(baselines.gradcam, 1),
    "attention": Peer(baselines.attention_map),
    "rollout": Peer(baselines.attention_rollout),
    "integrated_gradients": Peer(
        partial(baselines.integrated_gradients, steps=GRADIENT_STEPS), GRADIENT_STEPS
    ),
    "occlusion": Peer(baselines.occlusion),
    "rise": Peer(baselines.rise),
    "rex": Peer(baselines.rex),
    "extremal": Peer(
        partial(baselines.extremal_perturbation, areas=SWEPT, steps=EXTREMAL_STEPS),
        EXTREMAL_STEPS * len(SWEPT),
        SWEPT,
    ),
}
FIELDS = (
    *("schema", "image", "model", "weights_sha256", "method", "code_sha256", "label_index"),
    *("label", "confidence", "seconds", "forward_passes", "backward_passes", "insertion"),
    *("deletion", "drop", "increase", "criteria", "threads", "peak_rss_mib"),
)


def judge(
    reference: str, model: Classifier, method: str, out: Path, *, force: bool = False
) -> dict:
    """Run one method of :data:`PEERS` on one image; write ``out/<method>/<stem>.json`` and the map.

    A finished one with the same inputs is kept; a file that is not whole is made anew. The label
    is the top-1 class of the image. ``seconds`` (wall clock), ``forward_passes`` and
    ``backward_passes`` are those of the map alone; ``insertion``, ``deletion``, ``drop`` and
    ``increase`` are :mod:`minexp.metrics` of the map. ``criteria`` holds, for "label" and
    "confidence", what :func:`assess` says of the smallest mask of first-ranked pixels.

    Raises:
        InputError: an unknown method, an image that cannot be read, or one the method cannot take.
        RunError: the files cannot be written.
    """
    if method not in PEERS:
        raise InputError(f"unknown method {method!r}; choose one of: {', '.join(PEERS)}")
    image, digest = open_reference(reference, model)
    if not force and (found := _finished(reference, digest, model, method, out)) is not None:
        return found
    record, saliency = _measure(image.to(model.device), model, method)
    record = {**_inputs(digest, model, method), **record}
    record["image"] = {"path": reference, "sha256": digest}
    path = _path(reference, method, out)
    try:
        _write(path, record, saliency)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}; then run again") from error
    return record


def finished(reference: str, model: Classifier, method: str, out: Path) -> dict | None:
    """What :func:`judge` would keep, or None where it would compute."""
    return _finished(reference, open_reference(reference, model)[1], model, method, out)


def _finished(
    reference: str, digest: str, model: Classifier, method: str, out: Path
) -> dict | None:
    path = _path(reference, method, out)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        saliency = np.load(path.with_name(f"{path.stem}.map.npy"), allow_pickle=False)
        whole = record.keys() >= set(FIELDS) and record["criteria"].keys() == set(CRITERIA)
        known = {name: record.get(name) for name in _inputs("", model, method)}
        known["image"] = {"sha256": record["image"]["sha256"]}
    except (OSError, ValueError, EOFError, AttributeError, TypeError, KeyError):
        return None
    same = known == _inputs(digest, model, method) and saliency.shape == tuple(model.size)
    return {**record, "image": {"path": reference, "sha256": digest}} if whole and same else None


def _path(reference: str, method: str, out: Path) -> Path:
    return Path(out) / method / f"{stem(reference)}.json"


def _inputs(digest: str, model: Classifier, method: str) -> dict:
    return {
        "schema": SCHEMA,
        "image": {"sha256": digest},
        "model": model.name,
        "weights_sha256": model.weights_sha256,
        "method": method,
        "code_sha256": records.code_digest(CODE),
    }


def _write(path: Path, record: dict, saliency: Tensor) -> None:
    path.unlink(missing_ok=True)  # an older JSON must not stand beside a new map
    lowest, highest = saliency.aminmax()
    scaled = (saliency - lowest) / (highest - lowest).clamp(min=torch.finfo(torch.float32).tiny)
    with (
        replacing(path.with_name(f"{path.stem}.map.npy")) as partial_path,
        partial_path.open("wb") as file,  # np.save would add a suffix to a path
    ):
        np.save(file, scaled[0, 0].cpu().numpy().astype(np.float16), allow_pickle=False)
    write_text(path, json.dumps(record, indent=2) + "\n")


def _measure(image: Tensor, model: Classifier, method: str) -> tuple[dict, Tensor]:
    """All of the record but its inputs, and the map (1, 1, H, W)."""
    peer = PEERS[method]
    model = folded(model, image)  # every method has the speed that ours has
    shares = metrics.probabilities(model, image)[0]  # also warms up what the clock then measures
    label = int(shares.argmax())
    with taps.count(model.module) as passes:
        started = time.perf_counter()
        maps = peer.attribute(model, image, label)
        seconds = time.perf_counter() - started
    saliency = baselines.extremal_map(maps) if peer.areas else maps
    drop, increase = metrics.drop_and_increase(model, image, saliency, label)
    masks = _masks(model, image, maps, saliency, label, peer.areas)
    record = {
        "label_index": label,
        "label": model.class_names[label],
        "confidence": shares[label].item(),
        "seconds": round(seconds, 3),
        "forward_passes": sum(passes),
        "backward_passes": peer.backward_passes,
        "insertion": metrics.insertion_auc(model, image, saliency, label)[0],
        "deletion": metrics.deletion_auc(model, image, saliency, label)[0],
        "drop": drop,
        "increase": increase,
        "criteria": {name: assess(model, image, masks[name], label, name) for name in CRITERIA},
        "threads": torch.get_num_threads(),
        "peak_rss_mib": peak_rss_mib(),
    }
    return record, saliency


def _masks(
    model: Classifier,
    image: Tensor,
    maps: Tensor,
    saliency: Tensor,
    label: int,
    areas: Sequence[float],
) -> dict[str, Tensor]:
    """Criterion -> the smallest mask (1, 1, H, W): of the map's sweep or, if smaller, of an area.

    A mask made for an area counts with as many of its own first pixels as that area has.
    """
    found = metrics.smallest_areas(model, image, saliency, label)
    if areas:
        own = metrics.probabilities(model, image)[0, label].item()
        pairs = sorted(zip(areas, maps, strict=True), key=lambda pair: pair[0])
        masks = torch.cat([metrics.top(mask[None], area) for area, mask in pairs])
        for name in CRITERIA:
            candidates = [
                found[name],
                *masks[holds(model, image, masks, label, own, name)][:, None],
            ]
            found[name] = min(candidates, key=lambda mask: mask.sum().item())
    return found


def assess(model: Classifier, image: Tensor, mask: Tensor, label: int, criterion: str) -> dict:
    """What a binary mask (1, 1, H, W) keeps, and how far from minimal it is.

    ``feasible``: the zero fill keeps the label (under "confidence" the confidence too) and so do
    all of ``noise_draws`` fresh Gaussian backgrounds their label. ``removable``: of at most
    ``CELLS`` of its ``active_cells`` (cells of ``CELL`` x ``CELL`` pixels with one on), evenly
    spread, the share that can be switched off, each alone, with the criterion still met on the
    zero fill; ``tested_cells`` says of how many.
    """
    check = check_mask(model, image, mask, label)
    confident = check.explanation_confidence >= check.confidence - TOLERANCE
    kept = check.label_kept and (criterion == "label" or confident)
    tested, active = _without_cells(mask)
    removable = holds(model, image, tested, label, check.confidence, criterion)
    return {
        "area": check.area,
        "components": check.components,
        "label_kept": check.label_kept,
        "confidence_after": check.explanation_confidence,
        "noise_kept": check.noise_kept,
        "noise_draws": check.noise_draws,
        "feasible": kept and check.noise_kept == 1.0,
        "removable": removable.float().mean().item(),
        "tested_cells": len(tested),
        "active_cells": active,
    }


def _without_cells(mask: Tensor) -> tuple[Tensor, int]:
    """The mask with a cell less, (N, 1, H, W), for each cell tried; and how many are active."""
    active = active_cells(mask, CELL)
    count = min(CELLS, len(active))
    # one from each of ``count`` equal stretches of the list, all at the same random place in it
    offset = np.random.default_rng(0).random()
    chosen = [int((k + offset) * len(active) / count) for k in range(count)]
    masks = [without_cells(mask, [active[k]], CELL) for k in chosen]
    return torch.cat(masks), len(active)


def holds(
    model: Classifier, image: Tensor, masks: Tensor, label: int, own: float, criterion: str
) -> Tensor:
    """Which masks (N, 1, H, W) meet the criterion on the zero fill: (N,) bool.

    ``own`` is the image's confidence, needed by "confidence", less ``TOLERANCE``.
    """
    found = []
    for batch in masks.split(BATCH):
        shares = metrics.probabilities(model, apply_mask(image, batch))
        confident = shares[:, label] >= own - TOLERANCE
        found.append((shares.argmax(1) == label) & (confident | (criterion == "label")))
    return torch.cat(found)


def peak_rss_mib() -> float:
    """The most memory, in MiB, that this process ever held at once; it never falls."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)
