"""What the benchmark runs: a suite's images, and what is to be done with each of them."""

import importlib.util
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minexp import cifar, images, jobs, mnist, peers, samples, variants
from minexp.classifier import Classifier
from minexp.config import (
    CRITERIA,
    ExplainConfig,
    configure,
    default_preset,
    parse_settings,
    preset,
)
from minexp.errors import InputError
from minexp.references import check_distinct, open_reference

A_CLASS = 10  # test pictures of each class, of digits and of CIFAR-10
MODELS = {"mnist": "mnist_cnn", "cifar10": "resnet18_cifar10"}
OURS = ("ours_no_noise", "ours")
RIGHT = "ours_right"  # ours of the true class, whatever the network says
LEAST = "ours_least"  # its control, of the class that the network finds least likely
SLOW = ("rex", "extremal")  # by name only: an optional package, and minutes an image
TRANSFORMERS = ("attention", "rollout")  # by name only: they refuse every other network
METHODS = (  # cheap ones first
    *(name for name in peers.PEERS if name not in SLOW),
    *(*OURS, RIGHT, LEAST, *SLOW),
)
Setting = ExplainConfig | tuple[str, ...]  # ours; or the criteria a peer is judged by


def suite(
    name: str,
    criterion: str | None,
    limit: int | None,
    *,
    methods: Sequence[str] | None = None,
    every: tuple[int, int] = (1, 0),
    model: str | None = None,
    wrong: bool = False,
    as_sure: bool = False,
) -> tuple[str, list[str], dict[str, Setting]]:
    """The model, the image references and what is to be done with each.

    Args:
        name: "bundled", "mnist", "cifar10", or a folder of images.
        criterion: "label" or "confidence"; None: both, for digits the confidence only.
        limit: the first so many images only.
        methods: of :data:`METHODS`, or ours with settings changed, "ours+tv=20+steps=300", or from
            another preset, "ours+preset=house_finch", with two taps, "ours+taps=A+taps=B"; or a
            variant or a group of them (:mod:`minexp.variants`), with settings changed too. None:
            for digits ours with and without noise, else ours and all peers but ``SLOW`` and
            ``TRANSFORMERS``.
        every: (N, K), before ``limit``: every N-th image from the K-th on, counted from 0, to
            hold out those a setting was chosen on.
        model: its name; None: mnist_cnn for digits, resnet18_cifar10 for CIFAR-10, else
            efficientnet_lite0.
        wrong: only pictures whose known class is not the model's decision; of digits and CIFAR-10
            the first ten such test pictures of each class, as far as there are as many.
        as_sure: for each of these the picture, of all, that the model names rightly with the
            nearest confidence: what wrong decisions are to be compared with.

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
    by_name = (*SLOW, *TRANSFORMERS, "ours_no_noise", RIGHT, LEAST)
    default = OURS if digits else [k for k in METHODS if k not in by_name]
    model = model or MODELS.get(name, "efficientnet_lite0")
    settings = _settings(default if methods is None else methods, criteria, model)
    found = _found(name, model, wrong, as_sure)
    references = list(islice(islice(found, start, None, step), limit))
    if not references:
        raise InputError(f"every={step}:{start}, wrong={wrong}: no image of {name} is left")
    return model, references, settings


def _found(name: str, model: str, wrong: bool, as_sure: bool) -> Iterable[str]:
    if wrong and as_sure:
        raise InputError("wrong and as_sure: expected one of the two")
    if as_sure:
        return _as_sure(name, jobs.model(model))
    return _misread(name, jobs.model(model)) if wrong else _references(name)


def _references(name: str) -> list[str]:
    if name in MODELS:
        classes = _of_each_class(name)
        return [reference for one in classes for reference in one[:A_CLASS]]
    if name == "bundled":
        return [f"bundled:{photograph}" for photograph in samples.BUNDLED]
    found = [str(path) for path in images.list_images(name)]
    check_distinct(found)
    return found


def _of_each_class(name: str) -> list[list[str]]:
    """All test pictures of each class, of the digits or of CIFAR-10, as references."""
    if name == "mnist":
        _, labels = mnist.digits()
        _, test = mnist.split()
    else:
        labels = cifar.pictures("test")[1]
        test = np.arange(len(labels))
    return [[f"{name}:{index}" for index in test[labels[test] == label]] for label in range(10)]


def _misread(name: str, model: Classifier) -> Iterator[str]:
    """The pictures of a suite that the model names wrongly, one by one; see :func:`suite`."""
    pools = _of_each_class(name) if name in MODELS else [_references(name)]
    most = A_CLASS if name in MODELS else None
    if name == "bundled" or all(truth(one) is None for pool in pools for one in pool[:most]):
        raise InputError(f"wrong: the true classes of {name} are not known")
    wrong = (filter(partial(_is_misread, model), pool) for pool in pools)
    return (reference for pool in wrong for reference in islice(pool, most))


def _is_misread(model: Classifier, reference: str) -> bool:
    known = truth(reference)
    return known is not None and known != int(_shares(model, reference).argmax())


def _as_sure(name: str, model: Classifier) -> Iterator[str]:
    """As many pictures named rightly as :func:`_misread` gives, each once; see :func:`suite`."""
    wrong = list(_misread(name, model))
    pools = _of_each_class(name) if name in MODELS else [_references(name)]
    shares = {one: _shares(model, one) for pool in pools for one in pool}
    right = {one: float(s.max()) for one, s in shares.items() if truth(one) == int(s.argmax())}
    for reference in wrong[: len(right)]:
        own = float(shares[reference].max())
        near = min(right, key=lambda one: abs(right[one] - own))
        del right[near]
        yield near


@torch.no_grad()
def _shares(model: Classifier, reference: str) -> Tensor:
    """The softmax (K,) of a picture's logits."""
    image, _ = open_reference(reference, model)
    return model(image.to(model.device))[0].softmax(0)


