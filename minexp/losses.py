"""The seven losses of paper 000, sections 3.1 and 3.2: one pure function an equation.

Each returns an unweighted scalar >= 0 that is minimised; the weights (lambdas) live in
:class:`minexp.config.LossWeights`, and :func:`total` is the sum one can see. Where the paper
sums over pixels we take the mean, so that a weight means the same at every image size; the
docstring gives the paper's form.
"""

from collections.abc import Mapping
from typing import cast

import torch.nn.functional as F
from torch import Tensor

from minexp.config import LossWeights


def activation(
    reference: Mapping[str, Tensor],
    explained: Mapping[str, Tensor],
    tap_weights: Mapping[str, float] | None = None,
) -> Tensor:
    r"""L_act = sum_l alpha_l d(phi_l(x), phi_l(e)) (section 3.1.1).

    Maps ``(N, C, h, w)`` take d = mean squared error; vectors ``(N, D)`` and tokens
    ``(N, T, D)`` take d = 1 - cosine similarity along the last dimension, averaged.

    Args:
        reference: activations of the image, per tap.
        explained: activations of the masked image, same taps and shapes.
        tap_weights: alpha per tap; a tap not named counts 1.

    Raises:
        ValueError: the two sides differ in taps or shapes, or a weight names no tap.
    """
    alphas = dict.fromkeys(reference, 1.0) | dict(tap_weights or {})
    if reference.keys() != explained.keys() or alphas.keys() != reference.keys():
        raise ValueError(
            f"taps differ: {sorted(reference)} against {sorted(explained)}, "
            f"weights for {sorted(alphas)}"
        )
    terms = (alphas[tap] * _distance(reference[tap], explained[tap]) for tap in reference)
    return cast(Tensor, sum(terms))


def _distance(a: Tensor, b: Tensor) -> Tensor:
    if a.shape != b.shape:
        raise ValueError(f"activation shapes differ: {tuple(a.shape)} against {tuple(b.shape)}")
    if a.ndim == 4:  # (N, C, h, w)
        return F.mse_loss(b, a)
    return (1 - F.cosine_similarity(a, b, dim=-1)).mean()  # (N, D) or (N, T, D)


def label(logits: Tensor, y: int) -> Tensor:
    r"""L_CE = -log p_{f(e)}(y) (section 3.1.1). ``logits`` (N, K) of the masked image; nats."""
    return -logits.log_softmax(dim=1)[:, y].mean()


def distribution(reference_logits: Tensor, logits: Tensor) -> Tensor:
    r"""L_KL = D_KL(softmax f(x) || softmax f(e)) (section 3.1.1). Both (N, K); nats.

    The image's distribution comes first: what it finds likely must stay likely.
    """
    log_p, log_q = reference_logits.log_softmax(dim=1), logits.log_softmax(dim=1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=1).mean()


def area(mask: Tensor) -> Tensor:
    r"""L_area = mean |m| (section 3.1.2; the paper's form is the sum, ||m||_1).

    ``mask`` (N, 1, H, W) with values in [0, 1].
    """
    return mask.abs().mean()


def binarization(mask: Tensor) -> Tensor:
    r"""L_bin = mean |m - m^2| (section 3.1.2; the paper's form is the sum, ||m - m^2||_1).

    Zero exactly when every value of ``mask`` (N, 1, H, W) is 0 or 1, at most 1/4.
    """
    return (mask - mask**2).abs().mean()


def total_variation(mask: Tensor) -> Tensor:
    r"""L_tv = (1/HW) sum_ij |m_ij - m_i+1,j| + |m_ij - m_i,j+1| (section 3.1.2).

    The paper's form is the sum. Anisotropic: for a binary ``mask`` (N, 1, H, W) it is the length
    of the mask's outline, in
    pixel edges inside the image, over the number of pixels. Halves when the side doubles.
    """
    vertical = (mask[..., 1:, :] - mask[..., :-1, :]).abs().sum()
    horizontal = (mask[..., :, 1:] - mask[..., :, :-1]).abs().sum()
    return (vertical + horizontal) / mask.numel()


def robustness(noise_logits: Tensor, y: int) -> Tensor:
    r"""L_rob = -log p_{f(m x + (1 - m) r)}(y), r Gaussian (section 3.1.3). Nats.

    ``noise_logits`` (N, K): the logits of N noise-filled images, averaged over.
    """
    return label(noise_logits, y)


def total(terms: Mapping[str, Tensor], weights: LossWeights) -> Tensor:
    r"""L_EXP = L_AM + L_MIN + lambda_rob L_rob (section 3.2), every term under its own name."""
    return sum(getattr(weights, name) * term for name, term in terms.items())
