"""What stays, what goes, and the noise painted where it went."""

import math

import pytest
import torch

from minexp import masking


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def seeded(seed):
    return torch.Generator().manual_seed(seed)


# --- e = m x + (1 - m) r


def apply_oracle(image, mask, background):
    """Pixel by pixel, as the equation is written; ``background`` (N, C, H, W)."""
    result = torch.empty_like(background)
    for n, c, i, j in torch.cartesian_prod(*map(torch.arange, background.shape)).tolist():
        m, x = mask[n % len(mask), 0, i, j], image[n % len(image), c, i, j]
        result[n, c, i, j] = m * x + (1 - m) * background[n, c, i, j]
    return result


@pytest.mark.parametrize("hard", [True, False])
def test_apply_mask_equals_its_equation(hard):
    image, background = rand(2, 3, 4, 5, seed=1) - 0.5, rand(2, 3, 4, 5, seed=2) - 0.5
    mask = rand(2, 1, 4, 5, seed=3)
    mask = (mask > 0.5).float() if hard else mask
    result = masking.apply_mask(image, mask, background)
    torch.testing.assert_close(result, apply_oracle(image, mask, background))


def test_one_image_on_many_backgrounds():
    image, mask, background = rand(1, 3, 4, 4, seed=1), rand(1, 1, 4, 4), rand(5, 3, 4, 4, seed=2)
    result = masking.apply_mask(image, mask, background)
    torch.testing.assert_close(result, apply_oracle(image, mask, background))


@pytest.mark.parametrize("number", [0.0, -1.0, 0.25])
def test_a_number_is_a_constant_background(number):
    image, mask = rand(2, 3, 4, 4) - 0.5, rand(2, 1, 4, 4, seed=1)
    result = masking.apply_mask(image, mask, number)
    expected = apply_oracle(image, mask, torch.full_like(image, number))
    torch.testing.assert_close(result, expected)


def test_the_default_background_is_zero():
    image, mask = rand(1, 3, 4, 4) - 0.5, (rand(1, 1, 4, 4, seed=1) > 0.5).float()
    assert torch.equal(masking.apply_mask(image, mask), mask * image)


def test_all_on_is_the_image_and_all_off_the_background():
    image, background = rand(1, 3, 4, 4), rand(1, 3, 4, 4, seed=1)
    on = torch.ones(1, 1, 4, 4)
    assert torch.equal(masking.apply_mask(image, on, background), image)
    assert torch.equal(masking.apply_mask(image, 0 * on, background), background)


# --- the straight-through threshold

