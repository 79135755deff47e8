"""A claim holds only if the whole interval says so."""

import pytest

from minexp import claims

BETWEEN = {"value": 0.5, "low": 0.3, "high": 0.7}


@pytest.mark.parametrize(
    ("sign", "bound", "expected"),
    [
        ("<", 0.8, True), ("<", 0.7, False), ("<", 0.6, False), (">", 0.2, True),
        (">", 0.3, False), (">", 0.9, claims.CONTRADICTED), ("<", 0.1, claims.CONTRADICTED),
    ],
)  # fmt: skip
def test_the_whole_interval_counts(sign, bound, expected):
    assert claims.holds(BETWEEN, sign, bound) == expected
    assert claims.holds(None, sign, bound) is None


def test_another_sign_is_refused():
    with pytest.raises(ValueError, match="expected < or >"):
        claims.holds(BETWEEN, "<=", 1)


def test_a_table_has_a_line_a_claim():
    rows = [
        ("small", "section 4", "5 %", True),
        ("sharp", "6.1", "–", None),
        ("x", "y", "z", False),
        ("kept", "3", "all", "demanded by the search"),
    ]
    head, rule, *lines = claims.table(rows).splitlines()
    assert head.count("|") == rule.count("|") == 5
    assert lines[0] == "| small | section 4 | 5 % | **confirmed** |"
    assert lines[1].endswith("**not testable here** |") and lines[2].endswith("**not confirmed** |")
    assert lines[3].endswith("**demanded by the search** |")
