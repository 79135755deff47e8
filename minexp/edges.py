"""Scores of the edges between two layers' channels, and from the last layer to the class."""

from collections.abc import Sequence

import torch
from torch import Tensor

from minexp.channels import Reading, attribution, energy, maps
from minexp.tracing import Traced
from minexp.transfer import matrices, transfer

EDGES = ("structural", "gradient", "cross_layer", "logit", "departure")
BACKWARD = ("cross_layer", "logit")  # these need no weights, so no traceable network; nor does
DEPARTURE = "departure"  # this one, but the channels' means over other images


def weighted(reading: Reading, traced: Traced, source: str, destination: str) -> dict[str, Tensor]:
    """Section 3.3's two scores of all edges of two taps, each (C_d, C_s).

    ``structural`` w(s -> d) = ||W_{d,s}||_1 E_s, the weights composed along the graph where no
    single convolution joins the taps; ``gradient``: the same times the gradient's norm at d.
    """
    weights = transfer(traced, source, destination)
    structural = weights * energy(reading.activations[source].detach())[0]
    slope = energy(reading.gradients[destination])[0]  # (C_d,)
    return {"structural": structural, "gradient": structural * slope[:, None]}


def backward(
    reading: Reading,
    source: str,
    destination: str,
    channels: Sequence[int],
    mean: Tensor | None = None,
) -> dict[str, Tensor]:
    """The scores that a backward pass a destination channel gives, each (len(channels), C_s).

    - ``cross_layer``: |a_s| |d a_d / d a_s| (Rajaram et al., 2024), the destination summed over its
      positions, the product over the source's.
    - ``logit``: a_s times the gradient of the part of the logit's first order that goes through d,
      sum_p (d y / d a_d) a_d, with d y / d a_d held fixed; with its sign.
    - ``departure``, where the source's ``mean`` (C_s,) over other images is given: the same with
      a_s less its mean in place of a_s, to first order what the logit loses when the edge carries
      the mean (edge attribution patching; Syed et al., 2023).
    """
    output, start = reading.activations[destination], reading.activations[source]
    slope = reading.gradients[destination]
    names = BACKWARD if mean is None else (*BACKWARD, DEPARTURE)
    rows: dict[str, list[Tensor]] = {name: [] for name in names}
    value = maps(start.detach())[0]  # (C_s, positions)
    for channel in channels:
        target = maps(output)[0, channel]
        for name, weight in (("cross_layer", None), ("logit", maps(slope)[0, channel])):
            total = target.sum() if weight is None else (target * weight).sum()
            (found,) = torch.autograd.grad(total, start, retain_graph=True, allow_unused=True)
            gradient = torch.zeros_like(value) if found is None else maps(found)[0]
            product = value * gradient
            rows[name].append(product.abs().sum(1) if weight is None else product.sum(1))
            if weight is not None and mean is not None:
                rows[DEPARTURE].append(((value - mean[:, None]) * gradient).sum(1))
    return {
        name: torch.stack(found) if found else value.new_zeros(0, len(value))
        for name, found in rows.items()
    }


def to_class(
    reading: Reading, traced: Traced | None, source: str, mean: Tensor | None = None
) -> dict[str, Tensor]:
    """Scores of the edges from the last tap's channels to the class, each (C_s,).

    ``structural`` is |W_{y,j}| |h_j| (section 3.3), h the last features in which each belongs to
    one channel of ``source``, W the absolute weights composed from there to the logit, summed over
    a channel's features; ``gradient`` the same times |d y / d h_j|; ``logit`` activation times
    gradient with its sign, ``cross_layer`` its absolute value position by position; ``departure``
    as ``logit``, of the activation less its ``mean`` (C_s,).
    """
    activation, slope = reading.activations[source].detach(), reading.gradients[source]
    products = maps(activation)[0] * maps(slope)[0]  # (C_s, positions)
    found = {"cross_layer": products.abs().sum(1), "logit": attribution(activation, slope)[0]}
    if mean is not None:
        found[DEPARTURE] = ((maps(activation)[0] - mean[:, None]) * maps(slope)[0]).sum(1)
    if traced is None:
        return found
    features, owners, weights = _features(traced, source, reading.label)
    structural = weights * features.abs()  # (F,)
    if len(features) == products.numel():  # flattened: a feature a position
        sensitivity = maps(slope)[0].flatten().abs()
    else:  # pooled: the sum over positions is what the feature itself would receive
        sensitivity = maps(slope)[0].sum(1).abs()[owners]
    for name, score in (("structural", structural), ("gradient", structural * sensitivity)):
        found[name] = torch.zeros_like(found["logit"]).index_add_(0, owners, score)
    return found


def _features(traced: Traced, source: str, label: int) -> tuple[Tensor, Tensor, Tensor]:
    """h (F,), the channel that each belongs to (F,), and its absolute weight to the logit (F,)."""
    start, end = traced.taps[source], traced.output
    found = matrices(traced, start, end)
    node, owned = start, found[start]
    for other, matrix in found.items():
        value = traced.values[other]
        single = bool(((matrix != 0).sum(1) == 1).all() and (matrix.sum(1) == 1).all())
        if single and matrix.any(0).all() and value.numel() == len(matrix):
            node, owned = other, matrix
    features = traced.values[node].detach().flatten()
    if len(features) != len(owned):  # no pooling before the weights: a channel's mean
        features = maps(traced.values[node].detach())[0].mean(1)
    weights = matrices(traced, node, end)[end][label] if node is not end else None
    owners = owned.argmax(1)
    if weights is None:  # the tap is the logits themselves
        weights = (torch.arange(len(owned), device=owners.device) == label).to(features)
    return features, owners, weights
