"""The networks trained here: architectures without weights, and where their weights lie.

Small relatives of the networks paper 000 names (section 4), built from timm's own blocks, so that
what holds for them (names of layers, taps, attention) holds for the large ones. Those for CIFAR-10
begin at full resolution, as 32 x 32 pixels ask for: no stride in a stem, no pooling.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import timm
from timm.layers import HybridEmbed
from timm.models.convnext import ConvNeXt
from timm.models.resnet import BasicBlock, ResNet
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_hybrid import ConvStem
from torch import Tensor, nn

from minexp import paths


def mnist_cnn() -> nn.Sequential:
    """The paper's custom three-layer CNN on MNIST (sections 4 and 6.3): (N, 1, 28, 28) -> (N, 10).

    Three convolutions with ReLU, then one linear layer; input in [0, 1] without normalisation.
    The paper prints no widths; these are ours.
    """
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, stride=2, padding=2),  # (N, 16, 14, 14)
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),  # (N, 32, 14, 14)
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1),  # (N, 64, 7, 7)
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * 7 * 7, 10),
    )


class Provable(nn.Sequential):
    """A Sequential of Conv2d, Linear, ReLU and Flatten that is trained to have provable answers.

    Interval bound propagation (Gowal et al., 2018): besides each digit's loss it pays for the loss
    of the worst outputs that interval arithmetic allows within ``radius``. Where that is small few
    ReLUs change sign within the radius, and so proofs are quick.
    """

    radius, weight = 0.15, 0.05  # in units of a pixel's range; of the worst outputs' loss

    def penalty(self, x: Tensor, labels: Tensor, done: float) -> Tensor:
        """What is added to the loss of digits (N, 1, 28, 28) when ``done`` of training is done.

        Radius and weight grow over the first half.
        """
        grown = min(1.0, 2 * done)
        worst = self.worst(x, labels, self.radius * grown)
        return self.weight * grown * nn.functional.cross_entropy(worst, labels)

    def worst(self, x: Tensor, labels: Tensor, radius: float) -> Tensor:
        """Logits (N, 10) no better than any in the box, less the label's own, whose is 0."""
        low, high = (x - radius).clamp(0, 1), (x + radius).clamp(0, 1)
        for part in self[:-1]:
            if isinstance(part, nn.Conv2d):
                spread = nn.functional.conv2d(
                    (high - low) / 2, part.weight.abs(), None, part.stride, part.padding
                )
                middle = part((high + low) / 2)
                low, high = middle - spread, middle + spread
            else:
                low, high = part(low), part(high)
        last: Any = self[-1]
        rows = last.weight - last.weight[labels][:, None]  # (N, 10, n), of f_j - f_label
        middle = (rows * ((high + low) / 2)[:, None]).sum(2)
        spread = (rows.abs() * ((high - low) / 2)[:, None]).sum(2)
        return middle + spread + last.bias - last.bias[labels][:, None]


def mnist_cnn_small() -> Provable:
    """A sibling of ``mnist_cnn`` about which much can be proven: 884 ReLUs in place of 12,544.

    Three layers, two of them convolutions: (N, 1, 28, 28) in [0, 1] -> (N, 10).
    """
    return Provable(
        nn.Conv2d(1, 16, 8, stride=4, padding=2),  # (N, 16, 7, 7)
        nn.ReLU(),
        nn.Conv2d(16, 100, 7),  # (N, 100, 1, 1)
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(100, 10),
    )


def mnist_vit() -> nn.Module:
    """A vision transformer (Dosovitskiy et al., ICLR 2021) of 49 patches of 4 x 4 pixels."""
    return VisionTransformer(
        img_size=28, patch_size=4, in_chans=1, num_classes=10,
        embed_dim=64, depth=4, num_heads=4, mlp_ratio=2,
    )  # fmt: skip


def resnet18_cifar10() -> nn.Module:
    """ResNet-18 (He et al., CVPR 2016) of half the width: (N, 3, 32, 32) -> (N, 10)."""
    widths = (32, 64, 128, 256)
    block: Any = BasicBlock  # the class, where timm's annotation asks for an instance
    module: Any = ResNet(block, (2, 2, 2, 2), num_classes=10, channels=widths)
    module.conv1 = nn.Conv2d(3, 32, 3, padding=1, bias=False)
    module.bn1 = nn.BatchNorm2d(32)
    module.maxpool = nn.Identity()
    # timm's stem is 64 wide whatever the stages are, and so is its first block's shortcut
    module.layer1[0] = BasicBlock(32, 32)
    return module


def mobilenetv3_cifar10() -> nn.Module:
    """MobileNetV3-Large (Howard et al., ICCV 2019) of three quarters of the width.

    Its classifier starts near zero: no normalisation stands before it, and by timm's start the
    logits are so large that the first epochs go into taking them back.
    """
    module: Any = timm.create_model("mobilenetv3_large_075", pretrained=False, num_classes=10)
    module.conv_stem.stride = (1, 1)
    module.classifier.weight.data.mul_(0.01)
    return module


def convnext_cifar10() -> nn.Module:
    """ConvNeXt (Liu et al., CVPR 2022) of ten blocks, at half the pictures' side.

    Its stem is two overlapping convolutions, which learn faster than patches of 2 x 2 pixels. Its
    layer scale starts at 1: the paper's 1e-6 takes more epochs than these have to wake up.
    """
    module = ConvNeXt(
        num_classes=10, depths=(2, 2, 4, 2), dims=(40, 80, 160, 320), stem_type="overlap_tiered",
        ls_init_value=1.0,
    )  # fmt: skip
    next(m for m in module.stem if isinstance(m, nn.Conv2d)).stride = (1, 1)
    module.stages[0].downsample = nn.Identity()  # timm's halves once more after so small a stem
    return module


def vit_cifar10() -> nn.Module:
    """A vision transformer of six blocks on 64 patches of 4 x 4 pixels.

    A few convolutions see to the patches (Xiao et al., "Early convolutions help transformers see
    better", NeurIPS 2021): with a plain embedding it learns too little in as many epochs. Each
    token still is a patch, and smaller pictures have fewer of them.
    """
    width = 144
    stem = ConvStem(depth=3, channels=(48, 96, width), stride=(1, 2, 2))
    return VisionTransformer(
        img_size=32, patch_size=1, num_classes=10,
        embed_dim=width, depth=6, num_heads=3, mlp_ratio=3,
        embed_layer=partial(HybridEmbed, backbone=stem, proj=False), dynamic_img_size=True,
    )  # fmt: skip


BUILDERS: Mapping[str, Callable[[], nn.Module]] = {
    "mnist_cnn": mnist_cnn,
    "mnist_cnn_small": mnist_cnn_small,
    "mnist_vit": mnist_vit,
    "resnet18_cifar10": resnet18_cifar10,
    "mobilenetv3_cifar10": mobilenetv3_cifar10,
    "convnext_cifar10": convnext_cifar10,
    "vit_cifar10": vit_cifar10,
}


def weights_file(name: str) -> Path:
    """Where ``minexp train NAME`` writes and ``load_model`` reads; the card lies beside it."""
    return paths.DATA / f"{name}.safetensors"
