"""What a notebook may be asked: the literals of its one cell tagged ``parameters``."""

import ast
import json
import math
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
    kinds = tuple(ast.unparse(line.annotation).split(" | "))
    return line.target.id, Parameter(ast.literal_eval(line.value), kinds)


def checked(name: str, value: Any, wanted: Parameter, where: str) -> Any:
    """``value``, read from the command line's text if need be; refused if of none of the types."""
    if isinstance(value, str) and "str" not in wanted.kinds:
        value = _literal(value)
    if any(_is(value, kind) for kind in wanted.kinds):
        return value
    types = " or ".join(wanted.kinds)
    default = wanted.default if isinstance(wanted.default, str) else json.dumps(wanted.default)
    raise InputError(f"{where}: {name} is {types}, not {value!r}; default: -p {name} '{default}'")


def _is(value: Any, kind: str) -> bool:
    """Whether a value is of a type as annotated: None, int, list[str]; an int serves as a float."""
    if kind.startswith("list["):
        return isinstance(value, list) and all(_is(each, kind[5:-1]) for each in value)
    if kind == "float" and type(value) in (int, float):
        return math.isfinite(value)
    return value is None if kind == "None" else type(value).__name__ == kind


def _literal(text: str) -> Any:
    """Python's reading (1e-3), else YAML's (true, [a, b]), which leaves other text as it is.

    YAML's own numbers, such as 010 for 8 and 1:30 for 90, stay text too.
    """
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        pass
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    return found if isinstance(found, list | bool | None) else text


def require_known(kind: str, names: Iterable[str], valid: Iterable[str], where: str) -> None:
    """Raise InputError naming the valid ones unless every name is among them."""
    if unknown := sorted(set(names) - set(valid)):
        options = ", ".join(sorted(set(valid))) or "none"
        raise InputError(f"unknown {kind} {', '.join(unknown)} in {where}; valid: {options}")
