"""The training of mnist_cnn_small pays for what interval arithmetic allows, and for no less."""

import pytest
import torch
from torch import nn

from minexp import abductive_audit, bounds, builders


@pytest.fixture(scope="module")
def net():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return builders.mnist_cnn_small().eval().requires_grad_(False)


@pytest.fixture(scope="module")
def digits():
    generator = torch.Generator().manual_seed(1)
    return torch.rand(4, 1, 28, 28, generator=generator), torch.tensor([0, 3, 3, 9])


def test_worst_logits_hold_at_every_point_sampled(net, digits):
    x, labels = digits
    worst = net.worst(x, labels, 0.1)
    assert (worst.gather(1, labels[:, None]) == 0).all()
    generator = torch.Generator().manual_seed(2)
    for _ in range(200):
        moved = (x + 0.1 * (2 * torch.rand(x.shape, generator=generator) - 1).sign()).clamp(0, 1)
        logits = net(moved)
        assert (logits - logits.gather(1, labels[:, None]) <= worst + 1e-5).all()


def test_worst_logits_are_those_of_the_audits_intervals(net, digits):
    x, labels = digits
    layers = bounds.margins(bounds.as_layers(net, (1, 28, 28)), 3)
    low, high = (end.flatten(1)[1].double() for end in ((x - 0.1).clamp(0), (x + 0.1).clamp(max=1)))
    found = abductive_audit.intervals(layers, low, high)
    ends = found.low[-1][0].clamp(min=0), found.high[-1][0].clamp(min=0)
    weight, bias = layers.weights[-1], layers.biases[-1]
    least = weight.clamp(min=0) @ ends[0] + weight.clamp(max=0) @ ends[1] + bias
    others = [j for j in range(10) if j != 3]
    torch.testing.assert_close(-net.worst(x, labels, 0.1)[1, others].double(), least,
                               rtol=1e-4, atol=1e-4)  # fmt: skip


def test_at_radius_0_the_worst_is_what_is(net, digits):
    x, labels = digits
    logits = net(x)
    wanted = logits - logits.gather(1, labels[:, None])
    torch.testing.assert_close(net.worst(x, labels, 0.0), wanted, rtol=1e-4, atol=1e-5)


def test_the_penalty_begins_at_nothing_and_is_whole_halfway(net, digits):
    start, quarter, half, end = (net.penalty(*digits, done).item() for done in (0, 0.25, 0.5, 0.9))
    assert start == 0 < quarter < half == end
    worst = nn.functional.cross_entropy(net.worst(*digits, net.radius), digits[1])
    assert half == pytest.approx(net.weight * worst.item())
