"""Small networks that several tests of circuits share."""

from typing import ClassVar

import torch
from torch import nn


class Gated(nn.Module):
    """A depthwise block with squeeze-excite, a shortcut and a norm, as MobileNetV3's."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.expand = nn.Conv2d(4, 6, 1)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.reduce = nn.Conv2d(6, 2, 1)
        self.restore = nn.Conv2d(2, 6, 1)
        self.gate = nn.Hardsigmoid()
        self.project = nn.Conv2d(6, 4, 1, bias=False)
        self.grouped = nn.Conv2d(4, 6, 3, stride=2, groups=2)
        self.act = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(6, 5)

    def forward(self, x):
        x = self.act(self.norm(self.first(x)))
        y = self.depthwise(self.expand(x))
        y = y * self.gate(self.restore(self.reduce(y.mean((2, 3), keepdim=True))))
        x = self.project(y) + x
        return self.fc(self.flatten(self.pool(self.act(self.grouped(x)))))


def made(build, *arguments, seed=0) -> nn.Module:
    """A float64 network in eval mode, its normalisations with statistics of their own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build(*arguments).double().eval().requires_grad_(False)
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_var.uniform_(0.5, 2)
                part.weight.uniform_(-2, 2)
    return module


class Twisted(nn.Module):
    """Something nobody has a rule for, and something that cannot be traced."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.stem, self.inner = kind, nn.Conv2d(2, 4, 1), Inner(kind)
        self.last = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return self.last(self.inner(self.stem(x))).mean((2, 3))


class Inner(nn.Module):
    OPERATIONS: ClassVar = {
        "branch": lambda x: x,
        "cumsum": lambda x: x.cumsum(1),
        "square": lambda x: x * x.relu(),
        # what a keyword says must not be lost
        "alpha": lambda x: torch.add(x, x.relu(), alpha=5),
        "other": lambda x: torch.add(x, other=x.relu()),
        "factor": lambda x: torch.mul(x, other=x.sigmoid()),
        "floor": lambda x: torch.div(x, 2, rounding_mode="floor"),
    }

    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def forward(self, x):
        if self.kind == "branch" and x.sum() > 0:
            return x
        return self.OPERATIONS[self.kind](x)
