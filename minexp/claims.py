"""What a paper claims beside what was measured, and whether the measurement bears it out."""

from collections.abc import Mapping, Sequence

VERDICTS = {True: "confirmed", False: "not confirmed", None: "not testable here"}
CONTRADICTED = "not confirmed: the contrary"


Verdict = bool | str | None


def holds(estimate: Mapping[str, float] | None, sign: str, bound: float) -> Verdict:
    """Whether an estimate {value, low, high} is, with its whole interval, ``sign`` the bound.

    ``sign`` is "<" or ">". False where the interval holds the bound: then nothing is shown;
    ``CONTRADICTED`` where it lies on the other side. None where there is no estimate.
    """
    if sign not in ("<", ">"):
        raise ValueError(f"sign {sign!r}: expected < or >")
    if estimate is None:
        return None
    below, above = estimate["high"] < bound, estimate["low"] > bound
    if below or above:
        return (below if sign == "<" else above) or CONTRADICTED
    return False


def table(claims: Sequence[tuple[str, str, str, Verdict]]) -> str:
    """A Markdown table of claims: what, where it is made, what was measured, whether it holds.

    A verdict that is a text stands as it is, such as where a search demands what is claimed.
    """
    lines = ["| claim | where | measured here | verdict |", "|---|---|---|---|"]
    for what, where, measured, verdict in claims:
        said = verdict if isinstance(verdict, str) else VERDICTS[verdict]
        lines.append(f"| {what} | {where} | {measured} | **{said}** |")
    return "\n".join(lines)
