"""Each loss against its equation, written out slowly with Python loops in float64."""

import inspect
import math
from dataclasses import fields

import pytest
import torch
from torch import nn

from minexp import losses
from minexp.config import LossWeights

EXACT = {"rtol": 1e-12, "atol": 1e-14}  # float64 against float64, only the order of sums differs


def rand(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, dtype=torch.float64, generator=generator)


def randn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


# --- the oracles: paper 000, sections 3.1 and 3.2, term by term


def softmax_oracle(logits: list[float]) -> list[float]:
    powers = [math.exp(value) for value in logits]
    return [power / math.fsum(powers) for power in powers]


def cross_entropy_oracle(logits: list[list[float]], y: int) -> float:
    """-log p(y), averaged over the rows."""
    return math.fsum(-math.log(softmax_oracle(row)[y]) for row in logits) / len(logits)


def kl_oracle(reference: list[list[float]], logits: list[list[float]]) -> float:
    """D_KL(p || q) = sum_k p_k log(p_k / q_k), averaged over the rows."""
    result = []
    for row_p, row_q in zip(reference, logits, strict=True):
        pairs = zip(softmax_oracle(row_p), softmax_oracle(row_q), strict=True)
        result.append(math.fsum(p * math.log(p / q) for p, q in pairs))
    return math.fsum(result) / len(result)


def mse_oracle(a: torch.Tensor, b: torch.Tensor) -> float:
    pairs = list(zip(a.flatten().tolist(), b.flatten().tolist(), strict=True))
    return math.fsum((u - v) ** 2 for u, v in pairs) / len(pairs)


def cosine_oracle(a: torch.Tensor, b: torch.Tensor) -> float:
    """1 - a.b / (|a| |b|) of the last dimension's vectors, averaged over all others."""
    rows_a = a.reshape(-1, a.shape[-1]).tolist()
    rows_b = b.reshape(-1, b.shape[-1]).tolist()
    result = []
    for u, v in zip(rows_a, rows_b, strict=True):
        dot = math.fsum(s * t for s, t in zip(u, v, strict=True))
        norms = math.sqrt(math.fsum(s * s for s in u)) * math.sqrt(math.fsum(t * t for t in v))
        result.append(1 - dot / norms)
    return math.fsum(result) / len(result)


def activation_oracle(reference, explained, alphas) -> float:
    result = 0.0
    for tap in reference:
        distance = mse_oracle if reference[tap].ndim == 4 else cosine_oracle
        result += alphas.get(tap, 1.0) * distance(reference[tap], explained[tap])
    return result


def pixels_oracle(mask: torch.Tensor, value) -> float:
    """The mean of value(m_ij)."""
    flat = mask.flatten().tolist()
    return math.fsum(value(m) for m in flat) / len(flat)


def area_oracle(mask):
    return pixels_oracle(mask, abs)


def binarization_oracle(mask):
    return pixels_oracle(mask, lambda m: abs(m - m * m))


def tv_oracle(mask: torch.Tensor) -> float:
    """(1/HW) sum_ij |m_ij - m_i+1,j| + |m_ij - m_i,j+1|, averaged over the masks."""
    result = []
    for (m,) in mask.tolist():
        height, width = len(m), len(m[0])
        for i in range(height):
            for j in range(width):
                if i + 1 < height:
                    result.append(abs(m[i][j] - m[i + 1][j]))
                if j + 1 < width:
                    result.append(abs(m[i][j] - m[i][j + 1]))
    return math.fsum(result) / mask.numel()


MASK_ORACLES = {
    "area": area_oracle,
    "binarization": binarization_oracle,
    "total_variation": tv_oracle,
}
each_mask_loss = pytest.mark.parametrize("name", MASK_ORACLES)
each_size = pytest.mark.parametrize(
    "shape", [(1, 1, 6, 6), (3, 1, 5, 8), (2, 1, 1, 7), (1, 1, 9, 1), (1, 1, 1, 1)]
)
each_logit_shape = pytest.mark.parametrize("shape", [(1, 2), (1, 10), (5, 7)])
each_activation_shape = pytest.mark.parametrize(
    "shape", [(1, 3, 4, 4), (2, 5, 3, 6), (1, 8), (4, 6), (1, 5, 8), (3, 4, 7)], ids=str
)


