"""Every registered network, and others of many families: explained, and left as it was.

Random weights, so that nothing needs to be downloaded; what is tested is the mechanics.
"""

import math

import pytest
import torch
from torch import nn
from traces import hooks, switches

from minexp import images, models, taps
from minexp.config import ExplainConfig
from minexp.explain import explain

SHORT = ExplainConfig(steps=3, minimal=False, noise_draws=2)
slow = {name: pytest.mark.slow for name in ("vit_b16", "timm:vgg11", "torchvision:vit_b_16")}

# What each tap gives for one image, shallow to deep: "channels x height x width" of a map (the
# other way round where a network keeps its channels last), "tokens x features" of a block.
REGISTERED = {
    "efficientnet_lite0": "144x56x56 240x28x28 672x14x14 1152x7x7 1280x7x7",
    "efficientnet_lite1": "144x60x60 240x30x30 672x15x15 1152x8x8 1280x8x8",
    "efficientnet_lite2": "144x65x65 288x33x33 720x17x17 1248x9x9 1280x9x9",
    "resnet18": "64x56x56 128x28x28 256x14x14 512x7x7",
    "mobilenetv3": "72x56x56 120x28x28 672x14x14 960x7x7 960x7x7",
    "convnext_small": "96x56x56 192x28x28 384x14x14 768x7x7",
    "efficientnet_b0": "144x56x56 240x28x28 672x14x14 1152x7x7 1280x7x7",
    "vit_b16": 12 * "197x768 ",
    "mnist_cnn": "16x14x14 32x14x14 64x7x7",
    "mnist_cnn_small": "16x7x7 100x1x1",
    "mnist_vit": 4 * "50x64 ",
    "resnet18_cifar10": "32x32x32 64x16x16 128x8x8 256x4x4",
    "mobilenetv3_cifar10": "72x16x16 96x8x8 528x4x4 720x2x2 720x2x2",
    "convnext_cifar10": "40x16x16 80x8x8 160x4x4 320x2x2",
    "vit_cifar10": 6 * "65x144 ",
}
OTHERS = {
    # convolutions
    "timm:vgg11": "64x224x224 128x112x112 256x56x56 512x28x28 512x14x14",
    "timm:densenet121": "64x112x112 256x56x56 512x28x28 1024x14x14 1024x7x7",
    "timm:regnetx_002": "32x112x112 24x56x56 56x28x28 152x14x14 368x7x7",
    "timm:repvgg_a0": "48x112x112 48x56x56 96x28x28 192x14x14 1280x7x7",
    "timm:ghostnet_050": "4x112x112 18x56x56 30x28x28 168x14x14 480x7x7",
    "timm:tinynet_e": "32x53x53 48x27x27 96x14x14 336x7x7 1280x4x4",
    "timm:convnext_atto": "160x56x56 320x28x28 640x14x14 1280x7x7",
    "timm:test_nfnet": "64x80x80 8x40x40 16x20x20 24x10x10 192x5x5",
    "torchvision:resnet18": "64x112x112 64x56x56 128x28x28 256x14x14 512x7x7",
    "torchvision:squeezenet1_0": "96x109x109 128x54x54 256x27x27 256x13x13",
    "torchvision:shufflenet_v2_x0_5": "24x112x112 24x56x56 24x28x28 48x14x14 1024x7x7",
    # blocks of tokens
    "timm:deit_tiny_patch16_224": 12 * "197x192 ",
    "timm:mixer_s32_224": 8 * "49x512 ",
    "timm:xcit_nano_12_p16_224": 12 * "196x128 " + 2 * "197x128 ",
    "timm:levit_128s": 2 * "196x128 " + 3 * "49x256 " + 4 * "16x384 ",
    "timm:pit_ti_224": 2 * "730x64 " + 6 * "197x128 " + 4 * "50x256 ",
    "torchvision:vit_b_16": 12 * "197x768 ",
    # attention on maps
    "timm:swin_tiny_patch4_window7_224": "56x56x96 28x28x192 14x14x384 7x7x768",
    "timm:poolformer_s12": "256x56x56 512x28x28 1280x14x14 2048x7x7",
    "timm:efficientformer_l1": "24x112x112 192x56x56 384x28x28 896x14x14 1792x7x7",
    "timm:mobilevit_xxs": "32x128x128 48x64x64 48x32x32 64x16x16 320x8x8",
    "timm:test_mambaout": "8x80x80 40x40x16 20x20x32 10x10x48 5x5x64",
}


def network(name: str):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return models.load_model(name, weights=None)


def state(module: nn.Module) -> list:
    """Everything an explanation might change: weights, statistics, switches."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return switches(module) + [
        (name, t.requires_grad, t._version, t.sum().item()) for name, t in tensors
    ]


def order_of_firing(model, image) -> list[str]:
    """The taps, each where it ends for the last time, by hooks of this test's own."""
    ends = []
    parts = dict(model.module.named_modules())
    handles = [
        parts[tap].register_forward_hook(lambda *_, tap=tap: ends.append(tap)) for tap in model.taps
    ]
    model(image)
    for handle in handles:
        handle.remove()
    return sorted(set(ends), key=lambda tap: len(ends) - ends[::-1].index(tap))


def check(name: str, expected: str, picture) -> None:
    model = network(name)
    image = images.load_image(picture, model)
    with torch.no_grad():
        before, was = model(image), state(model.module)
        assert list(model.taps) == order_of_firing(model, image)
        with taps.read(model.module, model.taps) as read:
            model(image)
    assert all(value.shape[0] == 1 for value in read.values())
    assert all(value.std() > 0 for value in read.values()), "they say something of the image"
    shapes = ["x".join(map(str, read[tap].shape[1:])) for tap in model.taps]
    assert shapes == expected.split()

    found = explain(model, image, SHORT)

    assert [record["step"] for record in found.history] == [0, 1, 2]
    assert all(math.isfinite(value) for record in found.history for value in record.values())
    assert found.mask.shape == (1, 1, *model.size) and set(found.mask.unique().tolist()) <= {0, 1}
    assert found.history[0]["area"] == 1.0, "a search starts with every pixel"
    scale = max(float(a.square().mean()) if a.ndim == 4 else 1.0 for a in read.values())
    assert found.history[0]["loss_activation"] <= 1e-6 * scale, "all pixels: all activations"
    with torch.no_grad():
        assert torch.equal(model(image), before)
    assert state(model.module) == was
    assert hooks(model.module) == 0


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=slow.get(name, ())) for name in models.available()]
)
def test_registered(name, coffee_path):
    check(name, REGISTERED[name], coffee_path)


@pytest.mark.parametrize("name", [pytest.param(name, marks=slow.get(name, ())) for name in OTHERS])
def test_others(name, coffee_path):
    check(name, OTHERS[name], coffee_path)
