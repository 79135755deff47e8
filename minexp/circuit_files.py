"""A circuit on disk: node-link JSON and GraphML, each of which reads back as the same graph."""

import json
from pathlib import Path

import networkx as nx

from minexp.errors import InputError
from minexp.paths import replacing, write_text

SCHEMA = "minexp-circuit/1"


def write_json(path: Path, graph: nx.DiGraph) -> None:
    """Write ``graph`` as networkx's node-link JSON; floats keep all their digits."""
    data = {"schema": SCHEMA, **nx.node_link_data(graph, edges="edges")}
    write_text(path, json.dumps(data, indent=1) + "\n")


def read_json(path: Path) -> nx.DiGraph:
    """What :func:`write_json` wrote. Raises InputError where that is not what is there."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        if data.pop("schema") != SCHEMA:
            raise ValueError("another schema")
        return nx.node_link_graph(data, edges="edges")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, nx.NetworkXError) as error:
        raise InputError(f"{path}: not a circuit of schema {SCHEMA} ({error!r})") from error


def write_graphml(path: Path, graph: nx.DiGraph) -> None:
    """Write ``graph`` as GraphML, for Gephi, Cytoscape and yEd."""
    with replacing(path) as partial:
        nx.write_graphml_xml(graph, partial, encoding="utf-8")


def read_graphml(path: Path) -> nx.DiGraph:
    """What :func:`write_graphml` wrote. Raises InputError where that is not what is there."""
    try:
        graph = nx.read_graphml(path)
    except (OSError, SyntaxError, ValueError, KeyError, nx.NetworkXError) as error:
        raise InputError(f"{path}: no readable GraphML ({error!r})") from error
    for added in ("node_default", "edge_default"):  # networkx's own, not the circuit's
        graph.graph.pop(added, None)
    return graph
