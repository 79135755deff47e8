"""Weight files: found, downloaded where that is allowed, and checked."""

import hashlib
import http.server
import json
import socket
import sys
import threading

import huggingface_hub
import pytest

from minexp import weights
from minexp.errors import InputError, WeightsError

CONTENT = b"numbers, many of them" * 1000
DIGEST = hashlib.sha256(CONTENT).hexdigest()
REPOSITORY, COMMIT = "timm/resnet18.a1_in1k", "0123456789abcdef0123456789abcdef01234567"


pytestmark = pytest.mark.usefixtures("places")


@pytest.fixture
def no_network(monkeypatch):
    """Any touch of the network fails the test, whatever catches exceptions on the way."""
    touched = []

    def touch(*arguments, **_):
        touched.append(arguments)
        raise AssertionError(f"the network was touched: {arguments}")

    monkeypatch.setattr(socket.socket, "connect", touch)
    monkeypatch.setattr(socket, "getaddrinfo", touch)
    yield
    assert touched == []


def in_hub_cache(folder, content: bytes = CONTENT, name: str | None = None):
    """``content`` as the hub's own cache keeps it: a blob under its sha256, and a link to it."""
    repository = folder / "hub" / f"models--{REPOSITORY.replace('/', '--')}"
    for part in ("refs", "blobs", f"snapshots/{COMMIT}"):
        (repository / part).mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    blob = repository / "blobs" / (name or hashlib.sha256(content).hexdigest())
    blob.write_bytes(content)
    link = repository / "snapshots" / COMMIT / "model.safetensors"
    link.symlink_to(blob)
    return link


def by_hand(name: str = "resnet18", content: bytes = CONTENT):
    path = weights.by_hand(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


# --- where they lie


def test_by_hand_is_in_the_home_under_the_models_name(places):
    assert weights.by_hand("resnet18") == places / "home" / "weights" / "resnet18.safetensors"
    other = places / "home" / "weights" / "timm-resnet18.a1_in1k.safetensors"
    assert weights.by_hand("timm:resnet18.a1_in1k") == other


def test_the_hubs_cache_is_used(places, no_network):
    link = in_hub_cache(places)
    assert weights.from_hub("resnet18", REPOSITORY) == link
    assert weights.downloaded_from_hub("resnet18", REPOSITORY) == link


def test_what_was_placed_by_hand_comes_first(places, no_network):
    in_hub_cache(places)
    path = by_hand()
    assert weights.from_hub("resnet18", REPOSITORY) == path
    assert weights.from_hub("another", REPOSITORY) != path


def test_the_torch_hubs_folder_is_used(places, no_network):
    url = "https://example.org/models/net-0a1b2c3d.pth"
    path = places / "torch" / "hub" / "checkpoints" / "net-0a1b2c3d.pth"
    with pytest.raises(WeightsError):
        weights.from_url("net", url)
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    assert weights.from_url("net", url) == path
    assert weights.downloaded_from_url("net", url) == path


def test_a_packages_file_lies_in_it(monkeypatch, places):
    package = places / "some_weights"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(places)
    found = weights.from_package("net", "some_weights", "models/net.pth", "some-weights==1")
    assert found == package / "models" / "net.pth"


def test_a_package_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "some_weights", None)
    with pytest.raises(WeightsError) as caught:
        weights.from_package("net", "some_weights", "net.pth", "some-weights==1")
    assert str(caught.value) == (
        "net: weights not found; expected the PyPI package some-weights==1; "
        "install it with pip: pip install some-weights==1"
    )


# --- without a network


@pytest.mark.parametrize("value", ["1", "yes"])
def test_offline_says_which_file_from_where_and_how_to_place_it(
    places, monkeypatch, no_network, value
):
    monkeypatch.setenv("MINEXP_OFFLINE", value)
    with pytest.raises(WeightsError) as caught:
        weights.downloaded_from_hub("resnet18", REPOSITORY)
    assert str(caught.value) == (
        "resnet18: the weights are not on this machine: model.safetensors of "
        f"https://huggingface.co/{REPOSITORY}; place it as "
        f"{places}/home/weights/resnet18.safetensors, or unset MINEXP_OFFLINE"
    )
    url = "https://example.org/models/net-0a1b2c3d.pth"
    with pytest.raises(WeightsError) as caught:
        weights.downloaded_from_url("net", url)
    assert str(caught.value) == (
        f"net: the weights are not on this machine: {url}; place the file as "
        f"{places}/torch/hub/checkpoints/net-0a1b2c3d.pth, or unset MINEXP_OFFLINE"
    )


@pytest.mark.parametrize("error", [OSError("unreachable"), AssertionError("no sockets here")])
def test_a_download_that_fails_says_so(monkeypatch, error):
    """Whichever library speaks HTTP, and whatever it raises."""

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(WeightsError, match=f"could not be downloaded: {error}") as caught:
        weights.downloaded_from_hub("resnet18", REPOSITORY)
    assert "place it as" in str(caught.value) and "MINEXP_OFFLINE" not in str(caught.value)


# --- with one: a server on this machine


