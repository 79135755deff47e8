"""What taking channels out does, what it leaves behind (nothing), and who stays open."""

import pytest
import torch
from nets import Gated, made
from test_taps import hooks, state

from minexp import ablation, channels, circuit, path_patching, shortcuts, taps
from minexp.classifier import wrap
from minexp.errors import InputError


@pytest.fixture(scope="module")
def gated():
    """A float64 network with a residual branch, tapped inside and behind it."""
    module = made(Gated).float()
    module.first = torch.nn.Conv2d(3, 4, 3, padding=1)
    model = wrap(
        module, mean=(0.5,) * 3, std=(0.5,) * 3, size=(8, 8), class_names=tuple("abcde"),
        taps=("depthwise", "project", "grouped"),
    )  # fmt: skip
    model.module.double()
    return model


def picture(seed: int) -> torch.Tensor:
    return torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(seed)).double()


@pytest.fixture(scope="module")
def roads(gated):
    return shortcuts.roads(gated, picture(0))


@pytest.fixture(scope="module")
def reference(gated, roads):
    return ablation.reference(gated, [picture(seed) for seed in (1, 2, 3)], roads)


def all_on(model, image) -> dict:
    with taps.read(model.module, model.taps) as read:
        model(image)
    return {tap: torch.ones(1, v.shape[1], dtype=torch.bool) for tap, v in read.items()}


@pytest.mark.parametrize("name", ablation.ABLATIONS)
@pytest.mark.parametrize("closed", [False, True])
def test_the_model_is_bit_identical_afterwards(gated, roads, reference, name, closed):
    before, switches = gated(picture(0)), state(gated.module)
    roads = roads if closed else None
    filled = ablation.fill(gated, name, reference, roads=roads)
    keep = {tap: ~mask for tap, mask in all_on(gated, picture(0)).items()}
    during = ablation.run(gated, picture(0), keep, filled, roads)
    assert not torch.equal(before, during)
    assert torch.equal(gated(picture(0)), before)
    assert hooks(gated.module) == 0 and state(gated.module) == switches


def test_no_hook_is_left_where_a_replacement_fails(gated):
    def fail(_output):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), taps.replace(gated.module, {"project": fail}):
        gated(picture(0))
    assert hooks(gated.module) == 0
    with pytest.raises(InputError, match="projekt"), taps.replace(gated.module, {"projekt": fail}):
        pass


@pytest.mark.parametrize("closed", [False, True])
def test_the_whole_circuit_changes_nothing(gated, roads, reference, closed):
    filled = ablation.fill(gated, "mean", reference)
    keep = all_on(gated, picture(0))
    found = ablation.run(gated, picture(0), keep, filled, roads if closed else None)
    assert torch.equal(found, gated(picture(0)))


@pytest.mark.parametrize("name", ["zero", "mean", "resample"])
def test_ablation_by_hand(gated, reference, name):
    """Channel 1 of the last tap, replaced in a forward pass written out."""
    net, keep = gated.module, torch.ones(1, 6, dtype=torch.bool)
    keep[0, 1] = False
    with taps.read(net, ["grouped"]) as read:
        gated(picture(0))
        value = read["grouped"].clone()
        maps = [gated(picture(seed)) is not None and read["grouped"] for seed in (1, 2, 3)]
    value[0, 1] = {
        "zero": torch.zeros(()).double(),
        "mean": sum(m[0, 1].mean() for m in maps) / 3,
        "resample": maps[1][0, 1],
    }[name]
    expected = net.fc(net.flatten(net.pool(net.act(value))))
    filled = ablation.fill(gated, name, reference, draw=4)  # 4 modulo 3
    found = ablation.run(gated, picture(0), {"grouped": keep}, filled)
    assert torch.allclose(found, expected, atol=1e-12)


