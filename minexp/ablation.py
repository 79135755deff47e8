"""Take channels out of a network's forward pass, and see what it still says."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minexp import taps
from minexp.classifier import Classifier
from minexp.errors import InputError
from minexp.shortcuts import Roads

ABLATIONS = ("zero", "mean", "resample")
BATCH = 8  # circuits a forward pass

Keep = Mapping[str, Tensor]  # tap -> (N, C) bool, a row a circuit
Fill = Callable[[str, Tensor], Tensor]  # a tap's or shortcut's name, its output -> what replaces it


@dataclass(frozen=True)
class Reference:
    """What other images do to the network: what is put where a channel is taken out.

    ``means``: tap or shortcut -> (C,), over images and positions. ``images`` (R, C, H, W);
    ``labels`` (R,), what the network makes of them.
    """

    images: Tensor
    labels: Tensor
    means: dict[str, Tensor]


def reference(model: Classifier, images: Sequence[Tensor], roads: Roads | None = None) -> Reference:
    """The channels' means over ``images``, each (1, C, H, W) normalised, one at a time.

    ``roads``: also those of the shortcuts around the taps.
    """
    if not images:
        raise InputError("no reference images: expected one or more to take channels' means over")
    sums: dict[str, Tensor] = {}
    for image in images:
        for name, value in _values(model, image, roads).items():
            mean = value[0].flatten(1).mean(1) if value.ndim > 2 else value[0]
            sums[name] = sums[name] + mean if name in sums else mean
    together = torch.cat(list(images))
    with torch.no_grad():
        labels = torch.cat([model(image.to(model.device)).argmax(1) for image in images])
    return Reference(together, labels, {name: s / len(images) for name, s in sums.items()})


def _values(model: Classifier, image: Tensor, roads: Roads | None) -> dict[str, Tensor]:
    if roads is not None:
        return roads.read(image.to(model.device))
    with torch.no_grad(), taps.read(model.module, model.taps) as read:
        model(image.to(model.device))
    return dict(read)


def fill(
    model: Classifier,
    ablation: str,
    reference: Reference | None,
    *,
    draw: int = 0,
    roads: Roads | None = None,
) -> Fill:
    """What is put where a channel is taken out: zero, its mean, or another image's own map.

    ``resample`` takes all channels from reference image number ``draw`` (modulo how many there
    are). With ``roads`` the reference must have been made with them too.
    """
    if ablation not in ABLATIONS:
        raise InputError(f"ablation {ablation!r}: expected one of {', '.join(ABLATIONS)}")
    if ablation == "zero":
        return lambda _name, output: torch.zeros_like(output)
    if reference is None:
        raise InputError(f"ablation {ablation!r} needs reference images")
    if ablation == "mean":
        return lambda name, output: (
            reference.means[name].reshape(1, -1, *(1,) * (output.ndim - 2)).expand_as(output)
        )
    other = draw % len(reference.images)
    values = _values(model, reference.images[other : other + 1], roads)
    return lambda name, output: values[name].expand_as(output)


def run(
    model: Classifier, image: Tensor, keep: Keep, filled: Fill, roads: Roads | None = None
) -> Tensor:
    """Logits (N, K) of N circuits on one image (1, C, H, W).

    Each circuit keeps the channels that are on in its row of ``keep[tap]`` (N, C), the others give
    ``filled``. Kept channels are computed from what the ablated ones before them left. Taps that
    are not named stay whole. With ``roads`` the same channels are closed in the shortcuts around
    the named taps too.
    """
    count = len(next(iter(keep.values())))
    parts = []
    for start in range(0, count, BATCH):
        rows = {tap: mask[start : start + BATCH] for tap, mask in keep.items()}
        size = len(next(iter(rows.values())))
        images = image.to(model.device).expand(size, -1, -1, -1)
        changes = {tap: _change(tap, mask, filled) for tap, mask in rows.items()}
        if roads is not None:
            around = [shortcut for shortcut in roads.shortcuts if shortcut.tap in rows]
            closed = {s.name: _change(s.name, rows[s.tap], filled) for s in around}
            parts.append(roads.run(images, changes, closed))
            continue
        with torch.no_grad(), taps.replace(model.module, changes):
            parts.append(model(images))
    return torch.cat(parts)


def _change(name: str, keep: Tensor, filled: Fill) -> Callable[[Tensor], Tensor]:
    """Keep some channels (N, C), and fill the others."""

    def change(output: Tensor) -> Tensor:
        mask = keep.reshape(*keep.shape, *(1,) * (output.ndim - 2))
        return torch.where(mask, output, filled(name, output))

    return change


def first(scores: Mapping[str, Tensor], fractions: Sequence[float]) -> dict[str, Tensor]:
    """Tap -> (fractions, C): of every layer the first so many channels by their score (C,)."""
    keep = {}
    for tap, score in scores.items():
        rank = score.argsort(descending=True, stable=True).argsort()  # (C,)
        counts = [round(fraction * len(score)) for fraction in fractions]
        counts = [max(1, n) if f > 0 else 0 for n, f in zip(counts, fractions, strict=True)]
        keep[tap] = rank[None] < torch.tensor(counts, device=rank.device)[:, None]
    return keep


def only(model: Classifier, chosen: Mapping[str, Sequence[int]], sizes: Mapping[str, int]) -> dict:
    """Tap -> (1, C): the channels of a circuit, as :func:`minexp.circuit.nodes_of` gives them."""
    keep = {}
    for tap, size in sizes.items():
        keep[tap] = torch.zeros(1, size, dtype=torch.bool, device=model.device)
        keep[tap][0, list(chosen.get(tap, ()))] = True
    return keep
