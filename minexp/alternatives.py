"""Beyond one mask: the confidence an area can buy, and explanations that share no pixel."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from minexp.classifier import Classifier
from minexp.config import ExplainConfig, default_preset, preset
from minexp.errors import InputError
from minexp.explain import Explanation, explain
from minexp.minimality import active_cells, cell_side, without_cells
from minexp.sufficiency import Judge


@dataclass(frozen=True)
class Curve:
    """The best confidence known at each area: ``areas`` ascending in [0, 1], ``confidences``
    never falling, both (P,); ``auc``, the area under these steps, from 0 to 1."""

    areas: np.ndarray
    confidences: np.ndarray
    auc: float


def confidence_area_curve(model: Classifier, image: Tensor, explanation: Explanation) -> Curve:
    """The confidence-area curve of an image from its one run.

    Every mask seen in the search is a point; below the area of the mask found, its cells are
    taken away one by one, the least needed first by its certificate (one forward pass each; none
    where there is no certificate). The curve is the upper envelope of these points and of the
    whole image: at an area a, the highest confidence any known mask of at most a reached.
    """
    points = [(record["area"], record["confidence"]) for record in explanation.history]
    points += [(explanation.area, explanation.explanation_confidence)]
    points += [*_dwindling(model, image, explanation), (1.0, explanation.confidence)]
    return envelope(points)


def envelope(points: list[tuple[float, float]]) -> Curve:
    """The steps above points (area, confidence); confidence 0 below the smallest area."""
    areas, confidences = np.array(sorted(points)).T
    confidences = np.maximum.accumulate(confidences)
    widths = np.diff(np.append(areas, 1.0))
    return Curve(areas, confidences, float((confidences * widths).sum()))


def _dwindling(
    model: Classifier, image: Tensor, explanation: Explanation
) -> list[tuple[float, float]]:
    certificate = explanation.certificate
    if certificate is None or certificate.active < 2:
        return []
    cells = sorted(certificate.cells, key=lambda cell: -cell.confidence)[:-1]
    places = [(cell.row, cell.column) for cell in cells]
    judge = Judge(model, image.to(model.device), explanation.label, explanation.config)
    masks = [
        without_cells(explanation.mask, places[:count], certificate.cell)
        for count in range(1, len(places) + 1)
    ]
    return [(mask.mean().item(), float(judge.on_fill(mask)[1])) for mask in masks]


def disjoint(
    model: Classifier,
    image: Tensor,
    config: ExplainConfig | None = None,
    *,
    most: int = 3,
    budget: float = 0.3,
    label: int | None = None,
    search: Callable[..., Explanation] = explain,
) -> list[Explanation]:
    """Up to ``most`` explanations of one image, each sufficient alone, no two sharing a cell.

    Each search may use only the cells that no earlier explanation has. It ends at the first that
    is not feasible or whose area exceeds ``budget`` (of all pixels). How many there are says how
    redundant the evidence is (paper 000, figure 6: two otters, two explanations); the greedy
    order gives a lower bound of the number that exist. ``search``: called as
    :func:`minexp.explain` is; :func:`minexp.cache.explained` remembers what it found.

    Raises:
        InputError: ``most`` < 1 or ``budget`` not in (0, 1]; what :func:`minexp.explain` raises.
    """
    if most < 1 or not 0 < budget <= 1:
        raise InputError(f"most={most}, budget={budget}: expected most >= 1, 0 < budget <= 1")
    config = config or preset(default_preset(model.size, len(model.mean)))
    cell = cell_side(model, config.deleted)
    allowed = torch.ones(1, 1, *model.size, device=model.device)
    found: list[Explanation] = []
    while len(found) < most and allowed.any():
        explanation = search(model, image, config, label=label, allowed=allowed)
        if not explanation.feasible or explanation.area > budget:
            break
        found.append(explanation)
        label = explanation.label  # of the image; the same for all
        allowed = without_cells(allowed, active_cells(explanation.mask, cell), cell)
    return found
