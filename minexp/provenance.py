"""What a run notebook and its figures were made from, kept beside them and compared again later.

doit's memory of the same is the machine's own; this record is committed with the figures, so that
``minexp paper --check`` can tell on a fresh clone whether they are what the sources would give.
"""

import hashlib
import json
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping
from importlib.metadata import requires, version
from pathlib import Path
from typing import Any

from minexp import paths


def digests(files: Iterable[Path]) -> dict[str, str]:
    """Path from the repository's root -> the first 16 digits of its sha256."""
    found = {path: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in sorted(files)}
    return {os.path.relpath(path, paths.ROOT): digest for path, digest in found.items()}


def versions() -> dict[str, str]:
    """Of Python, of minexp and of every package it needs, as installed."""
    needed = (line for line in requires("minexp") or () if "extra ==" not in line)
    names = sorted(re.split(r"[^\w.-]", line)[0] for line in needed)
    return {"python": platform.python_version()} | {n: version(n) for n in ("minexp", *names)}


def sidecars(notebook: str) -> dict[Path, int]:
    """The sidecars in ``figures/`` of a notebook's figures, and when each was written, in ns."""
    found = paths.FIGURES.glob(f"{notebook[:2]}_*.json")
    return {path: path.stat().st_mtime_ns for path in found}


def record(executed: Path, inputs: Mapping[str, Any], before: Mapping[Path, int]) -> dict[str, Any]:
    """Of a notebook that has just run: its figures, its inputs, and digests of its files.

    ``before``: the :func:`sidecars` as they were; an older one is not this run's.
    """
    now = sidecars(executed.stem)
    figures = sorted(path.stem for path in now if before.get(path) != now[path])
    made = [paths.FIGURES / f"{name}.{kind}" for name in figures for kind in ("png", "svg", "json")]
    return {
        "commit": commit(),
        "versions": versions(),
        "figures": figures,
        "inputs": _portable(inputs),
        "files": digests([executed, *(path for path in made if path.exists())]),
    }


def read(executed: Path) -> dict[str, Any]:
    """The record beside an executed copy; empty if there is none, or none that is whole."""
    try:
        found = json.loads(executed.with_suffix(".json").read_bytes())
    except (OSError, ValueError):
        return {}
    whole = isinstance(found, dict) and {"seconds", "inputs", "files"} <= found.keys()
    return found if whole else {}


def touched(executed: Path) -> list[str]:
    """Which files of a notebook's last run are not as it left them: gone, edited, or not whole."""
    if not (kept := read(executed).get("files")):
        return [os.path.relpath(executed.with_suffix(".json"), paths.ROOT)]
    here = digests(file for name in kept if (file := paths.ROOT / name).exists())
    return sorted(name for name in kept if kept[name] != here.get(name))


def stale(executed: Path, inputs: Mapping[str, Any]) -> str:
    """Why what is committed of a notebook is not what its sources would give; "" if it is."""
    if not (kept := read(executed)):
        return "not run, or its record is not whole"
    old, new = kept["inputs"], _portable(inputs)
    changed = sorted(name for name in old.keys() | new if old.get(name) != new.get(name))
    changed += touched(executed)
    return f"stale: {', '.join(changed)}" if changed else ""


def _portable(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs that every clone has: not the versions installed, nor pictures from elsewhere."""
    return {k: v for k, v in inputs.items() if not k.startswith(("..", "version of "))}


def commit() -> str | None:
    """The commit checked out, with ``+`` if sources or weights differ; None outside git."""
    try:
        head = _git("rev-parse", "HEAD")
        changed = _git("status", "--porcelain", "--", "minexp", "notebooks", "data")
        return head + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(paths.ROOT), *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()
