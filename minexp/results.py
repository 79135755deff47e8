"""One explanation on disk: ``<stem>.json``, ``<stem>.mask.png``, ``<stem>.explanation.png``.

The JSON is written last and every file only under its final name once complete, so a result
whose JSON exists is whole. An image is named by a reference: a path, ``bundled:coffee`` or
``mnist:4711``.
"""

import hashlib
import json
import math
import platform
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from minexp import images, mnist, samples
from minexp.config import ExplainConfig, LossWeights
from minexp.errors import InputError, RunError
from minexp.explain import Explanation, explain
from minexp.masking import apply_mask
from minexp.models import Classifier, load_model
from minexp.paths import ROOT, replacing, write_text
from minexp.sufficiency import Check, check_mask, is_feasible

SCHEMA = "minexp/1"
TOLERANCE = 1e-4  # of every recomputed number
# the files a mask depends on
CODE = (
    "images",
    "mnist",
    "models",
    "taps",
    "masking",
    "masknet",
    "losses",
    "sufficiency",
    "explain",
)
NUMBERS = ("confidence", "explanation_confidence", "label_kept", "feasible", "area", "components")


def open_reference(reference: str, model: Classifier) -> tuple[Tensor, str]:
    """The model's input (1, C, H, W) for an image reference, and the sha256 of its bytes.

    Raises:
        InputError: no such picture, or one that ``images.read_image`` refuses.
    """
    kind, _, name = reference.partition(":")
    if kind == "mnist":
        pixels, _ = mnist.digits()
        if not name.isdecimal() or int(name) >= len(pixels):
            raise InputError(f"{reference!r}: expected mnist:0 to mnist:{len(pixels) - 1}")
        digit = pixels[int(name)]
        picture = Image.fromarray(np.round(digit * 255).astype(np.uint8)).convert("RGB")
        return model.preprocess(picture), hashlib.sha256(digit.tobytes()).hexdigest()
    path = locate(reference)
    return images.load_image(path, model), images.sha256(path)


def locate(reference: str) -> Path:
    """The file behind a reference that is a path or ``bundled:NAME``. Raises InputError."""
    kind, _, name = reference.partition(":")
    if kind != "bundled":
        return Path(reference)
    bundled = samples.bundled_images()
    if name not in bundled:
        raise InputError(f"{reference!r}: no such bundled picture; there are: {', '.join(bundled)}")
    return bundled[name]


def stem(reference: str) -> str:
    """The name a result's files share: the file's stem, or the reference's with a dash."""
    special = reference.partition(":")[0] in ("bundled", "mnist")
    return reference.replace(":", "-") if special else Path(reference).stem


@cache
def code_digest() -> str:
    """sha256 over the sources a mask depends on: other code, another result."""
    sources = [(ROOT / "minexp" / f"{name}.py").read_bytes() for name in CODE]
    return hashlib.sha256(b"\0".join(sources)).hexdigest()


def explain_to_files(
    reference: str,
    model: Classifier,
    config: ExplainConfig,
    out: Path,
    *,
    force: bool = False,
    on_step: Callable[[dict[str, float]], None] | None = None,
) -> tuple[dict, bool]:
    """Explain one image and write its result; a finished one with the same inputs is kept.

    Returns:
        The result's dict and whether it was made now.

    Raises:
        InputError: the image cannot be read.
        RunError: the files cannot be written.
    """
    image, digest = open_reference(reference, model)
    path = out / f"{stem(reference)}.json"
    inputs = {
        "image_sha256": digest,
        "model": model.name,
        "weights_sha256": model.weights_sha256,
        "config": _as_json(config),
        "code_sha256": code_digest(),
    }
    if not force and (found := _finished(path, inputs)) is not None:
        return found, False
    explanation = explain(model, image, config, on_step=on_step)
    check = check_mask(model, image, explanation.mask, explanation.label)
    result = _result(reference, digest, model, explanation, check)
    try:
        _write(path, result, explanation, model)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}; then run again") from error
    return result, True


def _as_json(config: ExplainConfig) -> dict:
    return json.loads(json.dumps(asdict(config)))


def _finished(path: Path, inputs: dict) -> dict | None:
    """The result at ``path`` if it is whole and comes from exactly these inputs."""
    try:
        result = read_result(path)
        read_mask(path)
    except InputError:
        return None
    known = {
        "image_sha256": result["image"]["sha256"],
        "model": result["model"],
        "weights_sha256": result["weights_sha256"],
        "config": result["config"],
        "code_sha256": result["versions"]["code_sha256"],
    }
    return result if known == inputs else None


def _result(
    reference: str, digest: str, model: Classifier, explanation: Explanation, check: Check
) -> dict:
    return {
        "schema": SCHEMA,
        "image": {"path": reference, "sha256": digest},
        "model": model.name,
        "weights_sha256": model.weights_sha256,
        "label_index": explanation.label,
        "label": explanation.label_name,
        "confidence": check.confidence,
        "explanation_confidence": check.explanation_confidence,
        "label_kept": check.label_kept,
        "feasible": explanation.feasible,
        "area": check.area,
        "components": check.components,
        "robustness": {"gaussian": {"kept": check.noise_kept, "draws": check.noise_draws}},
        "minimality": None,  # no certificate has been asked for
        "steps": explanation.config.steps,
        "forward_passes": explanation.forward_passes,
        "backward_passes": explanation.backward_passes,
        "seconds": round(explanation.seconds, 3),
        "seed": explanation.config.seed,
        "config": _as_json(explanation.config),
        "versions": {
            **{name: version(name) for name in ("minexp", "torch", "timm", "numpy", "pillow")},
            "python": platform.python_version(),
            "code_sha256": code_digest(),
        },
    }


