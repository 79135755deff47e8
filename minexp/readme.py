"""The README's measured numbers, from the files that commands wrote: ``make readme``.

Each block between ``<!-- measured:NAME -->`` and ``<!-- end -->`` is written anew.
"""

import json
import re

import yaml

from minexp import circuit_table, goals
from minexp.paths import FIGURES, NOTEBOOKS, ROOT, write_text
from minexp.summary import read, shown, with_interval

README = ROOT / "README.md"
BENCH = FIGURES / "bench"


def photographs() -> str:
    """The bundled photographs, a row each, and their medians."""
    table, summary = read(BENCH / "bundled")
    rows = [row for row in table if (row["method"], row["criterion"]) == ("ours", "confidence")]
    lines = [
        "| photograph | confidence | explanation's | pixels | pieces | on noise | s |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['image'].removeprefix('bundled:')} | {row['confidence_before']:.2f} "
            f"| {row['confidence_after']:.2f} | {row['area']:.1%} "
            f"| {row['components']:.0f} | {row['noise_kept']:.0%} "
            f"| {row['seconds']:.0f} |"
        )
    ours = summary["methods"]["ours"]
    worst = min(row["noise_kept"] for row in rows)
    slowest = max(row["seconds"] for row in rows)
    lines += [
        "",
        f"Feasible: {ours['feasible']} of {ours['images']}. "
        f"Median area {with_interval(ours['area_median'], '.1%')}; "
        f"median pieces {ours['components_median']['value']:g}. "
        f"Label kept on {ours['noise_kept_mean']['value']:.1%} of 32 fresh Gaussian backgrounds "
        f"on average, {worst:.0%} on the worst photograph. "
        f"{ours['seconds_median']['value']:.0f} s a photograph (median; slowest {slowest:.0f} s), "
        f"threads: {summary['threads']}, cores: {summary['processors']}.",
    ]
    return "\n".join(lines)


