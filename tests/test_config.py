"""The numbers that steer an explanation: the paper's own, and none that makes no sense."""

import dataclasses
import json
import math
from dataclasses import FrozenInstanceError, fields

import pytest

from minexp import config
from minexp.config import (
    ExplainConfig,
    LossWeights,
    configure,
    default_preset,
    parse_settings,
    preset,
)
from minexp.errors import InputError

# The lambda sets as the text of paper 000 prints them:
# preset: (section, the example's words, act, CE, KL, area, bin, tv, rob)
PRINTED = {
    "house_finch": (
        "6.1",
        "first example, house finch, EfficientNet, confidence 0.11",
        (1.0, 4.0, 0.4, 15.0, 0.3, 15.0, 6.0),
    ),
    "zucchini": (
        "6.1",
        "next example, zucchini, EfficientNet, 0.59",
        (2.0, 16.0, 5.0, 45.0, 3.0, 23.0, 20.0),
    ),
    "granny_smith": (
        "6.1",
        "third example, granny smith, ConvNeXt, 0.10",
        (0.8, 10.0, 0.64, 24.0, 1.8, 15.0, 2.0),
    ),
    "jackfruit": (
        "6.1",
        "next image, jackfruit, MobileNet, 0.62",
        (0.5, 5.0, 0.54, 5.3, 1.4, 2.7, 3.2),
    ),
    "window_shade": (
        "6.1",
        "finally, window shade, EfficientNet, 0.22",
        (1.5, 25.0, 7.5, 80.0, 2.5, 35.0, 25.0),
    ),
    "basketball": (
        "6.2",
        "first example, basketball, ViT-16, 0.89",
        (4.5, 15.0, 5.0, 55.0, 1.5, 57.0, 45.0),
    ),
    "egyptian_cat": (
        "6.2",
        "second example, Egyptian cat, ViT-16, 0.41",
        (4.5, 15.0, 5.0, 56.0, 1.5, 28.0, 28.0),
    ),
    "second_basketball": (
        "6.2",
        "another example with a basketball image, ViT-16",
        (4.5, 15.0, 5.0, 55.0, 1.5, 27.0, 28.0),
    ),
    "mnist": (
        "6.3",
        "MNIST, three-layer CNN; appendix A repeats the set",
        (0.6, 4.0, 0.54, 100.0, 1.2, 50.0, 10.0),
    ),
}
ORDER = (
    "activation",
    "label",
    "distribution",
    "area",
    "binarization",
    "total_variation",
    "robustness",
)
each_weight = pytest.mark.parametrize("name", ORDER)
not_a_weight = pytest.mark.parametrize(
    "value", [-1, -1e-9, math.nan, math.inf, -math.inf, True, False, "15", None, [1.0]], ids=repr
)


# --- presets


@pytest.mark.parametrize("name", PRINTED)
def test_preset_has_the_numbers_the_paper_prints(name):
    section, _, lambdas = PRINTED[name]
    entry = config.PRESETS[name]
    assert dataclasses.asdict(entry.config.weights) == dict(zip(ORDER, lambdas, strict=True))
    assert entry.config.adapt is False, "the paper's weights stay fixed"
    assert entry.source.startswith(f"paper 000, section {section}")
    assert preset(name) is entry.config


def test_every_preset_but_ours_is_the_papers():
    assert set(config.PRESETS) == {"default", "digits", "small", *PRINTED}
    assert preset("default") == ExplainConfig()
    for ours in ("default", "digits", "small"):
        assert not config.PRESETS[ours].source.startswith("paper")
        assert preset(ours).adapt


def test_unknown_preset_lists_the_valid_ones():
    with pytest.raises(InputError, match="unknown preset 'otter'") as caught:
        preset("otter")
    assert all(name in str(caught.value) for name in config.PRESETS)


def test_presets_cannot_be_replaced():
    with pytest.raises(TypeError):
        config.PRESETS["mnist"] = config.PRESETS["default"]
    assert preset("mnist").weights.area == 100.0


# --- what is refused


def test_weights_are_the_terms_of_the_objective():
    assert tuple(item.name for item in fields(LossWeights)) == ORDER


@each_weight
@not_a_weight
def test_weight_that_is_no_number_from_zero_up_is_refused(name, value):
    for build in (
        lambda: LossWeights(**{name: value}),
        lambda: configure(ExplainConfig(), {name: value}),
    ):
        with pytest.raises(InputError, match=f"\\b{name}=") as caught:
            build()
        assert repr(value) in str(caught.value) and "\n" not in str(caught.value)


