"""Where a fast training begins (Jordan, "94% on CIFAR-10 in 3.29 seconds", 2024, section 3)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PICTURES, SMALLEST = 5000, 5e-2  # that the patches are taken from; what small variances count as


def whiten(module: nn.Module, x: Tensor) -> None:
    """Let the first convolution whiten its patches, and keep it from learning.

    Its filters become the eigenvectors of the patches' covariance, those of the largest variance
    first, each divided by its standard deviation; half of them, then the same with the sign
    changed, for the non-linearity lets only one side through. Where it has more filters than a
    patch has numbers twice, the rest stay as they are.

    Args:
        module: a network that begins with a convolution without groups.
        x: its normalised training pictures (N, C, H, W).
    """
    stem = next(m for m in module.modules() if isinstance(m, nn.Conv2d))
    filters, channels, *sides = stem.weight.shape
    kernel = tuple(sides)
    patches = F.unfold(x[:: max(1, len(x) // PICTURES)], kernel, stride=2).double()  # (N, C k k, L)
    covariance = torch.einsum("npl,nql->pq", patches, patches) / (len(patches) * patches.shape[2])
    variances, vectors = torch.linalg.eigh(covariance)  # ascending
    white = (vectors / (variances + SMALLEST).sqrt()).T.flip(0).view(-1, channels, *kernel)
    half = min(filters // 2, len(white))
    with torch.no_grad():
        stem.weight[: 2 * half] = torch.cat([white[:half], -white[:half]])
    stem.weight.requires_grad_(False)


def start_as_identity(module: nn.Module) -> None:
    """Let every 3 x 3 convolution pass its input on, as far as its filters reach.

    The first filters, one an input channel, become the identity; the rest stay random. Depthwise
    convolutions and the first one, of three input channels, are left alone.
    """
    for m in module.modules():
        if (
            isinstance(m, nn.Conv2d)
            and m.kernel_size == (3, 3)
            and m.groups == 1
            and m.in_channels > 3
        ):
            nn.init.dirac_(m.weight.data[: m.in_channels])
