"""Many images by several methods: the table holds what the results hold."""

import csv
import json
import shutil
from dataclasses import replace

import pytest
import torch

from minexp import bench, metrics, mnist, peers, references, results, suites, summary, verification
from minexp.cli import main
from minexp.config import configure
from minexp.errors import InputError, RunError

CSV_COLUMNS = (
    "image,model,method,criterion,label_index,correct,feasible,label_kept,confidence_before,"
    "confidence_after,area,components,noise_kept,insertion,deletion,seconds,forward_passes,"
    "backward_passes,removable,active_cells,drop,increase,last_area,threads,peak_rss_mib"
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
    """The mnist suite's first two digits, both its methods with few steps, and a peer."""
    model, references, methods = suites.suite("mnist", "confidence", 2)
    few = {name: replace(config, steps=25) for name, config in methods.items()}
    few["ours"] = configure(few["ours"], {"noise_draws": 4})
    return model, references, {**few, "centre": ("label", "confidence")}


@pytest.fixture(scope="module")
def table(tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("bench")
    given = []
    summary = bench.run(*tiny, out, on_item=lambda folder, rows: given.extend(rows))
    return out, summary, given


def read(out) -> list[dict]:
    with (out / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def stamps(out) -> dict:
    return {path: path.stat().st_mtime_ns for path in out.glob("*/**/*") if path.is_file()}


def test_suite_of_digits():
    model, references, methods = suites.suite("mnist", "label", None)
    assert model == "mnist_cnn" and len(references) == len(set(references)) == 100
    _, labels = mnist.digits()
    chosen = [int(reference.removeprefix("mnist:")) for reference in references]
    assert [int(labels[index]) for index in chosen] == [d for d in range(10) for _ in range(10)]
    assert set(chosen) <= set(mnist.split()[1].tolist())
    assert list(methods) == ["ours_no_noise_label", "ours_label"]
    assert all(config.criterion == "label" for config in methods.values())
    quiet, digits = methods.values()
    assert quiet.noise_draws == quiet.weights.robustness == 0 < digits.noise_draws
    assert list(suites.suite("mnist", None, 1)[2]) == ["ours_no_noise", "ours"]


def test_suite_of_photographs_and_of_a_folder(tmp_path, coffee_path):
    model, references, methods = suites.suite("bundled", None, 3)
    assert model == "efficientnet_lite0"
    cheap = ["centre", "random", "gradcam", "integrated_gradients", "occlusion", "rise"]
    assert list(methods) == [*cheap, "ours_label", "ours"]
    assert all(methods[name] == ("label", "confidence") for name in cheap)
    assert (methods["ours_label"].criterion, methods["ours"].criterion) == ("label", "confidence")
    assert references == ["bundled:chelsea", "bundled:coffee", "bundled:rocket"]
    for name in ("b.png", "a.png"):
        (tmp_path / name).write_bytes(coffee_path.read_bytes())
    assert suites.suite(str(tmp_path), "confidence", None)[1] == [
        str(tmp_path / "a.png"), str(tmp_path / "b.png"),
    ]  # fmt: skip


def test_pictures_that_would_share_their_files_are_refused(tmp_path, coffee_path):
    for name in ("a.png", "a.jpg"):
        (tmp_path / name).write_bytes(coffee_path.read_bytes())
    with pytest.raises(InputError, match="same files"):
        suites.suite(str(tmp_path), "confidence", None)


@pytest.mark.parametrize("limit", [0, -1])
def test_no_images_are_refused(limit):
    with pytest.raises(InputError, match=f"limit={limit}"):
        suites.suite("mnist", "confidence", limit)


def test_methods_by_name_are_run_cheap_ones_first():
    names = ["extremal", "ours", "rise", "random"]
    _, _, methods = suites.suite("mnist", "label", 1, methods=names)
    assert list(methods) == ["random", "rise", "ours_label", "extremal"]
    assert methods["rise"] == methods["extremal"] == ("label",)


def test_ours_with_settings_changed_is_a_method_of_its_own():
    names = ["ours+tv=20+minimal=false", "ours", "ours+steps=7"]
    _, _, methods = suites.suite("bundled", None, 1, methods=names)
    assert set(methods) == {f"{name}{end}" for name in names for end in ("", "_label")}
    changed = methods["ours+tv=20+minimal=false_label"]
    assert (changed.weights.total_variation, changed.minimal) == (20, False)
    assert changed.criterion == "label" and changed.steps == methods["ours"].steps
    assert methods["ours+steps=7"] == replace(methods["ours"], steps=7)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("mine", "unknown method 'mine'"),
        ("rise+steps=3", r"ours\+NAME=VALUE"),
        ("ours+steps", "NAME=VALUE"),
        ("ours+nope=1", "unknown setting 'nope'"),
        ("ours+steps=0", "steps=0"),
        ("ours+criterion=label", "criterion"),
        ("ours+preset=nope", "unknown preset 'nope'"),
    ],
)
def test_a_method_that_is_none_is_refused(name, complaint):
    with pytest.raises(InputError, match=complaint):
        suites.suite("bundled", None, 1, methods=[name])


def test_rex_needs_its_package(monkeypatch):
    monkeypatch.setattr(suites.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install rex-xai"):
        suites.suite("mnist", None, 1, methods=["rex"])
    monkeypatch.setattr(suites.importlib.util, "find_spec", lambda name: name)
    assert list(suites.suite("mnist", None, 1, methods=["rex"])[2]) == ["rex"]


@pytest.mark.parametrize(
    ("every", "limit", "expected"),
    [
        ((1, 0), None, [0, 1, 2, 3, 4, 5, 6, 7]),
        ((3, 0), None, [0, 3, 6]),
        ((3, 1), None, [1, 4, 7]),
        ((3, 2), 1, [2]),
    ],
)
def test_every_nth_image(every, limit, expected):
    everything = suites.suite("bundled", None, None)[1]
    chosen = suites.suite("bundled", None, limit, every=every)[1]
    assert chosen == [everything[k] for k in expected]


def test_an_image_is_left(tmp_path, coffee_path):
    (tmp_path / "a.png").write_bytes(coffee_path.read_bytes())
    with pytest.raises(InputError, match="no image"):
        suites.suite(str(tmp_path), None, None, every=(2, 1))


def test_truth():
    _, labels = mnist.digits()
    assert suites.truth("mnist:17") == labels[17]
    assert suites.truth("bundled:coffee") is None and suites.truth("cat.jpg") is None


def test_columns_and_the_order_of_rows(tiny, table):
    out, _, given = table
    assert (out / "results.csv").read_text().splitlines()[0] == CSV_COLUMNS
    rows = read(out)
    expected = [(reference, method) for method in tiny[2] for reference in tiny[1]]
    expected = [pair for pair in expected for _ in range(1 + (pair[1] == "centre"))]
    assert [(row["image"], row["method"]) for row in rows] == expected
    assert [row["criterion"] for row in rows[4:]] == ["label", "confidence"] * 2
    assert [{k: str(v) for k, v in row.items()} for row in given] == rows


def test_a_row_is_what_its_result_says(tiny, table):
    out = table[0]
    for row in read(out)[:4]:
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
            "insertion": "",
            "deletion": "",
            "threads": 1,
            "increase": result["explanation_confidence"] > result["confidence"],
            "last_area": results.read_history(path)[-1]["area"],
        }
        assert {name: row[name] for name in expected} == {k: str(v) for k, v in expected.items()}
        assert verification.verify(path) == []


def test_a_peers_row_is_what_its_file_says(table):
    out = table[0]
    for row in read(out)[4:]:
        path = out / "centre" / f"{references.stem(row['image'])}.json"
        record = json.loads(path.read_text())
        expected = record["criteria"][row["criterion"]] | {
            name: record[name]
            for name in ("insertion", "deletion", "drop", "increase", "seconds", "peak_rss_mib")
        }
        shared = expected.keys() & row.keys()
        assert {"area", "feasible", "noise_kept", "removable", "active_cells"} <= shared
        assert {name: row[name] for name in shared} == {k: str(expected[k]) for k in shared}
        assert float(row["confidence_before"]) == record["confidence"]


def test_the_summary_follows_from_the_rows(tiny, table):
    out, numbers, given = table
    assert json.loads((out / "summary.json").read_text()) == numbers
    assert (numbers["images"], numbers["model"]) == (2, "mnist_cnn")
    assert (numbers["threads"], numbers["refused"]) == (1, [])
    keys = ["ours_no_noise", "ours", "centre@label", "centre"]
    assert list(numbers["methods"]) == keys
    expected = {(key.split("@")[0], "label" if "@" in key else "confidence"): 2 for key in keys}
    built = summary.build(given, expected)
    assert {name: numbers[name] for name in built} == built
    assert list(built["paired"]) == ["ours_no_noise", "centre"]  # ours was not run by label


def test_a_second_run_redoes_nothing(tiny, table):
    out, numbers, _ = table
    before, text = stamps(out), (out / "results.csv").read_bytes()
    assert len(before) == 2 * 2 * 5 + 2 * 2
    assert bench.run(*tiny, out) == numbers
    assert stamps(out) == before and (out / "results.csv").read_bytes() == text
    assert bench.run(*tiny, out, table_only=True) == numbers
    assert stamps(out) == before and (out / "results.csv").read_bytes() == text


def test_an_interrupted_run_goes_on(tiny, table):
    out, _, _ = table
    before = stamps(out)
    name = f"{references.stem(tiny[1][1])}.json"
    lost, torn = out / "ours" / name, out / "centre" / name
    lost.unlink()
    torn.write_text(torn.read_text()[:-20])
    bench.run(*tiny, out)
    after = stamps(out)
    assert lost in after and json.loads(torn.read_text())["method"] == "centre"
    redone = {path for path in before if before[path] != after[path]}
    assert {path.parent.name for path in redone} == {"ours", "centre"}
    assert all(path.name.startswith(lost.stem) for path in redone) and len(redone) == 7


def test_a_table_of_what_is_finished(tiny, table, tmp_path):
    out = tmp_path / "copy"
    shutil.copytree(table[0], out)
    name = f"{references.stem(tiny[1][0])}.json"
    for folder in ("ours", "centre"):
        (out / folder / name).unlink()
    (out / "costs" / "ours_no_noise" / name).unlink()
    certified = out / "ours_no_noise" / f"{references.stem(tiny[1][1])}.json"
    result = json.loads(certified.read_text())
    certificate = {"grid": 8, "active": 8, "removable": 2}
    certified.write_text(json.dumps(result | {"minimality": certificate}))
    before = stamps(out)
    numbers = bench.run(*tiny, out, table_only=True)
    assert stamps(out) == before
    rows = read(out)
    first = json.loads((out / "ours_no_noise" / name).read_text())["minimality"]
    assert [(row["removable"], row["active_cells"]) for row in rows[:2]] == [
        ("0.0", str(first["active"])),
        ("0.25", "8"),
    ]
    assert len(rows) == 5 and numbers["methods"]["ours"]["images"] == 1
    assert rows[0]["threads"] == rows[0]["peak_rss_mib"] == "" != rows[1]["peak_rss_mib"]
    for key, missing in (("ours", 1), ("centre@label", 1), ("ours_no_noise", 0)):
        assert numbers["methods"][key]["failures"]["not_finished"] == missing
    other = {"ours": replace(tiny[2]["ours"], steps=26)}  # other inputs: not this run's result
    with pytest.raises(RunError, match="no finished result"):
        bench.run(*tiny[:2], other, out, table_only=True)


def test_what_does_not_suit_a_method_is_told_and_the_rest_goes_on(monkeypatch, tmp_path):
    def refuse(model, image, label):
        raise InputError("no map")

    monkeypatch.setitem(peers.PEERS, "gradcam", peers.Peer(refuse))
    settings = {"centre": ("label",), "gradcam": ("label",)}
    numbers = bench.run("mnist_cnn", ["mnist:3"], settings, tmp_path)
    assert numbers["refused"] == [{"image": "mnist:3", "method": "gradcam", "error": "no map"}]
    assert numbers["methods"]["gradcam@label"]["failures"]["not_finished"] == 1
    assert len(read(tmp_path)) == 1


def test_a_failure_of_another_kind_ends_the_run(monkeypatch, tmp_path):
    monkeypatch.setitem(peers.PEERS, "gradcam", peers.Peer(lambda *_: 1 / 0))
    with pytest.raises(ZeroDivisionError):
        bench.run("mnist_cnn", ["mnist:3"], {"gradcam": ("label",)}, tmp_path)
    assert not (tmp_path / "results.csv").exists()


def test_the_command_writes_one_table(tmp_path, capsys):
    options = ["--methods", "random,centre,gradcam", "--criterion", "label", "--every", "50:1"]
    command = ["bench", "--suite", "mnist", *options, "--limit", "2", "--out", str(tmp_path)]
    assert main(command) == 0
    out, err = capsys.readouterr()
    rows = read(tmp_path)
    everything = suites.suite("mnist", None, None)[1]
    assert [(row["image"], row["method"]) for row in rows] == [
        (everything[k], method) for method in ("centre", "random", "gradcam") for k in (1, 51)
    ]
    assert "| gradcam@label | 2 | 0 |" in out and "6/6" in err
    before, text = stamps(tmp_path), (tmp_path / "results.csv").read_bytes()
    assert main([*command, "--table-only"]) == 0
    assert stamps(tmp_path) == before and (tmp_path / "results.csv").read_bytes() == text


def test_a_photograph(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "AREAS", (0.05, 0.5, 1.0))
    monkeypatch.setattr(metrics, "STEPS", 4)
    monkeypatch.setattr(peers, "CELLS", 4)
    model, references, methods = suites.suite("bundled", None, 1, methods=["centre"])
    bench.run(model, references, methods, tmp_path)
    rows = read(tmp_path)
    assert [row["criterion"] for row in rows] == ["label", "confidence"]
    assert all(row["correct"] == "" and row["label_kept"] == "True" for row in rows)
    assert float(rows[0]["area"]) <= float(rows[1]["area"])


@pytest.mark.slow
def test_two_jobs_give_the_same_table(tiny, table, tmp_path):
    out, _, _ = table
    assert bench.run(*tiny, tmp_path, n_jobs=2)["threads"] == 1

    def stable(rows):
        return [
            {k: v for k, v in row.items() if k not in ("seconds", "peak_rss_mib")} for row in rows
        ]

    assert stable(read(tmp_path)) == stable(read(out))


@pytest.mark.parametrize(
    "options, word",
    [
        (["--suite", "mnist", "--methods", "ours,nope"], "nope"),
        (["--suite", "mnist", "--methods", "rex"], "rex-xai"),
        (["--suite", "mnist", "--limit", "0"], "limit=0"),
        (["--suite", "mnist", "--every", "0"], "every=0:0"),
        (["--suite", "mnist", "--every", "5:5"], "every=5:5"),
        (["--suite", "mnist", "--every", "x"], "--every x"),
        (["--suite", "mnist", "--criterion", "nope"], "nope"),
        (["--suite", "no/such/folder"], "no/such/folder"),
        (["--suite", "mnist", "--limit", "1", "--jobs", "0"], "jobs=0"),
    ],
)
def test_bad_options_exit_2_in_one_line(tmp_path, capsys, monkeypatch, options, word):
    monkeypatch.setattr(suites.importlib.util, "find_spec", lambda name: None)
    assert main(["bench", *options, "--out", str(tmp_path / "out")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and word in err and not (tmp_path / "out").exists()
    assert len(err.splitlines()) == 1


def test_the_true_class_of_a_misread_digit(tmp_path):
    """Its rows explain that class, and still say that the network named another."""
    chosen = ["ours+steps=2", "ours_right+steps=2"]
    model, (reference,), methods = suites.suite("mnist", "label", 1, methods=chosen, wrong=True)
    bench.run(model, [reference], methods, tmp_path)
    own, right = summary.read(tmp_path)[0]
    assert (own["method"], right["method"]) == tuple(chosen)
    assert right["label_index"] == suites.truth(reference) != own["label_index"]
    assert own["correct"] is False and right["correct"] is False
    again = bench.run(model, [reference], methods, tmp_path, table_only=True)
    assert again["methods"]["ours_right+steps=2@label"]["misclassified"]["images"] == 1
