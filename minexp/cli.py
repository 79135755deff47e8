"""The command line: a thin layer. Results on stdout or in files, progress on stderr.

Exit codes: 0 done, 1 failed while running, 2 bad input (one line, no traceback).
"""

import argparse
import json
import sys
import traceback
from functools import partial
from pathlib import Path

from minexp.errors import InputError, MinexpError


def main(arguments: list[str] | None = None) -> int:
    """Run one subcommand and return its exit code."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except KeyboardInterrupt:
        print("minexp: interrupted; run it again to go on", file=sys.stderr)
        return 1
    except (MinexpError, OSError) as error:
        if options.debug:
            traceback.print_exc()
        print(f"minexp: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with the options, as every other error does."""

    def error(self, message: str) -> None:
        self.exit(2, f"{self.prog}: error: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    question = "Which few pixels, and which few channels, made this classifier decide?"
    parser = _Parser("minexp", description=question)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run, help: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=help, description=help)
        added.add_argument("--debug", action="store_true", help="show the traceback of an error")
        added.set_defaults(run=run)
        return added

    command("models", _models, "list the models, and which are usable offline now")

    p = command("explain", _explain, "find the few pixels that made the model decide")
    p.add_argument("images", nargs="+", metavar="IMAGE|DIR", help="or bundled:NAME, mnist:INDEX")
    p.add_argument("--model", default="efficientnet_lite0")
    p.add_argument("--preset", default="default", help="a lambda set; see minexp/config.py")
    p.add_argument("--set", default=[], action="append", metavar="NAME=VALUE")
    p.add_argument("--steps", type=int)
    p.add_argument("--seed", type=int)
    p.add_argument("--out", type=Path, default=Path("explanations"))
    p.add_argument("--jobs", type=int, default=1)
    p.add_argument("--backend", default="loky", help="loky or dask")
    p.add_argument("--force", action="store_true", help="also where a finished result exists")

    p = command(
        "verify", _verify, "recompute what a result reports of image, mask and model from scratch"
    )
    p.add_argument("results", nargs="+", type=Path, metavar="RESULT.json")

    p = command("train", _train, "train a model whose weights the repository carries")
    p.add_argument("name")
    p.add_argument("--seed", type=int, default=0)

    p = command("bench", _bench, "explain many images by many methods and write one table")
    p.add_argument("--suite", required=True, metavar="bundled|mnist|DIR")
    p.add_argument(
        "--methods",
        help="comma-separated: ours, ours_no_noise, random, centre, gradcam, "
        "integrated_gradients, occlusion, rise, extremal, rex, or ours with settings changed, "
        "ours+tv=20+steps=300; default: the suite's, without extremal and rex",
    )
    p.add_argument("--criterion", help="label or confidence; default: both, digits: confidence")
    p.add_argument("--limit", type=int, help="the first so many images only")
    p.add_argument(
        "--every", default="1", metavar="N[:K]", help="every N-th image from the K-th on, from 0"
    )
    p.add_argument("--jobs", type=int, default=1)
    p.add_argument("--force", action="store_true")
    p.add_argument(
        "--table-only", action="store_true", help="compute nothing: the table of what is finished"
    )
    p.add_argument("--out", type=Path, required=True, help="an older table there is replaced")

    p = command("circuit", _circuit, "draw the channels that made the model decide, and test them")
    p.add_argument("images", nargs="+", metavar="IMAGE|DIR|RESULT.json")
    p.add_argument("--model", default="efficientnet_lite0")
    p.add_argument("--ranking", default="energy", help="of channels; see minexp/channels.py")
    p.add_argument("--channels", type=int, help="of each layer; default: 6")
    p.add_argument("--share", type=float, help="or as many as hold this share of its energy")
    p.add_argument("--evaluate", action="store_true", help="write a table of all instead")
    p.add_argument("--out", type=Path, default=Path("circuits"))

    p = command("paper", _paper, "run the notebooks and write the figures")
    p.add_argument("--profile", default="quick", help="quick or paper")
    p.add_argument("--only", default="", metavar="01,03", help="these notebooks only")
    p.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    p.add_argument("--jobs", type=int, default=1)
    p.add_argument("--list", action="store_true", help="what would run, and why")
    p.add_argument("--force", action="store_true")
    return parser


