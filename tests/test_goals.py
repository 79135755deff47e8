"""Goals beside measured values, by hand."""

import pytest
from tables import build, row

from minexp import goals


def photographs(method, criterion="confidence", **columns) -> list[dict]:
    """A row for each of the columns' cells."""
    cells = [dict(zip(columns, line, strict=True)) for line in zip(*columns.values(), strict=True)]
    return [row(str(k), method, criterion, **line) for k, line in enumerate(cells)]


MINE = [
    *photographs(
        "ours", area=(0.3, 0.05, 0.07), seconds=(10, 20, 12), components=(9, 5, 7),
        noise_kept=(1, 1, 0.94), feasible=(True, False, True), removable=(0, 0, 0),
        peak_rss_mib=(512, 1024, 768),
    ),
    *photographs(
        "ours", "label", area=(0.06, 0.02, 0.01), seconds=(1, 1, 1), components=(6, 1, 2),
        noise_kept=(1, 0.9, 0.95), removable=(0, 0.25, 0), peak_rss_mib=(2048, 1024, 512),
    ),
]  # fmt: skip
VARIANTS = [
    *photographs("ours_no_noise", area=(0.001,)),
    *photographs("ours_no_noise", "label", area=(0.001,)),
    *photographs("ours+tv=20", area=(0.002,)),
    *photographs("ours+tv=20", "label", area=(0.002,)),
]
OTHERS = [
    *photographs("rise", area=(0.2, 0.5, 0.6)),
    *photographs("rise", "label", area=(0.2, 0.1, 0.05)),
    *photographs("gradcam", area=(0.3, 0.4, 0.7)),
    *photographs("gradcam", "label", area=(0.2, 0.2, 0.2)),
]
EXTREMAL = photographs("extremal", area=(0.9, 0.9, 0.9), seconds=(100, 50, 36))
REX = [
    *photographs("rex", area=(0.9, 0.9, 0.9), seconds=(200, 200, 36)),
    *photographs("rex", "label", area=(0.12, 0.01, 0.02)),
]


def test_goals_by_hand():
    rows, slow = [*MINE, *VARIANTS, *OTHERS], [*MINE, *EXTREMAL, *REX]
    found = goals.reached(rows, build(rows), build(slow))
    assert [(goal["value"], goal["met"]) for goal in found] == [
        (pytest.approx(2 / 3), False),  # feasible
        (0.07, True),  # area, confidence
        (pytest.approx(1 / 8), True),  # of gradcam's, 1, 8 and 10 times ours; rise's are more
        (pytest.approx(0.07 / 0.9), True),  # of either slow one's, 3, 18 and 12.9 times ours
        (0.02, True),  # area, label
        (pytest.approx(1 / 5), True),  # of rise's
        (pytest.approx(1 / 2), False),  # of ReX's, 2, 0.5 and 2 times ours
        (pytest.approx(0.98), True),  # on noise, confidence
        (pytest.approx(0.95), False),  # on noise, label
        (0.25, False),  # removable, by either criterion
        (12, True),  # seconds
        (pytest.approx(1 / 3), False),  # of extremal, 10, 2.5 and 3 times ours
        (pytest.approx(0.1), True),  # of ReX, 20, 10 and 3 times ours
        (2.0, False),  # GiB, by either criterion
        (7, False),  # pieces, confidence
        (2, True),  # pieces, label
    ]


def measured(rows) -> list[bool]:
    """Of each goal; what was not is not met."""
    found = goals.reached(rows, build(rows), build(rows))
    assert all(goal["value"] is not None or goal["met"] is False for goal in found)
    return [goal["value"] is not None for goal in found]


def test_what_was_not_measured_is_not_met():
    rows = [*MINE, *VARIANTS]
    # no other method, neither extremal nor ReX
    assert [k for k, known in enumerate(measured(rows)) if not known] == [2, 3, 5, 6, 11, 12]
    rows += OTHERS
    assert [k for k, known in enumerate(measured(rows)) if not known] == [11, 12]
    rows = [row("a"), row("a", criterion="label")]  # areas, feasible and seconds alone
    assert [k for k, known in enumerate(measured(rows)) if known] == [0, 1, 4, 10]


@pytest.mark.parametrize(("beyond", "met"), [(0, True), (1e-6, False)])
def test_a_value_at_its_goal_meets_it(beyond, met):
    """Each is at its goal, or beyond it by a millionth and one image that is not feasible."""
    more, less = 1 + beyond, 1 - beyond
    exact = 1 + 1e-12  # of a quotient, which would round to either side
    cells = {
        "components": 6 * more, "noise_kept": "", "seconds": 15.0 * more,
        "removable": beyond, "peak_rss_mib": 1536 * more,
    }  # fmt: skip
    rows = [
        row(str(k), criterion=criterion, area=area * more, feasible=k >= (3 if met else 4), **cells)
        for criterion, area in (("confidence", 0.08), ("label", 0.03))
        for k in range(100)
    ]
    rows[0]["noise_kept"] = rows[100]["noise_kept"] = 0.97 * less
    rows += [
        row("0", "rise", area=0.08 / 0.15 * exact),
        row("0", "rise", "label", area=0.03 / 0.33 * exact),
    ]
    rows += [row("0", "extremal", area=1.0, seconds=75.0), row("0", "rex", area=1.0, seconds=150.0)]
    assert {goal["met"] for goal in goals.reached(rows, build(rows), build(rows))} == {met}


def test_the_goals_table_has_a_line_a_goal():
    given = [
        {"measure": "median area", "sign": "<=", "goal": 0.08, "value": 0.0624999, "met": True},
        {"measure": "feasible", "sign": ">=", "goal": 0.97, "value": 0.5, "met": False},
        {"measure": "seconds", "sign": "<=", "goal": 15, "value": None, "met": False},
    ]
    assert goals.table(given).splitlines() == [
        "| measure | goal | measured | met |",
        "|---|---|---|---|",
        "| median area | <= 0.08 | 0.0625 | yes |",
        "| feasible | >= 0.97 | 0.5 | no |",
        "| seconds | <= 15 | not measured | no |",
    ]
    found = goals.reached(MINE, build(MINE), build(MINE))
    lines = goals.table(found).splitlines()[2:]
    assert [line.split(" | ")[0] for line in lines] == [f"| {g['measure']}" for g in found]
