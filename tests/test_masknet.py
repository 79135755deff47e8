"""The mask network: its shapes, its start, and that it learns."""

import pytest
import torch
import torch.nn.functional as F

from minexp.masknet import UNet, parameter_count

# (channels, size, grid): our inputs, grids that no power of two divides, and few patches
CASES = [
    (3, (224, 224), 56),
    (3, (224, 224), 28),
    (3, (224, 224), 17),
    (1, (28, 28), 28),
    (1, (28, 28), 17),
    (1, (28, 28), 9),
    (3, (96, 160), 31),
    (1, (28, 28), 7),
    (3, (32, 32), 8),
    (3, (32, 32), 2),
]
each_case = pytest.mark.parametrize(("channels", "size", "grid"), CASES)


def build(channels, size, grid, seed=0, mode="bilinear"):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet(channels, size, grid, mode=mode)


def picture(channels, size, seed=0):
    return torch.randn(1, channels, *size, generator=torch.Generator().manual_seed(seed))


def perturbed(network, seed=1):
    """Move every parameter off its start, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return network


@each_case
def test_lightweight(channels, size, grid):
    network = build(channels, size, grid)
    expected = sum(p.numel() for p in network.parameters() if p.requires_grad)
    assert parameter_count(network) == expected
    assert 0 < parameter_count(network) < 1_000_000


@each_case
def test_output_has_the_images_size_and_lies_between_zero_and_one(channels, size, grid):
    soft = perturbed(build(channels, size, grid))(picture(channels, size))
    assert soft.shape == (1, 1, *size)
    assert soft.dtype == torch.float32
    assert 0 <= soft.min() < soft.max() <= 1


@each_case
def test_starts_all_on(channels, size, grid):
    network = build(channels, size, grid)
    for seed in range(3):
        assert (network(10 * picture(channels, size, seed)) > 0.5).all()


@each_case
def test_seeded_start_is_identical(channels, size, grid):
    first, second, other = (build(channels, size, grid, seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_training_from_the_same_seed_is_identical():
    masks = []
    for _ in range(2):
        network, image = build(1, (28, 28), 28, seed=5), picture(1, (28, 28))
        fit(network, image, disc(28), steps=3)
        masks.append(network(image))
    assert torch.equal(*masks)
    assert masks[0].min() < masks[0].max(), "it moved"


def test_depends_on_the_image_once_trained():
    network = perturbed(build(3, (64, 64), 16))
    first, second = (network(picture(3, (64, 64), seed)) for seed in (0, 1))
    assert (first - second).abs().max() > 1e-3


def test_every_parameter_gets_a_gradient():
    network = perturbed(build(1, (28, 28), 17))
    network(picture(1, (28, 28))).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_bias_of_one_cell_moves_its_own_patch_only():
    network = build(3, (64, 64), 16)
    image = picture(3, (64, 64))
    before = network(image)
    with torch.no_grad():
        network.bias[0, 0, 8, 8] -= 5
    changed = (network(image) != before)[0, 0].nonzero()  # (K, 2)
    # cell 8 covers pixels 32 to 35; bilinear interpolation reaches one cell further at most
    assert len(changed) > 0
    assert changed.min() >= 28 and changed.max() <= 39


@pytest.mark.parametrize(
    ("side", "patch"),
    # torch's mode "nearest" shifts an edge of the last three by a pixel
    [(28, 4), (32, 4), (32, 16), (96, 32), (224, 14), (82, 41), (110, 55), (94, 47)],
)
def test_each_cell_is_one_patch(side, patch):
    grid = side // patch
    network = build(1, (side, side), grid, mode="nearest-exact")
    with torch.no_grad():
        network.bias.copy_(torch.randperm(grid * grid).view(1, 1, grid, grid) - grid)
    logits = network.logits(picture(1, (side, side)))
    for row in range(grid):
        for column in range(grid):
            rows, columns = (slice(k * patch, (k + 1) * patch) for k in (row, column))
            assert (logits[0, 0, rows, columns] == network.bias[0, 0, row, column]).all()


@pytest.mark.parametrize("grid", [2, 7])
def test_so_few_cells_get_gradients_too(grid):
    network = perturbed(build(1, (28, 28), grid))
    network(picture(1, (28, 28))).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def disc(side):
    """A target mask (1, 1, side, side): on within a third of the side around a point off centre."""
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    inside = (rows - 0.4 * side) ** 2 + (columns - 0.55 * side) ** 2 < (side / 3) ** 2
    return inside.float()[None, None]


def fit(network, image, target, steps):
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    history = []
    for _ in range(steps):
        loss = F.binary_cross_entropy(network(image), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    return history


@pytest.mark.parametrize(
    ("channels", "side", "grid"), [(1, 28, 28), (1, 28, 17), (1, 28, 7), (3, 96, 24)], ids=str
)
def test_learns_a_target_mask(channels, side, grid):
    size, target = (side, side), disc(side)
    network, image = build(channels, size, grid), picture(channels, size)
    history = fit(network, image, target, steps=60)
    agreement = ((network(image) > 0.5) == (target > 0.5)).float().mean()
    assert history[-1] < history[0] / 5
    assert agreement > 0.95
