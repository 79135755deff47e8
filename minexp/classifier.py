"""A frozen classifier with everything needed to feed it and to read it, and one's own made so."""

import copy
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
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
from minexp.folding import without_normalization


@dataclass(frozen=True)
class Classifier:
    """A frozen network with everything needed to feed it and to read it.

    ``module`` takes normalised input (N, C, H, W) float32 and returns logits (N, K), alone, first
    of a tuple or as ``logits`` of a mapping or an object: call the classifier and get the logits.
    ``mean`` and ``std`` (one value a channel) lead from pixels in [0, 1] to that input.
    ``transform`` takes an RGB Pillow image to the input (C, H, W).
    ``taps`` are module names, shallow to deep, whose outputs are matched (:mod:`minexp.taps`).
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
        InputError: the values do not fit together or the module; it cannot be copied; its output
            holds no logits; an image's logits change in eval mode from one call to the next or
            with what else is in the batch; no gradient reaches its input.
    """
    _check_values(mean, std, size, class_names)
    frozen = _frozen_copy(module)
    classifier = Classifier(
        name=name or type(module).__name__,
        family="own",
        module=frozen,
        mean=tuple(map(float, mean)),
        std=tuple(map(float, std)),
        size=(size[0], size[1]),
        class_names=tuple(map(str, class_names)),
        taps=(),
        transform=transform or standard_transform(size, mean, std),
        weights_sha256=state_digest(frozen),
    )
    _check_module(classifier)
    return replace(classifier, taps=checked_taps(classifier, taps))


def _check_values(mean, std, size, class_names) -> None:
    means, deviations, sides = (_numbers(values) for values in (mean, std, size))
    if len(means) not in (1, 3) or len(deviations) != len(means):
        raise InputError(f"mean={mean}, std={std}: expected a number a channel, 1 or 3 of each")
    if not all(deviation > 0 for deviation in deviations):
        raise InputError(f"std={std}: expected numbers > 0")
    if len(sides) != 2 or not all(type(side) is int and side >= 8 for side in sides):
        raise InputError(f"size={size}: expected (H, W), two integers >= 8")
    if isinstance(class_names, str) or len(class_names) < 2:
        raise InputError(f"class_names={class_names!r}: expected a name for each of >= 2 classes")


def _numbers(values: object) -> tuple:
    return tuple(values) if isinstance(values, Iterable) else ()


def _frozen_copy(module: nn.Module) -> nn.Module:
    if not isinstance(module, nn.Module):
        raise InputError(f"module is a {type(module).__name__}; expected a torch.nn.Module")
    try:
        frozen = copy.deepcopy(module).eval().requires_grad_(False)
    except (RuntimeError, TypeError) as error:
        raise InputError(
            f"{type(module).__name__} cannot be copied ({error}); wrap it as it was built, before "
            "a forward pass or weight_norm left tensors in it that are no parameters"
        ) from error
    for part in frozen.modules():
        if getattr(part, "inplace", False) is True:
            part.inplace = False  # type: ignore[assignment]  # else it overwrites what a tap read
    return frozen


def standard_transform(
    size: tuple[int, int], mean: Sequence[float], std: Sequence[float]
) -> Callable[[Image.Image], Tensor]:
    """An RGB picture -> normalised input (C, H, W), C the numbers in ``mean``.

    Resized (bicubic) until it covers (H, W), its centre cropped.
    """
    gray = [Grayscale()] if len(mean) == 1 else []
    scale = _Cover((size[0], size[1]))
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
            output is no map, tokens or vector of the image, or is overwritten in place after it;
            none was found.
    """
    if isinstance(names, str):
        raise InputError(f"taps={names!r}: expected a list of names, [{names!r}]")
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
    image, names = _probe(model).requires_grad_(), len(model.class_names)
    with torch.enable_grad():
        first = _tried(model, image)
        if tuple(first.shape) != (1, names):
            raise InputError(
                f"{model.name} returns {tuple(first.shape)} for one image; expected logits "
                f"{(1, names)}, a number a class name"
            )
        if not _reaches(first, image):
            raise InputError(
                f"{model.name}: no gradient reaches the input; the search needs one: take "
                "no_grad, detach, rounding or integer arithmetic out of its forward"
            )
        second = _tried(model, image)  # with gradients too: without, torch may round otherwise
        both = _tried(model, torch.cat([image, 3 * image - 1]))
    if not torch.equal(first, second):
        raise InputError(f"{model.name}: two calls differ in eval mode; expected one answer")
    room = 1e-2 * first.abs().max().item() + 1e-4  # far above rounding
    if both.shape != (2, names) or not torch.allclose(both[:1], first, rtol=0, atol=room):
        raise InputError(
            f"{model.name}: an image's logits are others with a second image beside it; expected "
            "each image of a batch to be classified alone (no statistics of the batch, no fixed "
            "batch size)"
        )


def _tried(model: Classifier, images: Tensor) -> Tensor:
    """Logits of a module that has not run yet: whatever it raises is an InputError."""
    try:
        output = model.module(images)
    except Exception as error:
        raise InputError(
            f"{model.name} does not take an input {tuple(images.shape)} {images.dtype}: "
            f"{str(error) or type(error).__name__}"
        ) from error
    return _logits(output)


def _reaches(logits: Tensor, image: Tensor) -> bool:
    """Whether a gradient other than zero comes from the logits to the image."""
    if not logits.requires_grad:
        return False
    order = torch.arange(1.0, logits.shape[1] + 1, device=logits.device)  # a sum may be constant
    (gradient,) = torch.autograd.grad((logits * order).sum(), image, allow_unused=True)
    return gradient is not None and bool(gradient.any())


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
    """The same function, faster: see :func:`minexp.folding.without_normalization`.

    The copy's logits of ``image`` (1, C, H, W) are compared: where they differ by more than
    rounding, or where there is nothing to fold, the model itself is returned.
    """
    module = without_normalization(model.module)
    if module is model.module:
        return model
    with torch.no_grad():
        same = torch.allclose(_logits(module(image)), model(image), rtol=1e-4, atol=1e-4)
    return replace(model, module=module) if same else model