def assert_equals(value: torch.Tensor, expected: float):
    assert value.ndim == 0
    torch.testing.assert_close(value, torch.tensor(expected, dtype=torch.float64), **EXACT)


# --- every equation


@each_mask_loss
@each_size
@pytest.mark.parametrize("seed", range(3))
def test_mask_losses_equal_their_equations(name, shape, seed):
    mask = rand(*shape, seed=seed)
    assert_equals(getattr(losses, name)(mask), MASK_ORACLES[name](mask))


@each_logit_shape
@pytest.mark.parametrize("name", ["label", "robustness"])
def test_cross_entropies_equal_their_equations(name, shape):
    logits = 3 * randn(*shape)
    for y in range(shape[1]):
        assert_equals(getattr(losses, name)(logits, y), cross_entropy_oracle(logits.tolist(), y))


@each_logit_shape
def test_distribution_equals_its_equation(shape):
    reference, logits = 3 * randn(*shape, seed=1), 3 * randn(*shape, seed=2)
    expected = kl_oracle(reference.tolist(), logits.tolist())
    assert_equals(losses.distribution(reference, logits), expected)


def test_distribution_is_not_symmetric_and_puts_the_image_first():
    """Of p = (1/2, 1/2) and q = (1/4, 3/4) the two divergences are known in closed form."""
    p = torch.tensor([[0.5, 0.5]], dtype=torch.float64).log()
    q = torch.tensor([[0.25, 0.75]], dtype=torch.float64).log()
    assert_equals(losses.distribution(p, q), math.log(2) / 2 + math.log(2 / 3) / 2)
    assert_equals(losses.distribution(q, p), math.log(1 / 2) / 4 + 3 * math.log(3 / 2) / 4)


@each_activation_shape
@pytest.mark.parametrize("seed", range(3))
def test_activation_of_one_tap_equals_its_equation(shape, seed):
    reference = {"tap": randn(*shape, seed=seed)}
    explained = {"tap": randn(*shape, seed=seed + 100)}
    expected = activation_oracle(reference, explained, {})
    assert_equals(losses.activation(reference, explained), expected)


@pytest.mark.parametrize(
    "alphas",
    [{}, {"maps": 0.25}, {"vector": 0.0, "tokens": 3}, {"maps": 2, "vector": 0.5, "tokens": 7.5}],
)
def test_activation_sums_its_taps_with_their_weights(alphas):
    shapes = {"maps": (2, 3, 4, 5), "vector": (2, 6), "tokens": (2, 3, 4)}
    reference = {tap: randn(*shape, seed=1) for tap, shape in shapes.items()}
    explained = {tap: randn(*shape, seed=2) for tap, shape in shapes.items()}
    expected = activation_oracle(reference, explained, alphas)
    assert_equals(losses.activation(reference, explained, alphas), expected)


# --- known values