def digits() -> str:
    """MNIST, with and without noise to survive."""
    lines = [
        "| 100 test digits | label kept | pixels, mean | confidence, mean change | kept on noise "
        "| feasible | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    names = {"ours_no_noise": "on black (the paper's)", "ours": "surviving noise too"}
    measured = read(BENCH / "mnist")[1]["methods"]
    for method in [name for name in measured if name in names]:
        ours = measured[method]
        lines.append(
            f"| {names[method]} | {ours['label_kept'] / ours['images']:.0%} "
            f"| {with_interval(ours['area_mean'], '.2%')} "
            f"| {ours['confidence_change_mean']['value']:+.3f} "
            f"| {ours['noise_kept_mean']['value']:.0%} | {ours['feasible']} of {ours['images']} "
            f"| {ours['seconds_median']['value']:.1f} |"
        )
    return "\n".join(lines)


def benchmark() -> str:
    """What the project set out to reach, and what the sample photographs gave."""
    rows, numbers = read(BENCH / "photographs")
    finished = {name: numbers["methods"][name]["images"] for name in ("ours", "ours@label")}
    few = read(BENCH / "slow")[1]
    beside = [
        f"{name} on {few['paired'].get(method, {}).get('area', {}).get('pairs', 0)}"
        for name, method in (("extremal perturbation", "extremal"), ("ReX", "rex"))
    ]
    quiet, freed = "ours+noise_draws=0+robustness=0", few["methods"]
    passes = {k: numbers["methods"]["ours"][f"{k}_passes_median"] for k in ("forward", "backward")}
    areas = [with_interval(freed[quiet + at]["area_median"], ".1%") for at in ("", "@label")]
    return (
        f"{goals.table(goals.reached(rows, numbers, few))}\n\n"
        f"Of {numbers['images']} photographs {finished['ours']} under confidence and "
        f"{finished['ours@label']} under label; beside ours, {' and '.join(beside)}. "
        "Surviving noise is asked of ours alone, and costs most of its pixels: without it, on the "
        f"same {freed[quiet]['images']}, {areas[0]} of the pixels keep the confidence and "
        f"{areas[1]} the label, but the label survives on "
        f"{freed[quiet]['noise_kept_mean']['value']:.0%} of fresh noise. The seconds go into "
        f"{passes['forward']['value']:,.0f} forward passes a photograph (median), of which "
        f"{passes['backward']['value']:,.0f} are the search's own; the others try, cut and certify "
        "its masks on zero fill and on every background."
    )


def networks() -> str:
    """Every registered model as ``minexp models --check`` found it."""
    lines = [
        "| model | family | parameters | weights | keeps | pixels | confidence | s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in json.loads((FIGURES / "models.json").read_text(encoding="utf-8")):
        head = f"| `{row['name']}` | {row['family']} | {row['parameters']:,} "
        if row["reason"]:
            lines.append(f"{head}| not here; {row['source']} | | | | |")
            continue
        lines.append(
            f"{head}| {row['source']} | {row['label'] if row['label_kept'] else 'nothing'} "
            f"| {row['area']:.1%} | {row['confidence_before']:.2f} → "
            f"{row['confidence_after']:.2f} | {row['seconds']:.0f} |"
        )
    return "\n".join(lines)


def models() -> str:
    """Accuracy, size and recipe of the networks trained here, and the mask network's size."""
    from minexp.masknet import UNet, parameter_count  # torch, only where it is needed

    lines = ["| network | test accuracy | parameters | epochs | minutes |", "|---|---|---|---|---|"]
    for path in sorted((ROOT / "data").glob("*.json")):
        card = json.loads(path.read_text(encoding="utf-8"))
        lines.append(
            f"| `{card['model']}` | {card['test_accuracy']:.1%} | {card['parameters']:,} "
            f"| {card['recipe']['epochs']} | {card['seconds'] / 60:.0f} |"
        )
    size = parameter_count(UNet(3, (224, 224), 56))
    mask = f"The mask network of a 224 × 224 photograph has {size:,} parameters."
    return "\n".join([*lines, "", mask])


def areas() -> str:
    """What our masks take of CIFAR-10's test pictures, a row a network that has a table."""
    lines = [
        "| network | pictures | feasible | median area | pieces | confidence, mean change | s |",
        "|---|---|---|---|---|---|---|",
    ]
    for path in sorted((ROOT / "data").glob("*_cifar10.json")):
        if not (BENCH / path.stem / "summary.json").is_file():
            continue
        ours = read(BENCH / path.stem)[1]["methods"]["ours"]
        lines.append(
            f"| `{path.stem}` | {ours['images']} | {ours['feasible']} "
            f"| {with_interval(ours['area_median'], '.1%')} "
            f"| {ours['components_median']['value']:g} "
            f"| {ours['confidence_change_mean']['value']:+.3f} "
            f"| {ours['seconds_median']['value']:.0f} |"
        )
    return "\n".join(lines)


def circuits() -> str:
    """What circuits of a fifth of each layer's channels keep, and lose, a row a ranking."""
    lines = [
        "| network | images | channels by | kept | lost | kept, with zeros | lost, with zeros |",
        "|---|---|---|---|---|---|---|",
    ]
    for folder in sorted(BENCH.glob("circuits_*/")):
        found = circuit_table.read(folder)
        at = {(r["ranking"], r["ablation"], r["shortcuts"], r["fraction"]): r
              for r in found["curves"]}  # fmt: skip
        for ranking in ("energy", "integrated", "integrated_other", "random"):
            both = (at[ranking, ablation, False, 0.2] for ablation in ("mean", "zero"))
            cells = [shown(row[measure], ".2f") for row in both for measure in ("kept", "lost")]
            about = f"| {folder.name.removeprefix('circuits_')} | {found['images']} | {ranking} "
            lines.append(f"{about}| {' | '.join(cells)} |")
    return "\n".join(lines)


def notebooks() -> str:
    """Figure -> notebook -> command -> minutes, from the figures' sidecars and the last run."""
    lines = ["| figure | notebook | command | minutes |", "|---|---|---|---|"]
    for sidecar in sorted(FIGURES.glob("[0-9]*.json")):
        figure = json.loads(sidecar.read_text(encoding="utf-8"))
        name, notebook = figure["figure"], figure["notebook"]
        run = json.loads((FIGURES / "executed" / f"{notebook}.json").read_text(encoding="utf-8"))
        command = f"minexp paper --only {notebook[:2]}"
        lines.append(
            f"| [{name}](figures/{name}.png) | [{notebook}](figures/executed/{notebook}.ipynb) "
            f"| `{command}` | {run['seconds'] / 60:.1f} |"
        )
    return "\n".join(lines)


def profile() -> str:
    """What the paper profile's notebooks need beyond the quick one's."""
    rows = json.loads((FIGURES / "models.json").read_text(encoding="utf-8"))
    known = {row["name"]: row for row in rows}
    content = yaml.safe_load((NOTEBOOKS / "params" / "paper.yaml").read_text(encoding="utf-8"))
    lines = [
        "| notebook | network | download, MB | s a step of the search | memory, GiB |",
        "|---|---|---|---|---|",
    ]
    for number, values in content.items():
        for row in (known[v] for v in values.values() if isinstance(v, str) and v in known):
            size = 4 * row["parameters"] / 1e6  # of float32
            lines.append(
                f"| {number} | `{row['name']}` | {size:.0f} | {row['step_seconds']:.2f} "
                f"| {row['memory_gib']:.1f} |"
            )
    return "\n".join(lines)


BLOCKS = {
    "photographs": photographs,
    "digits": digits,
    "benchmark": benchmark,
    "models": models,
    "areas": areas,
    "networks": networks,
    "circuits": circuits,
    "notebooks": notebooks,
    "profile": profile,
}


def render(text: str) -> str:
    """``text`` with every measured block written anew. Raises KeyError for an unknown one."""
    return re.sub(
        r"(<!-- measured:(\w+) -->\n)(?:(?!<!-- ).)*(<!-- end -->)",
        lambda found: f"{found[1]}{BLOCKS[found[2]]()}\n{found[3]}",
        text,
        flags=re.DOTALL,
    )


if __name__ == "__main__":
    write_text(README, render(README.read_text(encoding="utf-8")))
