"""The paper as a graph: each numbered notebook is a task, run again only when an input changed.

An input is the notebook's source, each of its resolved parameters, the modules of ``minexp/`` that
it imports and all that these import, the tables in ``figures/bench/`` that its parameters name, any
file of ``data/``, ``requirements.lock``, the installed versions, and the manifest of
``MINEXP_IMAGES``; a figure that is gone or retouched makes its notebook stale too. All are digested
when the run is planned, not (as doit's ``file_dep`` would) once a notebook has finished: a file
edited while notebooks run must make them stale, not pass for what they ran with.
"""

import json
import logging
import math
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from doit import Globals
from doit.cmd_base import ModuleTaskLoader
from doit.dependency import Dependency, JsonDB
from doit.doit_cmd import DoitMain
from doit.exceptions import TaskFailed
from doit.reporter import ZeroReporter
from doit.task import Task
from doit.tools import config_changed
from tqdm import tqdm

from minexp import imports, paths, provenance
from minexp.errors import InputError
from minexp.parameters import checked, declared, require_known


class Job(NamedTuple):
    """A notebook, where its executed copy belongs, and everything that decides its outcome."""

    source: Path
    executed: Path
    parameters: dict[str, Any]
    inputs: dict[str, Any]


def _sources() -> dict[str, Path]:
    found = sorted(p for p in paths.NOTEBOOKS.glob("*.ipynb") if re.match(r"\d\d_", p.name))
    numbered = {p.name[:2]: p for p in found}
    if not found or len(numbered) < len(found):
        wrong = "two notebooks share a number" if found else "no numbered notebook; use a clone"
        raise InputError(f"{paths.NOTEBOOKS}: {wrong}")
    return numbered


def read_profile(name: str, valid: Mapping[str, Iterable[str]]) -> dict[str, dict[str, Any]]:
    """``notebooks/params/<name>.yaml``: notebook number -> {parameter: value}, names checked."""
    folder = paths.NOTEBOOKS / "params"
    require_known("profile", [name], [p.stem for p in folder.glob("*.yaml")], "notebooks/params")
    try:
        content = yaml.safe_load((folder / f"{name}.yaml").read_text(encoding="utf-8")) or {}
        # YAML reads an unquoted 01 as the number 1
        profile = {str(key).zfill(2): dict(values or {}) for key, values in content.items()}
    except (yaml.YAMLError, AttributeError, TypeError, ValueError) as error:
        wanted = "must map notebook numbers to parameters"
        raise InputError(f"{name}.yaml {wanted} ({error})") from error
    require_known("notebook", profile, valid, f"{name}.yaml")
    for number, values in profile.items():
        require_known("parameter", values, valid[number], f"{name}.yaml, notebook {number}")
    return profile


def plan(profile: str, only: Iterable[str], overrides: Mapping[str, Any]) -> list[Job]:
    """The selected notebooks with their full parameters: override, else profile, else default.

    A notebook that declares a parameter ``profile`` is told the profile's name.
    """
    sources = _sources()
    known = {number: declared(source) for number, source in sources.items()}
    settings = read_profile(profile, known)
    chosen = {str(number).zfill(2) for number in only} or set(sources)
    require_known("notebook", chosen, sources, "--only")
    require_known("parameter", overrides, [name for n in chosen for name in known[n]], "-p")
    shared, jobs = provenance.digests(_shared_files()) | _versions(), []
    for number in sorted(chosen):
        source = sources[number]
        given = {"profile": profile, **settings.get(number, {}), **overrides}
        values = {
            name: checked(name, given.get(name, wanted.default), wanted, source.name)
            for name, wanted in known[number].items()
        }
        files = [source, *imports.used(source), *_tables(values)]
        stated = {f"parameter {name}": value for name, value in values.items()}
        inputs = shared | provenance.digests(files) | stated
        jobs.append(Job(source, paths.FIGURES / "executed" / source.name, values, inputs))
    return jobs


def _tables(values: Mapping[str, Any]) -> list[Path]:
    """The files of the folders in ``figures/bench`` that parameters name."""
    named = [name for v in values.values() for name in (v if isinstance(v, list) else [v])]
    folders = [p for p in (paths.FIGURES / "bench").glob("*/") if p.name in named]
    return [
        file for folder in folders for end in ("csv", "json") for file in folder.glob(f"*.{end}")
    ]


