"""The command line: what it prints, what it writes, how it refuses."""

import json
import os
import re
import struct
import subprocess
import sys
import zlib
from dataclasses import asdict

import numpy as np
import pytest
from huggingface_hub import constants
from PIL import Image

from minexp import jobs, models
from minexp.channels import RANKINGS
from minexp.cli import main
from minexp.config import PRESETS

COMMANDS = (
    *("models", "fetch", "explain", "verify", "train", "bench", "sanity", "circuit", "paper"),
)
QUICK = ["--model", "mnist_cnn", "--set", "grid=28", "--steps", "20"]


def run(*arguments, capsys) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of one call in this process."""
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as stop:  # argparse
        code = stop.code
    return code, *capsys.readouterr()


def tree(folder) -> dict:
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def png_header(width: int, height: int) -> bytes:
    """A PNG that says its size and holds no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        content = kind + data
        return struct.pack(">I", len(data)) + content + struct.pack(">I", zlib.crc32(content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)])
def test_help(command, capsys):
    code, out, err = run(*command, "--help", capsys=capsys)
    assert code == 0 and err == "" and out.startswith("usage: minexp")
    assert all(name in out for name in COMMANDS) or command


def test_every_ranking_is_in_the_help_which_imports_none_of_them(capsys):
    out = run("circuit", "--help", capsys=capsys)[1]
    assert set(RANKINGS) <= set(re.findall(r"[a-z_]+", out))


def test_every_contracted_option_is_in_the_help(capsys):
    out = run("explain", "--help", capsys=capsys)[1]
    options = (
        "model",
        "preset",
        "set",
        "steps",
        "seed",
        "label",
        "out",
        "jobs",
        "backend",
        "force",
    )
    for option in options:
        assert f"--{option} " in out or f"--{option}\n" in out
    assert "--debug" in out


def pictures(folder) -> None:
    """Good and bad ones of every kind."""
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    for name in ("good.png", "good.jpg", "other.png"):
        Image.fromarray(pixels).save(folder / name)
    (folder / "text.png").write_text("not a picture")
    (folder / "cut.png").write_bytes((folder / "good.png").read_bytes()[:900])
    (folder / "empty.png").write_bytes(b"")
    Image.fromarray(pixels[:1, :1]).save(folder / "dot.png")
    (folder / "huge.png").write_bytes(png_header(10_001, 10_000))
    (folder / "void").mkdir()
    (folder / "file").write_text("in the way")


