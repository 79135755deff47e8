"""One's own network, wrapped: handled as it is or refused in one line, and left as it was."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from traces import hooks, switches

import minexp
from minexp import classifier, folding, taps
from minexp.classifier import Classifier, wrap
from minexp.config import ExplainConfig
from minexp.errors import InputError
from minexp.explain import explain

COLOUR = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4), "size": (32, 32)}
NAMES = ("cat", "dog", "bird")
SHORT = ExplainConfig(steps=3, minimal=False, noise_draws=2)


def small(channels: int = 3, inplace: bool = True) -> nn.Sequential:
    """Convolutions with normalisation, an in-place ReLU and dropout, in train mode as built."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(channels, 8, 3, stride=2, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=inplace),
            nn.Conv2d(8, 8, 3, stride=2, padding=1),
            nn.ReLU(inplace=inplace),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(0.5),
            nn.Linear(8, len(NAMES)),
        )


class Around(nn.Module):
    """A network whose logits go through ``change`` before they are returned."""

    def __init__(self, change, net: nn.Module | None = None):
        super().__init__()
        self.net, self.change = net or small(), change

    def forward(self, x):
        return self.change(self.net(x))


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def picture(height: int, width: int) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def state(module: nn.Module) -> list:
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return switches(module) + [
        (name, t.requires_grad, t._version, t.data_ptr(), t.grad is None) for name, t in tensors
    ]


# --- what one gets


def test_wrap_is_public():
    assert minexp.wrap is wrap
    assert isinstance(minexp.wrap(small(), **COLOUR, class_names=NAMES), minexp.Classifier)


def test_a_wrapped_model_says_what_it_was_told():
    model = wrap(small(), **COLOUR, class_names=NAMES, taps=["4"], name="mine")
    assert (model.name, model.family, model.taps) == ("mine", "own", ("4",))
    assert (model.mean, model.std, model.size) == tuple(COLOUR.values())
    assert model.class_names == NAMES
    assert wrap(small(), **COLOUR, class_names=NAMES).name == "Sequential"


def test_a_wrapped_model_computes_what_the_module_does_in_eval_mode():
    module = small()
    model = wrap(module, **COLOUR, class_names=NAMES)
    image = noise(2, 3, 32, 32)
    assert torch.equal(model(image), copy.deepcopy(module).eval()(image))
    assert not any(part.training for part in model.module.modules())
    assert not any(p.requires_grad for p in model.module.parameters())


def test_found_taps_are_what_follows_the_non_linearities():
    assert wrap(small(), **COLOUR, class_names=NAMES).taps == ("2", "4")


def test_digest_is_of_the_weights():
    digest = wrap(small(), **COLOUR, class_names=NAMES).weights_sha256
    assert len(digest) == 64
    assert wrap(small(), **COLOUR, class_names=NAMES).weights_sha256 == digest
    other = small()
    with torch.no_grad():
        other[0].weight[0, 0, 0, 0] += 1e-6
    assert wrap(other, **COLOUR, class_names=NAMES).weights_sha256 != digest
    same_numbers = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    assert classifier.state_digest(same_numbers) != classifier.state_digest(same_numbers[1])


# --- the module is left as it was


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("grad", [True, False])
def test_wrapping_and_explaining_leave_the_module_as_it_was(training, grad):
    module = small().train(training).requires_grad_(grad)
    module[3].weight.requires_grad_(False)
    module[8].weight.grad = torch.ones_like(module[8].weight)
    fired = []
    module[4].register_forward_hook(lambda *_: fired.append(1))
    image, was, random = noise(2, 3, 32, 32), state(module), torch.random.get_rng_state()
    numbers = {key: value.clone() for key, value in module.state_dict().items()}

    model = wrap(module, **COLOUR, class_names=NAMES)
    explain(model, image[:1], SHORT)

    assert torch.equal(torch.random.get_rng_state(), random)
    assert state(module) == was
    assert hooks(module) == 1
    assert all(torch.equal(module.state_dict()[key], numbers[key]) for key in numbers)
    assert module[8].weight.grad.unique().tolist() == [1.0]
    again = small().train(training)
    again.load_state_dict(numbers)
    for one in (module, again):
        torch.manual_seed(3)  # dropout, in train mode
        one.output = one(image)
    assert torch.equal(module.output, again.output)


@pytest.mark.parametrize("context", [torch.no_grad, torch.enable_grad])
def test_wrapping_works_whether_or_not_gradients_are_on(context):
    with context():
        model = wrap(small(), **COLOUR, class_names=NAMES)
    assert model.taps == ("2", "4")