EDGES = [0.0, 1e-45, 1e-8, 0.49999997, 0.5, 0.50000006, 0.99999994, 1.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_binarize_is_exactly_zero_or_one(dtype):
    wide = torch.randn(200_000, generator=seeded(1)) * 4
    near = 0.5 + torch.randn(50_000, generator=seeded(2)) * 1e-6
    soft = torch.cat([rand(200_000), wide.sigmoid(), near, torch.tensor(EDGES)])
    soft = soft.to(dtype).requires_grad_()
    hard = masking.binarize(soft)
    assert hard.dtype == dtype
    assert hard.unique().tolist() == [0.0, 1.0]
    assert torch.equal(hard == 1, soft > 0.5)


def test_binarize_at_the_edges():
    assert masking.binarize(torch.tensor(EDGES)).tolist() == [0, 0, 0, 0, 0, 1, 1, 1]


def test_the_gradient_of_binarize_is_the_identity():
    soft = rand(2, 1, 16, 16).requires_grad_()
    upstream = rand(2, 1, 16, 16, seed=1) - 0.5
    (gradient,) = torch.autograd.grad(masking.binarize(soft), soft, upstream)
    assert torch.equal(gradient, upstream)


# --- noise


def clipped_moments():
    """Mean and standard deviation of N(0.5, 0.25) clipped to [0, 1], by the midpoint rule."""
    tail = 0.5 * math.erfc(2 / math.sqrt(2))  # beyond two deviations, on each side
    steps = 20_000
    mean, square = tail, tail  # the upper tail sits at 1, the lower at 0
    for k in range(steps):
        x = (k + 0.5) / steps
        density = math.exp(-0.5 * ((x - 0.5) / 0.25) ** 2) / (0.25 * math.sqrt(2 * math.pi))
        mean, square = mean + x * density / steps, square + x * x * density / steps
    return mean, math.sqrt(square - mean**2), tail


def test_noise_before_normalisation_is_clipped_gaussian(model):
    draws = 2_000_000 // (len(model.mean) * math.prod(model.size))
    noise = masking.gaussian_background(model, draws, seeded(0))
    assert noise.shape == (draws, len(model.mean), *model.size)
    assert noise.dtype == torch.float32
    std, mean = (torch.tensor(v).double()[:, None, None] for v in (model.std, model.mean))
    pixels = noise.double() * std + mean
    assert pixels.min().item() == pytest.approx(0, abs=1e-6)
    assert pixels.max().item() == pytest.approx(1, abs=1e-6)
    mu, sigma, tail = clipped_moments()
    error = sigma / math.sqrt(pixels.numel())
    assert pixels.mean().item() == pytest.approx(mu, abs=5 * error)
    assert pixels.std().item() == pytest.approx(sigma, abs=5 * error)
    share_error = math.sqrt(tail / pixels.numel())
    assert (pixels < 1e-6).double().mean().item() == pytest.approx(tail, abs=5 * share_error)
    assert (pixels > 1 - 1e-6).double().mean().item() == pytest.approx(tail, abs=5 * share_error)


def test_noise_is_independent_in_every_channel_and_draw(lite0):
    noise = masking.gaussian_background(lite0, 2, seeded(0)).flatten(0, 1).flatten(1)  # (6, HW)
    correlation = torch.corrcoef(noise) - torch.eye(6)
    assert correlation.abs().max() < 5 / math.sqrt(noise.shape[1])


def test_same_seed_same_noise_and_different_seeds_differ(model):
    first = masking.gaussian_background(model, 2, seeded(7))
    assert torch.equal(first, masking.gaussian_background(model, 2, seeded(7)))
    assert not torch.equal(first, masking.gaussian_background(model, 2, seeded(8)))
    assert not torch.equal(first[0], first[1])


def test_a_generator_moves_on_from_draw_to_draw(mnist_cnn):
    generator = seeded(7)
    first, second = (masking.gaussian_background(mnist_cnn, 1, generator) for _ in range(2))
    assert not torch.equal(first, second)


def test_noise_leaves_the_global_random_state_alone(mnist_cnn):
    before = torch.get_rng_state()
    masking.gaussian_background(mnist_cnn, 3, seeded(0))
    assert torch.equal(torch.get_rng_state(), before)


# --- connected regions

DRAWN = [
    (0, ["....", "....", "...."]),
    (1, ["####", "####", "####"]),
    (1, ["....", ".#..", "...."]),
    (2, ["#...", ".#..", "...."]),  # touching at a corner is not touching
    (1, ["#...", "##..", "...."]),
    (1, ["####", "#..#", "####"]),  # a ring
    (2, [".....", ".###.", ".#.#.", ".###.", "....#"]),
    (6, ["#.#.", ".#.#", "#.#."]),
    (2, ["#..#", "#..#", "#..#"]),  # the border does not wrap around
    (1, ["#.##", "#.#.", "###."]),
]


@pytest.mark.parametrize(("expected", "rows"), DRAWN)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.uint8])
def test_components_of_drawn_masks(expected, rows, dtype):
    mask = torch.tensor([[cell == "#" for cell in row] for row in rows])[None, None].to(dtype)
    assert masking.components(mask) == expected


def test_components_equal_a_flood_fill():
    for seed in range(10):
        mask = rand(1, 1, 12, 15, seed=seed) > 0.55
        left, count = {tuple(cell) for cell in mask[0, 0].nonzero().tolist()}, 0
        while left:
            count += 1
            front = [left.pop()]
            while front:
                i, j = front.pop()
                for cell in ((i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)):
                    if cell in left:
                        left.remove(cell)
                        front.append(cell)
        assert masking.components(mask) == count
