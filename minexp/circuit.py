"""The circuit of a decision (paper 000, section 3.3): a graph of channels, as networkx draws it.

Nodes are channels, named ``tap:channel``, of the layers a classifier taps, and the class,
``class:index``; edges lead from each layer's chosen channels to the next one's, and from the last
one's to the class. Every attribute is a number or a text, so files can hold the graph.
"""

from collections.abc import Mapping, Sequence

import networkx as nx
import torch
from torch import Tensor

from minexp import edges
from minexp.channels import RANKINGS, Reading, attribution, energy, read, scores
from minexp.classifier import Classifier
from minexp.errors import InputError
from minexp.tracing import trace

CHANNELS = 6  # a layer, by default: few enough to read


def find_circuit(
    model: Classifier,
    image: Tensor,
    *,
    label: int | None = None,
    channels: int | None = None,
    share: float | None = None,
    ranking: str = "energy",
    means: Mapping[str, Tensor] | None = None,
) -> nx.DiGraph:
    """The circuit of a frozen convolutional classifier on one image (1, C, H, W) normalised.

    Args:
        label: the class whose logit is followed; None: the top-1 class.
        channels: so many of each layer; None: ``CHANNELS``, unless a share is given.
        share: instead, the smallest number that holds this share of the layer's energy (of the sum
            of squares), 0 to 1.
        ranking: one of :data:`minexp.channels.RANKINGS`; "energy" is the paper's.
        means: tap -> (C,), the channels' means over other images, for the rankings that need them.

    Where the network cannot be traced the graph has no structural and gradient scores, and its
    attribute ``untraced`` says why.

    Raises:
        InputError: the settings do not fit together, or a tap gives no map of channels.
    """
    reading = read(model, image, label)
    chosen = choose(reading, ranking, channels=channels, share=share, means=means)
    return build(model, reading, chosen, ranking=ranking, means=means)


def choose(
    reading: Reading,
    ranking: str,
    *,
    channels: int | None = None,
    share: float | None = None,
    means: Mapping[str, Tensor] | None = None,
) -> dict[str, list[int]]:
    """Tap -> its first channels by a ranking, the first first. Arguments as of find_circuit."""
    check_choice(ranking, channels, share)
    channels, chosen = CHANNELS if channels is None else channels, {}
    for tap, score in scores(reading, ranking, means).items():
        order = score.argsort(descending=True, stable=True)
        count = channels
        if share is not None:
            squares = energy(reading.activations[tap].detach())[0][order].square()
            reached = squares.cumsum(0) >= share * squares.sum() * (1 - 1e-6)
            count = int((~reached).sum()) + 1
        chosen[tap] = order[:count].tolist()
    return chosen


def check_choice(ranking: str, channels: int | None, share: float | None) -> None:
    """Raise InputError where the arguments of :func:`choose` do not fit together."""
    if ranking not in RANKINGS:
        raise InputError(f"ranking {ranking!r}: expected one of {', '.join(RANKINGS)}")
    if channels is not None and share is not None:
        raise InputError(f"channels={channels}, share={share}: expected one of the two")
    if share is not None and not 0 < share <= 1:
        raise InputError(f"share={share}: expected a number above 0, at most 1")
    if channels is not None and channels < 1:
        raise InputError(f"channels={channels}: expected an integer >= 1")


def build(
    model: Classifier,
    reading: Reading,
    chosen: Mapping[str, Sequence[int]],
    *,
    ranking: str = "energy",
    means: Mapping[str, Tensor] | None = None,
) -> nx.DiGraph:
    """The graph of chosen channels, all edges between neighbouring layers, all scores."""
    mean = dict.fromkeys(model.taps) if means is None else means
    weighted, untraced = _weighted(model, reading, mean)
    graph = nx.DiGraph(
        model=model.name,
        label_index=reading.label,
        label=model.class_names[reading.label],
        logit=reading.logits[0, reading.label].item(),
        confidence=reading.logits.softmax(1)[0, reading.label].item(),
        ranking=ranking,
        layers=len(model.taps),
        untraced=untraced,
    )
    _add_nodes(graph, reading, chosen, scores(reading, ranking, means))
    target = f"class:{reading.label}"
    graph.add_node(target, tap="class", layer=len(model.taps), channel=reading.label)
    for source, destination in zip(model.taps, model.taps[1:], strict=False):
        into = list(chosen[destination])
        found = edges.backward(reading, source, destination, into, mean[source])
        found |= {name: score[into] for name, score in weighted.get(source, {}).items()}
        _add_edges(
            graph,
            _names(source, chosen[source]),
            _names(destination, into),
            {name: score[:, list(chosen[source])] for name, score in found.items()},
        )
    last = model.taps[-1]
    found = weighted.get(last) or edges.to_class(reading, None, last, mean[last])
    rows = {name: score[None, list(chosen[last])] for name, score in found.items()}
    _add_edges(graph, _names(last, chosen[last]), [target], rows)
    return graph


def _weighted(
    model: Classifier, reading: Reading, mean: Mapping[str, Tensor | None]
) -> tuple[dict[str, dict[str, Tensor]], str]:
    """Tap -> the scores by weights of the edges that leave it; or none, and why."""
    found = {}
    try:
        traced = trace(model.module, reading.image.to(model.device), model.taps)
        for source, destination in zip(model.taps, model.taps[1:], strict=False):
            found[source] = edges.weighted(reading, traced, source, destination)
        last = model.taps[-1]
        found[last] = edges.to_class(reading, traced, last, mean[last])
    except InputError as error:
        return {}, str(error)
    return found, ""


def _add_nodes(
    graph: nx.DiGraph,
    reading: Reading,
    chosen: Mapping[str, Sequence[int]],
    ranks: Mapping[str, Tensor],
) -> None:
    for layer, (tap, channels) in enumerate(chosen.items()):
        activation, slope = reading.activations[tap].detach(), reading.gradients[tap]
        columns = {
            "score": ranks[tap],
            "energy": energy(activation)[0],
            "gradient": energy(slope)[0],
            "gradient_sum": slope[0].flatten(1).sum(1) if slope.ndim > 2 else slope[0],
            "attribution": attribution(activation, slope)[0],
        }
        columns["energy_gradient"] = columns["energy"] * columns["gradient"]
        squares = columns["energy"].square()
        columns["energy_share"] = squares / squares.sum().clamp_min(torch.finfo(squares.dtype).tiny)
        for rank, channel in enumerate(channels):
            numbers = {name: column[channel].item() for name, column in columns.items()}
            graph.add_node(
                f"{tap}:{channel}", tap=tap, layer=layer, channel=channel, rank=rank, **numbers
            )


def _names(tap: str, channels: Sequence[int]) -> list[str]:
    return [f"{tap}:{channel}" for channel in channels]


def _add_edges(
    graph: nx.DiGraph, sources: Sequence[str], into: Sequence[str], found: Mapping[str, Tensor]
) -> None:
    """``found``: score -> (len(into), len(sources))."""
    values = {name: score.tolist() for name, score in found.items()}
    for row, destination in enumerate(into):
        for column, source in enumerate(sources):
            numbers = {name: score[row][column] for name, score in values.items()}
            graph.add_edge(source, destination, **numbers)


def nodes_of(graph: nx.DiGraph) -> dict[str, list[int]]:
    """Tap -> its channels in the graph, the class left out: what :func:`build` was given."""
    found: dict[str, list[int]] = {}
    for _, node in graph.nodes(data=True):
        if node["tap"] != "class":
            found.setdefault(node["tap"], []).append(node["channel"])
    return found
