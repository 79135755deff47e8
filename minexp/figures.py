"""The only writer of figures: PNG, SVG and a JSON sidecar that says where the picture came from."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from minexp import provenance
from minexp.paths import FIGURES, replacing
from minexp.style import style


def save(
    figure: Figure,
    name: str,
    *,
    notebook: str,
    parameters: Mapping[str, Any],
    inputs: Mapping[str, str],
    numbers: Any,
    folder: Path | None = None,
) -> Path:
    """Write ``<name>.png``, ``<name>.svg`` and ``<name>.json`` and close the figure.

    Args:
        name: file name without extension.
        notebook: that made it; ``parameters``: its parameters, the seed among them.
        inputs: name -> sha256 of what was read.
        numbers: what is plotted or printed in the figure, JSON-able.
        folder: None: ``figures/``.

    Returns:
        The PNG's path.
    """
    folder = folder or FIGURES
    sidecar = {
        "figure": name,
        "notebook": notebook,
        "parameters": dict(parameters),
        "commit": provenance.commit(),
        "versions": provenance.versions(),
        "inputs": dict(inputs),
        "numbers": numbers,
    }
    files = {  # all made before the first is written: no figure without its provenance
        "json": (json.dumps(sidecar, indent=2) + "\n").encode(),
        # without dates and versions in the files two runs give the same bytes
        "svg": _render(figure, "svg", {"Date": None, "Creator": None}),
        "png": _render(figure, "png", {"Software": None}),
    }
    for suffix, content in files.items():
        with replacing(folder / f"{name}.{suffix}") as partial:
            partial.write_bytes(content)
    plt.close(figure)
    return folder / f"{name}.png"


def save_panel(path: Path, figure: Figure) -> None:
    """Write a result's own picture, PNG or SVG; its provenance is the JSON beside it."""
    svg = path.suffix == ".svg"
    nothing = {"Date": None, "Creator": None} if svg else {"Software": None}
    with replacing(path) as partial:
        partial.write_bytes(_render(figure, "svg" if svg else "png", nothing))
    plt.close(figure)


def _render(figure: Figure, form: str, metadata: dict) -> bytes:
    buffer = io.BytesIO()
    with style():  # some settings, such as SVG's, are read only now
        figure.savefig(buffer, format=form, metadata=metadata)
    return buffer.getvalue()
