"""Every registered model, tried: what a row says, where weights are and where they are not."""

import json
from dataclasses import replace

import pytest
from huggingface_hub import constants

from minexp import catalogue, config, mnist, models, paths
from minexp.cli import main
from minexp.config import preset
from minexp.explain import explain
from minexp.peers import peak_rss_mib
from minexp.references import open_reference

ALWAYS = {
    *("name", "family", "source", "licence", "reason", "parameters", "size", "taps"),
    *("step_seconds", "memory_gib"),
}
EXPLAINED = {
    *("picture", "label", "area", "confidence_before", "confidence_after", "label_kept"),
    *("feasible", "seconds"),
}


@pytest.fixture(scope="module", autouse=True)
def _few_steps():
    """A preset for digits that takes a second."""
    short = replace(preset("digits"), steps=6, noise_draws=2, cell=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            config, "PRESETS", {**config.PRESETS, "digits": config.Preset(short, "cut short")}
        )
        yield


@pytest.fixture(scope="module")
def usable(_few_steps):
    (row,) = catalogue.check(["mnist_cnn"])
    return row


@pytest.fixture
def bare(tmp_path, monkeypatch, usable):
    """A machine without a hub's weights and without the network."""
    monkeypatch.setenv("MINEXP_OFFLINE", "1")
    monkeypatch.setenv("MINEXP_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    # what a search costs is measured on one network here, half a minute on larger ones
    asked = {name: usable[name] for name in ("step_seconds", "memory_gib")}
    monkeypatch.setattr(catalogue, "_cost_apart", lambda name: asked)
    return tmp_path


def test_what_a_search_costs_is_measured_in_a_process_of_its_own(usable, monkeypatch):
    assert 0 < usable["step_seconds"] < usable["seconds"]
    assert 0.1 < usable["memory_gib"] < 8
    held = bytearray(2**31)
    held[::4096] = bytes(len(range(0, len(held), 4096)))  # touched, so that it counts
    assert catalogue._cost_apart("mnist_cnn")["memory_gib"] < 2 < peak_rss_mib() / 1024


def test_a_model_whose_weights_are_here_is_explained(usable, mnist_cnn):
    assert usable.keys() == ALWAYS | EXPLAINED and usable["reason"] is None
    entry = models.entry("mnist_cnn")
    assert (usable["name"], usable["family"]) == ("mnist_cnn", entry.family)
    assert (usable["source"], usable["licence"]) == (entry.source, entry.licence)
    assert usable["parameters"] == sum(p.numel() for p in mnist_cnn.module.parameters())
    assert (usable["size"], usable["taps"]) == ([28, 28], list(mnist_cnn.taps))
    image, _ = open_reference(usable["picture"], mnist_cnn)
    found = explain(mnist_cnn, image, preset("digits"))
    assert len(found.history) == 6, "else the preset was not cut short"
    assert (usable["label"], usable["area"]) == (found.label_name, found.area)
    assert usable["confidence_before"] == found.confidence
    assert usable["confidence_after"] == found.explanation_confidence
    assert (usable["label_kept"], usable["feasible"]) == (found.label_kept, found.feasible)
    assert usable["label_kept"] and 0 < usable["area"] < 1 and usable["seconds"] > 0
    assert json.loads(json.dumps(usable)) == usable


def test_each_model_gets_a_picture_that_it_knows(mnist_cnn, lite0):
    digit = catalogue._picture(mnist_cnn)
    index = int(digit.removeprefix("mnist:"))
    assert index in mnist.split()[1], "a test digit"
    image, _ = open_reference(digit, mnist_cnn)
    assert int(mnist_cnn(image).argmax()) == mnist.digits()[1][index]
    assert catalogue._picture(lite0) == "bundled:coffee"
    for size, picture in (((32, 32), "chelsea"), ((64, 64), "chelsea"), ((65, 65), "coffee")):
        assert catalogue._picture(replace(lite0, size=size)) == f"bundled:{picture}"


def test_a_model_whose_weights_are_not_here_is_described(bare):
    (row,) = catalogue.check(["resnet18"])
    assert row.keys() == ALWAYS, "nothing is explained with random weights"
    assert row["reason"].startswith("resnet18: ") and "\n" not in row["reason"]
    assert "MINEXP_HOME/weights/resnet18.safetensors" in row["reason"]
    assert "models that work now" not in row["reason"] and "mnist_cnn" not in row["reason"]
    assert row["parameters"] == 11_689_512
    assert (row["size"], row["taps"]) == ([224, 224], ["layer1", "layer2", "layer3", "layer4"])


@pytest.mark.parametrize("content", [None, b"", b"not these"])
def test_weights_trained_here_that_are_missing_or_others(bare, monkeypatch, content):
    """What load_model says besides, the list of working models, is not in the reason."""
    path = bare / "mnist_cnn.safetensors"
    if content is not None:
        path.write_bytes(content)
        path.with_suffix(".json").write_text('{"weights_sha256": "0123"}')
    monkeypatch.setattr(paths, "DATA", bare)
    (row,) = catalogue.check(["mnist_cnn"])
    assert row.keys() == ALWAYS and str(path) in row["reason"]
    assert "models that work now" not in row["reason"] and "lite0" not in row["reason"]
    assert catalogue.line(row).endswith(f"not usable now: {row['reason']}")


def test_rows_come_one_by_one_in_the_order_asked_for(bare, monkeypatch):
    rows = catalogue.check(["resnet18", "mobilenetv3"])
    assert next(rows)["name"] == "resnet18"
    assert [row["name"] for row in rows] == ["mobilenetv3"]
    monkeypatch.setattr(models, "available", lambda: ("mobilenetv3", "resnet18"))
    assert [row["name"] for row in catalogue.check()] == ["mobilenetv3", "resnet18"]


def test_a_row_in_one_line(usable):
    line = catalogue.line(usable)
    assert line.startswith("mnist_cnn ") and "\n" not in line and " 3 taps: mnist:" in line
    assert f"{usable['parameters']:,} parameters" in line and line.endswith(" s")
    assert f"area {100 * usable['area']:.1f} %, label kept" in line
    assert "label LOST" in catalogue.line({**usable, "label_kept": False})
    assert f" {usable['confidence_before']:.2f} -> {usable['confidence_after']:.2f}," in line


def test_what_failed_is_a_lost_label_of_a_model_that_is_here(usable):
    lost, missing = {**usable, "label_kept": False}, {"name": "x", "reason": "not here"}
    assert not catalogue.failed([]) and not catalogue.failed([usable, missing])
    assert not catalogue.failed([{**usable, "feasible": False}])
    assert catalogue.failed([lost]) and catalogue.failed([missing, usable, lost])


def few_names(monkeypatch, *names) -> None:
    check = catalogue.check
    monkeypatch.setattr(catalogue, "check", lambda: check(names))


def test_the_command_prints_and_writes_every_row(bare, monkeypatch, capsys, usable):
    few_names(monkeypatch, "mnist_cnn", "resnet18")
    path = bare / "new" / "models.json"
    assert main(["models", "--check", "--out", str(path)]) == 0
    out, err = capsys.readouterr()
    rows = json.loads(path.read_text())
    assert [row["name"] for row in rows] == ["mnist_cnn", "resnet18"] and err == ""
    assert out.splitlines() == [catalogue.line(row) for row in rows]
    assert {**rows[0], "seconds": 0} == {**usable, "seconds": 0} and rows[1]["reason"]
    assert [file.name for file in path.parent.iterdir()] == ["models.json"]


def test_the_command_without_a_file(bare, monkeypatch, capsys):
    few_names(monkeypatch, "resnet18")
    assert main(["models", "--check"]) == 0
    assert "not usable now: resnet18" in capsys.readouterr().out
    assert list(bare.iterdir()) == []


def test_a_lost_label_exits_1_and_is_written_all_the_same(tmp_path, monkeypatch, capsys, usable):
    monkeypatch.setattr(catalogue, "check", lambda: iter([{**usable, "label_kept": False}]))
    path = tmp_path / "models.json"
    assert main(["models", "--check", "--out", str(path)]) == 1
    assert "label LOST" in capsys.readouterr().out
    assert json.loads(path.read_text())[0]["label_kept"] is False


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--check", "--out", "."], "folder"),
        (["--check", "--out", "file/models.json"], "file"),
        (["--out", "models.json"], "--check"),
    ],
)
def test_a_file_that_will_not_be_written_is_told_at_once(
    tmp_path, monkeypatch, capsys, options, word
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("in the way")
    tried = []
    monkeypatch.setattr(catalogue, "check", lambda: tried)
    assert main(["models", *options]) == 2
    out, err = capsys.readouterr()
    assert out == "" and word in err and len(err.splitlines()) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
