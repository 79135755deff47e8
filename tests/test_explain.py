"""The loop: reproducible, without side effects, honest about what it found and what it cost."""

import subprocess
import sys
from dataclasses import fields, replace

import pytest
import torch
from torch import nn

from minexp import config as settings
from minexp import explain as explain_by_name
from minexp import models, references, results, verification
from minexp.classifier import folded, wrap
from minexp.config import ExplainConfig, LossWeights, configure, preset
from minexp.errors import InputError
from minexp.explain import Explanation, check_settings, explain, label_index
from minexp.masking import apply_mask
from minexp.search import REST, STREAK, Seen, _seeded_network, _weights_now
from minexp.sufficiency import TOLERANCE, Judge, check_mask, is_feasible

QUICK = configure(
    ExplainConfig(),
    {"grid": 28, "steps": 25, "confidence_slack": 0.05, "tv": 20.0, "area": 30.0, "noise_draws": 8},
)
LABEL_ONLY = replace(QUICK, criterion="label", noise_draws=0)
RECORD = {
    "step",
    "area",
    "confidence",
    "noise_confidence",
    "label_kept",
    "noise_kept",
    "noise_lead",
    "budget",
}
TERMS = {f"loss_{item.name}" for item in fields(LossWeights)}


@pytest.fixture(scope="module")
def digit(mnist_cnn):
    return references.open_reference("mnist:4", mnist_cnn)[0]


@pytest.fixture(scope="module")
def found(mnist_cnn, digit):
    return explain(mnist_cnn, digit, QUICK)


def state(module) -> list:
    """Everything a run could leave behind: hooks, switches, gradients, values."""
    hooks = [
        (name, key, len(store))
        for name, part in module.named_modules()
        for key, store in vars(part).items()
        if "_hooks" in key and store
    ]
    switches = [(name, part.training) for name, part in module.named_modules()]
    parameters = [
        (name, p.requires_grad, p.grad is None, p._version) for name, p in module.named_parameters()
    ]
    return hooks + switches + parameters + [(n, b._version) for n, b in module.named_buffers()]


class Counts:
    """Images that went forward through a module, and back again, as hooks of the test see them."""

    def __init__(self, module):
        self.forward = self.backward = 0
        self.handle = module.register_forward_hook(self._seen)

    def _seen(self, _module, inputs, output):
        self.forward += inputs[0].shape[0]
        if output.requires_grad:
            output.register_hook(self._back)

    def _back(self, gradient):
        self.backward += gradient.shape[0]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.handle.remove()