def test_later_training_does_not_reach_the_copy():
    module, image = small(), noise(1, 3, 32, 32)
    model = wrap(module, **COLOUR, class_names=NAMES)
    before = model(image)
    module(noise(4, 3, 32, 32)).sum().backward()
    torch.optim.SGD(module.parameters(), lr=1.0).step()
    assert torch.equal(model(image), before)


def test_in_place_activations_do_not_overwrite_a_tap():
    """A tap before an in-place ReLU reads what the layer gave, not what the ReLU made of it."""
    module, image = small(), noise(1, 3, 32, 32)
    model = wrap(module, **COLOUR, class_names=NAMES, taps=["1", "2"])
    with taps.read(model.module, model.taps) as read:
        model(image)
    frozen = copy.deepcopy(module).eval()
    expected = frozen[1](frozen[0](image))
    assert expected.min() < 0
    assert torch.equal(read["1"], expected)
    assert torch.equal(read["2"], expected.relu())


def test_functional_in_place_activations_are_refused_where_they_overwrite_a_tap():
    class Module(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 3, 3)

        def forward(self, x):
            return self.two(F.relu_(self.one(x))).mean((2, 3))

    with pytest.raises(InputError, match="'one' is overwritten in place"):
        wrap(Module(), **COLOUR, class_names=NAMES, taps=["one"])
    assert wrap(Module(), **COLOUR, class_names=NAMES).taps == ("two",)


# --- what modules return


class Output(SimpleNamespace):
    """As of the transformers library."""


@pytest.mark.parametrize(
    "change",
    [
        lambda logits: (logits, logits[:, :1]),
        lambda logits: [logits],
        lambda logits: {"loss": None, "logits": logits},
        lambda logits: Output(loss=None, logits=logits),
    ],
    ids=["tuple", "list", "dict", "object"],
)
def test_logits_are_taken_out_of_what_holds_them(change):
    model = wrap(Around(change), **COLOUR, class_names=NAMES)
    image = noise(2, 3, 32, 32)
    assert torch.equal(model(image), small().eval()(image))
    found = explain(model, image[:1], SHORT)
    assert len(found.history) == 3 and found.label_name in NAMES


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda logits: None, "returns NoneType; expected logits"),
        (lambda logits: {"scores": logits}, "returns dict; expected logits"),
        (lambda logits: (), "returns tuple; expected logits"),
        (lambda logits: logits[:, :2], r"returns \(1, 2\) for one image; expected logits \(1, 3\)"),
        (lambda logits: logits[:, :, None], r"returns \(1, 3, 1\) for one image"),
        (lambda logits: logits.detach(), "no gradient reaches the input"),
        (lambda logits: logits.argmax(1)[:, None].expand(-1, 3), "no gradient reaches the input"),
        (lambda logits: logits.round(), "no gradient reaches the input"),
        (lambda logits: logits + torch.rand(3), "two calls differ in eval mode"),
        (lambda logits: logits - logits.mean(0), "no gradient reaches the input"),
        (lambda logits: logits / (1 + logits.abs().sum()), "with a second image beside it"),
        (lambda logits: logits.view(1, 3), r"does not take an input \(2, 3, 32, 32\)"),
        (lambda logits: logits.no_such_thing, "'Tensor' object has no attribute 'no_such_thing'"),
    ],
)
def test_what_cannot_be_explained_is_refused(change, said):
    module = Around(change)
    was = state(module)
    with pytest.raises(InputError, match=said):
        wrap(module, **COLOUR, class_names=NAMES)
    assert (state(module), hooks(module)) == (was, 0)


def test_logits_that_always_sum_to_zero_are_taken():
    """The gradient of their sum is zero, theirs is not."""
    around = Around(lambda logits: torch.cat([logits[:, :1], -logits[:, :1]], dim=1))
    model = wrap(around, **COLOUR, class_names=("yes", "no"))
    assert model(noise(1, 3, 32, 32)).sum() == 0


def test_no_grad_in_the_forward_pass_is_refused():
    class Module(nn.Module):
        def __init__(self):
            super().__init__()
            self.features, self.head = small()[:7], nn.Linear(8, 3)

        def forward(self, x):
            with torch.no_grad():
                features = self.features(x)
            return self.head(features)

    with pytest.raises(InputError, match=r"no gradient reaches the input.*no_grad, detach"):
        wrap(Module(), **COLOUR, class_names=NAMES)


def test_statistics_of_the_batch_are_refused():
    """Without running statistics every image's logits depend on the others beside it."""
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip
    with pytest.raises(InputError, match="with a second image beside it"):
        wrap(module, **COLOUR, class_names=NAMES)


