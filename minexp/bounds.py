"""Linear bounds on a small ReLU network over a box of inputs, batched, in float64.

CROWN (Zhang et al., NeurIPS 2018): where a ReLU's sign is not known over the box, two lines enclose
it, and a bound on the output is carried back through the layers as a linear function of the input.
The lower line's slope is free and is optimised (alpha-CROWN, Xu et al., ICLR 2021); the signs of
split ReLUs enter as Lagrange multipliers (beta-CROWN, Wang et al., NeurIPS 2021).

Shapes: B boxes, M rows bounded, n_0 inputs, n_k the width of layer k, N all ReLUs together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minexp.errors import InputError

# Rounding in float64 is below 1e-12 of the sum of magnitudes for layers of under 10,000 inputs
# (n times 1.1e-16); every bound is moved outwards by a thousand times that.
OUTWARD = 1e-9
LARGEST = 1 << 25  # entries of one layer's matrix: 256 MiB


@dataclass(frozen=True)
class Layers:
    """A network as matrices with a ReLU between each two: weights (n_k, n_{k-1}), biases (n_k,)."""

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]

    @property
    def widths(self) -> list[int]:
        """ReLUs of each hidden layer."""
        return [len(bias) for bias in self.biases[:-1]]

    def preactivations(self, x: Tensor) -> list[Tensor]:
        """Each layer's output before its ReLU (B, n_k) for inputs (B, n_0); the last is f(x)."""
        found: list[Tensor] = []
        for weight, bias in zip(self.weights, self.biases, strict=True):
            x = (found[-1].relu() if found else x) @ weight.T + bias
            found.append(x)
        return found

    def __call__(self, x: Tensor) -> Tensor:
        return self.preactivations(x)[-1]


def as_layers(module: nn.Module, shape: Sequence[int]) -> Layers:
    """A Sequential of Conv2d, Linear, ReLU and Flatten as matrices, the same function in eval mode.

    Args:
        shape: of one input, without the batch, such as (1, 28, 28).

    Raises:
        InputError: another kind of module, one that ends in a ReLU, too large a layer, or a weight
            that is not finite.
    """
    if not isinstance(module, nn.Sequential):
        raise InputError(f"{type(module).__name__}: bounds need a Sequential of Conv2d, Linear, "
                         "ReLU and Flatten; mnist_cnn_small is one")  # fmt: skip
    weights: list[Tensor] = []
    biases: list[Tensor] = []
    shape, fresh = tuple(shape), True
    for part in module:
        if isinstance(part, nn.ReLU):
            if not weights or fresh:
                raise InputError("bounds need a layer before each ReLU")
            fresh = True
        elif isinstance(part, nn.Identity):
            continue
        elif isinstance(part, nn.Flatten) and part.start_dim == 1 and part.end_dim == -1:
            shape = (_size(shape),)
        else:
            weight, bias, shape = _matrix(part, shape)
            if fresh:
                weights.append(weight)
                biases.append(bias)
            else:  # two linear maps in a row are one
                weights[-1], biases[-1] = weight @ weights[-1], weight @ biases[-1] + bias
            fresh = False
    if not weights or fresh:
        raise InputError("bounds need a network that ends in a layer, not in a ReLU")
    if not all(bool(part.isfinite().all()) for part in (*weights, *biases)):
        raise InputError("bounds need finite weights; this network has some that are not")
    return Layers(tuple(weights), tuple(biases))


def _size(shape: tuple[int, ...]) -> int:
    return int(torch.tensor(shape).prod())


