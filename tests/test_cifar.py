"""CIFAR-10: read from two zips or as torchvision leaves it, or refused with what to do."""

import hashlib
import io
import os
import pickle
import socket
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10

from minexp import cifar
from minexp.errors import InputError, RunError

REAL = os.environ.get("MINEXP_CIFAR10")
needs_real = pytest.mark.skipif(not REAL, reason="MINEXP_CIFAR10 is not set: no pictures here")
SIZES = {"train": 20, "test": 10}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A home of the test's own, no folder of pictures, nothing remembered, no network."""

    def refuse(*_arguments, **_settings):
        raise AssertionError("a socket is opened")

    monkeypatch.setenv("MINEXP_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MINEXP_CIFAR10", raising=False)
    monkeypatch.delenv("MINEXP_OFFLINE", raising=False)
    monkeypatch.setattr(socket, "socket", refuse)
    cifar.pictures.cache_clear()
    yield tmp_path / "home"
    cifar.pictures.cache_clear()


def colour(number):
    return (25 * (number % 10), number, 255 - number)


def png(fill, size=(32, 32), mode="RGB"):
    buffer = io.BytesIO()
    Image.new(mode, size, fill).save(buffer, "PNG")
    return buffer.getvalue()


def contents(part):
    """Of each class as many pictures as of any other, of one colour each, in a shuffled order."""
    each = SIZES[part] // 10
    numbers = np.random.default_rng(0).permutation(SIZES[part]).tolist()
    return {
        f"{cifar.CLASSES[number // each]}/{number % each:04}.png": png(colour(number))
        for number in numbers
    }


