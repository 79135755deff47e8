"""The numbered notebooks run top to bottom through the command line, on a copy of the sources."""

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version

import pytest
import tables

from minexp import abductive_run, circuit_evaluate, circuit_table, sanity_run, variants
from minexp.config import configure, preset
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


def run(copy, *arguments, program=("minexp", "paper"), home="home"):
    kept = {name: value for name, value in os.environ.items() if name != "MINEXP_IMAGES"}
    environment = kept | {"PYTHONPATH": str(copy), "MINEXP_HOME": str(copy / home)}
    return subprocess.run(
        [sys.executable, "-m", *program, *arguments],
        cwd=copy, env=environment, capture_output=True, text=True,
    )  # fmt: skip


def check_figures(copy, notebook: str, figures: list[str]) -> None:
    """Each figure is there and says what it was made from: every parameter of the run that it
    was, the seed among them, and the digest of each thing read."""
    record = json.loads((copy / "figures" / "executed" / f"{notebook}.json").read_text())
    assert set(figures) <= set(record["figures"])
    assert record["versions"]["torch"] == version("torch") and "commit" in record
    told = {name: value for name, value in record["parameters"].items() if name != "profile"}
    for name in record["figures"]:
        sidecar = json.loads((copy / "figures" / f"{name}.json").read_text())
        assert sidecar["notebook"] == notebook
        stated = {k: v for k, v in sidecar["parameters"].items() if k in told}
        assert stated == told and "seed" in told, name
        digests = list(sidecar["inputs"].values())
        assert digests and len(set(digests)) == len(digests), name
        assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in digests), name
        assert (copy / "figures" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
        assert (copy / "figures" / f"{name}.svg").stat().st_size > 1000


SHORT = [  # a preset of the paper, whose masks are not cut down: seconds, not minutes
    *("--only", "01", "-p", "images", '["coffee"]', "-p", "preset", "house_finch"),
    *("-p", "steps", "3", "-p", "digits", "1"),
]


@pytest.fixture(scope="module")
def done(copy):
    return run(copy, *SHORT)


def test_explanations_makes_every_figure_with_its_sidecar(copy, done):
    assert done.returncode == 0, done.stderr
    check_figures(copy, "01_explanations", ["01_history", "01_photographs", "01_digits"])


def test_explanations_states_its_answer_last(copy, done):
    executed = json.loads((copy / "figures" / "executed" / "01_explanations.ipynb").read_text())
    answer = "".join(executed["cells"][-1]["outputs"][0]["data"]["text/markdown"])
    assert "make efficientnet_lite0 decide as it did" in answer and "espresso" in answer


def test_a_second_run_has_nothing_to_do(copy, done):
    before = (copy / "figures" / "01_digits.png").stat().st_mtime_ns
    again = run(copy, *SHORT)
    assert again.returncode == 0 and "up to date" in again.stderr
    assert (copy / "figures" / "01_digits.png").stat().st_mtime_ns == before


def test_a_run_that_computes_all_anew_gives_the_same_bytes(copy, done):
    def made():
        files = [*copy.glob("figures/01_*.png"), *copy.glob("figures/01_*.svg")]
        files += [copy / "figures" / "executed" / "01_explanations.ipynb"]
        return {path.name: path.read_bytes() for path in files}

    before = made()
    assert len(before) == 7
    again = run(copy, *SHORT, "--force", home="another")
    assert again.returncode == 0, again.stderr
    assert made() == before


def test_a_notebook_runs_without_papermill_from_its_own_folder(copy, done):
    """As JupyterLab runs it: the kernel that the notebook names, in the folder where it lies."""
    source = (copy / "notebooks" / "01_explanations.ipynb").read_text()
    for default, short in {
        r"steps: int | None = None": "steps: int | None = 3",
        r"preset: str = \"default\"": r"preset: str = \"house_finch\"",
        r"[\"coffee\", \"flower\", \"camera\", \"astronaut\"]": r"[\"coffee\"]",
        "digits: int = 10": "digits: int = 1",
    }.items():
        assert default in source
        source = source.replace(default, short)
    (copy / "notebooks" / "short.ipynb").write_text(source)
    begun = run(copy, str(copy / "notebooks" / "short.ipynb"), program=("jupyter", "execute"))
    assert begun.returncode == 0, begun.stderr


def test_benchmark_draws_its_tables_and_looks_at_one_image(copy):
    digit = ("-p", "model", "mnist_cnn", "-p", "image", "mnist:17", "-p", "preset", "digits")
    short = ("-p", "steps", "60", "-p", "seeds", "1")
    done = run(copy, "--only", "08", *digit, *short)
    assert done.returncode == 0, done.stderr
    figures = ["08_areas", "08_disjoint", "08_curve", "08_robustness"]
    check_figures(copy, "08_benchmark", figures)
    executed = json.loads((copy / "figures" / "executed" / "08_benchmark.ipynb").read_text())
    answer = "".join(executed["cells"][-1]["outputs"][0]["data"]["text/markdown"])
    assert "feasible by its own test" in answer and "goals measured" in answer


# --- the comparisons, from tables made up here: the measured ones may change, or not be there


def rows(methods, *, images="abcdef", criteria=("confidence", "label"), **cells) -> list[dict]:
    """A table's rows; the k-th image's area grows with k, every third decision is wrong."""
    return [
        tables.row(image, method, criterion, area=0.05 * (k + 1), components=k + 1, noise_kept=1.0,
                   correct=k % 3 > 0, confidence_before=0.5 + 0.07 * k, last_area=0.02 * (k + 1),
                   **cells)
        for method in methods for criterion in criteria for k, image in enumerate(images)
    ]  # fmt: skip


def check(copy, number: str, figures: list[str], *options: str) -> str:
    """Run a notebook; every figure has its sidecar. Returns the last cell's Markdown."""
    done = run(copy, "--only", number, *(part for option in options for part in option))
    assert done.returncode == 0, done.stderr
    (executed,) = (copy / "figures" / "executed").glob(f"{number}_*.ipynb")
    check_figures(copy, executed.stem, figures)
    last = json.loads(executed.read_text())["cells"][-1]
    return "".join(last["outputs"][0]["data"]["text/markdown"])


def option(name: str, value: object) -> tuple[str, str, str]:
    return "-p", name, value if isinstance(value, str) else json.dumps(value)


def test_ablations_say_what_each_term_buys(copy):
    bench = copy / "figures" / "bench"
    names = [*variants.GROUPS["leave_one_out"], "only_tap_1", "soft"]
    tables.write(bench / "tiny_terms", rows([f"{name}+steps=3" for name in names]))
    names = variants.expand(["figure3", "grid"], ())
    tables.write(bench / "tiny_grid", rows([f"{name}+steps=3" for name in names]))
    settings = {"table": "tiny_terms", "grid": "tiny_grid", "changed": "+steps=3", "steps": 3}
    settings |= {"model": "mnist_cnn", "image": "mnist:17"}
    figures = ["02_figure3", "02_grid", "02_leave_one_out", "02_taps_threshold"]
    answer = check(copy, "02", figures, *(option(*one) for one in settings.items()))
    assert "both heavy: smaller than both normal" in answer and "not testable here" in answer
    assert "| 17.5% [7.5%, 27.5%] | **given by the start** |" in answer, "of activations alone"
    assert "ends at 1.00 [1.00, 1.00] times it | **not confirmed** |" in answer


def test_gradcam_is_compared_and_checked(copy, mnist_cnn):
    bench = copy / "figures" / "bench"
    found = rows(["ours", "gradcam"])
    for row in found:
        row["area"] *= 2 if row["method"] == "gradcam" and row["image"] != "a" else 1
    found[-6]["area"] = 0.01  # of Grad-CAM, the first image by label: there it is better
    tables.write(bench / "tiny_maps", found)
    few = configure(preset("digits"), {"steps": 2, "minimal": False, "noise_draws": 1})
    given = "mnist_cnn", ["mnist:4", "mnist:700"], ["gradcam", "ours"], bench / "tiny_sanity"
    sanity_run.run(*given, config=few, stages=2)
    settings = {"table": "tiny_maps", "checks": ["tiny_sanity"], "model": "mnist_cnn"}
    settings |= {"images": ["coffee"], "preset": "mnist", "steps": 3, "stages": 2}
    figures = ["03_side_by_side", "03_cascade_maps", "03_tiny_sanity"]
    answer = check(copy, "03", figures, *(option(*one) for one in settings.items()))
    assert "On **5 of 6 photographs** our mask needs fewer pixels" in answer
    assert "Grad-CAM leaks into the background | 6.1 | no outlines" in answer
    assert "they preserve the decision | 3.1, 6.1 | 6 of 6 | **demanded by the search**" in answer


def test_attention_is_compared(copy):
    bench = copy / "figures" / "bench"
    methods = ["ours", "attention", "rollout", "integrated_gradients", "random", "centre"]
    found = rows(methods)
    for row in found:
        row["area"] *= 1 if row["method"] == "ours" else 3
    tables.write(bench / "tiny_attention", found)
    settings = {"table": "tiny_attention", "others": [], "digits": 1, "steps": 3}
    figures = ["04_side_by_side", "04_areas"]
    answer = check(copy, "04", figures, *(option(*one) for one in settings.items()))
    line = "| attention is diffuse | 6.2 | 3.0 [3.0, 3.0] times as many pixels as ours |"
    assert f"{line} **confirmed** |" in answer


def test_misclassifications_are_tested(copy):
    bench = copy / "figures" / "bench"
    tables.write(bench / "tiny_mixed", rows(["ours"]))
    misread = rows(["ours", "ours_right", "ours_least"], images="ghi", label_index=7)
    tables.write(bench / "tiny_wrong", misread)
    tables.write(bench / "tiny_sure", rows(["ours"], images="jkl"))
    settings = {"table": "tiny_mixed", "wrong": "tiny_wrong", "digits": 1}
    settings |= {"sure": "tiny_sure", "photographs": "tiny_wrong"}
    settings |= {"model": "mnist_cnn", "image": "mnist:17", "asked": "3", "absent": "8", "steps": 3}
    figures = ["06_three_classes", "06_digits", "06_right_and_wrong"]
    answer = check(copy, "06", figures, *(option(*one) for one in settings.items()))
    assert "misclassified images need larger sets | Wu et al. 2024 | delta" in answer
    assert "**3 of 3** have pixels that alone make the network name them rightly" in answer
    assert "3 of 3 have pixels for the class it finds least likely" in answer
    assert "of the misread photographs 3 of 3 and 3 of 3" in answer
    assert "with 4 right ones as sure" in answer
    assert "sets of 3 wrong decisions are compared with those of 6 right ones" in answer


def test_circuits_are_held_to_what_they_claim(copy):
    plan, folder = circuit_evaluate.Plan(dropped=2), copy / "figures" / "bench" / "tiny_circuits"
    circuit_table.evaluate_many("mnist_cnn", ["mnist:4", "mnist:700"], folder, plan)
    settings = {"tables": ["tiny_circuits"], "model": "mnist_cnn", "image": "mnist:17", "steps": 3}
    settings |= {"digits": [1, 7], "each": 2}
    figures = ["07_circuit", "07_curves", "07_edges", "07_classes"]
    answer = check(copy, "07", figures, *(option(*one) for one in settings.items()))
    claim = "tiny_circuits: 20% of the channels by energy keep the label on 0.8 of images"
    assert f"| {claim} | 3.3, at its word | 0.00" in answer
    assert "- **tiny_circuits**, 20% of each layer's channels." in answer and "of two 0." in answer


def test_abductive_explanations_are_set_beside_masks(copy):
    folder = copy / "figures" / "bench" / "tiny_proofs"
    plan = abductive_run.Plan(eps=0.05, side=4, fillings=10, restarts=2)
    assert len(list(abductive_run.run([3, 1004], "mnist_cnn_small", plan, folder))) == 2
    settings = {"tables": ["tiny_proofs"], "patches": [], "digits": [3], "side": 7}
    figures = ["05_few", "05_digits", "05_sizes"]
    answer = check(copy, "05", figures, *(option(*one) for one in settings.items()))
    assert "tiny_proofs: 2 of 2 digits settled, no pixel fixed on" in answer
    assert "Wrong verdicts: **0**" in answer and "not testable here" in answer, "no masks"
