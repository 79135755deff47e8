"""Linear bounds: the same function as the module, exact where they can be, never too tight."""

from itertools import pairwise, product

import numpy as np
import pytest
import torch
from nets import made
from torch import nn

from minexp import bounds, models
from minexp.errors import InputError


def small(*widths, scale=3.0):
    """A dense net of random weights: widths[0] inputs, ReLUs between."""
    layers = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    net = nn.Sequential(*layers[:-1])
    for p in net.parameters():
        p.data.mul_(scale)
    return net


def convolutional():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2), nn.ReLU(),
        nn.Conv2d(4, 3, 2, dilation=2, bias=False), nn.Conv2d(3, 5, 1), nn.ReLU(),
        nn.Flatten(), nn.Linear(20, 7), nn.ReLU(), nn.Linear(7, 4, bias=False),
    )  # fmt: skip


def boxes(count, inputs, seed=0):
    """Random boxes in [-1, 1], some sides of width 0: lower, upper (count, inputs)."""
    generator = torch.Generator().manual_seed(seed)
    ends = 2 * torch.rand(2, count, inputs, generator=generator).double() - 1
    lower, upper = ends.amin(0), ends.amax(0)
    return lower, torch.where(torch.rand(count, inputs, generator=generator) < 0.2, lower, upper)


def inside(lower, upper, count=4000, seed=1):
    """Points of each box, half of them corners: (B, count, n_0)."""
    generator = torch.Generator().manual_seed(seed)
    share = torch.rand(len(lower), count, lower.shape[1], generator=generator).double()
    share[:, ::2] = share[:, ::2].round()
    return lower[:, None] + share * (upper - lower)[:, None]


# --- the matrices


def test_layers_are_the_module():
    net = made(convolutional)
    x = torch.randn(50, 2, 7, 7, generator=torch.Generator().manual_seed(0)).double()
    layers = bounds.as_layers(net, (2, 7, 7))
    assert layers.widths == [64, 20, 7] and len(layers.weights) == 4
    torch.testing.assert_close(layers(x.flatten(1)), net(x), rtol=1e-12, atol=1e-12)


def test_margins_are_the_label_less_each_other_class():
    layers = bounds.as_layers(made(small, 3, 5, 4), (3,))
    x = torch.rand(6, 3).double()
    f, m = layers(x), bounds.margins(layers, 2)(x)
    torch.testing.assert_close(m, f[:, 2:3] - f[:, [0, 1, 3]])


@pytest.mark.parametrize(
    ("net", "words"),
    [
        (nn.Linear(3, 2), "Sequential"),
        (nn.Sequential(nn.Linear(3, 2), nn.Sigmoid()), "Sigmoid"),
        (nn.Sequential(nn.Linear(3, 2), nn.ReLU()), "ends in a layer"),
        (nn.Sequential(nn.ReLU(), nn.Linear(3, 2)), "a layer before each ReLU"),
        (nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.ReLU(), nn.Linear(2, 2)), "before each"),
        (nn.Sequential(), "ends in a layer"),
        (nn.Sequential(nn.Linear(3, 2), nn.Flatten(2)), "Flatten"),
        (nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), "BatchNorm1d"),
    ],
)
def test_what_has_no_bounds_is_refused(net, words):
    with pytest.raises(InputError, match=words):
        bounds.as_layers(net, (3,))


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["weight", "bias"])
def test_weights_that_are_not_finite_are_refused(wrong, part):
    net = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2))
    with torch.no_grad():
        getattr(net[0], part).view(-1)[0] = wrong
    with pytest.raises(InputError, match="finite"):
        bounds.as_layers(net, (3,))


def test_padding_other_than_with_zeros_and_a_layer_too_large_are_refused(monkeypatch):
    circular = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular"), nn.Flatten())
    with pytest.raises(InputError, match="zeros"):
        bounds.as_layers(circular, (1, 4, 4))
    monkeypatch.setattr(bounds, "LARGEST", 100)
    with pytest.raises(InputError, match="too large"):
        bounds.as_layers(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten()), (1, 9, 9))


def test_a_transformer_is_refused():
    with pytest.raises(InputError, match="VisionTransformer"):
        bounds.as_layers(models.load_model("mnist_vit", weights=None).module, (1, 28, 28))


@pytest.mark.parametrize("label", [-1, 4])
def test_no_such_label(label):
    with pytest.raises(InputError, match="expected 0 to 3"):
        bounds.margins(bounds.as_layers(made(small, 3, 5, 4), (3,)), label)


# --- the bounds


@pytest.mark.parametrize("steps", [0, 20])
@pytest.mark.parametrize(
    ("build", "shape"), [(convolutional, (2, 7, 7)), (lambda: small(8, 12, 9, 3), (8,))]
)
def test_bounds_hold_at_every_point_sampled(build, shape, steps):
    layers = bounds.as_layers(made(build), shape)
    lower, upper = boxes(5, layers.weights[0].shape[1])
    bound, relaxation = bounds.bound_outputs(layers, lower, upper, steps=steps)
    for k, points in enumerate(inside(lower, upper)):
        *hidden, out = layers.preactivations(points)
        assert (out >= bound[k]).all()
        for z, low, high in zip(hidden, relaxation.low, relaxation.high, strict=True):
            assert (z >= low[k]).all() and (z <= high[k]).all()


