"""Results on disk: verified number by number, kept while their inputs hold, redone otherwise."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from minexp import images, mnist, references, results, verification
from minexp.config import ExplainConfig, configure
from minexp.errors import InputError
from minexp.masking import apply_mask

QUICK = configure(
    ExplainConfig(),
    {"grid": 28, "steps": 25, "confidence_slack": 0.05, "tv": 20.0, "area": 30.0, "noise_draws": 4},
)
SHORT = replace(QUICK, steps=2)


def write_digit(path: Path, index: int) -> Path:
    pixels, _ = mnist.digits()
    Image.fromarray(np.round(pixels[index] * 255).astype(np.uint8)).save(path)
    return path


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def flip(path: Path, row: int, column: int) -> None:
    with Image.open(path) as picture:
        mask = np.array(picture)
    mask[row, column] ^= True
    Image.fromarray(mask).save(path)


@pytest.fixture(scope="module")
def made(mnist_cnn, tmp_path_factory):
    """A folder with a digit and its result; not to be changed."""
    folder = tmp_path_factory.mktemp("made")
    image = write_digit(folder / "four.png", 4)
    _, new = results.explain_to_files(str(image), mnist_cnn, QUICK, folder)
    assert new
    return folder


@pytest.fixture
def folder(made, tmp_path):
    """The same in a folder of the test's own; the image is found beside its result."""
    return Path(shutil.copytree(made, tmp_path / "copy"))


def short(folder: Path, mnist_cnn, config=SHORT, **options) -> tuple[dict, bool]:
    return results.explain_to_files(str(folder / "four.png"), mnist_cnn, config, folder, **options)


def test_the_files_and_the_schema(made):
    assert {path.name for path in made.iterdir()} == {
        "four.png", "four.json", "four.mask.png", "four.explanation.png", "four.history.jsonl",
    }  # fmt: skip
    result = json.loads((made / "four.json").read_text())
    assert result["schema"] == "minexp/2" and result["model"] == "mnist_cnn"
    assert result["image"] == {
        "path": str(made / "four.png"), "sha256": images.sha256(made / "four.png"),
    }  # fmt: skip
    assert (result["decision_index"], result["label_asked"]) == (result["label_index"], None)
    contract = """schema image model weights_sha256 label_index label confidence
        explanation_confidence label_kept area robustness minimality steps forward_passes
        backward_passes seconds seed config versions"""
    assert set(contract.split()) <= result.keys()
    assert verification.read_config(result) == QUICK


def test_the_pictures(made, mnist_cnn):
    with Image.open(made / "four.mask.png") as mask, Image.open(made / "four.png") as image:
        assert (mask.mode, mask.size) == ("1", (28, 28))
        with Image.open(made / "four.explanation.png") as explanation:
            expected = np.where(np.array(mask), np.array(image), 0)
            assert np.array_equal(np.array(explanation), expected)
    result = results.read_result(made / "four.json")
    mask = results.read_mask(made / "four.json")
    assert result["area"] == pytest.approx(mask.mean().item(), abs=1e-6)


def test_a_result_verifies(made):
    assert verification.verify(made / "four.json") == []


@pytest.mark.parametrize("name", ["confidence", "explanation_confidence", "area"])
@pytest.mark.parametrize("by", [1e-3, -1e-3])
def test_an_altered_number_is_named(folder, name, by):
    path = folder / "four.json"
    edit(path, **{name: json.loads(path.read_text())[name] + by})
    assert [line.split(":")[0] for line in verification.verify(path)] == [name]


@pytest.mark.parametrize("name", ["label_kept", "feasible"])
def test_a_flipped_flag_is_named(folder, name):
    path = folder / "four.json"
    edit(path, **{name: not json.loads(path.read_text())[name]})
    assert [line.split(":")[0] for line in verification.verify(path)] == [name]


def test_altered_components_share_and_label_are_named(folder):
    path = folder / "four.json"
    original = json.loads(path.read_text())
    kept = original["robustness"]["gaussian"]
    for name, changes in {
        "components": {"components": original["components"] + 1},
        "gaussian kept": {"robustness": {"gaussian": {**kept, "kept": kept["kept"] - 1e-3}}},
        "label": {"label": "9"},
    }.items():
        path.write_text(json.dumps(original | changes))
        assert [line.split(":")[0] for line in verification.verify(path)] == [name]


def test_another_label_index_is_noticed(folder):
    edit(folder / "four.json", label_index=7)
    named = {line.split(":")[0] for line in verification.verify(folder / "four.json")}
    assert {"label", "confidence", "label_kept"} <= named