@pytest.mark.parametrize("side", [2, 5, 8])
def test_values_of_special_masks(side):
    off = torch.zeros(2, 1, side, side, dtype=torch.float64)
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    checkerboard = ((rows + columns) % 2).double()[None, None]  # (1, 1, side, side)
    for mask in (off, off + 1):
        assert losses.area(mask) == mask[0, 0, 0, 0]
        assert losses.binarization(mask) == 0
        assert losses.total_variation(mask) == 0
    assert_equals(losses.area(checkerboard), (side**2 // 2) / side**2)
    assert losses.binarization(checkerboard) == 0
    # every one of the 2 side (side - 1) inner pixel edges separates on from off
    assert_equals(losses.total_variation(checkerboard), 2 * side * (side - 1) / side**2)
    assert losses.binarization(off + 0.5) == 0.25, "its largest value"


def test_total_variation_is_the_outline_and_halves_when_the_side_doubles():
    mask = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    mask[..., 2:5, 3:7] = 1  # 3 x 4 pixels, clear of the border: outline 14 pixel edges
    assert_equals(losses.total_variation(mask), 14 / 64)
    doubled = mask.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert_equals(losses.total_variation(doubled), 14 / 128)


def test_mask_losses_are_means_so_a_batch_of_copies_changes_nothing():
    mask = rand(1, 1, 6, 7)
    for name in MASK_ORACLES:
        loss = getattr(losses, name)
        torch.testing.assert_close(loss(mask.expand(4, 1, 6, 7)), loss(mask), **EXACT)


def test_uniform_logits_cost_the_logarithm_of_the_number_of_classes():
    logits = torch.zeros(3, 10, dtype=torch.float64)
    assert_equals(losses.label(logits, 4), math.log(10))
    assert_equals(losses.robustness(logits, 9), math.log(10))


def test_extreme_logits_stay_finite():
    logits = torch.tensor([[1e4, -1e4, 0.0]])
    assert losses.label(logits, 0) == 0
    assert losses.label(logits, 1) == 2e4
    assert losses.distribution(logits, logits.flip(1)).item() == 1e4
    assert losses.distribution(logits, logits) == 0


# --- gradients


@each_mask_loss
def test_gradients_of_mask_losses(name):
    mask = rand(2, 1, 4, 5).requires_grad_()
    assert torch.autograd.gradcheck(getattr(losses, name), mask)


@pytest.mark.parametrize("name", ["label", "robustness"])
def test_gradients_of_cross_entropies(name):
    logits = randn(3, 6).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: getattr(losses, name)(z, 2), logits)


def test_gradients_of_distribution():
    reference, logits = randn(3, 6, seed=1).requires_grad_(), randn(3, 6, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(losses.distribution, (reference, logits))


@each_activation_shape
def test_gradients_of_activation(shape):
    reference, explained = randn(*shape, seed=1).requires_grad_(), randn(*shape, seed=2)

    def loss(a, b):
        return losses.activation({"tap": a}, {"tap": b}, {"tap": 0.7})

    assert torch.autograd.gradcheck(loss, (reference, explained.requires_grad_()))


# --- signs and optima


def test_zero_at_the_optimum():
    maps, vector, tokens = randn(2, 3, 4, 4), randn(2, 6), randn(2, 3, 5)
    both = {"maps": maps, "vector": vector, "tokens": tokens}
    assert losses.activation({"maps": maps}, {"maps": maps.clone()}) == 0
    assert_equals(losses.activation(both, {tap: a.clone() for tap, a in both.items()}), 0.0)
    # cosine similarity asks for the direction only
    assert_equals(losses.activation({"v": vector}, {"v": 3 * vector}), 0.0)
    assert losses.distribution(vector, vector.clone()) == 0
    assert_equals(losses.distribution(vector, vector + 5), 0.0)  # a shift moves no probability
    sure = torch.tensor([[0.0, 800.0, 0.0]], dtype=torch.float64)
    assert losses.label(sure, 1) == 0
    assert losses.robustness(sure, 1) == 0
    off = torch.zeros(1, 1, 4, 4)
    assert losses.area(off) == losses.binarization(off) == losses.total_variation(off) == 0


@pytest.mark.parametrize("seed", range(20))
def test_no_term_is_negative(seed):
    mask, logits, other = rand(2, 1, 6, 6, seed=seed), randn(2, 9, seed=seed), randn(2, 9, seed=-1)
    terms = {
        "activation": losses.activation({"a": logits}, {"a": other}),
        "label": losses.label(logits, seed % 9),
        "distribution": losses.distribution(logits, other),
        "area": losses.area(mask),
        "binarization": losses.binarization(mask),
        "total_variation": losses.total_variation(mask),
        "robustness": losses.robustness(other, seed % 9),
    }
    assert all(term > 0 for term in terms.values()), "none is at its optimum here"


# --- refusals


@pytest.mark.parametrize(
    ("reference", "explained", "alphas", "named"),
    [
        ({"a": (1, 4)}, {"b": (1, 4)}, None, "'b'"),
        ({"a": (1, 4), "b": (1, 4)}, {"a": (1, 4)}, None, "'b'"),
        ({"a": (1, 4)}, {"a": (1, 4)}, {"deep": 1.0}, "'deep'"),
        ({"a": (1, 4)}, {"a": (1, 5)}, None, r"\(1, 5\)"),
        ({"a": (1, 3, 4, 4)}, {"a": (1, 3, 2, 2)}, None, r"\(1, 3, 2, 2\)"),
        ({"a": (1, 3, 4, 4)}, {"a": (2, 3, 4, 4)}, None, r"\(2, 3, 4, 4\)"),
    ],
)
def test_activation_refuses_what_does_not_match(reference, explained, alphas, named):
    reference = {tap: randn(*shape) for tap, shape in reference.items()}
    explained = {tap: randn(*shape) for tap, shape in explained.items()}
    with pytest.raises(ValueError, match=named):
        losses.activation(reference, explained, alphas)


# --- the sum


def test_every_weight_names_a_loss_and_every_loss_has_a_weight():
    functions = {
        name
        for name, value in vars(losses).items()
        if inspect.isfunction(value) and value.__module__ == losses.__name__ and name[0] != "_"
    }
    assert {item.name for item in fields(LossWeights)} == functions - {"total"}


def test_total_is_the_weighted_sum():
    names = [item.name for item in fields(LossWeights)]
    terms = dict(zip(names, rand(len(names)).unbind(), strict=True))
    lambdas = dict(zip(names, [1.5, 0.0, 7.5, 80.0, 2.5, 35.0, 25.0], strict=True))
    expected = math.fsum(lambdas[name] * terms[name].item() for name in names)
    assert_equals(losses.total(terms, LossWeights(**lambdas)), expected)
    for chosen in names:
        only = LossWeights(**{name: float(name == chosen) for name in names})
        assert losses.total(terms, only) == terms[chosen]


def test_total_of_some_terms_leaves_the_others_out():
    terms = {"area": torch.tensor(0.25), "label": torch.tensor(2.0)}
    assert losses.total(terms, LossWeights(area=4.0, label=3.0, robustness=99.0)) == 7


def test_total_refuses_a_term_without_a_weight():
    with pytest.raises(AttributeError, match="entropy"):
        losses.total({"entropy": torch.tensor(1.0)}, LossWeights())


# --- every loss can be learned


class TinyNet(nn.Module):
    """Two convolutions and a linear layer: logits (N, 5) and the activations of all three kinds."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.last = nn.Linear(8, 5)

    def forward(self, image):
        first = self.first(image).relu()
        second = self.second(first).relu()
        tokens = second.flatten(2).transpose(1, 2)  # (N, 16, 8)
        vector = tokens.mean(1)  # (N, 8)
        taps = {"first": first, "second": second, "tokens": tokens, "vector": vector}
        return self.last(vector), taps


def all_terms(net, image, noise, mask):
    with torch.no_grad():
        target, reference = net(image)
    y = int(target.argmax())
    logits, explained = net(mask * image)
    noise_logits, _ = net(mask * image + (1 - mask) * noise)
    return {
        "activation": losses.activation(reference, explained),
        "label": losses.label(logits, y),
        "distribution": losses.distribution(target, logits),
        "area": losses.area(mask),
        "binarization": losses.binarization(mask),
        "total_variation": losses.total_variation(mask),
        "robustness": losses.robustness(noise_logits, y),
    }


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("name", [item.name for item in fields(LossWeights)] + ["total"])
def test_every_loss_falls_within_five_steps(name, optimizer):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = TinyNet().double()
    image, noise = randn(1, 3, 8, 8, seed=1), randn(1, 3, 8, 8, seed=2)
    free = randn(1, 1, 8, 8, seed=3).requires_grad_()  # logits of the mask

    def loss():
        terms = all_terms(net, image, noise, free.sigmoid())
        return losses.total(terms, LossWeights()) if name == "total" else terms[name]

    steps = optimizer([free], lr=0.05)
    values = [loss().item()]
    for _ in range(5):
        steps.zero_grad()
        loss().backward()
        steps.step()
        values.append(loss().item())
    assert values[-1] < values[0]
    assert min(values) >= 0
