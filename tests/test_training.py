"""The repository can make its own weights again, bit by bit, whatever interrupts it."""

import json
import random
import re
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import test_faults
import torch
from safetensors.torch import load_file
from torch import nn

from minexp import builders, cifar, images, mnist, models, paths, training
from minexp.builders import BUILDERS, weights_file
from minexp.cli import main
from minexp.errors import InputError

NAMES = tuple(training.RECIPES)
CARDS = sorted(paths.DATA.glob("*.json"))
EPOCHS = 3
tmpfs = test_faults.tmpfs


# --- small trainings


def few_pictures(part):
    """Noise instead of CIFAR-10's pictures."""
    generator = np.random.default_rng(len(part))
    pixels = generator.integers(256, size=(24, 32, 32, 3), dtype=np.uint8)
    return pixels, generator.integers(10, size=24)


def short(name, epochs):
    """The recipe of a network, but so many epochs, and for few pictures."""
    plan = training.RECIPES[name]
    if plan.data == "mnist":
        return replace(plan, epochs=epochs)
    return replace(plan, epochs=epochs, batch=8, learning_rate=0.02, small=((1, 16),))


@contextmanager
def small(folder, name="mnist_cnn", epochs=1):
    """Weights go to folder/data, states to folder/home; few pictures, few epochs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "DATA", folder / "data")
        patch.setenv("MINEXP_HOME", str(folder / "home"))
        patch.setattr(training, "RECIPES", {**training.RECIPES, name: short(name, epochs)})
        train, test = mnist.split()
        patch.setattr(mnist, "split", lambda: (train[::16], test[::5]))
        patch.setattr(cifar, "pictures", few_pictures)
        assert weights_file(name).parent == folder / "data"
        yield patch


def train_briefly(folder, seed=0, name="mnist_cnn", epochs=1):
    """All that a training of a few epochs on 250 digits, or 24 pictures of noise, leaves."""
    reports = []
    with small(folder, name, epochs):
        before = global_states()
        card = training.train(name, seed, lambda *report: reports.append(report))
        after, path = global_states(), weights_file(name)
        return SimpleNamespace(
            card=card,
            reports=reports,
            random_states=(before, after),
            path=path,
            weights=path.read_bytes(),
            files=sorted(file.name for file in folder.rglob("*") if file.is_file()),
            model=models.load_model(name),
        )


def global_states():
    kind, keys, *rest = np.random.get_state()
    return torch.get_rng_state().tolist(), (kind, keys.tolist(), *rest), random.getstate()


def timeless(card):
    """A card without what no two trainings share."""
    return {
        **{key: value for key, value in card.items() if key not in ("seconds", "epochs")},
        "epochs": [(epoch["loss"], epoch["accuracy"]) for epoch in card["epochs"]],
    }


def at_batch(number, act):
    """``training._augmented``, which acts, once, before it shows so many batches."""
    true, seen = training._augmented, []

    def augmented(*arguments):
        seen.append(1)
        if len(seen) == number:
            act()
        return true(*arguments)

    return augmented


class Interrupted(Exception):
    pass


def interrupt():
    raise Interrupted


def train_until(number, folder, seed=0, name="mnist_cnn", epochs=EPOCHS):
    """A training that is interrupted at a batch; returns the state it leaves."""
    with small(folder, name, epochs) as patch:
        patch.setattr(training, "_augmented", at_batch(number, interrupt))
        with pytest.raises(Interrupted):
            training.train(name, seed)
        assert not weights_file(name).exists()
    return folder / "home" / "training" / f"{name}-{seed}.pt"


@pytest.fixture(scope="module")
def brief(tmp_path_factory):
    """A training of one epoch with seed 0."""
    return train_briefly(tmp_path_factory.mktemp("first"))


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """The same with seed 1."""
    return train_briefly(tmp_path_factory.mktemp("other"), seed=1)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A training of mnist_cnn of three epochs."""
    return train_briefly(tmp_path_factory.mktemp("digits"), epochs=EPOCHS)


@pytest.fixture(scope="module")
def convolutional(tmp_path_factory):
    """Batch normalisation, momentum, crops and small pictures, in a few steps."""
    folder = tmp_path_factory.mktemp("convolutional")
    return train_briefly(folder, name="resnet18_cifar10", epochs=EPOCHS)


