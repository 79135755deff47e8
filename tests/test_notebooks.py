"""The numbered notebooks run top to bottom through the command line, on a copy of the sources."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from minexp.paths import ROOT


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The sources alone, so that no committed figure is touched."""
    copy = tmp_path_factory.mktemp("copy")
    for folder in ("minexp", "notebooks", "data"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for table in (ROOT / "figures" / "bench").glob("*/*.*"):
        (copy / table.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(table, copy / table.relative_to(ROOT))
    shutil.copy(ROOT / "requirements.lock", copy)
    return copy


def run(copy, *arguments):
    kept = {name: value for name, value in os.environ.items() if name != "MINEXP_IMAGES"}
    environment = kept | {"PYTHONPATH": str(copy), "MINEXP_HOME": str(copy / "home")}
    return subprocess.run(
        [sys.executable, "-m", "minexp", "paper", *arguments],
        cwd=copy, env=environment, capture_output=True, text=True,
    )  # fmt: skip


SHORT = [  # a preset of the paper, whose masks are not cut down: seconds, not minutes
    *("--only", "01", "-p", "images", '["coffee"]', "-p", "preset", "house_finch"),
    *("-p", "steps", "3", "-p", "digits", "1"),
]


@pytest.fixture(scope="module")
def done(copy):
    return run(copy, *SHORT)


def test_explanations_makes_every_figure_with_its_sidecar(copy, done):
    assert done.returncode == 0, done.stderr
    for name in ("01_history", "01_photographs", "01_digits"):
        sidecar = json.loads((copy / "figures" / f"{name}.json").read_text())
        assert sidecar["notebook"] == "01_explanations" and sidecar["inputs"], name
        expected = {"digits": 1} if name == "01_digits" else {"steps": 3}
        assert expected.items() <= sidecar["parameters"].items()
        assert (copy / "figures" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
        assert (copy / "figures" / f"{name}.svg").stat().st_size > 1000


def test_explanations_states_its_answer_last(copy, done):
    executed = json.loads((copy / "figures" / "executed" / "01_explanations.ipynb").read_text())
    answer = "".join(executed["cells"][-1]["outputs"][0]["data"]["text/markdown"])
    assert "make efficientnet_lite0 decide as it did" in answer and "espresso" in answer


def test_a_second_run_has_nothing_to_do(copy, done):
    before = (copy / "figures" / "01_digits.png").stat().st_mtime_ns
    again = run(copy, *SHORT)
    assert again.returncode == 0 and "up to date" in again.stderr
    assert (copy / "figures" / "01_digits.png").stat().st_mtime_ns == before


def test_benchmark_draws_its_tables_and_looks_at_one_image(copy):
    digit = ("-p", "model", "mnist_cnn", "-p", "image", "mnist:17", "-p", "preset", "digits")
    short = ("-p", "steps", "60", "-p", "seeds", "1")
    done = run(copy, "--only", "08", *digit, *short)
    assert done.returncode == 0, done.stderr
    for name in ("08_areas", "08_disjoint", "08_curve", "08_robustness"):
        sidecar = json.loads((copy / "figures" / f"{name}.json").read_text())
        assert sidecar["notebook"] == "08_benchmark" and sidecar["inputs"], name
        assert (copy / "figures" / f"{name}.svg").stat().st_size > 1000
    executed = json.loads((copy / "figures" / "executed" / "08_benchmark.ipynb").read_text())
    answer = "".join(executed["cells"][-1]["outputs"][0]["data"]["text/markdown"])
    assert "feasible by its own test" in answer and "goals measured" in answer