BAD = {
    "missing file": (["missing.png"], "missing.png"),
    "empty directory": (["void"], "void"),
    "not an image": (["text.png"], "text.png"),
    "truncated": (["cut.png"], "cut.png"),
    "empty file": (["empty.png"], "empty.png"),
    "1 x 1": (["dot.png"], "dot.png"),
    "over 100 megapixels": (["huge.png"], "huge.png"),
    "bad after good": (["good.png", "text.png"], "text.png"),
    "unknown digit": (["mnist:5000"], "mnist:5000"),
    "unknown bundled": (["bundled:nope"], "bundled:nope"),
    "unknown model": (["good.png", "--model", "nope"], "nope"),
    "unknown preset": (["good.png", "--preset", "nope"], "nope"),
    "unknown lambda": (["good.png", "--set", "nope=1"], "nope"),
    "negative lambda": (["good.png", "--set", "area=-1"], "area=-1"),
    "lambda not a number": (["good.png", "--set", "tv=much"], "total_variation='much'"),
    "infinite lambda": (["good.png", "--set", "tv=Infinity"], "total_variation=inf"),
    "no equals sign": (["good.png", "--set", "area"], "--set area"),
    "unknown criterion": (["good.png", "--set", "criterion=x"], "criterion='x'"),
    "unknown tap": (["good.png", "--set", 'tap_weights={"nope": 1}'], "nope"),
    "no steps": (["good.png", "--steps", "0"], "steps=0"),
    "negative seed": (["good.png", "--seed", "-1"], "seed=-1"),
    "seed of 65 bits": (["good.png", "--seed", str(2**64)], str(2**64)),
    "grid too fine": (["good.png", "--set", "grid=64"], "grid=64"),
    "no jobs": (["good.png", "--jobs", "0"], "jobs=0"),
    "unknown backend": (["good.png", "--backend", "nope"], "nope"),
    "same stem": (["good.png", "good.jpg"], "good.jpg"),
    "out is a file": (["good.png", "--out", "file"], "file"),
    "out is below a file": (["good.png", "--out", "file/below"], "file/below"),
    "not a number": (["good.png", "--steps", "many"], "many"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_exits_2_in_one_line_and_writes_nothing(here, capsys, case):
    given, word = BAD[case]
    pictures(here)
    before = tree(here)
    code, out, err = run("explain", *QUICK, *given, capsys=capsys)
    assert code == 2 and out == ""
    assert word in err and "Traceback" not in err
    assert err.endswith("\n") and len(err.splitlines()) == 1
    assert tree(here) == before


@pytest.mark.parametrize("name", ["missing.json", "text.json", "folder.json", "list.json"])
def test_verify_refuses_what_is_no_result(here, capsys, name):
    (here / "text.json").write_text("not json")
    (here / "list.json").write_text("[1]")
    (here / "folder.json").mkdir()
    code, out, err = run("verify", name, capsys=capsys)
    assert code == 2 and out == "" and name in err and len(err.splitlines()) == 1


def test_train_of_an_unknown_model(capsys):
    code, out, err = run("train", "nope", capsys=capsys)
    assert code == 2 and out == "" and "'nope'" in err and "mnist_cnn" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("arguments", [[], ["nope"], ["explain"], ["models", "--nope"]])
def test_wrong_usage_exits_2(capsys, arguments):
    code, out, err = run(*arguments, capsys=capsys)
    assert code == 2 and out == "" and "minexp" in err


def test_debug_shows_the_traceback_and_keeps_the_exit_code(here, capsys):
    code, _, err = run("explain", "missing.png", "--debug", capsys=capsys)
    assert code == 2 and "Traceback" in err and "missing.png" in err


def test_models(capsys):
    code, out, err = run("models", capsys=capsys)
    assert code == 0 and err == ""
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(models.available())
    for line in lines[1:]:
        name, usable = line.split()[0], " yes " in line
        assert usable == models.usable_offline(name) and usable != (" no " in line), line
    assert models.usable_offline("efficientnet_lite0") and models.usable_offline("mnist_cnn")


def test_explain_writes_five_files_then_keeps_them(here, capsys):
    code, out, _ = run("explain", "mnist:4", *QUICK, "--out", "out", capsys=capsys)
    assert code == 0 and len(out.splitlines()) == 1 and out.startswith("mnist:4: ")
    assert "(kept result)" not in out
    assert {path.name for path in (here / "out").iterdir()} == {
        f"mnist-4.{end}"
        for end in ("json", "mask.png", "explanation.png", "history.jsonl", "panel.png")
    }
    result = json.loads((here / "out" / "mnist-4.json").read_text())
    assert result["image"]["path"] == "mnist:4" and result["steps"] == 20
    assert f"area {100 * result['area']:.1f} %" in out
    assert ("NOT feasible" in out) is not result["feasible"]
    before = tree(here)
    code, again, _ = run("explain", "mnist:4", *QUICK, "--out", "out", capsys=capsys)
    assert code == 0 and again == out.replace("\n", " (kept result)\n") and tree(here) == before
    code, forced, _ = run("explain", "mnist:4", *QUICK, "--out", "out", "--force", capsys=capsys)
    assert code == 0 and forced == out and tree(here) != before


def test_a_label_asked_for_reaches_the_result(here, capsys):
    given = ["mnist:4", *QUICK, "--steps", "2", "--set", "minimal=false", "--out", "out"]
    code, out, _ = run("explain", *given, "--label", "8", capsys=capsys)
    result = json.loads((here / "out" / "mnist-4.json").read_text())
    assert code == 0 and out.startswith("mnist:4: 8 ")
    assert (result["label_asked"], result["label_index"]) == (8, 8) != result["decision_index"]
    assert ("NOT feasible" in out) is not result["feasible"]
    code, _, err = run("explain", *given, "--label", "eight", capsys=capsys)
    assert code == 2 and "label 'eight'" in err


def test_settings_reach_the_result(here, capsys):
    code, *_ = run(
        "explain", "mnist:4", "--model", "mnist_cnn", "--preset", "mnist", "--steps", "2",
        "--seed", "3", "--set", "grid=14", "--set", "area=15", "--set", "noise_draws=0",
        "--set", "criterion=label", "--set", "adapt=true", capsys=capsys,
    )  # fmt: skip
    config = json.loads((here / "explanations" / "mnist-4.json").read_text())["config"]
    assert code == 0 and (config["steps"], config["seed"], config["grid"]) == (2, 3, 14)
    assert (config["weights"]["area"], config["weights"]["total_variation"]) == (15, 50.0)
    assert (config["criterion"], config["adapt"], config["noise_draws"]) == ("label", True, 0)


def test_a_folder_and_a_repeated_picture(here, capsys):
    (here / "in").mkdir()
    for name in ("b", "a"):
        Image.new("L", (28, 28), 200).save(here / "in" / f"{name}.png")
    code, out, _ = run(
        "explain", "in", "in/a.png", "--model", "mnist_cnn", "--set", "grid=8", "--steps", "1",
        "--out", "out", capsys=capsys,
    )  # fmt: skip
    assert code == 0 and [line.split(": ")[0] for line in out.splitlines()] == [
        os.path.join("in", "a.png"), os.path.join("in", "b.png"),
    ]  # fmt: skip


@pytest.mark.slow
def test_two_jobs_print_in_order_and_write_all(here, capsys):
    digits = ["mnist:9", "mnist:4", "mnist:2000"]
    folder = here / "out"  # absolute: workers that another test started have its directory
    code, out, _ = run("explain", *digits, *QUICK, "--jobs", "2", "--out", folder, capsys=capsys)
    assert code == 0 and [line.rpartition(": ")[0] for line in out.splitlines()] == digits
    assert len(list((here / "out").iterdir())) == 5 * 3  # JSON, mask, explanation, panel, history
    assert run("verify", *sorted((here / "out").glob("*.json")), capsys=capsys)[0] == 0


def test_verify(here, capsys):
    run("explain", "mnist:4", *QUICK, "--out", "out", capsys=capsys)
    path = here / "out" / "mnist-4.json"
    assert run("verify", path, capsys=capsys) == (0, f"{path}: ok\n", "")
    result = json.loads(path.read_text())
    (here / "out" / "copy.json").write_text(json.dumps(result | {"area": result["area"] + 0.01}))
    (here / "out" / "copy.mask.png").write_bytes((here / "out" / "mnist-4.mask.png").read_bytes())
    copy = here / "out" / "copy.json"
    code, out, err = run("verify", copy, path, capsys=capsys)
    assert code == 1 and err == "" and len(out.splitlines()) == 2
    assert out.startswith(f"{copy}: area: reported ") and out.endswith(f"{path}: ok\n")


def test_circuit_writes_four_files_a_picture(here, capsys):
    code, out, err = run(
        "circuit", "mnist:4", "mnist:9", "--model", "mnist_cnn", "--channels", "3", "--ranking",
        "departure", "--out", "out", capsys=capsys,
    )  # fmt: skip
    assert (code, err) == (0, "") and len(out.splitlines()) == 2 and "10 nodes, 21 edges" in out
    ends = ("circuit.json", "graphml", "html", "svg")
    assert {path.name for path in (here / "out").iterdir()} == {
        f"mnist-{index}.{end}" for index in (4, 9) for end in ends
    }


def test_circuit_of_a_result_compares_image_and_explanation(here, capsys):
    run("explain", "mnist:4", *QUICK, "--out", "out", capsys=capsys)
    code, out, _ = run(
        "circuit", "out/mnist-4.json", "--model", "mnist_cnn", "--out", "out", capsys=capsys
    )
    assert code == 0 and "nodes shared" in out
    found = json.loads((here / "out" / "mnist-4.comparison.json").read_text())
    assert 0 <= found["jaccard"] <= 1 and 0 <= found["overlap"]["edges"] <= 1
    assert (here / "out" / "mnist-4.explanation.circuit.json").exists()
    assert (here / "out" / "mnist-4.pair.svg").stat().st_size > 10_000
    code, out, err = run("circuit", "out/mnist-4.json", "--out", "no", capsys=capsys)
    assert code == 2 and out == "" and "mnist_cnn" in err and not (here / "no").exists()


@pytest.mark.parametrize(
    ("given", "word"),
    [
        (["missing.png"], "missing.png"),
        (["mnist:4", "--ranking", "nope"], "'nope'"),
        (["mnist:4", "--channels", "0"], "channels=0"),
        (["mnist:4", "--share", "2"], "share=2"),
        (["mnist:4", "--share", "0.5", "--evaluate"], "--share"),
        (["text.json"], "text.json"),
        (["mnist:4", "--model", "mnist_vit"], "mnist_vit"),
    ],
)
def test_circuit_refuses_bad_input(here, capsys, given, word):
    (here / "text.json").write_text("{}")
    before = tree(here)
    code, out, err = run("circuit", "--model", "mnist_cnn", *given, capsys=capsys)
    assert code == 2 and out == "" and word in err and len(err.splitlines()) == 1
    assert tree(here) == before


def minexp(*arguments, cwd) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "minexp", *arguments], cwd=cwd, capture_output=True, text=True
    )