def _matrix(part: nn.Module, shape: tuple[int, ...]) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """A layer's matrix, bias and output shape: its images of the unit vectors, less that of 0."""
    if not isinstance(part, nn.Conv2d | nn.Linear) or (
        isinstance(part, nn.Conv2d) and part.padding_mode != "zeros"
    ):
        raise InputError(f"{type(part).__name__}: no bounds for it; expected Conv2d padded with "
                         "zeros, Linear, ReLU or Flatten")  # fmt: skip
    if isinstance(part, nn.Linear):
        bias = part.bias if part.bias is not None else part.weight.new_zeros(len(part.weight))
        return part.weight.detach().double(), bias.detach().double(), (len(part.weight),)
    weight = part.weight.detach().double()
    settings = {k: getattr(part, k) for k in ("stride", "padding", "dilation", "groups")}
    with torch.no_grad():
        out = nn.functional.conv2d(torch.zeros(1, *shape).double(), weight, **settings).shape[1:]
        if _size(shape) * _size(out) > LARGEST:
            raise InputError(f"a layer of {_size(shape)} x {_size(out)} is too large for bounds; "
                             "take a smaller network, such as mnist_cnn_small")  # fmt: skip
        units = torch.eye(_size(shape)).double().view(-1, *shape)
        images = nn.functional.conv2d(units, weight, **settings).flatten(1)  # (n_{k-1}, n_k)
    offset = torch.zeros(out).double()
    if part.bias is not None:
        offset += part.bias.detach().double()[:, None, None]
    return images.T.contiguous(), offset.flatten(), tuple(out)


def margins(layers: Layers, label: int) -> Layers:
    """The layers with outputs f_label - f_j for every other class j, in the classes' order.

    Raises InputError for a label that is no output.
    """
    classes = len(layers.biases[-1])
    if not 0 <= label < classes:
        raise InputError(f"label={label}: expected 0 to {classes - 1}")
    rows = -torch.eye(classes).double()
    rows[:, label] += 1
    rows = rows[[j for j in range(classes) if j != label]]  # (classes - 1, classes)
    last = (rows @ layers.weights[-1], rows @ layers.biases[-1])
    return Layers((*layers.weights[:-1], last[0]), (*layers.biases[:-1], last[1]))


@dataclass(frozen=True)
class Relaxation:
    """Bounds of the ReLUs' inputs over boxes: ``low`` and ``high``, a (B, n_k) each layer."""

    low: tuple[Tensor, ...]
    high: tuple[Tensor, ...]

    def slopes(self) -> list[Tensor]:
        """The lower line's slopes (B, 1, n_k) that leave the least area (CROWN, section 3.3)."""
        pairs = zip(self.low, self.high, strict=True)
        return [(high > -low).double()[:, None] for low, high in pairs]

    def unstable(self) -> int:
        """How many ReLUs of the first box have no known sign."""
        pairs = zip(self.low, self.high, strict=True)
        return sum(int(((low[0] < 0) & (high[0] > 0)).sum()) for low, high in pairs)


