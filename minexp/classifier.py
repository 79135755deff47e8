"""A frozen classifier with everything needed to feed it and to read it, and one's own made so."""

import copy
import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torchvision.transforms import (
    CenterCrop,
    Compose,
    Grayscale,
    InterpolationMode,
    Normalize,
    Resize,
    ToTensor,
)

from minexp import taps
from minexp.errors import InputError


@dataclass(frozen=True)
class Classifier:
    """A frozen network with everything needed to feed it and to read it.

    ``module`` takes normalised input (N, C, H, W) float32 and returns logits (N, K), alone, first
    of a tuple or as ``logits`` of a mapping or an object: call the classifier and get the logits.
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
        return _logits(self.module(image))

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
        """Where the module's parameters (or buffers) live; the CPU for one without any."""
        tensors = chain(self.module.parameters(), self.module.buffers())
        return next((tensor.device for tensor in tensors), torch.device("cpu"))

    @staticmethod
    def _channel(values: tuple[float, ...], like: Tensor) -> Tensor:
        return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None, None]


def wrap(
    module: nn.Module,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    size: tuple[int, int],
    class_names: Sequence[str],
    taps: Sequence[str] | None = None,
    transform: Callable[[Image.Image], Tensor] | None = None,
    name: str | None = None,
) -> Classifier:
    """Your own classifier, ready to be explained. ``module`` itself is left exactly as it is.

    A copy is frozen: in eval mode, without requires_grad, its activations not in place. It stays
    on the module's device.

    Args:
        module: (N, C, H, W) -> logits (N, K), alone, first of a tuple, or as ``logits``.
        mean, std: a number a channel, from pixels in [0, 1] to the module's input; (0,) and (1,)
            for a grayscale network that takes the pixels themselves.
        size: of its input, (H, W) in pixels.
        class_names: K of them.
        taps: names of submodules whose outputs are matched; None: see :func:`minexp.taps.default`.
        transform: RGB Pillow image -> input (C, H, W); None: the shorter side is resized
            (bicubic), the centre cropped.
        name: in results; None: the class's name.

    Raises:
        InputError: the values do not fit together or the module; its output holds no logits; its
            logits change in eval mode from one call to the next; no gradient reaches its input.
    """
    channels = len(mean)
    if channels not in (1, 3) or len(std) != channels:
        raise InputError(f"mean={mean}, std={std}: expected a number a channel, 1 or 3 of each")
    if not all(deviation > 0 for deviation in std):
        raise InputError(f"std={std}: expected numbers > 0")
    if len(size) != 2 or not all(type(side) is int and side >= 8 for side in size):
        raise InputError(f"size={size}: expected (H, W), two integers >= 8")
    frozen = copy.deepcopy(module).eval().requires_grad_(False)
    for part in frozen.modules():
        if getattr(part, "inplace", False) is True:
            part.inplace = False  # it would overwrite the activation a tap has just read
    classifier = Classifier(
        name=name or type(module).__name__,
        family="own",
        module=frozen,
        mean=tuple(map(float, mean)),
        std=tuple(map(float, std)),
        size=tuple(size),
        class_names=tuple(map(str, class_names)),
        taps=(),
        transform=transform or standard_transform(size, mean, std),
        weights_sha256=state_digest(frozen),
    )
    _check_module(classifier)
    return replace(classifier, taps=checked_taps(classifier, taps))


def standard_transform(
    size: tuple[int, int], mean: Sequence[float], std: Sequence[float]
) -> Callable[[Image.Image], Tensor]:
    """An RGB picture -> normalised input (C, H, W), C the numbers in ``mean``.

    Resized (bicubic) until it covers (H, W), its centre cropped.
    """
    gray = [Grayscale()] if len(mean) == 1 else []
    scale = _Cover(tuple(size))
    return Compose([*gray, scale, CenterCrop(size), ToTensor(), Normalize(mean, std)])


@dataclass(frozen=True)
class _Cover:
    """Resize to the least size that covers (H, W) at the picture's own proportions."""

    size: tuple[int, int]

    def __call__(self, picture: Image.Image) -> Image.Image:
        factor = max(self.size[0] / picture.height, self.size[1] / picture.width)
        covering = [
            max(least, round(side * factor))
            for least, side in zip(self.size, (picture.height, picture.width), strict=True)
        ]
        return Resize(covering, InterpolationMode.BICUBIC, antialias=True)(picture)


def state_digest(module: nn.Module) -> str:
    """sha256 over the names, types, shapes and bytes of a module's parameters and buffers."""
    digest = hashlib.sha256()
    for key, value in module.state_dict().items():
        value = value.detach().cpu().contiguous()
        digest.update(f"{key} {value.dtype} {tuple(value.shape)};".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def checked_taps(model: Classifier, names: Sequence[str] | None) -> tuple[str, ...]:
    """The taps to match, found where ``names`` is None, in the order in which they fire.

    Raises:
        InputError: a name that is no submodule (the nearest right ones are listed), one whose
            output is no single tensor, or is overwritten in place after it; none was found.
    """
    probe = _probe(model)
    if names is None:
        names = taps.default(model.module, probe)
    if not names:
        raise InputError(f"{model.name}: no layer found to match; name them: taps=[...]")
    return taps.check(model.module, names, probe)


def _probe(model: Classifier) -> Tensor:
    """A grey input (1, C, H, W), slightly uneven so that nothing divides by zero."""
    generator = torch.Generator().manual_seed(0)
    pixels = 0.5 + 0.1 * torch.randn(1, len(model.mean), *model.size, generator=generator)
    return model.normalize(pixels.clamp(0, 1)).to(model.device)


def _check_module(model: Classifier) -> None:
    image, expected = _probe(model), (1, len(model.class_names))
    with torch.enable_grad():
        image.requires_grad_()
        try:
            first = model(image)
        except (RuntimeError, ValueError, TypeError) as error:
            raise InputError(
                f"{model.name} does not take an input {tuple(image.shape)}: {error}"
            ) from error
        if tuple(first.shape) != expected:
            raise InputError(
                f"{model.name} returns {tuple(first.shape)} for one image; expected logits "
                f"{expected}, a number a class name"
            )
        if not first.requires_grad or torch.autograd.grad(
            first.sum(), image, allow_unused=True
        ) == (None,):
            raise InputError(
                f"{model.name}: no gradient reaches the input; the search needs one: take "
                "no_grad, detach or integer arithmetic out of its forward"
            )
        second = model(image)
    if not torch.equal(first, second):
        raise InputError(f"{model.name}: two calls differ in eval mode; expected one answer")


def _logits(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping) and isinstance(output.get("logits"), Tensor):
        return output["logits"]
    if isinstance(getattr(output, "logits", None), Tensor):
        return output.logits
    if isinstance(output, tuple | list) and output and isinstance(output[0], Tensor):
        return output[0]
    raise InputError(
        f"the module returns {type(output).__name__}; expected logits (N, K), alone, first of a "
        "tuple, or under the name logits"
    )


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
        same = torch.allclose(_logits(module(image)), model(image), rtol=1e-4, atol=1e-4)
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
