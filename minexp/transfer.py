"""How much of channel s can reach channel d: absolute weights composed along the traced graph.

The matrix (C_d, C_s) of two taps is the sum, over every path of operations from one to the other,
of the product of the absolute weights along it: a convolution's kernel L1 norms, a normalisation's
|scale|, a gate's value on this image, 1 for an identity shortcut, a pooling or an activation. It
bounds nothing (a non-linearity may stop or a layer norm's statistics may rescale what passes); it
is the paper's ||W_{d,s}||_1 (section 3.3) where one convolution joins the two.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from minexp.errors import InputError
from minexp.operations import Kind, constant, kind
from minexp.tracing import Traced


def transfer(traced: Traced, source: str, destination: str) -> Tensor:
    """The absolute channel-transfer matrix (C_d, C_s) of two taps.

    Raises:
        InputError: naming the submodule whose effect on channels is not known.
    """
    start, end = traced.taps[source], traced.taps[destination]
    return matrices(traced, start, end)[end]


def matrices(traced: Traced, start: fx.Node, end: fx.Node) -> dict[fx.Node, Tensor]:
    """Node -> (its channels, C_start), for the nodes on a path from ``start`` to ``end``."""
    value = traced.values[start]
    size = value.shape[1]
    found = {start: torch.eye(size, dtype=value.dtype, device=value.device)}
    wanted = traced.after(start) & _before(end)
    for node in traced.module.graph.nodes:
        if node in wanted and node is not start and isinstance(traced.values.get(node), Tensor):
            rule = _RULES[kind(traced, node)]
            found[node] = rule(traced, node, found)
    if end not in found:
        raise InputError(f"no path leads from {_name(traced, start)} to {_name(traced, end)}")
    return found


def _before(end: fx.Node) -> set[fx.Node]:
    """``end`` and everything it depends on."""
    reached, waiting = set(), [end]
    while waiting:
        node = waiting.pop()
        if node not in reached:
            reached.add(node)
            waiting += node.all_input_nodes
    return reached


def _name(traced: Traced, node: fx.Node) -> str:
    """The submodule, as the caller knows it; the operation's name where it is none."""
    names = [name for name, output in traced.taps.items() if output is node]
    return repr(names[-1] if names else node.name)


# --- a rule an operation: the matrices of its inputs -> its own


Found = dict[fx.Node, Tensor]


def _main(node: fx.Node, found: Found) -> Tensor:
    """The matrix of the one input on a path."""
    (matrix,) = [found[other] for other in node.all_input_nodes if other in found]
    return matrix


def _same(_traced: Traced, node: fx.Node, found: Found) -> Tensor:
    return _main(node, found)


def _convolution(traced: Traced, node: fx.Node, found: Found) -> Tensor:
    part = _part(traced, node)
    kernel = part.weight.detach().abs().flatten(2).sum(2)  # (out, in / groups)
    matrix = _main(node, found)
    split = matrix.unflatten(0, (part.groups, -1))  # (groups, in / groups, C_s)
    blocks = kernel.unflatten(0, (part.groups, -1))  # (groups, out / groups, in / groups)
    return torch.bmm(blocks, split).flatten(0, 1)


def _linear(traced: Traced, node: fx.Node, found: Found) -> Tensor:
    if node.op == "call_module":
        weight = _part(traced, node).weight
    else:
        weight = constant(traced, node.args[1] if len(node.args) > 1 else node.kwargs["weight"])
    return weight.detach().abs() @ _main(node, found)


def _norm(traced: Traced, node: fx.Node, found: Found) -> Tensor:
    matrix, part = _main(node, found), _part(traced, node)
    scale = torch.ones_like(matrix[:, 0]) if part.weight is None else part.weight.detach().abs()
    if isinstance(part, nn.modules.batchnorm._BatchNorm):
        variance: Any = part.running_var  # not None: wrap refuses statistics of the batch
        scale = scale / (variance + part.eps).sqrt()
    return scale[:, None] * matrix


def _add(traced: Traced, node: fx.Node, found: Found) -> Tensor:
    matrices = [found[other] for other in _arguments(traced, node) if other in found]
    rows = max(len(matrix) for matrix in matrices)
    if any(len(matrix) not in (1, rows) for matrix in matrices):
        raise unknown(traced, node)
    return sum(matrices[1:], matrices[0])


def _scale(traced: Traced, node: fx.Node, found: Found) -> Tensor:
    """A product: of a gate and what it gates, or with a constant; a quotient by a constant."""
    first, second = _arguments(traced, node)[:2]
    if isinstance(first, fx.Node) and isinstance(second, fx.Node):
        main, gate = _gated(traced, node, found)
        factor = constant(traced, gate)
    else:
        main, factor = (first, second) if isinstance(first, fx.Node) else (second, first)
    matrix = found[main]
    factor = torch.as_tensor(factor, dtype=matrix.dtype, device=matrix.device).abs()
    if kind(traced, node) is Kind.DIVIDE:
        factor = 1 / factor
    return _by_channel(traced, node, factor, len(matrix))[:, None] * matrix


