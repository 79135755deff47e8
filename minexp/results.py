"""One explanation on disk: ``<stem>.json``, .mask.png, .explanation.png and .history.jsonl.

The JSON is written last and every file only under its final name once complete, so a result
whose JSON exists is whole. An image is named by a reference: a path, ``bundled:coffee`` or
``mnist:4711``.
"""

import json
import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from minexp import records
from minexp.classifier import Classifier
from minexp.config import ExplainConfig
from minexp.errors import InputError, RunError
from minexp.explain import Explanation, check_settings, explain
from minexp.masking import apply_mask
from minexp.minimality import Certificate
from minexp.paths import replacing, write_text
from minexp.references import beside, check_distinct, open_reference, stem
from minexp.sufficiency import Check, check_mask

SCHEMA = "minexp/2"  # 2: decision_index, label_asked
# the files a mask depends on
CODE = (
    "images",
    "mnist",
    "cifar",
    "builders",
    "folding",
    "classifier",
    "entries",
    "models",
    "references",
    "taps",
    "masking",
    "masknet",
    "losses",
    "sufficiency",
    "minimality",
    "deletion",
    "search",
    "explain",
)
FIELDS = (
    *("schema", "image", "model", "weights_sha256", "decision_index", "label_asked"),
    *("label_index", "label", "confidence", "explanation_confidence", "label_kept", "feasible"),
    *("area", "components", "robustness", "minimality", "steps", "forward_passes"),
    *("backward_passes", "seconds", "seed", "config", "versions"),
)


def check_inputs(
    references: Sequence[str], model: Classifier, configs: Iterable[ExplainConfig], out: Path
) -> None:
    """Refuse before the first result is written, not after the hundredth. Raises InputError."""
    for config in configs:
        check_settings(model, config)
    check_distinct(references)
    for folder in (out.absolute(), *out.absolute().parents):
        if folder.exists() and not folder.is_dir():
            raise InputError(f"--out {out}: {folder} is a file; expected a folder")
    for reference in references:
        open_reference(reference, model)


def code_digest() -> str:
    """sha256 over the sources a mask depends on: other code, another result."""
    return records.code_digest(CODE)


def explain_to_files(
    reference: str,
    model: Classifier,
    config: ExplainConfig,
    out: Path,
    *,
    label: int | None = None,
    force: bool = False,
    on_step: Callable[[dict[str, float]], None] | None = None,
) -> tuple[dict, bool]:
    """Explain one image and write its result; a finished one with the same inputs is kept.

    ``label`` is the class asked about, None: the network's own decision. The result holds it as
    ``label_asked``, that decision as ``decision_index``, and as ``label_index`` what was explained.

    Returns:
        The result's dict and whether it was made now.

    Raises:
        InputError: the image cannot be read, or ``label`` is no class of the model.
        RunError: the files cannot be written.
    """
    image, digest = open_reference(reference, model)
    path = out / f"{stem(reference)}.json"
    if not force and (found := _finished(path, digest, model, config, label)) is not None:
        if found["image"]["path"] != reference:  # the same bytes under another name
            found["image"]["path"] = reference
            write_text(path, json.dumps(found, indent=2) + "\n")
        return found, False
    explanation = explain(model, image, config, label=label, on_step=on_step)
    image = image.to(model.device)
    check = check_mask(model, image, explanation.mask, explanation.label)
    classes = {"decision_index": int(model(image).argmax()), "label_asked": label}
    result = _result(reference, digest, model, classes, explanation, check)
    try:
        _write(path, result, explanation, model)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}; then run again") from error
    return result, True


def _as_json(config: ExplainConfig) -> dict:
    return json.loads(json.dumps(asdict(config)))


def finished(
    reference: str,
    model: Classifier,
    config: ExplainConfig,
    out: Path,
    *,
    label: int | None = None,
) -> dict | None:
    """What :func:`explain_to_files` would keep, or None where it would explain."""
    digest = open_reference(reference, model)[1]
    return _finished(out / f"{stem(reference)}.json", digest, model, config, label)


def _finished(
    path: Path, digest: str, model: Classifier, config: ExplainConfig, label: int | None
) -> dict | None:
    """The result at ``path`` if it is whole and comes from exactly these inputs."""
    try:
        result = read_result(path)
        read_mask(path)
        with Image.open(path.with_name(f"{path.stem}.explanation.png")) as picture:
            picture.load()
    except (InputError, OSError, SyntaxError):
        return None
    found = (
        *(result["image"]["sha256"], result["model"], result["weights_sha256"]),
        *(result["config"], result["versions"]["code_sha256"], result["label_asked"]),
    )
    wanted = (
        *(digest, model.name, model.weights_sha256, _as_json(config), code_digest()),
        label,
    )
    return result if found == wanted else None


