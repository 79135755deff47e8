"""A circuit as a page of its own: an SVG to hover over, a threshold to slide, no network needed."""

import base64
import io
import json
from collections.abc import Mapping
from html import escape
from pathlib import Path

import networkx as nx
import numpy as np
from PIL import Image
from torch import Tensor

from minexp.channels import Reading
from minexp.drawing import BACK, FORWARD, layout
from minexp.paths import write_text
from minexp.style import PALETTE

WIDTH, HEIGHT, MARGIN = 900, 460, 60
THUMBNAIL = 112  # pixels a side


def thumbnails(graph: nx.DiGraph, reading: Reading) -> dict[str, str]:
    """Node -> its map on the image as a data URI, black 0 and white the largest absolute value."""
    found = {}
    for name, node in graph.nodes(data=True):
        if node["tap"] == "class":
            continue
        value = reading.activations[node["tap"]].detach()[0, node["channel"]]
        array = np.abs(np.atleast_2d(value.cpu().numpy()))
        gray = np.round(255 * array / max(float(array.max()), 1e-12)).astype(np.uint8)
        found[name] = data_uri(
            Image.fromarray(gray).resize((THUMBNAIL,) * 2, Image.Resampling.NEAREST)
        )
    return found


def picture(pixels: Tensor) -> str:
    """Pixels (1, C, H, W) in [0, 1] as a data URI."""
    array = np.round(pixels[0].permute(1, 2, 0).cpu().numpy() * 255).astype(np.uint8)
    return data_uri(Image.fromarray(array.squeeze()))


def data_uri(image: Image.Image) -> str:
    """A picture as a PNG within a text."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def drawn(graph: nx.DiGraph, maps: Mapping[str, str] | None = None, image: str = "") -> dict:
    """All that :func:`fragment` draws, JSON-able.

    ``maps``: as :func:`thumbnails` gives them, ``image``: as :func:`picture`.
    """
    places, maps = layout(graph), maps or {}
    nodes = [
        {
            "id": name, "x": _x(x), "y": _y(y), "map": maps.get(name, ""),
            "text": graph.graph["label"] if node["tap"] == "class" else str(node["channel"]),
            "about": _about(name, node),
        }
        for (name, node), (x, y) in zip(
            graph.nodes(data=True), (places[name] for name in graph), strict=True
        )
    ]  # fmt: skip
    scores = [name for name in (*FORWARD, *BACK) if any(name in e for *_, e in graph.edges.data())]
    return {
        "title": f"{graph.graph['label']}, {graph.graph['model']}",
        "about": f"confidence {graph.graph['confidence']:.2f}, "
        f"channels by {graph.graph['ranking']}",
        "image": image,
        "nodes": nodes,
        "edges": _edges(graph, scores),
        "scores": scores,
        "back": BACK,
    }


def fragment(circuit: Mapping) -> str:
    """The circuit of :func:`drawn` as a part of a page: style, controls, SVG and script.

    Its colours are CSS variables (``--circuit-ground`` and others), for a page that has a dark
    side; one circuit a page, since its elements are found by id.
    """
    image = circuit["image"]
    data = {name: circuit[name] for name in ("nodes", "edges", "scores", "back")}
    text = _FRAGMENT
    for key, value in {
        "@IMAGE@": f'<img src="{image}" alt="the picture" width="112">' if image else "",
        "@WIDTH@": str(WIDTH),
        "@HEIGHT@": str(HEIGHT),
        "@FORWARD@": PALETTE["image"],
        "@BACK@": PALETTE["gradient"],
        "@NODE@": PALETTE["ours"],
        # "<" would end the script where a label holds "</script>"
        "@DATA@": json.dumps(data).replace("<", "\\u003c"),
    }.items():
        text = text.replace(key, value)
    return text


def write_html(
    path: Path, graph: nx.DiGraph, maps: Mapping[str, str] | None = None, image: str = ""
) -> None:
    """Write the circuit as a page of its own; arguments as of :func:`drawn`."""
    circuit = drawn(graph, maps, image)
    title, about = escape(circuit["title"]), escape(circuit["about"])
    body = f"<h1>{title}</h1><p>{about}</p>\n{fragment(circuit)}"
    write_text(path, f"{_HEAD.replace('@TITLE@', title)}{body}</body></html>\n")


def _x(x: float) -> float:
    return round(MARGIN + x * (WIDTH - 2 * MARGIN), 1)


def _y(y: float) -> float:
    return round(MARGIN / 2 + (1 - y) * (HEIGHT - MARGIN), 1)


def _about(name: str, node: Mapping) -> str:
    numbers = [f"{key} {value:.3g}" for key, value in node.items() if isinstance(value, float)]
    return "; ".join([name, *numbers])


def _edges(graph: nx.DiGraph, scores: list[str]) -> list[dict]:
    """Every edge with its scores as shares of the largest between the same two layers."""
    largest: dict[tuple[int, str], float] = {}
    for _, into, edge in graph.edges(data=True):
        for name in scores:
            key = graph.nodes[into]["layer"], name
            largest[key] = max(largest.get(key, 0.0), abs(edge.get(name, 0.0)))
    return [
        {
            "from": source, "to": into,
            "share": {
                name: round(abs(edge.get(name, 0.0)) / (largest[layer, name] or 1), 4)
                for name in scores
            },
            "about": f"{source} to {into}; "
            + "; ".join(f"{name} {edge[name]:.3g}" for name in scores if name in edge),
        }
        for source, into, edge in graph.edges(data=True)
        for layer in [graph.nodes[into]["layer"]]
    ]  # fmt: skip


_HEAD = f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>@TITLE@</title><style>
body {{ font: 14px sans-serif; margin: 1em; max-width: {WIDTH}px }}
</style></head><body>"""

