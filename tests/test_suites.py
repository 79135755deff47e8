"""The benchmark's suites: which pictures, which model, which settings."""

import json
import os
from dataclasses import replace

import pytest
from pictures import EACH, few_pictures

from minexp import cifar, jobs, models, references, suites
from minexp.cli import main
from minexp.config import CRITERIA, configure, preset
from minexp.errors import InputError

CHEAP = {"methods": ["centre"], "model": "mnist_cnn"}  # no suite's concern, but some are needed


@pytest.fixture
def noise(monkeypatch):
    """CIFAR-10 with other pictures; 13 test pictures of each class, mixed."""
    monkeypatch.setattr(cifar, "pictures", few_pictures)
    return few_pictures("test")[1].tolist()


@pytest.fixture
def untrained(monkeypatch):
    """The suites' models, also where their weights are not here."""
    monkeypatch.setattr(jobs, "model", lambda name: models.load_model(name, weights=None))


def test_the_first_ten_test_pictures_of_each_class(noise):
    _, chosen, _ = suites.suite("cifar10", None, None, **CHEAP)
    expected = []
    for label in range(10):
        expected += [index for index, own in enumerate(noise) if own == label][:10]
    assert chosen == [f"cifar10:{index}" for index in expected]
    assert len(set(chosen)) == 100 < 10 * EACH
    assert [suites.truth(reference) for reference in chosen] == [
        k for k in range(10) for _ in range(10)
    ]


@pytest.mark.parametrize("start", [0, 1])
def test_every_other_leaves_five_of_each_class(noise, start):
    everything = suites.suite("cifar10", None, None, **CHEAP)[1]
    chosen = suites.suite("cifar10", None, None, every=(2, start), **CHEAP)[1]
    assert chosen == everything[start::2]
    assert [suites.truth(one) for one in chosen] == [k for k in range(10) for _ in range(5)]
    limited = suites.suite("cifar10", None, 3, every=(2, start), **CHEAP)[1]
    assert limited == chosen[:3]


@pytest.mark.skipif(
    not os.environ.get("MINEXP_CIFAR10"), reason="MINEXP_CIFAR10 names no folder of CIFAR-10"
)
def test_the_real_pictures(mnist_cnn):
    _, chosen, _ = suites.suite("cifar10", None, None, **CHEAP)
    labels = cifar.pictures("test")[1]
    truth = [suites.truth(reference) for reference in chosen]
    assert truth == [k for k in range(10) for _ in range(10)]
    assert [labels[int(one.removeprefix("cifar10:"))] for one in chosen] == truth
    opened = [references.open_reference(one, mnist_cnn) for one in chosen]
    assert len({digest for _, digest in opened}) == 100, "a hundred different pictures"
    assert all(image.shape == (1, 1, 28, 28) and image.std() > 0 for image, _ in opened)


@pytest.mark.parametrize(
    ("name", "model", "start"),
    [
        ("mnist", "mnist_cnn", "digits"),
        ("cifar10", "resnet18_cifar10", "small"),
        ("bundled", "efficientnet_lite0", "default"),
    ],
)
def test_each_suites_own_model_and_preset(noise, untrained, name, model, start):
    chosen, _, methods = suites.suite(name, None, 1, methods=["ours"])
    assert chosen == model and methods["ours"] == preset(start)
    assert suites.suite(name, None, 1, methods=["ours"], model=model) == suites.suite(
        name, None, 1, methods=["ours"]
    )


@pytest.mark.parametrize(
    ("name", "model", "start"),
    [
        ("mnist", "vit_cifar10", "small"),
        ("mnist", "resnet18", "default"),
        ("cifar10", "mnist_vit", "digits"),
        ("bundled", "mnist_cnn", "digits"),
        ("bundled", "resnet18_cifar10", "small"),
    ],
)
def test_another_model_brings_its_preset(noise, untrained, name, model, start):
    chosen, pictures, methods = suites.suite(
        name, None, 2, methods=["ours", "ours+tv=3"], model=model
    )
    assert chosen == model
    assert pictures == suites.suite(name, None, 2, **CHEAP)[1], "the suite's pictures stay"
    assert methods["ours"] == preset(start)
    assert methods["ours+tv=3"] == configure(preset(start), {"tv": 3})


def test_another_preset_than_the_models(untrained):
    _, _, methods = suites.suite("mnist", "label", 1, methods=["ours+preset=small+steps=9"])
    expected = replace(preset("small"), criterion="label", steps=9)
    assert methods == {"ours+preset=small+steps=9_label": expected}


def test_photographs_methods_for_cifar10(noise, untrained):
    photographs, small = (suites.suite(name, None, 1)[2] for name in ("bundled", "cifar10"))
    assert list(small) == list(photographs) and "ours_no_noise" not in small
    assert {setting for setting in small.values() if isinstance(setting, tuple)} == {CRITERIA}


def test_taps_and_patches_are_settings_of_ours(untrained):
    names = ["ours+patch=4+taps=blocks.2"]
    (config,) = suites.suite("mnist", "label", 1, methods=names, model="mnist_vit")[2].values()
    assert (config.patch, config.taps, config.criterion) == (4, ("blocks.2",), "label")


