"""Places, anchored at the repository root, so that no result depends on the working directory."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data"
FIGURES = ROOT / "figures"
NOTEBOOKS = ROOT / "notebooks"


def home() -> Path:
    """The cache folder: ``MINEXP_HOME`` if set, else ``~/.cache/minexp``. Not created here."""
    return Path(os.environ.get("MINEXP_HOME") or Path.home() / ".cache" / "minexp")


def offline() -> bool:
    """Whether ``MINEXP_OFFLINE`` forbids the network: set, and neither empty nor 0."""
    return os.environ.get("MINEXP_OFFLINE", "") not in ("", "0")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it takes the final name, else it goes.

    Nothing half-written ever stands under its final name, whatever ends the process.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file under its final name only once it is complete."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")
