"""The ablations' named variants: what each changes, and that the benchmark runs it."""

from dataclasses import asdict, replace

import pytest

from minexp import bench, models, suites, variants
from minexp.cli import main
from minexp.config import ExplainConfig, LossWeights, configure, preset
from minexp.errors import InputError

TAPS = ("a", "b", "c")


def configured(name: str) -> ExplainConfig:
    changes = variants.changes(name, TAPS)
    return configure(preset(str(changes.pop("preset", "default"))), changes)


@pytest.mark.parametrize("name", variants.VARIANTS)
def test_every_variant_is_a_configuration_with_a_source_and_deletes_nothing(name):
    variant = variants.VARIANTS[name]
    assert variant.source
    if variant.only_tap is None or variant.only_tap <= len(TAPS):
        assert not configured(name).minimal
    else:
        with pytest.raises(InputError, match="the model has 3 taps: a, b, c"):
            variants.changes(name, TAPS)


def test_figure_3_is_told_in_the_house_finchs_scale():
    house_finch = preset("house_finch")
    assert (house_finch.weights.area, house_finch.weights.total_variation) == (15, 15)
    rows = [configured(name) for name in variants.FIGURE3.values()]
    weights = [(row.weights.area, row.weights.total_variation) for row in rows]
    assert weights == [(45, 45), (15, 15), (5, 5), (0, 15)]
    for row in rows:
        same = replace(row.weights, area=15, total_variation=15)
        assert same == house_finch.weights and replace(row, weights=same) == house_finch


def test_only_activation_matching():
    weights = asdict(configured("activation_only").weights)
    assert {name for name, value in weights.items() if value > 0} == {"activation"}


@pytest.mark.parametrize("term", asdict(LossWeights()))
def test_each_of_the_seven_terms_is_left_out_alone(term):
    expected = replace(configured("base"), weights=replace(LossWeights(), **{term: 0}))
    assert configured(f"without_{term}") == expected


def test_the_grid_is_sixteen_and_holds_figure_3():
    names = variants.expand(["grid"], TAPS)
    pairs = {(c.weights.area, c.weights.total_variation) for c in map(configured, names)}
    assert pairs == {(area, tv) for area in (0, 5, 15, 45) for tv in (0, 5, 15, 45)}
    assert set(variants.FIGURE3.values()) <= set(names)


def test_one_tap_only():
    assert configured("only_tap_2").tap_weights == {"a": 0.0, "c": 0.0}
    assert variants.expand(["taps"], TAPS) == ["base", "only_tap_1", "only_tap_2", "only_tap_3"]


def test_soft():
    assert configured("soft") == replace(configured("base"), hard=False)


def test_a_groups_settings_are_each_members():
    names = variants.expand(["threshold+steps=7+seed=1"], TAPS)
    assert names == ["base+steps=7+seed=1", "soft+steps=7+seed=1"]


def test_a_member_of_two_groups_is_run_once():
    names = variants.expand(["leave_one_out", "threshold", "gradcam", "ours"], TAPS)
    assert len(names) == len(set(names)) == 11 and names[-3:] == ["soft", "gradcam", "ours"]


def test_variants_are_methods_of_a_suite():
    model = models.load_model("mnist_cnn")
    wanted = ["figure3", "soft+steps=7", "taps", "ours+taps=1+taps=3"]
    _, _, methods = suites.suite("mnist", "label", 1, methods=wanted)
    assert len(methods) == 5 + 1 + 1 + len(model.taps) + 1
    soft = methods["soft+steps=7_label"]
    assert (soft.hard, soft.steps, soft.criterion) == (False, 7, "label")
    assert soft.weights == preset("digits").weights, "of the model's own preset"
    heavy = methods["area45_tv45_label"]
    assert heavy == replace(
        preset("house_finch"),
        weights=replace(preset("house_finch").weights, area=45, total_variation=45),
        criterion="label",
    )
    assert methods["ours+taps=1+taps=3_label"].taps == ("1", "3")


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("only_tap_9", "the model has"),
        ("soft+criterion=label", "criterion"),
        ("soft+nope=1", "unknown setting 'nope'"),
        ("gradcam+steps=3", "unknown method"),
        ("grid+steps=0", "steps=0"),
        ("b", r"ours\+taps=A\+taps=B"),
    ],
)
def test_what_cannot_be_run_is_refused(name, complaint):
    with pytest.raises(InputError, match=complaint):
        suites.suite("mnist", None, 1, methods=[name])


def test_the_benchmark_runs_variants(tmp_path, capsys):
    options = ["--suite", "mnist", "--limit", "1", "--criterion", "label", "--out", str(tmp_path)]
    short = "soft+steps=2,activation_only+steps=2,ours+steps=2+taps=1+taps=3"
    assert main(["bench", *options, "--methods", short]) == 0
    rows, numbers = bench.summary.read(tmp_path)
    assert [row["method"] for row in rows] == sorted(short.split(","), key=short.index)
    assert set(numbers["methods"]) == {f"{name}@label" for name in short.split(",")}