def back(
    layers: Layers,
    rows: Tensor,
    constants: Tensor,
    relaxation: Relaxation,
    slopes: Sequence[Tensor],
    multipliers: Sequence[Tensor] | None = None,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Lower bound rows · relu(z_k) + constants by a linear function of the input.

    ``k`` is the number of layers the relaxation bounds. Any slopes in [0, 1] give a sound bound.

    Args:
        rows: (B or 1, M, n_k); constants: (B or 1, M).
        slopes: of the lower lines, (B or 1, M or 1, n_i) for each layer i.
        multipliers: signed, (B, 1, n_i): positive only where z_i >= 0 is assumed, negative only
            where z_i <= 0 is; then the bound holds where the assumptions do.

    Returns:
        Coefficients (B, M, n_0), constants (B, M), and the rows as they met each layer's ReLU.
    """
    met = []
    for i in reversed(range(len(relaxation.low))):
        met.append(rows)
        low, high = relaxation.low[i][:, None], relaxation.high[i][:, None]  # (B, 1, n_i)
        on, off = low >= 0, high <= 0
        upper = torch.where(on, 1.0, high.clamp(min=0) / (high - low).clamp(min=1e-300))
        upper = torch.where(off, 0.0, upper)
        lower = torch.where(on, 1.0, torch.where(off, 0.0, slopes[i]))
        negative = rows.clamp(max=0)
        intercept = torch.where(on | off, 0.0, -upper * low)
        constants = constants + (negative * intercept).sum(-1)
        rows = rows.clamp(min=0) * lower + negative * upper
        if multipliers is not None:
            rows = rows - multipliers[i]
        constants = constants + rows @ layers.biases[i]
        rows = rows @ layers.weights[i]
    return rows, constants, met[::-1]


def least(rows: Tensor, constants: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """The least value (B, M) of rows · x + constants over boxes (B, n_0), rounded outwards."""
    centre, radius = (upper + lower)[:, None] / 2, (upper - lower)[:, None] / 2
    spread = (rows.abs() * radius).sum(-1)
    value = (rows * centre).sum(-1) - spread + constants
    size = (rows.abs() * centre.abs()).sum(-1) + spread + constants.abs()
    return value - OUTWARD * (1 + size.detach())


def relax(layers: Layers, lower: Tensor, upper: Tensor, *, steps: int = 0) -> Relaxation:
    """Bounds of all ReLUs' inputs over boxes ``lower`` <= x <= ``upper``, (B, n_0) float64.

    The first layer's are exact, the others by CROWN. ``steps`` of optimised slopes tighten those
    of the ReLUs without a known sign; each ReLU gets slopes of its own.
    """
    low: list[Tensor] = []
    high: list[Tensor] = []
    for k in range(len(layers.widths)):
        both = torch.cat([layers.weights[k], -layers.weights[k]])[None]  # (1, 2 n_k, n_{k-1})
        bias = torch.cat([layers.biases[k], -layers.biases[k]])[None]
        found = Relaxation(tuple(low), tuple(high))
        bound = bound_rows(layers, both, bias, found, lower, upper)
        wide = ((bound[:, : both.shape[1] // 2] < 0) & (bound[:, both.shape[1] // 2 :] < 0)).any(0)
        chosen = wide.repeat(2).nonzero()[:, 0]
        if steps and k and len(chosen):
            tight = bound_rows(
                layers, both[:, chosen], bias[:, chosen], found, lower, upper, steps=steps
            )
            bound[:, chosen] = torch.maximum(bound[:, chosen], tight)
        below, above = bound.chunk(2, 1)
        low.append(below)
        high.append(torch.maximum(-above, below))
    return Relaxation(tuple(low), tuple(high))


def bound_rows(
    layers: Layers, rows: Tensor, constants: Tensor, relaxation: Relaxation,
    lower: Tensor, upper: Tensor, *, steps: int = 0,
) -> Tensor:  # fmt: skip
    """The best lower bounds (B, M) of rows · relu(z_k) + constants over ``steps`` of slopes."""
    slopes = relaxation.slopes()
    with torch.no_grad():
        best = least(*back(layers, rows, constants, relaxation, slopes)[:2], lower, upper)
    if not steps or not slopes:
        return best
    shape = (len(lower), rows.shape[1])
    free = [s.expand(*shape, s.shape[-1]).clone().requires_grad_() for s in slopes]
    optimizer = torch.optim.Adam(free, lr=0.2)
    for _ in range(steps):
        value = least(*back(layers, rows, constants, relaxation, free)[:2], lower, upper)
        best = torch.maximum(best, value.detach())
        optimizer.zero_grad()
        (-value.sum()).backward()
        optimizer.step()
        with torch.no_grad():
            for slope in free:
                slope.clamp_(0, 1)
    return best


def bound_outputs(
    layers: Layers, lower: Tensor, upper: Tensor, *, steps: int = 0
) -> tuple[Tensor, Relaxation]:
    """Lower bounds (B, M) of the outputs over boxes (B, n_0), and the ReLUs' bounds behind them."""
    relaxation = relax(layers, lower, upper, steps=steps)
    rows, constants = layers.weights[-1][None], layers.biases[-1][None]
    bound = bound_rows(layers, rows, constants, relaxation, lower, upper, steps=steps)
    return bound, relaxation
