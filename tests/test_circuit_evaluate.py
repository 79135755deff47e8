"""The evaluation's numbers, against forward passes written out; tables, comparisons, the page."""

import csv
import json
import math
import re
from dataclasses import replace

import networkx as nx
import numpy as np
import pytest
import torch

import minexp
from minexp import (
    ablation,
    channels,
    circuit,
    circuit_compare,
    circuit_evaluate,
    circuit_html,
    circuit_table,
    models,
    results,
    taps,
)
from minexp.circuit_evaluate import Plan
from minexp.errors import InputError, RunError
from minexp.references import open_reference


@pytest.fixture(scope="module")
def digit(mnist_cnn):
    return open_reference("mnist:2000", mnist_cnn)[0]


@pytest.fixture(scope="module")
def reference(mnist_cnn):
    return circuit_table.make_reference(mnist_cnn, ["mnist:2000"])


@pytest.fixture(scope="module")
def rows(mnist_cnn, digit, reference):
    return circuit_evaluate.evaluate(mnist_cnn, digit, reference)


def by_hand(model, image, reference, keep: dict[str, set[int]]) -> torch.Tensor:
    """Logits with each layer's other channels at their means, layer after layer."""
    value = image
    for index, part in enumerate(model.module):
        value = part(value)
        if str(index) in model.taps:
            value = value.clone()
            for channel in set(range(value.shape[1])) - keep[str(index)]:
                value[0, channel] = reference.means[str(index)][channel]
    return value[0]


@pytest.mark.parametrize("ranking", ["energy", "departure"])
@pytest.mark.parametrize("fraction", [0.2, 0.5])
def test_a_point_of_the_curve_by_hand(mnist_cnn, digit, reference, rows, ranking, fraction):
    reading = channels.read(mnist_cnn, digit)
    scores, label = channels.scores(reading, ranking, reference.means), reading.label
    keep = {
        tap: set(score.argsort(descending=True)[: round(fraction * len(score))].tolist())
        for tap, score in scores.items()
    }
    rest = {tap: set(range(len(score))) - keep[tap] for tap, score in scores.items()}
    alone, without, nothing = (
        by_hand(mnist_cnn, digit, reference, chosen)
        for chosen in (keep, rest, {tap: set() for tap in keep})
    )
    whole = mnist_cnn(digit)[0]
    (row,) = [r for r in rows if (r["ranking"], r["ablation"], r["fraction"]) ==
              (ranking, "mean", fraction)]  # fmt: skip
    way = (whole - nothing)[label]
    assert row["kept"] == float(alone.argmax() == label)
    assert row["lost"] == float(without.argmax() != label)
    assert row["recovered"] == pytest.approx(((alone - nothing)[label] / way).item(), abs=1e-4)
    assert row["removed"] == pytest.approx(((whole - without)[label] / way).item(), abs=1e-4)


def test_every_curve_goes_from_nothing_to_everything(rows):
    assert {row["shortcuts"] for row in rows} == {False}, "a plain network has none"
    names = {row["ranking"] for row in rows}
    assert {*channels.RANKINGS, *circuit_evaluate.RANDOM, "departure_other"} <= names
    for row in rows:
        if row["ranking"].endswith("_other"):
            assert "recovered" not in row and 0 <= row["lost"] <= 1
        elif row["fraction"] in (0, 1):
            assert row["recovered"] == pytest.approx(row["fraction"], abs=1e-4)
            assert row["removed"] == pytest.approx(row["fraction"], abs=1e-4)
        if row["fraction"] == 1:
            assert row["kept"] == (not row["ranking"].endswith("_other"))