def test_as_a_program_help_needs_no_torch(here):
    done = minexp("--help", cwd=here)
    assert (done.returncode, done.stderr) == (0, "") and "explain" in done.stdout


def test_as_a_program_a_missing_file(here):
    done = minexp("explain", "missing.png", cwd=here)
    assert (done.returncode, done.stdout) == (2, "") and list(here.iterdir()) == []
    assert len(done.stderr.splitlines()) == 1 and "'missing.png'" in done.stderr


def test_as_a_program_debug_shows_the_traceback(here):
    done = minexp("explain", "x.png", "--set", "area", "--debug", cwd=here)
    assert done.returncode != 0 and "Traceback" in done.stderr and "--set area" in done.stderr


# --- fetch


def test_fetch_says_where_the_weights_lie_and_what_they_are(capsys, mnist_cnn):
    path, digest = models.entry("mnist_cnn").weights(), mnist_cnn.weights_sha256
    expected = f"mnist_cnn: {path} sha256 {digest}\n"
    assert run("fetch", "mnist_cnn", capsys=capsys) == (0, expected, "")
    assert path.is_file() and len(digest) == 64


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet18", ("weights/resnet18.safetensors", "MINEXP_OFFLINE", "mnist_cnn")),
        ("timm:resnet26.bt_in1k", ("weights/timm-resnet26.bt_in1k.safetensors",)),
        ("nope", ("unknown model 'nope'", "resnet18")),
        ("timm:nope", ("timm has no such model",)),
        ("own.py:make", ("nothing to fetch",)),
    ],
)
def test_fetch_offline_of_what_is_not_here_exits_2_in_one_line(
    here, monkeypatch, capsys, name, words
):
    monkeypatch.setenv("MINEXP_OFFLINE", "1")
    monkeypatch.setenv("MINEXP_HOME", str(here))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(here / "hub"))
    (here / "own.py").write_text("raise SystemExit('was run')")
    code, out, err = run("fetch", name, capsys=capsys)
    assert code == 2 and out == "" and len(err.splitlines()) == 1
    assert all(word in err for word in words)
    assert [path.name for path in here.iterdir()] == ["own.py"]


