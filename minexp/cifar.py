"""CIFAR-10 (Krizhevsky, 2009): 50,000 training and 10,000 test pictures of ten classes.

Read from the folder ``MINEXP_CIFAR10``, which holds ``train.zip`` and ``test.zip`` with one folder
of pictures a class, or downloaded by torchvision, which checks its archive, to
``MINEXP_HOME/cifar10``. The data set states no licence: its pictures are not redistributed here.
"""

import io
import os
import zipfile
import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from minexp.errors import InputError, RunError
from minexp.paths import home, offline

CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
SIDE = 32
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of the training pictures
SIZES = {"train": 50_000, "test": 10_000}


@lru_cache(maxsize=2)
def pictures(part: str) -> tuple[np.ndarray, np.ndarray]:
    """One part, "train" or "test": pixels (N, 32, 32, 3) uint8 and labels (N,) int64.

    Sorted by class, then by the files' names, or in torchvision's order where it was downloaded.
    Cached: do not write into the arrays.

    Raises:
        InputError: an unknown part, or the pictures are not here and cannot be had.
    """
    if part not in SIZES:
        raise InputError(f"part {part!r}: expected one of {', '.join(SIZES)}")
    folder = os.environ.get("MINEXP_CIFAR10")
    pixels, labels = _zipped(Path(folder) / f"{part}.zip") if folder else _downloaded(part)
    if len(labels) != SIZES[part]:
        raise InputError(
            f"CIFAR-10 {part}: {len(labels)} pictures; expected {SIZES[part]}; "
            "correct or unset MINEXP_CIFAR10"
        )
    pixels.flags.writeable = labels.flags.writeable = False
    return pixels, labels


def normalized(pixels: Tensor) -> Tensor:
    """Pixels (N, 32, 32, 3) uint8 -> a network's input (N, 3, 32, 32) float32."""
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    return ((pixels / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()


def is_here() -> bool:
    """Whether the pictures can be read without a download."""
    if folder := os.environ.get("MINEXP_CIFAR10"):
        return all((Path(folder) / f"{part}.zip").is_file() for part in SIZES)
    return (home() / "cifar10" / "cifar-10-batches-py").is_dir()


def _zipped(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = sorted(name for name in archive.namelist() if _is_picture(name))
            found = [_read(name, archive.read(name)) for name in names]
        pixels, labels = zip(*found, strict=True)
        return np.stack(pixels), np.array(labels, dtype=np.int64)
    except (OSError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(
            f"{path}: not the pictures of CIFAR-10 ({error}); expected a zip file with a folder "
            f"of {SIDE} x {SIDE} pictures for each of: {', '.join(CLASSES)}; "
            "correct or unset MINEXP_CIFAR10"
        ) from error


def _is_picture(name: str) -> bool:
    """Neither a folder nor one of the hidden files that file managers add to a zip."""
    return not name.endswith("/") and not Path(name).name.startswith(".")


def _read(name: str, data: bytes) -> tuple[np.ndarray, int]:
    """A picture's pixels (32, 32, 3) uint8 and its label, the number of its folder's class."""
    folder = Path(name).parent.name
    if folder not in CLASSES:
        raise ValueError(f"{name}: no class {folder!r}")
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    if pixels.shape != (SIDE, SIDE, 3):
        raise ValueError(f"{name}: {pixels.shape[1]} x {pixels.shape[0]} pixels")
    return pixels, CLASSES.index(folder)


def _downloaded(part: str) -> tuple[np.ndarray, np.ndarray]:
    # Imported here so that explaining a photograph does not pay for it.
    from torchvision.datasets import CIFAR10

    if not is_here() and offline():
        raise InputError(
            "CIFAR-10 is not here and MINEXP_OFFLINE is set; let MINEXP_CIFAR10 name a folder "
            "with train.zip and test.zip, a folder of pictures a class, or unset MINEXP_OFFLINE"
        )
    try:
        found = CIFAR10(home() / "cifar10", train=part == "train", download=not offline())
    except (OSError, RuntimeError) as error:
        raise RunError(
            f"CIFAR-10 could not be downloaded to, or read from, {home() / 'cifar10'}: {error}; "
            "let MINEXP_CIFAR10 name a folder with train.zip and test.zip, a folder of pictures a "
            "class"
        ) from error
    return found.data, np.array(found.targets, dtype=np.int64)