def test_an_input_that_does_not_fit_is_refused_in_the_modules_words():
    with pytest.raises(InputError, match=r"does not take an input \(1, 1, 32, 32\)") as caught:
        wrap(small(), mean=(0.5,), std=(0.5,), size=(32, 32), class_names=NAMES)
    assert "expected input" in str(caught.value)

    class Strict(nn.Module):
        def forward(self, x):
            assert x.shape[-1] == 224, "this one takes 224"

    with pytest.raises(InputError, match="this one takes 224"):
        wrap(Strict(), **COLOUR, class_names=NAMES)


def test_half_precision_is_refused():
    with pytest.raises(InputError, match=r"does not take an input .* torch.float32"):
        wrap(small().half(), **COLOUR, class_names=NAMES)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mean": (0.5, 0.5)}, "expected a number a channel, 1 or 3 of each"),
        ({"mean": (0.5, 0.5), "std": (0.5, 0.5)}, "expected a number a channel, 1 or 3 of each"),
        ({"mean": 0.5, "std": 0.5}, "mean=0.5, std=0.5: expected a number a channel"),
        ({"std": (0.5, 0.0, 0.5)}, "expected numbers > 0"),
        ({"size": 32}, r"size=32: expected \(H, W\)"),
        ({"size": (32,)}, r"expected \(H, W\)"),
        ({"size": (32.0, 32.0)}, r"expected \(H, W\), two integers >= 8"),
        ({"size": (32, 7)}, r"expected \(H, W\), two integers >= 8"),
        ({"class_names": ("one",)}, "expected a name for each of >= 2 classes"),
        ({"class_names": "abc"}, "class_names='abc': expected a name for each"),
        ({"class_names": "abcd"}, "class_names='abcd'"),
        ({"class_names": tuple("abcd")}, r"expected logits \(1, 4\)"),
        ({"taps": "4"}, r"taps='4': expected a list of names, \['4'\]"),
        ({"taps": ["4", "4"]}, "one is named twice"),
        ({"taps": ["44"]}, "no submodule named '44' to tap; the nearest: 4"),
        ({"taps": []}, "no layer found to match; name them"),
    ],
)
def test_values_that_do_not_fit_are_refused(change, said):
    with pytest.raises(InputError, match=said) as caught:
        wrap(small(), **{**COLOUR, "class_names": NAMES, **change})
    assert "\n" not in str(caught.value)


def test_what_is_no_module_is_refused():
    with pytest.raises(InputError, match=r"module is a function; expected a torch\.nn\.Module"):
        wrap(lambda x: x, **COLOUR, class_names=NAMES)


def test_what_cannot_be_copied_is_refused():
    module = small()
    module.kept = module(noise(2, 3, 32, 32))  # as weight_norm's hook leaves it
    with pytest.raises(InputError, match="Sequential cannot be copied"):
        wrap(module, **COLOUR, class_names=NAMES)


# --- shapes and pictures


@pytest.mark.parametrize(("channels", "size"), [(1, (28, 28)), (1, (20, 44)), (3, (64, 40))])
def test_grayscale_and_other_sizes_are_explained(channels, size):
    mean, std = (0.1, 0.2, 0.3)[:channels], (0.4, 0.5, 0.6)[:channels]
    model = wrap(small(channels), mean=mean, std=std, size=size, class_names=NAMES)
    image = model.preprocess(picture(50, 70))
    assert image.shape == (1, channels, *size) and image.dtype == torch.float32
    found = explain(model, image, SHORT)
    assert found.mask.shape == (1, 1, *size) and found.masked.shape == image.shape
    assert set(found.mask.unique().tolist()) <= {0, 1}


def test_pictures_are_normalised_by_hand():
    model = wrap(small(), **COLOUR, class_names=NAMES)
    shown = picture(32, 32)
    pixels = torch.from_numpy(np.asarray(shown).copy()).movedim(2, 0) / 255
    expected = torch.stack([(pixels[c] - COLOUR["mean"][c]) / COLOUR["std"][c] for c in range(3)])
    torch.testing.assert_close(model.preprocess(shown)[0], expected)


def test_gray_is_the_luma_of_the_colours():
    model = wrap(small(1), mean=(0,), std=(1,), size=(32, 32), class_names=NAMES)
    shown = picture(32, 32)
    red, green, blue = np.asarray(shown).astype(float).transpose(2, 0, 1)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue  # ITU-R 601-2
    assert np.abs(model.preprocess(shown)[0, 0].numpy() * 255 - luma).max() <= 1