def write_zip(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A small train.zip and test.zip, named by MINEXP_CIFAR10."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for part in SIZES:
        write_zip(folder / f"{part}.zip", contents(part))
    monkeypatch.setenv("MINEXP_CIFAR10", str(folder))
    monkeypatch.setattr(cifar, "SIZES", SIZES)
    return folder


# --- two zips


@pytest.mark.parametrize("part", SIZES)
def test_zips_are_read_sorted_by_class_and_name(folder, part):
    pixels, labels = cifar.pictures(part)
    assert pixels.shape == (SIZES[part], 32, 32, 3) and pixels.dtype == np.uint8
    assert labels.dtype == np.int64
    np.testing.assert_array_equal(labels, np.repeat(np.arange(10), SIZES[part] // 10))
    for number, picture in enumerate(pixels):
        assert (picture == colour(number)).all(), number


def test_pictures_are_read_upright_and_in_the_order_of_colours(folder):
    files, mark = contents("test"), np.zeros((32, 32, 3), dtype=np.uint8)
    mark[2, 5] = (255, 100, 0)  # third row, sixth column
    buffer = io.BytesIO()
    Image.fromarray(mark).save(buffer, "PNG")
    files["airplane/0000.png"] = buffer.getvalue()
    write_zip(folder / "test.zip", files)
    np.testing.assert_array_equal(cifar.pictures("test")[0][0], mark)


def test_one_channel_becomes_three(folder):
    write_zip(folder / "test.zip", {**contents("test"), "truck/0000.png": png(7, mode="L")})
    assert (cifar.pictures("test")[0][-1] == 7).all()


def test_an_outer_folder_and_hidden_files_change_nothing(folder):
    expected = cifar.pictures("test")
    files = {f"cifar/{name}": content for name, content in contents("test").items()}
    hidden = {
        "cifar/": b"",
        "cifar/airplane/": b"",
        "cifar/.DS_Store": b"x",
        "cifar/airplane/.DS_Store": b"x",
        "__MACOSX/cifar/airplane/._0000.png": b"x",
    }
    write_zip(folder / "test.zip", {**hidden, **files})
    cifar.pictures.cache_clear()
    for found, wanted in zip(cifar.pictures("test"), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_arrays_are_read_once_and_read_only(folder):
    pixels, labels = cifar.pictures("test")
    assert cifar.pictures("test")[0] is pixels
    for array in (pixels, labels):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def check_refused(path, *reasons):
    with pytest.raises(InputError) as caught:
        cifar.pictures("test")
    message = str(caught.value)
    for part in (str(path), *reasons, "airplane", "correct or unset MINEXP_CIFAR10"):
        assert part in message


@pytest.mark.parametrize("left", [0, 10, 0.5, -1])
def test_a_truncated_zip_is_refused(folder, left):
    path = folder / "test.zip"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2 if left == 0.5 else left])
    check_refused(path)


def test_a_missing_zip_is_refused(folder):
    (folder / "test.zip").unlink()
    check_refused(folder / "test.zip", "No such file")
    assert len(cifar.pictures("train")[1]) == 20


def test_a_zip_without_pictures_is_refused(folder):
    write_zip(folder / "test.zip", {"airplane/": b""})
    check_refused(folder / "test.zip")


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_damaged_content_is_refused(folder, method):
    path, (name, content) = folder / "test.zip", next(iter(contents("test").items()))
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr(name, content)
    damaged = bytearray(path.read_bytes())
    start = 30 + len(name)  # after the local header
    damaged[start : start + 20] = b"\xff" * 20
    path.write_bytes(damaged)
    check_refused(path)


def test_an_encrypted_zip_is_refused(folder):
    path = folder / "test.zip"
    locked = bytearray(path.read_bytes())
    entry = locked.index(b"PK\x01\x02")  # the first file's entry in the directory at the end
    locked[entry + 8] |= 1
    locked[6] |= 1
    path.write_bytes(locked)
    check_refused(path, "encrypted")


@pytest.mark.parametrize("size", [(64, 64), (16, 64), (31, 32), (32, 33)])
@pytest.mark.parametrize("count", ["one", "all"])
def test_pictures_of_another_size_are_refused(folder, size, count):
    files = contents("test")
    for name in sorted(files)[: 1 if count == "one" else None]:
        files[name] = png(3, size)
    write_zip(folder / "test.zip", files)
    check_refused(folder / "test.zip", f"airplane/0000.png: {size[0]} x {size[1]} pixels")


@pytest.mark.parametrize("name", ["plane/0.png", "Airplane/0.png", "0.png", "airplane/a/0.png"])
def test_unknown_class_folders_are_refused(folder, name):
    write_zip(folder / "test.zip", {**contents("test"), name: png(3)})
    check_refused(folder / "test.zip", f"{name}: no class {Path(name).parent.name!r}")


def test_a_file_that_is_no_picture_is_refused(folder):
    write_zip(folder / "test.zip", {**contents("test"), "truck/readme.txt": b"trucks"})
    check_refused(folder / "test.zip", "cannot identify")


@pytest.mark.parametrize("change", [-1, 1])
def test_another_number_of_pictures_is_refused(folder, change):
    files = contents("test")
    if change < 0:
        del files["cat/0000.png"]
    else:
        files["cat/0001.png"] = png(3)
    write_zip(folder / "test.zip", files)
    with pytest.raises(InputError, match=f"test: {10 + change} pictures; expected 10") as caught:
        cifar.pictures("test")
    assert "MINEXP_CIFAR10" in str(caught.value)


@pytest.mark.parametrize("part", ["", "valid", "Train", "test.zip"])
def test_an_unknown_part_is_refused(folder, part):
    with pytest.raises(InputError, match="expected one of train, test") as caught:
        cifar.pictures(part)
    assert repr(part) in str(caught.value)


# --- as torchvision leaves it


def pickled(content, path):
    path.write_bytes(pickle.dumps(content, protocol=2))
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def batches(home, monkeypatch):
    """torchvision's layout, in small: two training batches and a test batch, of noise."""
    folder, generator = home / "cifar10" / "cifar-10-batches-py", np.random.default_rng(0)
    folder.mkdir(parents=True)
    content, sums = {}, {}
    for name in ("data_batch_1", "data_batch_2", "test_batch"):
        data = generator.integers(256, size=(10, 3072), dtype=np.uint8)
        content[name] = {"data": data, "labels": generator.permutation(10).tolist()}
        sums[name] = pickled(content[name], folder / name)
    meta = pickled({"label_names": list(cifar.CLASSES)}, folder / "batches.meta")
    monkeypatch.setattr(CIFAR10, "train_list", [[n, sums[n]] for n in list(sums)[:2]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": meta})
    monkeypatch.setattr(cifar, "SIZES", SIZES)
    return content


@pytest.mark.parametrize("offline", ["", "1"])
@pytest.mark.parametrize(
    ("part", "names"),
    [("train", ["data_batch_1", "data_batch_2"]), ("test", ["test_batch"])],
)
def test_torchvisions_batches_are_read(batches, monkeypatch, part, names, offline):
    monkeypatch.setenv("MINEXP_OFFLINE", offline)
    pixels, labels = cifar.pictures(part)
    assert pixels.shape == (SIZES[part], 32, 32, 3) and labels.dtype == np.int64
    for number in range(SIZES[part]):
        batch = batches[names[number // 10]]
        red, green, blue = batch["data"][number % 10].reshape(3, 32, 32)
        np.testing.assert_array_equal(pixels[number, :, :, 0], red)
        np.testing.assert_array_equal(pixels[number, :, :, 1], green)
        np.testing.assert_array_equal(pixels[number, :, :, 2], blue)
        assert labels[number] == batch["labels"][number % 10]
    assert not pixels.flags.writeable and not labels.flags.writeable


def test_torchvisions_classes_are_ours():
    """torchvision knows them only from the downloaded file; these are from the data set's page."""
    names = "airplane automobile bird cat deer dog frog horse ship truck"
    assert tuple(names.split()) == cifar.CLASSES


def test_damaged_batches_are_refused_offline(batches, home, monkeypatch):
    monkeypatch.setenv("MINEXP_OFFLINE", "1")
    folder = home / "cifar10" / "cifar-10-batches-py"
    (folder / "test_batch").write_bytes(b"damaged")
    with pytest.raises(RunError, match="MINEXP_CIFAR10") as caught:
        cifar.pictures("test")
    assert str(home / "cifar10") in str(caught.value) and "corrupted" in str(caught.value)


def test_damaged_batches_are_downloaded_again(batches, home, monkeypatch):
    """A download that was cut off in mid-extraction leaves the folder."""
    path = home / "cifar10" / "cifar-10-batches-py" / "test_batch"
    whole = path.read_bytes()
    path.write_bytes(b"damaged")

    def download(url, root, **_settings):
        assert url == CIFAR10.url and Path(root) == home / "cifar10"
        path.write_bytes(whole)

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", download)
    assert cifar.pictures("test")[1].tolist() == batches["test_batch"]["labels"]


def test_a_failed_download_says_what_to_do(monkeypatch):
    def fail(*_arguments, **_settings):
        raise OSError("Name or service not known")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", fail)
    with pytest.raises(RunError, match="service not known; let MINEXP_CIFAR10 name a folder"):
        cifar.pictures("train")


@pytest.mark.parametrize("part", SIZES)
def test_offline_without_pictures_is_refused_and_opens_no_socket(monkeypatch, home, part):
    monkeypatch.setenv("MINEXP_OFFLINE", "1")
    with pytest.raises(InputError, match="let MINEXP_CIFAR10 name a folder") as caught:
        cifar.pictures(part)
    assert "unset MINEXP_OFFLINE" in str(caught.value)
    assert not home.exists()


# --- whether it is here


def test_is_here_where_both_zips_are(folder):
    assert cifar.is_here()
    (folder / "train.zip").unlink()
    assert not cifar.is_here()


def test_is_here_where_torchvision_left_it(batches):
    assert cifar.is_here()


def test_is_not_here_by_itself(home):
    assert not cifar.is_here() and not home.exists()


def test_a_named_folder_counts_before_torchvisions(batches, tmp_path, monkeypatch):
    monkeypatch.setenv("MINEXP_CIFAR10", str(tmp_path / "none"))
    assert not cifar.is_here()
    with pytest.raises(InputError, match="No such file"):
        cifar.pictures("test")


# --- a network's input


def test_normalized_against_the_definition():
    pixels = np.random.default_rng(0).integers(256, size=(2, 32, 32, 3), dtype=np.uint8)
    found = cifar.normalized(torch.from_numpy(pixels))
    assert found.shape == (2, 3, 32, 32) and found.dtype == torch.float32
    assert found.is_contiguous()
    for number, row, column, channel in np.ndindex(pixels.shape):
        value = float(pixels[number, row, column, channel]) / 255
        expected = (value - cifar.MEAN[channel]) / cifar.STD[channel]
        assert abs(found[number, channel, row, column].item() - expected) < 1e-6


# --- the real ones


@pytest.fixture
def real(monkeypatch):
    monkeypatch.setenv("MINEXP_CIFAR10", REAL)


@needs_real
@pytest.mark.parametrize("part", ["test", pytest.param("train", marks=pytest.mark.slow)])
def test_real_pictures_are_complete_and_balanced(real, part):
    assert cifar.is_here()
    pixels, labels = cifar.pictures(part)
    each = {"train": 5000, "test": 1000}[part]
    assert pixels.shape == (10 * each, 32, 32, 3) and pixels.dtype == np.uint8
    np.testing.assert_array_equal(np.bincount(labels), [each] * 10)
    assert pixels.min() == 0 and pixels.max() == 255
    if part == "train":
        values = pixels.reshape(-1, 3)
        mean = [np.mean(values[:, k], dtype=np.float64) / 255 for k in range(3)]
        std = [np.std(values[:, k], dtype=np.float64) / 255 for k in range(3)]
        np.testing.assert_allclose(mean, cifar.MEAN, atol=0.002)
        np.testing.assert_allclose(std, cifar.STD, atol=0.002)
