"""Images by reference: a path, ``bundled:coffee``, ``mnist:4711`` or ``cifar10:4711``."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from minexp import cifar, images, mnist, samples
from minexp.classifier import Classifier
from minexp.errors import InputError


def open_reference(reference: str, model: Classifier) -> tuple[Tensor, str]:
    """The model's input (1, C, H, W) for an image reference, and the sha256 of its bytes.

    Raises:
        InputError: no such picture, or one that ``images.read_image`` refuses.
    """
    kind = reference.partition(":")[0]
    if kind == "mnist":
        pixels, _ = mnist.digits()
        digit = pixels[_index(reference, len(pixels))]
        picture = Image.fromarray(np.round(digit * 255).astype(np.uint8)).convert("RGB")
        return model.preprocess(picture), hashlib.sha256(digit.tobytes()).hexdigest()
    if kind == "cifar10":  # of the test pictures
        pictures, _ = cifar.pictures("test")
        pixels = pictures[_index(reference, len(pictures))]
        picture = Image.fromarray(pixels)
        return model.preprocess(picture), hashlib.sha256(pixels.tobytes()).hexdigest()
    path = locate(reference)
    return images.load_image(path, model), images.sha256(path)


def _index(reference: str, count: int) -> int:
    kind, _, name = reference.partition(":")
    # Python converts no number of thousands of digits
    if not name.isdecimal() or len(name) > 9 or int(name) >= count:
        raise InputError(f"{reference!r}: expected {kind}:0 to {kind}:{count - 1}")
    return int(name)


def locate(reference: str) -> Path:
    """The file behind a reference that is a path or ``bundled:NAME``. Raises InputError."""
    kind, _, name = reference.partition(":")
    if kind != "bundled":
        return Path(reference)
    bundled = samples.bundled_images()
    if name not in bundled:
        raise InputError(f"{reference!r}: no such bundled picture; there are: {', '.join(bundled)}")
    return bundled[name]


def is_path(reference: str) -> bool:
    """Whether a reference is a path, and not one of the pictures that go by a name."""
    return reference.partition(":")[0] not in ("bundled", "mnist", "cifar10")


def stem(reference: str) -> str:
    """The name a result's files share: the file's stem, or the reference's with a dash."""
    return Path(reference).stem if is_path(reference) else reference.replace(":", "-")


def check_distinct(references: Sequence[str]) -> None:
    """Raise InputError if two images would write the same files."""
    stems: dict[str, str] = {}
    for reference in references:
        other = stems.setdefault(stem(reference), reference)
        if other != reference:
            raise InputError(f"{other} and {reference} would write the same files; rename one")


def beside(path: Path, reference: str) -> str:
    """The reference as written, or the file of that name beside the result if it moved along."""
    moved = Path(path).parent / Path(reference).name
    went_along = is_path(reference) and not Path(reference).exists() and moved.exists()
    return str(moved) if went_along else reference
