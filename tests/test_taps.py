"""Reading activations leaves no trace."""

import pytest
import timm
import torch
from torch import nn
from traces import hooks

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


def test_of_a_tuple_the_first_is_read(net, image):
    """As of blocks that return their tokens and what else they know."""

    class Pair(nn.Module):
        def forward(self, x):
            return x * 2, x.shape

    net[2] = Pair()
    net.insert(3, Take())
    with taps.read(net, ["2"]) as read:
        net(image)
    assert torch.equal(read["2"], net[1](net[0](image)) * 2)


class Take(nn.Module):
    def forward(self, pair):
        return pair[0]


# --- inputs


def test_inputs_equal_a_manual_forward(net, image):
    with taps.read_inputs(net, ["1", "0.0"]) as read:
        net(image)
    assert torch.equal(read["0.0"], image)
    assert torch.equal(read["1"], net[0](image))
    assert hooks(net) == 0


def test_inputs_leave_no_hook_after_an_error(net, image):
    with pytest.raises(ZeroDivisionError), taps.read_inputs(net, ["1"]):
        assert hooks(net) == 1
        1 / 0  # noqa: B018
    assert hooks(net) == 0
    with (
        pytest.raises(InputError, match="no submodule named 'one'"),
        taps.read_inputs(net, ["one"]),
    ):
        pass


def test_passes_are_counted_by_their_batches(net, image):
    with taps.count(net) as passes:
        net(image)
        net(image[:1])
    net(image)
    assert passes == [2, 1]
    assert hooks(net) == 0


# --- a trace of everything


def test_a_trace_has_every_submodule_in_the_order_in_which_they_end(net, image):
    names = [name for name, _, _ in taps.trace(net, image)]
    assert names == ["0.0", "0.1", "0", "1", "2", "3", "4"]
    outputs = {name: output for name, output, _ in taps.trace(net, image)}
    assert torch.equal(outputs["2"], net[1](net[0](image)).relu())
    assert not outputs["4"].requires_grad
    assert hooks(net) == 0


def test_a_trace_leaves_no_hook_when_the_forward_pass_fails(net):
    with pytest.raises(RuntimeError):
        taps.trace(net, torch.zeros(1, 7, 8, 8))
    assert hooks(net) == 0


# --- taps that one names


def test_named_taps_come_back_in_the_order_in_which_they_fire(net, image):
    assert taps.check(net, ["4", "2", "0.1"], image) == ("0.1", "2", "4")


class Backwards(nn.Module):
    """Its modules run in another order than they were made in, one of them twice."""

    def __init__(self):
        super().__init__()
        self.last, self.act = nn.Conv2d(4, 4, 1), nn.Tanh()
        self.first, self.idle = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return self.act(self.last(self.act(self.first(x)))).flatten(1)


def test_the_order_is_that_of_the_last_run(image):
    assert taps.check(Backwards(), ["last", "act", "first"], image) == ("first", "last", "act")


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("layer5", "layer4"), ("layer1.0.con1", "layer1.0.conv1"), ("Layer3.0", "layer3.0")],
)
def test_a_wrong_tap_lists_the_nearest_right_ones(name, nearest):
    with torch.random.fork_rng(devices=[]):
        module = timm.create_model("test_resnet", pretrained=False).eval()
    with pytest.raises(InputError, match=f"no submodule named '{name}'") as caught:
        taps.check(module, [name], torch.zeros(1, 3, 64, 64))
    near = str(caught.value).partition("the nearest: ")[2].split(", ")
    assert nearest in near and len(near) <= 5
    assert set(near) <= {name for name, _ in module.named_modules()}


def test_a_name_unlike_any_other_lists_none(net, image):
    with pytest.raises(InputError) as caught:
        taps.check(net, ["qqqqqqqq"], image)
    assert str(caught.value) == "no submodule named 'qqqqqqqq' to tap"


def test_a_tap_named_twice_is_refused(net, image):
    with pytest.raises(InputError, match="one is named twice"):
        taps.check(net, ["2", "2"], image)


def test_a_tap_that_does_not_run_is_refused(image):
    with pytest.raises(InputError, match="'idle' does not run"):
        taps.check(Backwards(), ["first", "idle"], image)


