"""What an operation of a traced network does to channels, in one word."""

import operator
from enum import Enum, auto
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from minexp.taps import ACTIVATIONS
from minexp.tracing import Traced


class Kind(Enum):
    """How channels go through."""

    SAME = auto()  # channel c comes from channel c alone, whatever happens to its positions
    SIGMOID = auto()  # the same, and what it gives may gate
    CONVOLUTION = auto()
    LINEAR = auto()
    NORM = auto()
    ADD = auto()
    MULTIPLY = auto()
    DIVIDE = auto()
    CONCATENATE = auto()
    RESHAPE = auto()
    PERMUTE = auto()
    AVERAGE = auto()
    UNKNOWN = auto()


_SIGMOIDS = {"Sigmoid", "Hardsigmoid", "HardSigmoid"}
_POOLS = (
    *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.AvgPool1d),
    *(nn.MaxPool1d, nn.Identity, nn.modules.dropout._DropoutNd, nn.Upsample, nn.ZeroPad2d),
)
_NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_FUNCTIONS: dict[Kind, set] = {
    Kind.SAME: {
        *(functional.relu, functional.relu6, functional.gelu, functional.silu, functional.mish),
        *(functional.elu, functional.leaky_relu, functional.hardswish, functional.dropout),
        *(functional.max_pool2d, functional.avg_pool2d, functional.adaptive_avg_pool2d),
        *(functional.adaptive_max_pool2d, functional.pad, functional.interpolate),
        *(torch.relu, torch.tanh, torch.clamp),
    },
    Kind.SIGMOID: {torch.sigmoid, functional.sigmoid, functional.hardsigmoid},
    Kind.LINEAR: {functional.linear},
    Kind.ADD: {operator.add, operator.iadd, torch.add},
    Kind.MULTIPLY: {operator.mul, operator.imul, torch.mul},
    Kind.DIVIDE: {operator.truediv, operator.itruediv, torch.div},
    Kind.CONCATENATE: {torch.cat, torch.concat},
    Kind.RESHAPE: {torch.flatten, torch.reshape},
    Kind.PERMUTE: {torch.permute},
    Kind.AVERAGE: {torch.mean, torch.amax},
}
_METHODS: dict[Kind, set] = {
    Kind.SAME: {"relu", "relu_", "tanh", "clamp", "contiguous", "to", "type_as", "clone"},
    Kind.SIGMOID: {"sigmoid"},
    Kind.ADD: {"add", "add_"},
    Kind.MULTIPLY: {"mul", "mul_"},
    Kind.DIVIDE: {"div", "div_"},
    Kind.RESHAPE: {"flatten", "view", "reshape"},
    Kind.PERMUTE: {"permute"},
    Kind.AVERAGE: {"mean", "amax"},
}


def kind(traced: Traced, node: fx.Node) -> Kind:
    """What ``node`` does; UNKNOWN where this file has no word for it."""
    if node.op == "call_module":
        return _of_module(traced.module.get_submodule(str(node.target)))
    table = {"call_function": _FUNCTIONS, "call_method": _METHODS}.get(node.op, {})
    return next((found for found, known in table.items() if node.target in known), Kind.UNKNOWN)


def _of_module(part: nn.Module) -> Kind:
    if isinstance(part, _CONVOLUTIONS):
        return Kind.CONVOLUTION
    if isinstance(part, nn.Linear):
        return Kind.LINEAR
    if isinstance(part, _NORMS):
        return Kind.NORM
    if isinstance(part, nn.Flatten):
        return Kind.RESHAPE
    name = type(part).__name__
    if name in _SIGMOIDS:
        return Kind.SIGMOID
    return Kind.SAME if isinstance(part, _POOLS) or name in ACTIVATIONS else Kind.UNKNOWN


def constant(traced: Traced, argument: Any) -> Tensor:
    """The value of an argument: what a node gave on the image, or the argument itself."""
    return traced.values[argument] if isinstance(argument, fx.Node) else argument
