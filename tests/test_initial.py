"""Where a fast training begins: a stem that whitens, convolutions that pass their input on."""

import numpy as np
import pytest
import torch
from torch import nn

from minexp import initial, training
from minexp.builders import BUILDERS


def smooth_pictures(count=40, side=12):
    """Pictures whose neighbouring pixels and channels are alike, as a photograph's are."""
    noise = torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))
    mixed = torch.einsum("cd,ndhw->nchw", torch.tensor([[2.0, 1, 0], [1, 2, 1], [0, 1, 2]]), noise)
    return nn.functional.avg_pool2d(mixed, 3, stride=1)


def patches(x, side):
    """Every patch at even places, (count, 3 * side * side) float64, cut out one by one."""
    places = range(0, x.shape[-1] - side + 1, 2)
    cut = [p[:, i : i + side, j : j + side].flatten() for p in x for i in places for j in places]
    return torch.stack(cut).double().numpy()


@pytest.mark.parametrize(("filters", "side"), [(16, 3), (54, 3), (60, 3), (24, 2), (26, 2)])
def test_the_stem_whitens_what_it_sees_and_mirrors_it(filters, side):
    x, module = smooth_pictures(), nn.Sequential(nn.Conv2d(3, filters, side), nn.ReLU())
    before = module[0].weight.detach().clone()
    initial.whiten(module, x)
    values = patches(x, side)
    half = min(filters // 2, values.shape[1])
    weight = module[0].weight.detach().double().flatten(1).numpy()
    answers = values @ weight[:half].T
    variances = np.linalg.eigvalsh(values.T @ values / len(values))[::-1][:half]
    literal = np.diag(variances / (variances + 0.05))
    np.testing.assert_allclose(answers.T @ answers / len(values), literal, atol=1e-4)
    np.testing.assert_array_equal(weight[half : 2 * half], -weight[:half])
    assert torch.equal(module[0].weight[2 * half :], before[2 * half :])


def test_the_stem_stays_and_the_rest_learns():
    module = BUILDERS["resnet18_cifar10"]()
    initial.whiten(module, torch.randn(20, 3, 32, 32))
    assert [k for k, p in module.named_parameters() if not p.requires_grad] == ["conv1.weight"]
    optimizers = training._optimizers(module, training.RECIPES["resnet18_cifar10"])
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    learned = [p for group in groups for p in group["params"]]
    assert all(p.requires_grad for p in learned)
    assert len(learned) == len(list(module.parameters())) - 1


@pytest.mark.parametrize(("channels", "filters"), [(4, 4), (4, 7), (6, 4)])
def test_a_convolution_starts_by_passing_its_input_on(channels, filters):
    conv, kept = nn.Conv2d(channels, filters, 3, padding=1, bias=False), min(channels, filters)
    before = conv.weight.detach().clone()
    initial.start_as_identity(nn.Sequential(nn.Conv2d(3, channels, 3), conv))
    x = torch.randn(2, channels, 5, 5)
    torch.testing.assert_close(conv(x)[:, :kept], x[:, :kept])
    assert torch.equal(conv.weight[kept:], before[kept:])


@pytest.mark.parametrize(
    "conv",
    [nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 5), nn.Conv2d(8, 8, 3, groups=8)],
    ids=["stem", "1 x 1", "5 x 5", "depthwise"],
)
def test_other_convolutions_are_left_alone(conv):
    before = conv.weight.detach().clone()
    initial.start_as_identity(conv)
    assert torch.equal(conv.weight, before)
