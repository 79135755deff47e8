"""What each subcommand does. Torch and the rest are imported when one runs, not for --help."""

import argparse
import json
import sys
from functools import partial
from pathlib import Path

from minexp.errors import InputError


def models(options: argparse.Namespace) -> int:
    from minexp import models

    if options.check:
        return _check_models(options.out)
    if options.out is not None:
        raise InputError(f"--out {options.out}: nothing is written without --check")
    print(f"{'name':20} {'family':14} {'offline':8} source")
    for name in models.available():
        entry, usable = models.entry(name), "yes" if models.usable_offline(name) else "no"
        print(f"{name:20} {entry.family:14} {usable:8} {entry.source}; {entry.licence}")
    return 0


def _check_models(out: Path | None) -> int:
    from minexp import catalogue
    from minexp.paths import write_text

    if out is not None and (out.is_dir() or any(p.is_file() for p in out.parents)):
        raise InputError(f"--out {out}: expected a file, and above it folders")  # before all models
    rows = []
    for row in catalogue.check():
        print(catalogue.line(row), flush=True)
        rows.append(row)
    if out is not None:
        write_text(out, json.dumps(rows, indent=2) + "\n")
    return 1 if catalogue.failed(rows) else 0


def fetch(options: argparse.Namespace) -> int:
    from minexp import models

    if models.is_own(options.name):
        raise InputError(f"{options.name}: nothing to fetch; a factory brings its own weights")
    entry = models.entry(options.name)
    model = models.load_model(options.name)
    print(f"{options.name}: {entry.weights()} sha256 {model.weights_sha256}")
    return 0


def explain(options: argparse.Namespace) -> int:
    from minexp import jobs, results
    from minexp.explain import label_index

    changes = _changes(options)
    jobs.check(options.jobs, options.backend)
    options.out = options.out.absolute()  # a worker's working directory may be another
    references = _references(options.images)
    model = jobs.model(options.model)
    config = _config(options.preset, changes, model)
    label = None if options.label is None else label_index(model, options.label)
    results.check_inputs(references, model, [config], options.out)
    job = partial(
        _explain_one, name=options.model, config=config, label=label, out=options.out,
        force=options.force, live=options.jobs == 1,
    )  # fmt: skip
    for line in jobs.run(job, references, jobs=options.jobs, backend=options.backend):
        print(line, flush=True)
    return 0


def _changes(options: argparse.Namespace) -> dict[str, object]:
    """The settings asked for; refused, where they are wrong, before a picture is opened."""
    from minexp.config import configure, parse_settings, preset

    changes = parse_settings(options.set, "--set")
    changes |= {k: v for k in ("steps", "seed") if (v := getattr(options, k)) is not None}
    configure(preset(options.preset or "default"), changes)
    return changes


def _config(name: str | None, changes: dict[str, object], model):
    from minexp.config import configure, default_preset, preset

    return configure(preset(name or default_preset(model.size, len(model.mean))), changes)


def _references(given: list[str]) -> list[str]:
    from minexp import images
    from minexp.references import is_path

    references: list[str] = []
    for item in given:
        listed = is_path(item) and not item.endswith(".json")  # circuit takes results too
        references += map(str, images.list_images(item)) if listed else [item]
    return list(dict.fromkeys(references))


def _explain_one(
    reference: str, *, name: str, config, label: int | None, out: Path, force: bool, live: bool
) -> str:
    from tqdm import tqdm

    from minexp import jobs, results
    from minexp.references import stem

    model = jobs.model(name)
    bar = tqdm(total=config.steps, desc=stem(reference), disable=not live, leave=False)

    def show(record: dict) -> None:
        bar.set_postfix_str(
            f"area {record['area']:.3f} confidence {record['confidence']:.2f} "
            f"on noise {record['noise_confidence']:.2f}"
        )
        bar.update()
        if config.minimal and record["step"] == config.steps - 1:
            bar.set_description(f"{stem(reference)}: cutting")

    with bar:
        result, made = results.explain_to_files(
            reference, model, config, out, label=label, force=force, on_step=show
        )
    path = out / f"{stem(reference)}.panel.png"
    if made or not path.exists():
        path.unlink(missing_ok=True)
        _write_panel(path, reference, model)
    kept = "kept" if result["label_kept"] else "LOST"
    return (
        f"{reference}: {result['label']} {result['confidence']:.2f} -> "
        f"{result['explanation_confidence']:.2f}, area {100 * result['area']:.1f} %, label {kept}, "
        f"on noise {result['robustness']['gaussian']['kept']:.2f}, "
        f"{'feasible' if result['feasible'] else 'NOT feasible'}{'' if made else ' (kept result)'}"
    )


def _write_panel(path: Path, reference: str, model) -> None:
    import matplotlib

    matplotlib.use("agg")
    from minexp import figures, plots, results
    from minexp.references import stem

    figures.save_panel(
        path,
        plots.panel([results.read_row(path.with_name(f"{stem(reference)}.json"), model)]),
    )