def _write(path: Path, result: dict, explanation: Explanation, model: Classifier) -> None:
    mask = explanation.mask[0, 0].cpu().numpy().astype(bool)  # (H, W)
    with replacing(path.with_name(f"{path.stem}.mask.png")) as partial:
        Image.fromarray(mask).save(partial, format="PNG")  # 1 bit a pixel
    pixels = model.to_pixels(explanation.masked)[0].permute(1, 2, 0).cpu().numpy()  # (H, W, C)
    picture = np.round(pixels * 255).astype(np.uint8)
    with replacing(path.with_name(f"{path.stem}.explanation.png")) as partial:
        Image.fromarray(picture.squeeze()).save(partial, format="PNG")
    write_text(path, json.dumps(result, indent=2) + "\n")


def read_result(path: Path) -> dict:
    """A result's dict. Raises InputError if the file is no whole result of this schema."""
    try:
        result = json.loads(Path(path).read_text(encoding="utf-8"))
        if result["schema"] != SCHEMA or result.keys() < {"image", "config", "versions"}:
            raise ValueError(f"schema {result['schema']!r}")
        return result
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path}: not a result of schema {SCHEMA} ({error})") from error


def read_mask(path: Path) -> Tensor:
    """The mask (1, 1, H, W) beside a result's JSON. Raises InputError if it cannot be read."""
    path = path.with_name(f"{path.stem}.mask.png")
    try:
        with Image.open(path) as picture:
            mask = np.array(picture.convert("1"), dtype=np.float32)
    except (OSError, SyntaxError) as error:
        raise InputError(f"{path}: no readable mask ({error}); explain the image again") from error
    return torch.from_numpy(mask)[None, None]


def read_row(path: Path, model: Classifier) -> dict:
    """A result with its pictures.

    ``pixels`` and ``masked`` (1, C, H, W) in [0, 1], and ``mask``.
    """
    result, mask = read_result(path), read_mask(path)
    image, _ = open_reference(_beside(path, result["image"]["path"]), model)
    masked = model.to_pixels(apply_mask(image, mask))
    return {**result, "pixels": model.to_pixels(image), "masked": masked, "mask": mask}


def summary(row: dict) -> dict:
    """The numbers of a result that a table shows."""
    names = ("label", "confidence", "explanation_confidence", "area", "components", "feasible")
    gaussian = row["robustness"]["gaussian"]
    image = row["image"]["path"].removeprefix("bundled:")
    return {"image": image, **{name: row[name] for name in names}, "noise_kept": gaussian["kept"]}


def read_config(result: dict) -> ExplainConfig:
    """The configuration a result was made with."""
    try:
        stored = dict(result["config"])
        return ExplainConfig(weights=LossWeights(**stored.pop("weights")), **stored)
    except (TypeError, KeyError) as error:
        raise InputError(f"the result's config is not one of this version ({error})") from error


def verify(path: Path) -> list[str]:
    """Recompute every reported number from image, mask and model by plain forward passes.

    Returns:
        What differs by more than 1e-4, in words; empty if the result holds.

    Raises:
        InputError: a file is missing or is not the one the result was made from.
    """
    result, mask = read_result(path), read_mask(path)
    model = load_model(result["model"])
    if model.weights_sha256 != result["weights_sha256"]:
        raise InputError(f"{path}: made with other weights of {result['model']} than are here")
    image, digest = open_reference(_beside(path, result["image"]["path"]), model)
    if digest != result["image"]["sha256"]:
        raise InputError(f"{path}: {result['image']['path']} is not the image it was made from")
    if mask.shape[-2:] != image.shape[-2:]:
        raise InputError(f"{path}: the mask's size {tuple(mask.shape[-2:])} is not the image's")
    reported = _numbers(result)
    draws = result["robustness"]["gaussian"]["draws"]
    label = result["label_index"]
    check = check_mask(model, image, mask, label, draws=draws)
    recomputed = {
        "label": model.class_names[label],
        "confidence": check.confidence,
        "explanation_confidence": check.explanation_confidence,
        "label_kept": check.label_kept,
        "feasible": is_feasible(model, image, mask, label, read_config(result)),
        "area": check.area,
        "components": check.components,
        "gaussian kept": check.noise_kept,
    }
    return [
        f"{name}: reported {reported[name]}, recomputed {value}"
        for name, value in recomputed.items()
        if not _same(reported[name], value)
    ]


def _numbers(result: dict) -> dict:
    return {name: result[name] for name in ("label", *NUMBERS)} | {
        "gaussian kept": result["robustness"]["gaussian"]["kept"]
    }


def _same(reported: object, recomputed: object) -> bool:
    if isinstance(recomputed, float) and isinstance(reported, int | float):
        return math.isclose(reported, recomputed, rel_tol=0, abs_tol=TOLERANCE)
    return reported == recomputed


def _beside(path: Path, reference: str) -> str:
    """The reference as written, or the file of that name beside the result if it moved along."""
    moved = Path(path).parent / Path(reference).name
    special = reference.partition(":")[0] in ("bundled", "mnist")
    return reference if special or Path(reference).exists() or not moved.exists() else str(moved)
