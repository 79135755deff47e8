"""The networks trained here: their shapes, stage by stage, and their size."""

import pytest
import torch
from torch import nn

from minexp import paths
from minexp.builders import BUILDERS, weights_file

each_name = pytest.mark.parametrize("name", BUILDERS)
CIFAR = tuple(name for name in BUILDERS if name.endswith("cifar10"))


def pictures(name, count=2):
    shape = (3, 32, 32) if name in CIFAR else (1, 28, 28)
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(0))


def built(name):
    """A network with random weights, the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return BUILDERS[name]().eval()


def shapes(name, parts):
    """The shapes of the outputs of named parts, for one picture."""
    module, found = built(name), {}
    for part in parts:
        module.get_submodule(part).register_forward_hook(
            lambda _module, _inputs, output, part=part: found.update({part: tuple(output.shape)})
        )
    with torch.no_grad():
        module(pictures(name, 1))
    return found


@each_name
def test_gives_ten_logits_a_picture(name):
    with torch.no_grad():
        logits = built(name)(pictures(name))
    assert logits.shape == (2, 10) and logits.dtype == torch.float32
    assert logits.isfinite().all() and not torch.equal(logits[0], logits[1])


@each_name
def test_is_the_same_for_the_same_random_state(name):
    first, second = built(name).state_dict(), built(name).state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


@each_name
def test_every_parameter_takes_part(name):
    module = built(name).train()
    module(pictures(name, 4)).square().sum().backward()
    assert [key for key, p in module.named_parameters() if p.grad is None] == []


def test_cifar_networks_take_less_than_40_megabytes_in_half_precision():
    counts = {name: sum(p.numel() for p in built(name).parameters()) for name in CIFAR}
    assert len(counts) == 4 and all(count > 500_000 for count in counts.values())
    assert 2 * sum(counts.values()) < 40e6


def test_names_of_the_builders_are_those_of_their_functions():
    assert {name: build.__name__ for name, build in BUILDERS.items()} == {n: n for n in BUILDERS}


@each_name
def test_weights_lie_in_data_wherever_that_is(name, tmp_path, monkeypatch):
    assert weights_file(name) == paths.DATA / f"{name}.safetensors"
    monkeypatch.setattr(paths, "DATA", tmp_path)
    assert weights_file(name) == tmp_path / f"{name}.safetensors"


# --- one by one


def test_mnist_cnn_halves_twice():
    assert shapes("mnist_cnn", ["1", "3", "5"]) == {
        "1": (1, 16, 14, 14),
        "3": (1, 32, 14, 14),
        "5": (1, 64, 7, 7),
    }
    convolutions = [part for part in built("mnist_cnn") if isinstance(part, nn.Conv2d)]
    assert len(convolutions) == 3  # "three-layer"


def test_resnet_begins_at_32_and_ends_at_4():
    stages = ["conv1", "layer1", "layer2", "layer3", "layer4"]
    assert list(shapes("resnet18_cifar10", stages).values()) == [
        *[(1, 32, 32, 32)] * 2,
        *[(1, 64, 16, 16), (1, 128, 8, 8), (1, 256, 4, 4)],
    ]


def test_resnet_has_18_layers_with_weights():
    module = built("resnet18_cifar10")
    weighty = [
        name
        for name, part in module.named_modules()
        if isinstance(part, nn.Conv2d | nn.Linear) and "downsample" not in name
    ]
    assert len(weighty) == 18


def test_mobilenet_begins_at_32():
    found = shapes("mobilenetv3_cifar10", ["conv_stem", "blocks.0", "blocks.5", "blocks.6"])
    assert [shape[2:] for shape in found.values()] == [(32, 32), (32, 32), (2, 2), (2, 2)]


def test_convnext_has_stages_at_16_8_4_2():
    stages = [f"stages.{stage}" for stage in range(4)]
    assert list(shapes("convnext_cifar10", ["stem", *stages]).values()) == [
        *[(1, 40, 16, 16)] * 2,
        *[(1, 80, 8, 8), (1, 160, 4, 4), (1, 320, 2, 2)],
    ]
    assert [len(stage.blocks) for stage in built("convnext_cifar10").stages] == [2, 2, 4, 2]


def test_convnext_begins_awake():
    scales = [p for key, p in built("convnext_cifar10").named_parameters() if key.endswith("gamma")]
    assert len(scales) == 10
    assert all(torch.equal(scale, torch.ones_like(scale)) for scale in scales)


@pytest.mark.parametrize(
    ("name", "side", "width", "depth"), [("vit_cifar10", 8, 144, 6), ("mnist_vit", 7, 64, 4)]
)
def test_transformer_sees_patches_and_one_class_token(name, side, width, depth):
    blocks = [f"blocks.{block}" for block in range(depth)]
    assert set(shapes(name, blocks).values()) == {(1, side * side + 1, width)}
    module = built(name)
    assert len(module.blocks) == depth and module.num_prefix_tokens == 1
    assert module.patch_embed.grid_size == (side, side)


@pytest.mark.parametrize("side", [24, 32])
def test_a_token_of_the_cifar_transformer_is_a_patch_of_4_x_4_pixels(side):
    """And what its stem's convolutions see around it."""
    module, image = built("vit_cifar10").eval(), torch.randn(1, 3, side, side, requires_grad=True)
    tokens = module.patch_embed(image)
    assert tokens.shape == (1, side // 4, side // 4, 144)
    (tokens[0, 3, 2] ** 2).sum().backward()
    seen = image.grad.abs().sum((0, 1))
    rows, columns = seen.sum(1).nonzero().flatten(), seen.sum(0).nonzero().flatten()
    for places, patch in ((rows, 3), (columns, 2)):
        assert places.min() <= 4 * patch and places.max() >= 4 * patch + 3
        assert places.min() >= 4 * patch - 4 and places.max() < 4 * patch + 8
    assert module(image).shape == (1, 10)
