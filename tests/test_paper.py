"""The runner on a temporary paper of tiny notebooks, with real kernels."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import nbformat
import pytest

from minexp import paper, paths, provenance
from minexp.cli import main
from minexp.errors import InputError

PARAMETERS = """\
steps: int = 4  # how many
who: str | None = None
rate: float = 0.5
names: list[str] | None = None"""
SLEEP = "import os, time\nwhile os.path.exists('wait'):\n    time.sleep(0.05)"


def write(root: Path, name: str, *code: str, tagged: int = 1, parameters: str = PARAMETERS) -> None:
    """A notebook with ``tagged`` parameters cells, then the code, as an author would commit it."""
    tags = {"tags": ["parameters"]}
    cells = [nbformat.v4.new_code_cell(parameters, metadata=tags) for _ in range(tagged)]
    cells += [nbformat.v4.new_code_cell(source) for source in code]
    for index, cell in enumerate(cells):
        cell["id"] = f"cell-{index}"
    notebook = nbformat.v4.new_notebook(cells=cells)
    nbformat.write(notebook, root / "notebooks" / f"{name}.ipynb")


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A repository with two notebooks, a module, a weight file and a profile."""
    for folder in ("notebooks/params", "minexp", "data"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "minexp/plots.py").write_text("")
    (tmp_path / "data/weights.bin").write_bytes(b"1")
    (tmp_path / "requirements.lock").write_text("a==1\n")
    (tmp_path / "notebooks/params/quick.yaml").write_text("01: {steps: 5}\n")
    write(tmp_path, "01_first", "print(steps, who)")
    write(tmp_path, "02_second", "print(3)\nfrom minexp import plots", parameters="seed: int = 0")
    monkeypatch.delenv("MINEXP_IMAGES", raising=False)
    point_at(tmp_path, monkeypatch.setattr)
    return tmp_path


def point_at(root: Path, set_attribute=setattr) -> None:
    """Make ``root`` the repository that minexp.paper works on."""
    places = {"ROOT": "", "NOTEBOOKS": "notebooks", "FIGURES": "figures", "DATA": "data"}
    for name, place in places.items():
        set_attribute(paths, name, root / place)


@pytest.fixture
def pretend(root, monkeypatch):
    """Replace the kernel by a copy of the source, for tests of what runs rather than how."""

    def execute(job: paper.Job) -> dict:
        job.executed.parent.mkdir(parents=True, exist_ok=True)
        job.executed.write_bytes(job.source.read_bytes())
        record = provenance.record(job.executed, job.inputs, {}) | {"seconds": 0.0}
        job.executed.with_suffix(".json").write_text(json.dumps(record))
        return {"inputs": job.inputs, "seconds": 0.0}

    monkeypatch.setattr(paper, "execute", execute)


def executed(root: Path, name: str) -> Path:
    return root / "figures/executed" / f"{name}.ipynb"


def stale(capsys, **options) -> dict[str, str]:
    """What ``list_only`` says would run, and why."""
    capsys.readouterr()
    assert paper.run(list_only=True, **options) == 0
    lines = (line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    return {name: why for name, why in lines if why != "up to date"}


def printed(path: Path) -> str:
    cells = nbformat.read(path, 4).cells
    return "".join(o.text for c in cells if c.cell_type == "code" for o in c.outputs if "text" in o)


def test_runs_then_rests_then_reruns_only_what_changed(root, capsys):
    assert set(stale(capsys)) == {"01_first", "02_second"}
    (root / "figures").mkdir()
    (root / "figures/models.json").write_text("[]")  # no figure's sidecar
    assert paper.run() == 0
    assert printed(executed(root, "01_first")) == "5 None\n"
    said = capsys.readouterr().err
    assert "02_second  done in" in said and "02_second: 100%" in said
    assert stale(capsys) == {}

    before = {n: executed(root, n).stat().st_mtime_ns for n in ("01_first", "02_second")}
    assert paper.run() == 0
    assert {n: executed(root, n).stat().st_mtime_ns for n in before} == before
    assert capsys.readouterr().err == "01_first  up to date\n02_second  up to date\n"

    assert paper.run(parameters={"who": "me"}) == 0
    assert printed(executed(root, "01_first")) == "5 me\n"
    assert executed(root, "02_second").stat().st_mtime_ns == before["02_second"]


@pytest.mark.parametrize(("chosen", "found"), [(None, 1), ("2", 2)])
def test_a_notebook_computes_on_one_thread_unless_told(root, monkeypatch, chosen, found):
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)  # torch heeds it too; dask leaves it
    monkeypatch.setenv("OMP_NUM_THREADS", chosen or "")
    if chosen is None:
        monkeypatch.delenv("OMP_NUM_THREADS")
    write(root, "01_first", "import torch", "print(torch.get_num_threads())")
    assert paper.run(only=["01"]) == 0
    assert printed(executed(root, "01_first")) == f"{found}\n"


