"""Explanations are found again by what they were made from."""

from dataclasses import replace

import pytest
import torch

from minexp import cache, cli
from minexp.alternatives import disjoint
from minexp.config import configure, preset
from minexp.errors import InputError
from minexp.explain import explain
from minexp.paths import home
from minexp.references import open_reference

QUICK = configure(preset("digits"), {"steps": 3, "minimal": False, "noise_draws": 1})


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("MINEXP_HOME", str(tmp_path / "home"))


def test_an_explanation_is_made_once(mnist_cnn):
    path = cache.explanation("mnist:4", mnist_cnn, QUICK)
    made = path.stat().st_mtime_ns
    row = cache.row("mnist:4", mnist_cnn, QUICK)
    assert path.stat().st_mtime_ns == made and path.is_relative_to(home() / "explanations")
    assert row["image"]["path"] == "mnist:4" and row["mask"].shape == (1, 1, 28, 28)


def test_what_differs_stands_beside_it(mnist_cnn):
    first = cache.explanation("mnist:4", mnist_cnn, QUICK)
    others = [
        cache.explanation("mnist:4", mnist_cnn, configure(QUICK, {"seed": 1})),
        cache.explanation("mnist:4", mnist_cnn, QUICK, label=3),
        cache.explanation("mnist:700", mnist_cnn, QUICK),
    ]
    assert len({path.parent for path in [first, *others]}) == 4
    assert all(path.is_file() for path in [first, *others])


def test_a_search_is_made_once_and_comes_back_whole(mnist_cnn, monkeypatch):
    digit, _ = open_reference("mnist:4", mnist_cnn)
    config = replace(QUICK, minimal=True, criterion="label", noise_draws=0, cell=2)
    first = disjoint(mnist_cnn, digit, config, most=2, budget=1.0, search=cache.explained)
    assert len(first) == len(list((home() / "searches").iterdir())) == 2
    fresh = explain(mnist_cnn, digit, config)
    monkeypatch.setattr(cache, "explain", None)  # would be called, were anything forgotten
    again = disjoint(mnist_cnn, digit, config, most=2, budget=1.0, search=cache.explained)
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one.mask, other.mask) and torch.equal(one.masked, other.masked)
        assert vars(one) | {"mask": 0, "masked": 0} == vars(other) | {"mask": 0, "masked": 0}
    assert torch.equal(again[0].mask, fresh.mask) and again[0].certificate == fresh.certificate


def test_it_is_shown_and_cleared(mnist_cnn, capsys):
    assert cli.main(["cache"]) == 0
    where, head = capsys.readouterr().out.splitlines()
    assert where == f"MINEXP_HOME: {home()}" and head.split() == ["folder", "files", "MB"]
    path = cache.explanation("mnist:4", mnist_cnn, QUICK)
    (home() / "weights").mkdir()
    (home() / "weights" / "one").write_bytes(bytes(2_500_000))
    assert cli.main(["cache"]) == 0
    *_, explanations, weights = capsys.readouterr().out.splitlines()
    assert explanations.split()[:2] == ["explanations", "4"] and weights.split()[1:] == ["1", "2.5"]
    assert cli.main(["cache", "--clear", "explanations"]) == 0
    assert capsys.readouterr().out == "explanations: 4 files deleted\n"
    assert not path.exists() and (home() / "weights" / "one").is_file()


@pytest.mark.parametrize("name", ["", ".", "..", "explanations/x", "nothing"])
def test_only_its_own_folders_are_deleted(name):
    (home() / "weights").mkdir(parents=True)
    with pytest.raises(InputError, match="expected one of weights"):
        cache.clear(name)
    assert (home() / "weights").is_dir()