@each_weight
@pytest.mark.parametrize("value", [0, 0.0, 1e-12, 15, 1e6])
def test_weight_from_zero_up_is_accepted(name, value):
    assert getattr(LossWeights(**{name: value}), name) == value


BAD_FIELDS = [
    *[
        (name, value)
        for name in ("steps", "grid", "noise_draws", "cell", "patch", "seed")
        for value in (-1, 1.0, math.nan, True, "5", 2**31 - 1)
    ],
    *[(name, None) for name in ("steps", "noise_draws", "seed")],
    ("steps", 0),
    ("grid", 0),
    ("cell", 0),
    ("patch", 0),
    *[("taps", taps) for taps in ((), [], 3, True, ("a", 1), [None], {"a": 1}, {"a"}, b"a")],
    *[("learning_rate", value) for value in (0, -1e-3, math.nan, math.inf, True, "0.1", None)],
    *[(name, value) for name in ("adapt", "hard", "minimal") for value in (0, 1, "true", None)],
    *[("noise_lead", value) for value in (-0.1, math.nan, math.inf, True, "1", None)],
    *[("confidence_slack", value) for value in (-0.1, 1.1, math.nan, math.inf, True, "1", None)],
    *[("criterion", value) for value in ("", "Label", "logit", 1, None, math.nan)],
]


@pytest.mark.parametrize(("name", "value"), BAD_FIELDS, ids=str)
def test_field_out_of_range_is_refused(name, value):
    for build in (
        lambda: ExplainConfig(**{name: value}),
        lambda: configure(ExplainConfig(), {name: value}),
    ):
        with pytest.raises(InputError, match=f"^{name}=") as caught:
            build()
        assert repr(value) in str(caught.value) and "expected" in str(caught.value)


@not_a_weight
def test_tap_weight_that_is_no_number_from_zero_up_is_refused(value):
    with pytest.raises(InputError, match=r"tap weight blocks\.1="):
        ExplainConfig(tap_weights={"bn2": 1.0, "blocks.1": value})


@pytest.mark.parametrize("name", ["areas", "Area", "lambda_area", "", "weights", "__class__"])
def test_unknown_setting_is_refused_and_the_valid_ones_listed(name):
    with pytest.raises(InputError, match="unknown setting") as caught:
        configure(ExplainConfig(), {"steps": 3, name: 1})
    assert repr(name) in str(caught.value)
    assert all(valid in str(caught.value) for valid in (*ORDER, "steps", "seed", "criterion"))


# --- what is applied


def test_configure_changes_what_is_named_and_nothing_else():
    before = preset("zucchini")
    after = configure(before, {"area": 15, "total_variation": 2.5, "steps": 7, "adapt": True})
    assert after.weights == dataclasses.replace(before.weights, area=15, total_variation=2.5)
    assert (after.steps, after.adapt) == (7, True)
    restored = dataclasses.replace(
        after, weights=before.weights, steps=before.steps, adapt=before.adapt
    )
    assert restored == before
    assert before.weights.area == 45.0, "the original stays as it was"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 1),
        ("learning_rate", 0.5),
        ("grid", 28),
        ("adapt", False),
        ("criterion", "label"),
        ("noise_draws", 0),
        ("seed", 12),
        ("patch", 4),
        ("taps", ("blocks.1", "blocks.3")),
        ("tap_weights", {"bn2": 0.5}),
    ],
)
def test_configure_applies_each_own_field(name, value):
    after = configure(ExplainConfig(), {name: value})
    assert getattr(after, name) == value
    assert getattr(ExplainConfig(), name) != value, "else this proves nothing"


@each_weight
def test_configure_applies_each_weight(name):
    after = configure(ExplainConfig(), {name: 0.125})
    assert after.weights == dataclasses.replace(LossWeights(), **{name: 0.125})


def test_configure_with_nothing_changes_nothing():
    assert configure(preset("mnist"), {}) == preset("mnist")


# --- patches and taps


@pytest.mark.parametrize(
    ("start", "change"), [({"grid": 28}, {"patch": 4}), ({"patch": 4}, {"grid": 28})], ids=str
)
def test_a_patch_and_a_grid_are_one_too_many(start, change):
    with pytest.raises(InputError, match="patch=4, grid=28: expected one of the two"):
        ExplainConfig(**start, **change)
    with pytest.raises(InputError, match="patch=4, grid=28"):
        configure(ExplainConfig(**start), change)
    freed = configure(ExplainConfig(**start), {**dict.fromkeys(start), **change})
    assert {name: getattr(freed, name) for name in change} == change