def _settings(names: Sequence[str], criteria: tuple[str, ...], model: str) -> dict[str, Setting]:
    """Folder -> setting, the cheap methods first. Raises InputError on what cannot be run."""
    classifier = jobs.model(model)
    names = variants.expand(names, classifier.taps)
    for name in names:
        _check_name(name)
    if "rex" in names and importlib.util.find_spec("rex_xai") is None:
        raise InputError("rex: the package rex-xai is missing; get it with: pip install rex-xai")
    base = preset(default_preset(classifier.size, len(classifier.mean)))
    settings: dict[str, Setting] = {}
    for name in sorted(names, key=_place):
        if name in METHODS and name not in (*OURS, RIGHT, LEAST):
            settings[name] = criteria
            continue
        changes = _changes(name, classifier.taps)
        if "criterion" in changes:
            raise InputError(f"method {name!r}: the criterion is that of the suite")
        start = preset(str(changes.pop("preset"))) if "preset" in changes else base
        for criterion in criteria:
            folder = name if criterion == "confidence" else f"{name}_{criterion}"
            settings[folder] = configure(start, {"criterion": criterion, **changes})
    return settings


def _check_name(name: str) -> None:
    head, changed, _ = name.partition("+")
    ours = head in variants.VARIANTS or head in ("ours", RIGHT, LEAST)
    if ours or (head in METHODS and not changed):
        return
    known = ", ".join((*METHODS, *variants.GROUPS, "taps"))
    raise InputError(
        f"unknown method {name!r}; there are: {known}; the variants of minexp/variants.py; "
        "ours+NAME=VALUE. A comma ends a method: two taps are ours+taps=A+taps=B"
    )


def _place(name: str) -> int:
    """Among :data:`METHODS`; a variant's is ours."""
    head = name.partition("+")[0]
    return METHODS.index(head if head in METHODS else "ours")


def _changes(name: str, taps: Sequence[str]) -> dict[str, object]:
    """What a method of ours, or a variant, changes of the preset."""
    head, *given = name.split("+")
    quiet = {"noise_draws": 0, "robustness": 0.0} if head == "ours_no_noise" else {}
    own = variants.changes(head, taps) if head in variants.VARIANTS else {}
    return quiet | own | parse_settings(given, f"method {name!r}:")


def asked(method: str, reference: str, model: Classifier) -> int | None:
    """The class that a method of ours explains in an image; None: the network's own decision.

    ``method`` is its folder's name. Raises InputError where it is the true one, and unknown.
    """
    if method.startswith(LEAST):
        return int(_shares(model, reference).argmin())
    if not method.startswith(RIGHT):
        return None
    known = truth(reference)
    if known is None:
        raise InputError(f"{RIGHT}: the true class of {reference} is not known")
    return known


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
