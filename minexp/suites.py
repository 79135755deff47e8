"""What the benchmark runs: a suite's images, and what is to be done with each of them."""

import importlib.util
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from minexp import cifar, images, jobs, mnist, peers, samples
from minexp.config import (
    CRITERIA,
    ExplainConfig,
    configure,
    default_preset,
    parse_settings,
    preset,
)
from minexp.errors import InputError
from minexp.references import check_distinct

A_CLASS = 10  # test pictures of each class, of digits and of CIFAR-10
MODELS = {"mnist": "mnist_cnn", "cifar10": "resnet18_cifar10"}
OURS = ("ours_no_noise", "ours")
SLOW = ("rex", "extremal")  # by name only: an optional package, and minutes an image
TRANSFORMERS = ("attention", "rollout")  # by name only: they refuse every other network
METHODS = (*(name for name in peers.PEERS if name not in SLOW), *OURS, *SLOW)  # cheap ones first
Setting = ExplainConfig | tuple[str, ...]  # ours; or the criteria a peer is judged by


def suite(
    name: str,
    criterion: str | None,
    limit: int | None,
    *,
    methods: Sequence[str] | None = None,
    every: tuple[int, int] = (1, 0),
    model: str | None = None,
) -> tuple[str, list[str], dict[str, Setting]]:
    """The model, the image references and what is to be done with each.

    Args:
        name: "bundled", "mnist", "cifar10", or a folder of images.
        criterion: "label" or "confidence"; None: both, for digits the confidence only.
        limit: the first so many images only.
        methods: of :data:`METHODS`, or ours with settings changed, "ours+tv=20+steps=300", or from
            another preset, "ours+preset=house_finch"; None: for digits ours with and without
            noise, else ours and all peers but ``SLOW`` and ``TRANSFORMERS``.
        every: (N, K), before ``limit``: every N-th image from the K-th on, counted from 0, to
            hold out those a setting was chosen on.
        model: its name; None: mnist_cnn for digits, resnet18_cifar10 for CIFAR-10, else
            efficientnet_lite0.

    Returns:
        (model name, references, folder -> our configuration or a peer's criteria).
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit={limit}: expected an integer >= 1")
    if criterion not in (None, *CRITERIA):
        raise InputError(f"criterion={criterion!r}: expected one of {', '.join(CRITERIA)}")
    step, start = every
    if not 0 <= start < step:
        raise InputError(f"every={step}:{start}: expected N >= 1 and 0 <= K < N")
    digits = name == "mnist"
    criteria = (criterion,) if criterion else ("confidence",) if digits else CRITERIA
    by_name = (*SLOW, *TRANSFORMERS, "ours_no_noise")
    default = OURS if digits else [k for k in METHODS if k not in by_name]
    model = model or MODELS.get(name, "efficientnet_lite0")
    settings = _settings(default if methods is None else methods, criteria, model)
    references = _references(name)[start::step][:limit]
    if not references:
        raise InputError(f"every={step}:{start}: no image of {name} is left")
    return model, references, settings


def _references(name: str) -> list[str]:
    if name == "mnist":
        return _digits()
    if name == "cifar10":
        return _first_of_each(cifar.pictures("test")[1])
    if name == "bundled":
        return [f"bundled:{photograph}" for photograph in samples.BUNDLED]
    found = [str(path) for path in images.list_images(name)]
    check_distinct(found)
    return found


def _digits() -> list[str]:
    """The first ten test digits of each class, as references, in the order of the classes."""
    _, labels = mnist.digits()
    _, test = mnist.split()
    chosen = [index for digit in range(10) for index in test[labels[test] == digit][:A_CLASS]]
    return [f"mnist:{index}" for index in chosen]


def _first_of_each(labels: np.ndarray) -> list[str]:
    """The first ten test pictures of each class of CIFAR-10, in the order of the classes."""
    chosen = [index for label in range(10) for index in np.flatnonzero(labels == label)[:A_CLASS]]
    return [f"cifar10:{index}" for index in chosen]


def _settings(names: Sequence[str], criteria: tuple[str, ...], model: str) -> dict[str, Setting]:
    """Folder -> setting, the cheap methods first. Raises InputError on what cannot be run."""
    for name in names:
        if name.partition("+")[0] not in METHODS or ("+" in name and not name.startswith("ours+")):
            known = ", ".join(METHODS)
            raise InputError(f"unknown method {name!r}; there are: {known}; ours+NAME=VALUE")
    if "rex" in names and importlib.util.find_spec("rex_xai") is None:
        raise InputError("rex: the package rex-xai is missing; get it with: pip install rex-xai")
    classifier = jobs.model(model)
    base = preset(default_preset(classifier.size, len(classifier.mean)))
    settings: dict[str, Setting] = {}
    for name in sorted(names, key=lambda name: METHODS.index(name.partition("+")[0])):
        if name in METHODS and name not in OURS:
            settings[name] = criteria
            continue
        quiet = {"noise_draws": 0, "robustness": 0.0} if name == "ours_no_noise" else {}
        changes = quiet | parse_settings(name.split("+")[1:], f"method {name!r}:")
        if "criterion" in changes:
            raise InputError(f"method {name!r}: the criterion is that of the suite")
        start = preset(str(changes.pop("preset"))) if "preset" in changes else base
        for criterion in criteria:
            folder = name if criterion == "confidence" else f"{name}_{criterion}"
            settings[folder] = configure(start, {"criterion": criterion, **changes})
    return settings


def truth(reference: str) -> int | None:
    """The true class of a suite's image where it is known: digits and manifested samples."""
    kind, _, name = reference.partition(":")
    if kind == "mnist":
        return int(mnist.digits()[1][int(name)])
    if kind == "cifar10":
        return int(cifar.pictures("test")[1][int(name)])
    if kind == "bundled":
        return None
    return _manifested(os.environ.get("MINEXP_IMAGES")).get(str(Path(reference).resolve()))


@cache
def _manifested(_folder: str | None) -> dict[str, int]:
    """Path -> class, read once for every value of MINEXP_IMAGES, not once a row."""
    entries = samples.sample_images().values()
    return {str(entry["path"].resolve()): entry["index"] for entry in entries}
