"""Which modules of ``minexp`` a notebook depends on, read off its source without running it."""

import ast
import json
from collections.abc import Iterator
from pathlib import Path

from minexp import paths
from minexp.errors import InputError
from minexp.public import PUBLIC


def used(notebook: Path) -> list[Path]:
    """The files of ``minexp/`` that the notebook's cells import, and all that those import.

    ``import minexp`` brings in the module of each public name that follows it, not the others.
    """
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    waiting = [name for source in sources for name in _imported(source, notebook)]
    found: set[Path] = set()
    while waiting:
        path = paths.ROOT / "minexp" / f"{waiting.pop()}.py"
        if path not in found and path.is_file():
            found.add(path)
            waiting += _imported(path.read_text(encoding="utf-8"), path)
    return sorted(found)


def _imported(source: str, path: Path) -> Iterator[str]:
    """Names of the modules of ``minexp`` that a source asks for, at its top or in a function."""
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        line = (error.text or "").strip()
        raise InputError(f"{path.name}: {error.msg}, in {line!r}") from error
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                package, _, name = alias.name.partition(".")
                if package == "minexp":
                    yield name or "__init__"
        elif isinstance(node, ast.ImportFrom) and node.module == "minexp":
            yield "__init__"
            yield from (_module(alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("minexp."):
            yield node.module.removeprefix("minexp.")
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "minexp":
            yield _module(node.attr)


def _module(name: str) -> str:
    """The module behind a name of the package: its own, or the one that defines it."""
    return PUBLIC.get(name, name)