def test_the_control_asks_for_a_class_that_is_far_from_the_labels(
    mnist_cnn, digit, reference, rows
):
    label = channels.read(mnist_cnn, digit).label
    other = (label + 5) % 10
    reading = channels.read(mnist_cnn, digit, other)
    keep = {
        tap: set(score.argsort(descending=True)[: round(0.5 * len(score))].tolist())
        for tap, score in channels.scores(reading, "departure", reference.means).items()
    }
    rest = {tap: set(range(len(reference.means[tap]))) - kept for tap, kept in keep.items()}
    (row,) = [r for r in rows if (r["ranking"], r["ablation"], r["fraction"]) ==
              ("departure_other", "mean", 0.5)]  # fmt: skip
    assert row["kept"] == float(by_hand(mnist_cnn, digit, reference, keep).argmax() == other)
    assert row["lost"] == float(by_hand(mnist_cnn, digit, reference, rest).argmax() != label)


def test_an_explanations_ranking_keeps_channels_of_the_whole_image(mnist_cnn, digit, reference):
    masked = digit * (torch.arange(28) < 16)
    plan = Plan(("energy",), ("mean",), (0.0, 0.3, 1.0), dropped=0)
    found = circuit_evaluate.evaluate(mnist_cnn, digit, reference, plan, masked=masked)
    (row,) = [r for r in found if (r["ranking"], r["fraction"]) == ("energy_explanation", 0.3)]
    label = channels.read(mnist_cnn, digit).label
    keep = {
        tap: set(score.argsort(descending=True)[: round(0.3 * len(score))].tolist())
        for tap, score in channels.scores(channels.read(mnist_cnn, masked, label), "energy").items()
    }
    nothing = by_hand(mnist_cnn, digit, reference, {tap: set() for tap in keep})[label]
    logits = by_hand(mnist_cnn, digit, reference, keep)
    way = mnist_cnn(digit)[0, label] - nothing
    assert row["kept"] == float(logits.argmax() == label)
    assert row["recovered"] == pytest.approx(((logits[label] - nothing) / way).item(), abs=1e-4)


def test_resampling_takes_from_images_of_other_labels(mnist_cnn, digit, reference):
    label = channels.read(mnist_cnn, digit).label
    asked = {label, (label + 5) % 10}
    for seed in range(len(reference.images)):
        donors = circuit_evaluate._donors(asked, reference, Plan(seed=seed, draws=2))
        assert len(set(donors)) == 2 and not asked & set(reference.labels[donors].tolist())
    own = replace(reference, labels=torch.full_like(reference.labels, label))
    assert circuit_evaluate._donors(asked, own, Plan(draws=2)) == [0, 1]


def test_needed_nodes_by_dropping_each(mnist_cnn, digit, reference):
    plan = Plan(("energy",), ("mean",), (0.0, 0.1, 1.0), dropped=1000)
    found = circuit_evaluate.evaluate(mnist_cnn, digit, reference, plan)
    (row,) = [r for r in found if r["ranking"] == "energy" and r["fraction"] == 0.1]
    reading = channels.read(mnist_cnn, digit)
    keep = {
        tap: set(score.argsort(descending=True)[: round(0.1 * len(score))].tolist())
        for tap, score in channels.scores(reading, "energy").items()
    }
    whole = by_hand(mnist_cnn, digit, reference, keep)[reading.label]
    falls = [
        (whole - by_hand(mnist_cnn, digit, reference, keep | {tap: chosen - {c}})[reading.label])
        for tap, chosen in keep.items()
        for c in chosen
    ]
    assert row["needed"] == pytest.approx(sum(f > 0 for f in falls).item() / len(falls))


def test_areas_are_trapezoids():
    points = [(0.0, 0.0), (0.5, 1.0), (1.0, 1.0)]
    given = [
        {"ranking": "a", "ablation": "mean", "shortcuts": False, "fraction": x}
        | dict.fromkeys(circuit_evaluate.MEASURES, y)
        for x, y in points
    ]
    (area,) = circuit_evaluate.areas(given)
    assert area["kept"] == area["removed"] == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"rankings": ("nope",)}, "'nope'"),
        ({"ablations": ("nope",)}, "'nope'"),
        ({"fractions": (0.0, 0.5)}, "fractions"),
        ({"fractions": (0.0, 2.0, 1.0)}, "fractions"),
        ({"draws": 0}, "draws=0"),
    ],
)
def test_plans_that_cannot_be_followed(settings, word):
    with pytest.raises(InputError, match=word):
        Plan(**settings)


