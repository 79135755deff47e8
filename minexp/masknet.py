"""The lightweight U-Net that outputs a mask (paper 000, section 3.1)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class UNet(nn.Module):
    """Image -> soft mask, trained for one image from a seeded start; 491,840 parameters in all
    for a 224 x 224 colour image.

    The mask lives on a grid coarser than the image (56 x 56 under 224 x 224): one logit steers
    a 4 x 4 patch, logits are interpolated bilinearly and thresholded at the image's own
    resolution, so outlines are smooth curves, pixels cannot go one by one, and a step costs a
    sixteenth of a full-resolution network's. Digits are so small that their grid is the image's.

    The output layer's bias is untied: one number per grid cell instead of one for all. The
    convolutions give the mask the image's structure; the untied bias lets one cell change
    without dragging its look-alikes along, which the convolutions alone learn only slowly.

    Args:
        channels: of the image, C.
        size: of the image, (H, W).
        grid: side of the square grid of logits.
        width: channels at full grid resolution; doubled at each of the three levels below.
        mode: of interpolation from the grid to the image, "bilinear", or "nearest-exact": where
            the grid divides the size every cell is a square; plain "nearest" misses some edges.
    """

    def __init__(
        self,
        channels: int,
        size: tuple[int, int],
        grid: int,
        width: int = 16,
        mode: str = "bilinear",
    ):
        super().__init__()
        widths = [width, 2 * width, 4 * width, 8 * width]
        self.size, self.grid, self.mode = tuple(size), grid, mode
        self.down = nn.ModuleList(
            _block(i, o) for i, o in zip([channels, *widths[:-1]], widths, strict=True)
        )
        self.up = nn.ModuleList(
            _block(i + o, o) for i, o in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        self.head = nn.Conv2d(width, 1, 1, bias=False)
        self.bias = nn.Parameter(torch.ones(1, 1, grid, grid))
        nn.init.zeros_(self.head.weight)  # with the bias at 1 every mask starts all on: feasible

    def forward(self, image: Tensor) -> Tensor:
        """(1, C, H, W) normalised -> soft mask (1, 1, H, W) in (0, 1)."""
        return self.logits(image).sigmoid()

    def logits(self, image: Tensor) -> Tensor:
        """(1, C, H, W) normalised -> the soft mask's logits (1, 1, H, W)."""
        x = F.interpolate(image, size=(self.grid, self.grid), mode="area")
        skips = []
        for level, block in enumerate(self.down):
            # a grid of patches may be as small as 7 x 7: a single cell cannot be halved
            x = block(x if level == 0 or min(x.shape[-2:]) == 1 else F.max_pool2d(x, 2))
            skips.append(x)
        for block, skip in zip(self.up, skips[-2::-1], strict=True):
            x = F.interpolate(x, size=skip.shape[-2:], mode="nearest")
            x = block(torch.cat([x, skip], dim=1))
        logits = self.head(x) + self.bias  # (1, 1, grid, grid)
        return F.interpolate(logits, size=self.size, mode=self.mode)


def _block(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, padding=1),
        nn.GroupNorm(8, channels_out),
        nn.SiLU(),
        nn.Conv2d(channels_out, channels_out, 3, padding=1),
        nn.GroupNorm(8, channels_out),
        nn.SiLU(),
    )


def parameter_count(module: nn.Module) -> int:
    """How many numbers are trained."""
    return sum(parameter.numel() for parameter in module.parameters())
