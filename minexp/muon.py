"""Muon (Jordan, 2024), in float32 and for convolutions as well.

torch's own takes matrices only and computes in bfloat16, as timm's does, which a processor without
bfloat16 units emulates: there an update costs as much as the step that it follows.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic that sends singular values towards 1
STEPS = 4  # one less than Jordan's: the singular values still end between 0.6 and 1.2


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised; kernels (out, in, h, w) count as (out, in h w).

    An update has the root mean square of AdamW's, 0.2 (Liu et al., "Muon is scalable for LLM
    training", 2025, section 2.2), so that one learning rate serves both; weight decay is decoupled.

    Args:
        params: parameters of two or more dimensions.
        lr: learning rate.
        momentum: of the Nesterov kind.
        weight_decay: the share of a weight, times ``lr``, that a step takes off.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # torch's may take a closure as well
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                mean = state.setdefault("momentum_buffer", torch.zeros_like(p))
                mean.lerp_(p.grad, 1 - group["momentum"])
                update = orthogonal(p.grad.lerp(mean, group["momentum"]).flatten(1))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                size = 0.2 * max(update.shape) ** 0.5
                p.add_(update.view(p.shape), alpha=-group["lr"] * size)


def orthogonal(matrix: Tensor) -> Tensor:
    """About U V' of the matrix U S V' (m, n), by the Newton-Schulz iteration."""
    a, b, c = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp_min(1e-7)
    for _ in range(STEPS):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x.T if tall else x
