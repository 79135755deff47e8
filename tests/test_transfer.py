"""Composed weights equal the literal sum over paths; what cannot be composed is named."""

import itertools

import pytest
import torch
from nets import Gated, Inner, Twisted, made
from torch import Tensor, nn

from minexp import models, taps, tracing, transfer
from minexp.errors import InputError


@pytest.fixture(scope="module")
def picture():
    return torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(1)).double()


def absolute(layer: nn.Conv2d) -> list[list[float]]:
    """Kernel L1 norms by loops over groups: [out][in], zero between groups."""
    rows, columns = layer.out_channels, layer.in_channels
    wide, high = columns // layer.groups, rows // layer.groups
    found = [[0.0] * columns for _ in range(rows)]
    for d in range(rows):
        for s in range(columns):
            if d // high == s // wide:
                found[d][s] = layer.weight[d, s % wide].abs().sum().item()
    return found


def enumerated(steps: list[list[list[float]]], source: int, destination: int) -> float:
    """The sum over every path of channels of the product of the weights along it, literally."""
    total = 0.0
    between = [range(len(step)) for step in steps[:-1]]
    for middle in itertools.product(*between):
        path, product = (source, *middle, destination), 1.0
        for step, (s, d) in zip(steps, itertools.pairwise(path), strict=True):
            product *= step[d][s]
        total += product
    return total


def diagonal(values: Tensor) -> list[list[float]]:
    return torch.diag(values).tolist()


def test_paths_through_depthwise_gate_and_shortcut_are_all_counted(picture):
    net = made(Gated)
    traced = tracing.trace(net, picture, ["norm", "grouped"])
    composed = transfer.transfer(traced, "norm", "grouped")
    with taps.read(net, ["gate"]) as read:
        net(picture)
    branch = [
        absolute(net.expand),
        absolute(net.depthwise),
        diagonal(read["gate"][0, :, 0, 0].abs()),
        absolute(net.project),
        absolute(net.grouped),
    ]
    shortcut = [absolute(net.grouped)]
    for source in range(4):
        for destination in range(6):
            expected = enumerated(branch, source, destination)
            expected += enumerated(shortcut, source, destination)
            assert composed[destination, source].item() == pytest.approx(expected, abs=1e-10)


def test_to_the_logits_through_pooling_and_flatten(picture):
    net = made(Gated)
    traced = tracing.trace(net, picture, ["grouped"])
    end = traced.output
    found = transfer.matrices(traced, traced.taps["grouped"], end)[end]
    assert torch.equal(found, net.fc.weight.abs())


def test_norm_is_its_scale(picture):
    net = made(Gated)
    found = transfer.transfer(tracing.trace(net, picture, ["first"]), "first", "norm")
    scale = net.norm.weight.abs() / (net.norm.running_var + net.norm.eps).sqrt()
    assert torch.allclose(found, torch.diag(scale), atol=1e-12)


def test_one_convolution_gives_the_papers_kernel_norm(mnist_cnn):
    traced = tracing.trace(mnist_cnn.module, torch.rand(1, 1, 28, 28), mnist_cnn.taps)
    found = transfer.transfer(traced, "1", "3")
    assert torch.allclose(found, torch.tensor(absolute(mnist_cnn.module[2])), rtol=1e-5)


def test_flatten_makes_a_feature_of_every_position(mnist_cnn):
    traced = tracing.trace(mnist_cnn.module, torch.rand(1, 1, 28, 28), mnist_cnn.taps)
    found = transfer.matrices(traced, traced.taps["5"], traced.output)[traced.output]
    weight = mnist_cnn.module[7].weight.abs().reshape(10, 64, 49).sum(2)
    assert torch.allclose(found, weight, rtol=1e-5)


class Branches(nn.Module):
    """Two branches side by side, one of them scaled by a parameter, then a layer norm."""

    def __init__(self):
        super().__init__()
        self.stem, self.left = nn.Conv2d(2, 3, 1), nn.Conv2d(3, 2, 1)
        self.gamma = nn.Parameter(torch.randn(3, 1, 1))
        self.norm, self.fc = nn.LayerNorm(5), nn.Linear(5, 4)
        nn.init.normal_(self.norm.weight)

    def forward(self, x):
        x = self.stem(x)
        x = torch.cat([self.left(x), x * self.gamma], 1)
        return self.fc(self.norm(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


def test_concatenation_scale_permutation_and_layer_norm(picture):
    net = made(Branches)
    traced = tracing.trace(net, picture, ["stem"])
    found = transfer.matrices(traced, traced.taps["stem"], traced.output)[traced.output]
    sides = torch.cat([net.left.weight[:, :, 0, 0].abs(), torch.diag(net.gamma.flatten().abs())])
    expected = net.fc.weight.abs() @ (net.norm.weight.abs()[:, None] * sides)
    assert torch.allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenetv3", "efficientnet_b0", "resnet18_cifar10", "convnext_cifar10"]
)
def test_every_family_composes_from_tap_to_tap(name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = models.load_model(name, weights=None)
    traced = tracing.trace(model.module, torch.randn(1, 3, *model.size), model.taps)
    for source, destination in itertools.pairwise(model.taps):
        found = transfer.transfer(traced, source, destination)
        sizes = [traced.values[traced.taps[tap]].shape[1] for tap in (destination, source)]
        assert list(found.shape) == sizes and found.isfinite().all() and (found >= 0).all()


@pytest.mark.parametrize("kind", Inner.OPERATIONS)
def test_what_cannot_be_composed_is_named(picture, kind):
    net = made(Twisted, kind)
    with pytest.raises(InputError, match="'inner'"):
        transfer.transfer(tracing.trace(net, picture, ["stem"]), "stem", "last")


def test_taps_without_a_path_between_them(picture):
    traced = tracing.trace(made(Gated), picture, ["first", "grouped"])
    with pytest.raises(InputError, match="no path leads from 'grouped' to 'first'"):
        transfer.transfer(traced, "grouped", "first")


def test_tracing_leaves_the_network_as_it_is(picture):
    net = made(Gated)
    before = net(picture)
    tracing.trace(net, picture)
    assert torch.equal(net(picture), before)
    assert not any(part._forward_hooks for part in net.modules())
