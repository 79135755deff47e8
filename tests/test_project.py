"""The repository keeps its own rules: dependencies, layering, notebooks."""

import ast
import re
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LINUX = {"python_version": "3.11", "python_full_version": "3.11.9", "sys_platform": "linux",
         "platform_system": "Linux", "os_name": "posix", "platform_machine": "x86_64",
         "implementation_name": "cpython", "platform_python_implementation": "CPython",
         "extra": ""}  # fmt: skip

# A file imports only from files above it.
ORDER = [
    "errors", "public", "config", "paths", "provenance", "records", "images", "samples", "mnist",
    "cifar", "builders", "initial", "muon", "training", "taps", "folding", "classifier", "weights",
    "entries", "models", "references", "masking", "masknet", "losses", "sufficiency",
    "minimality", "deletion", "attention", "baselines", "search", "explain", "alternatives",
    "bounds", "attack", "splitting", "milp", "verifier", "abductive", "abductive_audit",
    "abductive_mask", "metrics", "robustness", "channels", "tracing", "operations", "transfer",
    "edges", "circuit", "shortcuts", "ablation", "circuit_files", "peers", "results", "cache",
    "verification", "jobs", "abductive_run", "summary", "abductive_table", "path_patching",
    "circuit_evaluate", "circuit_item", "circuit_compare", "goals", "claims", "variants",
    "suites", "bench", "sanity", "sanity_run", "style", "pictures", "plots",
    "comparison_plots", "circuit_plots", "abductive_plots", "drawing", "circuit_html", "figures",
    "circuit_table", "circuit_run", "catalogue", "imports", "parameters", "paper", "readme",
    "landing", "site", "commands", "cli",
]  # fmt: skip
FREE = {"__init__", "__main__"}

MODULES = sorted((ROOT / "minexp").rglob("*.py"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
each_module = pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


# --- dependencies


def test_environment_yml_is_in_step_with_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == PROJECT["name"]
    assert environment["channels"] == ["conda-forge"]
    *conda, pip = environment["dependencies"]
    python = next(d.removeprefix("python=") for d in conda if d.startswith("python="))
    assert SpecifierSet(PROJECT["requires-python"]).contains(python)
    assert set(conda) == {f"python={python}", "pip"}, "everything else is pyproject.toml's to say"
    assert pip == {"pip": ["-e .[test]"]}


def locked() -> dict[str, list[str]]:
    """Requirement -> its hashes, from requirements.lock."""
    text = (ROOT / "requirements.lock").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if not re.match(r"\s*(#|$)", line)]
    pairs = [re.split(r"\s+--hash=", line.strip()) for line in lines]
    return {requirement: hashes for requirement, *hashes in pairs}


def test_the_lock_has_hashes_and_names_no_host():
    entries = locked()
    assert len(entries) > 50
    for requirement, hashes in entries.items():
        assert hashes and all(re.fullmatch(r"sha256:[0-9a-f]{64}", h.strip()) for h in hashes), (
            requirement
        )
    text = (ROOT / "requirements.lock").read_text()
    assert not re.search(r"https?:|file:|--(extra-)?index-url|--find-links| @ ", text)


def test_the_lock_satisfies_every_dependency():
    pins = {}
    for requirement in map(Requirement, locked()):
        if not requirement.marker or requirement.marker.evaluate(LINUX):
            (pin,) = requirement.specifier
            pins[canonicalize_name(requirement.name)] = pin.version
    wanted = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"]]
    for requirement in map(Requirement, wanted):
        if not requirement.marker or requirement.marker.evaluate(LINUX):
            pin = pins.get(canonicalize_name(requirement.name))
            assert pin, f"{requirement} is not locked; run `make lock`"
            assert requirement.specifier.contains(pin), f"{requirement}: locked {pin}"
    # `make` builds without isolation, so the build's own requirement must be there too.
    assert SpecifierSet(">=77").contains(pins["setuptools"])


def test_versions_and_licence_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= citation.keys()
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])
    assert (ROOT / "LICENSE").read_text().startswith("MIT License")