_FRAGMENT = """<div class="circuit"><style>
.circuit .graph { overflow-x: auto }
.circuit svg { width: 100%; min-width: 560px; height: auto }
.circuit circle { fill: var(--circuit-ground, white); stroke-width: 1.5;
  stroke: var(--circuit-node, @NODE@) }
.circuit circle:focus { outline: none; stroke-width: 4 }
.circuit text { font-size: 10px; text-anchor: middle; dominant-baseline: central;
  fill: currentColor; pointer-events: none }
.circuit line { stroke: var(--circuit-forward, @FORWARD@); opacity: .6 }
.circuit line.back { stroke: var(--circuit-back, @BACK@) }
.circuit line.dim { opacity: .08 }
.circuit label { margin-right: 1em }
.circuit .about { display: flex; gap: 1em; min-height: 112px; align-items: flex-start }
.circuit .about img { width: 112px; flex: none; margin: 0 }
.circuit .about p { margin: 0; overflow-wrap: anywhere }
</style><label>edges by <select id="circuit-score"></select></label>
<label>from <input id="circuit-least" type="range" min="0" max="1" step="0.01" value="0.5">
<output id="circuit-shown"></output></label>
<div class="graph"><svg id="circuit-graph" viewBox="0 0 @WIDTH@ @HEIGHT@" role="img"
 aria-label="circuit"></svg></div>
<div class="about">@IMAGE@<img id="circuit-map" alt="" width="112" hidden><p id="circuit-words">
Point at a channel for its map and numbers, at an edge for its scores. Edges are shares of the
largest between the same two layers.</p></div>
<script>
(() => {
const data = @DATA@, svg = document.getElementById("circuit-graph");
const part = name => document.getElementById("circuit-" + name);
const select = part("score"), least = part("least");
const place = Object.fromEntries(data.nodes.map(n => [n.id, n]));
const make = (kind, values) => {
  const made = document.createElementNS("http://www.w3.org/2000/svg", kind);
  for (const [key, value] of Object.entries(values)) made.setAttribute(key, value);
  return svg.appendChild(made);
};
const tell = (words, map) => {
  part("words").textContent = words;
  const image = part("map");
  image.hidden = !map;
  if (map) image.src = map;
};
for (const name of data.scores) select.add(new Option(name, name));
const lines = data.edges.map(e => {
  const [a, b] = [place[e.from], place[e.to]];
  const line = make("line", {x1: a.x, y1: a.y, x2: b.x, y2: b.y});
  line.onmouseenter = () => tell(e.about, "");
  return line;
});
for (const n of data.nodes) {
  const dot = make("circle", {cx: n.x, cy: n.y, r: 15, tabindex: 0});
  const below = isNaN(n.text) ? 26 : 0;  // a class's name is wider than its circle
  make("text", {x: n.x, y: n.y + below}).textContent = n.text;
  dot.onmouseenter = dot.onfocus = () => {
    tell(n.about, n.map);
    data.edges.forEach((e, i) =>
      lines[i].classList.toggle("dim", e.from !== n.id && e.to !== n.id));
  };
  dot.onmouseleave = dot.onblur = () => lines.forEach(line => line.classList.remove("dim"));
}
const show = () => {
  let count = 0;
  data.edges.forEach((e, i) => {
    const share = e.share[select.value], on = share > 0 && share >= least.value;
    count += on;
    lines[i].style.display = on ? "" : "none";
    lines[i].style.strokeWidth = 0.5 + 3 * share;
    lines[i].classList.toggle("back", data.back.includes(select.value));
  });
  part("shown").textContent = `${least.value}: ${count} edges`;
};
select.onchange = least.oninput = show;
show();
})();
</script></div>
"""