def test_a_channel_masked_in_one_branch_is_open_through_the_shortcut(gated, roads, reference):
    """The trap: the sum still carries the channel, until the shortcut is closed as well."""
    # the expanded channels of "depthwise" are not the shortcut's: nothing there can be closed
    assert {shortcut.tap for shortcut in roads.shortcuts} == {"project"}
    keep = torch.ones(1, 4, dtype=torch.bool)
    keep[0, 2] = False
    filled = ablation.fill(gated, "zero", reference)
    sums = []
    for around in (None, roads):
        with taps.read_inputs(gated.module, ["grouped"]) as read:  # the sum
            ablation.run(gated, picture(0), {"project": keep}, filled, around)
        sums.append(read["grouped"])
    with taps.read_inputs(gated.module, ["expand"]) as read:
        gated(picture(0))
    assert torch.equal(sums[0][0, 2], read["expand"][0, 2]) and sums[0][0, 2].abs().sum() > 0
    assert sums[1][0, 2].abs().sum() == 0
    assert torch.equal(sums[0][0, :2], sums[1][0, :2]), "the others are what they were"


def test_traced_and_plain_give_the_same_bits(gated, roads, lite0, coffee):
    assert torch.equal(roads.run(picture(0), {}, {}), gated(picture(0)))
    traced = shortcuts.roads(lite0, coffee)
    assert torch.equal(traced.run(coffee, {}, {}), lite0(coffee))
    assert not traced.shortcuts


def test_first_takes_at_least_one_and_all(gated):
    keep = ablation.first({"a": torch.tensor([3.0, 1.0, 2.0])}, [0, 0.01, 0.67, 1])["a"]
    assert keep.tolist() == [[0, 0, 0], [1, 0, 0], [1, 0, 1], [1, 1, 1]]


def test_cutting_an_edge_by_hand(gated, reference):
    image = picture(0)
    reading = channels.read(gated, image)
    graph = circuit.find_circuit(gated, image, channels=2)
    filled = ablation.fill(gated, "zero", None)
    effects = path_patching.cut_edges(gated, reading, graph, filled)
    assert set(effects) == set(graph.edges)
    net, label = gated.module, reading.label
    for source, destination in effects:
        s, d = graph.nodes[source], graph.nodes[destination]
        if (s["tap"], d["tap"]) != ("project", "grouped"):
            continue
        with taps.read_inputs(net, ["grouped"]) as read:
            gated(image)
        total = read["grouped"].clone()
        total[0, s["channel"]] -= reading.activations["project"].detach()[0, s["channel"]]
        whole = reading.activations["grouped"].detach()
        value, cut = whole.clone(), net.grouped(total)
        value[0, d["channel"]] = cut[0, d["channel"]]
        logit = net.fc(net.flatten(net.pool(net.act(value))))[0, label]
        moved = (cut - whole)[0, d["channel"]].norm().item()
        assert effects[source, destination]["destination"] == pytest.approx(moved, abs=1e-10)
        fall = (reading.logits[0, label] - logit).item()
        assert effects[source, destination]["class"] == pytest.approx(fall, abs=1e-10)


def test_a_score_that_foretells_the_effect_correlates_fully(gated):
    graph = circuit.find_circuit(gated, picture(0), channels=3)
    effects = {
        edge: {"destination": data["structural"] ** 3, "class": -data["cross_layer"]}
        for edge, data in graph.edges.items()
    }
    for row in path_patching.correlations(graph, effects):
        assert row["structural_destination"] == pytest.approx(1)
        assert row["cross_layer_class"] == pytest.approx(1)


def test_references_know_their_labels(gated, reference):
    expected = [int(gated(picture(seed)).argmax()) for seed in (1, 2, 3)]
    assert reference.labels.tolist() == expected


def test_bad_settings_are_refused(gated):
    with pytest.raises(InputError, match="'nope'"):
        ablation.fill(gated, "nope", None)
    with pytest.raises(InputError, match="reference images"):
        ablation.fill(gated, "mean", None)
    with pytest.raises(InputError, match="no reference images"):
        ablation.reference(gated, [])