class Server(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT as the hub does, and under any other address that ends in .pth."""

    def do_HEAD(self):
        known = self.path.endswith((f"/{REPOSITORY}/resolve/main/model.safetensors", ".pth"))
        self.send_response(200 if known else 404)
        self.send_header("Content-Length", str(len(CONTENT) if known else 0))
        self.send_header("ETag", f'"{DIGEST}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        return known

    def do_GET(self):
        if self.do_HEAD():
            self.wfile.write(CONTENT)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        address = f"http://127.0.0.1:{running.server_address[1]}"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        for module in [m for name, m in sys.modules.items() if name.startswith("huggingface_hub")]:
            if hasattr(module, "HUGGINGFACE_CO_URL_TEMPLATE"):
                template = address + "/{repo_id}/resolve/{revision}/{filename}"
                monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield address
        huggingface_hub.close_session()
        running.shutdown()
        thread.join()


def test_a_download_from_the_hub_lies_in_its_cache_under_its_digest(places, server):
    path = weights.downloaded_from_hub("resnet18", REPOSITORY)
    assert path.read_bytes() == CONTENT and path.is_relative_to(places / "hub")
    assert weights.hash_of(path) == DIGEST
    assert weights.from_hub("resnet18", REPOSITORY) == path


def test_a_download_that_the_hub_does_not_have_is_refused(places, server):
    with pytest.raises(WeightsError, match="could not be downloaded") as caught:
        weights.downloaded_from_hub("nothing", "timm/nothing")
    assert "\n" not in str(caught.value)


def test_a_download_is_checked_by_the_end_of_its_name(places, server, capfd):
    good, bad = (f"{server}/net-{digits}.pth" for digits in (DIGEST[:8], "00000000"))
    path = weights.downloaded_from_url("net", good)
    assert path.read_bytes() == CONTENT
    assert path == places / "torch" / "hub" / "checkpoints" / f"net-{DIGEST[:8]}.pth"
    with pytest.raises(WeightsError, match="could not be downloaded: invalid hash value"):
        weights.downloaded_from_url("net", bad)
    assert [file.name for file in path.parent.iterdir()] == [path.name], "nothing half-checked"
    assert capfd.readouterr().out == "", "progress is on stderr"


def test_a_server_that_is_not_there_is_refused(places):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(WeightsError, match=r"net-0a1b2c3d\.pth; .*could not be downloaded"):
        weights.downloaded_from_url("net", f"http://127.0.0.1:{port}/net-0a1b2c3d.pth")


# --- checked


def test_the_place_of_a_file_states_its_digest(places):
    assert weights.hash_of(in_hub_cache(places)) == DIGEST
    assert weights.hash_of(places / "resnet18-f37072fd.pth") == "f37072fd"
    assert weights.hash_of(places / "seresnext26_32x4d-65ebdb501.pth") == "65ebdb501"


@pytest.mark.parametrize(
    "name",
    ["resnet18.safetensors", "net-0a1b2c3.pth", "net-0a1b2c3g.pth", "net_0a1b2c3d.pth", DIGEST[1:]],
)
def test_other_names_state_none(places, name):
    assert weights.hash_of(places / name) is None


@pytest.mark.parametrize("expected", [DIGEST, DIGEST[:8]])
def test_the_recorded_digest_is_the_files(expected):
    assert weights.checked("net", by_hand("net"), expected, "here") == DIGEST


def test_without_a_recorded_digest_the_one_that_the_place_states_counts(places):
    assert weights.checked("net", in_hub_cache(places), None, "here") == DIGEST
    assert weights.checked("net", by_hand("net"), None, "here") == DIGEST, "nothing to hold it to"


@pytest.mark.parametrize("at", [0, len(CONTENT) // 2, len(CONTENT) - 1])
@pytest.mark.parametrize("recorded", [DIGEST, None])
def test_one_flipped_byte_is_refused_with_both_digests(places, recorded, at):
    flipped = bytearray(CONTENT)
    flipped[at] ^= 1
    path = in_hub_cache(places, bytes(flipped), name=DIGEST)
    with pytest.raises(WeightsError) as caught:
        weights.checked("net", path, recorded, "example.org")
    found = hashlib.sha256(flipped).hexdigest()
    assert str(caught.value) == (
        f"net: weights file {path} has sha256 {found}, expected {DIGEST}; "
        "replace it, it comes from: example.org"
    )


def test_the_recorded_digest_comes_before_the_one_that_the_place_states(places):
    path = in_hub_cache(places)
    with pytest.raises(WeightsError, match=f"has sha256 {DIGEST}, expected {'0' * 64}"):
        weights.checked("net", path, "0" * 64, "here")


def test_a_missing_file_is_named(places):
    with pytest.raises(WeightsError, match="none is missing; it comes from: here"):
        weights.checked("net", places / "none", DIGEST, "here")


def test_a_card_states_the_digest_of_what_was_trained(places):
    file, card = places / "net.safetensors", places / "net.json"
    assert weights.recorded(file) == "none", "that the weights are missing is said by checked"
    file.write_bytes(CONTENT)
    card.write_text(json.dumps({"weights_sha256": DIGEST}))
    assert weights.recorded(file) == DIGEST


@pytest.mark.parametrize("content", [None, "", "{", "[]", "{}", '"text"', "\udcff"])
def test_an_unreadable_card_is_named(places, content):
    file, card = places / "net.safetensors", places / "net.json"
    file.write_bytes(CONTENT)
    if content is not None:
        card.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(WeightsError, match="no readable model card") as caught:
        weights.recorded(file)
    assert str(card) in str(caught.value) and isinstance(caught.value, InputError)


def test_a_folder_of_that_name_is_no_file(places):
    weights.by_hand("net").mkdir(parents=True)
    with pytest.raises(WeightsError, match="is missing"):
        weights.checked("net", weights.by_hand("net"), DIGEST, "here")
    with pytest.raises(WeightsError, match="not on this machine"):
        weights.from_hub("net", REPOSITORY)
