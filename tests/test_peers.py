"""A peer's judgement against slow recomputation; kept while its inputs hold, redone otherwise."""

import json
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from minexp import baselines, masking, metrics, mnist, peers, references
from minexp.errors import InputError, RunError
from minexp.peers import PEERS, Peer
from minexp.sufficiency import TOLERANCE, check_mask

DIGIT = "mnist:17"


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def digit(mnist_cnn):
    return references.open_reference(DIGIT, mnist_cnn)[0]


@pytest.fixture(scope="module")
def made(mnist_cnn, tmp_path_factory):
    """The folder with the centre map's judgement, and the judgement."""
    out = tmp_path_factory.mktemp("peers")
    return out, peers.judge(DIGIT, mnist_cnn, "centre", out)


def stamps(out) -> dict:
    return {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}


def confidence(model, image, label) -> tuple[float, bool]:
    with torch.no_grad():
        shares = model(image).softmax(1)[0]
    return shares[label].item(), int(shares.argmax()) == label


def meets(model, image, mask, label, criterion) -> bool:
    """The criterion on the zero fill, one mask at a time."""
    own, _ = confidence(model, image, label)
    share, kept = confidence(model, image * mask, label)
    return kept and (criterion == "label" or share >= own - TOLERANCE)


def least_mask(model, image, saliency, label, criterion):
    for area in metrics.AREAS[:-1]:
        mask = metrics.top(saliency, area)
        if meets(model, image, mask, label, criterion):
            return mask
    return torch.ones_like(saliency)


def share_removable(model, image, mask, label, criterion) -> tuple[float, int]:
    """Every active cell, one at a time."""
    able, active = 0, 0
    for top in range(0, mask.shape[2], 8):
        for left in range(0, mask.shape[3], 8):
            without = mask.clone()
            without[..., top : top + 8, left : left + 8] = 0
            if not without.equal(mask):
                active += 1
                able += meets(model, image, without, label, criterion)
    return able / active, active


def test_a_judgement_recomputed(made, digit, mnist_cnn):
    _, record = made
    saliency = baselines.centre(mnist_cnn, digit, 0)
    own, _ = confidence(mnist_cnn, digit, record["label_index"])
    label = record["label_index"]
    assert label == int(mnist_cnn(digit).argmax()) and record["label"] == str(label)
    assert record["confidence"] == pytest.approx(own, abs=1e-6)
    assert record["insertion"] == metrics.insertion_auc(mnist_cnn, digit, saliency, label)[0]
    assert record["deletion"] == metrics.deletion_auc(mnist_cnn, digit, saliency, label)[0]
    lost, gained = metrics.drop_and_increase(mnist_cnn, digit, saliency, label)
    assert (record["drop"], record["increase"]) == (lost, gained)
    assert (record["forward_passes"], record["backward_passes"]) == (0, 0)
    assert record["threads"] == 1 and record["peak_rss_mib"] > 50
    for criterion in ("label", "confidence"):
        found = record["criteria"][criterion]
        mask = least_mask(mnist_cnn, digit, saliency, label, criterion)
        check = check_mask(mnist_cnn, digit, mask, label)
        assert found["area"] == check.area == pytest.approx(mask.mean().item())
        assert found["components"] == masking.components(mask)
        assert found["confidence_after"] == check.explanation_confidence
        assert (found["label_kept"], found["noise_draws"]) == (True, 32)
        assert found["noise_kept"] == check.noise_kept
        assert found["feasible"] == (check.noise_kept == 1)
        share, active = share_removable(mnist_cnn, digit, mask, label, criterion)
        assert found["removable"] == pytest.approx(share)
        assert found["active_cells"] == found["tested_cells"] == active


def test_a_mask_that_keeps_nothing_is_not_feasible(mnist_cnn, digit, made):
    label = made[1]["label_index"]
    corner = torch.zeros(1, 1, 28, 28)
    corner[..., :3, :3] = 1
    for criterion in ("label", "confidence"):
        found = peers.assess(mnist_cnn, digit, corner, label, criterion)
        assert not found["feasible"] and not found["label_kept"]
        assert found["removable"] == 0 and found["active_cells"] == 1
    all_on = peers.assess(mnist_cnn, digit, torch.ones(1, 1, 28, 28), label, "confidence")
    assert all_on["feasible"] and all_on["active_cells"] == 16


