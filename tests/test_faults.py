"""What a killed process, a full disk or a damaged file leaves behind: nothing half-done."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from minexp import jobs, paths, results
from minexp.cli import main

QUICK = ["--model", "mnist_cnn", "--set", "grid=28", "--set", "noise_draws=4", "--steps", "20"]
KINDS = ("mask.png", "explanation.png", "history.jsonl", "panel.png")


def check_whole(out: Path) -> list[Path]:
    """Every file under a final name is complete; the JSONs, each of which has its pictures."""
    for picture in out.glob("[!.]*.png"):
        with Image.open(picture) as image:
            image.load()
    finished = sorted(out.glob("[!.]*.json"))
    for path in finished:
        assert json.loads(path.read_text())["schema"] == results.SCHEMA
        assert results.read_mask(path).shape == (1, 1, 28, 28)
        assert path.with_name(f"{path.stem}.explanation.png").exists()
    return finished


@pytest.fixture
def tmpfs(tmp_path):
    """Mounts small file systems; skips where that is not permitted."""
    mounted = []

    def mount(name: str, options: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("mounting a tmpfs is not permitted here")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_killed_run_leaves_only_whole_files_and_goes_on(tmp_path, capsys):
    digits = [f"mnist:{index}" for index in range(0, 5000, 250)]
    out = tmp_path / "out"
    command = [sys.executable, "-m", "minexp", "explain", *digits, *QUICK, "--out", str(out)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while len(list(out.glob("[!.]*.json"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    finished = check_whole(out)
    assert 2 <= len(finished) < len(digits)
    before = {path: path.read_bytes() for path in finished}

    again = digits[: len(finished) + 2]
    assert main(["explain", *again, *QUICK, "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert ["(kept result)" in line for line in lines] == [True] * len(finished) + [False] * 2
    assert all(path.read_bytes() == text for path, text in before.items())
    for path in check_whole(out):
        assert all(path.with_name(f"{path.stem}.{kind}").exists() for kind in KINDS)
    assert len(check_whole(out)) == len(again)


@pytest.mark.parametrize("room", [0, 1, 2, 3, 4])
def test_a_full_disk(tmpfs, capsys, room):
    """Room for so many pages of 4 KiB: each file takes one, the history two, the panel more."""
    out = tmpfs("small", "size=64k") / "out"
    out.mkdir()
    page = os.sysconf("SC_PAGE_SIZE")
    filler = out / ".filler"
    filler.write_bytes(b"\0" * (16 - room) * 4096 if page == 4096 else b"\0" * 65536)
    assert main(["explain", "mnist:4", *QUICK, "--out", str(out)]) == 1
    printed = capsys.readouterr().err
    errors = [line for line in printed.splitlines() if "minexp: error:" in line]
    assert len(errors) == 1 and printed.endswith(errors[0] + "\n") and "Traceback" not in printed
    assert str(out) in errors[0] or "space" in errors[0]
    check_whole(out)
    assert not list(out.glob(".*.partial"))

    filler.unlink()
    subprocess.run(["mount", "-o", "remount,size=4m", str(out.parent)], check=True)
    assert main(["explain", "mnist:4", *QUICK, "--out", str(out)]) == 0
    capsys.readouterr()
    assert {path.name for path in out.iterdir()} == {f"mnist-4.{kind}" for kind in ("json", *KINDS)}


def test_an_unwritable_folder(tmpfs, capsys):
    out = tmpfs("fixed", "size=64k,ro") / "out"
    assert main(["explain", "mnist:4", *QUICK, "--out", str(out)]) == 1
    printed = capsys.readouterr()
    assert printed.out == "" and "Traceback" not in printed.err
    last = printed.err.splitlines()[-1]
    assert "minexp: error:" in last and "Read-only" in last and not out.exists()


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A copy of data/ that a test may damage."""
    copy = Path(shutil.copytree(paths.DATA, tmp_path / "data"))
    monkeypatch.setattr(paths, "DATA", copy)
    jobs.model.cache_clear()
    yield copy
    jobs.model.cache_clear()


def refused(tmp_path, capsys) -> str:
    out = tmp_path / "out"
    assert main(["explain", "mnist:4", *QUICK, "--out", str(out)]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and not out.exists() and len(printed.err.splitlines()) == 1
    return printed.err


@pytest.mark.parametrize("left", [0, 7, 1000, -1])
def test_truncated_weights_are_named(data, tmp_path, capsys, left):
    path = data / "mnist_cnn.safetensors"
    path.write_bytes(path.read_bytes()[:left])
    assert str(path) in refused(tmp_path, capsys)


def test_missing_weights_are_named(data, tmp_path, capsys):
    (data / "mnist_cnn.safetensors").unlink()
    assert "mnist_cnn.safetensors" in refused(tmp_path, capsys)


@pytest.mark.parametrize("text", [None, "", "{}", "[1]"])
def test_a_damaged_card_is_refused(data, tmp_path, capsys, text):
    """The card says which weights are the recorded ones."""
    card = data / "mnist_cnn.json"
    card.unlink()
    if text is not None:
        card.write_text(text)
    assert "mnist_cnn" in refused(tmp_path, capsys)
