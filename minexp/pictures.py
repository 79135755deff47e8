"""One picture or one mask on an axes: what the other modules of plots share."""

from matplotlib.axes import Axes
from torch import Tensor


def show_image(ax: Axes, pixels: Tensor, title: str = "") -> Axes:
    """A picture (1, C, H, W) with values in [0, 1]; one channel is drawn in grey."""
    array = pixels[0].permute(1, 2, 0).cpu().numpy()  # (H, W, C)
    if array.shape[-1] == 1:
        return _bare(ax.imshow(array[..., 0], cmap="gray", vmin=0, vmax=1).axes, title)
    return _bare(ax.imshow(array).axes, title)


def show_mask(ax: Axes, mask: Tensor, title: str = "") -> Axes:
    """A binary mask (1, 1, H, W): on is white, as in the paper's Figure 2."""
    return _bare(ax.imshow(mask[0, 0].cpu().numpy(), cmap="gray", vmin=0, vmax=1).axes, title)


def _bare(ax: Axes, title: str) -> Axes:
    ax.set_title(title)
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(True)
        spine.set_linewidth(0.4)
    return ax
