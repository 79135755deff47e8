"""A result on disk, judged anew from its image, its mask and its model."""

import math
from pathlib import Path

from torch import Tensor

from minexp.config import ExplainConfig, LossWeights
from minexp.errors import InputError
from minexp.minimality import certify
from minexp.models import load_model
from minexp.references import beside, open_reference
from minexp.results import certificate_json, read_mask, read_result
from minexp.sufficiency import Judge, check_mask

TOLERANCE = 1e-4  # of every recomputed number but the area, which one pixel must change
MOST_DRAWS = 100_000
NUMBERS = ("confidence", "explanation_confidence", "label_kept", "feasible", "area", "components")


def verify(path: Path) -> list[str]:
    """Recompute every reported number from image, mask and model by plain forward passes.

    What describes the search and not the mask cannot be recomputed: ``seconds``,
    ``forward_passes`` and ``versions``; ``steps``, ``seed`` and ``backward_passes`` must agree
    with ``config``, ``label_index`` with the label asked for or, if none was, with the decision.

    Returns:
        What differs by more than 1e-4, in words; empty if the result holds.

    Raises:
        InputError: a file is missing or is not the one the result was made from.
    """
    result, mask = read_result(path), read_mask(path)
    model = load_model(result["model"])
    if model.weights_sha256 != result["weights_sha256"]:
        raise InputError(f"{path}: made with other weights of {result['model']} than are here")
    image, digest = open_reference(beside(path, result["image"]["path"]), model)
    if digest != result["image"]["sha256"]:
        raise InputError(f"{path}: {result['image']['path']} is not the image it was made from")
    if mask.shape[-2:] != image.shape[-2:]:
        raise InputError(f"{path}: the mask's size {tuple(mask.shape[-2:])} is not the image's")
    if not 0 <= result["label_index"] < len(model.class_names):
        raise InputError(f"{path}: label_index {result['label_index']} is no class of {model.name}")
    reported, config = _numbers(result), read_config(result)
    draws = result["robustness"]["gaussian"]["draws"]
    if type(draws) is not int or not 1 <= draws <= MOST_DRAWS:
        raise InputError(f"{path}: {draws!r} draws; expected an integer from 1 to {MOST_DRAWS}")
    label = result["label_index"]
    check = check_mask(model, image, mask, label, draws=draws)
    judge = Judge(model, image, label, config)
    feasible = judge.feasible(mask)
    recomputed = {
        "label": model.class_names[label],
        "decision_index": int(model(image).argmax()),
        "confidence": check.confidence,
        "explanation_confidence": check.explanation_confidence,
        "label_kept": check.label_kept,
        "feasible": feasible,
        "area": check.area,
        "components": check.components,
        "gaussian kept": check.noise_kept,
    }
    differences = [
        f"{name}: reported {reported[name]}, recomputed {value}"
        for name, value in recomputed.items()
        if not _same(reported[name], value, 0 if name == "area" else TOLERANCE)
    ]
    if feasible and config.minimal:
        differences += _certificate(result["minimality"], judge, mask)
    elif result["minimality"] is not None:
        differences.append("minimality: reported, but no certificate is due")
    return differences + _bookkeeping(result, config)


def _certificate(reported: dict | None, judge: Judge, mask: Tensor) -> list[str]:
    """What of the certificate does not hold when every cell is switched off anew."""
    if not isinstance(reported, dict):
        return ["minimality: a certificate is due, none is reported"]
    recomputed = certificate_json(certify(judge, mask, judge.config.deleted))
    cells = recomputed.pop("cells")
    differences = [
        f"minimality {name}: reported {reported.get(name)}, recomputed {value}"
        for name, value in recomputed.items()
        if reported.get(name) != value
    ]
    if not _same_cells(reported.get("cells"), cells):
        differences.append("minimality cells: not what remains without each of them")
    return differences


def _same_cells(reported: object, recomputed: list[list]) -> bool:
    if not isinstance(reported, list) or len(reported) != len(recomputed):
        return False
    return all(
        isinstance(one, list)
        and len(one) == len(other)
        and all(_same(a, b, TOLERANCE) for a, b in zip(one, other, strict=True))
        for one, other in zip(reported, recomputed, strict=True)
    )


def _bookkeeping(result: dict, config: ExplainConfig) -> list[str]:
    asked = result["label_asked"]
    expected = {
        "label_index": result["decision_index"] if asked is None else asked,
        "steps": config.steps,
        "seed": config.seed,
        "backward_passes": 2 * config.steps,
    }
    return [
        f"{name}: reported {result[name]}, expected {value}"
        for name, value in expected.items()
        if result[name] != value
    ]


def _numbers(result: dict) -> dict:
    return {name: result[name] for name in ("label", "decision_index", *NUMBERS)} | {
        "gaussian kept": result["robustness"]["gaussian"]["kept"]
    }


def _same(reported: object, recomputed: object, tolerance: float) -> bool:
    if isinstance(recomputed, float) and isinstance(reported, int | float):
        return math.isclose(reported, recomputed, rel_tol=1e-6, abs_tol=tolerance)
    return reported == recomputed


def read_config(result: dict) -> ExplainConfig:
    """The configuration a result was made with."""
    try:
        stored = dict(result["config"])
        return ExplainConfig(weights=LossWeights(**stored.pop("weights")), **stored)
    except (TypeError, KeyError, ValueError) as error:
        raise InputError(f"the result's config is not one of this version ({error})") from error