def test_confidence_asks_for_more_than_the_label(mnist_cnn, digit, made):
    label, saliency = made[1]["label_index"], baselines.centre(mnist_cnn, digit, 0)
    masks = torch.cat([metrics.top(saliency, area) for area in metrics.AREAS])
    own, _ = confidence(mnist_cnn, digit, label)
    found = {
        criterion: peers.holds(mnist_cnn, digit, masks, label, own, criterion).tolist()
        for criterion in ("label", "confidence")
    }
    for criterion, held in found.items():
        assert held == [meets(mnist_cnn, digit, mask[None], label, criterion) for mask in masks]
    assert sum(found["confidence"]) < sum(found["label"]) < len(masks)


def test_many_cells_are_sampled_evenly():
    masks, active = peers._without_cells(torch.ones(1, 1, 224, 224))
    assert active == 28 * 28 and masks.shape == (peers.CELLS, 1, 224, 224)
    gone = [int((1 - mask[0]).flatten().argmax()) for mask in masks]
    assert all((1 - mask).sum() == 64 for mask in masks)
    places = [(k // 224 // 8) * 28 + k % 224 // 8 for k in gone]
    steps = {after - before for before, after in pairwise(places)}
    assert steps == {math.floor(784 / peers.CELLS), math.ceil(784 / peers.CELLS)}
    assert places[0] < 784 / peers.CELLS
    assert peers._without_cells(torch.ones(1, 1, 224, 224))[0].equal(masks)


def test_a_finished_judgement_is_kept(made, mnist_cnn):
    out, record = made
    before = stamps(out)
    assert {path.name for path in before} == {"mnist-17.json", "mnist-17.map.npy"}
    assert peers.judge(DIGIT, mnist_cnn, "centre", out) == record
    assert peers.finished(DIGIT, mnist_cnn, "centre", out) == record
    assert json.loads((out / "centre" / "mnist-17.json").read_text()) == record
    assert peers.finished("mnist:18", mnist_cnn, "centre", out) is None
    assert stamps(out) == before


def test_the_map_on_disk_is_the_map_scaled(made, mnist_cnn, digit):
    saliency = np.load(made[0] / "centre" / "mnist-17.map.npy", allow_pickle=False)
    assert saliency.shape == (28, 28) and saliency.dtype == np.float16
    wanted = baselines.centre(mnist_cnn, digit, 0)[0, 0].numpy()
    wanted = (wanted - wanted.min()) / np.ptp(wanted)
    assert np.abs(saliency - wanted).max() < 1e-3


def _cut(path):
    path.write_bytes(path.read_bytes()[:-10])


def _edit(**changes):
    return lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("mnist-17.json", _cut),
        ("mnist-17.json", lambda path: path.write_text("[]")),
        ("mnist-17.json", lambda path: path.write_bytes(b"\xff\xfe")),
        ("mnist-17.json", _edit(criteria={"label": {}})),
        ("mnist-17.json", _edit(image="a picture")),
        ("mnist-17.json", _edit(code_sha256="other")),
        ("mnist-17.json", _edit(weights_sha256="other")),
        ("mnist-17.json", _edit(image={"path": DIGIT, "sha256": "other"})),
        ("mnist-17.map.npy", _cut),
        ("mnist-17.map.npy", lambda path: path.write_bytes(b"")),
        ("mnist-17.map.npy", lambda path: path.unlink()),
        ("mnist-17.map.npy", lambda path: np.save(path, np.zeros((3, 3), np.float16))),
    ],
)
def test_what_is_not_whole_or_of_other_inputs_is_made_anew(made, mnist_cnn, tmp_path, file, damage):
    _, record = made
    folder = tmp_path / "centre"
    folder.mkdir()
    for path in (made[0] / "centre").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    damage(folder / file)
    assert peers.finished(DIGIT, mnist_cnn, "centre", tmp_path) is None
    again = peers.judge(DIGIT, mnist_cnn, "centre", tmp_path)
    volatile = ("seconds", "peak_rss_mib")
    assert {k: v for k, v in again.items() if k not in volatile} == {
        k: v for k, v in record.items() if k not in volatile
    }
    assert peers.finished(DIGIT, mnist_cnn, "centre", tmp_path) == again
    assert len(list(folder.iterdir())) == 2


