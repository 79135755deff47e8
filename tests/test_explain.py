"""The loop: reproducible, without side effects, honest about what it found and what it cost."""

import subprocess
import sys
from dataclasses import fields, replace

import pytest
import torch

from minexp import explain as explain_by_name
from minexp import references
from minexp.config import ExplainConfig, LossWeights, configure, preset
from minexp.errors import InputError
from minexp.explain import Explanation, explain
from minexp.masking import apply_mask
from minexp.search import REST, STREAK, _weights_now
from minexp.sufficiency import TOLERANCE, check_mask, is_feasible

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
