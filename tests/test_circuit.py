"""Nodes and edges of a circuit, against slow float64 arithmetic straight from the definitions."""

import math

import networkx as nx
import pytest
import torch
from nets import Twisted
from torch import nn

import minexp
from minexp import channels, circuit, circuit_files, drawing
from minexp.errors import InputError
from minexp.figures import save_panel


@pytest.fixture(scope="module")
def small():
    """A plain float64 network of two taps and its input."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        module = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(),
            nn.Conv2d(4, 5, 3, padding=1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3),
        )  # fmt: skip
    wrapped = minexp.wrap(
        module, mean=(0,), std=(1,), size=(8, 8), class_names=tuple("abc"), taps=("1", "3")
    )
    wrapped.module.double()
    generator = torch.Generator().manual_seed(0)
    return wrapped, torch.rand(1, 1, 8, 8, generator=generator).double()


@pytest.fixture(scope="module")
def reading(small):
    return channels.read(*small)


@pytest.fixture(scope="module")
def whole(small):
    """The graph of all channels."""
    return circuit.find_circuit(*small, share=1.0)


def slope(small, tap: int, channel: int, i: int, j: int, what) -> float:
    """d what / d activation by a central difference."""
    model, image = small
    found = []
    for step in (1e-5, -1e-5):
        value = model.module[: tap + 1](image).clone()
        value[0, channel, i, j] += step
        found.append(what(value))
    return (found[0] - found[1]) / 2e-5


def test_energy_and_gradient_by_loops(small, reading, whole):
    model, image = small
    label = reading.label
    for tap in (1, 3):
        values = model.module[: tap + 1](image)
        for channel in range(values.shape[1]):
            squares, slopes, products = 0.0, [], []
            for i in range(8):
                for j in range(8):
                    value = values[0, channel, i, j].item()
                    squares += value**2
                    slopes.append(
                        slope(
                            small, tap, channel, i, j,
                            lambda v, tap=tap: model.module[tap + 1 :](v)[0, label].item(),
                        )
                    )  # fmt: skip
                    products.append(value * slopes[-1])
            node = whole.nodes.get(f"{tap}:{channel}")
            if node is None:  # it adds nothing to the layer's energy
                assert squares < 1e-5
                continue
            assert node["energy"] == pytest.approx(math.sqrt(squares), abs=1e-10)
            norm = math.sqrt(sum(s**2 for s in slopes))
            assert node["gradient"] == pytest.approx(norm, abs=1e-5)
            assert node["gradient_sum"] == pytest.approx(sum(slopes), abs=1e-5)
            assert node["attribution"] == pytest.approx(sum(products), abs=1e-5)
            product = node["energy"] * node["gradient"]
            assert node["energy_gradient"] == pytest.approx(product, abs=1e-12)


def test_edges_by_their_definitions(small, reading, whole):
    model, _ = small
    label, inner, fc = reading.label, model.module[2], model.module[6]
    start, end = (reading.activations[tap].detach() for tap in ("1", "3"))
    for source, destination, edge in whole.edges(data=True):
        s, d = whole.nodes[source], whole.nodes[destination]
        if d["tap"] == "class":
            feature, weight = end[0, s["channel"]].mean(), fc.weight[label, s["channel"]]
            expected = (weight.abs() * feature.abs()).item()
            assert edge["structural"] == pytest.approx(expected, abs=1e-12)
            # the logit's slope at a pooled feature is its weight
            assert edge["gradient"] == pytest.approx(expected * weight.abs().item(), abs=1e-12)
            assert edge["logit"] == pytest.approx((weight * feature).item(), abs=1e-12)
            continue
        kernel = inner.weight[d["channel"], s["channel"]]
        structural = sum(abs(w) for w in kernel.flatten().tolist()) * s["energy"]
        assert edge["structural"] == pytest.approx(structural, abs=1e-10)
        assert edge["gradient"] == pytest.approx(structural * d["gradient"], abs=1e-10)
        flow = torch.zeros(8, 8, dtype=torch.float64)  # d sum(a_d) / d a_s, by loops
        through = torch.zeros(8, 8, dtype=torch.float64)
        for i in range(8):
            for j in range(8):
                if end[0, d["channel"], i, j] == 0:
                    continue  # the ReLU lets nothing through
                for u in range(3):
                    for v in range(3):
                        if 0 <= i + u - 1 < 8 and 0 <= j + v - 1 < 8:
                            flow[i + u - 1, j + v - 1] += kernel[u, v]
                            weight = reading.gradients["3"][0, d["channel"], i, j]
                            through[i + u - 1, j + v - 1] += weight * kernel[u, v]
        value = start[0, s["channel"]]
        assert edge["cross_layer"] == pytest.approx((value * flow.abs()).sum().item(), abs=1e-10)
        assert edge["logit"] == pytest.approx((value * through).sum().item(), abs=1e-10)


def test_the_departures_edge_is_the_logits_less_what_the_mean_gives(small, reading, whole):
    """Linear in the source's map: the score of a_s less that of a constant map of its mean."""
    model, _ = small
    means = {tap: torch.rand(v.shape[1]).double() for tap, v in reading.activations.items()}
    graph = circuit.build(model, reading, circuit.nodes_of(whole), means=means)
    for source, destination, edge in graph.edges(data=True):
        s, d = graph.nodes[source], graph.nodes[destination]
        start, mean = reading.activations[s["tap"]], means[s["tap"]][s["channel"]]
        if d["tap"] == "class":
            target = reading.gradients["3"][0, s["channel"]].sum()
            assert edge["departure"] == pytest.approx((edge["logit"] - mean * target).item())
            continue
        slope = reading.gradients["3"][0, d["channel"]]
        total = (slope * reading.activations["3"][0, d["channel"]]).sum()
        (flow,) = torch.autograd.grad(total, start, retain_graph=True)
        constant = (mean * flow[0, s["channel"]]).sum().item()
        assert edge["departure"] == pytest.approx(edge["logit"] - constant, abs=1e-10)