def test_the_control_of_equal_energy_exchanges_neighbours_only():
    generator = torch.Generator().manual_seed(0)
    energies, scores = ({"a": torch.rand(20, generator=generator)} for _ in range(2))
    order = energies["a"].argsort(descending=True)
    seen = set()
    for _ in range(20):
        found = circuit_evaluate._exchanged(scores, energies, generator)["a"]
        for group in order.split(circuit_evaluate.EXCHANGED):
            assert found[group].sort()[0].equal(scores["a"][group].sort()[0])
        seen.add(tuple(found.tolist()))
    assert len(seen) > 15


SMALL = Plan(("energy", "departure"), ("mean",), (0.0, 0.2, 1.0), draws=1, dropped=2)
TABLES = ("results.csv", "edges.csv", "summary.json")


def many(out, plan=SMALL, **settings):
    images = ["mnist:4", "mnist:2000"]
    return circuit_table.evaluate_many("mnist_cnn", images, out, plan, nodes=4, **settings)


def test_the_table_of_several_images(tmp_path):
    summary = many(tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    with (tmp_path / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 5 * 3 and {row["image"] for row in rows} == {"mnist:4", "mnist:2000"}
    for point in summary["curves"]:
        cells = [float(row["kept"]) for row in rows if row["ranking"] == point["ranking"]
                 and float(row["fraction"]) == point["fraction"]]  # fmt: skip
        assert point["kept"]["value"] == pytest.approx(np.mean(cells))
        chance = [float(row["kept"]) for row in rows if row["ranking"] == "random"
                  and float(row["fraction"]) == point["fraction"]]  # fmt: skip
        least = circuit_table.TIMES * np.mean(chance)
        assert ("margin" in point) == (least < 1), "no ranking keeps more than all"
        if least < 1:
            assert point["margin"]["value"] == pytest.approx(np.mean(cells) - least)
    with (tmp_path / "edges.csv").open(newline="") as file:
        edges = list(csv.DictReader(file))
    assert len(edges) == 2 * 3 * 3
    for kind in summary["edges"]:
        inner = [
            float(row["departure_class"])
            for row in edges
            if "class" not in row["layers"]
            and (row["nodes"], row["ablation"]) == (kind["nodes"], kind["ablation"])
        ]
        assert kind["departure_class"]["value"] == pytest.approx(np.mean(inner))
    assert len(summary["edges"]) == 3
    shown = circuit_table.table(summary)
    assert "| departure |" in shown and shown.index("(no channel)") < shown.index("| energy |")


def test_a_result_is_evaluated_for_the_class_it_explains(tmp_path, mnist_cnn):
    config = replace(minexp.preset("digits"), steps=2, minimal=False, noise_draws=0)
    results.explain_to_files("mnist:2000", mnist_cnn, config, tmp_path, label=3)
    out = tmp_path / "table"
    circuit_table.evaluate_many("mnist_cnn", [str(tmp_path / "mnist-2000.json")], out, SMALL)
    record = json.loads((out / "images" / "mnist-2000.json").read_text())
    assert record["label_index"] == record["label_asked"] == 3
    assert int(mnist_cnn(open_reference("mnist:2000", mnist_cnn)[0]).argmax()) != 3


def test_a_result_is_evaluated_with_its_explanation_and_taps_can_be_named(tmp_path, mnist_cnn):
    config = minexp.configure(minexp.preset("digits"), {"steps": 30, "minimal": False})
    results.explain_to_files("mnist:2000", mnist_cnn, config, tmp_path)
    given, out = [str(tmp_path / "mnist-2000.json")], tmp_path / "table"
    summary = circuit_table.evaluate_many("mnist_cnn", given, out, SMALL, taps=("1", "3"))
    assert summary["taps"] == ["1", "3"]
    rankings = {point["ranking"] for point in summary["curves"]}
    assert {"energy_explanation", "departure_explanation"} <= rankings
    with pytest.raises(InputError, match="'9'"):
        circuit_table.evaluate_many("mnist_cnn", given, out, SMALL, taps=("9",))


def test_every_image_has_random_circuits_of_its_own(tmp_path, monkeypatch):
    true, seeds = circuit_evaluate.evaluate, []

    def evaluate(model, image, others, plan, **settings):
        seeds.append(plan.seed)
        return true(model, image, others, plan, **settings)

    monkeypatch.setattr(circuit_evaluate, "evaluate", evaluate)
    many(tmp_path)
    assert len(set(seeds)) == 2


@pytest.fixture
def evaluated(monkeypatch):
    """The labels of the images evaluated from now on."""
    true, seen = circuit_evaluate.evaluate, []

    def evaluate(model, image, *arguments, **settings):
        seen.append(int(model(image).argmax()))
        return true(model, image, *arguments, **settings)

    monkeypatch.setattr(circuit_evaluate, "evaluate", evaluate)
    return seen


def written(folder) -> list:
    """The tables, without the one number that no two runs share."""
    *tables, summary = ((folder / name).read_bytes() for name in TABLES)
    return [*tables, {k: v for k, v in json.loads(summary).items() if k != "circuit_seconds"}]


def test_an_evaluation_goes_on_with_what_is_left(tmp_path, evaluated):
    many(tmp_path)
    first = written(tmp_path)
    assert len(evaluated) == 2
    many(tmp_path)
    assert len(evaluated) == 2  # nothing is done twice
    record = tmp_path / "images" / "mnist-2000.json"
    record.write_bytes(record.read_bytes()[:1000])
    for name in TABLES:
        (tmp_path / name).unlink()
    many(tmp_path)
    assert len(evaluated) == 3  # only the one that was cut off
    assert written(tmp_path) == first


@pytest.mark.parametrize("settings", [{"plan": replace(SMALL, seed=1)}, {"force": True}])
def test_another_evaluation_is_not_the_same(tmp_path, evaluated, settings):
    many(tmp_path)
    many(tmp_path, **settings)
    assert len(evaluated) == 4


def test_two_jobs_give_the_same_tables(tmp_path):
    many(tmp_path / "one")
    many(tmp_path / "two", n_jobs=2)
    assert written(tmp_path / "one") == written(tmp_path / "two")


def test_a_record_that_cannot_be_written_says_which(tmp_path):
    (tmp_path / "images").write_text("a file where the folder belongs")
    with pytest.raises(RunError, match=r"mnist-4\.json"):
        many(tmp_path)


def test_reference_images_are_none_of_those_evaluated(mnist_cnn, lite0, monkeypatch):
    monkeypatch.delenv("MINEXP_IMAGES", raising=False)
    assert "mnist:7" not in circuit_table.others(mnist_cnn, ["mnist:7"])
    assert "bundled:coffee" not in circuit_table.others(lite0, ["bundled:coffee"])
    assert len(circuit_table.others(lite0, [])) == 8
    with pytest.raises(InputError, match="leave one out"):
        circuit_table.others(lite0, circuit_table.others(lite0, []))


def test_one_more_image_changes_no_reference_image(mnist_cnn):
    assert circuit_table.others(mnist_cnn, ["mnist:3"]) == circuit_table.others(mnist_cnn, [])
    net = models.load_model("resnet18_cifar10", weights=None)
    assert {name.partition(":")[0] for name in circuit_table.others(net, [])} == {"cifar10"}
    assert len(circuit_table.others(net, ["cifar10:0"])) == circuit_table.REFERENCES


# --- two circuits


def graph_of(*nodes: tuple[int, int]) -> nx.DiGraph:
    graph = nx.DiGraph()
    for layer, channel in nodes:
        graph.add_node(f"{layer}:{channel}", tap=str(layer), layer=layer, channel=channel)
    graph.add_node("class:0", tap="class", layer=2, channel=0)
    for name, node in list(graph.nodes(data=True)):
        if node["layer"] == 1:
            graph.add_edge(name, "class:0", cross_layer=1.0)
    return graph


def test_overlap_core_and_similarity_by_hand():
    left, right = graph_of((0, 1), (0, 2), (1, 5)), graph_of((0, 2), (0, 3), (1, 5))
    found = circuit_compare.overlap(left, right)
    assert found == {"nodes": 0.5, "edges": 1.0, "layers": {"0": 1 / 3, "1": 1.0}}
    assert circuit_compare.shared_core([left, right]) == {"0": [2], "1": [5]}
    assert circuit_compare.shared_core([left, right], 0.5) == {"0": [2, 1, 3], "1": [5]}
    assert circuit_compare.similarity([left, right]).tolist() == [[1, 0.5], [0.5, 1]]
    assert circuit_compare.jaccard(set(), set()) == 1
    with pytest.raises(InputError):
        circuit_compare.shared_core([])


def test_an_image_against_itself_carries_what_it_carries(mnist_cnn, digit, reference):
    found = circuit_compare.compare(mnist_cnn, digit, digit, reference, fraction=0.5)
    assert found["jaccard"] == 1 and found["carried"] == found["own_kept"]
    assert found["recovered"] == found["own_recovered"]
    assert found["channels_image"] == found["channels_explanation"]


def test_an_explanations_circuit_in_the_image_by_hand(mnist_cnn, digit, reference):
    masked = digit * (torch.arange(28) < 16)
    found = circuit_compare.compare(mnist_cnn, digit, masked, reference, fraction=0.5)
    label = found["label_index"]
    scores = channels.scores(channels.read(mnist_cnn, masked, label), "integrated", reference.means)
    keep = {
        tap: set(score.argsort(descending=True)[: round(0.5 * len(score))].tolist())
        for tap, score in scores.items()
    }
    logits = by_hand(mnist_cnn, digit, reference, keep)
    nothing = by_hand(mnist_cnn, digit, reference, {tap: set() for tap in keep})[label]
    way = mnist_cnn(digit)[0, label] - nothing
    assert found["carried"] == (int(logits.argmax()) == label)
    assert found["recovered"] == pytest.approx(((logits[label] - nothing) / way).item(), abs=1e-4)


# --- the page


def test_the_page_stands_alone_and_holds_the_graph(mnist_cnn, digit, tmp_path):
    reading = channels.read(mnist_cnn, digit)
    graph = circuit.build(mnist_cnn, reading, circuit.choose(reading, "energy", channels=3))
    graph.graph["label"] = "</script><b>"
    maps = circuit_html.thumbnails(graph, reading)
    image = circuit_html.picture(mnist_cnn.to_pixels(digit))
    circuit_html.write_html(tmp_path / "c.html", graph, maps, image)
    page = (tmp_path / "c.html").read_text()
    assert not re.search(r'(src|href)="(?!data:)|@[A-Z]+@|https?://(?!www\.w3\.org/2000/svg)', page)
    assert page.count("</script>") == 1 and "<b>" not in page
    data = json.loads(re.search(r"const data = (.*), svg =", page)[1])
    assert [node["id"] for node in data["nodes"]] == list(graph)
    assert len(data["edges"]) == graph.number_of_edges() and len(maps) == 9
    assert all(node["map"].startswith("data:image/png;base64,") for node in data["nodes"][:-1])
    for edge in data["edges"]:
        assert max(edge["share"].values()) <= 1 and not any(map(math.isnan, edge["share"].values()))


def test_evaluation_leaves_no_hook(mnist_cnn, digit, reference):
    before = mnist_cnn(digit)
    circuit_evaluate.evaluate(mnist_cnn, digit, reference, Plan(("energy",), ("zero",)))
    assert torch.equal(mnist_cnn(digit), before)
    with taps.read(mnist_cnn.module, mnist_cnn.taps) as read:
        mnist_cnn(digit)
    assert len(read) == 3
    assert ablation.first({"a": torch.ones(3)}, [1])["a"].all()