# --- a model of one's own

OWN = """
from pathlib import Path
import minexp
import torch
from torch import nn

def tiny(mean=0.5):
    module = nn.Sequential(
        nn.Conv2d(3, 6, 5, stride=3, padding=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(),
        nn.Linear(6 * 121, 3),
    )
    generator = torch.Generator().manual_seed(int(Path(__file__).with_name("seed").read_text()))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return minexp.wrap(
        module, mean=[mean] * 3, std=[0.25] * 3, size=(32, 32), class_names=["a", "b", "c"]
    )

def bare():
    return nn.Linear(3, 3)

def broken():
    raise ValueError("of my own\\nmaking")

number = 3
"""
FEW = ["--steps", "8", "--set", "noise_draws=4", "--set", "patch=4", "--set", "cell=4"]


@pytest.fixture
def own(here):
    """A file with factories; what earlier tests loaded from it is forgotten."""
    (here / "own.py").write_text(OWN)
    (here / "seed").write_text("0")
    jobs.model.cache_clear()
    yield here / "own.py"
    jobs.model.cache_clear()


def test_a_factorys_model_is_explained_and_verified(here, own, capsys):
    name, path = f"{own}:tiny", here / "out" / "bundled-rocket.json"
    command = ["explain", "bundled:rocket", "--model", name, *FEW, "--out", "out"]
    code, out, _ = run(*command, capsys=capsys)
    assert code == 0 and out.startswith("bundled:rocket: ") and len(out.splitlines()) == 1
    result = json.loads(path.read_text())
    assert result["model"] == name and result["label"] in ("a", "b", "c")
    assert result["weights_sha256"] == models.load_model(name).weights_sha256
    assert (result["config"]["patch"], result["minimality"]["grid"]) == (4, 4)
    assert result["config"]["weights"]["total_variation"] == 70, "32 pixels: the preset small"
    assert run("verify", path, capsys=capsys) == (0, f"{path}: ok\n", "")
    before = tree(here / "out")
    code, again, _ = run(*command, capsys=capsys)
    assert code == 0 and again == out.replace("\n", " (kept result)\n")
    assert tree(here / "out") == before


