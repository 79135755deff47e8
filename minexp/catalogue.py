"""Every registered model, tried: are its weights here, and does it keep its label on few pixels?"""

import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from multiprocessing import get_context
from statistics import median

import torch

from minexp import mnist, models
from minexp.config import configure, default_preset, preset
from minexp.errors import WeightsError
from minexp.explain import explain
from minexp.paths import ROOT, home
from minexp.peers import peak_rss_mib
from minexp.references import open_reference

PHOTOGRAPH = "bundled:coffee"
SMALL = "bundled:chelsea"  # a cat, which CIFAR-10's networks know, with a licence that is stated
STEPS = 8  # of a search whose cost is measured


def check(names: Sequence[str] | None = None) -> Iterator[dict]:
    """A row for every registered model (or those of ``names``): what it is and what it does.

    ``reason`` says why weights are not here; then parameters and taps are those of the network
    with random weights and nothing is explained. ``step_seconds`` and ``memory_gib`` are what a
    search costs (:func:`cost`), which weights do not change. Where these are here one picture is
    explained with the preset for the model's input: ``label``, ``area``, ``confidence_before`` and
    ``confidence_after``, ``label_kept``, ``feasible``, ``seconds``.
    """
    for name in models.available() if names is None else names:
        entry = models.entry(name)
        row: dict = {"name": name, "family": entry.family, "source": entry.source}
        row |= {"licence": entry.licence, "reason": None}
        try:
            entry.weights()
            model = models.load_model(name)
        except WeightsError as error:
            reason = str(error).partition("; models that work now")[0]
            # no one's own folders
            row["reason"] = reason.replace(str(home()), "MINEXP_HOME").replace(f"{ROOT}/", "")
            model = models.load_model(name, weights=None)
        row["parameters"] = sum(p.numel() for p in model.module.parameters())
        row["size"], row["taps"] = list(model.size), list(model.taps)
        row |= _cost_apart(name)
        yield row if row["reason"] else row | _explained(model)


def cost(name: str) -> dict[str, float]:
    """Seconds of a step of the search (median), and this process's peak memory in GiB.

    The network has random weights, and a grey picture: neither changes what a step computes.
    """
    model, times = models.load_model(name, weights=None), []
    image = torch.zeros(1, len(model.mean), *model.size)
    start = preset(default_preset(model.size, len(model.mean)))
    config = configure(start, {"steps": STEPS, "minimal": False})
    explain(model, image, config, on_step=lambda _: times.append(time.perf_counter()))
    seconds = median(later - earlier for earlier, later in pairwise(times))
    return {"step_seconds": round(seconds, 3), "memory_gib": round(peak_rss_mib() / 1024, 2)}


def _cost_apart(name: str) -> dict[str, float]:
    """:func:`cost` in a process of its own, whose peak is no other network's.

    Not of one started from here: on Linux that would begin with this process's peak.
    """
    with get_context("forkserver").Pool(1) as pool:
        return pool.apply(cost, [name])


def _explained(model) -> dict:
    reference = _picture(model)
    image, _ = open_reference(reference, model)
    found = explain(model, image, preset(default_preset(model.size, len(model.mean))))
    return {
        "picture": reference,
        "label": found.label_name,
        "area": found.area,
        "confidence_before": found.confidence,
        "confidence_after": found.explanation_confidence,
        "label_kept": found.label_kept,
        "feasible": found.feasible,
        "seconds": round(found.seconds, 1),
    }


def _picture(model) -> str:
    """A picture that the model knows and everyone has."""
    if len(model.mean) == 1:
        return f"mnist:{mnist.split()[1][0]}"
    return SMALL if max(model.size) <= 64 else PHOTOGRAPH


def line(row: dict) -> str:
    """A row in one line of text."""
    head = f"{row['name']:20} {row['parameters']:>12,} parameters, {len(row['taps'])} taps: "
    if row["reason"]:
        return head + f"not usable now: {row['reason']}"
    return head + (
        f"{row['picture']} {row['label']} {row['confidence_before']:.2f} -> "
        f"{row['confidence_after']:.2f}, area {100 * row['area']:.1f} %, "
        f"label {'kept' if row['label_kept'] else 'LOST'}, {row['seconds']:.0f} s"
    )


def failed(rows: Sequence[dict]) -> bool:
    """Whether a model whose weights are here lost its label."""
    return any(row["reason"] is None and not row["label_kept"] for row in rows)