def test_force_makes_it_anew_and_other_bytes_are_another_image(mnist_cnn, tmp_path):
    picture = tmp_path / "a.png"
    pixels = np.round(mnist.digits()[0][4] * 255).astype(np.uint8)
    Image.fromarray(pixels).save(picture)
    first = peers.judge(str(picture), mnist_cnn, "random", tmp_path)
    before = stamps(tmp_path / "random")
    peers.judge(str(picture), mnist_cnn, "random", tmp_path, force=True)
    assert all(stamps(tmp_path / "random")[path] != stamp for path, stamp in before.items())
    Image.fromarray(pixels[::-1]).save(picture)
    second = peers.judge(str(picture), mnist_cnn, "random", tmp_path)
    assert first["image"]["sha256"] != second["image"]["sha256"]


def count_gradients(monkeypatch) -> list[int]:
    """How many images each call of torch.autograd.grad went back through."""
    sizes, grad = [], torch.autograd.grad

    def counted(outputs, inputs, *rest, **options):
        images = inputs[0] if isinstance(inputs, tuple | list) else inputs
        sizes.append(len(images))
        return grad(outputs, inputs, *rest, **options)

    monkeypatch.setattr(torch.autograd, "grad", counted)
    return sizes


@pytest.mark.parametrize(
    ("method", "forward"),
    [("gradcam", 2), ("integrated_gradients", 50), ("occlusion", 170), ("rise", 1000)],
)
def test_passes(mnist_cnn, digit, monkeypatch, method, forward):
    sizes = count_gradients(monkeypatch)
    record, _ = peers._measure(digit, mnist_cnn, method)
    assert record["backward_passes"] == sum(sizes)
    assert record["forward_passes"] == forward


def test_extremal_perturbation_takes_the_smaller_of_its_areas_and_its_ranking(
    mnist_cnn, digit, monkeypatch
):
    areas, steps = (0.4, 0.1), 20
    sizes = count_gradients(monkeypatch)

    def attribute(model, image, label):
        return baselines.extremal_perturbation(model, image, label, areas=areas, steps=steps)

    monkeypatch.setitem(PEERS, "extremal", Peer(attribute, steps * len(areas), areas))
    record, saliency = peers._measure(digit, mnist_cnn, "extremal")
    assert record["backward_passes"] == record["forward_passes"] == sum(sizes) == 40
    maps, label = attribute(mnist_cnn, digit, record["label_index"]), record["label_index"]
    assert saliency.equal(maps.mean(0, keepdim=True))
    for criterion, found in record["criteria"].items():
        masks = [metrics.top(m[None], area) for m, area in zip(maps, areas, strict=True)]
        good = [m for m in masks if meets(mnist_cnn, digit, m, label, criterion)]
        good.append(least_mask(mnist_cnn, digit, saliency, label, criterion))
        assert found["area"] == pytest.approx(min(mask.mean().item() for mask in good))


def test_an_area_of_extremal_perturbation_may_win(mnist_cnn, digit, made):
    """Where the mean ranks badly but a single mask is good, that mask is taken."""
    label, good = made[1]["label_index"], baselines.centre(mnist_cnn, digit, 0)
    maps, ranking = torch.cat([-good, good]), -good
    found = peers._masks(mnist_cnn, digit, maps, ranking, label, (0.1, 0.7))
    swept = peers._masks(mnist_cnn, digit, maps, ranking, label, ())
    assert found["confidence"].equal(metrics.top(good, 0.7))
    assert swept["confidence"].mean() > 0.7  # the label alone is that of a black image


def test_published_settings_and_their_passes():
    extremal = PEERS["extremal"]
    assert extremal.attribute.keywords == {"areas": (0.05, 0.1, 0.2, 0.4, 0.7), "steps": 800}
    assert extremal.backward_passes == 4000 and extremal.areas == (0.05, 0.1, 0.2, 0.4, 0.7)


def test_bad_methods_and_folders(mnist_cnn, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"unknown method 'nope'.*gradcam"):
        peers.judge(DIGIT, mnist_cnn, "nope", tmp_path)
    with pytest.raises(InputError, match="no-such"):
        peers.judge("no-such.png", mnist_cnn, "centre", tmp_path)
    (tmp_path / "centre").write_text("a file")
    with pytest.raises(RunError, match="cannot write"):
        peers.judge(DIGIT, mnist_cnn, "centre", tmp_path)
    monkeypatch.setattr(baselines.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="rex-xai"):
        peers.judge(DIGIT, mnist_cnn, "rex", tmp_path)
