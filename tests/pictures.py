"""A stand-in for CIFAR-10's pictures, for tests that need some but not those."""

import numpy as np

EACH = 13  # of every class


def few_pictures(part: str) -> tuple[np.ndarray, np.ndarray]:
    """As :func:`minexp.cifar.pictures`: noise, thirteen of each class in a mixed order."""
    generator = np.random.default_rng(len(part))
    labels = generator.permutation(np.repeat(np.arange(10, dtype=np.int64), EACH))
    pixels = generator.integers(0, 256, (len(labels), 32, 32, 3)).astype(np.uint8)
    pixels.flags.writeable = labels.flags.writeable = False
    return pixels, labels
