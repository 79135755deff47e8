"""Frozen classifiers by name: a registry entry is a builder, its weights and where they come from.

To add a model, give it an entry in :data:`REGISTRY`; the tests parametrise over the registry, so a
registered model is a tested one. Besides, ``timm:NAME`` and ``torchvision:NAME`` load any
classifier of these libraries, and ``path/to/file.py:factory`` calls a function of yours that
returns what :func:`minexp.wrap` returned.
"""

import hashlib
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import torch

from minexp import weights as files
from minexp.classifier import Classifier, checked_taps
from minexp.entries import (
    Entry,
    blocks,
    hub_entry,
    inverted_residuals,
    layers,
    lite_entry,
    relus,
    stages,
    timm_entry,
    torchvision_entry,
    trained_entry,
)
from minexp.errors import InputError, MinexpError, WeightsError


def available() -> tuple[str, ...]:
    """The registered names."""
    return tuple(REGISTRY)


def entry(name: str) -> Entry:
    """The entry of a registered name, of ``timm:NAME`` or of ``torchvision:NAME``.

    Raises InputError naming the valid ones, or the nearest of a library's.
    """
    library, _, rest = name.partition(":")
    if library == "timm" and rest:
        return timm_entry(name, rest)
    if library == "torchvision" and rest:
        return torchvision_entry(name, rest)
    if name not in REGISTRY:
        raise InputError(
            f"unknown model {name!r}; choose one of: {', '.join(REGISTRY)}; "
            "timm:NAME, torchvision:NAME, or path/to/file.py:factory"
        )
    return REGISTRY[name]


def load_model(
    name: str = "efficientnet_lite0",
    *,
    weights: str | None = "pretrained",
    taps: Sequence[str] | None = None,
) -> Classifier:
    """A frozen classifier in eval mode, with requires_grad off.

    Args:
        name: a registered name (see :func:`available`), ``timm:NAME``, ``torchvision:NAME``, or
            ``path/to/file.py:factory``, a function without arguments that returns what
            :func:`minexp.wrap` returned.
        weights: ``"pretrained"``, or ``None`` for random ones, for those who ask by name.
        taps: names of submodules whose outputs are matched; None: the entry's own.

    Raises:
        InputError: unknown name, ``weights`` or tap.
        WeightsError: the weights are missing or are not the recorded ones.
    """
    if weights not in ("pretrained", None):
        raise InputError(f"weights={weights!r}: expected 'pretrained' or None (random)")
    if is_own(name):
        classifier = _own(name)
        return classifier if taps is None else _tapped(classifier, taps)
    found, path, digest = entry(name), None, None
    if weights is not None:
        try:
            path = found.fetch()
            digest = files.checked(name, path, found.sha256(), found.source)
        except WeightsError as error:
            raise WeightsError(f"{error}; models that work now: {_working(name)}") from error
    # Building draws random weights; where they are replaced, the caller's generator stays as it
    # was.
    with torch.random.fork_rng(devices=[], enabled=weights is not None):
        classifier = _built(name, found, path)
    classifier.module.eval().requires_grad_(False)
    classifier = replace(classifier, name=name, family=found.family, weights_sha256=digest)
    return classifier if taps is None and classifier.taps else _tapped(classifier, taps)


def usable_offline(name: str) -> bool:
    """Whether the model's weights are on this machine now."""
    try:
        return entry(name).weights().is_file()
    except WeightsError:
        return False


def _working(besides: str) -> str:
    working = (name for name in REGISTRY if name != besides and usable_offline(name))
    return ", ".join(working) or "none"


def _built(name: str, found: Entry, path: Path | None) -> Classifier:
    try:
        return found.build(path)
    except MinexpError:
        raise
    except Exception as error:
        if path is None:
            raise
        why = " ".join(str(error).split())[:200]
        raise WeightsError(
            f"{name}: {path} does not hold this network's weights ({why}); replace it, it comes "
            f"from: {found.source}; models that work now: {_working(name)}"
        ) from error


def _tapped(model: Classifier, taps: Sequence[str] | None) -> Classifier:
    return replace(model, taps=checked_taps(model, taps))


# --- the user's own