def test_a_result_of_an_older_schema_counts_as_another(folder, mnist_cnn):
    result = json.loads((folder / "four.json").read_text())
    for name in ("decision_index", "label_asked"):
        del result[name]
    (folder / "four.json").write_text(json.dumps(result | {"schema": "minexp/1"}))
    with pytest.raises(InputError, match="schema minexp/2"):
        verification.verify(folder / "four.json")
    assert short(folder, mnist_cnn)[1]


@pytest.mark.parametrize(
    ("name", "value", "named"),
    [
        ("decision_index", 7, {"decision_index", "label_index"}),
        ("label_asked", 7, {"label_index"}),
        ("label_asked", "own", set()),
    ],
)
def test_what_was_asked_and_decided_is_verified(folder, name, value, named):
    """Asking for the network's own decision by name changes nothing."""
    path = folder / "four.json"
    value = json.loads(path.read_text())["label_index"] if value == "own" else value
    edit(path, **{name: value})
    assert {line.split(":")[0] for line in verification.verify(path)} == named


def test_a_label_asked_for_is_an_input_like_any_other(tmp_path, mnist_cnn):
    write_digit(tmp_path / "four.png", 4)
    own = short(tmp_path, mnist_cnn)[0]
    other = (own["label_index"] + 1) % 10
    result, made = short(tmp_path, mnist_cnn, label=other)
    assert made and (result["label_asked"], result["label_index"]) == (other, other)
    assert result["decision_index"] == own["label_index"] and result["label"] == str(other)
    assert short(tmp_path, mnist_cnn, label=other) == (result, False)
    path, image = tmp_path / "four.json", str(tmp_path / "four.png")
    assert verification.verify(path) == []
    found = [results.finished(image, mnist_cnn, SHORT, tmp_path, label=k) for k in (None, other)]
    assert found == [None, result]
    assert short(tmp_path, mnist_cnn)[1], "the network's own decision is another question"


def test_a_label_index_out_of_range_is_refused(folder):
    edit(folder / "four.json", label_index=99)
    with pytest.raises(InputError, match=r"four\.json"):
        verification.verify(folder / "four.json")


def test_a_change_below_the_tolerance_passes(folder):
    path = folder / "four.json"
    edit(path, confidence=json.loads(path.read_text())["confidence"] - 5e-5)
    assert verification.verify(path) == []


def test_a_flipped_pixel_fails(folder):
    for row, column in ((0, 0), (14, 14)):
        flip(folder / "four.mask.png", row, column)
        assert "area" in [line.split(":")[0] for line in verification.verify(folder / "four.json")]
        flip(folder / "four.mask.png", row, column)
    assert verification.verify(folder / "four.json") == []


def test_a_flipped_pixel_of_a_photograph_fails(lite0, tmp_path):
    """One pixel of 50,176 changes the area by 2e-5: less than 1e-4, but the mask is another."""
    config = replace(ExplainConfig(), steps=3, noise_draws=0, minimal=False)
    results.explain_to_files("bundled:coffee", lite0, config, tmp_path)
    path = tmp_path / "bundled-coffee.json"
    assert verification.verify(path) == []
    flip(tmp_path / "bundled-coffee.mask.png", 1, 1)
    assert verification.verify(path) != []


def test_a_mask_of_another_size_is_refused(folder):
    Image.new("1", (27, 28)).save(folder / "four.mask.png")
    with pytest.raises(InputError, match="size"):
        verification.verify(folder / "four.json")


def test_a_replaced_image_is_refused(folder, made):
    edit(folder / "four.json", image=json.loads((folder / "four.json").read_text())["image"] | {
        "path": str(folder / "four.png")
    })  # fmt: skip
    assert verification.verify(folder / "four.json") == []
    write_digit(folder / "four.png", 7)
    with pytest.raises(InputError, match="not the image"):
        verification.verify(folder / "four.json")


def test_other_weights_are_refused(folder):
    edit(folder / "four.json", weights_sha256="0" * 64)
    with pytest.raises(InputError, match="other weights of mnist_cnn"):
        verification.verify(folder / "four.json")


def test_a_missing_mask_is_refused(folder):
    (folder / "four.mask.png").unlink()
    with pytest.raises(InputError, match=r"four\.mask\.png"):
        verification.verify(folder / "four.json")


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "null", '{"schema": "minexp/0"}', '{"schema": "minexp/2"}',
     '{"schema": "minexp/2", "image": 3, "config": {}, "versions": {}}'],
)  # fmt: skip
def test_what_is_no_result_is_refused(folder, mnist_cnn, text):
    """By verify in one line; by the next explain by making it anew."""
    (folder / "four.json").write_text(text)
    with pytest.raises(InputError, match=r"four\.json"):
        verification.verify(folder / "four.json")
    assert short(folder, mnist_cnn)[1]


