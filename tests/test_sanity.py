"""The sanity check: networks forget from the last layer down, and how alike maps stay."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from minexp import metrics, references, robustness, sanity, sanity_run, summary
from minexp.classifier import wrap
from minexp.cli import main
from minexp.config import ExplainConfig, preset
from minexp.errors import InputError

QUICK = replace(preset("digits"), steps=3, noise_draws=2, minimal=False)


class Ordered(nn.Module):
    """Runs its parts in another order than it names them, and holds a parameter itself."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)
        self.shift = nn.Parameter(torch.arange(4.0))
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.mixer = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        tokens = self.norm(self.stem(x)).relu()[:, :, ::7, ::7].flatten(2).transpose(1, 2)
        mixed, _ = self.mixer(tokens, tokens, tokens)
        return self.head(mixed.mean(1) + self.shift)


@pytest.fixture(scope="module")
def small():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = Ordered()
        for part in (module.norm, module.mixer.out_proj):
            nn.init.normal_(part.bias)
    return wrap(module, mean=(0,), std=(1,), size=(28, 28), class_names=tuple("abc"), taps=["norm"])


@pytest.fixture(scope="module")
def digit(mnist_cnn):
    return references.open_reference("mnist:4", mnist_cnn)[0]


def test_layers_in_the_order_they_run(small, digit):
    assert sanity.layers(small, digit) == {
        "": ["shift"],
        "stem": ["stem.weight", "stem.bias"],
        "norm": ["norm.weight", "norm.bias"],
        "mixer": [
            *("mixer.in_proj_weight", "mixer.in_proj_bias"),
            *("mixer.out_proj.weight", "mixer.out_proj.bias"),
        ],
        "head": ["head.weight", "head.bias"],
    }


def test_the_cascade_shuffles_from_the_last_layer_down_and_leaves_the_model(small, digit):
    before = {name: value.clone() for name, value in small.module.state_dict().items()}
    logits, done = small(digit), []
    order = [names for _, names in reversed(sanity.layers(small, digit).items())]
    for count, layer, network in sanity.cascade(small, digit, stages=9, seed=0):
        done += order[count - 1]
        assert layer == list(sanity.layers(small, digit))[-count]
        for name, value in network.module.state_dict().items():
            same = torch.equal(value, before[name])
            shuffled = torch.equal(
                value.flatten().sort().values, before[name].flatten().sort().values
            )
            assert shuffled and (same or name in done)
            if name in done and before[name].unique().numel() > 3:
                assert not same, "permuted with so many values to permute"
    assert count == 5 and torch.equal(small(digit), logits)
    assert all(torch.equal(v, before[k]) for k, v in small.module.state_dict().items())


def test_the_cascade_by_hand(small, digit):
    """Every tensor's permutation is the next the generator draws, last layer first."""
    generator = torch.Generator().manual_seed(3)
    *_, (_, _, network) = sanity.cascade(small, digit, stages=2, seed=3)
    for names in reversed(sanity.layers(small, digit).values()):
        for name in names:
            values = small.module.get_parameter(name)
            order = torch.randperm(values.numel(), generator=generator)
            expected = values.flatten()[order].view_as(values)
            assert torch.equal(network.module.get_parameter(name), expected)


@pytest.mark.parametrize(
    ("stages", "counts"), [(1, [1]), (2, [1, 5]), (3, [1, 3, 5]), (5, [1, 2, 3, 4, 5])]
)
def test_stages_are_spread_evenly(small, digit, stages, counts):
    found = [count for count, _, _ in sanity.cascade(small, digit, stages=stages, seed=0)]
    assert found == counts


def test_no_stage_is_refused(small, digit):
    with pytest.raises(InputError, match="stages=0"):
        next(sanity.cascade(small, digit, stages=0, seed=0))


# --- similarities


def maps(seed: int) -> torch.Tensor:
    return torch.rand(1, 1, 12, 10, generator=torch.Generator().manual_seed(seed))


def ranks(values: np.ndarray) -> np.ndarray:
    """Places from 1; equal values share the mean of theirs."""
    return np.array([(values < v).sum() + ((values == v).sum() + 1) / 2 for v in values])


def slow_spearman(a: np.ndarray, b: np.ndarray) -> float:
    a, b = ranks(a.ravel()), ranks(b.ravel())
    a, b = a - a.mean(), b - b.mean()
    return (a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum())


