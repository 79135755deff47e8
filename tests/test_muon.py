"""Muon: an update is orthogonal and as large as AdamW's, for matrices and kernels alike."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import nn

from minexp.muon import Muon, orthogonal


def literal(matrix):
    """U p(S) V' by numpy's decomposition, p applied to one singular value after the other."""
    u, singular, v = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    s = singular / np.linalg.norm(singular)
    for _ in range(4):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return (u * s) @ v, s


@pytest.mark.parametrize("shape", [(6, 6), (5, 40), (40, 5), (1, 9)])
def test_orthogonal_sends_every_singular_value_as_the_polynomial_says(shape):
    matrix = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    expected, singular = literal(matrix)
    np.testing.assert_allclose(orthogonal(torch.from_numpy(matrix)), expected, atol=1e-4)
    if shape != (6, 6):  # a square one may have a singular value next to nothing
        assert singular.min() > 0.6 and singular.max() < 1.25


def test_of_nothing_nothing_comes():
    assert torch.equal(orthogonal(torch.zeros(3, 5)), torch.zeros(3, 5))


@pytest.mark.parametrize("shape", [(8, 20), (20, 8), (8, 4, 3, 3)])
def test_steps_are_the_literal_ones(shape):
    generator = np.random.default_rng(1)
    start, *gradients = generator.normal(size=(4, *shape)).astype(np.float32)
    p = nn.Parameter(torch.from_numpy(start.copy()))
    muon = Muon([p], lr=0.1, momentum=0.9, weight_decay=0.5)
    weight, mean = start.astype(np.float64), np.zeros(shape)
    for gradient in gradients:
        p.grad = torch.from_numpy(gradient)
        muon.step()
        mean = 0.9 * mean + 0.1 * gradient
        flat = (0.1 * gradient + 0.9 * mean).reshape(shape[0], -1)
        update = literal(flat)[0].reshape(shape)
        weight = weight * (1 - 0.1 * 0.5) - 0.1 * 0.2 * max(flat.shape) ** 0.5 * update
        np.testing.assert_allclose(p.detach(), weight, atol=1e-4)


def test_a_parameter_without_gradient_stays():
    p, q = nn.Parameter(torch.ones(3, 4)), nn.Parameter(torch.ones(3, 4))
    p.grad = torch.ones(3, 4)
    Muon([p, q], lr=0.1, weight_decay=0.1).step()
    assert torch.equal(q, torch.ones(3, 4)) and not torch.equal(p, q)


def test_state_is_restored():
    def a_step(muon, p, seed):
        p.grad = torch.randn(4, 6, generator=torch.Generator().manual_seed(seed))
        muon.step()

    p = nn.Parameter(torch.ones(4, 6))
    muon = Muon([p], lr=0.1)
    a_step(muon, p, 0)
    q = nn.Parameter(p.detach().clone())
    other = Muon([q], lr=0.5)
    other.load_state_dict(deepcopy(muon.state_dict()))
    a_step(muon, p, 1)
    a_step(other, q, 1)
    assert torch.equal(p, q)