def _result(
    reference: str,
    digest: str,
    model: Classifier,
    classes: dict[str, int | None],
    explanation: Explanation,
    check: Check,
) -> dict:
    return {
        "schema": SCHEMA,
        "image": {"path": reference, "sha256": digest},
        "model": model.name,
        "weights_sha256": model.weights_sha256,
        **classes,
        "label_index": explanation.label,
        "label": explanation.label_name,
        "confidence": check.confidence,
        "explanation_confidence": check.explanation_confidence,
        "label_kept": check.label_kept,
        "feasible": explanation.feasible,
        "area": check.area,
        "components": check.components,
        "robustness": {"gaussian": {"kept": check.noise_kept, "draws": check.noise_draws}},
        "minimality": explanation.certificate and certificate_json(explanation.certificate),
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


def certificate_json(certificate: Certificate) -> dict:
    """The certificate as a result's ``minimality``: grid (a cell's side in pixels), the counts,
    and for every active cell row, column, and the label and confidence without it."""
    return {
        "grid": certificate.cell,
        "active": certificate.active,
        "removable": certificate.removable,
        "cells": [
            [cell.row, cell.column, cell.label_index, cell.confidence, cell.removable]
            for cell in certificate.cells
        ],
    }


def _write(path: Path, result: dict, explanation: Explanation, model: Classifier) -> None:
    path.unlink(missing_ok=True)  # an older result's JSON must not stand beside a new mask
    mask = explanation.mask[0, 0].cpu().numpy().astype(bool)  # (H, W)
    with replacing(path.with_name(f"{path.stem}.mask.png")) as partial:
        Image.fromarray(mask).save(partial, format="PNG")  # 1 bit a pixel
    pixels = model.to_pixels(explanation.masked)[0].permute(1, 2, 0).cpu().numpy()  # (H, W, C)
    picture = np.round(pixels * 255).astype(np.uint8)
    with replacing(path.with_name(f"{path.stem}.explanation.png")) as partial:
        Image.fromarray(picture.squeeze()).save(partial, format="PNG")
    steps = "".join(json.dumps(record) + "\n" for record in explanation.history)
    write_text(_history(path), steps)
    write_text(path, json.dumps(result, indent=2) + "\n")


def read_result(path: Path) -> dict:
    """A result's dict. Raises InputError if the file is no whole result of this schema."""
    try:
        result = json.loads(Path(path).read_text(encoding="utf-8"))
        if result["schema"] != SCHEMA or type(result["label_index"]) is not int:
            raise ValueError(f"schema {result['schema']!r}, label {result['label_index']!r}")
        missing = [name for name in FIELDS if name not in result]
        missing += {"path", "sha256"} - result["image"].keys()
        missing += {"kept", "draws"} - result["robustness"]["gaussian"].keys()
        missing += {"code_sha256"} - result["versions"].keys()
        if missing:
            raise ValueError(f"without {', '.join(missing)}")
        return result
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path}: not a result of schema {SCHEMA} ({error!r})") from error


def read_mask(path: Path) -> Tensor:
    """The mask (1, 1, H, W) beside a result's JSON. Raises InputError if it cannot be read."""
    path = path.with_name(f"{path.stem}.mask.png")
    try:
        with Image.open(path) as picture:
            if picture.mode != "1":
                raise ValueError(f"mode {picture.mode}, expected 1 bit a pixel")
            mask = np.array(picture, dtype=np.float32)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: no readable mask ({error}); explain the image again") from error
    return torch.from_numpy(mask)[None, None]


def read_history(path: Path) -> list[dict[str, float]]:
    """The search beside a result's JSON, a dict a step. Raises InputError if it cannot be read."""
    steps, path = read_result(path)["steps"], _history(path)
    try:
        history = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if [record["step"] for record in history] != list(range(steps)):
            raise ValueError(f"not the {steps} steps of its result")
        return history
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path}: no readable history ({error}); explain with --force") from error


def _history(path: Path) -> Path:
    return path.with_name(f"{path.stem}.history.jsonl")


def read_row(path: Path, model: Classifier) -> dict:
    """A result with its pictures.

    ``pixels`` and ``masked`` (1, C, H, W) in [0, 1], and ``mask``.
    """
    result, mask = read_result(path), read_mask(path)
    image, _ = open_reference(beside(path, result["image"]["path"]), model)
    masked = model.to_pixels(apply_mask(image, mask))
    return {**result, "pixels": model.to_pixels(image), "masked": masked, "mask": mask}


def summary(row: dict) -> dict:
    """The numbers of a result that a table shows."""
    names = ("label", "confidence", "explanation_confidence", "area", "components", "feasible")
    gaussian = row["robustness"]["gaussian"]
    image = row["image"]["path"].removeprefix("bundled:")
    return {"image": image, **{name: row[name] for name in names}, "noise_kept": gaussian["kept"]}
