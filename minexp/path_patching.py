"""What cutting one edge of a circuit does, and which of the edges' scores foretells it.

An edge s -> d is cut alone: d is computed as if s had been taken out, everything else as it was
(path patching). Its effect is how far d's map moves, and by how much the logit falls.
"""

from collections.abc import Sequence

import networkx as nx
import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from minexp import ablation, taps
from minexp.ablation import Fill
from minexp.channels import Reading
from minexp.circuit import nodes_of
from minexp.classifier import Classifier
from minexp.edges import EDGES

EFFECTS = ("destination", "class")


def cut_edges(
    model: Classifier, reading: Reading, graph: nx.DiGraph, filled: Fill
) -> dict[tuple[str, str], dict[str, float]]:
    """Edge -> what cutting it does: ``destination``, the norm of the change of d's map, and
    ``class``, the logit before less the logit after. Of an edge to the class both are the latter.
    """
    found: dict[tuple[str, str], dict[str, float]] = {}
    chosen = nodes_of(graph)
    before = reading.logits[0, reading.label]
    for source, destination in zip(model.taps, model.taps[1:], strict=False):
        without = _without(model, reading, source, chosen[source], destination, filled)
        whole = reading.activations[destination].detach()
        moved = (without - whole).flatten(2).norm(dim=2) if whole.ndim > 2 else (without - whole)
        for row, s in enumerate(chosen[source]):
            into = chosen[destination]
            logits = _patched(model, reading, destination, into, without[row])
            for d, logit in zip(into, logits[:, reading.label], strict=True):
                found[f"{source}:{s}", f"{destination}:{d}"] = {
                    "destination": moved[row, d].abs().item(),
                    "class": (before - logit).item(),
                }
    last = model.taps[-1]
    keep = _all_but(model, reading, last, chosen[last])
    logits = ablation.run(model, reading.image, keep, filled)
    for s, logit in zip(chosen[last], logits[:, reading.label], strict=True):
        effect = (before - logit).item()
        found[f"{last}:{s}", f"class:{reading.label}"] = {
            "destination": abs(effect),
            "class": effect,
        }
    return found


def _all_but(
    model: Classifier, reading: Reading, tap: str, channels: Sequence[int]
) -> dict[str, Tensor]:
    """A circuit a channel: everything but it."""
    size = reading.activations[tap].shape[1]
    keep = torch.ones(len(channels), size, dtype=torch.bool, device=model.device)
    keep[range(len(channels)), list(channels)] = False
    return {tap: keep}


def _without(
    model: Classifier,
    reading: Reading,
    source: str,
    channels: Sequence[int],
    destination: str,
    filled: Fill,
) -> Tensor:
    """What ``destination`` gives without each of the source's channels, (channels, C, h, w)."""
    parts = []
    for start in range(0, len(channels), ablation.BATCH):
        keep = _all_but(model, reading, source, channels[start : start + ablation.BATCH])
        with taps.read(model.module, [destination]) as read:
            ablation.run(model, reading.image, keep, filled)
        parts.append(read[destination])
    return torch.cat(parts)


def _patched(
    model: Classifier, reading: Reading, tap: str, channels: Sequence[int], value: Tensor
) -> Tensor:
    """Logits (channels, K) where each one channel of ``tap`` is that of ``value`` (C, h, w)."""
    keep = _all_but(model, reading, tap, channels)
    return ablation.run(
        model, reading.image, keep, lambda _tap, output: value[None].expand_as(output)
    )


def correlations(
    graph: nx.DiGraph, effects: dict[tuple[str, str], dict[str, float]]
) -> list[dict[str, float | str]]:
    """A row a pair of layers: Spearman's rank correlation of each score with the cut's effects.

    Both by magnitude: which edges matter, whichever way. Columns ``<score>_<effect>``; a score
    that the graph lacks, or that is the same for all edges, has none.
    """
    pairs: dict[str, list[tuple[str, str]]] = {}
    for source, destination in effects:
        key = f"{graph.nodes[source]['tap']} -> {graph.nodes[destination]['tap']}"
        pairs.setdefault(key, []).append((source, destination))
    rows = []
    for key, edges in pairs.items():
        row: dict[str, float | str] = {"layers": key, "edges": len(edges)}
        for score in EDGES:
            values = [graph.edges[edge].get(score) for edge in edges]
            for effect in EFFECTS:
                measured = [abs(effects[edge][effect]) for edge in edges]
                if None not in values and len(set(values)) > 1 and len(set(measured)) > 1:
                    row[f"{score}_{effect}"] = float(spearmanr(np.abs(values), measured)[0])
        rows.append(row)
    return rows