def check_honest(model, image, explanation: Explanation) -> None:
    """Every number of an explanation follows from its mask."""
    config, mask, label = explanation.config, explanation.mask, explanation.label
    assert mask.shape == (1, 1, *model.size) and mask.dtype == torch.float32
    assert set(mask.unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(explanation.masked, apply_mask(image, mask))
    assert explanation.label_name == model.class_names[label]
    check = check_mask(model, image, mask, label, draws=0)
    assert explanation.confidence == pytest.approx(check.confidence, abs=1e-6)
    assert explanation.explanation_confidence == pytest.approx(
        check.explanation_confidence, abs=1e-6
    )
    assert explanation.label_kept is check.label_kept
    assert explanation.area == pytest.approx(mask.double().mean().item(), abs=1e-6)
    assert explanation.feasible is is_feasible(model, image, mask, label, config)


def test_the_result_follows_from_its_mask(mnist_cnn, digit, found):
    check_honest(mnist_cnn, digit, found)
    assert found.feasible and found.label_kept and 0 < found.area < 1
    assert found.label == int(mnist_cnn(digit).argmax()) and found.seconds > 0


def test_a_photograph(lite0, coffee):
    before, left = lite0(coffee), state(lite0.module)
    config = replace(ExplainConfig(), steps=12, noise_draws=4, minimal=False)
    explanation = explain(lite0, coffee, config)
    check_honest(lite0, coffee, explanation)
    assert explanation.label_name == "espresso" and explanation.feasible
    assert (len(explanation.history), explanation.backward_passes) == (12, 24)
    assert torch.equal(lite0(coffee), before) and state(lite0.module) == left


def test_the_same_seed_gives_the_same_mask(mnist_cnn, digit, found):
    again = explain(mnist_cnn, digit, QUICK)
    assert torch.equal(again.mask, found.mask) and again.history == found.history
    fixed = {"seconds", "mask", "masked"}
    assert all(
        getattr(again, item.name) == getattr(found, item.name)
        for item in fields(Explanation)
        if item.name not in fixed
    )


def test_another_seed_gives_another_history(mnist_cnn, digit, found):
    other = explain(mnist_cnn, digit, replace(QUICK, seed=1))
    assert other.history != found.history and other.config.seed == 1


def test_the_callers_random_numbers_stay(mnist_cnn, digit):
    torch.manual_seed(123)
    expected = torch.rand(3)
    torch.manual_seed(123)
    explain(mnist_cnn, digit, replace(QUICK, steps=3, seed=9))
    assert torch.equal(torch.rand(3), expected)


def test_the_callers_random_numbers_do_not_matter(mnist_cnn, digit):
    few = replace(QUICK, steps=3)
    torch.manual_seed(1)
    first = explain(mnist_cnn, digit, few)
    torch.manual_seed(2)
    assert explain(mnist_cnn, digit, few).history == first.history


def test_the_model_and_the_image_are_left_as_they_were(mnist_cnn, digit):
    given, before, left = digit.clone(), mnist_cnn(digit), state(mnist_cnn.module)
    explain(mnist_cnn, digit, replace(QUICK, steps=5))
    assert state(mnist_cnn.module) == left
    assert torch.equal(mnist_cnn(digit), before) and torch.equal(digit, given)


def test_an_error_in_on_step_leaves_no_trace(mnist_cnn, digit):
    left = state(mnist_cnn.module)

    def stop(record):
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        explain(mnist_cnn, digit, QUICK, on_step=stop)
    assert state(mnist_cnn.module) == left and torch.is_grad_enabled()


def test_the_smallest_feasible_mask_is_returned(mnist_cnn, digit):
    """Without noise a step's own record says whether its mask is feasible."""
    explanation = explain(mnist_cnn, digit, replace(LABEL_ONLY, steps=40))
    streak, passing = 0, []
    for record in explanation.history:
        streak = streak + 1 if record["label_kept"] else 0
        passing += [record["area"]] if streak >= STREAK else []
    assert explanation.feasible and len(set(passing)) > 1
    assert explanation.area <= min(passing) + 1e-6
    check_honest(mnist_cnn, digit, explanation)


def test_not_the_last_mask_but_the_best(mnist_cnn, digit):
    """Under a crushing fixed area weight the last mask loses the label; the result does not."""
    crushing = replace(LABEL_ONLY, adapt=False, weights=replace(LABEL_ONLY.weights, area=5000.0))
    explanation = explain(mnist_cnn, digit, crushing)
    assert not explanation.history[-1]["label_kept"]
    assert explanation.feasible and explanation.label_kept
    check_honest(mnist_cnn, digit, explanation)


def test_an_infeasible_case_is_reported(mnist_cnn, digit):
    wrong = int(mnist_cnn(digit).argmin())
    explanation = explain(mnist_cnn, digit, replace(QUICK, steps=6), label=wrong)
    assert (explanation.label, explanation.feasible, explanation.label_kept) == (
        wrong, False, False,
    )  # fmt: skip
    check_honest(mnist_cnn, digit, explanation)
    best = max(record["confidence"] for record in explanation.history)
    assert explanation.explanation_confidence == pytest.approx(best, rel=1e-3, abs=1e-6)


def test_fewer_steps_than_a_streak_give_an_honest_answer(mnist_cnn, digit):
    explanation = explain(mnist_cnn, digit, replace(QUICK, steps=STREAK - 1))
    check_honest(mnist_cnn, digit, explanation)
    assert len(explanation.history) == STREAK - 1


def test_history_has_every_term_every_step(found):
    assert [record["step"] for record in found.history] == list(range(QUICK.steps))
    for record in found.history:
        assert record.keys() == RECORD | TERMS
        assert all(record[term] >= -1e-6 for term in TERMS)  # float32 rounding of a KL of zero
        assert 0 <= record["area"] <= 1 and 0 <= record["confidence"] <= 1
        assert type(record["label_kept"]) is bool and type(record["noise_kept"]) is bool


def test_history_starts_from_the_whole_image(found):
    first = found.history[0]
    assert first["area"] == 1 and first["label_kept"] and first["noise_kept"]
    assert first["confidence"] == pytest.approx(found.confidence, abs=TOLERANCE)
    assert first["loss_total_variation"] == 0
    assert first["loss_activation"] == pytest.approx(0, abs=1e-9)


def test_on_step_is_called_each_step(mnist_cnn, digit):
    records = []
    explanation = explain(mnist_cnn, digit, replace(QUICK, steps=7), on_step=records.append)
    assert records == explanation.history and len(records) == 7


def test_passes_are_those_that_were_made(mnist_cnn, digit):
    """A mask of one piece, accepted at once: nothing refused, nothing dropped."""
    config = replace(LABEL_ONLY, steps=5)
    with Counts(mnist_cnn.module) as counts:
        explanation = explain(mnist_cnn, digit, config)
    assert (explanation.forward_passes, explanation.backward_passes) == (
        counts.forward,
        counts.backward,
    )
    assert counts.backward == 10


@pytest.mark.parametrize("reference", ["mnist:4", "mnist:1200"])
def test_passes_are_those_that_were_made_where_masks_are_refused(mnist_cnn, reference):
    image = references.open_reference(reference, mnist_cnn)[0]
    with Counts(mnist_cnn.module) as counts:
        explanation = explain(mnist_cnn, image, replace(QUICK, steps=40, noise_draws=32))
    assert explanation.backward_passes == counts.backward
    assert explanation.forward_passes == counts.forward


def test_passes_where_nothing_is_feasible(mnist_cnn, digit):
    wrong = int(mnist_cnn(digit).argmin())
    with Counts(mnist_cnn.module) as counts:
        explanation = explain(mnist_cnn, digit, replace(QUICK, steps=4), label=wrong)
    assert (explanation.forward_passes, explanation.backward_passes) == (
        counts.forward,
        counts.backward,
    )


@pytest.mark.parametrize("area", [0.0, 0.3, 1.0])
def test_fixed_lambdas_stay(area):
    config = preset("house_finch")
    assert config.adapt is False
    for budget in (0.0, 0.3, 1.0):
        assert _weights_now(config, area, budget) == config.weights
    assert config.weights.area == 15


def test_the_adapted_weights_rest_within_the_budget():
    config = ExplainConfig()
    assert _weights_now(config, 0.31, 0.3) == config.weights
    for area in (0.3, 0.29, 0.0):
        now = _weights_now(config, area, 0.3)
        assert now.area == 0
        assert now.total_variation == REST * config.weights.total_variation > 0
        assert replace(now, area=60, total_variation=50) == replace(
            config.weights, area=60, total_variation=50
        )


@pytest.mark.parametrize(
    "shape", [(1, 3, 28, 28), (1, 1, 27, 28), (2, 1, 28, 28), (1, 28, 28), (0, 1, 28, 28)]
)
def test_a_wrong_shape_is_refused(mnist_cnn, shape):
    with pytest.raises(InputError, match=r"shape.*mnist_cnn expects \(1, 1, 28, 28\)"):
        explain(mnist_cnn, torch.zeros(shape), QUICK)


@pytest.mark.parametrize("label", [-1, 10, 1000])
def test_a_wrong_label_is_refused(mnist_cnn, digit, label):
    left = state(mnist_cnn.module)
    with pytest.raises(InputError, match=f"label {label}.*0 to 9"):
        explain(mnist_cnn, digit, QUICK, label=label)
    assert state(mnist_cnn.module) == left


def test_a_grid_finer_than_the_image_is_refused(mnist_cnn, digit):
    with pytest.raises(InputError, match=r"grid=29.*28"):
        explain(mnist_cnn, digit, replace(QUICK, grid=29))


def test_the_name_serves_as_function_and_as_file(mnist_cnn, digit, found):
    import minexp.explain

    few = replace(QUICK, steps=2)
    one, two = minexp.explain(mnist_cnn, digit, few), explain_by_name(mnist_cnn, digit, few)
    assert one.history == two.history == explain(mnist_cnn, digit, few).history
    assert minexp.explain.explain is explain and minexp.Explanation is Explanation


def test_the_name_works_in_a_fresh_process_before_and_after_the_import():
    code = """
import minexp
model = minexp.load_model("mnist_cnn")
image = __import__("torch").zeros(1, 1, 28, 28)
config = minexp.ExplainConfig(grid=8, steps=1, noise_draws=0)
before = minexp.explain(model, image, config)
import minexp.explain
after = minexp.explain(model, image, config)
from minexp import explain
print(before.history == after.history == explain(model, image, config).history)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("True\n", 0), done.stderr


# --- patches of a transformer


def seeded_vit(name):
    """A small transformer of 4 x 4 patches, with random weights and logits that differ."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = models.load_model(name, weights=None)
    with torch.no_grad():
        model.module.head.weight *= 30
    return model


@pytest.fixture(scope="module")
def vit():
    return seeded_vit("mnist_vit")


@pytest.fixture(scope="module")
def vit_digit(vit):
    return references.open_reference("mnist:4", vit)[0]


@pytest.fixture
def masks_seen(monkeypatch):
    """Every mask that searches see, besides what they do with them."""
    masks, search = [], explain_by_name.search

    def spied(*args):
        seen, history = search(*args)
        masks.extend(one.mask for one in seen)
        return seen, history

    monkeypatch.setattr(explain_by_name, "search", spied)
    return masks


def whole_patches(mask, patch) -> bool:
    """Literally: every pixel is as the first of its patch."""
    rows = mask[0, 0].float().tolist()
    return all(
        value == rows[i - i % patch][j - j % patch]
        for i, row in enumerate(rows)
        for j, value in enumerate(row)
    )


@pytest.mark.parametrize(
    ("name", "reference", "cell"),
    [("mnist_vit", "mnist:4", None), ("vit_cifar10", "bundled:chelsea", 8)],
)
def test_patches_are_on_or_off_as_a_whole(name, reference, cell, masks_seen):
    model, cells = seeded_vit(name), cell or 4
    image, _ = references.open_reference(reference, model)
    config = ExplainConfig(patch=4, cell=cell, steps=14, noise_draws=0)
    found = explain(model, image, config)
    partial = {mask.float().mean().item() for mask in masks_seen} - {0.0, 1.0}
    assert len(masks_seen) == 14 and partial, "else this proves nothing"
    assert all(whole_patches(mask, 4) for mask in [*masks_seen, found.mask])
    assert not all(whole_patches(mask, 8) for mask in masks_seen), "patches of 4, not of 8"
    check_honest(model, image, found)
    certificate, side = found.certificate, model.size[0]
    assert found.feasible and certificate.cell == cells and certificate.removable == 0
    assert certificate.active > 1
    active = {(i // cells, j // cells) for i, j in found.mask[0, 0].nonzero().tolist()}
    assert {(c.row, c.column) for c in certificate.cells} == active
    assert all(max(place) <= (side - 1) // cells for place in active)


@pytest.mark.parametrize(("side", "patch"), [(28, 4), (82, 41)])
def test_a_network_of_patches(side, patch, mnist_cnn):
    """82 / 41 is where torch's plain nearest interpolation misses an edge by a pixel."""
    network = _seeded_network(replace(mnist_cnn, size=(side, side)), ExplainConfig(patch=patch))
    assert (network.grid, network.bias.shape) == (side // patch, (1, 1, *[side // patch] * 2))
    with torch.no_grad():
        network.bias.copy_(torch.arange(network.bias.numel()).view_as(network.bias) % 2 - 0.5)
    mask = network(torch.zeros(1, 1, side, side)) > 0.5
    assert 0 < mask.float().mean() < 1 and whole_patches(mask, patch)


@pytest.mark.parametrize(
    ("size", "changes", "complaint"),
    [
        ((28, 28), {"patch": 5}, "patch=5: expected a part of the square image's side 28"),
        ((28, 28), {"patch": 28}, "patch=28"),
        ((28, 28), {"patch": 56}, "patch=56"),
        ((28, 32), {"patch": 4}, "patch=4: expected a part of the square"),
        ((28, 28), {"patch": 4, "cell": 6}, "cell=6: expected a multiple of patch=4"),
        ((28, 28), {"patch": 4, "cell": 2}, "cell=2: expected a multiple of patch=4"),
        ((28, 28), {"patch": 4, "cell": 32}, "cell=32: expected a side from 1 to"),
    ],
    ids=str,
)
def test_a_patch_that_does_not_fit_is_refused(mnist_cnn, size, changes, complaint):
    model, config = replace(mnist_cnn, size=size), ExplainConfig(**changes)
    with pytest.raises(InputError, match=complaint):
        check_settings(model, config)
    with pytest.raises(InputError, match=complaint):
        explain(model, torch.zeros(1, 1, *size), config)


@pytest.mark.parametrize(
    "changes", [{"patch": 1}, {"patch": 14}, {"patch": 4, "cell": 28}], ids=str
)
def test_a_patch_that_fits_is_not(mnist_cnn, digit, changes):
    config = ExplainConfig(**changes, steps=1, noise_draws=0, minimal=False)
    assert explain(mnist_cnn, digit, config).area == 1


def test_only_whole_patches_may_be_allowed(mnist_cnn, digit, masks_seen):
    config = ExplainConfig(patch=4, steps=9, noise_draws=0, criterion="label", minimal=False)
    allowed = torch.ones(1, 1, 28, 28)
    allowed[..., :8, 12:20] = 0
    found = explain(mnist_cnn, digit, config, allowed=allowed)
    assert all(whole_patches(mask, 4) for mask in [*masks_seen, found.mask])
    assert not (found.mask.bool() & (allowed == 0)).any()
    allowed[..., 9, 9] = 0
    with pytest.raises(InputError, match="allowed: expected whole patches of 4 x 4"):
        explain(mnist_cnn, digit, config, allowed=allowed)
    assert explain(mnist_cnn, digit, replace(config, patch=None), allowed=allowed).area < 1


def test_an_empty_mask_that_suffices_is_not_the_answer(mnist_cnn):
    """An image of class 0 that the zero fill shows too: the smallest mask with a pixel on."""
    image = torch.zeros(1, 1, 28, 28)
    label = int(mnist_cnn(image).argmax())
    judge = Judge(mnist_cnn, image, label, LABEL_ONLY)
    masks = [torch.zeros(1, 1, 28, 28, dtype=torch.bool) for _ in range(3)]
    masks[1][..., :2] = masks[2][..., :3] = True
    seen = [Seen(mask, mask.float().mean().item(), 1.0, True) for mask in masks]
    assert all(judge.feasible(mask.float()) for mask in masks)
    assert torch.equal(explain_by_name._smallest_feasible(judge, seen), masks[1].float())
    assert explain_by_name._smallest_feasible(judge, seen[:1]) is None


# --- chosen taps


def literal_activations(module, name, image):
    """What one submodule gives, float64, by a hook of the test's own."""
    given = []
    handle = module.get_submodule(name).register_forward_hook(lambda *call: given.append(call[2]))
    with torch.no_grad():
        module(image)
    handle.remove()
    return given[0].double()


def literal_distance(a, b) -> float:
    """Section 3.1.1: mean squared error of maps, 1 - cosine of tokens."""
    if a.ndim == 4:
        return ((a - b) ** 2).mean().item()
    cosine = (a * b).sum(-1) / (a.square().sum(-1).sqrt() * b.square().sum(-1).sqrt())
    return (1 - cosine).mean().item()


def check_matched(model, image, found, masks, alphas) -> None:
    """Every step's activation term is that of these taps, and of no others."""
    own = {tap: literal_activations(model.module, tap, image) for tap in alphas}
    for record, mask in zip(found.history, masks, strict=True):
        masked = {tap: literal_activations(model.module, tap, image * mask) for tap in alphas}
        expected = sum(alphas[tap] * literal_distance(own[tap], masked[tap]) for tap in alphas)
        assert record["loss_activation"] == pytest.approx(expected, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize(
    ("taps", "tap_weights"),
    [
        (None, {}),
        (["blocks.1"], {}),
        (["blocks.3", "patch_embed"], {}),
        (["blocks.1"], {"blocks.1": 3.0}),
        (["norm"], {"norm": 0.0}),
    ],
    ids=str,
)
def test_only_the_chosen_taps_are_matched(vit, vit_digit, masks_seen, taps, tap_weights):
    config = ExplainConfig(
        patch=4, steps=9, noise_draws=0, minimal=False, taps=taps, tap_weights=tap_weights
    )
    found = explain(vit, vit_digit, replace(config, learning_rate=1e-2))
    assert min(mask.float().mean() for mask in masks_seen) < 0.9, "else this proves nothing"
    alphas = {tap: tap_weights.get(tap, 1.0) for tap in taps or vit.taps}
    check_matched(vit, vit_digit, found, masks_seen, alphas)
    assert found.config.taps == (taps and tuple(taps))
    assert vit.taps == tuple(f"blocks.{k}" for k in range(4)), "the caller's classifier stays"


def normalising() -> nn.Module:
    """A normalisation, off its start, that folding puts into the convolution before it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = nn.Sequential(
            nn.Conv2d(1, 8, 5, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
            nn.Linear(8 * 12 * 12, 4),
        )  # fmt: skip
    module[1].running_var.fill_(0.01)
    module[1].running_mean.fill_(0.3)
    return module


@pytest.mark.parametrize(("taps", "folds"), [(["0"], False), (["1"], True), (["0", "2"], False)])
def test_a_folded_convolution_is_not_what_was_asked_for(digit, masks_seen, taps, folds):
    """A tap means the model's own activations, also where a faster copy has others."""
    model = wrap(
        normalising(), mean=(0,), std=(1,), size=(28, 28), class_names=tuple("abcd"), taps=["2"]
    )
    assert folded(model, digit) is not model
    asked = replace(model, taps=tuple(taps))
    assert (explain_by_name._folded(asked, digit) is not asked) is folds
    config = replace(LABEL_ONLY, steps=9, learning_rate=1e-2, minimal=False, taps=taps)
    found = explain(model, digit, config)
    assert min(mask.float().mean() for mask in masks_seen) < 0.9, "else this proves nothing"
    check_matched(model, digit, found, masks_seen, dict.fromkeys(taps, 1.0))


@pytest.mark.parametrize(
    ("taps", "complaint"),
    [
        (["blocks.9"], r"no submodule named 'blocks\.9' to tap; the nearest: .*blocks\.0"),
        (["block.1"], r"'block\.1' to tap; the nearest: .*blocks\.1"),
        ([""], "no submodule named ''"),
        (["blocks.1", "blocks.1"], "named twice"),
    ],
)
def test_unknown_taps_are_refused(vit, vit_digit, taps, complaint):
    left, config = state(vit.module), ExplainConfig(taps=taps)
    for refused in (lambda: check_settings(vit, config), lambda: explain(vit, vit_digit, config)):
        with pytest.raises(InputError, match=complaint):
            refused()
    assert state(vit.module) == left


def test_tap_weights_are_those_of_the_chosen_taps(vit):
    for taps, named in ((["blocks.1"], "blocks.0"), (["norm"], "blocks.1"), (None, "norm")):
        config = ExplainConfig(taps=taps, tap_weights={named: 0.5})
        with pytest.raises(InputError, match=f"no tap '{named}' of mnist_vit: ") as caught:
            check_settings(vit, config)
        assert str(caught.value).endswith(": " + ", ".join(taps or vit.taps))
    check_settings(vit, ExplainConfig(taps=["norm"], tap_weights={"norm": 0.5}))


class Windows(nn.Module):
    """A map cut into windows, put one after the other as if they were pictures."""

    def forward(self, x):
        n, c, h, w = x.shape
        cut = x.reshape(n, c, 2, h // 2, 2, w // 2).permute(0, 2, 4, 1, 3, 5)
        return cut.reshape(4 * n, c, h // 2, w // 2)


class Windowed(nn.Module):
    def __init__(self):
        super().__init__()
        self.map, self.windows, self.head = nn.Conv2d(1, 2, 1), Windows(), nn.Linear(2, 3)

    def forward(self, x):
        parts = self.windows(self.map(x))
        return self.head(parts.mean((2, 3)).reshape(len(x), 4, 2).mean(1))


def test_a_tap_that_mixes_pictures_up_is_refused(digit):
    model = wrap(
        Windowed(), mean=(0,), std=(1,), size=(28, 28), class_names=tuple("abc"), taps=["map"]
    )
    with pytest.raises(InputError, match=r"tap 'windows' gives \(4, 2, 14, 14\)"):
        explain(model, digit, replace(LABEL_ONLY, taps=["windows"]))


def test_results_record_taps_and_patch(mnist_cnn, tmp_path):
    """They are inputs like any other: a result is kept for the same, and verified by its patch."""
    config = ExplainConfig(
        patch=4, taps=["1", "3"], tap_weights={"3": 2.0}, steps=9, noise_draws=2, criterion="label"
    )
    made = results.explain_to_files("mnist:4", mnist_cnn, config, tmp_path)
    stored = results.read_result(tmp_path / "mnist-4.json")
    assert made == (stored, True)
    assert (stored["config"]["patch"], stored["config"]["taps"]) == (4, ["1", "3"])
    assert stored["config"]["tap_weights"] == {"3": 2.0} and stored["minimality"]["grid"] == 4
    assert verification.read_config(stored) == config
    assert verification.verify(tmp_path / "mnist-4.json") == []
    assert results.explain_to_files("mnist:4", mnist_cnn, config, tmp_path) == (stored, False)
    for change in ({"taps": ["3"]}, {"patch": 7}, {"patch": None}):
        other = replace(config, **change)
        assert results.finished("mnist:4", mnist_cnn, other, tmp_path) is None


# --- a label asked for


def test_a_label_asked_for_is_explained(mnist_cnn, digit):
    """A mask can make the network say what the image does not; the criterion is the same."""
    other = (int(mnist_cnn(digit).argmax()) + 8) % 10
    config = replace(QUICK, steps=60, noise_draws=2)
    explanation = explain(mnist_cnn, digit, config, label=other)
    check_honest(mnist_cnn, digit, explanation)
    assert explanation.label == other and explanation.feasible and 0 < explanation.area < 1
    assert int(mnist_cnn(explanation.masked).argmax()) == other
    assert explanation.confidence < 0.5 < 1 - explanation.confidence
    assert explanation.explanation_confidence >= explanation.confidence


def test_where_no_mask_reaches_the_label_it_says_not_feasible(digit):
    """Class 0 beats class 1 whatever is masked: its logit is class 1's and one more."""

    class Behind(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.relu = nn.Conv2d(1, 2, 3), nn.ReLU()
            self.conv.weight.data.fill_(0.1)

        def forward(self, x):
            score = self.relu(self.conv(x)).mean((2, 3)).sum(1, keepdim=True)
            return torch.cat([score + 1, score, -2 * score], 1)

    model = wrap(Behind(), mean=(0,), std=(1,), size=(28, 28), class_names=tuple("abc"))
    config = replace(LABEL_ONLY, steps=5)
    explanation = explain(model, digit, config, label=1)
    assert not explanation.feasible and not explanation.label_kept
    assert explanation.certificate is None and explanation.label == 1
    check_honest(model, digit, explanation)


def test_a_label_by_name_and_by_index(lite0, mnist_cnn):
    assert label_index(lite0, "espresso") == 967 and label_index(lite0, "967") == 967
    assert label_index(mnist_cnn, "7") == 7
    named_by_numbers = replace(mnist_cnn, class_names=("1", "0", "b", "b"))
    assert label_index(named_by_numbers, "0") == 1, "the name first"
    assert label_index(named_by_numbers, "3") == 3
    for text, complaint in (
        ("b", r"classes \[2, 3\] bear that name"),
        *((text, "0 to 3") for text in ("4", "", "-1", "9" * 5000)),
    ):
        with pytest.raises(InputError, match=complaint):
            label_index(named_by_numbers, text)
    with pytest.raises(InputError, match=r"the nearest: .*espresso"):
        label_index(lite0, "espreso")


# --- hard and soft


def test_a_soft_mask_is_what_the_network_meets_and_a_hard_one_what_is_reported(mnist_cnn, digit):
    config = replace(QUICK, steps=12, minimal=False)
    soft = explain(mnist_cnn, digit, replace(config, hard=False))
    hard = explain(mnist_cnn, digit, config)
    check_honest(mnist_cnn, digit, soft)
    assert soft.history[0]["area"] == hard.history[0]["area"] == 1.0, "thresholded, all on"
    assert soft.history[0]["loss_area"] == hard.history[0]["loss_area"] < 1
    # sigmoid(1) everywhere on the first step: the network sees the digit, dimmed
    dimmed = mnist_cnn(torch.sigmoid(torch.tensor(1.0)) * digit)
    confidence = dimmed.softmax(1)[0, soft.label].item()
    assert soft.history[0]["confidence"] == pytest.approx(confidence, abs=1e-5)
    assert hard.history[0]["confidence"] == pytest.approx(hard.confidence, abs=1e-5)


# --- the preset for a model's input


def few_steps(**steps) -> dict:
    """Presets of these names, cut to so many steps, nothing deleted."""
    return {
        name: settings.Preset(
            replace(preset(name), steps=count, noise_draws=0, minimal=False), "cut short"
        )
        for name, count in steps.items()
    }


def test_without_a_configuration_the_model_says_which(mnist_cnn, digit, lite0, coffee, monkeypatch):
    monkeypatch.setattr(settings, "PRESETS", few_steps(digits=1, small=2, default=3))
    small = wrap(normalising(), mean=(0,), std=(1,), size=(28, 28), class_names=tuple("abcd"))
    wide = seeded_vit("vit_cifar10")
    image, _ = references.open_reference("bundled:chelsea", wide)
    for model, given, name in (
        (mnist_cnn, digit, "digits"), (small, digit, "digits"), (wide, image, "small"),
        (lite0, coffee, "default"),
    ):  # fmt: skip
        found = explain(model, given)
        assert found.config == preset(name)
        assert len(found.history) == {"digits": 1, "small": 2, "default": 3}[name]
