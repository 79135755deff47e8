"""Does a map depend on what the network learnt? Layers lose it one after the other, from the last.

The cascading randomisation of Adebayo et al., "Sanity checks for saliency maps" (NeurIPS
2018), but a layer's own weights are shuffled, not drawn anew: it keeps their distribution
and loses only their order. A map that stays the same while the layers go explains no decision of
the network.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from scipy import stats
from skimage.metrics import structural_similarity
from torch import Tensor, nn

from minexp import metrics, taps
from minexp.classifier import Classifier
from minexp.errors import InputError
from minexp.robustness import dice

TOP = 0.1  # of all pixels: the first-ranked ones of two maps are compared as masks
SIMILARITIES = ("spearman", "ssim", "dice")


def layers(model: Classifier, image: Tensor) -> dict[str, list[str]]:
    """Layer -> its parameters' names, from the one that runs first on ``image`` to the last.

    A layer is a submodule that holds parameters itself. What does not run by itself belongs to the
    module around it, and what the whole network holds (a position embedding) to "", the first.
    """
    ran = {name: None for name, _, _ in reversed(taps.trace(model.module, image))}
    found: dict[str, list[str]] = {name: [] for name in ("", *reversed(ran))}
    for parameter, _ in model.module.named_parameters():
        owner = parameter.rpartition(".")[0]
        while owner and owner not in ran:
            owner = owner.rpartition(".")[0]
        found[owner].append(parameter)
    return {name: names for name, names in found.items() if names}


def cascade(
    model: Classifier, image: Tensor, *, stages: int, seed: int
) -> Iterator[tuple[int, str, Classifier]]:
    """The network with ever more layers shuffled, the last one first: (how many, which last, it).

    ``stages`` of them (fewer where there are fewer layers), evenly spread from one layer to all.
    They share one copy, so each must be used before the next is asked for; ``model`` stays as it
    is. Each tensor of a layer is permuted within itself by ``seed``. Raises InputError for
    ``stages`` < 1.
    """
    if stages < 1:
        raise InputError(f"stages={stages}: expected an integer >= 1")
    order = list(layers(model, image).items())[::-1]
    wanted = set(np.linspace(1, len(order), stages).round().astype(int).tolist())
    shuffled = replace(model, module=copy.deepcopy(model.module), weights_sha256=None)
    generator = torch.Generator().manual_seed(seed)
    for count, (layer, names) in enumerate(order, 1):
        _shuffle(shuffled.module, names, generator)
        if count in wanted:
            yield count, layer, shuffled


@torch.no_grad()
def _shuffle(module: nn.Module, names: Sequence[str], generator: torch.Generator) -> None:
    """Permute the values of each named parameter, in place."""
    for name in names:
        values = module.get_parameter(name)
        order = torch.randperm(values.numel(), generator=generator).to(values.device)
        values.copy_(values.flatten()[order].view_as(values))


def similarities(first: Tensor, second: Tensor) -> dict[str, float | None]:
    """Of two finite maps (1, 1, H, W): ``spearman``, ``ssim`` and ``dice``.

    Spearman's rank correlation over the pixels, -1 to 1, of binary masks the phi coefficient; None
    where a map is constant and ranks nothing. The structural similarity of Wang et al. (IEEE TIP
    2004), mean over windows of 7 x 7 pixels, of the maps scaled to [0, 1]. Dice of two masks of 0
    and 1, else of the first :data:`TOP` of all pixels of each.
    """
    a, b = (one[0, 0].detach().cpu().double().numpy() for one in (first, second))
    constant = np.ptp(a) == 0 or np.ptp(b) == 0
    masks = all(((one == 0) | (one == 1)).all() for one in (first, second))
    pair = (first, second) if masks else (metrics.top(first, TOP), metrics.top(second, TOP))
    return {
        "spearman": None if constant else float(stats.spearmanr(a.ravel(), b.ravel()).statistic),
        "ssim": float(structural_similarity(_scaled(a), _scaled(b), data_range=1.0)),
        "dice": dice(*pair),
    }


def _scaled(values: np.ndarray) -> np.ndarray:
    """To [0, 1]; a constant map becomes 0."""
    return (values - values.min()) / (np.ptp(values) or 1.0)


def chance_dice(first: float, second: float) -> float:
    """The Dice of two masks of these areas that have nothing to do with each other: the overlap
    that is expected, first x second of the pixels, counted as Dice does; 0 if both are empty."""
    return 2 * first * second / (first + second) if first + second else 0.0
