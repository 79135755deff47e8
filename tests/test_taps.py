"""Reading activations leaves no trace."""

import pytest
import torch
from torch import nn

from minexp import taps
from minexp.errors import InputError


@pytest.fixture
def net():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()),
            nn.Conv2d(4, 5, 3, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(5 * 3 * 3, 6),
        )


@pytest.fixture
def image():
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


NAMES = ["0.1", "2", "4"]


def hooks(module: nn.Module) -> int:
    """How many hooks of any kind sit on the module and everything in it."""
    return sum(
        len(store)
        for part in module.modules()
        for name, store in vars(part).items()
        if "_hooks" in name and store
    )


def state(module: nn.Module) -> list:
    switches = [(name, part.training) for name, part in module.named_modules()]
    return switches + [(name, p.requires_grad, p._version) for name, p in module.named_parameters()]


def test_hooks_are_counted(net):
    """The count the other tests rely on sees a hook that is there."""
    net[1].register_forward_hook(lambda *_: None)
    net[0][0].register_full_backward_hook(lambda *_: None)
    assert hooks(net) == 2


def test_activations_equal_a_manual_forward(net, image):
    with taps.read(net, NAMES) as read:
        net(image)
    first = net[0][0](image).relu()
    second = net[1](first).relu()
    assert list(read) == NAMES
    assert torch.equal(read["0.1"], first)
    assert torch.equal(read["2"], second)
    assert torch.equal(read["4"], net[4](second.flatten(1)))


def test_output_is_bit_identical_with_and_without(net, image):
    before = net(image)
    with taps.read(net, NAMES):
        during = net(image)
    assert torch.equal(before, during)
    assert torch.equal(before, net(image))


def test_real_models_give_bit_identical_logits(model, photo_input):
    before = model(photo_input)
    with taps.read(model.module, model.taps) as read:
        during = model(photo_input)
    assert len(read) == len(model.taps) > 0
    assert torch.equal(before, during)
    assert torch.equal(before, model(photo_input))
    assert hooks(model.module) == 0


def test_no_hook_is_left_after_exit(net, image):
    with taps.read(net, NAMES):
        assert hooks(net) == len(NAMES)
        net(image)
    assert hooks(net) == 0


def test_no_hook_is_left_after_an_error_inside(net, image):
    with pytest.raises(ZeroDivisionError), taps.read(net, NAMES) as read:
        net(image)
        1 / 0  # noqa: B018
    assert hooks(net) == 0
    assert list(read) == NAMES, "what was read before the error is there"


def test_no_hook_is_left_when_the_forward_pass_fails(net):
    with pytest.raises(RuntimeError), taps.read(net, NAMES):
        net(torch.zeros(1, 7, 8, 8))
    assert hooks(net) == 0


def test_hooks_of_others_stay(net, image):
    seen = []
    net[2].register_forward_hook(lambda *_: seen.append(1))
    with taps.read(net, NAMES):
        net(image)
    net(image)
    assert (hooks(net), len(seen)) == (1, 2)


@pytest.mark.parametrize("training", [True, False])
def test_training_and_requires_grad_are_untouched(net, image, training):
    net.train(training)
    net[1].requires_grad_(False)
    before = state(net)
    with taps.read(net, NAMES):
        net(image)
        assert state(net) == before
    assert state(net) == before


@pytest.mark.parametrize("name", ["9", "0.7", "", "relu", "0."])
def test_unknown_name_is_refused_and_nothing_is_hooked(net, name):
    with (
        pytest.raises(InputError, match="no submodule named") as caught,
        taps.read(net, ["2", name]),
    ):
        pass
    assert repr(name) in str(caught.value) and "'2'" not in str(caught.value)
    assert hooks(net) == 0


def test_gradients_flow_through_what_was_read(net, image):
    net.requires_grad_(False)
    image.requires_grad_()
    with taps.read(net, ["2"]) as read:
        net(image)
    (gradient,) = torch.autograd.grad((read["2"] ** 2).sum(), image)
    (expected,) = torch.autograd.grad((net[1](net[0](image)).relu() ** 2).sum(), image)
    assert torch.equal(gradient, expected)
    assert gradient.abs().sum() > 0


def test_without_gradients_in_the_pass_there_are_none_in_what_was_read(net, image):
    with torch.no_grad(), taps.read(net, NAMES) as read:
        net(image)
    assert [value.requires_grad for value in read.values()] == [False] * len(NAMES)


def test_each_pass_overwrites_the_last(net, image):
    with taps.read(net, NAMES) as read:
        net(image)
        first = dict(read)
        net(image[:1] + 1)
    assert first["2"].shape[0] == 2 and read["2"].shape[0] == 1
    assert torch.equal(read["2"], net[1](net[0](image[:1] + 1)).relu())


def test_nested_blocks_read_the_same(net, image):
    with taps.read(net, NAMES) as outer, taps.read(net, ["2"]) as inner:
        net(image)
    assert torch.equal(outer["2"], inner["2"])
    assert hooks(net) == 0
