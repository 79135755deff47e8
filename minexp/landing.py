"""What the site's first page plays with, computed once: ``python -m minexp.landing``.

``figures/landing/curve.json`` holds a photograph and the masks on its confidence-area curve,
``figures/landing/circuit.json`` the circuit of its explanation. With the explanation not yet in
the cache this takes some minutes; building the site reads the two files only.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from minexp import cache, circuit_html, paths, provenance, samples, taps
from minexp.channels import read
from minexp.circuit import CHANNELS, build, choose
from minexp.classifier import Classifier, folded
from minexp.config import ExplainConfig, default_preset, preset
from minexp.masking import apply_mask
from minexp.minimality import without_cells
from minexp.models import load_model
from minexp.references import open_reference
from minexp.results import read_mask, read_result
from minexp.search import Target, search
from minexp.sufficiency import CHECK_SEED, Judge, noise_kept, probability

IMAGE, MODEL = "bundled:coffee", "efficientnet_lite0"
FOLDER = paths.FIGURES / "landing"
RISE = 0.002  # of confidence: a step of the slider tops every smaller mask by so much,
GROWTH = 1.25  # or is so many times as large as the step before


def write(folder: Path = FOLDER) -> None:
    """Explain the photograph, or take the finished explanation, and write both files."""
    model = load_model(MODEL)
    image, digest = open_reference(IMAGE, model)
    config = preset(default_preset(model.size, len(model.mean)))
    path = cache.explanation(IMAGE, model, config)
    result, found = read_result(path), read_mask(path)
    made = {
        "command": "python -m minexp.landing",
        "image": IMAGE,
        "sha256": digest,
        "licence": samples.BUNDLED[IMAGE.removeprefix("bundled:")][2],
        "model": MODEL,
        "commit": provenance.commit(),
        "versions": provenance.versions(),
    }
    _write_json(folder / "curve.json", made | curve(model, image, found, result, config))
    _write_json(folder / "circuit.json", made | circuit(model, image, found, result))


def curve(
    model: Classifier, image: Tensor, found: Tensor, result: Mapping, config: ExplainConfig
) -> dict:
    """The photograph and the masks that :func:`alternatives.confidence_area_curve` has steps at.

    These are the search's own, the one found, those that its certificate makes of it by taking
    cells away, and the whole image; what is written of each comes from plain forward passes.
    """
    masks = torch.cat(
        [
            *(mask.to(found) for mask in searched(model, image, config)),
            *dwindling(found, result["minimality"]),
            found,
            torch.ones_like(found),
        ]
    )  # (N, 1, H, W)
    label = result["label_index"]
    top, confidence, _ = Judge(model, image, label, config).on_fill(masks)
    areas = masks.mean((1, 2, 3)).tolist()
    last = len(masks) - 1
    kept = steps(areas, confidence.tolist(), {last - 1, last})
    return {
        "label": result["label"],
        "confidence": result["confidence"],
        "photograph": circuit_html.picture(model.to_pixels(image)),
        "found": kept.index(last - 1),
        "points": [
            {
                "area": round(areas[i], 5),
                "confidence": round(confidence[i].item(), 4),
                "noise": noise_kept(
                    model, image, masks[i : i + 1], label, draws=32, seed=CHECK_SEED
                ),
                "says": model.class_names[int(top[i])],
                "mask": circuit_html.data_uri(to_pil_image(masks[i, 0]).convert("1")),
            }
            for i in kept
        ],
    }


def searched(model: Classifier, image: Tensor, config: ExplainConfig) -> list[Tensor]:
    """Every mask (1, 1, H, W) bool the search passes: a result keeps their numbers only."""
    fast = folded(model, image)
    with torch.no_grad(), taps.read(fast.module, fast.taps) as activations:
        logits = fast(image)
    label = int(logits.argmax())
    target = Target(image, logits, dict(activations), label, probability(logits, label))
    return [seen.mask for seen in search(fast, target, config)[0]]


def dwindling(found: Tensor, minimality: Mapping) -> list[Tensor]:
    """The mask with one cell gone, two, …, down to one: the least needed go first."""
    cells = sorted(minimality["cells"], key=lambda cell: -cell[3])[:-1]
    places = [(row, column) for row, column, *_ in cells]
    counts = range(1, len(places) + 1)
    return [without_cells(found, places[:count], minimality["grid"]) for count in counts]


def steps(areas: Sequence[float], confidences: Sequence[float], keep: set[int]) -> list[int]:
    """The points to show, by ascending area: those that rise or grow enough, and ``keep``."""
    highest, largest, kept = -RISE, 0.0, []
    for i in sorted(range(len(areas)), key=lambda i: (areas[i], -confidences[i])):
        if i in keep or confidences[i] >= highest + RISE or areas[i] >= largest * GROWTH:
            kept.append(i)
            highest, largest = max(highest, confidences[i]), areas[i]
    return kept


def circuit(model: Classifier, image: Tensor, found: Tensor, result: Mapping) -> dict:
    """The circuit of the explanation, as :func:`circuit_html.fragment` draws it."""
    masked = apply_mask(image, found)
    reading = read(model, masked, result["label_index"])
    graph = build(model, reading, choose(reading, "energy", channels=CHANNELS))
    maps = circuit_html.thumbnails(graph, reading)
    return {
        "circuit": circuit_html.drawn(graph, maps, circuit_html.picture(model.to_pixels(masked)))
    }


def _write_json(path: Path, content: Mapping) -> None:
    paths.write_text(path, json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    write()
