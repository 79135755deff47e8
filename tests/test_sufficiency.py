"""A mask is judged by plain forward passes: each number against its definition."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from minexp import references, sufficiency
from minexp.classifier import Classifier
from minexp.config import ExplainConfig
from minexp.sufficiency import Judge, check_mask, is_feasible, lead, noise_kept, room


@pytest.fixture(scope="module")
def digit(mnist_cnn):
    return references.open_reference("mnist:4", mnist_cnn)[0]


@pytest.fixture(scope="module")
def label(mnist_cnn, digit):
    return int(mnist_cnn(digit).argmax())


def patch(top: int, left: int, height: int, width: int, side: int = 28) -> torch.Tensor:
    mask = torch.zeros(1, 1, side, side)
    mask[..., top : top + height, left : left + width] = 1
    return mask


MASKS = [torch.ones(1, 1, 28, 28), torch.zeros(1, 1, 28, 28), patch(4, 6, 14, 15)]


def backgrounds(draws: int, seed: int) -> list[torch.Tensor]:
    """mnist_cnn's Gaussian backgrounds straight from the definition, one at a time."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (0.5 + 0.25 * torch.randn(1, 1, 28, 28, generator=generator)).clamp(0, 1)
        for _ in range(draws)
    ]


def literally_kept(model, image, mask, label, draws, seed) -> int:
    kept = 0
    for background in backgrounds(draws, seed):
        mixed = torch.where(mask.bool(), image, background)
        kept += model.module(mixed)[0].argmax().item() == label
    return kept


def literal_components(mask: torch.Tensor) -> int:
    """Flood fill over the four neighbours."""
    on = {(i, j) for i, j in mask[0, 0].nonzero().tolist()}
    count = 0
    while on:
        count, border = count + 1, [on.pop()]
        while border:
            i, j = border.pop()
            for near in ((i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)):
                if near in on:
                    on.remove(near)
                    border.append(near)
    return count


@pytest.mark.parametrize("number", range(4))
def test_check_mask_against_a_literal_computation(mnist_cnn, digit, label, number):
    speckled = (torch.rand(1, 1, 28, 28, generator=torch.Generator().manual_seed(3)) > 0.6).float()
    mask = [*MASKS, speckled][number]
    check = check_mask(mnist_cnn, digit, mask, label, draws=8, seed=11)
    plain = mnist_cnn.module(digit)[0].double().exp()
    masked = mnist_cnn.module(digit * mask)[0].double()
    assert check.confidence == pytest.approx((plain[label] / plain.sum()).item(), abs=1e-6)
    assert check.explanation_confidence == pytest.approx(
        (masked.exp()[label] / masked.exp().sum()).item(), abs=1e-6
    )
    assert check.label_kept is (masked.argmax().item() == label)
    assert check.noise_kept == literally_kept(mnist_cnn, digit, mask, label, 8, 11) / 8
    assert check.noise_draws == 8
    assert check.area == pytest.approx(mask.double().mean().item(), abs=1e-7)
    assert check.components == literal_components(mask)


@pytest.mark.parametrize("batch", [1, 3, 4, 7, 100])
def test_noise_kept_does_not_depend_on_the_batch(mnist_cnn, digit, label, monkeypatch, batch):
    monkeypatch.setattr(sufficiency, "BATCH", batch)
    for mask in MASKS:
        share = noise_kept(mnist_cnn, digit, mask, label, draws=21, seed=5)
        assert share == literally_kept(mnist_cnn, digit, mask, label, 21, 5) / 21


def test_no_draws_give_nan(mnist_cnn, digit, label):
    assert math.isnan(noise_kept(mnist_cnn, digit, MASKS[0], label, draws=0, seed=5))
    assert math.isnan(check_mask(mnist_cnn, digit, MASKS[0], label, draws=0).noise_kept)


def test_the_checks_noise_is_not_that_of_feasibility(mnist_cnn, digit, label):
    """check_mask's default draws are others than those any feasible mask had to survive."""
    first = backgrounds(1, ExplainConfig().seed + 1)[0]
    assert not torch.equal(first, backgrounds(1, sufficiency.CHECK_SEED)[0])
    given = check_mask(mnist_cnn, digit, MASKS[2], label, draws=16, seed=sufficiency.CHECK_SEED)
    assert check_mask(mnist_cnn, digit, MASKS[2], label, draws=16) == given


