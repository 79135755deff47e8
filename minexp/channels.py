"""What a network's channels do on one image: their energies, gradients, and rankings by name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from minexp import taps
from minexp.classifier import Classifier
from minexp.errors import InputError

RANKINGS = (
    *("energy", "gradient", "energy_gradient", "attribution"),
    *("departure_gradient", "departure", "integrated"),
)
NEED_MEANS = RANKINGS[-3:]  # the channels' means over other images
STEPS = 8  # midpoints of the integral of "integrated"


@dataclass(frozen=True)
class Reading:
    """One forward and one backward pass of one image through ``model``.

    ``activations[tap]`` (1, C, h, w) or (1, C) with their graph, so that one tap can be
    differentiated by another; ``gradients[tap]``, alike, those of the logit of ``label``.
    """

    model: Classifier
    image: Tensor
    label: int
    logits: Tensor
    activations: dict[str, Tensor]
    gradients: dict[str, Tensor]


def read(model: Classifier, image: Tensor, label: int | None = None) -> Reading:
    """Pass ``image`` (1, C, H, W) through the frozen model; ``label`` None: its top-1 class.

    Raises:
        InputError: the label is out of range, or a tap's output is no map of channels.
    """
    with torch.enable_grad(), taps.read(model.module, model.taps) as found:
        logits = model(image.to(model.device).clone().requires_grad_())
    activations = dict(found)
    _check(model, activations)
    label = int(logits.argmax()) if label is None else label
    if not 0 <= label < logits.shape[1]:
        raise InputError(f"label {label}: expected an index from 0 to {logits.shape[1] - 1}")
    gradients = torch.autograd.grad(
        logits[0, label], list(activations.values()), retain_graph=True, allow_unused=True
    )
    both = zip(activations.items(), gradients, strict=True)
    slopes = {tap: torch.zeros_like(a) if g is None else g for (tap, a), g in both}
    return Reading(model, image, label, logits.detach(), activations, slopes)


def _check(model: Classifier, activations: Mapping[str, Tensor]) -> None:
    for tap, value in activations.items():
        if value.ndim == 3:
            raise InputError(
                f"tap {tap!r} of {model.name} gives tokens {tuple(value.shape)}, not maps: a "
                "circuit of channels is defined for convolutional networks; take one of those, "
                "or taps that give (N, C, h, w)"
            )
        last = value.ndim == 4 and value.shape[1] == value.shape[2] != value.shape[3]
        if value.ndim not in (2, 4) or last:
            raise InputError(
                f"tap {tap!r} of {model.name} gives {tuple(value.shape)}: expected maps "
                "(N, C, h, w) or features (N, C)"
            )


def maps(value: Tensor) -> Tensor:
    """(N, C, h, w) or (N, C) -> (N, C, positions)."""
    return value.flatten(2) if value.ndim > 2 else value[:, :, None]


def energy(activation: Tensor) -> Tensor:
    """Section 3.3: E_c = sqrt(sum over positions of phi_c^2), (N, C)."""
    return maps(activation).square().sum(2).sqrt()


def attribution(activation: Tensor, gradient: Tensor) -> Tensor:
    """Activation times gradient, summed over positions with its sign, (N, C)."""
    return (maps(activation) * maps(gradient)).sum(2)


def scores(
    reading: Reading, ranking: str, means: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Tap -> a number a channel, (C,), by which channels are ranked, the largest first.

    - ``energy``: E_c, the paper's; ``gradient``: the norm of the logit's gradient;
      ``energy_gradient``: their product.
    - ``attribution``: what activation times gradient sums to, without its sign.
    - ``departure_gradient``: |activation - its mean over other images| times |gradient|, summed
      over positions; ``departure``: the sum with its sign, to first order what the logit would
      lose were the channel replaced by its mean, so channels that speak against the class
      come last.
    - ``integrated``: see :func:`integrated`, the only one that takes more passes.

    ``means``: tap -> (C,), for the last three. Raises InputError for an unknown ranking or without
    the means it needs.
    """
    if ranking not in RANKINGS:
        raise InputError(f"ranking {ranking!r}: expected one of {', '.join(RANKINGS)}")
    if ranking in NEED_MEANS and means is None:
        raise InputError(f"ranking {ranking!r} needs the channels' means over reference images")
    if ranking == "integrated":
        assert means is not None
        return integrated(reading, means)
    found = {}
    for tap, value in reading.activations.items():
        mean = None if means is None else means[tap]
        found[tap] = _score(ranking, value.detach(), reading.gradients[tap], mean)[0]
    return found


def _score(ranking: str, activation: Tensor, gradient: Tensor, mean: Tensor | None) -> Tensor:
    if ranking == "energy":
        return energy(activation)
    if ranking == "gradient":
        return energy(gradient)
    if ranking == "energy_gradient":
        return energy(activation) * energy(gradient)
    if ranking == "attribution":
        return attribution(activation, gradient).abs()
    assert mean is not None  # see :func:`scores`
    departure = (maps(activation) - mean[None, :, None]) * maps(gradient)  # (N, C, positions)
    return departure.abs().sum(2) if ranking == "departure_gradient" else departure.sum(2)


def integrated(reading: Reading, means: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Integrated gradients of the channels' gates (Sundararajan et al., ICML 2017): tap -> (C,).

    A gate g in [0, 1] lets a channel give mean + g (activation - mean), all gates of all taps
    opening together from 0 to 1; a channel's score is the integral of the derivative of the
    class's log-probability by its gate, by ``STEPS`` midpoints. All scores sum to what the whole
    network says more of the class than the means alone do. One pass at open gates, as
    ``departure`` takes it, does not see what a channel does once most others are at their means.
    """
    model, image = reading.model, reading.image.to(reading.model.device)
    total = {tap: torch.zeros_like(mean) for tap, mean in means.items()}
    for step in range(STEPS):
        opened = (step + 0.5) / STEPS
        gates = {tap: torch.full_like(means[tap], opened, requires_grad=True) for tap in model.taps}
        changes = {tap: _gated(gate, means[tap]) for tap, gate in gates.items()}
        with torch.enable_grad(), taps.replace(model.module, changes):
            said = model(image).log_softmax(1)[0, reading.label]
        slopes = torch.autograd.grad(said, list(gates.values()), materialize_grads=True)
        for tap, slope in zip(gates, slopes, strict=True):
            total[tap] += slope / STEPS
    return {tap: total[tap] for tap in model.taps}


def _gated(gate: Tensor, mean: Tensor) -> Callable[[Tensor], Tensor]:
    def change(output: Tensor) -> Tensor:
        level, share = (v.reshape(1, -1, *(1,) * (output.ndim - 2)) for v in (mean, gate))
        return level + share * (output - level)

    return change
