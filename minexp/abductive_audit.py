"""Checks of an abductive explanation, apart from the search that found it.

Random fillings and a strong attack on the network itself may never change the class while the
sufficient set stays; every witness must; and a mixed-integer program for each other class, over the
whole complement and with bounds from interval arithmetic only, proves the set again. The programs,
their solver and their reading of the network as matrices are the search's last judge's too; only
the bounds are others, so on every filling the matrices are held against the network. What a check
finds wrong, it says.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minexp import milp
from minexp.bounds import OUTWARD, Layers, Relaxation, as_layers, margins
from minexp.errors import InputError
from minexp.splitting import PROOF

BATCH = 1000


@dataclass(frozen=True)
class Audit:
    """What was tried and what failed; ``proof`` is "safe", "unsafe", "unknown" or "not asked".

    ``deviation``: the most by which an output of the matrices differed from the network's own.
    """

    fillings: int
    fillings_wrong: int
    attacks: int
    attacks_wrong: int
    witnesses: int
    witnesses_wrong: tuple[int, ...]
    proof: str
    deviation: float

    @property
    def wrong(self) -> int:
        """Verdicts shown to be wrong: a set that does not suffice, and witnesses that are none.

        Matrices that are not the network, by more than a proof allows for, prove nothing of it.
        """
        refuted = self.fillings_wrong > 0 or self.attacks_wrong > 0 or self.proof == "unsafe"
        return int(refuted or not self.deviation <= PROOF) + len(self.witnesses_wrong)


def audit(
    module: nn.Module,
    image: Tensor,
    lower: Tensor,
    upper: Tensor,
    free: Tensor,
    witnesses: Sequence[tuple[Tensor, Tensor]],
    *,
    fillings: int = 10_000,
    restarts: int = 200,
    seconds: float = 0.0,
    seed: int = 0,
) -> Audit:
    """Check that inputs ``free`` may vary and that every witness shows what it claims.

    Args:
        image, lower, upper: (1, C, H, W), the image and the domain of each input.
        free: (1, C, H, W) bool, the complement of the sufficient set.
        witnesses: pairs of an image (1, C, H, W) and the needed inputs (1, C, H, W) bool it frees.
        fillings: random ones: half uniform, half corners of the domain.
        restarts: of projected gradient descent, 100 steps each.
        seconds: for the proof by HiGHS; 0: not asked.

    Raises InputError if the image's class is not one (a NaN), or for a negative number.
    """
    if min(fillings, restarts, seconds) < 0:
        raise InputError("fillings, restarts and seconds: expected none below 0")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        label = int(module(image)[0].argmax())
    low, high = torch.where(free, lower, image), torch.where(free, upper, image)
    layers = as_layers(module, image.shape[1:])
    random_wrong, deviation = _random(module, layers, label, low, high, fillings, generator)
    attack_wrong = _attacks(module, label, low, high, restarts, generator)
    bad = [
        number
        for number, (witness, unit) in enumerate(witnesses)
        if not _shows(module, image, lower, upper, free | unit, witness, label)
    ]
    proof = "not asked"
    if seconds > 0:
        rows = margins(layers, label)
        box = low.flatten().double(), high.flatten().double()
        proof = milp.query(rows, intervals(rows, *box), *box, seconds=seconds).verdict
    tried = (fillings, random_wrong, restarts, attack_wrong, len(witnesses), tuple(bad))
    return Audit(*tried, proof, deviation)


def _random(
    module: nn.Module, layers: Layers, label: int, low: Tensor, high: Tensor, count: int,
    generator: torch.Generator,
) -> tuple[int, float]:  # fmt: skip
    """How many of so many fillings have another class, by plain forward passes; and the most by
    which the matrices' outputs differ from theirs."""
    wrong, most = 0, torch.zeros((), dtype=torch.float64)
    for size in _batches(count):
        share = torch.rand(size, *low.shape[1:], generator=generator)
        share[::2] = share[::2].round()
        x = low + share * (high - low)
        with torch.no_grad():
            logits = module(x)
        wrong += int((logits.argmax(1) != label).sum())
        read = layers.preactivations(x.flatten(1).double())[-1]
        most = torch.maximum(most, (read - logits).abs().max())  # a NaN stays
    return wrong, most.item()


def _batches(count: int) -> list[int]:
    return [BATCH] * (count // BATCH) + ([count % BATCH] if count % BATCH else [])


def _attacks(module, label, low, high, restarts: int, generator: torch.Generator) -> int:
    """How many restarts end in another class: momentum, small steps, torch's own gradients.

    Each restart aims at one other class in turn (Dong et al., CVPR 2018, for the momentum).
    """
    if not restarts:
        return 0
    x = low + torch.rand(restarts, *low.shape[1:], generator=generator) * (high - low)
    with torch.no_grad():
        classes = module(low).shape[1]
    others = torch.tensor([j for j in range(classes) if j != label])
    target = others[torch.arange(restarts) % len(others)][:, None]
    speed, wrong = torch.zeros_like(x), torch.zeros(restarts, dtype=torch.bool)
    for step in range(100):
        x = x.detach().requires_grad_()
        logits = module(x)
        wrong |= logits.argmax(1) != label
        margin = (logits[:, label] - logits.gather(1, target)[:, 0]).sum()
        (gradient,) = torch.autograd.grad(margin, x)
        size = gradient.abs().mean((1, 2, 3), keepdim=True).clamp(min=1e-12)
        speed = 0.9 * speed + gradient / size
        x = x - 0.2 * 0.97**step * (high - low) * speed.sign()
        x = torch.minimum(torch.maximum(x, low), high)
    with torch.no_grad():
        return int((wrong | (module(x).argmax(1) != label)).sum())


def _shows(module, image, lower, upper, may: Tensor, witness: Tensor, label: int) -> bool:
    """Whether a witness differs only where it may, within the domain, and has another class."""
    inside = bool(((witness >= lower) & (witness <= upper)).all())
    with torch.no_grad():
        changed = int(module(witness)[0].argmax()) != label
    return inside and changed and bool((witness == image)[~may].all())


def intervals(layers: Layers, lower: Tensor, upper: Tensor) -> Relaxation:
    """Bounds of the ReLUs' inputs over one box (n_0,) by interval arithmetic, layer by layer."""
    low, high = [], []
    for weight, bias in zip(layers.weights[:-1], layers.biases[:-1], strict=True):
        centre, radius = (upper + lower) / 2, (upper - lower) / 2
        middle, spread = weight @ centre + bias, weight.abs() @ radius
        room = OUTWARD * (1 + weight.abs() @ centre.abs() + bias.abs() + spread)
        low.append((middle - spread - room)[None])
        high.append((middle + spread + room)[None])
        lower, upper = low[-1][0].clamp(min=0), high[-1][0].clamp(min=0)
    return Relaxation(tuple(low), tuple(high))
