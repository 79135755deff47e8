"""Deletion and its certificate, each against a literal loop of plain model calls."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from minexp import deletion, minimality, references
from minexp.classifier import Classifier
from minexp.config import ExplainConfig
from minexp.deletion import minimal_mask
from minexp.errors import InputError
from minexp.minimality import active_cells, cell_side, certify, without_cells
from minexp.sufficiency import TOLERANCE, Judge, is_feasible

QUIET = ExplainConfig(criterion="label", noise_draws=0)
STRICT = replace(QUIET, criterion="confidence")
DIGIT_CONFIGS = {
    "label": QUIET,
    "label, noise": replace(QUIET, noise_draws=6),
    "confidence": replace(STRICT, confidence_slack=0.05),
    "confidence, noise": replace(STRICT, confidence_slack=0.05, noise_draws=6, seed=7),
}
BLOCK = ((1, 1), (1, 2), (2, 1), (2, 2))
ONES = torch.ones(1, 1, 8, 8)


@pytest.fixture(scope="module")
def digit(mnist_cnn):
    return references.open_reference("mnist:4", mnist_cnn)[0]


@pytest.fixture(scope="module")
def label(mnist_cnn, digit):
    return int(mnist_cnn(digit).argmax())


@pytest.fixture(params=DIGIT_CONFIGS)
def config(request):
    return DIGIT_CONFIGS[request.param]


class Counter(nn.Module):
    """Two classes on an 8 x 8 image: class 0's logit is the sum over some pixels, less a number."""

    def __init__(self, pixels, less: float):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, 1, 8, 8), requires_grad=False)
        self.less = less
        for row, column in pixels:
            self.weight[..., row, column] = 1

    def forward(self, x):
        score = (x * self.weight).sum((1, 2, 3)) - self.less
        return torch.stack([score, torch.zeros_like(score)], 1)


def counter(pixels=BLOCK, less: float = 2.5, size: tuple[int, int] = (8, 8)) -> Classifier:
    return Classifier(
        name="counter", family="test", module=Counter(pixels, less).eval(), mean=(0.0,),
        std=(1.0,), size=size, class_names=("many", "few"), taps=(), transform=None,
        weights_sha256=None,
    )  # fmt: skip


def on(*pixels, side: int = 8) -> torch.Tensor:
    mask = torch.zeros(1, 1, side, side)
    for row, column in pixels:
        mask[..., row, column] = 1
    return mask


def square(top: int, left: int, height: int, width: int, side: int = 28) -> torch.Tensor:
    mask = torch.zeros(1, 1, side, side)
    mask[..., top : top + height, left : left + width] = 1
    return mask