# --- the package


def imported(tree: ast.AST) -> set[str]:
    """Modules of the package that a file imports, at any depth."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(filter(None, ["minexp" if node.level else "", node.module]))
            names |= {f"minexp.{a.name}" for a in node.names} if base == "minexp" else {base}
    return {name.split(".")[1] for name in names if name.startswith("minexp.")} | (
        {"__init__"} if "minexp" in names else set()
    )


@each_module
def test_imports_only_from_above(path):
    assert path.parent == ROOT / "minexp", "the package is flat"
    if path.stem in FREE:
        return
    assert path.stem in ORDER, f"give {path.name} its place in ORDER"
    above = set(ORDER[: ORDER.index(path.stem)])
    assert imported(ast.parse(path.read_text())) <= above


@each_module
def test_house_rules(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 300
    assert path.stem == "taps" or "register_forward" not in text
    assert "TODO" not in text
    handlers = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.ExceptHandler)]
    assert all(handler.type for handler in handlers), "a bare except hides what went wrong"


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("from minexp import paths, taps", {"paths", "taps"}),
        ("def f():\n    from minexp.models import load_model", {"models"}),
        ("import minexp.losses as l", {"losses"}),
        ("from .masking import blend", {"masking"}),
        ("from . import taps", {"taps"}),
        ("import minexp", {"__init__"}),
        ("import torch, minexplained", set()),
    ],
)
def test_the_layering_test_sees_every_kind_of_import(code, names):
    assert imported(ast.parse(code)) == names


# --- the notebooks


@each_notebook
def test_notebook_source(path):
    cells = nbformat.read(path, 4).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code), "run nbstripout"
    (stated,) = (cell for cell in cells if "parameters" in cell.metadata.get("tags", ()))
    for name, line in parameter_lines(stated.source).items():
        assert re.match(r"\w+: .+ = ", line) and "  # " in line, f"{name}: no type, or no comment"
    # without a kernel's name JupyterLab asks for one before it runs anything
    assert nbformat.read(path, 4).metadata.kernelspec.name == "python3"
    for cell in code:
        check_cell(cell.source)


def parameter_lines(source: str) -> dict[str, str]:
    """What declares each parameter, and the comments in it."""
    lines = source.splitlines()
    return {
        node.target.id: "\n".join(lines[node.lineno - 1 : node.end_lineno])
        for node in ast.parse(source).body
    }


def check_cell(source: str) -> None:
    """A cell narrates or calls; what needs a definition belongs in the package."""
    assert len(source.splitlines()) <= 15, source
    assert not re.search(r"^\s*[%!]|\bpip\b|sys\.path", source, re.MULTILINE), source
    absolute = r"""["'](/(?!/)\w[\w.-]+(/|["'])|~/|[A-Za-z]:\\)"""
    assert not re.search(absolute, source), f"absolute path in: {source}"
    assert "import minexp as" not in source, "what it uses would not be seen to change"
    refused = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    for node in ast.walk(ast.parse(source)):
        assert not isinstance(node, refused), source
        assert not (isinstance(node, ast.ExceptHandler) and node.type is None), source


@pytest.mark.parametrize(
    "source",
    [
        "def f():\n    pass",
        "class A:\n    pass",
        "%pip install torch",
        "import sys\nsys.path.append('..')",
        "try:\n    f()\nexcept:\n    pass",
        "open('/home/me/cat.jpg')",
        "open('~/cat.jpg')",
        "folder = '/tmp'",
        "import minexp as m",
        "x = 1\n" * 16,
    ],
)
def test_the_notebook_test_refuses(source):
    with pytest.raises(AssertionError):
        check_cell(source)


def test_the_notebook_test_accepts_a_plain_cell():
    check_cell("ratio = kept / total  # a/b\nprint(f'{ratio:.2f} and/or', \"1/2\")")
