"""MINEXP_HOME: explanations kept by what they were made from, and everything else that lies there.

To change a figure costs seconds: the explanations it shows are found again by their inputs.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor
from torch.serialization import safe_globals

from minexp import results
from minexp.classifier import Classifier
from minexp.config import ExplainConfig, LossWeights
from minexp.errors import InputError
from minexp.explain import Explanation, explain
from minexp.minimality import Cell, Certificate
from minexp.paths import home, replacing
from minexp.references import open_reference, stem


def explanation(
    reference: str, model: Classifier, config: ExplainConfig, *, label: int | None = None
) -> Path:
    """The JSON of an image's explanation, made now if it has not been before.

    It lies in ``MINEXP_HOME/explanations``, in a folder named by a hash of the image's bytes, the
    model and its weights, the settings, the class asked about, the code, torch's version and the
    number of threads; two that differ in any of these stand beside each other.

    Raises as :func:`minexp.results.explain_to_files`.
    """
    _, image = open_reference(reference, model)
    folder = home() / "explanations" / _digest(model, config, label, image=image)
    results.explain_to_files(reference, model, config, folder, label=label)
    return folder / f"{stem(reference)}.json"


def row(
    reference: str, model: Classifier, config: ExplainConfig, *, label: int | None = None
) -> dict:
    """:func:`explanation` with its pictures, as :func:`minexp.results.read_row` gives it."""
    return results.read_row(explanation(reference, model, config, label=label), model)


def explained(
    model: Classifier,
    image: Tensor,
    config: ExplainConfig,
    *,
    label: int | None = None,
    allowed: Tensor | None = None,
) -> Explanation:
    """:func:`minexp.explain` of a tensor, in ``MINEXP_HOME/searches``; raises as that."""
    tensors = (None if t is None else t.cpu().numpy().tobytes() for t in (image, allowed))
    digests = [t and hashlib.sha256(t).hexdigest() for t in tensors]
    path = home() / "searches" / f"{_digest(model, config, label, tensors=digests)}.pt"
    if not path.exists():
        found = explain(model, image, config, label=label, allowed=allowed)
        with replacing(path) as partial:
            torch.save(found, partial)
    with safe_globals([Explanation, Certificate, Cell, ExplainConfig, LossWeights]):
        return torch.load(path, map_location=model.device, weights_only=True)


def _digest(
    model: Classifier, config: ExplainConfig, label: int | None, **picture: str | list
) -> str:
    inputs = {
        **picture,
        "model": [model.name, model.weights_sha256, list(model.taps)],
        "config": asdict(config),
        "label": label,
        "code": results.code_digest(),
        # sums, and so masks, differ between versions and between numbers of threads
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]


def kinds() -> dict[str, list[Path]]:
    """What lies in MINEXP_HOME: the name of each folder there -> its files."""
    folders = sorted(path for path in home().glob("*") if path.is_dir())
    return {folder.name: [f for f in folder.rglob("*") if f.is_file()] for folder in folders}


def table() -> Iterator[str]:
    """A line a folder: files and size."""
    yield f"MINEXP_HOME: {home()}"
    yield f"{'folder':16} {'files':>8} {'MB':>9}"
    for name, files in kinds().items():
        yield f"{name:16} {len(files):8} {sum(f.stat().st_size for f in files) / 1e6:9.1f}"


def clear(name: str) -> str:
    """Delete a folder of MINEXP_HOME; returns a line. Raises InputError for another name."""
    known = kinds()
    if name not in known:
        raise InputError(f"--clear {name}: expected one of {', '.join(known) or '(it is empty)'}")
    shutil.rmtree(home() / name)
    return f"{name}: {len(known[name])} files deleted"
