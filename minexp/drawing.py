"""A circuit drawn in layers: forward edges black, gradient edges red (paper 000, Figure 2)."""

import math
from collections.abc import Mapping

import matplotlib.pyplot as plt
import networkx as nx
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from minexp.pictures import show_image
from minexp.style import PAGE_WIDTH, PALETTE, style

SHOWN = 18  # edges of each colour, so that each can be followed
FORWARD = ("structural", "cross_layer")  # black: the first that the graph has
BACK = ("gradient", "logit")  # red

Place = tuple[float, float]


def layout(graph: nx.DiGraph) -> dict[str, Place]:
    """Node -> (x, y) from 0 to 1: a column a layer, the first in rank above, the class last.

    Within a column nodes stand in the order of where their strongest edges come from, which leaves
    fewer crossings.
    """
    layers: dict[int, list[str]] = {}
    for name, node in graph.nodes(data=True):
        layers.setdefault(node["layer"], []).append(name)
    places: dict[str, Place] = {}
    last = max(layers) or 1
    for layer, names in sorted(layers.items()):
        names = sorted(names, key=lambda name: (_middle(graph, name, places), name))
        for row, name in enumerate(names):
            places[name] = (layer / last, 1 - (row + 0.5) / len(names))
    return places


def _middle(graph: nx.DiGraph, name: str, places: Mapping[str, Place]) -> float:
    """How far down the sources of a node's edges stand, weighted; its rank where it has none."""
    weights = [
        (abs(edge.get("cross_layer", 0.0)), places[source][1])
        for source, _, edge in graph.in_edges(name, data=True)
        if source in places
    ]
    total = sum(weight for weight, _ in weights)
    if not total:
        return float(graph.nodes[name].get("rank", 0))
    return 1 - sum(weight * y for weight, y in weights) / total


def strongest(graph: nx.DiGraph, score: str, count: int) -> dict[tuple[str, str], float]:
    """The edges to draw -> their width, 0 to 1: of every pair of layers its largest by a score.

    Scores of different pairs of layers are in different units, so each pair has its own scale and
    its equal part of ``count``.
    """
    pairs: dict[int, list[tuple[float, str, str]]] = {}
    for source, destination, edge in graph.edges(data=True):
        if (value := abs(edge.get(score, 0.0))) > 0:
            layer = graph.nodes[destination]["layer"]
            pairs.setdefault(layer, []).append((value, source, destination))
    chosen = {}
    for found in pairs.values():
        found.sort(key=lambda edge: -edge[0])
        for value, source, destination in found[: math.ceil(count / len(pairs))]:
            chosen[source, destination] = value / found[0][0]
    return chosen


def kinds(graph: nx.DiGraph) -> dict[str, str]:
    """Which score each colour draws: {"forward": …, "gradient": …}."""
    has = {name for _, _, edge in graph.edges(data=True) for name in edge}
    return {
        colour: next((name for name in names if name in has), names[-1])
        for colour, names in (("forward", FORWARD), ("gradient", BACK))
    }


def draw_circuit(ax: Axes, graph: nx.DiGraph, title: str = "", count: int = SHOWN) -> Axes:
    """One circuit on ``ax``; ``count`` edges of each colour."""
    places = layout(graph)
    for (key, score), colour, bend in zip(
        kinds(graph).items(), (PALETTE["image"], PALETTE["gradient"]), (0.06, -0.06), strict=True
    ):
        for (source, destination), width in strongest(graph, score, count).items():
            ax.annotate(
                "", places[destination], places[source],
                arrowprops={
                    "arrowstyle": "-|>" if key == "forward" else "<|-", "color": colour,
                    "linewidth": 0.3 + 1.5 * width, "alpha": 0.35 + 0.55 * width,
                    "mutation_scale": 5, "shrinkA": 9, "shrinkB": 9,
                    "connectionstyle": f"arc3,rad={bend}",
                },
            )  # fmt: skip
    for name, (x, y) in places.items():
        node = graph.nodes[name]
        last = node["tap"] == "class"
        ax.scatter(
            [x], [y], s=170, zorder=3, linewidths=0.8, edgecolors=PALETTE["ours"],
            color="white" if not last else "#DCEBF5",
        )  # fmt: skip
        text = graph.graph["label"].replace(" ", "\n") if last else str(node["channel"])
        ax.text(x, y - 0.06 * last, text, ha="center", va="top" if last else "center",
                fontsize=6.5 if last else 5.5, zorder=4)  # fmt: skip
    layers = dict.fromkeys((n["tap"], n["layer"]) for _, n in graph.nodes(data=True))
    for tap, layer in layers:
        x = layer / max(1, graph.graph["layers"])
        ax.text(x, 1.03, tap, ha="center", va="bottom", fontsize=6)
    ax.set(xlim=(-0.07, 1.09), ylim=(-0.02, 1.1))
    ax.set_axis_off()
    ax.set_title(title)
    return ax


def circuit_figure(graph: nx.DiGraph, pixels: Tensor | None = None, count: int = SHOWN) -> Figure:
    """A circuit, and the picture (1, C, H, W) in [0, 1] it was read from, if given."""
    with style():
        figure, axes = plt.subplots(
            1, 1 if pixels is None else 2, figsize=(PAGE_WIDTH, 3.3), squeeze=False,
            width_ratios=[1] if pixels is None else [1, 4], layout="constrained",
        )  # fmt: skip
        if pixels is not None:
            show_image(axes[0, 0], pixels)
        draw_circuit(axes[0, -1], graph, _title(graph), count)
    return figure


def pair_figure(left: nx.DiGraph, right: nx.DiGraph, pictures: tuple[Tensor, Tensor]) -> Figure:
    """The circuits of an image and of its explanation, one above the other (Figure 2, bottom)."""
    with style():
        figure, axes = plt.subplots(
            2, 2, figsize=(PAGE_WIDTH, 6.2), width_ratios=[1, 4], layout="constrained"
        )
        rows = zip(axes, (left, right), pictures, ("image", "explanation"), strict=True)
        for (small, large), graph, pixels, name in rows:
            show_image(small, pixels, name)
            draw_circuit(large, graph, _title(graph))
    return figure


def _title(graph: nx.DiGraph) -> str:
    score = kinds(graph)
    return (
        f"{graph.graph['label']} {graph.graph['confidence']:.2f}; channels by "
        f"{graph.graph['ranking']}; edges black: {score['forward']}, red: {score['gradient']}"
    )
