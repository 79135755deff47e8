"""Pictures in: read any image file safely.

Nothing here knows a model. Every refusal of a file is one ``InputError`` that names the file.
"""

import hashlib
import os
import stat
import struct
import warnings
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from minexp.errors import InputError

if TYPE_CHECKING:
    import torch

MAX_PIXELS = 100_000_000
MIN_SIDE = 8

# Pillow names these formats but cannot decode them itself; EPS it would hand to Ghostscript.
_NOT_PIXELS = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "PDF", "WMF"})
# What Pillow's decoders raise on damaged bytes.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    EOFError,
    MemoryError,
    AttributeError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def refuse(path: Path, what: str, remedy: str, why: BaseException | None = None) -> InputError:
    """The error to raise, on one line.

    The file, what is wrong with it (and ``why``), what to do.
    """
    words = getattr(why, "strerror", None) or str(why) or type(why).__name__
    reason = f" ({' '.join(words.split())})" if why else ""
    return InputError(f"{str(path)!r} {what}{reason}: {remedy}")


def regular_file(path: str | os.PathLike) -> Path:
    """``path`` as a Path if it is an ordinary file (a pipe would block the reader).

    Else InputError.
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise refuse(path, "does not exist", "expected a file; check the path") from None
    except (OSError, ValueError) as error:
        raise refuse(
            path, "cannot be opened", "check the path and its permissions", error
        ) from None
    if stat.S_ISDIR(mode):
        raise refuse(path, "is a directory", "expected one file; pass a file inside it")
    if not stat.S_ISREG(mode):
        raise refuse(path, "is not a regular file", "expected a file on disk; save it to one first")
    return path


def _check_size(image: Image.Image, path: Path) -> None:
    """InputError if ``image`` (perhaps only its header) is outside MIN_SIDE … MAX_PIXELS."""
    width, height = image.size
    if min(width, height) < MIN_SIDE:
        raise refuse(
            path,
            f"is {width} x {height} pixels",
            f"expected at least {MIN_SIDE} on each side; use a larger picture",
        )
    if width * height > MAX_PIXELS:
        raise refuse(
            path,
            f"is {width} x {height} pixels",
            f"expected at most {MAX_PIXELS:,}; shrink it first",
        )


def _decode(path: Path) -> Image.Image:
    """The first frame, fully decoded, upright, in whatever mode the file has. Raises InputError."""
    try:
        with Image.open(path) as image:
            _check_size(image, path)
            if image.format in _NOT_PIXELS:
                raise refuse(
                    path, f"is a {image.format} file", "expected pixels; convert it to PNG or JPEG"
                )
            image.load()
            _check_size(image, path)  # icon formats learn their true size only on decoding
            return _upright(image)
    except PermissionError:
        raise refuse(
            path, "may not be read", "expected read permission; change it with chmod"
        ) from None
    except UnidentifiedImageError:
        raise refuse(
            path, "is not an image", "expected PNG, JPEG, TIFF, WebP or the like; convert it"
        ) from None
    except Image.DecompressionBombError:
        raise refuse(
            path, "is too large", f"expected at most {MAX_PIXELS:,} pixels; shrink it first"
        ) from None
    except _DECODER_ERRORS as error:
        raise refuse(
            path, "is damaged or cut short", "expected a whole image; export it again", error
        ) from None


def _upright(image: Image.Image) -> Image.Image:
    """A copy turned as its EXIF orientation says.

    An unreadable EXIF block says nothing, the pixels are still good.
    """
    try:
        return ImageOps.exif_transpose(image)
    except _DECODER_ERRORS:
        return image.copy()


def _gray16_to_8(image: Image.Image, path: Path) -> Image.Image:
    """Integer gray (modes I, I;16…), range 0 … 65535, to mode L by round(v * 255 / 65535).

    Raises InputError.
    """
    values = np.asarray(image)  # (H, W)
    if values.min() < 0 or values.max() > 65535:
        raise refuse(
            path,
            f"has gray values {values.min()} to {values.max()}",
            "expected 16-bit gray, 0 to 65535; rescale it",
        )
    return Image.fromarray(
        ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    )  # 65535 = 255 * 257


def _to_rgb(image: Image.Image, path: Path) -> Image.Image:
    """``image`` of any mode as 8-bit RGB, transparency composited on white.

    Mode F raises InputError.
    """
    if image.mode == "F":
        raise refuse(
            path,
            "holds floating-point gray of unknown range",
            "expected 8 or 16 bits a channel; rescale it",
        )
    if image.mode.startswith("I"):
        image = _gray16_to_8(image, path)
    if image.mode == "La":  # premultiplied; Pillow converts it only to LA
        image = image.convert("LA")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def read_image(path: str | os.PathLike) -> Image.Image:
    """Read an image file as an upright picture of mode RGB, 8 bits a channel.

    The first frame of animations; EXIF rotation applied; transparency composited on white; 16-bit
    gray scaled to 8 bits with rounding, 16-bit colour as Pillow gives it (the high byte). Colour
    profiles are not applied.

    Raises:
        InputError: one line naming the file: not there, not readable, not an image, empty,
            damaged, under MIN_SIDE on a side, over MAX_PIXELS (told from the header, before
            decoding), or floating-point gray.
    """
    path = regular_file(path)
    if path.stat().st_size == 0:
        raise refuse(path, "is empty (0 bytes)", "expected an image; export it again")
    with warnings.catch_warnings():
        # Pillow warns of large pictures and odd metadata; sizes are judged here, damage to pixels
        # raises.
        warnings.simplefilter("ignore")
        return _to_rgb(_decode(path), path)


def load_image(path: str | os.PathLike, model) -> "torch.Tensor":
    """The file as ``model``'s normalised input, (1, C, H, W) float32.

    ``model.preprocess(read_image(path))``.
    """
    return model.preprocess(read_image(path))


def list_images(path: str | os.PathLike) -> list[Path]:
    """``[path]`` for a file; for a directory its image files by extension (any case), sorted by
    name.

    Subdirectories and hidden files are left out. Raises InputError if ``path`` is missing or holds
    no image.
    """
    path = Path(path)
    if not os.path.isdir(path):
        return [regular_file(path)]
    known = {
        suffix for suffix, kind in Image.registered_extensions().items() if kind not in _NOT_PIXELS
    }
    try:
        files = sorted(
            file
            for file in path.iterdir()
            if file.suffix.lower() in known and not file.name.startswith(".") and file.is_file()
        )
    except OSError as error:
        raise refuse(path, "cannot be listed", "check its permissions", error) from None
    if not files:
        raise refuse(
            path, "holds no image file", "expected .png, .jpg, .tif or the like directly in it"
        )
    return files


def sha256(path: str | os.PathLike) -> str:
    """Hexadecimal SHA-256 of a file's bytes, read in chunks.

    Raises InputError if it cannot be read.
    """
    path = regular_file(path)
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise refuse(path, "cannot be read", "check its permissions", error) from None