def test_one_layer_is_exact():
    layers = bounds.as_layers(made(small, 4, 3), (4,))
    lower, upper = boxes(6, 4)
    bound, _ = bounds.bound_outputs(layers, lower, upper)
    corners = torch.tensor(list(product([0.0, 1.0], repeat=4))).double()
    points = lower[:, None] + corners * (upper - lower)[:, None]
    torch.testing.assert_close(bound, layers(points).amin(1), rtol=0, atol=1e-7)


def test_a_point_is_exact_and_so_is_a_box_where_no_sign_changes():
    layers = bounds.as_layers(made(small, 8, 12, 9, 3), (8,))
    x, _ = boxes(6, 8)
    torch.testing.assert_close(bounds.bound_outputs(layers, x, x)[0], layers(x), rtol=0, atol=1e-6)
    lower, upper = x - 1e-6, x + 1e-6
    bound, relaxation = bounds.bound_outputs(layers, lower, upper)
    assert relaxation.unstable() == 0
    assert (layers(inside(lower, upper)).amin(1) - bound < 1e-4).all()


def literal(layers, row, lower, upper):
    """CROWN's bound of one output over one box, a ReLU at a time, in extended precision."""
    low, high = [], []

    def bound(weights, bias, depth):
        rows, constant = np.array(weights, np.longdouble), np.longdouble(bias)
        for i in reversed(range(depth)):
            for j in range(len(rows)):
                l, u = low[i][j], high[i][j]  # noqa: E741
                if u <= 0:
                    rows[j] = 0
                elif l < 0 and rows[j] < 0:
                    constant += rows[j] * (-u * l / (u - l))
                    rows[j] *= u / (u - l)
                elif l < 0:
                    rows[j] *= 1 if u > -l else 0
            constant += rows @ layers.biases[i].numpy().astype(np.longdouble)
            rows = rows @ layers.weights[i].numpy().astype(np.longdouble)
        ends = np.where(rows > 0, lower.numpy(), upper.numpy()).astype(np.longdouble)
        return constant + (rows * ends).sum()

    for k, width in enumerate(layers.widths):
        w, b = layers.weights[k].numpy(), layers.biases[k].numpy()
        low.append([bound(w[j], b[j], k) for j in range(width)])
        high.append([-bound(-w[j], -b[j], k) for j in range(width)])
    return bound(layers.weights[-1][row].numpy(), layers.biases[-1][row].item(), len(low))


def test_crown_from_its_definition_in_extended_precision():
    layers = bounds.as_layers(made(small, 6, 7, 5, 3), (6,))
    lower, upper = boxes(4, 6)
    found, _ = bounds.bound_outputs(layers, lower, upper)
    for k, row in product(range(4), range(3)):
        exact = float(literal(layers, row, lower[k], upper[k]))
        assert exact - 1e-5 <= found[k, row] < exact  # outwards, and not by much


def test_slopes_tighten_what_they_are_for():
    layers = bounds.as_layers(made(small, 8, 12, 9, 3), (8,))
    lower, upper = boxes(8, 8)
    plain, loose = bounds.bound_outputs(layers, lower, upper)
    tuned, tight = bounds.bound_outputs(layers, lower, upper, steps=20)
    assert tuned.mean() > plain.mean() + 0.1
    for name in ("low", "high"):
        sign = 1 if name == "low" else -1
        pairs = zip(getattr(tight, name), getattr(loose, name), strict=True)
        assert all((sign * (a - b) >= 0).all() for a, b in pairs)


def test_a_batch_is_its_boxes_one_by_one():
    layers = bounds.as_layers(made(small, 8, 12, 9, 3), (8,))
    lower, upper = boxes(4, 8)
    plain = bounds.bound_outputs(layers, lower, upper)[0]
    one = [bounds.bound_outputs(layers, lower[k, None], upper[k, None])[0] for k in range(4)]
    torch.testing.assert_close(plain, torch.cat(one))


def test_multipliers_bound_the_half_where_the_sign_is_assumed():
    layers = bounds.as_layers(made(small, 4, 6, 2), (4,))
    lower, upper = boxes(1, 4, seed=3)
    relaxation = bounds.relax(layers, lower, upper)
    points = inside(lower, upper, 20_000)[0]
    z, f = layers.preactivations(points)
    unstable = ((relaxation.low[0] < 0) & (relaxation.high[0] > 0))[0].nonzero()[:, 0].tolist()
    assert unstable
    for j, sign, size in product(unstable, (1.0, -1.0), (0.1, 1.0)):
        signed = torch.zeros(1, 1, 6).double()
        signed[..., j] = sign * size
        rows, constants, _ = bounds.back(
            layers, layers.weights[1][None], layers.biases[1][None], relaxation,
            relaxation.slopes(), [signed],
        )  # fmt: skip
        bound = bounds.least(rows, constants, lower, upper)[0]
        half = f[sign * z[:, j] >= 0]
        assert len(half) and (half >= bound).all()
