"""Many digits' abductive explanations as numbers: results in, cells and medians out."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from minexp import abductive_run, mnist
from minexp.errors import InputError
from minexp.summary import interval

INK = 0.5  # a pixel at least so bright belongs to the digit


def read(folder: Path) -> list[dict]:
    """The results of ``minexp abductive --out FOLDER``, by index.

    Raises InputError for none, or for some that other plans, networks or code have made.
    """
    paths = {int(path.name.partition(".")[0]): path for path in folder.glob("*.abductive.json")}
    if not paths:
        raise InputError(
            f"{folder}: no results; write them with: minexp abductive INDEX ... --out {folder}"
        )
    found = [abductive_run.read(paths[index]) for index in sorted(paths)]
    for name in ("plan", "model", "weights_sha256", "code_sha256"):
        if any(one[name] != found[0][name] for one in found):
            raise InputError(f"{folder}: its results differ in their {name}; make them in one run")
    return found


def digest(folder: Path) -> str:
    """sha256 over the folder's results, for a figure's sidecar."""
    found = [path.read_bytes() for path in sorted(folder.glob("*.abductive.json"))]
    return hashlib.sha256(b"\0".join(found)).hexdigest()


def row(result: dict) -> dict:
    """One digit's cells; numbers of pixels, and those of the mask None where none was asked for.

    ``set``: the pixels of which a proof says that they suffice, the fixed and the unknown ones.
    """
    digit = mnist.digits()[0][result["index"]].ravel()
    mask, fixed, unknown = result["mask"], len(result["fixed"]), len(result["unknown"])
    found = {
        **{name: result[name] for name in ("index", "label_index", "correct", "eps", "seconds")},
        "fixed": fixed,
        "ink": int((digit[result["fixed"]] >= INK).sum()),
        "unknown": unknown,
        "set": fixed + unknown,
        "minimal": result["subset_minimal"],
        "wrong": result["audit"]["wrong"],
        "proof": result["audit"]["proof"],
        "mask": None if result["mask_pixels"] is None else len(result["mask_pixels"]),
        **dict.fromkeys(("added", "mask_verdict", "mask_safe_eps", "mask_feasible")),
    }
    if mask is not None:
        found |= {f"mask_{name}": mask[name] for name in ("verdict", "safe_eps", "feasible")}
        found["wrong"] += mask["wrong"]
        if mask["added"] is not None:
            found["added"] = len(mask["added"]) + len(mask["added_unknown"])
            found["wrong"] += mask["audit"]["wrong"]
    return found


def summarise(rows: Sequence[dict]) -> dict:
    """Counts, medians with 95 % bootstrap intervals, and the verdicts on the masks.

    ``not_empty``: the same of the digits of which something must be fixed, or may have to be; only
    there does a guarantee of a mask say anything, for of the others no pixel at all is enough.
    ``proven_again`` None: not asked.
    """
    return _summary(rows) | {"not_empty": _summary([row for row in rows if row["set"]])}


def _summary(rows: Sequence[dict]) -> dict:
    verdicts = [row["mask_verdict"] for row in rows if row["mask_verdict"]]
    fixed = sum(row["fixed"] for row in rows)
    proofs = [row["proof"] for row in rows]
    asked = any(proof != "not asked" for proof in proofs)
    return {
        "digits": len(rows),
        "misread": sum(not row["correct"] for row in rows),
        "settled": sum(row["minimal"] for row in rows),
        "none_needed": sum(not row["set"] for row in rows),
        "wrong": sum(row["wrong"] for row in rows),
        "proven_again": sum(proof == "safe" for proof in proofs) if asked else None,
        **{
            name: _median(rows, name)
            for name in ("fixed", "unknown", "set", "mask", "added", "seconds", "mask_safe_eps")
        },
        "ink_share": sum(row["ink"] for row in rows) / fixed if fixed else None,
        "masks_feasible": sum(bool(row["mask_feasible"]) for row in rows),
        "mask_verdicts": {name: verdicts.count(name) for name in ("safe", "unsafe", "unknown")},
    }


def _median(rows: Sequence[dict], name: str) -> dict[str, float] | None:
    return interval([row[name] for row in rows if row[name] is not None], np.median)
