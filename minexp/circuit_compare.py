"""Two circuits beside each other: an image's and its explanation's, or those of one class."""

from collections import Counter
from collections.abc import Sequence

import networkx as nx
import numpy as np
import torch
from torch import Tensor

from minexp import ablation
from minexp.ablation import Reference
from minexp.channels import read, scores
from minexp.circuit import choose, nodes_of
from minexp.classifier import Classifier
from minexp.errors import InputError


def overlap(
    left: nx.DiGraph, right: nx.DiGraph, *, score: str = "cross_layer", edges: int = 18
) -> dict:
    """How much two circuits share: Jaccard's index of nodes and of the strongest edges.

    Returns:
        ``nodes`` and ``edges``, and ``layers``, tap -> that of its nodes. Edges are the ``edges``
        largest of each by ``score``, pair of layers by pair, since all others are there too.
    """
    return {
        "nodes": jaccard(_channels(left), _channels(right)),
        "edges": jaccard(_largest(left, score, edges), _largest(right, score, edges)),
        "layers": {
            tap: jaccard(set(channels), set(nodes_of(right).get(tap, ())))
            for tap, channels in nodes_of(left).items()
        },
    }


def jaccard(left: set, right: set) -> float:
    """|both| / |either|; 1 for two empty sets."""
    return len(left & right) / len(left | right) if left | right else 1.0


def _channels(graph: nx.DiGraph) -> set[str]:
    return {name for name, node in graph.nodes(data=True) if node["tap"] != "class"}


def _largest(graph: nx.DiGraph, score: str, count: int) -> set[tuple[str, str]]:
    pairs: dict[int, list] = {}
    for source, destination, edge in graph.edges(data=True):
        layer = graph.nodes[destination]["layer"]
        pairs.setdefault(layer, []).append((-abs(edge.get(score, 0.0)), source, destination))
    each = -(-count // max(1, len(pairs)))
    return {(s, d) for found in pairs.values() for _, s, d in sorted(found)[:each]}


def compare(
    model: Classifier,
    image: Tensor,
    masked: Tensor,
    reference: Reference,
    *,
    label: int | None = None,
    ranking: str = "integrated",
    fraction: float = 0.2,
    share: float = 0.9,
) -> dict:
    """An image (1, C, H, W) against its explanation: sparsity, overlap, and who carries what.

    - ``channels_image``, ``channels_explanation``: how many channels hold ``share`` of the energy.
    - ``jaccard``: of the two circuits of ``fraction`` of each layer's channels by ``ranking``.
    - ``own_kept``, ``carried``: whether the image keeps its label with only its own circuit, and
      with only the explanation's, the rest at their means; ``recovered`` the latter's share of
      the logit.
    """
    if not 0 < fraction <= 1:
        raise InputError(f"fraction={fraction}: expected a number above 0, at most 1")
    whole = read(model, image, label)
    part = read(model, masked, whole.label)
    counts, kept = [], []
    for reading in (whole, part):
        chosen = choose(reading, "energy", share=share)
        counts.append(sum(len(channels) for channels in chosen.values()))
        ranks = scores(reading, ranking, reference.means)
        kept.append(ablation.first(ranks, [fraction]))
    sets = [{(t, int(c)) for t, mask in k.items() for c in mask[0].nonzero()} for k in kept]
    empty = {tap: torch.zeros_like(mask) for tap, mask in kept[0].items()}
    rows = {tap: torch.cat([kept[0][tap], kept[1][tap], empty[tap]]) for tap in empty}
    logits = ablation.run(model, image, rows, ablation.fill(model, "mean", reference))
    own, other, nothing = logits[:, whole.label]
    way = whole.logits[0, whole.label] - nothing
    return {
        "label_index": whole.label,
        "ranking": ranking,
        "fraction": fraction,
        "channels_image": counts[0],
        "channels_explanation": counts[1],
        "jaccard": jaccard(*sets),
        "own_kept": int(logits[0].argmax()) == whole.label,
        "carried": int(logits[1].argmax()) == whole.label,
        "own_recovered": ((own - nothing) / way).item(),
        "recovered": ((other - nothing) / way).item(),
    }


def shared_core(graphs: Sequence[nx.DiGraph], least: float = 1.0) -> dict[str, list[int]]:
    """Tap -> the channels that at least this share of the circuits have, the most common first."""
    if not graphs or not 0 < least <= 1:
        raise InputError(
            f"{len(graphs)} circuits, least={least}: expected some, and 0 < least <= 1"
        )
    core: dict[str, list[int]] = {}
    for tap in nodes_of(graphs[0]):
        count = Counter(c for graph in graphs for c in nodes_of(graph).get(tap, ()))
        often = sorted(count.items(), key=lambda item: (-item[1], item[0]))
        core[tap] = [channel for channel, times in often if times >= least * len(graphs) - 1e-9]
    return core


def similarity(graphs: Sequence[nx.DiGraph]) -> np.ndarray:
    """Jaccard's index of the nodes of every two circuits, (N, N), for a heat map."""
    sets = [_channels(graph) for graph in graphs]
    return np.array([[jaccard(left, right) for right in sets] for left in sets])
