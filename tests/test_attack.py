"""The attack stays in its box, never makes things worse, and finds what a grid finds."""

import pytest
import tiny
import torch

from minexp import attack


@pytest.fixture(scope="module")
def layers():
    return tiny.margins(tiny.net(), x=tiny.image())


def box(width=0.3):
    x = tiny.image().flatten().double()
    return (x - width).clamp(0, 1), (x + width).clamp(0, 1)


def seeded():
    return torch.Generator().manual_seed(0)


def test_the_gradient_is_that_of_autograd(layers):
    x = torch.rand(20, 8, generator=seeded()).double().requires_grad_()
    attack.worst(layers, x).sum().backward()
    torch.testing.assert_close(attack.gradient(layers, x.detach()), x.grad)


def test_points_stay_in_their_boxes_and_only_improve(layers):
    low, high = (end.expand(12, 8).clone() for end in box())
    low[3], high[3] = 0.5, 0.5  # a box of one point
    start = torch.rand(12, 8, generator=seeded()).double()
    points, values = attack.descend(layers, low, high, start)
    assert (points >= low).all() and (points <= high).all()
    torch.testing.assert_close(values, attack.worst(layers, points))
    assert (values <= attack.worst(layers, start.clamp(low, high))).all()
    assert (points[3] == 0.5).all()


def test_one_output_alone(layers):
    low, high = (end.expand(6, 8) for end in box())
    rows = torch.tensor([0, 1] * 3)
    start = torch.rand(6, 8, generator=seeded()).double().clamp(low, high)
    points, values = attack.descend(layers, low, high, start, rows=rows)
    torch.testing.assert_close(values, layers(points).gather(1, rows[:, None])[:, 0])
    assert (values <= layers(start).gather(1, rows[:, None])[:, 0]).all()


@pytest.mark.parametrize("width", [0.05, 0.15, 0.4, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_it_comes_as_low_as_a_grid(seed, width):
    layers = tiny.margins(tiny.net(seed=seed), x=tiny.image())
    low, high = box(width)
    point, value = attack.attack(layers, low, high, generator=seeded())
    lowest = attack.worst(layers, tiny.grid(low, high, 4)).amin().item()
    assert value == pytest.approx(attack.worst(layers, point[None]).item(), abs=1e-12)
    assert value <= lowest + 0.06  # not a proof: a local minimum may be all it finds


def test_given_starts_are_used(layers):
    low, high = box()
    good, value = attack.attack(layers, low, high, generator=seeded())
    again, reached = attack.attack(
        layers, low, high, restarts=1, steps=0, generator=seeded(), starts=good[None]
    )
    assert reached <= value + 1e-12 and torch.equal(again, good)
    none = torch.empty(0, 8).double()
    assert attack.attack(layers, low, high, generator=seeded(), starts=none)[1] == value


def test_random_points_are_half_corners():
    low, high = box()
    points = attack.corners(low, high, 10, seeded())
    at_end = (points - low).abs().lt(1e-12) | (points - high).abs().lt(1e-12)
    assert at_end[::2].all() and not at_end[1::2].all(1).any()