def test_two_forced_runs_give_the_same_bytes(root):
    write(root, "01_first", "print(steps, flush=True)\nprint(who)", "import os\nos.getcwd()",
          "import sys\nprint('/a/path', file=sys.stderr)")  # fmt: skip
    assert paper.run(force=True) == 0
    first = executed(root, "01_first").read_bytes()
    assert paper.run(force=True, jobs=2) == 0
    assert executed(root, "01_first").read_bytes() == first
    assert b"papermill" not in first and b"iopub" not in first
    assert b'"name": "stderr"' not in first
    assert str(root / "notebooks") in first.decode()  # a notebook runs in its own folder


def test_what_is_committed_is_checked_without_the_machines_memory(root, capsys, monkeypatch):
    assert main(["paper", "--check"]) == 1
    gone = "not run, or its record is not whole"
    assert capsys.readouterr().out == f"01_first  {gone}\n02_second  {gone}\n"
    assert paper.run() == 0
    (root / ".doit.json").unlink()
    monkeypatch.setattr(provenance, "version", lambda name: "another")
    assert main(["paper", "--check"]) == 0
    assert main(["paper", "--check", "--only", "1", "-p", "steps", "7"]) == 1
    capsys.readouterr()
    (root / "minexp/plots.py").write_text("pass")
    executed(root, "02_second").write_text("retouched")
    assert main(["paper", "--check"]) == 1
    said = "02_second  stale: minexp/plots.py, figures/executed/02_second.ipynb"
    assert capsys.readouterr().out == f"01_first  up to date\n{said}\n"


def test_a_failure_is_reported_and_only_it_is_resumed(root, capsys):
    write(root, "01_first", "print(1)", "1 / 0")
    assert paper.run() == 1
    said = capsys.readouterr().err
    partial = executed(root, "01_first").with_suffix(".partial.ipynb")
    assert "01_first  failed in cell [4]: ZeroDivisionError" in said and str(partial) in said
    assert printed(partial).startswith("1\n")
    assert not executed(root, "01_first").exists()
    assert executed(root, "02_second").exists()
    assert set(stale(capsys)) == {"01_first"}

    write(root, "01_first", "print(2)")
    assert paper.run() == 0
    assert "02_second  up to date" in capsys.readouterr().err
    assert not partial.exists()


def test_a_kill_leaves_no_half_written_file_and_the_next_run_works(root, capsys):
    (root / "notebooks/wait").touch()
    write(root, "02_second", "print('started')", SLEEP, parameters="seed: int = 0")
    script = "import sys, pathlib, test_paper as t; t.point_at(pathlib.Path(sys.argv[1]))"
    python = [sys.executable, "-c", f"{script}; t.paper.run()", str(root)]
    here = os.pathsep.join(map(str, (Path(__file__).parent, Path(paper.__file__).parents[1])))
    process = subprocess.Popen(python, env=os.environ | {"PYTHONPATH": here}, stderr=-3)
    partial = executed(root, "02_second").with_suffix(".partial.ipynb")
    try:
        deadline = time.monotonic() + 40
        while not (partial.exists() and "started\\n" in partial.read_text()):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        (root / "notebooks/wait").unlink()
    nbformat.read(executed(root, "01_first"), 4)
    assert not executed(root, "02_second").exists()
    assert set(stale(capsys)) == {"02_second"}  # what had finished is remembered
    assert paper.run() == 0
    assert printed(executed(root, "02_second")) == "started\n"


@pytest.mark.parametrize("name", ["data/weights.bin", "requirements.lock"])
def test_what_every_notebook_depends_on(root, pretend, capsys, name):
    assert paper.run() == 0
    (root / name).write_text("changed")
    why = f"would run: changed: {name}"
    assert stale(capsys) == {"01_first": why, "02_second": why}


def test_a_notebook_depends_on_the_modules_it_imports(root, pretend, capsys):
    package = root / "minexp"
    (package / "plots.py").write_text("from minexp.style import look\n")
    (package / "style.py").write_text("def look():\n    from minexp import colours\n")
    for name in ("colours", "explain", "unused"):
        (package / f"{name}.py").write_text("")
    write(root, "01_first", "import minexp\nif steps < 0:\n    minexp.explain(who)")
    assert paper.run() == 0
    for name, changed in (("unused", {}), ("colours", {"02_second"}), ("explain", {"01_first"})):
        (package / f"{name}.py").write_text("changed")
        assert stale(capsys) == dict.fromkeys(changed, f"would run: changed: minexp/{name}.py")
        assert paper.run() == 0


