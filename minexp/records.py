"""Records: one JSON file an item, made from stated inputs, kept while these are the same."""

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from minexp.errors import RunError
from minexp.paths import ROOT, write_text


@cache
def code_digest(names: tuple[str, ...]) -> str:
    """sha256 over these modules' sources: what they made depends on them."""
    sources = [(ROOT / "minexp" / f"{name}.py").read_bytes() for name in names]
    return hashlib.sha256(b"\0".join(sources)).hexdigest()


def finished(path: Path, inputs: Mapping, lists: tuple[str, ...]) -> dict | None:
    """The record at ``path`` if it is whole, comes from exactly these inputs and has the lists."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        same = {name: record.get(name) for name in inputs} == inputs
    except (OSError, ValueError, AttributeError):  # none, cut off, or something else
        return None
    return record if same and all(isinstance(record.get(name), list) for name in lists) else None


def write(path: Path, record: Mapping) -> None:
    """Write a record under its final name at once. Raises RunError where that fails."""
    try:
        write_text(path, json.dumps(record, indent=2) + "\n")
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}; then run again") from error
