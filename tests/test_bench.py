"""Many images by several methods: the table holds what the results hold."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from minexp import bench, mnist, references, verification
from minexp.cli import main
from minexp.config import configure
from minexp.errors import InputError

CSV_COLUMNS = (
    "image,model,method,criterion,label_index,correct,feasible,label_kept,confidence_before,"
    "confidence_after,area,components,noise_kept,seconds,forward_passes,backward_passes"
)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """As in a worker, so that one process and two compute the same bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tiny():
    """The mnist suite's first two digits and both its methods, with few steps."""
    model, references, methods = bench.suite("mnist", "confidence", 2)
    few = {name: replace(config, steps=25) for name, config in methods.items()}
    few["ours"] = configure(few["ours"], {"noise_draws": 4})
    return model, references, few


@pytest.fixture(scope="module")
def table(tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("bench")
    given = []
    summary = bench.run(*tiny, out, on_row=given.append)
    return out, summary, given


def read(out) -> list[dict]:
    with (out / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def stamps(out) -> dict:
    return {path: path.stat().st_mtime_ns for path in out.glob("*/*")}


def test_suite_of_digits():
    model, references, methods = bench.suite("mnist", "label", None)
    assert model == "mnist_cnn" and len(references) == len(set(references)) == 100
    _, labels = mnist.digits()
    chosen = [int(reference.removeprefix("mnist:")) for reference in references]
    assert [int(labels[index]) for index in chosen] == [d for d in range(10) for _ in range(10)]
    assert set(chosen) <= set(mnist.split()[1].tolist())
    assert list(methods) == ["ours_no_noise", "ours"]
    assert all(config.criterion == "label" for config in methods.values())
    quiet = methods["ours_no_noise"]
    assert quiet.noise_draws == quiet.weights.robustness == 0 < methods["ours"].noise_draws


def test_suite_of_photographs_and_of_a_folder(tmp_path, coffee_path):
    model, references, methods = bench.suite("bundled", "confidence", 3)
    assert (model, list(methods)) == ("efficientnet_lite0", ["ours"])
    assert references == ["bundled:chelsea", "bundled:coffee", "bundled:rocket"]
    for name in ("b.png", "a.png"):
        (tmp_path / name).write_bytes(coffee_path.read_bytes())
    assert bench.suite(str(tmp_path), "confidence", None)[1] == [
        str(tmp_path / "a.png"), str(tmp_path / "b.png"),
    ]  # fmt: skip


def test_pictures_that_would_share_their_files_are_refused(tmp_path, coffee_path):
    for name in ("a.png", "a.jpg"):
        (tmp_path / name).write_bytes(coffee_path.read_bytes())
    with pytest.raises(InputError, match="same files"):
        bench.suite(str(tmp_path), "confidence", None)


@pytest.mark.parametrize("limit", [0, -1])
def test_no_images_are_refused(limit):
    with pytest.raises(InputError, match=f"limit={limit}"):
        bench.suite("mnist", "confidence", limit)


def test_truth():
    _, labels = mnist.digits()
    assert bench.truth("mnist:17") == labels[17]
    assert bench.truth("bundled:coffee") is None and bench.truth("cat.jpg") is None


def test_columns_and_the_order_of_rows(tiny, table):
    out, _, given = table
    assert (out / "results.csv").read_text().splitlines()[0] == CSV_COLUMNS
    rows = read(out)
    expected = [(reference, method) for method in tiny[2] for reference in tiny[1]]
    assert [(row["image"], row["method"]) for row in rows] == expected
    assert [{k: str(v) for k, v in row.items()} for row in given] == rows


def test_a_row_is_what_its_result_says(tiny, table):
    out = table[0]
    for row in read(out):
        path = out / row["method"] / f"{references.stem(row['image'])}.json"
        result = json.loads(path.read_text())
        index = int(row["image"].removeprefix("mnist:"))
        expected = {
            "model": "mnist_cnn",
            "criterion": "confidence",
            "label_index": result["label_index"],
            "correct": int(mnist.digits()[1][index]) == result["label_index"],
            "feasible": result["feasible"],
            "label_kept": result["label_kept"],
            "confidence_before": result["confidence"],
            "confidence_after": result["explanation_confidence"],
            "area": result["area"],
            "components": result["components"],
            "noise_kept": result["robustness"]["gaussian"]["kept"],
            "seconds": result["seconds"],
            "forward_passes": result["forward_passes"],
            "backward_passes": result["backward_passes"],
        }
        assert {name: row[name] for name in expected} == {k: str(v) for k, v in expected.items()}
        assert verification.verify(path) == []


def interval(values: list[float], statistic) -> dict:
    """The percentile bootstrap, one draw at a time."""
    generator = np.random.default_rng(0)
    draws = generator.integers(0, len(values), (2000, len(values)))
    resampled = sorted(statistic([values[k] for k in draw]) for draw in draws)
    return {
        "value": pytest.approx(statistic(values)),
        "low": pytest.approx(np.percentile(resampled, 2.5)),
        "high": pytest.approx(np.percentile(resampled, 97.5)),
    }


def test_the_summary_follows_from_the_rows(tiny, table):
    out, summary, _ = table
    assert json.loads((out / "summary.json").read_text()) == summary
    assert (summary["images"], summary["jobs"], summary["model"]) == (2, 1, "mnist_cnn")
    assert list(summary["methods"]) == list(tiny[2])
    for method, numbers in summary["methods"].items():
        rows = [row for row in read(out) if row["method"] == method]
        assert numbers["images"] == 2
        for name in ("feasible", "label_kept"):
            assert numbers[name] == sum(row[name] == "True" for row in rows)
        columns = {
            name: [float(row[name]) for row in rows]
            for name in ("area", "components", "noise_kept", "seconds")
        }
        columns["confidence_change"] = [
            float(row["confidence_after"]) - float(row["confidence_before"]) for row in rows
        ]
        for name, values in columns.items():
            assert numbers[f"{name}_median"] == interval(values, np.median)
            assert numbers[f"{name}_mean"] == interval(values, np.mean)


def test_intervals_of_a_longer_column():
    values = np.random.default_rng(1).gamma(2.0, size=13).tolist()
    rows = [
        {"area": v, "components": 1, "noise_kept": 1.0, "seconds": v, "feasible": v < 2,
         "label_kept": True, "confidence_after": 0.5, "confidence_before": v}
        for v in values
    ]  # fmt: skip
    numbers = bench.summarise(rows)
    assert numbers["area_median"] == interval(values, np.median)
    assert numbers["area_mean"] == interval(values, np.mean)
    assert numbers["confidence_change_median"]["value"] == pytest.approx(0.5 - np.median(values))
    assert numbers["feasible"] == sum(v < 2 for v in values) and numbers["label_kept"] == 13


def test_a_second_run_redoes_nothing(tiny, table):
    out, summary, _ = table
    before, text = stamps(out), (out / "results.csv").read_text()
    assert len(before) == 2 * 2 * 3
    assert bench.run(*tiny, out) == summary
    assert stamps(out) == before and (out / "results.csv").read_text() == text


def test_an_interrupted_run_goes_on(tiny, table):
    out, _, _ = table
    before = stamps(out)
    lost = out / "ours" / f"{references.stem(tiny[1][1])}.json"
    lost.unlink()
    bench.run(*tiny, out)
    after = stamps(out)
    assert lost in after
    kept = [
        path for path in before if path.parent != lost.parent or not path.name.startswith(lost.stem)
    ]
    assert len(kept) == 9 and all(before[path] == after[path] for path in kept)


@pytest.mark.slow
def test_two_jobs_give_the_same_table(tiny, table, tmp_path):
    out, _, _ = table
    summary = bench.run(*tiny, tmp_path, n_jobs=2)
    assert summary["jobs"] == 2

    def stable(rows):
        return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]

    assert stable(read(tmp_path)) == stable(read(out))


@pytest.mark.parametrize(
    "options, word",
    [
        (["--suite", "mnist", "--methods", "ours,nope"], "nope"),
        (["--suite", "mnist", "--limit", "0"], "limit=0"),
        (["--suite", "mnist", "--criterion", "nope"], "nope"),
        (["--suite", "no/such/folder"], "no/such/folder"),
        (["--suite", "mnist", "--limit", "1", "--jobs", "0"], "jobs=0"),
    ],
)
def test_bad_options_exit_2_in_one_line(tmp_path, capsys, options, word):
    assert main(["bench", *options, "--out", str(tmp_path / "out")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and word in err and not (tmp_path / "out").exists()
    assert len(err.splitlines()) == 1