class Windows(nn.Module):
    """Tokens of four windows of each image, one after another, as in Swin's attention."""

    def __init__(self):
        super().__init__()
        self.inside, self.index, self.counts = nn.Linear(3, 5), Index(), nn.Identity()

    def forward(self, x):
        windows = x.unflatten(2, (2, 4)).unflatten(4, (2, 4)).permute(0, 2, 4, 3, 5, 1)
        tokens = self.inside(windows.flatten(0, 2).flatten(1, 2))
        self.index(tokens)
        return tokens.unflatten(0, (len(x), -1)).mean((1, 2))


class Index(nn.Module):
    def forward(self, x):
        return x.argmax(-1).unflatten(0, (-1, 4)).flatten(1)


@pytest.mark.parametrize(("tap", "shown"), [("inside", "(4, 16, 5)"), ("index", "torch.int64")])
def test_what_is_no_activation_of_the_image_is_refused(image, tap, shown):
    """A search takes the first row for the masked image's own."""
    with pytest.raises(InputError, match=f"tap '{tap}' gives") as caught:
        taps.check(Windows(), [tap], image[:1])
    assert shown in str(caught.value)


class Overwrites(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        first = self.two(self.relu(self.one(x)))
        first += 1
        return first.flatten(1)


@pytest.mark.parametrize("tap", ["one", "two"])
def test_a_tap_that_is_overwritten_in_place_is_refused(image, tap):
    with pytest.raises(InputError, match=f"tap '{tap}' is overwritten in place"):
        taps.check(Overwrites(), ["relu", tap], image)
    assert taps.check(Overwrites(), ["relu"], image) == ("relu",)


# --- taps that are found


class Stages(nn.Module):
    """Two stages of residual blocks behind a stem, the second of half the resolution."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
        self.one = nn.Sequential(Residual(1), Residual(1))
        self.two = nn.Sequential(Residual(2), Residual(1))
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        return self.head(self.two(self.one(self.stem(x))).mean((2, 3)))


class Residual(nn.Module):
    """The stride lies in the second convolution: the first's map has the resolution before."""

    def __init__(self, stride: int):
        super().__init__()
        self.first, self.act1 = nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(inplace=True)
        self.second = nn.Conv2d(4, 4, 3, stride=stride, padding=1)
        self.down, self.act2 = nn.AvgPool2d(stride), nn.ReLU(inplace=True)

    def forward(self, x):
        return self.act2(self.second(self.act1(self.first(x))) + self.down(x))


def test_found_of_stages_is_what_each_gives_after_its_last_non_linearity(image):
    assert taps.default(Stages(), image) == ("one", "two")


def test_found_of_layers_in_a_row_is_the_last_non_linearity_of_each_resolution(net, image):
    assert taps.default(net, image) == ("0", "2")


def test_found_in_a_container_of_all_layers_are_its_layers(net, image):
    """A row of stages is no stage, though it gives what the last of them does."""
    features = nn.Sequential(net[0], net[1], net[2])
    whole = nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 6))
    assert taps.default(whole, image) == ("0.0", "0.2")


class Scores(nn.Module):
    """Linear attention: non-linearities on (N, heads, T, D), which are no maps."""

    def __init__(self):
        super().__init__()
        self.act = nn.ReLU()

    def forward(self, x):
        keys = self.act(x.flatten(2).mT.unflatten(2, (2, -1)).transpose(1, 2))  # (N, 2, T, D)
        return x * keys.mean()


def test_tokens_of_heads_are_no_maps(net, image):
    whole = nn.Sequential(net[0], Scores(), nn.Flatten(), nn.Linear(256, 5))
    assert taps.default(whole, image) == ("0",)


@pytest.mark.parametrize(
    ("shape", "size", "places"),
    [
        ((1, 4, 8, 20), (8, 20), 160),
        ((1, 4, 4, 10), (8, 20), 40),
        ((1, 8, 20, 4), (8, 20), 160),  # channels last
        ((1, 7, 7, 768), (224, 224), 49),
        ((1, 16, 54, 55), (224, 224), 2970),  # rounded down and up
        ((1, 2, 10, 3), (8, 8), 0),  # of other proportions: tokens of heads
        ((1, 4, 20, 8), (8, 20), 0),
        ((4, 4, 8, 8), (8, 8), 0),  # parts of the image
        ((1, 9, 5), (8, 8), 0),
    ],
)
def test_a_map_has_the_proportions_of_the_image(shape, size, places):
    assert taps._places(torch.zeros(shape), torch.zeros(1, 3, *size)) == places


