"""Each baseline against its published definition, written out in loops and float64."""

import copy
import importlib.util
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from minexp import attention, baselines, models, peers, references, suites, taps
from minexp.baselines import area_penalty, extremal_map, extremal_perturbation, smooth_max
from minexp.classifier import Classifier
from minexp.errors import InputError

SIZE = (16, 14)
METHODS = {
    "gradcam": baselines.gradcam,
    "integrated_gradients": baselines.integrated_gradients,
    "occlusion": baselines.occlusion,
    "rise": baselines.rise,
    "random": baselines.random_map,
    "centre": baselines.centre,
}
TRANSFORMERS = {"attention": baselines.attention_map, "rollout": baselines.attention_rollout}
SMALL = {"integrated_gradients": {"steps": 3}, "rise": {"masks": 9}, "occlusion": {"windows": 2}}


def classifier(module: nn.Module, taps: tuple[str, ...] = (), classes: int = 3) -> Classifier:
    return Classifier(
        name="tiny", family="test", module=module.eval().requires_grad_(False), mean=(0.0, 0.0),
        std=(1.0, 1.0), size=SIZE, class_names=("a", "b", "c")[:classes], taps=taps,
        transform=None, weights_sha256=None,
    )  # fmt: skip


@pytest.fixture(scope="module")
def tiny():
    """Two convolutions, global pooling, three classes; its last tap is no map."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        module = nn.Sequential(
            nn.Conv2d(2, 5, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(5, 6, 3), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3),
        )  # fmt: skip
        module[-1].weight.data *= 8  # so that the probabilities differ
    return classifier(module, ("1", "3", "4", "5"))


@pytest.fixture(scope="module")
def image():
    return torch.randn(1, 2, *SIZE, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module", params=["mnist_vit", "vit_cifar10"])
def transformer(request):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        model = models.load_model(request.param, weights=None)
        image = torch.randn(1, len(model.mean), *model.size)
    return model, image, attention.attention_maps(model, image)


@pytest.fixture(scope="module")
def digit(mnist_cnn):
    return references.open_reference("mnist:4", mnist_cnn)[0]


def probability(model, image, label) -> torch.Tensor:
    """exp over the sum of exps of a float64 copy; keeps the graph."""
    powers = copy.deepcopy(model.module).double()(image.double())[0].exp()
    return powers[label] / powers.sum()


def bilinear(coarse: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """A (h, w) map at the centres of height x width pixels, constant beyond its outer centres."""
    fine = torch.zeros(height, width, dtype=torch.float64)
    last = [side - 1 for side in coarse.shape]
    for i in range(height):
        for j in range(width):
            y = min(max((i + 0.5) * coarse.shape[0] / height - 0.5, 0), last[0])
            x = min(max((j + 0.5) * coarse.shape[1] / width - 0.5, 0), last[1])
            for a in (math.floor(y), math.floor(y) + 1):
                for b in (math.floor(x), math.floor(x) + 1):
                    share = (1 - abs(y - a)) * (1 - abs(x - b))
                    fine[i, j] += share * coarse[min(a, last[0]), min(b, last[1])].item()
    return fine


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(found.double(), expected.double(), rtol=0, atol=tolerance)


@pytest.mark.parametrize("label", range(3))
def test_gradcam_is_the_formula_at_the_deepest_map(tiny, image, label):
    module = copy.deepcopy(tiny.module).double()
    maps = module[:4](image.double()).requires_grad_()
    (gradient,) = torch.autograd.grad(module[4:](maps)[0, label], maps)
    coarse = torch.zeros(maps.shape[-2:], dtype=torch.float64)
    for k in range(maps.shape[1]):
        coarse += gradient[0, k].mean() * maps[0, k].detach()
    found = baselines.gradcam(tiny, image, label)
    close(found[0, 0], bilinear(coarse.clamp(min=0), *SIZE))
    assert (found.max() > 0) == (coarse.max() > 0)


def test_some_class_has_a_gradcam(tiny, image):
    assert max(baselines.gradcam(tiny, image, label).max() for label in range(3)) > 0.01


def test_gradcam_can_be_zero_everywhere(mnist_cnn, digit):
    """Without global pooling before the classifier nothing makes a weighted sum positive."""
    label = int(mnist_cnn(digit).argmax())
    maps = mnist_cnn.module[:6](digit).requires_grad_()
    (gradient,) = torch.autograd.grad(mnist_cnn.module[6:](maps)[0, label], maps)
    coarse = (gradient.mean((2, 3), keepdim=True) * maps).sum(1).clamp(min=0)
    found = baselines.gradcam(mnist_cnn, digit, label)
    assert found.max() == coarse.max() == 0


def in_patches(model, row) -> torch.Tensor:
    """The class token's row of an attention, pixel by pixel: patches of 4 x 4."""
    found = torch.zeros(model.size, dtype=torch.float64)
    for i, j in np.ndindex(found.shape):
        found[i, j] = row[1 + i // 4 * (model.size[1] // 4) + j // 4]
    return found


@pytest.mark.parametrize(("layer", "head"), [(-1, None), (0, None), (1, 2), (-2, -1)])
def test_the_class_tokens_attention(transformer, layer, head):
    model, image, maps = transformer
    heads = range(maps.shape[1]) if head is None else [head]
    row = sum(maps[layer, h, 0].double() for h in heads) / len(heads)
    found = baselines.attention_map(model, image, 3, layer=layer, head=head)
    close(found[0, 0], in_patches(model, row), 1e-7)


def test_attention_rollout(transformer):
    model, image, maps = transformer
    product = torch.eye(maps.shape[3], dtype=torch.float64)
    for layer in maps.double():
        product = (layer.mean(0) / 2 + torch.eye(len(product)) / 2) @ product
    close(baselines.attention_rollout(model, image, 3)[0, 0], in_patches(model, product[0]), 1e-7)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_attention_does_not_depend_on_the_label(transformer, name):
    model, image, _ = transformer
    with taps.count(model.module) as passes:
        first, other = (peers.PEERS[name].attribute(model, image, label) for label in (0, 7))
    assert first.equal(other) and first.equal(TRANSFORMERS[name](model, image, 0))
    assert passes == [1, 1] and peers.PEERS[name].backward_passes == 0


def test_layers_and_heads_that_are_not_there_are_refused(transformer):
    model, image, maps = transformer
    for name, count in zip(("layer", "head"), maps.shape, strict=False):
        for index in (count, -count - 1):
            with pytest.raises(InputError, match=f"{name}={index}: expected -{count} to"):
                baselines.attention_map(model, image, 0, **{name: index})


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_attention_is_for_transformers(tiny, image, name):
    with pytest.raises(InputError, match="no attention"):
        TRANSFORMERS[name](tiny, image, 0)
    assert name in suites.METHODS and name in suites.TRANSFORMERS


def test_integrated_gradients_is_the_integral(tiny, image):
    nodes, weights = np.polynomial.legendre.leggauss(50)
    signed = torch.zeros(2, *SIZE, dtype=torch.float64)
    for node, weight in zip(nodes, weights, strict=True):
        point = (image.double() * (node + 1) / 2).requires_grad_()
        (gradient,) = torch.autograd.grad(probability(tiny, point, 1), point)
        signed += weight / 2 * gradient[0] * image[0]
    close(baselines.integrated_gradients(tiny, image, 1)[0, 0], signed.abs().sum(0))
    # Completeness (section 3): what the pixels get adds up to what the image changes.
    change = probability(tiny, image, 1) - probability(tiny, 0 * image, 1)
    assert signed.sum().item() == pytest.approx(change.item(), abs=1e-3)
    assert abs(change) > 0.05


@pytest.mark.parametrize(("windows", "window", "stride"), [(7, 2, 1), (2, 7, 4)])
def test_occlusion_by_loops(tiny, image, windows, window, stride):
    drops, covered = torch.zeros(2, *SIZE, dtype=torch.float64)
    tops, lefts = (range(0, side - window + stride, stride) for side in SIZE)
    for top in tops:  # the last window may be cut off by the border
        for left in lefts:
            here = np.s_[top : top + window, left : left + window]
            hidden = image.clone()
            hidden[0, :, *here] = 0
            drops[here] += probability(tiny, image, 2) - probability(tiny, hidden, 2)
            covered[here] += 1
    assert covered.min() >= 1
    close(baselines.occlusion(tiny, image, 2, windows=windows)[0, 0], drops / covered)


def test_rise_by_loops(tiny, image):
    generator = torch.Generator().manual_seed(5)
    total = torch.zeros(SIZE, dtype=torch.float64)
    for _ in range(19):
        on = (torch.rand(1, 1, 7, 7, generator=generator) < 0.5)[0, 0]
        top, left = (int(torch.randint(cell + 1, (), generator=generator)) for cell in (3, 2))
        mask = bilinear(on.double(), 8 * 3, 8 * 2)[top : top + 16, left : left + 14]
        total += probability(tiny, image * mask, 0) * mask
    close(baselines.rise(tiny, image, 0, masks=19, seed=5)[0, 0], total / (19 * 0.5))


def test_rise_masks_are_on_half_the_time():
    generator = torch.Generator().manual_seed(0)
    masks = torch.cat([baselines.rise_mask((28, 30), 7, generator) for _ in range(600)])
    assert masks.shape == (600, 1, 28, 30) and masks.min() >= 0 and masks.max() <= 1
    assert (masks.mean(0) - 0.5).abs().max() < 0.1


def test_the_two_maps_that_look_at_nothing(tiny, image):
    noise = baselines.random_map(tiny, image, 0, seed=3)[0, 0]
    assert noise.unique().numel() == 4 and noise.min() >= 0 and noise.max() < 1
    assert all(noise[a : a + 8, b : b + 8].unique().numel() == 1 for a in (0, 8) for b in (0, 8))
    found = baselines.centre(tiny, image, 0)[0, 0]
    for i in range(16):
        for j in range(14):
            assert found[i, j].item() == pytest.approx(-math.dist((i, j), (7.5, 6.5)), abs=1e-5)


@pytest.mark.parametrize("spacing", [1, 3])
def test_smooth_max_by_loops(spacing):
    nodes = torch.rand(2, 1, 6, 5, generator=torch.Generator().manual_seed(1))
    found = smooth_max(nodes, spacing)
    assert found.shape == (2, 1, 6 * spacing, 5 * spacing)
    for n, _, y, x in np.ndindex(found.shape):
        seen = []
        for i in range(y // spacing - 4, y // spacing + 5):
            for j in range(x // spacing - 4, x // spacing + 5):
                inside = 0 <= i < 6 and 0 <= j < 5
                away = math.dist((y, x), (i * spacing, j * spacing)) / (3 * spacing)
                kernel = math.exp(-2 * max(0, away - 0.5) ** 2)
                seen.append(kernel * nodes[n, 0, i, j].item() if inside else 0.0)
        weights = [math.exp(20 * value) for value in seen]
        expected = sum(v * w for v, w in zip(seen, weights, strict=True)) / sum(weights)
        assert found[n, 0, y, x].item() == pytest.approx(expected, abs=1e-5)


def literal_penalty(mask: torch.Tensor, area: float) -> torch.Tensor:
    ranked = sorted(mask.flatten(), key=lambda value: value.item())
    zeros = int(len(ranked) * (1 - area))
    return sum((v - float(k >= zeros)) ** 2 for k, v in enumerate(ranked)) / len(ranked)


def test_the_area_penalty_against_its_formula():
    masks = torch.rand(3, 1, *SIZE, generator=torch.Generator().manual_seed(8)).double()
    areas = (0.025, 0.5, 1.0)
    literal = [literal_penalty(mask, area) for mask, area in zip(masks, areas, strict=True)]
    close(area_penalty(masks, areas), torch.stack(literal), 1e-12)
    exact = (torch.arange(224).reshape(1, 1, *SIZE) < 112).double()
    assert area_penalty(exact, [0.5]).item() == 0


def test_the_first_steps_of_extremal_perturbation(tiny, image):
    """Five steps by hand: flipped first, momentum and dampening 0.9, nodes clamped.

    With area 1 no pixel's part in the penalty hangs on which of two equal ones is ranked first.
    """
    module, image = copy.deepcopy(tiny.module).double(), 1000 * image.double()
    nodes, velocity = torch.ones(1, 1, *SIZE, dtype=torch.float64), None
    for step in range(5):
        nodes.requires_grad_()
        mask = smooth_max(nodes, 1)
        shown = (mask * image).flip(3) if step % 2 == 0 else mask * image
        energy = module(shown)[0, 1] - 300 * 1.0035**step * ((mask - 1) ** 2).mean()
        (slope,) = torch.autograd.grad(energy, nodes)
        velocity = slope if velocity is None else 0.9 * velocity + 0.1 * slope
        nodes = (nodes.detach() + 0.01 * velocity).clamp(0, 1)
    assert nodes.min() < 0.8 and nodes.max() == 1
    found = extremal_perturbation(tiny, image.float(), 1, areas=(1.0, 1.0), steps=5)
    close(found, smooth_max(nodes, 1).expand(2, 1, *SIZE), 1e-4)


def test_extremal_perturbation_reaches_its_areas_at_the_evidence():
    """Class 0 counts pixels near the centre, with either channel; the rest says nothing."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(2 * 16 * 14, 2))
    evidence = torch.zeros(2, *SIZE)
    evidence[:, 4:9, 5:9] = 3
    module[1].weight.data = torch.stack([evidence.flatten(), 0 * evidence.flatten()])
    model, areas = classifier(module, classes=2), (0.1, 0.3, 0.6, 0.8)
    masks = extremal_perturbation(model, torch.ones(1, 2, *SIZE), 0, areas=areas)
    assert masks.shape == (4, 1, *SIZE) and masks.min() >= 0 and masks.max() <= 1
    close(masks.mean((1, 2, 3)), torch.tensor(areas), 0.06)
    ranking = extremal_map(masks)
    close(ranking[0], sum(masks) / 4, 1e-6)
    best = ranking.flatten().argsort(descending=True)[:20]
    assert (evidence[0].flatten()[best] > 0).sum() >= 15


def test_every_method_on_every_model(model, photo_input):
    """Shape, type, finite; neither the model nor the image nor a global generator notices."""
    methods = METHODS | {"ep": lambda *given: extremal_map(extremal_perturbation(*given, steps=1))}
    if model.family == "ViT":  # whose taps are tokens: no map for gradcam
        methods = {name: methods[name] for name in methods if name != "gradcam"} | TRANSFORMERS
    before, generator = state(model.module), torch.get_rng_state()
    picture, logits = photo_input.clone(), model(photo_input)
    for name, method in methods.items():
        found = method(model, photo_input, 7, **SMALL.get(name, {}))
        assert found.shape == (1, 1, *model.size) and found.dtype == torch.float32, name
        assert found.isfinite().all() and not found.requires_grad, name
        assert state(model.module) == before, name
    assert torch.equal(model(photo_input), logits) and torch.equal(photo_input, picture)
    assert torch.equal(torch.get_rng_state(), generator) and not photo_input.requires_grad


def state(module) -> list:
    """Everything a method could leave behind: hooks, switches, gradients, values."""
    hooks = [
        (name, key, len(store))
        for name, part in module.named_modules()
        for key, store in vars(part).items()
        if "_hooks" in key and store
    ]
    parameters = [(p.requires_grad, p.grad is None, p._version) for p in module.parameters()]
    return [hooks, parameters, [b._version for b in module.buffers()], module.training]


@pytest.mark.parametrize("name", [*METHODS, "ep"])
def test_trainable_parameters_and_no_grad_change_nothing(tiny, image, name):
    method, few = METHODS.get(name, extremal_perturbation), {**SMALL, "ep": {"steps": 3}}
    plain = method(tiny, image, 1, **few.get(name, {}))
    module = copy.deepcopy(tiny.module).requires_grad_(True)
    before = state(module)
    with torch.no_grad():
        again = method(replace(tiny, module=module), image, 1, **few.get(name, {}))
    assert torch.equal(plain, again) and not again.requires_grad
    assert state(module) == before


def test_seeds(tiny, image):
    for method in (baselines.random_map, baselines.rise):
        first, same, other = (method(tiny, image, 0, seed=seed) for seed in (0, 0, 1))
        assert torch.equal(first, same) and not torch.equal(first, other)
        assert torch.equal(first, method(tiny, image, 0))


@pytest.mark.parametrize("name", [*METHODS, *TRANSFORMERS])
def test_what_does_not_fit_is_refused(tiny, image, name):
    method = {**METHODS, **TRANSFORMERS}[name]
    for shape in ((1, 2, 14, 16), (2, 2, *SIZE), (1, 3, *SIZE)):
        with pytest.raises(InputError, match="tiny expects"):
            method(tiny, torch.zeros(shape), 0)
    for label in (-1, 3):
        with pytest.raises(InputError, match="from 0 to 2"):
            method(tiny, image, label)
    with pytest.raises(InputError, match="eval"):
        method(replace(tiny, module=copy.deepcopy(tiny.module).train()), image, 0)


def test_options_and_taps_that_do_not_fit_are_refused(tiny, image):
    for name, options in (("integrated_gradients", "steps"), ("rise", "masks"), ("rise", "grid")):
        with pytest.raises(InputError, match=f"{options}=0"):
            METHODS[name](tiny, image, 0, **{options: 0})
    for areas in ((), (0.5, 0.0), (1.1,)):
        with pytest.raises(InputError, match="areas"):
            extremal_perturbation(tiny, image, 0, areas=areas)
    for names in ((), ("4", "5")):
        with pytest.raises(InputError, match="gradcam"):
            baselines.gradcam(replace(tiny, taps=names), image, 0)


def test_rex_says_what_to_install(tiny, image, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install rex-xai"):
        baselines.rex(tiny, image, 0)


def test_rex_where_it_is_installed(mnist_cnn, digit):
    pytest.importorskip("rex_xai")
    label, generator = int(mnist_cnn(digit).argmax()), torch.get_rng_state()
    numbers = np.random.get_state()[1].copy()
    first, same = (baselines.rex(mnist_cnn, digit, label, iters=2, seed=1) for _ in range(2))
    assert first.shape == (1, 1, 28, 28) and first.dtype == torch.float32
    assert torch.equal(first, same) and first.unique().numel() > 2
    assert torch.equal(torch.get_rng_state(), generator)
    assert np.array_equal(np.random.get_state()[1], numbers)
