"""The README's numbers are those of the files; what it names exists."""

import re

from minexp import readme
from minexp.paths import ROOT

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_measured_blocks_are_what_the_files_say():
    assert readme.render(TEXT) == TEXT, "run make readme"


def test_every_block_is_used_once_and_filled():
    assert sorted(re.findall(r"<!-- measured:(\w+) -->", TEXT)) == sorted(readme.BLOCKS)
    assert "-->\n<!-- end -->" not in TEXT


def test_every_linked_file_exists():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", TEXT)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_a_block_is_replaced_and_nothing_else(monkeypatch):
    monkeypatch.setitem(readme.BLOCKS, "models", lambda: "new")
    text = "a\n<!-- measured:models -->\nold\n<!-- end -->\nb\n"
    assert readme.render(text) == "a\n<!-- measured:models -->\nnew\n<!-- end -->\nb\n"