class Functional(nn.Module):
    """Non-linearities that are no modules."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.pool, self.head = nn.MaxPool2d(2), nn.Linear(4, 5)

    def forward(self, x):
        x = self.pool(self.one(x).relu())
        return self.head(self.two(x).relu().mean((2, 3)))


def test_found_without_activation_modules_is_the_last_layer_of_each_resolution(image):
    assert taps.default(Functional(), image) == ("one", "two")


class Token(nn.Module):
    """A block of a transformer, that may change the number of tokens or return more than them."""

    def __init__(self, pair: bool = False, pool: int = 1):
        super().__init__()
        self.up, self.act, self.down = nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4)
        self.pair, self.pool = pair, pool

    def forward(self, x):
        x = x[0] if isinstance(x, tuple) else x
        x = x[:, :: self.pool] + self.down(self.act(self.up(x[:, :: self.pool])))
        return (x, None) if self.pair else x


class Transformer(nn.Module):
    def __init__(self, *stages: nn.Module):
        super().__init__()
        self.embed = nn.Conv2d(3, 4, 2, stride=2)
        self.stages, self.head = nn.Sequential(*stages), nn.Linear(4, 5)

    def forward(self, x):
        x = self.stages(self.embed(x).flatten(2).mT)
        return self.head((x[0] if isinstance(x, tuple) else x).mean(1))


def test_found_of_a_transformer_is_each_block(image):
    plain = Transformer(Token(), Token(), Token())
    assert taps.default(plain, image) == ("stages.0", "stages.1", "stages.2")
    pooled = Transformer(Token(), Token(pool=2), Token(pool=4))
    assert taps.default(pooled, image) == ("stages.0", "stages.1", "stages.2")
    pairs = Transformer(Token(pair=True), Token(pair=True))
    assert taps.default(pairs, image) == ("stages.0", "stages.1")


def test_found_of_a_pyramid_is_each_block_of_each_stage(image):
    pyramid = Transformer(nn.Sequential(Token(), Token()), nn.Sequential(Token(pool=2), Token()))
    assert taps.default(pyramid, image) == ("stages.0.0", "stages.0.1", "stages.1.0", "stages.1.1")


class Positions(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(4, 4)

    def forward(self, x):
        return x + self.mix(x)


def test_found_are_blocks_not_what_lies_between_them(image):
    between = nn.Sequential(Positions(), Positions())
    whole = Transformer(nn.Sequential(Token(), Token()), between, nn.Sequential(Token(), Token()))
    assert taps.default(whole, image) == ("stages.0.0", "stages.0.1", "stages.2.0", "stages.2.1")


class Last(nn.Module):
    """Channels last, the non-linearity inside, as in Swin and ConvNeXt."""

    def __init__(self, side: int):
        super().__init__()
        self.reduce, self.block = nn.Conv2d(3 if side == 1 else 4, 4, 2, stride=2), Token()

    def forward(self, x):
        x = self.reduce(x if x.shape[1] == 3 else x.movedim(3, 1)).movedim(1, 3)
        return self.block(x.flatten(1, 2)).unflatten(1, x.shape[1:3])


def test_found_where_the_non_linearities_lie_inside_blocks_is_each_stage(image):
    net = nn.Sequential(Last(1), Last(2), nn.Flatten(), nn.Linear(16, 5))
    assert taps.default(net, image) == ("0", "1")


def test_found_is_nothing_where_there_is_neither_a_map_nor_tokens(image):
    assert taps.default(nn.Sequential(nn.Flatten(), nn.Linear(192, 5), nn.ReLU()), image) == ()


def test_found_of_an_oblong_image(net):
    """The resolutions are told apart by the image's proportions, not by square maps."""
    image = torch.zeros(1, 3, 8, 20)
    net = net[:3].append(nn.AdaptiveAvgPool2d(1)).append(nn.Flatten())
    assert taps.default(net, image) == ("0", "2")


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_byobnet"])
def test_what_is_found_passes_the_check_and_leaves_nothing(name):
    with torch.random.fork_rng(devices=[]):
        module = timm.create_model(name, pretrained=False).eval()
    side = module.pretrained_cfg["input_size"][-1]
    image = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    before, was = module(image), state(module)
    found = taps.default(module, image)
    assert taps.check(module, found[::-1], image) == found
    assert torch.equal(module(image), before)
    assert (state(module), hooks(module)) == (was, 0)