def _versions() -> dict[str, str]:
    """Installed versions, which the lock does not fix in a conda environment."""
    return {f"version of {name}": found for name, found in provenance.versions().items()}


def _shared_files() -> list[Path]:
    lock = paths.ROOT.glob("requirements.lock")
    found = [*lock, *paths.DATA.rglob("*"), *_pictures()]
    return [path for path in found if path.is_file() and not path.name.startswith(".")]


def _pictures() -> list[Path]:
    """What stands for the pictures in MINEXP_IMAGES: their manifest, or all if there is none."""
    if not (name := os.environ.get("MINEXP_IMAGES")):
        return []
    if not (folder := Path(name).absolute()).is_dir():
        raise InputError(f"MINEXP_IMAGES={name} is not a folder; correct or unset it")
    return list(folder.glob("manifest.csv")) or list(folder.iterdir())


def execute(job: Job) -> dict[str, Any] | TaskFailed:
    """Run one notebook beside its final place and move it there only when it has finished."""
    import nbformat  # with papermill three seconds, not spent when nothing has changed
    import papermill
    from nbclient.exceptions import DeadKernelError
    from traitlets.config import Config

    logging.getLogger("papermill").setLevel("ERROR")  # it takes `x: int | None` for unknown
    start, partial = time.monotonic(), job.executed.with_suffix(".partial.ipynb")
    partial.parent.mkdir(parents=True, exist_ok=True)
    before = provenance.sidecars(job.source.stem)
    # Kernels that talk through files cannot race for a port, as two started at once over TCP can.
    with tempfile.TemporaryDirectory(prefix="minexp-") as sockets:
        ipc = {"transport": "ipc", "ip": f"{sockets}/k"} if len(sockets) < 90 else {}
        options = {
            "kernel_name": "python3", "language": "python",
            "progress_bar": {"desc": job.source.stem, "leave": False},  # of its cells
            # not papermill's cwd=, which would move this process under its other threads
            "resources": {"metadata": {"path": str(job.source.parent)}},
            "config": Config({"KernelManager": ipc}),
            "coalesce_streams": True,  # how a cell's output was cut into messages is chance
        }  # fmt: skip
        try:
            run_as = (str(job.source), str(partial), job.parameters)
            done = papermill.execute_notebook(*run_as, **options)
        except papermill.PapermillExecutionError as error:
            why = f"in cell [{error.exec_count}]: {error.ename}: {error.evalue}"
            return TaskFailed(f"{' '.join(why.split())}; partial copy: {partial}")
        except DeadKernelError:
            cell = _begun(nbformat.read(partial, 4))
            return TaskFailed(f"in cell [{cell}]: its kernel died (out of memory?); "
                              f"partial copy: {partial}")  # fmt: skip
    nbformat.write(_without_run_metadata(done, nbformat.read(job.source, 4)), partial)
    partial.replace(job.executed)
    seconds = time.monotonic() - start
    record = provenance.record(job.executed, job.inputs, before)
    record = {"parameters": job.parameters, "seconds": round(seconds, 1), **record}
    paths.write_text(job.executed.with_suffix(".json"), json.dumps(record, indent=2) + "\n")
    return {"inputs": job.inputs, "seconds": seconds}


def _begun(copy: Any) -> int:
    """How many code cells of a copy had been begun."""
    code = (cell for cell in copy.cells if cell.cell_type == "code")
    return sum(cell.metadata.papermill.start_time is not None for cell in code)


def _without_run_metadata(done: Any, source: Any) -> Any:
    """Drop what differs between equal runs: times, the random ids of injected cells, and stderr.

    What libraries say on stderr names paths of the machine and is no result.
    """
    kept = {cell.get("id") for cell in source.cells}
    done.metadata.pop("papermill", None)
    for index, cell in enumerate(done.cells):
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [out for out in cell.outputs if out.get("name") != "stderr"]
        if cell.get("id") not in kept:
            cell["id"] = f"added-{index}"
    return done