# --- what it gives


def test_same_seed_gives_the_same_bytes_whatever_the_global_state(brief, tmp_path):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(999)
        again = train_briefly(tmp_path)
    assert again.weights == brief.weights
    assert timeless(again.card) == timeless(brief.card)


def test_another_seed_gives_other_weights(brief, other):
    assert other.weights != brief.weights
    assert other.card["seed"] == 1


def test_global_random_states_are_untouched(brief, convolutional):
    for made in (brief, convolutional):
        before, after = made.random_states
        assert before == after


def test_writes_weights_and_card_and_nothing_else(brief, convolutional):
    assert brief.files == ["mnist_cnn.json", "mnist_cnn.safetensors"]
    assert convolutional.files == ["resnet18_cifar10.json", "resnet18_cifar10.safetensors"]


@pytest.mark.parametrize("made", ["brief", "convolutional"])
def test_card_is_what_is_written_beside_the_weights(made, request):
    made = request.getfixturevalue(made)
    name, card = made.path.stem, made.card
    assert json.loads(made.path.with_suffix(".json").read_text("utf-8")) == card
    assert card["model"] == name and card["licence"] == "MIT" and card["seed"] == 0
    epochs = len(card["epochs"])
    plan = short(name, epochs)
    stated = {**asdict(plan), "data": training.DATA[plan.data]}
    assert card["recipe"] == json.loads(json.dumps(stated))
    assert card["weights_sha256"] == images.sha256(made.path) == made.model.weights_sha256
    assert card["parameters"] == sum(p.numel() for p in BUILDERS[name]().parameters())
    assert card["versions"]["torch"] == torch.__version__
    assert card["seconds"] == pytest.approx(sum(epoch["seconds"] for epoch in card["epochs"]))


@pytest.mark.parametrize("made", ["brief", "convolutional"])
def test_cards_accuracy_is_that_of_the_written_weights(made, request):
    made = request.getfixturevalue(made)
    stored = load_file(made.path)
    kinds = {value.dtype for value in stored.values()}
    assert torch.float16 in kinds and kinds <= {torch.float16, torch.int64}
    module = BUILDERS[made.path.stem]()
    module.load_state_dict(stored)
    if made.path.stem == "mnist_cnn":
        pixels, labels = mnist.digits()
        test = mnist.split()[1][::5]
        x, labels = torch.from_numpy(pixels[test])[:, None], labels[test]
    else:
        pixels, labels = few_pictures("test")
        x = cifar.normalized(torch.tensor(pixels))
    with torch.no_grad():
        predicted = torch.cat([module.eval()(one[None]).argmax(1) for one in x])
    accuracy = np.mean(predicted.numpy() == labels)
    assert made.card["test_accuracy"] == pytest.approx(accuracy, abs=1e-12)


def test_three_epochs_on_250_digits_already_learn(digits):
    losses = [epoch["loss"] for epoch in digits.card["epochs"]]
    assert losses == sorted(losses, reverse=True)
    assert digits.card["test_accuracy"] > 0.3


def test_progress_is_reported_epoch_by_epoch(brief, convolutional):
    assert brief.reports == [(1, 1, brief.card["epochs"][0]["accuracy"])]
    log = convolutional.card["epochs"]
    assert convolutional.reports == [(k + 1, 3, log[k]["accuracy"]) for k in range(3)]


def test_progress_changes_nothing(brief, tmp_path):
    with small(tmp_path):
        training.train("mnist_cnn")
        assert weights_file("mnist_cnn").read_bytes() == brief.weights


def test_leaves_the_repositorys_own_weights_alone(tmp_path):
    before = images.sha256(weights_file("mnist_cnn"))
    made = train_briefly(tmp_path)
    assert made.path != weights_file("mnist_cnn")
    assert images.sha256(weights_file("mnist_cnn")) == before


# --- interruptions