def _models(options: argparse.Namespace) -> int:
    from minexp import models

    print(f"{'name':20} {'family':14} {'offline':8} source")
    for name in models.available():
        entry, usable = models.entry(name), "yes" if models.usable_offline(name) else "no"
        print(f"{name:20} {entry.family:14} {usable:8} {entry.source}; {entry.licence}")
    return 0


def _explain(options: argparse.Namespace) -> int:
    from minexp import jobs, results

    config = _config(options)
    jobs.check(options.jobs, options.backend)
    options.out = options.out.absolute()  # a worker's working directory may be another
    references = _references(options.images)
    model = jobs.model(options.model)
    results.check_inputs(references, model, [config], options.out)
    job = partial(
        _explain_one, name=options.model, config=config, out=options.out, force=options.force,
        live=options.jobs == 1,
    )  # fmt: skip
    for line in jobs.run(job, references, jobs=options.jobs, backend=options.backend):
        print(line, flush=True)
    return 0


def _config(options: argparse.Namespace):
    from minexp.config import configure, parse_settings, preset

    changes = parse_settings(options.set, "--set")
    changes |= {k: v for k in ("steps", "seed") if (v := getattr(options, k)) is not None}
    return configure(preset(options.preset), changes)


def _references(given: list[str]) -> list[str]:
    from minexp import images
    from minexp.references import is_path

    references = []
    for item in given:
        listed = is_path(item) and not item.endswith(".json")  # circuit takes results too
        references += map(str, images.list_images(item)) if listed else [item]
    return list(dict.fromkeys(references))


def _explain_one(reference: str, *, name: str, config, out: Path, force: bool, live: bool) -> str:
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
            reference, model, config, out, force=force, on_step=show
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


def _verify(options: argparse.Namespace) -> int:
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


def _train(options: argparse.Namespace) -> int:
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


def _bench(options: argparse.Namespace) -> int:
    import torch
    from tqdm import tqdm

    from minexp import bench, jobs, suites, summary

    jobs.check(options.jobs)
    model, references, methods = suites.suite(
        options.suite, options.criterion, options.limit,
        methods=options.methods.split(",") if options.methods else None,
        every=_every(options.every),
    )  # fmt: skip
    torch.set_num_threads(1)  # as in every worker: seconds are compared
    with tqdm(total=len(references) * len(methods), unit="image") as bar:

        def show(folder: str, _rows: list[dict]) -> None:
            bar.set_postfix_str(folder, refresh=False)
            bar.update()

        numbers = bench.run(
            model, references, methods, options.out, n_jobs=options.jobs, force=options.force,
            table_only=options.table_only, on_item=show,
            about={"every": options.every, "limit": options.limit},
        )  # fmt: skip
    for refused in numbers["refused"]:
        print(f"minexp: refused: {' '.join(map(str, refused.values()))}", file=sys.stderr)
    print(summary.table(numbers))
    return 0


def _circuit(options: argparse.Namespace) -> int:
    from minexp import circuit_run, jobs

    settings = {k: getattr(options, k) for k in ("ranking", "channels", "share")}
    run = circuit_run.evaluate if options.evaluate else circuit_run.draw
    given, out = _references(options.images), options.out.absolute()
    for line in run(given, jobs.model(options.model), out, settings):
        print(line, flush=True)
    return 0


def _every(text: str) -> tuple[int, int]:
    step, _, start = text.partition(":")
    try:
        return int(step), int(start or 0)
    except ValueError:
        raise InputError(f"--every {text}: expected N or N:K, two integers") from None


def _paper(options: argparse.Namespace) -> int:
    from minexp import paper

    if options.jobs < 1:
        raise InputError(f"jobs={options.jobs}: expected an integer >= 1")
    only = [number for number in options.only.split(",") if number]
    return paper.run(
        options.profile, only, dict(options.p),
        jobs=options.jobs, list_only=options.list, force=options.force,
    )  # fmt: skip