@pytest.mark.parametrize("lost", ["model", "robustness", "label_index", "area", "feasible"])
def test_a_result_without_a_field_is_refused(folder, lost):
    result = json.loads((folder / "four.json").read_text())
    del result[lost]
    (folder / "four.json").write_text(json.dumps(result))
    with pytest.raises(InputError, match=r"four\.json"):
        verification.verify(folder / "four.json")


def test_a_moved_folder_still_verifies(folder, tmp_path):
    edit(folder / "four.json", image=json.loads((folder / "four.json").read_text())["image"] | {
        "path": str(folder / "four.png")
    })  # fmt: skip
    moved = folder.rename(tmp_path / "elsewhere")
    assert verification.verify(moved / "four.json") == []
    (moved / "four.png").unlink()
    with pytest.raises(InputError, match=r"four\.png"):
        verification.verify(moved / "four.json")


def stamps(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_a_finished_result_is_kept(tmp_path, mnist_cnn):
    write_digit(tmp_path / "four.png", 4)
    first, made = short(tmp_path, mnist_cnn)
    before = stamps(tmp_path)
    second, again = short(tmp_path, mnist_cnn)
    assert (made, again) == (True, False) and second == first and stamps(tmp_path) == before


@pytest.mark.parametrize(
    "changes",
    [{"steps": 3}, {"seed": 1}, {"area": 31.0}, {"criterion": "label"}, {"tap_weights": {"1": 2}}],
)
def test_another_config_is_redone(tmp_path, mnist_cnn, changes):
    write_digit(tmp_path / "four.png", 4)
    short(tmp_path, mnist_cnn)
    config = configure(SHORT, changes)
    result, made = short(tmp_path, mnist_cnn, config)
    assert made and verification.read_config(result) == config
    assert not short(tmp_path, mnist_cnn, config)[1]


def test_another_image_force_and_other_code_are_redone(tmp_path, mnist_cnn, monkeypatch):
    write_digit(tmp_path / "four.png", 4)
    short(tmp_path, mnist_cnn)
    assert short(tmp_path, mnist_cnn, force=True)[1]
    write_digit(tmp_path / "four.png", 7)
    result, made = short(tmp_path, mnist_cnn)
    assert made and result["image"]["sha256"] == images.sha256(tmp_path / "four.png")
    monkeypatch.setattr(results, "code_digest", lambda: "other")
    assert short(tmp_path, mnist_cnn)[1]


def test_a_truncated_json_is_redone(tmp_path, mnist_cnn):
    write_digit(tmp_path / "four.png", 4)
    short(tmp_path, mnist_cnn)
    whole = (tmp_path / "four.json").read_bytes()
    for length in (0, 1, 40, len(whole) // 2, len(whole) - 3):
        (tmp_path / "four.json").write_bytes(whole[:length])
        assert short(tmp_path, mnist_cnn)[1]
        assert json.loads((tmp_path / "four.json").read_text())["area"] > 0


def test_every_truncation_of_a_mask_is_noticed(folder):
    """Unless every pixel was before the cut, as where only the closing chunk is lost."""
    path = folder / "four.mask.png"
    whole = path.read_bytes()
    mask, noticed = results.read_mask(folder / "four.json"), 0
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        try:
            assert torch.equal(results.read_mask(folder / "four.json"), mask)
        except InputError as error:
            assert "four.mask.png" in str(error)
            noticed += 1
    assert noticed > len(whole) / 2


@pytest.mark.parametrize("name", ["four.mask.png", "four.explanation.png"])
@pytest.mark.parametrize("left", [0, 50, None])
def test_a_truncated_or_missing_picture_is_redone(tmp_path, mnist_cnn, name, left):
    write_digit(tmp_path / "four.png", 4)
    short(tmp_path, mnist_cnn)
    whole = (tmp_path / name).read_bytes()
    if left is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(whole[:left])
    _, made = short(tmp_path, mnist_cnn)
    assert made and (tmp_path / name).read_bytes() == whole


def test_the_history_is_that_of_the_search(tmp_path, mnist_cnn):
    write_digit(tmp_path / "four.png", 4)
    seen = []
    result, _ = short(tmp_path, mnist_cnn, on_step=seen.append)
    history = results.read_history(tmp_path / "four.json")
    assert history == seen and [record["step"] for record in history] == [0, 1]
    assert result["steps"] == SHORT.steps == 2


@pytest.mark.parametrize("left", [0, 1, 50, "line", -2, None])
def test_a_truncated_or_missing_history_is_refused(folder, left):
    path = folder / "four.history.jsonl"
    whole = path.read_bytes()
    assert len(results.read_history(folder / "four.json")) == QUICK.steps
    if left is None:
        path.unlink()
    else:
        path.write_bytes(whole[: whole.index(b"\n") + 1 if left == "line" else left])
    with pytest.raises(InputError, match=r"four\..*no readable history"):
        results.read_history(folder / "four.json")


def test_no_partial_file_is_left(tmp_path, mnist_cnn):
    write_digit(tmp_path / "four.png", 4)
    short(tmp_path, mnist_cnn)
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".partial")]