@pytest.mark.parametrize("made", ["digits", "convolutional"])
def test_an_interrupted_training_goes_on_to_the_same_bytes(made, tmp_path, request):
    whole = request.getfixturevalue(made)
    name = whole.path.stem
    before = global_states()
    for number in (3 + 2, 3 + 1):  # in the second epoch of three batches, then in the third
        state = train_until(number, tmp_path, name=name)
        assert state.is_file() and global_states() == before
    resumed = train_briefly(tmp_path, name=name, epochs=EPOCHS)
    assert resumed.reports == whole.reports[2:]
    assert resumed.weights == whole.weights
    assert timeless(resumed.card) == timeless(whole.card)
    assert resumed.files == whole.files  # the state is gone


DRIVER = """
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, sys.argv[1])
import test_training
from minexp import training

def hang():
    print("in mid-epoch", flush=True)
    time.sleep(600)

torch.set_num_threads(int(sys.argv[3]))
training._augmented = test_training.at_batch(5, hang)  # the second batch of the second epoch
with test_training.small(Path(sys.argv[2]), "mnist_vit", epochs=3):
    training.train("mnist_vit")
"""


def test_a_killed_training_goes_on_to_the_same_bytes(tmp_path):
    driver, folder = tmp_path / "driver.py", tmp_path / "killed"
    driver.write_text(DRIVER)
    command = [sys.executable, driver, Path(__file__).parent, folder, str(torch.get_num_threads())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        line = process.stdout.readline()
        process.kill()
    assert line == "in mid-epoch\n" and process.returncode == -9
    left = [file.name for file in folder.rglob("*") if file.is_file()]
    assert left == ["mnist_vit-0.pt"]
    resumed = train_briefly(folder, name="mnist_vit", epochs=EPOCHS)
    whole = train_briefly(tmp_path / "whole", name="mnist_vit", epochs=EPOCHS)
    assert [done for done, *_ in resumed.reports] == [2, 3]
    assert resumed.weights == whole.weights
    assert timeless(resumed.card) == timeless(whole.card)


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """The state after one of three epochs of mnist_cnn, seed 0."""
    return train_until(4, tmp_path_factory.mktemp("interrupted")).read_bytes()


def place(folder, content, name="mnist_cnn-0.pt"):
    path = folder / "home" / "training" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return path


def check_refused(state, folder, capsys):
    with small(folder, epochs=EPOCHS):
        assert main(["train", "mnist_cnn"]) == 2
        assert not paths.DATA.exists()
    printed = capsys.readouterr()
    line = printed.err.splitlines()[-1]
    assert printed.out == "" and "Traceback" not in printed.err
    assert "minexp: error:" in line and str(state) in line and "delete it" in line


@pytest.mark.parametrize("left", [0, 1, 5, 100, 0.5, -1])
def test_a_truncated_state_is_refused(interrupted, tmp_path, capsys, left):
    length = len(interrupted) // 2 if left == 0.5 else left
    state = place(tmp_path, interrupted[:length])
    check_refused(state, tmp_path, capsys)


def test_a_training_begins_anew_once_the_truncated_state_is_deleted(interrupted, brief, tmp_path):
    state = place(tmp_path, interrupted[:1000])
    with small(tmp_path), pytest.raises(InputError, match=re.escape(str(state))):
        training.train("mnist_cnn")
    state.unlink()
    assert train_briefly(tmp_path).weights == brief.weights


@pytest.mark.parametrize("content", [b"weights", b"\x80\x02weights", b"[1]", b"\0" * 2000])
def test_a_file_that_is_no_state_is_refused(tmp_path, capsys, content):
    check_refused(place(tmp_path, content), tmp_path, capsys)


@pytest.mark.parametrize(
    "change",
    [
        lambda kept: [1],
        lambda kept: {},
        lambda kept: {**kept, "parts": kept["parts"][:1]},
        lambda kept: {**kept, "parts": [{}, *kept["parts"][1:]]},
        lambda kept: {**kept, "random": torch.zeros(3, dtype=torch.uint8)},
    ],
    ids=["list", "empty", "parts", "network", "random"],
)
def test_a_state_of_something_else_is_refused(interrupted, tmp_path, capsys, change):
    state = place(tmp_path, interrupted)
    torch.save(change(torch.load(state, weights_only=True)), state)
    check_refused(state, tmp_path, capsys)


def test_a_state_of_another_recipe_is_not_used(interrupted, brief, tmp_path):
    place(tmp_path, interrupted)
    made = train_briefly(tmp_path)  # one epoch, where the state is of three
    assert made.reports == brief.reports
    assert made.weights == brief.weights


def test_a_state_of_another_seed_is_not_used(interrupted, other, tmp_path):
    state = place(tmp_path, interrupted)
    made = train_briefly(tmp_path, seed=1)
    assert made.reports == other.reports and made.weights == other.weights
    assert state.read_bytes() == interrupted


# --- full disks


def test_a_full_disk_leaves_no_half_written_weights(tmpfs, other, tmp_path, capsys):
    data = tmpfs("data", "size=64k")  # the weights take 108k
    with small(tmp_path):
        assert main(["train", "mnist_cnn", "--seed", "1"]) == 1
        printed = capsys.readouterr()
        assert "No space" in printed.err.splitlines()[-1] and "Traceback" not in printed.err
        assert printed.out == "" and list(data.iterdir()) == []
    subprocess.run(["mount", "-o", "remount,size=4m", str(data)], check=True)
    again = train_briefly(tmp_path, seed=1)
    assert again.reports == []  # its epochs were kept
    assert again.weights == other.weights and again.files == other.files


def test_a_full_disk_leaves_the_older_weights_and_their_card(tmpfs, other, brief, tmp_path):
    data = tmpfs("data", "size=180k")  # room for one file of weights, not for two
    with small(tmp_path):
        training.train("mnist_cnn", 0)
        with pytest.raises(OSError, match="No space"):
            training.train("mnist_cnn", 1)
        assert sorted(file.name for file in data.iterdir()) == brief.files
        assert weights_file("mnist_cnn").read_bytes() == brief.weights
        digest = models.load_model("mnist_cnn").weights_sha256  # compared with the card's
    assert digest == brief.card["weights_sha256"]


def test_a_full_cache_ends_in_one_line(tmpfs, tmp_path, capsys):
    home = tmpfs("home", "size=64k")  # a state takes 600k
    with small(tmp_path):
        assert main(["train", "mnist_cnn"]) == 1
        assert not paths.DATA.exists()
    printed = capsys.readouterr()
    assert "No space" in printed.err.splitlines()[-1] and "Traceback" not in printed.err
    assert [file for file in home.rglob("*") if file.is_file()] == []


# --- pictures as an epoch shows them

PLAN = training.Recipe("cifar10", 4, 8, "adamw", 0.1, 0.0, shift=2)
SIDE = 8


def some_pictures(count, side=SIDE):
    generator = np.random.default_rng(5)
    return torch.from_numpy(generator.random((count, 3, side, side), dtype=np.float32))


def augmented(x, chosen, plan, epoch, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return training._augmented(x, chosen, plan, epoch)


def ways_to_show(picture, shift):
    """Every crop of the reflect-padded picture and of its mirror image, (mirrored, top, left)."""
    side, ways = picture.shape[-1], {}
    for mirrored in (False, True):
        turned = picture[:, :, ::-1] if mirrored else picture
        padded = np.stack([np.pad(channel, shift, mode="reflect") for channel in turned])
        for top in range(2 * shift + 1):
            for left in range(2 * shift + 1):
                crop = padded[:, top : top + side, left : left + side]
                ways[mirrored, top, left] = crop
    return ways


def how_shown(before, after, shift):
    """The one way that leads from a picture to what is shown of it."""
    ways = ways_to_show(before.numpy(), shift)
    (way,) = [way for way, crop in ways.items() if np.array_equal(crop, after.numpy())]
    return way


def test_each_picture_is_a_crop_and_every_offset_occurs():
    x = some_pictures(200)
    shown = augmented(x, torch.arange(200), PLAN, 0)
    ways = [how_shown(before, after, 2) for before, after in zip(x, shown, strict=True)]
    assert {(top, left) for _, top, left in ways} == {(a, b) for a in range(5) for b in range(5)}


def test_no_picture_is_mirrored_twice_in_a_row_nor_left_so_twice():
    x, generator = some_pictures(40), torch.Generator().manual_seed(3)
    mirrored = np.zeros((4, 40), dtype=bool)
    for epoch in range(4):
        for chosen in torch.randperm(40, generator=generator).split(16):
            shown = augmented(x[chosen], chosen, PLAN, epoch, seed=epoch)
            for number, after in zip(chosen.tolist(), shown, strict=True):
                mirrored[epoch, number] = how_shown(x[number], after, 2)[0]
    np.testing.assert_array_equal(mirrored[1:], ~mirrored[:-1])
    np.testing.assert_array_equal(mirrored.sum(axis=1), [20] * 4)  # half of them in each epoch


def test_without_shift_a_picture_is_only_mirrored():
    x = some_pictures(6)
    shown = augmented(x, torch.arange(6), replace(PLAN, shift=0), 0)
    assert [how_shown(*pair, 0)[1:] for pair in zip(x, shown, strict=True)] == [(0, 0)] * 6


def shrinking(side, small):
    """Bilinear with antialiasing, literally: triangles as wide as an output pixel's two sides."""
    scale, matrix = side / small, np.zeros((small, side))
    for i in range(small):
        for j in range(side):
            distance = abs((j + 0.5) - (i + 0.5) * scale) / scale
            matrix[i, j] = max(0.0, 1 - distance)
        matrix[i] /= matrix[i].sum()
    return matrix


def test_the_first_phases_see_pictures_shrunk_to_their_sides():
    x, plan = some_pictures(4, side=32), replace(PLAN, small=((1, 16), (2, 24)))
    for epoch, side in enumerate((16, 24, 24)):
        matrix = shrinking(32, side)
        shown = augmented(x, torch.arange(4), plan, epoch)
        full = augmented(x, torch.arange(4), PLAN, epoch).double().numpy()
        assert shown.shape == (4, 3, side, side)
        np.testing.assert_allclose(shown.numpy(), matrix @ full @ matrix.T, atol=1e-5)
    whole = augmented(x, torch.arange(4), plan, 3)
    assert torch.equal(whole, augmented(x, torch.arange(4), PLAN, 3))


def test_digits_move_by_up_to_two_pixels_and_each_by_its_own():
    x = torch.zeros(60, 1, 28, 28)
    x[:, :, 12:16, 12:16] = 1
    shown = augmented(x, torch.arange(60), training.RECIPES["mnist_cnn"], 0)
    assert shown.shape == x.shape and shown.min() == 0 and shown.max() == 1
    places = torch.arange(28.0)
    mass = shown.sum((1, 2, 3))
    for axis in (2, 3):
        centre = (shown.sum((1, 5 - axis)) @ places) / mass
        moved = centre - 13.5
        assert moved.abs().max() < 2.6  # a pixel is taken whole: half a one besides
        assert moved.min() < -1 and moved.max() > 1


def test_digits_are_shown_whichever_their_numbers_are():
    x = some_pictures(3, side=28)[:, :1]
    plan = training.RECIPES["mnist_vit"]
    first = augmented(x, torch.arange(3), plan, 0)
    assert torch.equal(first, augmented(x, torch.tensor([7, 4, 1]), plan, 1))


# --- optimizers and recipes


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_in_exactly_one_optimizer(name):
    module, plan = BUILDERS[name](), training.RECIPES[name]
    optimizers = training._optimizers(module, plan)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    found = [id(p) for group in groups for p in group["params"]]
    assert len(found) == len(set(found))
    assert set(found) == {id(p) for p in module.parameters()}
    kinds = {"adamw": ["AdamW"], "muon": ["Muon", "AdamW"]}[plan.optimizer]
    assert [type(optimizer).__name__ for optimizer in optimizers] == kinds
    for group in groups:
        assert group["lr"] == plan.learning_rate
        assert group["weight_decay"] == plan.weight_decay


def in_muon(module):
    muon = training._optimizers(module, training.RECIPES["mnist_vit"])[0]
    its = {id(p) for group in muon.param_groups for p in group["params"]}
    return {key for key, p in module.named_parameters() if id(p) in its}


@pytest.mark.parametrize("name", ["mnist_vit", "vit_cifar10"])
def test_muons_are_a_transformers_matrices_between_embedding_and_classifier(name):
    module = BUILDERS[name]()
    matrices = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    found = {key for key in in_muon(module) if not key.startswith("patch_embed")}
    assert found == {
        f"blocks.{block}.{part}.weight" for block in range(len(module.blocks)) for part in matrices
    }
    assert "patch_embed.proj.weight" not in in_muon(module)


@pytest.mark.parametrize("name", ["resnet18_cifar10", "mobilenetv3_cifar10", "convnext_cifar10"])
def test_muons_are_a_convolutional_nets_kernels_but_not_stem_classifier_or_depthwise(name):
    module = BUILDERS[name]()
    kinds = dict(module.named_modules())
    for key, p in module.named_parameters():
        of = kinds[key.rpartition(".")[0]]
        stem = isinstance(of, nn.Conv2d) and of.in_channels == 3
        depthwise = isinstance(of, nn.Conv2d) and of.groups > 1
        last = of is module.get_classifier()
        assert (key in in_muon(module)) == (p.ndim > 1 and not (stem or depthwise or last)), key


@pytest.mark.parametrize(
    ("field", "value"), [("optimizer", "adam"), ("optimizer", "Muon"), ("data", "cifar100")]
)
def test_unknown_optimizer_or_data_is_refused(field, value):
    with pytest.raises(InputError, match=f"{field}={value!r}: expected one of") as caught:
        replace(PLAN, **{field: value})
    assert str(getattr(PLAN, field)) in str(caught.value)


@pytest.mark.parametrize("name", ["efficientnet_lite0", "alexnet", ""])
def test_model_without_a_recipe_is_refused(name):
    with pytest.raises(InputError, match="no recipe trains") as caught:
        training.train(name)
    assert repr(name) in str(caught.value) and "mnist_cnn" in str(caught.value)


def test_every_recipe_trains_a_registered_network_and_every_network_has_one():
    assert set(training.RECIPES) == set(BUILDERS) == set(builders.BUILDERS)
    assert set(training.RECIPES) <= set(models.available())


@pytest.mark.parametrize("name", NAMES)
def test_recipe_fits_its_network(name):
    plan = training.RECIPES[name]
    assert plan.data == name.partition("_")[0 if name.startswith("mnist") else 2]
    assert 0 <= sum(epochs for epochs, _ in plan.small) < plan.epochs


# --- the weights that are here


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.stem)
def test_card_in_data_is_true(path):
    name, card = path.stem, json.loads(path.read_text("utf-8"))
    plan, weights = training.RECIPES[name], path.with_suffix(".safetensors")
    assert card["model"] == name and card["licence"] == "MIT"
    stated = {**asdict(plan), "data": training.DATA[plan.data]}
    assert card["recipe"] == json.loads(json.dumps(stated))
    assert card["weights_sha256"] == images.sha256(weights)
    module, stored = BUILDERS[name](), load_file(weights)
    module.load_state_dict(stored)
    assert card["parameters"] == sum(p.numel() for p in module.parameters())
    assert all(value.isfinite().all() for value in stored.values())
    assert 0 <= card["test_accuracy"] <= 1
    if "epochs" in card:  # the older card has no log
        assert len(card["epochs"]) == plan.epochs


def test_all_weights_in_data_have_a_card():
    stems = [path.stem for path in sorted(paths.DATA.glob("*.safetensors"))]
    assert "mnist_cnn" in stems and stems == [path.stem for path in CARDS]


@pytest.mark.slow
def test_retraining_reaches_the_recorded_accuracy(tmp_path, monkeypatch):
    path = weights_file("mnist_cnn").with_suffix(".json")
    recorded = json.loads(path.read_text(encoding="utf-8"))
    monkeypatch.setattr(paths, "DATA", tmp_path / "data")
    monkeypatch.setenv("MINEXP_HOME", str(tmp_path / "home"))
    card = training.train("mnist_cnn", recorded["seed"])
    assert card["recipe"] == recorded["recipe"]
    assert card["test_accuracy"] == pytest.approx(recorded["test_accuracy"], abs=0.005)
    assert models.load_model("mnist_cnn").weights_sha256 == card["weights_sha256"]