class Counter(nn.Module):
    """Two classes on an 8 x 8 image: class 0's logit is the sum over four pixels, less 2.5."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, 1, 8, 8), requires_grad=False)
        self.weight[..., 1:3, 1:3] = 1

    def forward(self, x):
        score = (x * self.weight).sum((1, 2, 3)) - 2.5
        return torch.stack([score, torch.zeros_like(score)], 1)


@pytest.fixture
def counter():
    return Classifier(
        name="counter", family="test", module=Counter().eval(), mean=(0.0,), std=(1.0,),
        size=(8, 8), class_names=("four", "fewer"), taps=(), transform=None, weights_sha256=None,
    )  # fmt: skip


ONES = torch.ones(1, 1, 8, 8)
QUIET = ExplainConfig(grid=8, criterion="label", noise_draws=0)


def test_feasible_under_label(counter):
    assert is_feasible(counter, ONES, patch(1, 1, 2, 2, 8), 0, QUIET)
    three = patch(1, 1, 2, 2, 8)
    three[..., 2, 2] = 0
    assert is_feasible(counter, ONES, three, 0, QUIET)
    assert not is_feasible(counter, ONES, patch(1, 1, 1, 2, 8), 0, QUIET)


def test_feasible_under_confidence_and_slack(counter):
    three = patch(1, 1, 2, 2, 8)
    three[..., 2, 2] = 0
    strict = replace(QUIET, criterion="confidence")
    assert is_feasible(counter, ONES, patch(1, 1, 2, 2, 8), 0, strict)
    assert not is_feasible(counter, ONES, three, 0, strict)
    lost = torch.tensor([1.5, 0.5]).sigmoid()  # the confidences with four and with three pixels
    lost = (lost[0] - lost[1]).item()
    assert is_feasible(counter, ONES, three, 0, replace(strict, confidence_slack=lost + 1e-3))
    assert not is_feasible(counter, ONES, three, 0, replace(strict, confidence_slack=lost - 1e-3))


def test_slack_does_not_excuse_a_lost_label(counter):
    loose = replace(QUIET, criterion="confidence", confidence_slack=1.0)
    assert not is_feasible(counter, ONES, patch(1, 1, 1, 2, 8), 0, loose)


def test_feasible_needs_every_background(mnist_cnn, digit, label):
    """With n draws from seed + 1: feasible exactly if the label is kept on all n."""
    outcomes = set()
    for mask in (*MASKS, patch(2, 4, 22, 20), patch(6, 8, 16, 12)):
        for draws in (0, 1, 6):
            config = ExplainConfig(
                grid=28, criterion="label", noise_draws=draws, noise_lead=0.0, seed=7
            )
            plain = mnist_cnn.module(digit * mask)[0].argmax().item() == label
            kept = literally_kept(mnist_cnn, digit, mask, label, draws, 8)
            assert is_feasible(mnist_cnn, digit, mask, label, config) is (plain and kept == draws)
            outcomes.add((draws, plain and kept == draws))
    assert {(0, True), (0, False), (6, True), (6, False)} <= outcomes


def test_feasible_on_noise_is_the_noise_kept_of_the_next_seed(mnist_cnn, digit, label):
    config = ExplainConfig(grid=28, criterion="label", noise_draws=6, seed=7)
    share = noise_kept(mnist_cnn, digit, MASKS[0], label, draws=6, seed=8)
    assert share == 1 and is_feasible(mnist_cnn, digit, MASKS[0], label, config)


def test_lead_is_the_distance_to_the_next_logit():
    logits = torch.tensor([[3.0, 1.0, 2.5], [0.0, 4.0, 1.0]])
    assert lead(logits, 0).tolist() == [0.5, -4.0]
    assert lead(logits, 1).tolist() == [-2.0, 3.0]
    assert logits[0, 0] == 3  # the caller's logits stay


@pytest.mark.parametrize(("own", "asked"), [(4.0, 0.3), (0.4, 0.2), (-1.0, 0.0)])
def test_the_room_asked_for_is_at_most_half_the_images_own_lead(own, asked):
    config = ExplainConfig(noise_lead=0.3)
    assert room(torch.tensor([[own, 0.0]]), 0, config) == pytest.approx(asked)


def test_feasible_needs_room_on_every_background(mnist_cnn, digit, label):
    """With a lead asked for: exactly if the smallest lead over all backgrounds exceeds it."""
    verdicts = set()
    for mask in (*MASKS, patch(2, 4, 22, 20)):
        leads = []
        for background in backgrounds(6, 8):
            logits = mnist_cnn.module(digit * mask + (1 - mask) * background)[0].tolist()
            leads.append(logits[label] - max(v for i, v in enumerate(logits) if i != label))
        plain = mnist_cnn.module(digit * mask)[0].argmax().item() == label
        for asked in (0.0, 0.5, 2.0):
            config = ExplainConfig(
                grid=28, criterion="label", noise_draws=6, noise_lead=asked, seed=7
            )
            expected = plain and min(leads) > asked
            assert is_feasible(mnist_cnn, digit, mask, label, config) is expected
            verdicts.add((asked, expected))
    assert {(0.0, True), (0.0, False), (2.0, False)} <= verdicts


def test_a_judge_does_not_depend_on_what_it_judged_before(mnist_cnn, digit, label):
    """Refusals reorder the backgrounds; no verdict changes."""
    config = ExplainConfig(grid=28, criterion="label", noise_draws=12, noise_lead=0.0, seed=7)
    judge = Judge(mnist_cnn, digit, label, config)
    alone = [is_feasible(mnist_cnn, digit, mask, label, config) for mask in MASKS]
    for order in (MASKS, MASKS[::-1], MASKS):
        for mask in order:
            judge.feasible(mask)
    assert [judge.feasible(mask) for mask in MASKS] == alone


def test_a_few_of_the_backgrounds_refuse_nothing_that_all_accept(mnist_cnn, digit, label):
    config = ExplainConfig(grid=28, criterion="label", noise_draws=12, noise_lead=0.0, seed=7)
    for mask in (*MASKS, patch(2, 4, 22, 20)):
        judge = Judge(mnist_cnn, digit, label, config)
        if judge.feasible(mask):
            assert all(judge.feasible(mask, draws) for draws in (1, 4, 12))
        if not all(judge.feasible(mask, draws) for draws in (1, 4)):
            assert not judge.feasible(mask)


def test_a_judge_counts_its_passes(mnist_cnn, digit, label):
    seen = []
    handle = mnist_cnn.module.register_forward_hook(
        lambda _m, inputs, _o: seen.append(len(inputs[0]))
    )
    judge = Judge(mnist_cnn, digit, label, ExplainConfig(grid=28, noise_draws=5))
    for mask in MASKS:
        judge.feasible(mask)
        judge.hardest(mask)
    handle.remove()
    assert judge.passes == sum(seen)