def verify(options: argparse.Namespace) -> int:
    from minexp import verification

    failed, unusable = False, None
    for path in options.results:
        try:
            differences = verification.verify(path)
        except InputError as error:  # the others are verified all the same
            unusable = unusable or error
            continue
        failed |= bool(differences)
        print(f"{path}: {'; '.join(differences) if differences else 'ok'}", flush=True)
    if unusable:
        raise unusable
    return 1 if failed else 0


def train(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from minexp import training

    training.recipe(options.name)  # refused before a progress bar is drawn
    with tqdm(desc=options.name, unit="epoch") as bar:

        def show(done: int, total: int, accuracy: float) -> None:
            bar.total = total
            bar.set_postfix_str(f"accuracy on augmented training pictures {accuracy:.3f}")
            bar.update(done - bar.n)

        card = training.train(options.name, options.seed, show)
    print(json.dumps(card, indent=2))
    return 0


def bench(options: argparse.Namespace) -> int:
    import torch
    from tqdm import tqdm

    from minexp import bench, jobs, suites, summary

    jobs.check(options.jobs)
    model, references, methods = suites.suite(
        options.suite, options.criterion, options.limit,
        methods=options.methods.split(",") if options.methods else None,
        every=_every(options.every), model=options.model, wrong=options.wrong,
        as_sure=options.as_sure,
    )  # fmt: skip
    torch.set_num_threads(1)  # as in every worker: seconds are compared
    with tqdm(total=len(references) * len(methods), unit="image") as bar:

        def show(folder: str, _rows: list[dict]) -> None:
            bar.set_postfix_str(folder, refresh=False)
            bar.update()

        numbers = bench.run(
            model, references, methods, options.out, n_jobs=options.jobs, force=options.force,
            table_only=options.table_only, on_item=show,
            about={k: getattr(options, k) for k in ("every", "limit", "wrong", "as_sure")},
        )  # fmt: skip
    for refused in numbers["refused"]:
        print(f"minexp: refused: {' '.join(map(str, refused.values()))}", file=sys.stderr)
    print(summary.table(numbers))
    return 0


def sanity(options: argparse.Namespace) -> int:
    import torch
    from tqdm import tqdm

    from minexp import jobs, sanity_run, suites
    from minexp.config import parse_settings

    jobs.check(options.jobs)
    model, references, _ = suites.suite(
        options.suite, None, options.limit, methods=[], every=_every(options.every),
        model=options.model,
    )  # fmt: skip
    methods = list(dict.fromkeys(options.methods.split(",")))
    config = _config(None, parse_settings(options.set, "--set"), jobs.model(model))
    torch.set_num_threads(1)  # as in every worker
    with tqdm(total=len(references) * len(methods), unit="image") as bar:
        numbers = sanity_run.run(
            model, references, methods, options.out, config=config, stages=options.stages,
            seed=options.seed, n_jobs=options.jobs, force=options.force,
            on_item=lambda _method: bar.update(),
        )  # fmt: skip
    print(sanity_run.table(numbers))
    return 0


def circuit(options: argparse.Namespace) -> int:
    import torch

    from minexp import circuit_item, circuit_run

    settings = {k: getattr(options, k) for k in ("ranking", "channels", "share")}
    given, out, taps = _references(options.images), options.out.absolute(), options.taps
    if options.evaluate:
        torch.set_num_threads(1)  # as in every worker
        work = {"taps": taps, "n_jobs": options.jobs, "force": options.force}
        lines = circuit_run.evaluate(given, options.model, out, settings, **work)
    else:
        lines = circuit_run.draw(given, circuit_item.network(options.model, taps), out, settings)
    for line in lines:
        print(line, flush=True)
    return 0


def abductive(options: argparse.Namespace) -> int:
    from minexp import abductive_run

    names = ("eps", "side", "order", "cases", "seconds", "fillings", "prove")
    plan = abductive_run.Plan(
        **{name: getattr(options, name) for name in names},
        masks=options.masks and str(options.masks.absolute()),
    )
    for line in abductive_run.run(
        options.index, options.model, plan, options.out.absolute(),
        n_jobs=options.jobs, force=options.force,
    ):  # fmt: skip
        print(line, flush=True)
    return 0


def _every(text: str) -> tuple[int, int]:
    step, _, start = text.partition(":")
    try:
        return int(step), int(start or 0)
    except ValueError:
        raise InputError(f"--every {text}: expected N or N:K, two integers") from None


def cache(options: argparse.Namespace) -> int:
    from minexp import cache

    for line in cache.table() if options.clear is None else [cache.clear(options.clear)]:
        print(line)
    return 0


def paper(options: argparse.Namespace) -> int:
    from minexp import paper

    if options.jobs < 1:
        raise InputError(f"jobs={options.jobs}: expected an integer >= 1")
    asked = options.profile, options.only, dict(options.p)
    if options.check:
        return paper.check(*asked)
    return paper.run(*asked, jobs=options.jobs, list_only=options.list, force=options.force)
