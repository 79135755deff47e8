"""The roads around a tap: residual shortcuts through which a masked channel stays open.

Where a tap lies inside a residual branch, taking a channel out of it leaves what the shortcut
carries past it. Where the shortcut's channels are the tap's own, one for one, it is found in the
traced graph and the same channels are closed in it. Other shortcuts stay: to close them whole would
take away what no circuit could keep. What lies on both roads is tapped behind the sum.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from minexp import tracing, transfer
from minexp.classifier import Classifier
from minexp.errors import InputError
from minexp.operations import Kind, kind
from minexp.tracing import Traced

Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Shortcut:
    """What a sum ``join`` adds past ``tap``, channel by channel: the value of ``operand``."""

    name: str
    tap: str
    join: fx.Node
    operand: fx.Node


@dataclass(frozen=True)
class Roads:
    """A traced classifier, and the shortcuts around its taps."""

    traced: Traced
    taps: tuple[str, ...]
    shortcuts: tuple[Shortcut, ...]

    def run(
        self, images: Tensor, at_taps: Mapping[str, Change], at_shortcuts: Mapping[str, Change]
    ) -> Tensor:
        """The network's output, with what taps and shortcuts (by name) give changed on the way."""
        runner = _Runner(self.traced)
        for tap, change in at_taps.items():
            runner.outputs[self.traced.taps[tap]] = change
        for shortcut in self.shortcuts:
            if shortcut.name in at_shortcuts:
                change = at_shortcuts[shortcut.name]
                runner.operands.setdefault(shortcut.join, {})[shortcut.operand] = change
        with torch.no_grad():
            output = runner.run(images)
        return output[0] if isinstance(output, tuple | list) else output

    def read(self, image: Tensor) -> dict[str, Tensor]:
        """What taps and shortcuts give for an image, by name, none of it changed."""
        found: dict[str, Tensor] = {}

        def note(name: str) -> Change:
            def change(value: Tensor) -> Tensor:
                found[name] = value.clone()  # a later operation may write into it
                return value

            return change

        names = {shortcut.name: note(shortcut.name) for shortcut in self.shortcuts}
        self.run(image, {tap: note(tap) for tap in self.taps}, names)
        return found


class _Runner(fx.Interpreter):
    """Runs a traced network, changing some operations' outputs and operands."""

    def __init__(self, traced: Traced):
        super().__init__(traced.module)
        self.outputs: dict[fx.Node, Change] = {}
        self.operands: dict[fx.Node, dict[fx.Node, Change]] = {}

    def run_node(self, node: fx.Node):
        if node not in self.operands:
            output = super().run_node(node)
        else:
            changes = self.operands[node]
            args = fx.map_arg(
                node.args,
                lambda n: changes[n](self.env[n]).clone() if n in changes else self.env[n],
            )
            kwargs = fx.map_arg(node.kwargs, lambda n: self.env[n])
            output = getattr(self, node.op)(node.target, args, kwargs)
        return self.outputs[node](output) if node in self.outputs else output


def roads(model: Classifier, image: Tensor) -> Roads:
    """Trace a classifier on an image (1, C, H, W) and find the shortcuts around its taps.

    Raises InputError where it cannot be traced.
    """
    traced = tracing.trace(model.module, image.to(model.device), model.taps)
    found = [shortcut for tap in model.taps for shortcut in _around(traced, tap)]
    return Roads(traced, model.taps, tuple(found))


def _around(traced: Traced, tap: str) -> Sequence[Shortcut]:
    """The operands without ``tap`` of sums in which another one has its channels, one for one."""
    nodes = list(traced.module.graph.nodes)
    start = next(node for node in nodes if node.op == "placeholder")
    moving, behind = traced.after(start), traced.after(traced.taps[tap])
    found = []
    for node in nodes:
        if node not in behind or kind(traced, node) is not Kind.ADD:
            continue
        inputs = [other for other in node.all_input_nodes if other in moving]
        through = [other for other in inputs if other in behind]
        past = [other for other in inputs if other not in behind]
        if through and past and _same_channels(traced, tap, through[0]):
            found += [Shortcut(f"{tap}|{node.name}", tap, node, other) for other in past]
    return found


def _same_channels(traced: Traced, tap: str, through: fx.Node) -> bool:
    """Whether channel c of the tap reaches channel c of the sum's operand, and no other."""
    try:
        matrix = transfer.matrices(traced, traced.taps[tap], through)[through]
    except InputError:
        return False
    square = matrix.shape[0] == matrix.shape[1]
    return square and bool((matrix == torch.diag(matrix.diagonal())).all())