def is_own(name: str) -> bool:
    """Whether a model's name is ``path/to/file.py:factory``."""
    return name.rpartition(":")[0].endswith(".py")


def _own(name: str) -> Classifier:
    path, _, factory = name.rpartition(":")
    if not Path(path).is_file():
        raise InputError(f"--model {name}: no file {path}; expected path/to/file.py:factory")
    try:
        made = getattr(_imported(Path(path)), factory, None)
        if not callable(made):
            raise InputError(f"--model {name}: {path} has no function {factory!r}")
        classifier = made()
    except MinexpError:
        raise
    except Exception as error:
        raise InputError(f"--model {name}: {type(error).__name__}: {error}") from error
    if not isinstance(classifier, Classifier):
        raise InputError(
            f"--model {name}: {factory}() returned {type(classifier).__name__}; expected what "
            "minexp.wrap(module, mean=..., std=..., size=..., class_names=...) returns"
        )
    # the file as well as the weights: another normalisation or forward pass is another model
    digest = hashlib.sha256(Path(path).read_bytes() + str(classifier.weights_sha256).encode())
    return replace(classifier, name=name, weights_sha256=digest.hexdigest())


def _imported(path: Path) -> ModuleType:
    name = f"minexp_own_{path.stem}"  # not the stem alone: torch.py must not hide torch
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"--model: {path} is no Python file; expected path/to/file.py:factory")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look there
    spec.loader.exec_module(module)
    return module


REGISTRY: Mapping[str, Entry] = {
    "efficientnet_lite0": lite_entry(0, "efficientnet-lite0-57934424.pth"),
    "efficientnet_lite1": lite_entry(1, "efficientnet-lite1-77cc7160.pth"),
    "efficientnet_lite2": lite_entry(2, "efficientnet-lite2-9656183e.pth"),
    "resnet18": hub_entry(
        "resnet18.a1_in1k",
        "timm/resnet18.a1_in1k",
        "80c49dee3da4822c009c5a7fe591e9223c5a2cfcf95a4067ca4dfb5a7b89c612",
        name="resnet18",
        family="ResNet",
        taps=layers,
    ),
    "mobilenetv3": hub_entry(
        "mobilenetv3_large_100.ra_in1k",
        "timm/mobilenetv3_large_100.ra_in1k",
        "f425af34cc1cead2b5d6211f789a1f30b94835dc32f9c0fcc5a916e4fd2dde85",
        name="mobilenetv3",
        family="MobileNetV3",
        taps=inverted_residuals,
    ),
    "convnext_small": hub_entry(
        "convnext_small.fb_in1k",
        "timm/convnext_small.fb_in1k",
        "5ec5ed9e97fb835093aaf3e6c3fce406b160b367117b6a2b8c7b703386218d1b",
        name="convnext_small",
        family="ConvNeXt",
        taps=stages,
    ),
    "efficientnet_b0": hub_entry(
        "efficientnet_b0.ra_in1k",
        "timm/efficientnet_b0.ra_in1k",
        "d569899762ea9b1384ee07f4af64805cf8caa1c55f9253ebb1080dc40e87a2cd",
        name="efficientnet_b0",
        family="EfficientNet",
        taps=inverted_residuals,
    ),
    "vit_b16": hub_entry(
        "vit_base_patch16_224.augreg2_in21k_ft_in1k",
        "timm/vit_base_patch16_224.augreg2_in21k_ft_in1k",
        "32aa17d6e17b43500f531d5f6dc9bc93e56ed8841b8a75682e1bb295d722405b",
        name="vit_b16",
        family="ViT",
        taps=blocks,
    ),
    "mnist_cnn": trained_entry("mnist_cnn", "CNN", relus),
    "mnist_cnn_small": trained_entry("mnist_cnn_small", "CNN", relus),
    "mnist_vit": trained_entry("mnist_vit", "ViT", blocks),
    "resnet18_cifar10": trained_entry("resnet18_cifar10", "ResNet", layers),
    "mobilenetv3_cifar10": trained_entry("mobilenetv3_cifar10", "MobileNetV3", inverted_residuals),
    "convnext_cifar10": trained_entry("convnext_cifar10", "ConvNeXt", stages),
    "vit_cifar10": trained_entry("vit_cifar10", "ViT", blocks),
}
