"""A network as a graph of operations (torch.fx), with what each computed on one image."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from minexp.errors import InputError

LEAVES = (  # not looked into: subclasses, such as timm's, behave alike on channels
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._BatchNorm,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.Linear,
)


@dataclass(frozen=True)
class Traced:
    """The operations of ``module`` in order, and what each gave for one image.

    ``values[node]``: what it gave; ``taps[name]``: the node that gives the submodule's output;
    ``inside[node]``: the innermost submodule that it belongs to.
    """

    module: fx.GraphModule
    values: dict[fx.Node, Any]
    taps: dict[str, fx.Node]
    inside: dict[fx.Node, str]

    @property
    def output(self) -> fx.Node:
        """The node whose value the network returns."""
        returned = next(node for node in self.module.graph.nodes if node.op == "output").args[0]
        return returned[0] if isinstance(returned, tuple | list) else returned

    def after(self, node: fx.Node) -> set[fx.Node]:
        """``node`` and every operation that depends on it."""
        reached = {node}
        for other in self.module.graph.nodes:
            if not reached.isdisjoint(other.all_input_nodes):
                reached.add(other)
        return reached


class _Tracer(fx.Tracer):
    """Notes which node each submodule's output is, and where a trace that fails has come to."""

    def __init__(self):
        super().__init__()
        self.outputs: dict[str, fx.Node] = {}
        self.stack: list[str] = []
        self.inside: dict[fx.Node, str] = {}

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, LEAVES) or super().is_leaf_module(module, name)

    def create_node(self, *args, **kwargs) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        self.inside[node] = self.stack[-1] if self.stack else ""
        return node

    def call_module(self, module: nn.Module, forward, args, kwargs):
        name = self.path_of_module(module)
        self.stack.append(name)
        output = super().call_module(module, forward, args, kwargs)
        self.stack.pop()  # not after an error: then the last one is where it happened
        if isinstance(output, fx.Proxy):
            self.outputs[name] = output.node
        return output


def trace(module: nn.Module, image: Tensor, taps: Sequence[str] = ()) -> Traced:
    """Trace a frozen module and run it once on ``image`` (1, C, H, W).

    Raises:
        InputError: naming the submodule that cannot be traced, or a tap without a single output.
    """
    tracer = _Tracer()
    try:
        graph = tracer.trace(module)
    except Exception as error:
        where = tracer.stack[-1] if tracer.stack else ""
        part = module.get_submodule(where)
        raise InputError(
            f"cannot trace {where or 'the network'!r} ({type(part).__name__}): "
            f"{str(error).splitlines()[0] if str(error) else type(error).__name__}; structural "
            "edges need a traceable network, edges by gradients do not"
        ) from error
    for tap in taps:
        if tap not in tracer.outputs:
            raise InputError(f"cannot trace {tap!r}: it runs not at all, or gives several outputs")
    graph_module = fx.GraphModule(module, graph)
    recorder = _Recorder(graph_module, garbage_collect_values=False)
    with torch.no_grad():
        recorder.run(image)
    named = {node.name: node for node in graph_module.graph.nodes}
    return Traced(
        graph_module,
        {node: recorder.env[node] for node in graph_module.graph.nodes if node in recorder.env},
        {name: named[node.name] for name, node in tracer.outputs.items() if node.name in named},
        {named[node.name]: name for node, name in tracer.inside.items() if node.name in named},
    )


class _Recorder(fx.Interpreter):
    """Runs a graph, and keeps every value."""