def test_a_notebook_depends_on_the_tables_its_parameters_name(root, pretend, capsys):
    write(root, "01_first", parameters="tables: list[str] = ['one', 'two']\nn: int = 3")
    for name in ("two", "three"):
        (root / "figures/bench" / name).mkdir(parents=True)
        (root / "figures/bench" / name / "results.csv").write_text("a")
    (root / "notebooks/params/quick.yaml").write_text("")
    assert paper.run() == 0
    (root / "figures/bench/three/results.csv").write_text("b")
    assert stale(capsys) == {}
    (root / "figures/bench/two/3.witnesses.npz").write_bytes(b"what is not committed")
    assert stale(capsys) == {}
    (root / "figures/bench/two/results.csv").write_text("b")
    why = "would run: changed: figures/bench/two/results.csv"
    assert stale(capsys) == {"01_first": why}


def test_the_pictures_count_by_their_manifest(root, pretend, capsys, monkeypatch):
    (root / "pictures").mkdir()
    (root / "pictures/manifest.csv").write_text("a")
    monkeypatch.setenv("MINEXP_IMAGES", str(root / "pictures"))
    assert paper.run() == 0
    (root / "pictures/new.jpg").write_text("not in the manifest")
    assert stale(capsys) == {}
    (root / "pictures/manifest.csv").write_text("b")
    assert set(stale(capsys)) == {"01_first", "02_second"}
    monkeypatch.setenv("MINEXP_IMAGES", str(root / "missing"))
    with pytest.raises(InputError, match="is not a folder"):
        paper.run()


def test_a_missing_copy_a_new_profile_and_force_are_named(root, pretend, capsys):
    (root / "notebooks/params/paper.yaml").write_text("'01': {steps: 900, rate: 1}\n")
    assert paper.run() == 0
    assert set(stale(capsys, only=["2"], force=True)) == {"02_second"}
    why = stale(capsys, profile="paper")["01_first"]
    assert why == "would run: changed: parameter rate, parameter steps"
    executed(root, "02_second").unlink()
    assert stale(capsys) == {"02_second": "would run: changed: figures/executed/02_second.ipynb"}


def test_of_several_at_once_the_longest_starts_first(root, pretend, monkeypatch):
    write(root, "03_third", "print(1)", parameters="seed: int = 0")
    assert paper.run() == 0
    record = executed(root, "03_third").with_suffix(".json")
    record.write_text(json.dumps(json.loads(record.read_text()) | {"seconds": 60}))
    started, both = [], threading.Barrier(2)

    def execute(job: paper.Job) -> dict:
        started.append(job.source.stem)
        if len(started) <= 2:
            both.wait(30)
        return {"inputs": job.inputs, "seconds": 0.0}

    monkeypatch.setattr(paper, "execute", execute)
    assert paper.run(jobs=2, force=True) == 0
    assert "03_third" in started[:2] and len(started) == 3


def test_a_file_edited_while_a_notebook_runs_makes_it_stale(root, pretend, capsys, monkeypatch):
    pretended = paper.execute

    def edit(job: paper.Job) -> dict:
        (root / "minexp/plots.py").write_text("# edited meanwhile")
        return pretended(job)

    monkeypatch.setattr(paper, "execute", edit)
    assert paper.run(only=["02"]) == 0
    assert stale(capsys, only=["02"]) == {"02_second": "would run: changed: minexp/plots.py"}