def test_the_edges_into_all_destinations_carry_the_sources_attribution(whole):
    """Without a shortcut around the layer, what flows s -> d -> class sums to what s gives."""
    for name, node in whole.nodes(data=True):
        if node["tap"] == "1":
            flow = sum(edge["logit"] for _, _, edge in whole.out_edges(name, data=True))
            assert flow == pytest.approx(node["attribution"], abs=1e-10)


@pytest.mark.parametrize("ranking", channels.RANKINGS)
def test_nodes_are_the_first_by_their_ranking(small, reading, ranking):
    means = {tap: value[0].mean((1, 2)).detach() / 2 for tap, value in reading.activations.items()}
    graph = circuit.find_circuit(*small, channels=2, ranking=ranking, means=means)
    for tap, score in channels.scores(reading, ranking, means).items():
        expected = sorted(range(len(score)), key=lambda c: -score[c].item())[:2]
        assert circuit.nodes_of(graph)[tap] == expected
        assert [graph.nodes[f"{tap}:{c}"]["rank"] for c in expected] == [0, 1]
    assert graph.graph["ranking"] == ranking


def test_departure_is_the_first_order_of_taking_a_channel_out(small, reading):
    means = {
        "1": torch.full((4,), 0.1, dtype=torch.float64),
        "3": torch.full((5,), 0.2, dtype=torch.float64),
    }
    score = channels.scores(reading, "departure", means)["3"]
    after = small[0].module[4:]  # linear, so the first order is exact
    for channel in range(5):
        value = reading.activations["3"].detach().clone()
        before = after(value)[0, reading.label]
        value[0, channel] = 0.2
        lost = before - after(value)[0, reading.label]
        assert score[channel].item() == pytest.approx(lost.item(), abs=1e-12)


def opened(model, image, means, gates) -> torch.Tensor:
    """Log-probabilities where each tap's channel gives mean + gate (activation - mean)."""
    value = image
    for index, part in enumerate(model.module):
        value = part(value)
        if str(index) in model.taps:
            mean, gate = (v[str(index)][:, None, None] for v in (means, gates))
            value = mean + gate * (value - mean)
    return value[0].log_softmax(0)


MEANS = {
    "1": torch.linspace(-0.2, 0.3, 4, dtype=torch.float64),
    "3": torch.linspace(0.4, -0.1, 5, dtype=torch.float64),
}


def test_integrated_by_differences_at_every_midpoint(small, reading):
    """Gate by gate: how the class's log-probability moves with it, all gates equally open."""
    step, found = 1e-6, channels.scores(reading, "integrated", MEANS)
    for tap, mean in MEANS.items():
        for channel in range(len(mean)):
            slopes = []
            for k in range(channels.STEPS):
                said = []
                for sign in (1, -1):
                    middle = (k + 0.5) / channels.STEPS
                    gates = {t: torch.full_like(m, middle) for t, m in MEANS.items()}
                    gates[tap][channel] += sign * step
                    said.append(opened(*small, MEANS, gates)[reading.label].item())
                slopes.append((said[0] - said[1]) / (2 * step))
            expected = sum(slopes) / channels.STEPS
            assert found[tap][channel].item() == pytest.approx(expected, abs=1e-8)


