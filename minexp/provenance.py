"""What a run notebook and its figures were made from, kept beside them and compared again later.

doit's memory of the same is the machine's own; this record is committed with the figures, so that
``minexp paper --check`` can tell on a fresh clone whether they are what the sources would give.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from minexp import paths


def digests(files: Iterable[Path]) -> dict[str, str]:
    """Path from the repository's root -> the first 16 digits of its sha256."""
    found = {path: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in sorted(files)}
    return {os.path.relpath(path, paths.ROOT): digest for path, digest in found.items()}


def record(executed: Path, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Of a notebook that has just run: its figures, its inputs, and digests of its files."""
    sidecars = {path: json.loads(path.read_bytes()) for path in paths.FIGURES.glob("[0-9]*.json")}
    figures = sorted(path.stem for path, s in sidecars.items() if s["notebook"] == executed.stem)
    made = [paths.FIGURES / f"{name}.{kind}" for name in figures for kind in ("png", "svg", "json")]
    return {
        "figures": figures,
        "inputs": _portable(inputs),
        "files": digests([executed, *(path for path in made if path.exists())]),
    }


def stale(executed: Path, inputs: Mapping[str, Any]) -> str:
    """Why what is committed of a notebook is not what its sources would give; "" if it is."""
    path = executed.with_suffix(".json")
    if not path.exists():
        return "not run"
    kept = json.loads(path.read_bytes())
    if "inputs" not in kept:  # of a run by an older minexp
        return "stale: run without a record of its inputs"
    old, new = kept["inputs"], _portable(inputs)
    changed = sorted(name for name in old.keys() | new if old.get(name) != new.get(name))
    here = digests(file for name in kept["files"] if (file := paths.ROOT / name).exists())
    changed += sorted(name for name in kept["files"] if kept["files"][name] != here.get(name))
    return f"stale: {', '.join(changed)}" if changed else ""


def _portable(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs that every clone has: not the versions installed, nor pictures from elsewhere."""
    return {k: v for k, v in inputs.items() if not k.startswith(("..", "version of "))}
