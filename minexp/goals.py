"""What the project set out to reach on photographs, beside what a benchmark measured."""

from collections.abc import Mapping, Sequence

from minexp.summary import REFERENCE, values


def reached(rows: Sequence[Mapping], numbers: Mapping, slow: Mapping) -> list[dict]:
    """A dict a goal: ``measure``, ``sign`` and ``goal``, ``value``, ``met``.

    ``value`` is None where the benchmark lacks what it takes. Ratios, ours over theirs, are from
    the median over the images that both have; an area's that to :func:`best_peer`'s. Slow
    methods' areas and seconds come from ``slow``, the summary of a run of extremal perturbation,
    ReX and ours on few images.
    """
    methods = numbers["methods"]
    ours, by_label = methods.get("ours", {}), methods.get("ours@label", {})
    mine = [row for row in rows if row["method"] == REFERENCE]
    peak = max(values(mine, "peak_rss_mib"), default=None)
    measured = (
        ("feasible by its own test, confidence", ">=", 0.97, _feasible(ours)),
        ("median area, confidence", "<=", 0.08, _value(ours, "area_median")),
        ("its ratio to the closest fast method's", "<=", 0.15, _ratio(numbers, "confidence")),
        ("its ratio to the closest slow method's", "<=", 0.15, _ratio(slow, "confidence")),
        ("median area, label", "<=", 0.03, _value(by_label, "area_median")),
        ("its ratio to the closest fast method's", "<=", 0.33, _ratio(numbers, "label")),
        ("its ratio to the closest slow method's", "<=", 0.33, _ratio(slow, "label")),
        ("kept on fresh noise, mean, confidence", ">=", 0.97, _value(ours, "noise_kept_mean")),
        ("kept on fresh noise, mean, label", ">=", 0.97, _value(by_label, "noise_kept_mean")),
        (
            "share of cells removable, the most",
            "<=",
            0,
            max(values(mine, "removable"), default=None),
        ),
        ("seconds an image, median, confidence", "<=", 15, _value(ours, "seconds_median")),
        ("its ratio to extremal perturbation's", "<=", 0.2, _faster(slow, "extremal")),
        ("its ratio to ReX's", "<=", 0.1, _faster(slow, "rex")),
        ("peak memory, GiB", "<=", 1.5, peak and peak / 1024),
        ("median pieces, confidence", "<=", 6, _value(ours, "components_median")),
        ("median pieces, label", "<=", 6, _value(by_label, "components_median")),
    )
    return [
        {
            **{"measure": measure, "sign": sign, "goal": goal, "value": value},
            "met": value is not None and (value <= goal if sign == "<=" else value >= goal),
        }
        for measure, sign, goal, value in measured
    ]


def _feasible(numbers: Mapping) -> float | None:
    """Of all images there should be: one that is not finished is not feasible."""
    if not numbers:
        return None
    return numbers["feasible"] / (numbers["images"] + numbers["failures"]["not_finished"])


def _value(numbers: Mapping, name: str) -> float | None:
    estimate = numbers.get(name)
    return None if estimate is None else estimate["value"]


def _faster(numbers: Mapping, method: str) -> float | None:
    """Our seconds over a method's, from the median of theirs over ours."""
    ratio = numbers["paired"].get(method, {}).get("seconds", {}).get("ratio_median")
    return 1 / ratio["value"] if ratio and ratio["value"] else None


def best_peer(numbers: Mapping, criterion: str) -> tuple[str, Mapping] | None:
    """The other method whose area comes closest to ours, image by image, and that comparison.

    By the median of its area over ours; None where no other method was measured.
    """
    found = [
        (name, comparison["area"])
        for name, comparison in numbers["paired"].items()
        if not name.startswith(REFERENCE) and ("@label" in name) == (criterion == "label")
        if comparison["area"]["ratio_median"]
    ]
    return min(found, key=lambda pair: pair[1]["ratio_median"]["value"], default=None)


def _ratio(numbers: Mapping, criterion: str) -> float | None:
    best = best_peer(numbers, criterion)
    return 1 / best[1]["ratio_median"]["value"] if best else None


def table(goals: Sequence[Mapping]) -> str:
    """A Markdown table of :func:`reached`."""
    lines = ["| measure | goal | measured | met |", "|---|---|---|---|"]
    for goal in goals:
        value = "not measured" if goal["value"] is None else f"{goal['value']:.3g}"
        met = "yes" if goal["met"] else "no"
        lines.append(f"| {goal['measure']} | {goal['sign']} {goal['goal']:g} | {value} | {met} |")
    return "\n".join(lines)