def test_integrated_scores_sum_to_what_the_network_says_beyond_the_means(
    small, reading, monkeypatch
):
    monkeypatch.setattr(channels, "STEPS", 1000)
    total = sum(score.sum() for score in channels.scores(reading, "integrated", MEANS).values())
    most, least = (
        opened(*small, MEANS, {t: torch.full_like(m, gate) for t, m in MEANS.items()})
        for gate in (1.0, 0.0)
    )
    assert total.item() == pytest.approx((most - least)[reading.label].item(), abs=1e-4)


@pytest.mark.parametrize("share", [0.3, 0.7, 0.99])
def test_a_share_takes_the_fewest_channels_that_reach_it(small, reading, share):
    chosen = circuit.choose(reading, "energy", share=share)
    for tap, picked in chosen.items():
        squares = channels.energy(reading.activations[tap].detach())[0].square()
        assert squares[picked].sum() >= share * squares.sum() * (1 - 1e-5)
        assert squares[picked[:-1]].sum() < share * squares.sum()


def test_both_files_read_back_as_the_same_graph(whole, tmp_path):
    circuit_files.write_json(tmp_path / "c.json", whole)
    circuit_files.write_graphml(tmp_path / "c.graphml", whole)
    for found in (
        circuit_files.read_json(tmp_path / "c.json"),
        circuit_files.read_graphml(tmp_path / "c.graphml"),
    ):
        assert type(found) is nx.DiGraph and found.graph == whole.graph
        assert list(found.nodes(data=True)) == list(whole.nodes(data=True))
        assert list(found.edges(data=True)) == list(whole.edges(data=True))


@pytest.mark.parametrize("text", ["", "[1]", "{}", '{"schema": "minexp-circuit/1"}'])
def test_what_is_no_circuit_is_refused(tmp_path, text):
    (tmp_path / "c").write_text(text)
    for read in (circuit_files.read_json, circuit_files.read_graphml):
        with pytest.raises(InputError, match="c: no"):
            read(tmp_path / "c")


def test_without_a_trace_the_edges_by_gradients_remain():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Conv2d(1, 2, 1), Twisted("branch"))
    model = minexp.wrap(
        module, mean=(0,), std=(1,), size=(8, 8), class_names=tuple("abcd"), taps=("0", "1.stem")
    )
    graph = circuit.find_circuit(model, torch.rand(1, 1, 8, 8), channels=2)
    assert "'1.inner'" in graph.graph["untraced"]
    assert {name for *_, edge in graph.edges(data=True) for name in edge} == {
        "cross_layer", "logit",
    }  # fmt: skip
    assert drawing.kinds(graph) == {"forward": "cross_layer", "gradient": "logit"}


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"channels": 0}, "channels=0"),
        ({"share": 0.0}, "share=0"),
        ({"share": 0.5, "channels": 3}, "one of the two"),
        ({"ranking": "nope"}, "'nope'"),
        ({"ranking": "departure"}, "reference images"),
        ({"label": 3}, "label 3"),
    ],
)
def test_settings_that_do_not_fit_are_refused(small, settings, word):
    with pytest.raises(InputError, match=word):
        circuit.find_circuit(*small, **settings)


def test_transformers_are_refused():
    model = minexp.load_model("mnist_vit", weights=None)
    with pytest.raises(InputError, match=r"tokens .*convolutional"):
        circuit.find_circuit(model, torch.rand(1, 1, 28, 28))


def test_a_photograph(lite0, coffee, tmp_path):
    graph = circuit.find_circuit(lite0, coffee)
    assert graph.graph["label"] == "espresso" and graph.graph["untraced"] == ""
    assert graph.number_of_nodes() == 5 * 6 + 1 and graph.number_of_edges() == 4 * 36 + 6
    assert all(edge.keys() == {"structural", "gradient", "cross_layer", "logit"}
               for *_, edge in graph.edges(data=True))  # fmt: skip
    figure = drawing.circuit_figure(graph, lite0.to_pixels(coffee))
    titles = [text.get_text() for ax in figure.axes for text in ax.texts if "." in text.get_text()]
    assert titles == [tap for tap in lite0.taps if "." in tap], "in their order, always"
    save_panel(tmp_path / "c.png", figure)
    assert (tmp_path / "c.png").stat().st_size > 10_000


def test_few_edges_are_drawn_and_the_largest(whole):
    drawn = drawing.strongest(whole, "structural", 6)
    assert len(drawn) <= 6 and max(drawn.values()) == 1
    for source, destination in drawn:
        others = [e["structural"] for s, d, e in whole.edges(data=True) if (s, d) not in drawn
                  and whole.nodes[d]["layer"] == whole.nodes[destination]["layer"]]  # fmt: skip
        assert whole.edges[source, destination]["structural"] >= max(others, default=0)