@pytest.mark.parametrize(
    "reference, expected",
    [("bundled:coffee", "bundled-coffee"), ("mnist:4711", "mnist-4711"), ("cat.jpg", "cat"),
     ("a/b/cat.v2.jpeg", "cat.v2"), ("cat", "cat"), ("x:y.png", "x:y")],
)  # fmt: skip
def test_stem(reference, expected):
    assert references.stem(reference) == expected


@pytest.mark.parametrize("index", [0, 4, 4999])
def test_a_digit_by_reference(mnist_cnn, index):
    image, digest = references.open_reference(f"mnist:{index}", mnist_cnn)
    pixels, _ = mnist.digits()
    assert torch.allclose(image, mnist.digit_image(pixels[index]), atol=1e-6)
    assert digest != references.open_reference("mnist:1", mnist_cnn)[1] and len(digest) == 64


def test_a_photograph_by_reference_and_by_path(lite0, coffee, coffee_path):
    for reference in ("bundled:coffee", str(coffee_path)):
        image, digest = references.open_reference(reference, lite0)
        assert torch.equal(image, coffee) and digest == images.sha256(coffee_path)


@pytest.mark.parametrize(
    "reference",
    ["mnist:5000", "mnist:-1", "mnist:x", "mnist:", "mnist:1.0", "bundled:nope", "bundled:",
     "no/such.png"],
)  # fmt: skip
def test_a_wrong_reference_is_refused(mnist_cnn, reference):
    with pytest.raises(InputError) as caught:
        references.open_reference(reference, mnist_cnn)
    assert reference in str(caught.value) and "\n" not in str(caught.value)


def test_read_row_has_what_a_panel_draws(made, mnist_cnn):
    row = results.read_row(made / "four.json", mnist_cnn)
    image, _ = references.open_reference(str(made / "four.png"), mnist_cnn)
    assert torch.equal(row["pixels"], image)
    assert torch.equal(row["masked"], apply_mask(image, row["mask"]))
    assert row["label"] == json.loads((made / "four.json").read_text())["label"]


@pytest.mark.parametrize("stored", [{}, {"weights": {}, "nope": 1}, {"weights": {"x": 1}}, None])
def test_a_config_of_another_version_is_refused(stored):
    with pytest.raises(InputError, match="config"):
        verification.read_config({"config": stored})


def test_the_certificate_lists_every_active_cell(made):
    result = results.read_result(made / "four.json")
    minimality, mask = result["minimality"], results.read_mask(made / "four.json")
    assert minimality["grid"] == 1 and minimality["removable"] == 0
    places = [tuple(cell[:2]) for cell in minimality["cells"]]
    assert places == [tuple(place) for place in mask[0, 0].nonzero().tolist()]
    assert minimality["active"] == len(places) == round(result["area"] * 784)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda m: m | {"removable": 1}, "minimality removable"),
        (lambda m: m | {"active": m["active"] - 1}, "minimality active"),
        (lambda m: m | {"grid": 8}, "minimality grid"),
        (lambda m: m | {"cells": m["cells"][:-1]}, "minimality cells"),
        (lambda m: m | {"cells": [[*c[:3], c[3] + 0.01, *c[4:]] for c in m["cells"]]},
         "minimality cells"),
        (lambda m: m | {"cells": "all"}, "minimality cells"),
        (lambda m: None, "minimality"),
    ],
)  # fmt: skip
def test_a_certificate_that_does_not_hold_is_found(folder, change, named):
    path = folder / "four.json"
    result = json.loads(path.read_text())
    path.write_text(json.dumps(result | {"minimality": change(result["minimality"])}))
    assert [line.split(":")[0] for line in verification.verify(path)] == [named]
