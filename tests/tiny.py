"""Networks of 8 inputs, small enough for brute force, that the tests of proofs share."""

from itertools import pairwise, product

import numpy as np
import torch
from scipy.optimize import linprog
from torch import nn

from minexp import bounds


def net(*widths, seed=0, scale=2.0):
    """A dense net on images (1, 1, height 2, width 4), float32, its weights spread out."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = [nn.Flatten()]
        for before, after in pairwise(widths or (8, 10, 8, 3)):
            parts += [nn.Linear(before, after), nn.ReLU()]
        module = nn.Sequential(*parts[:-1]).eval().requires_grad_(False)
        for p in module.parameters():
            p.mul_(scale)
    return module


def image(seed=0):
    return torch.rand(1, 1, 2, 4, generator=torch.Generator().manual_seed(seed))


def margins(module, label=None, x=None):
    """The margins of a module's own label at x, as layers."""
    layers = bounds.as_layers(module, (1, 2, 4))
    return bounds.margins(layers, int(module(x).argmax()) if label is None else label)


def grid(lower, upper, points=5):
    """Every point of a grid over a box (8,), ends included: (points^f, 8) for f sides of width."""
    axes = [
        torch.linspace(low, high, points).double() if high > low else torch.tensor([low]).double()
        for low, high in zip(lower.tolist(), upper.tolist(), strict=True)
    ]
    return torch.cartesian_prod(*axes)


def exact_least(layers, row, lower, upper):
    """The least value of one output over a box: a linear program for every pattern of signs."""
    least = np.inf
    widths, box = layers.widths, list(zip(lower.tolist(), upper.tolist(), strict=True))
    weights = [w.numpy() for w in layers.weights]
    biases = [b.numpy() for b in layers.biases]
    for signs in product((0.0, 1.0), repeat=sum(widths)):
        matrix, offset, rows, limits = np.eye(len(lower)), np.zeros(len(lower)), [], []
        for k, on in enumerate(np.split(np.array(signs), np.cumsum(widths)[:-1])):
            matrix, offset = weights[k] @ matrix, weights[k] @ offset + biases[k]
            rows.append((1 - 2 * on)[:, None] * matrix)  # the sign that is assumed
            limits.append((2 * on - 1) * offset)
            matrix, offset = on[:, None] * matrix, on * offset
        cost, constant = weights[-1][row] @ matrix, weights[-1][row] @ offset + biases[-1][row]
        found = linprog(cost, np.concatenate(rows), np.concatenate(limits), bounds=box)
        if found.status == 0:
            least = min(least, found.fun + constant)
    return least
