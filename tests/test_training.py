"""The repository can make its own weights again."""

import json
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from minexp import images, mnist, models, training
from minexp.errors import InputError


def move_data(monkeypatch, folder):
    """Weights are written to and read from ``folder``."""
    monkeypatch.setattr(models, "DATA", folder)
    assert models.mnist_weights().parent == folder
    assert training.mnist_weights() == models.mnist_weights()


def global_states():
    kind, keys, *rest = np.random.get_state()
    return torch.get_rng_state().tolist(), (kind, keys.tolist(), *rest), random.getstate()


def train_briefly(folder, seed=0, on_epoch=None):
    """One epoch on 500 of the training digits, into ``folder``."""
    with pytest.MonkeyPatch.context() as patch:
        move_data(patch, folder)
        patch.setitem(training.MNIST_RECIPE, "epochs", 1)
        train, test = mnist.split()
        patch.setattr(mnist, "split", lambda: (train[::8], test))
        before = global_states()
        card = training.train("mnist_cnn", seed, on_epoch)
        return SimpleNamespace(
            card=card,
            random_states=(before, global_states()),
            sidecar=json.loads(models.mnist_weights().with_suffix(".json").read_text("utf-8")),
            weights=models.mnist_weights().read_bytes(),
            files=sorted(file.name for file in folder.iterdir()),
            sha256=images.sha256(models.mnist_weights()),
            model=models.load_model("mnist_cnn"),
        )


@pytest.fixture(scope="module")
def brief(tmp_path_factory):
    """A brief training with seed 0."""
    return train_briefly(tmp_path_factory.mktemp("first"))


def test_same_seed_gives_the_same_bytes_whatever_the_global_state(brief, tmp_path):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(999)
        again = train_briefly(tmp_path)
    assert again.weights == brief.weights
    assert {**again.sidecar, "seconds": 0} == {**brief.sidecar, "seconds": 0}


def test_another_seed_gives_other_weights(brief, tmp_path):
    other = train_briefly(tmp_path, seed=1)
    assert other.weights != brief.weights
    assert other.sidecar["seed"] == 1


def test_global_random_state_is_untouched(brief):
    before, after = brief.random_states
    assert before == after


def test_writes_weights_and_sidecar_and_nothing_else(brief):
    assert brief.files == ["mnist_cnn.json", "mnist_cnn.safetensors"]
    assert brief.card == {**brief.sidecar, "recipe": brief.card["recipe"]}
    assert brief.sidecar["recipe"] == {**training.MNIST_RECIPE, "epochs": 1}
    assert brief.sidecar["weights_sha256"] == brief.sha256 == brief.model.weights_sha256
    assert brief.sidecar["parameters"] == sum(p.numel() for p in brief.model.module.parameters())
    assert brief.sidecar["seed"] == 0
    assert brief.sidecar["versions"]["torch"] == torch.__version__


def test_sidecars_accuracy_is_that_of_the_written_weights(brief):
    pixels, labels = mnist.digits()
    _, test = mnist.split()
    with torch.no_grad():
        predicted = brief.model(torch.from_numpy(pixels[test])[:, None]).argmax(1)
    accuracy = np.mean(predicted.numpy() == labels[test])
    assert brief.sidecar["test_accuracy"] == pytest.approx(accuracy, abs=1e-12)


def test_progress_is_reported_and_changes_nothing(brief, tmp_path):
    reports = []
    watched = train_briefly(tmp_path, on_epoch=lambda *report: reports.append(report))
    assert reports == [(1, 1, watched.sidecar["test_accuracy"])]
    assert watched.weights == brief.weights


def test_leaves_the_repositorys_own_weights_alone(tmp_path):
    before = images.sha256(models.mnist_weights())
    train_briefly(tmp_path)
    assert images.sha256(models.mnist_weights()) == before


def test_train_and_test_digits_are_disjoint():
    train, test = mnist.split()
    assert len(set(train) & set(test)) == 0 and len({*train, *test}) == 5000


@pytest.mark.parametrize("name", ["efficientnet_lite0", "alexnet", ""])
def test_model_without_a_recipe_is_refused(name):
    with pytest.raises(InputError, match="no recipe trains") as caught:
        training.train(name)
    assert repr(name) in str(caught.value) and "mnist_cnn" in str(caught.value)


def test_every_recipe_trains_a_registered_model():
    assert set(training.TRAINERS) <= set(models.available())


@pytest.mark.slow
def test_retraining_reaches_the_recorded_accuracy(tmp_path, monkeypatch):
    path = models.mnist_weights().with_suffix(".json")
    recorded = json.loads(path.read_text(encoding="utf-8"))
    move_data(monkeypatch, tmp_path)
    card = training.train("mnist_cnn", recorded["seed"])
    assert card["recipe"] == recorded["recipe"]
    assert card["test_accuracy"] == pytest.approx(recorded["test_accuracy"], abs=0.005)
    assert models.load_model("mnist_cnn").weights_sha256 == card["weights_sha256"]