def _gated(traced: Traced, node: fx.Node, found: Found) -> tuple[fx.Node, fx.Node]:
    """What is gated, and the gate: a constant, the smaller of the two, or the sigmoid."""
    first, second = _arguments(traced, node)[:2]
    for main, gate in ((first, second), (second, first)):
        if main in found and gate not in found:
            return main, gate
    if kind(traced, node) is Kind.DIVIDE:
        raise unknown(traced, node)
    sizes = [traced.values[other].numel() for other in (first, second)]
    if sizes[0] != sizes[1]:
        return (first, second) if sizes[0] > sizes[1] else (second, first)
    sigmoids = [kind(traced, other) is Kind.SIGMOID for other in (first, second)]
    if sigmoids[0] == sigmoids[1]:
        raise unknown(traced, node)
    return (second, first) if sigmoids[0] else (first, second)


def _by_channel(traced: Traced, node: fx.Node, factor: Tensor, channels: int) -> Tensor:
    """A gate of shape (), (C,), (1, C), (C, 1, 1), (1, C, h, w): its mean over positions, (C,)."""
    if factor.numel() == 1:
        return factor.reshape(1).expand(channels)
    shape = traced.values[node].shape
    full = factor[(None,) * (len(shape) - factor.ndim)]  # aligned at the right, as torch does
    axis = _axis(traced, node, shape, channels)
    if full.shape[axis] == 1:
        raise unknown(traced, node)
    return full.movedim(axis, 0).flatten(1).mean(1)


def _axis(traced: Traced, node: fx.Node, shape: torch.Size, channels: int) -> int:
    """Where the channels are: second, or last behind a permutation."""
    if shape[1] == channels and shape[-1] != channels:
        return 1
    if shape[-1] == channels and (len(shape) == 2 or shape[1] != channels):
        return len(shape) - 1
    if shape[1] == channels and len(shape) == 4 and shape[1] == shape[2] == shape[3]:
        return 1
    raise unknown(traced, node)


def _concatenate(traced: Traced, node: fx.Node, found: Found) -> Tensor:
    parts, *dim = _arguments(traced, node, "dim")
    if node.kwargs.get("dim", dim[0] if dim else 0) != 1:
        raise unknown(traced, node)
    columns = next(iter(found.values())).shape[1]
    return torch.cat(
        [
            found[other]
            if other in found
            else traced.values[other].new_zeros(traced.values[other].shape[1], columns)
            for other in parts
        ]
    )


def _reshape(traced: Traced, node: fx.Node, found: Found) -> Tensor:
    """(N, C, h, w) -> (N, C h w): every position of a channel is a feature; else the same."""
    matrix, shape = _main(node, found), traced.values[node].shape
    before = next(traced.values[other] for other in node.all_input_nodes if other in found)
    if tuple(shape) == tuple(before.shape):
        return matrix
    if len(shape) != 2 or before.shape[1] != len(matrix) or shape[1] % len(matrix):
        raise unknown(traced, node)
    return matrix.repeat_interleave(shape[1] // len(matrix), 0)


def _permute(traced: Traced, node: fx.Node, found: Found) -> Tensor:
    matrix = _main(node, found)
    _axis(traced, node, traced.values[node].shape, len(matrix))
    return matrix


def _average(traced: Traced, node: fx.Node, found: Found) -> Tensor:
    """A mean over positions, not over channels."""
    matrix, shape = _main(node, found), traced.values[node].shape
    if len(matrix) not in shape[1:]:
        raise unknown(traced, node)
    return matrix


def unknown(traced: Traced, node: fx.Node, *_) -> InputError:
    """The error that names where the composition ends."""
    where = traced.inside.get(node) or "the network"
    what = node.target if isinstance(node.target, str) else node.target.__name__
    if node.op == "call_module":
        where, what = str(node.target), type(_part(traced, node)).__name__
    return InputError(
        f"cannot compose the weights through {where!r}: how {what} maps channels is not known; "
        "edges by gradients need no weights"
    )


def _refuse(traced: Traced, node: fx.Node, _found: Found) -> Tensor:
    raise unknown(traced, node)


def _part(traced: Traced, node: fx.Node) -> Any:
    """The submodule that ``node`` calls; which attributes it has follows from the node's kind."""
    return traced.module.get_submodule(str(node.target))


def _arguments(traced: Traced, node: fx.Node, *known: str) -> tuple[Any, ...]:
    """Its arguments by position; a keyword not ``known``, such as alpha, has no rule here."""
    if node.kwargs.keys() - set(known):
        raise unknown(traced, node)
    return node.args


_RULES: dict[Kind, Callable[[Traced, fx.Node, Found], Tensor]] = {
    Kind.SAME: _same,
    Kind.SIGMOID: _same,
    Kind.CONVOLUTION: _convolution,
    Kind.LINEAR: _linear,
    Kind.NORM: _norm,
    Kind.ADD: _add,
    Kind.MULTIPLY: _scale,
    Kind.DIVIDE: _scale,
    Kind.CONCATENATE: _concatenate,
    Kind.RESHAPE: _reshape,
    Kind.PERMUTE: _permute,
    Kind.AVERAGE: _average,
    Kind.UNKNOWN: _refuse,
}