def slow_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Wang et al. 2004, equation 13, uniform windows, covariances over n - 1, range 1."""
    values = []
    for i in range(a.shape[0] - 6):
        for j in range(a.shape[1] - 6):
            x, y = a[i : i + 7, j : j + 7].ravel(), b[i : i + 7, j : j + 7].ravel()
            both = np.cov(x, y, ddof=1)
            light = (2 * x.mean() * y.mean() + 1e-4) / (x.mean() ** 2 + y.mean() ** 2 + 1e-4)
            structure = (2 * both[0, 1] + 9e-4) / (both[0, 0] + both[1, 1] + 9e-4)
            values.append(light * structure)
    return float(np.mean(values))


def scaled(values: np.ndarray) -> np.ndarray:
    return (values - values.min()) / (values.max() - values.min())


def test_similarities_of_two_maps_by_hand():
    first, second = maps(1), maps(1) * 0.6 + maps(2) * 5
    a, b = (one[0, 0].double().numpy() for one in (first, second))
    found = sanity.similarities(first, second)
    assert found["spearman"] == pytest.approx(slow_spearman(a, b))
    assert found["ssim"] == pytest.approx(slow_ssim(scaled(a), scaled(b)))
    tops = [np.argsort(-one.ravel())[:12] for one in (a, b)]
    assert found["dice"] == pytest.approx(2 * len(np.intersect1d(*tops)) / 24)


def test_similarities_of_two_masks_by_hand():
    first, second = (maps(1) > 0.7).float(), (maps(1) + 0.3 * maps(2) > 0.9).float()
    a, b = (one[0, 0].double().numpy() for one in (first, second))
    found = sanity.similarities(first, second)
    assert found["spearman"] == pytest.approx(slow_spearman(a, b))
    assert found["ssim"] == pytest.approx(slow_ssim(a, b))
    assert found["dice"] == robustness.dice(first, second)


def test_the_same_map_in_another_scale_is_alike():
    found = sanity.similarities(maps(1), 3 * maps(1) - 7)
    assert found == pytest.approx({"spearman": 1.0, "ssim": 1.0, "dice": 1.0}, abs=1e-6)


def test_a_constant_map_ranks_nothing():
    found = sanity.similarities(maps(1), torch.full((1, 1, 12, 10), 0.5))
    assert found["spearman"] is None and found["ssim"] < 0.5
    assert found["dice"] == robustness.dice(
        metrics.top(maps(1), sanity.TOP), metrics.top(torch.zeros(1, 1, 12, 10), sanity.TOP)
    )


def test_chance_is_what_random_masks_have():
    generator = torch.Generator().manual_seed(0)
    drawn = [
        robustness.dice(
            *((torch.rand(2, 4000, generator=generator)) < torch.tensor([[0.3], [0.1]]))
        )
        for _ in range(40)
    ]
    assert sanity.chance_dice(0.3, 0.1) == pytest.approx(np.mean(drawn), abs=0.01)
    assert sanity.chance_dice(0.0, 0.0) == 0.0 and sanity.chance_dice(1.0, 1.0) == 1.0


# --- on files


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    out = tmp_path_factory.mktemp("sanity")
    methods = ["gradcam", "ours"]
    sanity_run.run("mnist_cnn", ["mnist:4", "mnist:700"], methods, out, config=QUICK, stages=2)
    return out


def test_a_table_of_both_methods(table):
    rows, numbers = summary.read(table)
    counts = [row["layers"] for row in rows]
    assert len(rows) == 2 * 2 * 3 and counts == [0, 1, 4] * 4
    assert [row["layer"] for row in rows[:3]] == ["", "7", "0"], "names, not numbers"
    for row in rows:
        assert (row["method"] == "ours") == (row["area"] != "")
        assert row["blank"] in (True, False)
        if row["chance"] == 1:  # two whole images
            assert row["excess"] == ""
        else:
            share = (row["dice"] - row["chance"]) / (1 - row["chance"])
            assert row["excess"] == pytest.approx(share)
        if row["method"] == "gradcam" and row["layers"] == 0:
            assert row["ssim"] == pytest.approx(1) and row["dice"] == 1
    for method, stages in numbers["methods"].items():
        assert [stage["layers"] for stage in stages] == [0, 1, 4]
        for stage in stages:
            own = [r for r in rows if (r["method"], r["layers"]) == (method, stage["layers"])]
            assert stage["finite"] == 2
            assert stage["dice"] == summary.interval([r["dice"] for r in own], np.mean)
    assert sanity_run.table(numbers).count("\n") == 1 + 2 * 3


def test_a_record_is_kept_for_the_same_inputs_only(table, mnist_cnn, monkeypatch):
    def check(config=QUICK, **changes):
        settings = {"stages": 2, "seed": 0} | changes
        return sanity_run.check_image("mnist:4", "ours", mnist_cnn, config, table, **settings)

    path = table / "ours" / "mnist-4.json"
    stamp = path.stat().st_mtime_ns
    record = check()
    assert path.stat().st_mtime_ns == stamp and record == json.loads(path.read_text())
    made = []
    monkeypatch.setattr(sanity_run, "_entries", lambda *given: made.append(given) or [])
    check(seed=1), check(stages=1), check(replace(QUICK, steps=2)), check(force=True)
    assert len(made) == 4
    path.write_text("{")
    check()
    assert len(made) == 5


def test_a_network_without_finite_output_has_no_map(mnist_cnn, digit):
    class Overflowing(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(784, 3)

        def forward(self, x):
            return self.head(x.flatten(1)) / x.new_tensor(0.0)

    model = replace(mnist_cnn, module=Overflowing().eval(), class_names=tuple("abc"))
    entry = sanity_run._entry((1, "head", model, ExplainConfig()), digit, digit, "gradcam")
    assert entry["layers"] == 1 and entry["confidence"] is None
    assert all(entry[name] is None for name in sanity.SIMILARITIES)


def test_the_command_writes_and_prints_the_table(tmp_path, capsys):
    options = ["--suite", "mnist", "--limit", "1", "--methods", "gradcam", "--stages", "1"]
    assert main(["sanity", *options, "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("| method | layers shuffled |")
    assert (tmp_path / "gradcam").is_dir() and (tmp_path / "results.csv").is_file()


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--methods", "extremal"], "extremal"),
        (["--stages", "0"], "stages=0"),
        (["--set", "steps=0"], "steps=0"),
    ],
)
def test_bad_options_exit_2_in_one_line(tmp_path, capsys, options, word):
    given = ["--suite", "mnist", "--limit", "1", *options, "--out", str(tmp_path / "out")]
    assert main(["sanity", *given]) == 2
    error = capsys.readouterr().err
    assert word in error and error.count("minexp: error") == 1
    assert not (tmp_path / "out").exists()
