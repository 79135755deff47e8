"""CIFAR-10 (Krizhevsky, 2009): 50,000 training and 10,000 test pictures of ten classes.

Read from the folder ``MINEXP_CIFAR10``, which holds ``train.zip`` and ``test.zip`` with one folder
of pictures a class, or downloaded by torchvision, which checks its archive, to
``MINEXP_HOME/cifar10``. The data set states no licence: its pictures are not redistributed here.
"""

import io
import os
import zipfile
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
        raise InputError(f"CIFAR-10 {part}: {len(labels)} pictures; expected {SIZES[part]}")
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
            names = sorted(name for name in archive.namelist() if not name.endswith("/"))
            pixels = [
                np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("RGB"))
                for name in names
            ]
        labels = [CLASSES.index(Path(name).parent.name) for name in names]
        return np.stack(pixels).reshape(-1, SIDE, SIDE, 3), np.array(labels, dtype=np.int64)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path}: not the pictures of CIFAR-10 ({error}); expected a zip file with a folder "
            f"of {SIDE} x {SIDE} pictures for each of: {', '.join(CLASSES)}; "
            "correct or unset MINEXP_CIFAR10"
        ) from error


def _downloaded(part: str) -> tuple[np.ndarray, np.ndarray]:
    # Imported here so that explaining a photograph does not pay for it.
    from torchvision.datasets import CIFAR10

    if not is_here() and offline():
        raise InputError(
            "CIFAR-10 is not here and MINEXP_OFFLINE is set; let MINEXP_CIFAR10 name a folder "
            "with train.zip and test.zip, a folder of pictures a class, or unset MINEXP_OFFLINE"
        )
    try:
        found = CIFAR10(home() / "cifar10", train=part == "train", download=not is_here())
    except (OSError, RuntimeError) as error:
        raise RunError(
            f"CIFAR-10 could not be downloaded or read: {error}; let MINEXP_CIFAR10 name a folder "
            "with train.zip and test.zip, a folder of pictures a class"
        ) from error
    return found.data, np.array(found.targets, dtype=np.int64)