def literal_cells(mask: torch.Tensor, cell: int) -> list[tuple[int, int]]:
    """From the definition: pixel (i, j) lies in cell (i // cell, j // cell)."""
    return sorted({(i // cell, j // cell) for i, j in mask[0, 0].nonzero().tolist()})


def literally_without(mask: torch.Tensor, place: tuple[int, int], cell: int) -> torch.Tensor:
    rows = torch.arange(mask.shape[2])[:, None] // cell
    columns = torch.arange(mask.shape[3])[None, :] // cell
    return torch.where((rows == place[0]) & (columns == place[1]), 0.0, mask)


def literal_components(mask: torch.Tensor) -> list[set[tuple[int, int]]]:
    """Flood fill over the four neighbours."""
    left, found = {(i, j) for i, j in mask[0, 0].nonzero().tolist()}, []
    while left:
        border = [left.pop()]
        found.append(set(border))
        while border:
            i, j = border.pop()
            for near in ((i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)):
                if near in left:
                    left.remove(near)
                    found[-1].add(near)
                    border.append(near)
    return found


def literal_lead(logits: list[float], label: int) -> float:
    return logits[label] - max(value for i, value in enumerate(logits) if i != label)


class Literal:
    """The criterion straight from its definition: one plain call of the module an image."""

    def __init__(self, model: Classifier, image: torch.Tensor, label: int, config: ExplainConfig):
        self.model, self.image, self.label, self.config = model, image, label, config
        own = model.module(image)[0]
        self.confidence = own.softmax(0)[label].item()
        self.room = min(config.noise_lead, max(0.0, literal_lead(own.tolist(), label) / 2))
        generator = torch.Generator().manual_seed(config.seed + 1)
        self.backgrounds = [
            (0.5 + 0.25 * torch.randn(image.shape, generator=generator)).clamp(0, 1)
            for _ in range(config.noise_draws)
        ]

    def on_fill(self, mask: torch.Tensor) -> tuple[int, float]:
        logits = self.model.module(self.image * mask)[0]
        return logits.argmax().item(), logits.softmax(0)[self.label].item()

    def holds(self, mask: torch.Tensor) -> bool:
        top, confidence = self.on_fill(mask)
        lowest = self.confidence - self.config.confidence_slack - TOLERANCE
        if top != self.label or (self.config.criterion == "confidence" and confidence < lowest):
            return False
        for background in self.backgrounds:
            mixed = torch.where(mask.bool(), self.image, background)
            if literal_lead(self.model.module(mixed)[0].tolist(), self.label) <= self.room:
                return False
        return True


def check_certificate(judge: Judge, literal: Literal, mask: torch.Tensor, cell: int):
    """Every number of a certificate against the loop, and its passes against a hook."""
    seen = []
    handle = judge.model.module.register_forward_hook(
        lambda _module, inputs, _output: seen.append(len(inputs[0]))
    )
    certificate = certify(judge, mask, cell)
    handle.remove()
    assert certificate.cell == cell and certificate.forward_passes == sum(seen)
    places = literal_cells(mask, cell)
    assert [(c.row, c.column) for c in certificate.cells] == places
    for c in certificate.cells:
        trial = literally_without(mask, (c.row, c.column), cell)
        top, confidence = literal.on_fill(trial)
        assert c.label_index == top
        assert c.confidence == pytest.approx(confidence, abs=1e-5)
        assert c.removable is literal.holds(trial)
    assert certificate.active == len(places)
    assert certificate.removable == sum(c.removable for c in certificate.cells)
    return certificate


def check_minimal(result: torch.Tensor, start: torch.Tensor, literal: Literal, cell: int) -> None:
    """A feasible, 1-minimal part of the start, by plain calls."""
    assert result.shape == start.shape and result.dtype == start.dtype
    assert set(result.unique().tolist()) <= {0.0, 1.0} and result.any()
    assert not (result.bool() & ~start.bool()).any()
    arguments = literal.model, literal.image, result, literal.label, literal.config
    assert is_feasible(*arguments) and literal.holds(result)
    for place in literal_cells(result, cell):
        assert not literal.holds(literally_without(result, place, cell)), place
    pieces = literal_components(result)
    for piece in pieces if len(pieces) > 1 else []:
        trial = result.clone()
        for i, j in piece:
            trial[0, 0, i, j] = 0
        assert not literal.holds(trial), piece


@pytest.mark.parametrize("cell", [1, 2, 3, 5, 7, 13])
@pytest.mark.parametrize("size", [(7, 5), (13, 13), (6, 12)])
def test_active_cells_of_any_size(size, cell):
    """Sides that do not divide the image leave narrower cells at its far edges."""
    generator = torch.Generator().manual_seed(cell)
    for share in (0.0, 0.05, 0.5, 1.0):
        mask = (torch.rand(1, 1, *size, generator=generator) < share).float()
        if cell <= min(size):
            assert active_cells(mask, cell) == literal_cells(mask, cell)


def test_the_corner_cell_is_active():
    assert active_cells(on((7, 7)), 3) == [(2, 2)]
    assert active_cells(on((7, 7)), 8) == [(0, 0)]
    assert active_cells(on((0, 7), (7, 0)), 3) == [(0, 2), (2, 0)]
    assert active_cells(torch.zeros(1, 1, 8, 8), 3) == []


@pytest.mark.parametrize("cell", [1, 3, 4, 8])
def test_without_cells(cell):
    generator = torch.Generator().manual_seed(1)
    mask = (torch.rand(1, 1, 8, 8, generator=generator) < 0.7).float()
    before, places = mask.clone(), literal_cells(mask, cell)
    for some in ([], places[:1], places[-1:], places[::2], places):
        expected = mask
        for place in some:
            expected = literally_without(expected, place, cell)
        assert torch.equal(without_cells(mask, some, cell), expected)
    assert torch.equal(mask, before)
    assert not without_cells(mask, places, cell).any()


@pytest.mark.parametrize(
    ("size", "side"),
    [((8, 8), 1), ((28, 28), 1), ((55, 90), 1), ((56, 90), 2), ((224, 224), 8), ((300, 224), 8)],
)
def test_a_cell_is_a_28th_of_the_shorter_side(size, side):
    assert cell_side(counter(size=size)) == side == cell_side(counter(size=size), None)


def test_any_cell_that_fits_the_image():
    model = counter(size=(9, 6))
    assert [cell_side(model, cell) for cell in (1, 4, 6)] == [1, 4, 6]
    for cell in (-1, 0, 7, 9):
        with pytest.raises(InputError, match=f"cell={cell}.*6 pixels"):
            cell_side(model, cell)
    judge = Judge(counter(), ONES, 0, QUIET)
    for function in (certify, minimal_mask):
        with pytest.raises(InputError, match="cell=9"):
            function(judge, ONES, 9)


@pytest.mark.parametrize("cell", [1, 2, 3])
@pytest.mark.parametrize("config", [QUIET, STRICT, replace(QUIET, noise_draws=5)])
def test_a_toys_certificate_against_a_literal_loop(config, cell):
    model = counter()
    judge, literal = Judge(model, ONES, 0, config), Literal(model, ONES, 0, config)
    for mask in (ONES, on(*BLOCK), on(*BLOCK[:3]), on(*BLOCK, (5, 5), (7, 7))):
        check_certificate(judge, literal, mask, cell)


def test_a_toys_certificate_by_hand():
    """Of four pixels three suffice for the label: any may go, or none for the full confidence."""
    one = torch.tensor([0.5, 1.5]).sigmoid().tolist()
    certificate = certify(Judge(counter(), ONES, 0, QUIET), on(*BLOCK, (6, 6)), 1)
    assert (certificate.active, certificate.removable, certificate.forward_passes) == (5, 5, 5)
    assert [c.confidence for c in certificate.cells] == pytest.approx([one[0]] * 4 + [one[1]])
    strict = certify(Judge(counter(), ONES, 0, STRICT), on(*BLOCK, (6, 6)), 1)
    assert [c.removable for c in strict.cells] == [False] * 4 + [True]
    three = certify(Judge(counter(), ONES, 0, QUIET), on(*BLOCK[:3]), 1)
    assert three.removable == 0 and {c.label_index for c in three.cells} == {1}
    assert certify(Judge(counter(), ONES, 0, QUIET), on(*BLOCK), 3).removable == 0  # one cell
    assert certify(Judge(counter(), ONES, 0, QUIET), on(), 1).cells == ()


@pytest.mark.parametrize("cell", [3, 5])
def test_a_digits_certificate_against_a_literal_loop(mnist_cnn, digit, label, config, cell):
    judge = Judge(mnist_cnn, digit, label, config)
    literal = Literal(mnist_cnn, digit, label, config)
    speckled = (torch.rand(1, 1, 28, 28, generator=torch.Generator().manual_seed(3)) > 0.3).float()
    counts = set()
    for mask in (square(4, 4, 20, 20), speckled, square(10, 10, 6, 6)):
        certificate = check_certificate(judge, literal, mask, cell)
        counts.add(certificate.removable)
    assert len(counts) > 1  # the masks differ in what they need


def test_a_certificate_does_not_depend_on_the_chunk(mnist_cnn, digit, label, monkeypatch):
    config = DIGIT_CONFIGS["confidence, noise"]
    verdicts = []
    for chunk in (1, 7, 1000):
        monkeypatch.setattr(minimality, "CHUNK", chunk)
        certificate = certify(Judge(mnist_cnn, digit, label, config), square(2, 2, 24, 24), 3)
        verdicts.append([(c.row, c.column, c.label_index, c.removable) for c in certificate.cells])
    assert verdicts[0] == verdicts[1] == verdicts[2]
    assert len(verdicts[0]) == 81


@pytest.mark.parametrize("cell", [2, 5])
@pytest.mark.parametrize("start", [torch.ones(1, 1, 28, 28), square(4, 4, 20, 20)])
def test_a_digits_mask_becomes_1_minimal(mnist_cnn, digit, label, config, start, cell):
    """From the whole image, or from a mask no search of ours has found."""
    literal = Literal(mnist_cnn, digit, label, config)
    assert literal.holds(start)
    judge, before = Judge(mnist_cnn, digit, label, config), start.clone()
    result = minimal_mask(judge, start, cell)
    assert torch.equal(start, before)
    check_minimal(result, start, literal, cell)
    assert result.sum() < start.sum()
    assert certify(judge, result, cell).removable == 0
    again = minimal_mask(Judge(mnist_cnn, digit, label, config), start, cell)
    assert torch.equal(again, result)
    assert torch.equal(minimal_mask(judge, result, cell), result)  # nothing more can go


def test_the_default_cell_of_a_digit_is_a_pixel(mnist_cnn, digit, label):
    start = square(4, 4, 20, 20)
    by_default = minimal_mask(Judge(mnist_cnn, digit, label, QUIET), start)
    assert torch.equal(by_default, minimal_mask(Judge(mnist_cnn, digit, label, QUIET), start, 1))
    assert certify(Judge(mnist_cnn, digit, label, QUIET), by_default).cell == 1


@pytest.mark.parametrize("draws", [1, 2])
@pytest.mark.parametrize("criterion", ["label", "confidence"])
def test_too_few_trial_draws_cost_no_promise(
    mnist_cnn, digit, label, monkeypatch, criterion, draws
):
    """What the trials' few backgrounds let pass and another refuses is taken back."""
    monkeypatch.setattr(deletion, "TRIAL_DRAWS", draws)
    config = ExplainConfig(
        criterion=criterion, confidence_slack=0.05, noise_draws=24, noise_lead=0.0, seed=3
    )
    start = torch.ones(1, 1, 28, 28)
    result = minimal_mask(Judge(mnist_cnn, digit, label, config), start, 2)
    check_minimal(result, start, Literal(mnist_cnn, digit, label, config), 2)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_passes_are_those_of_the_module(mnist_cnn, digit, label, number):
    config = list(DIGIT_CONFIGS.values())[number]
    seen = []
    handle = mnist_cnn.module.register_forward_hook(
        lambda _module, inputs, _output: seen.append(len(inputs[0]))
    )
    judge = Judge(mnist_cnn, digit, label, config)
    assert judge.passes == sum(seen) == 1  # the image's own
    result = minimal_mask(judge, square(4, 4, 20, 20), 2)
    spent = sum(seen)
    assert judge.passes == spent > 1
    certificate = certify(judge, result, 2)
    handle.remove()
    assert certificate.forward_passes == sum(seen) - spent >= certificate.active
    assert judge.passes == sum(seen)


@pytest.mark.parametrize("cell", [1, 2, 3, 8])
@pytest.mark.parametrize("config", [QUIET, STRICT, replace(STRICT, noise_draws=5)])
def test_a_toys_mask_becomes_1_minimal(config, cell):
    model = counter()
    judge, literal = Judge(model, ONES, 0, config), Literal(model, ONES, 0, config)
    for start in (ONES, on(*BLOCK), on(*BLOCK, (5, 5), (7, 7)), square(0, 0, 5, 5, 8)):
        check_minimal(minimal_mask(judge, start, cell), start, literal, cell)


def test_a_toys_minimal_mask_by_hand():
    strict = minimal_mask(Judge(counter(), ONES, 0, STRICT), ONES, 1)
    assert torch.equal(strict, on(*BLOCK))
    three = minimal_mask(Judge(counter(), ONES, 0, QUIET), ONES, 1)
    assert three.sum() == 3 and not (three.bool() & ~on(*BLOCK).bool()).any()
    coarse = minimal_mask(Judge(counter(), ONES, 0, STRICT), ONES, 2)  # the block lies across four
    assert torch.equal(coarse, square(0, 0, 4, 4, 8))


def test_an_already_minimal_mask_is_returned_as_it_is():
    for config, mask in ((QUIET, on(*BLOCK[1:])), (STRICT, on(*BLOCK))):
        before = mask.clone()
        assert torch.equal(minimal_mask(Judge(counter(), ONES, 0, config), mask, 1), before)
        assert torch.equal(mask, before)


@pytest.mark.parametrize("cell", [1, 2, 8])
def test_needless_specks_go(cell):
    """Whole, whatever the cell: even where the grid is one cell that must stay."""
    specks = on(*BLOCK, (0, 6), (5, 1), (6, 6), (6, 7))
    judge = Judge(counter(), ONES, 0, STRICT)
    assert torch.equal(minimal_mask(judge, specks, cell), on(*BLOCK))


@pytest.mark.parametrize("cell", [1, 2, 8])
def test_a_needed_speck_stays(cell):
    needed = (*BLOCK[:3], (6, 6))
    judge = Judge(counter(needed), ONES, 0, STRICT)
    assert torch.equal(minimal_mask(judge, on(*needed, (0, 6), (6, 0)), cell), on(*needed))


def test_diagonal_neighbours_are_two_components():
    """In a grid of one cell only components can go: (3, 3) touches the block at a corner alone."""
    judge = Judge(counter(), ONES, 0, STRICT)
    assert torch.equal(minimal_mask(judge, on(*BLOCK, (3, 3)), 8), on(*BLOCK))
    beside = on(*BLOCK, (2, 3))
    assert torch.equal(minimal_mask(judge, beside, 8), beside)


def test_the_last_cell_stays():
    """Where nothing at all suffices too, an empty mask would explain nothing."""
    one = counter([(4, 4)], less=0.5)
    assert torch.equal(minimal_mask(Judge(one, ONES, 0, QUIET), on((4, 4)), 1), on((4, 4)))
    anything = counter([(4, 4)], less=-1.0)
    assert is_feasible(anything, ONES, on(), 0, QUIET)
    judge = Judge(anything, ONES, 0, QUIET)
    assert torch.equal(minimal_mask(judge, on((0, 3)), 1), on((0, 3)))
    for start in (ONES, on((0, 0), (7, 7)), on(*BLOCK)):
        left = minimal_mask(judge, start, 1)
        assert left.sum() == 1 and not (left.bool() & ~start.bool()).any()


@pytest.mark.parametrize("seed", range(3))
def test_cells_are_asked_from_the_outside_in(seed):
    """Whatever the order given: of a square none makes a hole, of a ring one must open it."""
    full, ring = square(1, 1, 5, 5, side=8), square(1, 1, 5, 5, side=8) - square(2, 2, 3, 3, side=8)
    for mask in (full, ring):
        places = mask[0, 0].nonzero()
        order = torch.randperm(len(places), generator=torch.Generator().manual_seed(seed))
        parts = [on(place).bool()[0] for place in places[order].tolist()]
        asked = deletion._outside_in(mask, parts)
        assert len(asked) == len(parts) and {id(p) for p in asked} == {id(p) for p in parts}
        counts = [deletion._regions(mask)]
        for part in asked:
            mask = mask * ~part
            counts.append(deletion._regions(mask))
        assert counts == sorted(counts, reverse=True)
    # at the end of a line the middle cell waits; where all would break it, the order stays
    line = on((0, 0), (0, 1), (0, 2))
    middle, end = on((0, 1)).bool()[0], on((0, 0)).bool()[0]
    assert deletion._outside_in(line, [middle, end])[0] is end
    assert deletion._outside_in(line, [middle]) == [middle]
