"""What a paper claims beside what was measured, and whether the measurement bears it out."""

from collections.abc import Mapping, Sequence

VERDICTS = {True: "confirmed", False: "not confirmed", None: "not testable here"}


def holds(estimate: Mapping[str, float] | None, sign: str, bound: float) -> bool | None:
    """Whether an estimate {value, low, high} is, with its whole interval, ``sign`` the bound.

    ``sign`` is "<" or ">". False also where the interval reaches the bound: then it is not shown.
    None where there is no estimate.
    """
    if sign not in ("<", ">"):
        raise ValueError(f"sign {sign!r}: expected < or >")
    if estimate is None:
        return None
    return estimate["high"] < bound if sign == "<" else estimate["low"] > bound


def table(claims: Sequence[tuple[str, str, str, bool | None]]) -> str:
    """A Markdown table of claims: what, where it is made, what was measured, whether it holds."""
    lines = ["| claim | where | measured here | verdict |", "|---|---|---|---|"]
    for what, where, measured, verdict in claims:
        lines.append(f"| {what} | {where} | {measured} | **{VERDICTS[verdict]}** |")
    return "\n".join(lines)