def test_other_weights_of_a_factory_make_another_result(here, own, capsys):
    """By the same name from the same file: only the digest of its weights tells."""
    name, path = f"{own}:tiny", here / "out" / "bundled-rocket.json"
    command = ["explain", "bundled:rocket", "--model", name, *FEW, "--out", "out"]
    assert run(*command, capsys=capsys)[0] == 0
    first = json.loads(path.read_text())
    (here / "seed").write_text("1")
    jobs.model.cache_clear()  # a new process has loaded nothing yet
    code, out, err = run("verify", path, capsys=capsys)
    assert code == 2 and out == "" and "made with other weights" in err
    code, out, _ = run(*command, capsys=capsys)
    assert code == 0 and "(kept result)" not in out
    second = json.loads(path.read_text())
    assert second["weights_sha256"] != first["weights_sha256"]
    assert second["confidence"] != first["confidence"] and second["model"] == first["model"]
    assert run("verify", path, capsys=capsys) == (0, f"{path}: ok\n", "")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none.py:tiny", ("no file none.py", "path/to/file.py:factory")),
        ("own.py:huge", ("own.py has no function 'huge'",)),
        ("own.py:number", ("no function 'number'",)),
        ("own.py:", ("no function ''",)),
        ("own.py:bare", ("bare() returned Linear", "minexp.wrap")),
        ("own.py:broken", ("own.py:broken", "of my own making")),
        ("own.py", ("unknown model 'own.py'", "path/to/file.py:factory")),
    ],
)
def test_a_factory_that_is_none_exits_2_in_one_line(here, own, capsys, name, words):
    before = set(here.iterdir())
    code, out, err = run("explain", "bundled:rocket", "--model", name, *FEW, capsys=capsys)
    assert code == 2 and out == "" and len(err.splitlines()) == 1
    assert all(word in err for word in words), err
    assert {path for path in here.iterdir() if path.name != "__pycache__"} == before


def test_a_factorys_taps_are_chosen_by_their_numbers(here, own, capsys):
    """A Sequential's submodules are called 0, 1, 2 ...: names, however they look."""
    command = ["explain", "bundled:rocket", "--model", f"{own}:tiny", *FEW, "--set"]
    for taps, stored in (("0", ["0"]), ("0,2", ["0", "2"])):
        code, out, err = run(*command, f"taps={taps}", "--out", "out", capsys=capsys)
        assert code == 0 and "(kept result)" not in out, err
        result = json.loads((here / "out" / "bundled-rocket.json").read_text())
        assert result["config"]["taps"] == stored
    code, out, err = run(*command, "taps=9", capsys=capsys)
    assert code == 2 and out == "" and "no submodule named '9'" in err


@pytest.mark.parametrize(
    ("options", "preset"), [([], "digits"), (["--preset", "small"], "small")], ids=str
)
def test_without_a_preset_it_is_the_models(here, capsys, options, preset):
    few = ["--steps", "2", "--set", "noise_draws=0", "--set", "minimal=false"]
    assert run("explain", "mnist:4", "--model", "mnist_cnn", *few, *options, capsys=capsys)[0] == 0
    config = json.loads((here / "explanations" / "mnist-4.json").read_text())["config"]
    own, other = (PRESETS[name].config.weights for name in (preset, "default"))
    assert config["weights"] == asdict(own) != asdict(other)
    assert config["confidence_slack"] == PRESETS[preset].config.confidence_slack
