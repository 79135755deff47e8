"""What stays, what goes, and what is painted where it went."""

import torch
from scipy import ndimage
from torch import Tensor

from minexp.classifier import Classifier


def apply_mask(image: Tensor, mask: Tensor, background: Tensor | float = 0.0) -> Tensor:
    """e = m x + (1 - m) r (sections 3.1 and 3.1.3); r = 0 gives the paper's explanation e = m x.

    ``image`` (N, C, H, W) normalised, ``mask`` (N, 1, H, W), ``background`` like ``image`` or
    a number. Zero is zero after normalisation: mid-grey for ImageNet networks, black for MNIST.
    """
    return mask * image + (1 - mask) * background


def binarize(soft: Tensor) -> Tensor:
    """Straight-through threshold at 0.5 (section 3.1.2): {0, 1} forward, identity backward."""
    hard = (soft > 0.5).to(soft.dtype)
    return hard + (soft - soft.detach())  # the bracket is exactly zero: forward stays binary


def gaussian_background(model: Classifier, draws: int, generator: torch.Generator) -> Tensor:
    """Gaussian noise r for the robustness constraint (section 3.1.3), (draws, C, H, W) normalised.

    Drawn per pixel and channel in pixel space, N(0.5, 0.25) clipped to [0, 1], then normalised,
    so that it means the same for every model. Drawn on the CPU, so that it is the same noise on
    every device, then moved to the model's.
    """
    shape = (draws, len(model.mean), *model.size)
    pixels = (0.5 + 0.25 * torch.randn(shape, generator=generator)).clamp(0, 1)
    return model.normalize(pixels).to(model.device)


def components(mask: Tensor) -> int:
    """How many 4-connected regions are on in a binary mask (1, 1, H, W)."""
    return int(ndimage.label(mask[0, 0].cpu().numpy())[1])