def test_the_command_lines_text_is_read_by_type(root):
    given = {"steps": "7", "who": "7", "rate": "1e-3", "names": "[a, '1']"}
    expected = {"steps": 7, "who": "7", "rate": 0.001, "names": ["a", "1"]}
    assert paper.plan("quick", ["01"], given)[0].parameters == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parameters": {"stepz": 1}}, "unknown parameter stepz.*names, rate, seed, steps, who"),
        ({"parameters": {"seed": 1}, "only": ["01"]}, "parameter seed.*names, rate, steps, who"),
        ({"parameters": {"steps": "many"}}, "steps is int.*not 'many'"),
        ({"parameters": {"steps": True}}, "steps is int.*not True"),
        ({"parameters": {"steps": 1.5}}, "steps is int.*not 1.5"),
        ({"parameters": {"steps": "010"}}, "steps is int.*not '010'"),  # YAML would say 8
        ({"parameters": {"rate": "1e999"}}, "rate is float.*not inf"),
        ({"parameters": {"rate": ".nan"}}, "rate is float.*not '.nan'"),
        ({"parameters": {"names": "a"}}, "names is list.str. or None, not 'a'.*-p names 'null'"),
        ({"parameters": {"names": "[1, 2]"}}, r"names is list.str. or None, not \[1, 2\]"),
        ({"only": ["09"]}, "unknown notebook 09.*valid: 01, 02"),
        ({"profile": "fast"}, "unknown profile fast.*valid: quick"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(root, options, message):
    with pytest.raises(InputError, match=message):
        paper.run(**options)
    assert not (root / "figures").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("'09': {}", "unknown notebook 09"),
        ("'01': {stepz: 1}", "unknown parameter stepz.*names, rate, steps, who"),
        ("'01': {steps: [1]}", "steps is int"),
        ("'01': 3", "must map"),
        ("[", "must map"),
    ],
)
def test_a_wrong_profile_is_refused(root, text, message):
    (root / "notebooks/params/quick.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        paper.run()


@pytest.mark.parametrize("tagged", [0, 2])
def test_exactly_one_cell_is_tagged_parameters(root, tagged):
    write(root, "01_first", tagged=tagged)
    with pytest.raises(InputError, match=f"01_first.ipynb: {tagged} cells are tagged"):
        paper.run()


@pytest.mark.parametrize(
    "cell",
    ["steps: int = len('a')", "import os", "steps: int", "steps: int = (", "steps = 3"],
)
def test_parameters_are_literals(root, cell):
    write(root, "01_first", parameters=cell)
    with pytest.raises(InputError, match="may hold only lines `name: type = literal`"):
        paper.run()


def test_not_a_notebook_and_a_shared_number(root):
    (root / "notebooks/02_second.ipynb").write_text(json.dumps({"cells": 3}))
    with pytest.raises(InputError, match="is not a notebook"):
        paper.run()
    write(root, "02_third")
    with pytest.raises(InputError, match="share a number"):
        paper.run()


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"retouched")])
@pytest.mark.parametrize("kind", ["png", "svg", "json"])
def test_a_figure_that_is_gone_or_retouched_makes_its_notebook_stale(root, capsys, damage, kind):
    (root / "figures").mkdir()
    (root / "figures/02_older.json").write_text("{}")  # of an earlier run, not of this one
    drawn = "[Path(f'../figures/02_a.{kind}').write_text(kind) for kind in ('png', 'svg', 'json')]"
    write(root, "02_second", "from pathlib import Path", drawn, parameters="seed: int = 0")
    assert paper.run(only=["02"]) == 0 and stale(capsys, only=["02"]) == {}
    record = json.loads(executed(root, "02_second").with_suffix(".json").read_text())
    assert record["figures"] == ["02_a"] and len(record["files"]) == 4
    damage(root / f"figures/02_a.{kind}")
    assert stale(capsys, only=["02"]) == {"02_second": f"would run: changed: figures/02_a.{kind}"}
    assert main(["paper", "--check", "--only", "2"]) == 1


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"seconds": 1', '{"figures": []}'])
def test_a_record_that_is_not_whole_makes_its_notebook_stale(root, pretend, capsys, text):
    assert paper.run() == 0 and stale(capsys) == {}
    executed(root, "01_first").with_suffix(".json").write_text(text)
    why = "would run: changed: figures/executed/01_first.json"
    assert stale(capsys) == {"01_first": why}
    assert main(["paper", "--check"]) == 1
    assert paper.run(jobs=2) == 0 and stale(capsys) == {}


def test_a_kernel_that_dies_is_a_failure_like_others(root, capsys):
    write(root, "01_first", "print(1)", "import os\nos._exit(1)", "print(2)")
    assert paper.run() == 1
    said = capsys.readouterr().err
    assert "01_first  failed in cell [4]: its kernel died" in said and "Traceback" not in said
    assert executed(root, "02_second").exists()


def test_an_error_of_several_lines_is_said_in_one(root, capsys):
    write(root, "01_first", "raise ValueError('one\\n  two')")
    assert paper.run(only=["01"]) == 1
    assert "ValueError: one two; partial copy" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["notebooks/01_first.ipynb", "minexp/plots.py"])
def test_what_is_no_python_is_named(root, name):
    if name.endswith("py"):
        (root / name).write_text("def")
    else:
        write(root, "01_first", "%pip install torch")
    with pytest.raises(InputError, match=f"{Path(name).name}: .*, in '(def|%pip install torch)'"):
        paper.run()


@pytest.mark.parametrize("profile", ["quick", "paper"])
def test_the_real_profiles_can_be_planned(profile):
    planned = paper.plan(profile, [], {})
    assert [job.source.name[:2] for job in planned] == [f"{n:02}" for n in range(1, 9)]


@pytest.mark.parametrize("only", ["", ","])
def test_a_selection_of_nothing_is_not_one_of_everything(only, capsys):
    with pytest.raises(SystemExit):
        main(["paper", "--list", "--only", only])
    assert "names nothing" in capsys.readouterr().err
