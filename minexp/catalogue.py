"""Every registered model, tried: are its weights here, and does it keep its label on few pixels?"""

from collections.abc import Iterator, Sequence

from minexp import mnist, models
from minexp.config import default_preset, preset
from minexp.errors import WeightsError
from minexp.explain import explain
from minexp.paths import ROOT, home
from minexp.references import open_reference

PHOTOGRAPH = "bundled:coffee"
SMALL = "bundled:chelsea"  # a cat, which CIFAR-10's networks know, with a licence that is stated


def check(names: Sequence[str] | None = None) -> Iterator[dict]:
    """A row for every registered model (or those of ``names``): what it is and what it does.

    ``reason`` says why weights are not here; then parameters and taps are those of the network
    with random weights and nothing is explained. Else one picture is explained with the preset
    for the model's input: ``label``, ``area``, ``confidence_before`` and ``confidence_after``,
    ``label_kept``, ``feasible``, ``seconds``.
    """
    for name in models.available() if names is None else names:
        entry = models.entry(name)
        row: dict = {"name": name, "family": entry.family, "source": entry.source}
        row |= {"licence": entry.licence, "reason": None}
        try:
            entry.weights()
            model = models.load_model(name)
        except WeightsError as error:
            reason = str(error).partition("; models that work now")[0]
            # no one's own folders
            row["reason"] = reason.replace(str(home()), "MINEXP_HOME").replace(f"{ROOT}/", "")
            model = models.load_model(name, weights=None)
        row["parameters"] = sum(p.numel() for p in model.module.parameters())
        row["size"], row["taps"] = list(model.size), list(model.taps)
        yield row if row["reason"] else row | _explained(model)


def _explained(model) -> dict:
    reference = _picture(model)
    image, _ = open_reference(reference, model)
    found = explain(model, image, preset(default_preset(model.size, len(model.mean))))
    return {
        "picture": reference,
        "label": found.label_name,
        "area": found.area,
        "confidence_before": found.confidence,
        "confidence_after": found.explanation_confidence,
        "label_kept": found.label_kept,
        "feasible": found.feasible,
        "seconds": round(found.seconds, 1),
    }


def _picture(model) -> str:
    """A picture that the model knows and everyone has."""
    if len(model.mean) == 1:
        return f"mnist:{mnist.split()[1][0]}"
    return SMALL if max(model.size) <= 64 else PHOTOGRAPH


def line(row: dict) -> str:
    """A row in one line of text."""
    head = f"{row['name']:20} {row['parameters']:>12,} parameters, {len(row['taps'])} taps: "
    if row["reason"]:
        return head + f"not usable now: {row['reason']}"
    return head + (
        f"{row['picture']} {row['label']} {row['confidence_before']:.2f} -> "
        f"{row['confidence_after']:.2f}, area {100 * row['area']:.1f} %, "
        f"label {'kept' if row['label_kept'] else 'LOST'}, {row['seconds']:.0f} s"
    )


def failed(rows: Sequence[dict]) -> bool:
    """Whether a model whose weights are here lost its label."""
    return any(row["reason"] is None and not row["label_kept"] for row in rows)
