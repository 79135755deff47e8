"""Images by reference: which picture it is, and what is none."""

import hashlib

import numpy as np
import pytest
import torch
from pictures import EACH, few_pictures
from PIL import Image

from minexp import cifar, images, mnist, models
from minexp.errors import InputError, RunError
from minexp.references import beside, check_distinct, is_path, locate, open_reference, stem


@pytest.fixture
def noise(monkeypatch):
    monkeypatch.setattr(cifar, "pictures", few_pictures)
    return few_pictures("test")[0]


@pytest.fixture(scope="module")
def vit():
    with torch.random.fork_rng(devices=[]):
        return models.load_model("vit_cifar10", weights=None)


@pytest.mark.parametrize("index", [0, 17, 10 * EACH - 1])
def test_a_test_picture_of_cifar10_as_it_is(noise, vit, index):
    image, digest = open_reference(f"cifar10:{index}", vit)
    expected = cifar.normalized(torch.from_numpy(noise[index : index + 1].copy()))
    assert image.shape == (1, 3, 32, 32) and torch.allclose(image, expected, atol=1e-5)
    assert digest == hashlib.sha256(noise[index].tobytes()).hexdigest()


def test_a_picture_of_cifar10_by_other_networks(noise, mnist_cnn, lite0):
    for model in (mnist_cnn, lite0):
        image, digest = open_reference("cifar10:3", model)
        assert torch.equal(image, model.preprocess(Image.fromarray(noise[3])))
        assert image.shape == (1, len(model.mean), *model.size)
        assert digest == hashlib.sha256(noise[3].tobytes()).hexdigest()


@pytest.mark.parametrize(
    "name",
    [f"{10 * EACH}", "-1", "", "1.5", "cat", " 1", "cifar10:1", "1_0", "9" * 5000],
    ids=lambda name: name[:9],
)
def test_what_is_no_index_is_refused(noise, vit, mnist_cnn, name):
    with pytest.raises(
        InputError, match=f"expected cifar10:0 to cifar10:{10 * EACH - 1}"
    ) as caught:
        open_reference(f"cifar10:{name}", vit)
    assert repr(f"cifar10:{name}") in str(caught.value)
    if name != f"{10 * EACH}":
        with pytest.raises(InputError, match="expected mnist:0 to mnist:4999"):
            open_reference(f"mnist:{name}", mnist_cnn)


def test_a_digit(mnist_cnn):
    image, digest = open_reference("mnist:17", mnist_cnn)
    digit = mnist.digits()[0][17]
    assert torch.allclose(image, mnist.digit_image(digit), atol=1e-6)
    assert digest == hashlib.sha256(digit.tobytes()).hexdigest()


def test_a_bundled_picture_and_its_path_are_the_same(lite0, coffee_path):
    by_name, by_path = (
        open_reference(name, lite0) for name in ("bundled:coffee", str(coffee_path))
    )
    assert torch.equal(by_name[0], by_path[0]) and by_name[1] == by_path[1]
    assert by_name[1] == images.sha256(coffee_path) and locate("bundled:coffee") == coffee_path
    with pytest.raises(InputError, match=r"'bundled:otter'.*chelsea, coffee"):
        locate("bundled:otter")


def test_without_the_pictures_it_is_said_what_to_do(tmp_path, monkeypatch, vit):
    monkeypatch.setattr(cifar, "pictures", cifar.pictures.__wrapped__)  # what is cached stays
    monkeypatch.delenv("MINEXP_CIFAR10", raising=False)
    monkeypatch.setenv("MINEXP_HOME", str(tmp_path))
    monkeypatch.setenv("MINEXP_OFFLINE", "1")
    with pytest.raises((InputError, RunError), match="MINEXP_CIFAR10"):
        open_reference("cifar10:0", vit)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("reference", "path", "name"),
    [
        ("cat.jpg", True, "cat"),
        ("in/cat.of.mine.jpg", True, "cat.of.mine"),
        ("cifar10/7.png", True, "7"),
        ("bundled:coffee", False, "bundled-coffee"),
        ("mnist:4711", False, "mnist-4711"),
        ("cifar10:7", False, "cifar10-7"),
    ],
)
def test_names_and_paths(reference, path, name):
    assert is_path(reference) is path and stem(reference) == name


def test_images_that_would_share_their_files_are_refused():
    check_distinct(["cifar10:7", "mnist:7", "cifar10-8.png", "7.png", "cifar10:7"])
    for pair in (["cifar10:7", "cifar10-7.png"], ["a/x.png", "b/x.jpg"]):
        with pytest.raises(InputError, match=f"{pair[0]} and {pair[1]} would write the same files"):
            check_distinct(pair)


def test_a_picture_that_moved_along_with_its_result(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = tmp_path / "out" / "cat.json"
    result.parent.mkdir()
    assert beside(result, "cat.png") == "cat.png", "neither here nor there: as written"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(result.parent / "cat.png")
    assert beside(result, "cat.png") == str(result.parent / "cat.png")
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "cat.png")
    assert beside(result, "cat.png") == "cat.png"
    assert beside(result, "cifar10:7") == "cifar10:7"