class Record(JsonDB):
    """doit's memory of what ran, never half-written."""

    def dump(self) -> None:
        draft = Path(f"{self.name}.tmp")
        draft.write_text(self.codec.encode(self._db), encoding="utf-8")
        draft.replace(self.name)


class Progress(ZeroReporter):
    """A line on stderr for each event; what has run is remembered at once, in case of a kill."""

    def execute_task(self, task: Task) -> None:
        _say(task, "running")

    def skip_uptodate(self, task: Task) -> None:
        _say(task, "up to date")

    def add_success(self, task: Task) -> None:
        Globals.dep_manager.backend.dump()
        _say(task, f"done in {task.values['seconds']:.1f} s")

    def add_failure(self, task: Task, failure: Any) -> None:
        Globals.dep_manager.backend.dump()
        known = isinstance(failure, TaskFailed)
        _say(task, f"failed {failure.message if known else failure.get_msg()}")


def _say(task: Task, event: str) -> None:
    tqdm.write(f"{task.name}  {event}", file=sys.stderr)  # above the progress bars


def _task(job: Job) -> Task:
    fresh = [config_changed(job.inputs), not provenance.touched(job.executed)]
    return Task(job.source.stem, [(execute, [job])], uptodate=fresh, io={"capture": False})


def _took(job: Job) -> float:
    """Seconds of the last run whose copy is here; unknown is long."""
    return provenance.read(job.executed).get("seconds", math.inf)


def _state(job: Job, record: Dependency, force: bool) -> str:
    """Whether the job would run, and why."""
    task = _task(job)
    if not force and record.get_status(task, {}).status == "up-to-date":
        return "up to date"
    old = record.get_values(task.name).get("inputs", {})
    changed = sorted(k for k in old.keys() | job.inputs.keys() if old.get(k) != job.inputs.get(k))
    changed += provenance.touched(job.executed)
    why = f"changed: {', '.join(changed)}" if old else "it has not run yet, or failed"
    return f"would run: {'forced' if force else why}"


def check(profile: str, only: Iterable[str], parameters: Mapping[str, Any]) -> int:
    """Print of every notebook whether what is committed of it is up to date; 1 if one is not."""
    planned = plan(profile, only, parameters)
    found = [provenance.stale(job.executed, job.inputs) for job in planned]
    for job, why in zip(planned, found, strict=True):
        print(f"{job.source.stem}  {why or 'up to date'}")
    return int(any(found))


def run(profile: str = "quick", only: Iterable[str] = (),
        parameters: Mapping[str, Any] | None = None, jobs: int = 1,
        list_only: bool = False, force: bool = False) -> int:  # fmt: skip
    """Run the notebooks whose inputs changed; 0 if all are done, 1 if one failed.

    ``only`` holds numbers such as "01"; ``parameters`` override the profile and may be text.
    ``list_only`` prints what would run, and why, on stdout.
    """
    planned, record = plan(profile, only, parameters or {}), str(paths.ROOT / ".doit.json")
    if list_only:
        memory = Dependency(Record, record)
        for job in planned:
            print(f"{job.source.stem}  {_state(job, memory, force)}")
        return 0
    # One in every kernel, unless the user says otherwise: sums depend on how many share them, so
    # that with all cores a mask would be another one on another machine, or beside another job.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # Threads even for one job: in the main thread, nbclient would keep Ctrl-C to itself.
    settings = {
        "dep_file": record,
        "backend": "record",
        "reporter": Progress,
        "verbosity": 0,
        "continue": True,
        "always": force,
        "num_process": jobs,
        "par_type": "thread",
    }
    # The longest first: begun last, it would run on alone.
    ordered = sorted(planned, key=_took, reverse=True) if jobs > 1 else planned
    tasks = {"DOIT_CONFIG": settings, "task_paper": lambda: (_task(job) for job in ordered)}
    extra = {"BACKEND": {"record": f"{__name__}:Record"}}
    # No configuration files: a doit.cfg where the user happens to stand must not matter.
    main = DoitMain(ModuleTaskLoader(tasks), config_filenames=(), extra_config=extra)
    return min(1, main.run(["run"]))