@pytest.mark.parametrize(("height", "width"), [(64, 200), (200, 64), (33, 31), (16, 16)])
def test_a_picture_of_other_proportions_is_covered_and_its_centre_shown(height, width):
    """A white square of half the shorter side, in the middle, stays a square of half the input."""
    values, half = np.zeros((height, width, 3), np.uint8), min(height, width) // 4
    top, left = height // 2, width // 2
    values[top - half : top + half, left - half : left + half] = 255
    model = wrap(small(), mean=(0,) * 3, std=(1,) * 3, size=(32, 32), class_names=NAMES)
    image = model.preprocess(Image.fromarray(values))
    assert image.shape == (1, 3, 32, 32)
    bright = image[0, 0] > 0.5
    assert bright.any(1).sum() == pytest.approx(16, abs=2)
    assert bright.any(0).sum() == pytest.approx(16, abs=2)
    assert bright[12:20, 12:20].all()
    white = model.preprocess(Image.new("RGB", (width, height), "white"))
    assert white.unique().tolist() == [1.0], "nothing is padded"


def test_ones_own_transform_is_used():
    model = wrap(
        small(), **COLOUR, class_names=NAMES, transform=lambda _: torch.full((3, 32, 32), 0.25)
    )
    assert model.preprocess(picture(9, 9)).unique().tolist() == [0.25]


def test_the_device_is_where_the_numbers_are():
    meta = torch.device("meta")
    model = wrap(small(), **COLOUR, class_names=NAMES)
    assert model.device == torch.device("cpu")
    assert model.to("meta").device == meta
    assert classifier._probe(model.to("meta")).device == meta
    bare = Classifier("", "", nn.ReLU(), (0,), (1,), (8, 8), NAMES, (), print, None)
    assert bare.device == torch.device("cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_module_on_a_gpu_stays_there():
    module = small().cuda()
    model = wrap(module, **COLOUR, class_names=NAMES)
    assert model.device.type == "cuda" and next(module.parameters()).is_cuda
    found = explain(model, noise(1, 3, 32, 32), SHORT)
    assert len(found.history) == 3


# --- folding


def warmed(net: nn.Module, *shape: int) -> nn.Module:
    """With running statistics that are not 0 and 1."""
    net(noise(*shape))
    return net.eval().requires_grad_(False)


def test_folding_keeps_the_function_and_the_names():
    net = warmed(small(inplace=False), 8, 3, 32, 32)
    net[1].bias += 0.5
    model = wrap(net, **COLOUR, class_names=NAMES)
    image = noise(1, 3, 32, 32)
    fast = classifier.folded(model, image)
    assert fast.module is not model.module
    assert not any(isinstance(part, nn.BatchNorm2d) for part in fast.module.modules())
    assert [n for n, _ in fast.module.named_modules()] == [n for n, _ in net.named_modules()]
    torch.testing.assert_close(fast(image), model(image))
    with taps.read(fast.module, ("2",)) as folded, taps.read(model.module, ("2",)) as own:
        fast(image), model(image)
    torch.testing.assert_close(folded["2"], own["2"])
    norm, weight = net[1], net[0].weight
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    torch.testing.assert_close(fast.module[0].weight, weight * scale[:, None, None, None])


def test_nothing_to_fold_gives_the_model_itself():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))
    assert folding.without_normalization(module) is module
    plain = nn.Sequential(nn.Flatten(), nn.Linear(3072, 3))
    model = Classifier("", "", plain, (0,), (1,), (32, 32), NAMES, (), print, None)
    assert classifier.folded(model, noise(1, 3, 32, 32)) is model


def test_what_runs_in_another_order_than_its_names_is_not_folded():
    class Crossed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x):
            return self.conv(self.norm(x).relu()).mean((2, 3))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = warmed(Crossed(), 8, 3, 32, 32)
    model = Classifier("", "", module, (0,) * 3, (1,) * 3, (32, 32), NAMES, (), print, None)
    assert classifier.folded(model, noise(1, 3, 32, 32)) is model


def test_timms_normalisation_keeps_its_activation_and_the_names_inside():
    from timm.layers import BatchNormAct2d

    net = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), BatchNormAct2d(4, inplace=False))
    net = warmed(net, 8, 3, 16, 16)
    fast, image = folding.without_normalization(net), noise(1, 3, 16, 16)
    assert [n for n, _ in fast.named_modules()] == [n for n, _ in net.named_modules()]
    torch.testing.assert_close(fast(image), net(image))
    assert net(image).min() == 0