@pytest.mark.parametrize(
    ("settings", "side"),
    [({}, None), ({"patch": 4}, 4), ({"cell": 3}, 3), ({"patch": 4, "cell": 8}, 8)],
    ids=str,
)
def test_the_side_of_what_is_deleted(settings, side):
    assert ExplainConfig(**settings).deleted == side


def test_taps_are_a_tuple_whatever_held_them():
    names = ["blocks.1", "blocks.3"]
    config = ExplainConfig(taps=names)
    assert config.taps == ("blocks.1", "blocks.3")
    names.append("blocks.5")
    assert config.taps == ("blocks.1", "blocks.3"), "what the caller does to theirs stays theirs"
    with pytest.raises(InputError, match=r"taps='blocks\.1'"):
        ExplainConfig(taps="blocks.1")


@pytest.mark.parametrize(
    ("text", "taps"),
    [
        ("blocks.1", ("blocks.1",)),
        ("blocks.1,blocks.3", ("blocks.1", "blocks.3")),
        ('["blocks.1", "blocks.3"]', ("blocks.1", "blocks.3")),
        ("1", ("1",)),  # a Sequential's submodules are called by numbers
        ("1,3", ("1", "3")),
        ("1.10", ("1.10",)),
        ("null", None),
    ],
)
def test_taps_as_they_are_typed(text, taps):
    changes = parse_settings([f"taps={text}"], "--set")
    assert configure(ExplainConfig(taps=("before",)), changes).taps == taps


@pytest.mark.parametrize(
    ("texts", "taps"),
    [
        (["taps=blocks.1", "taps=blocks.3"], ("blocks.1", "blocks.3")),
        (["taps=1", "steps=3", "taps=3", "taps=5"], ("1", "3", "5")),
        (["taps=a,b", "taps=c"], ("a", "b", "c")),
        (['taps=["a", "b"]', "taps=c"], ("a", "b", "c")),
        (["taps=null", "taps=1"], ("1",)),
    ],
    ids=str,
)
def test_taps_typed_one_by_one_as_bench_takes_them(texts, taps):
    changes = parse_settings(texts, "--set")
    assert configure(ExplainConfig(taps=("before",)), changes).taps == taps


def test_of_any_other_name_given_twice_the_later_holds():
    assert parse_settings(["tv=1", "tv=2"], "--set") == {"tv": 2}


def test_a_number_typed_for_anything_else_stays_one():
    changes = parse_settings(["steps=3", "tv=1.5", "minimal=false", "cell=null"], "--set")
    assert changes == {"steps": 3, "tv": 1.5, "minimal": False, "cell": None}


@pytest.mark.parametrize(
    "config",
    [
        ExplainConfig(),
        ExplainConfig(taps=["a", "b"], tap_weights={"a": 2.0}, patch=4, cell=8),
        preset("small"),
    ],
    ids=["default", "taps and patch", "small"],
)
def test_a_configuration_survives_dict_and_json(config):
    for stored in (dataclasses.asdict(config), json.loads(json.dumps(dataclasses.asdict(config)))):
        weights = LossWeights(**stored.pop("weights"))
        assert ExplainConfig(weights=weights, **stored) == config


@pytest.mark.parametrize(
    ("size", "channels", "name"),
    [
        ((28, 28), 1, "digits"),
        ((20, 28), 1, "digits"),
        ((28, 28), 3, "small"),
        ((28, 29), 1, "small"),
        ((32, 32), 1, "small"),
        ((32, 32), 3, "small"),
        ((64, 64), 3, "small"),
        ((28, 64), 3, "small"),
        ((65, 65), 3, "default"),
        ((32, 65), 3, "default"),
        ((224, 224), 3, "default"),
        ((224, 224), 1, "default"),
    ],
)
def test_the_preset_that_suits_an_input(size, channels, name):
    assert default_preset(size, channels) == name and preset(name).adapt


# --- frozen


@pytest.mark.parametrize(
    ("thing", "name"),
    [
        (LossWeights(), "area"),
        (ExplainConfig(), "steps"),
        (ExplainConfig(), "weights"),
        (config.PRESETS["mnist"], "config"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_frozen(thing, name):
    before = getattr(thing, name)
    with pytest.raises(FrozenInstanceError):
        setattr(thing, name, before)
    assert getattr(thing, name) is before
