"""What a notebook may be asked: the literals of its one cell tagged ``parameters``."""

import ast
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from minexp.errors import InputError


class Parameter(NamedTuple):
    """A literal of the cell tagged ``parameters``: its default, and the names of its types."""

    default: Any
    kinds: tuple[str, ...]


def declared(source: Path) -> dict[str, Parameter]:
    """What the notebook's one cell tagged ``parameters`` declares, by name."""
    try:
        cells = json.loads(source.read_text(encoding="utf-8"))["cells"]
        tagged = [c for c in cells if "parameters" in c["metadata"].get("tags", ())]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{source.name} is not a notebook ({error!r}); restore it") from error
    if len(tagged) != 1:  # papermill would let the defaults silently overwrite its values
        raise InputError(f"{source.name}: {len(tagged)} cells are tagged 'parameters', not one")
    try:
        return dict(map(_declaration, ast.parse("".join(tagged[0]["source"])).body))
    except (AttributeError, ValueError, SyntaxError) as error:
        wanted = "its parameters cell may hold only lines `name: type = literal`"
        raise InputError(f"{source.name}: {wanted} ({error})") from error


def _declaration(line: Any) -> tuple[str, Parameter]:
    default = ast.literal_eval(line.value)
    if isinstance(line, ast.Assign):
        targets: list = line.targets
        (target,) = targets  # a = b = 1, or one without an id, is refused by the caller
        return target.id, Parameter(default, (type(default).__name__,))
    types = re.sub(r"\[[^|]*\]", "", ast.unparse(line.annotation))  # list[str] is a list
    return line.target.id, Parameter(default, tuple(types.replace("None", "NoneType").split(" | ")))


def checked(name: str, value: Any, wanted: Parameter, where: str) -> Any:
    """``value``, read from the command line's text if need be; refused if of none of the types."""
    if isinstance(value, str) and "str" not in wanted.kinds:
        value = _literal(value)
    kind = type(value).__name__
    if kind in wanted.kinds or (kind == "int" and "float" in wanted.kinds):
        return value
    types = " or ".join(wanted.kinds)
    raise InputError(f"{where}: {name} is {types} (default {wanted.default!r}), not {value!r}")


def _literal(text: str) -> Any:
    """Python's reading (1e-3), else YAML's (true, [a, b]), which leaves other text as it is."""
    for read in (ast.literal_eval, yaml.safe_load):
        try:
            return read(text)
        except (ValueError, SyntaxError, yaml.YAMLError):
            continue
    return text


def require_known(kind: str, names: Iterable[str], valid: Iterable[str], where: str) -> None:
    """Raise InputError naming the valid ones unless every name is among them."""
    if unknown := sorted(set(names) - set(valid)):
        options = ", ".join(sorted(set(valid))) or "none"
        raise InputError(f"unknown {kind} {', '.join(unknown)} in {where}; valid: {options}")