@pytest.mark.parametrize("model", ["nope", "timm:nope", "no/file.py:make"])
def test_an_unknown_model_is_refused(model):
    with pytest.raises(InputError, match=model):
        suites.suite("mnist", None, 1, model=model)


def test_the_command_takes_the_suite_and_the_model(noise, tmp_path, capsys):
    command = ["bench", "--suite", "cifar10", "--model", "mnist_cnn", "--methods", "centre"]
    command += ["--criterion", "label", "--every", "50:1", "--out", str(tmp_path)]
    assert main(command) == 0
    assert "| centre@label | 2 |" in capsys.readouterr().out
    numbers = json.loads((tmp_path / "summary.json").read_text())
    assert (numbers["model"], numbers["images"], numbers["every"]) == ("mnist_cnn", 2, "50:1")
    chosen = suites.suite("cifar10", None, None, every=(50, 1), **CHEAP)[1]
    rows = (tmp_path / "results.csv").read_text().splitlines()[1:]
    assert [row.split(",")[:4] for row in rows] == [
        [one, "mnist_cnn", "centre", "label"] for one in chosen
    ]
    for one, row in zip(chosen, rows, strict=True):
        label, correct = row.split(",")[4:6]
        assert correct == str(int(label) == suites.truth(one))
        made = json.loads((tmp_path / "centre" / f"{references.stem(one)}.json").read_text())
        assert str(made["label_index"]) == label


def test_a_setting_that_does_not_suit_the_model_is_refused_at_once(tmp_path, capsys):
    command = ["bench", "--suite", "mnist", "--methods", "ours+patch=5", "--limit", "1"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "patch=5" in err.splitlines()[-1] and not (tmp_path / "out").exists()


# --- what the network names wrongly, and the class it should have named


def own_decision(reference: str) -> int:
    model = jobs.model("mnist_cnn")
    return int(model(references.open_reference(reference, model)[0]).argmax())


def test_only_what_is_named_wrongly(monkeypatch):
    """Of some test digits of two classes those that the network misreads, in order."""
    everything = suites._of_each_class("mnist")
    assert [len(pool) for pool in everything] == [100] * 10
    pools = [everything[k][:30] for k in (8, 9)]
    monkeypatch.setattr(suites, "_of_each_class", lambda name: pools)
    expected = [one for pool in pools for one in pool if own_decision(one) != suites.truth(one)]
    _, chosen, _ = suites.suite("mnist", None, None, wrong=True, **CHEAP)
    assert chosen == expected and 0 < len(chosen) < 20
    assert suites.suite("mnist", None, 1, wrong=True, **CHEAP)[1] == expected[:1]


def test_right_decisions_are_chosen_to_be_as_sure_as_the_wrong_ones(monkeypatch):
    everything = suites._of_each_class("mnist")
    pools = [everything[k][:30] for k in (8, 9)]
    monkeypatch.setattr(suites, "_of_each_class", lambda name: pools)
    wrong = suites.suite("mnist", None, None, wrong=True, **CHEAP)[1]
    chosen = suites.suite("mnist", None, None, as_sure=True, **CHEAP)[1]
    assert len(set(chosen)) == len(wrong) and not set(chosen) & set(wrong)
    assert all(own_decision(one) == suites.truth(one) for one in chosen)
    model = jobs.model("mnist_cnn")

    def confidence(reference):
        return model(references.open_reference(reference, model)[0]).softmax(1).max().item()

    right = [one for pool in pools for one in pool if one not in wrong]
    nearest = min(abs(confidence(one) - confidence(wrong[0])) for one in right)
    assert abs(confidence(chosen[0]) - confidence(wrong[0])) == pytest.approx(nearest)
    with pytest.raises(InputError, match="expected one of the two"):
        suites.suite("mnist", None, None, wrong=True, as_sure=True, **CHEAP)


def test_at_most_ten_of_a_class_are_named_wrongly(noise):
    _, chosen, _ = suites.suite("cifar10", None, None, wrong=True, **CHEAP)
    truth = [suites.truth(reference) for reference in chosen]
    assert truth == sorted(truth) and max(map(truth.count, range(10))) == suites.A_CLASS


def test_what_is_wrong_is_not_known_of_photographs_without_a_class(tmp_path, coffee_path):
    (tmp_path / "cup.png").write_bytes(coffee_path.read_bytes())
    for name in ("bundled", str(tmp_path)):
        with pytest.raises(InputError, match=r"the true classes of .* are not known"):
            suites.suite(name, None, None, wrong=True, **CHEAP)


def test_the_true_class_is_asked_for():
    reference, model = suites.suite("mnist", None, 1, **CHEAP)[1][0], jobs.model("mnist_cnn")
    for method in ("ours_right", "ours_right_label", "ours_right+steps=3"):
        assert suites.asked(method, reference, model) == suites.truth(reference)
    for method in ("ours", "ours_label", "gradcam", "base"):
        assert suites.asked(method, reference, model) is None
    logits = model(references.open_reference(reference, model)[0])
    assert suites.asked("ours_least_label", reference, model) == int(logits.argmin())
    with pytest.raises(InputError, match="the true class of bundled:coffee is not known"):
        suites.asked("ours_right", "bundled:coffee", model)
