"""Attention against its definition, by loops in float64; and what the formula does not describe."""

import math

import pytest
import torch
import torchvision
from timm.models.eva import Eva
from timm.models.vision_transformer import (
    Attention,
    DiffAttention,
    ParallelThingsBlock,
    ResPostBlock,
    VisionTransformer,
)
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from torch import nn
from traces import hooks

from minexp import attention, models, taps
from minexp.attention import attention_maps, patch_grid, prefix_tokens, rollout, to_patches
from minexp.classifier import Classifier
from minexp.errors import InputError

LAYOUTS = {  # name -> layers, heads, grid, prefix tokens
    "mnist_vit": (4, 4, (7, 7), 1),
    "vit_cifar10": (6, 3, (8, 8), 1),
    "timm:vit_tiny_patch16_224": (12, 3, (14, 14), 1),
    "timm:deit_tiny_distilled_patch16_224": (12, 3, (14, 14), 2),
    "torchvision": (2, 3, (4, 4), 1),
    "registers": (2, 3, (4, 3), 2),
}
SMALL = {"img_size": (16, 12), "patch_size": 4, "num_classes": 3, "embed_dim": 24, "num_heads": 3}
SIZE = (16, 12)


def classifier(module: nn.Module, size: tuple[int, int] = SIZE) -> Classifier:
    return Classifier(
        name="tiny", family="test", module=module.eval().requires_grad_(False),
        mean=(0.5,) * 3, std=(0.5,) * 3, size=size, class_names=("a", "b", "c"), taps=(),
        transform=None, weights_sha256=None,
    )  # fmt: skip


def vit(**options) -> VisionTransformer:
    return VisionTransformer(**{**SMALL, "depth": 2, "mlp_ratio": 1, **options})


def registers() -> VisionTransformer:
    """Everything timm's Attention can do besides, pooled, with registers but no class token."""
    module = vit(
        class_token=False, reg_tokens=2, global_pool="avg", qk_norm=True, scale_attn_norm=True,
        init_values=0.5,
    )  # fmt: skip
    for block in module.blocks:
        block.attn.gate = nn.Linear(24, 24)
        for norm in (block.attn.q_norm, block.attn.k_norm):
            nn.init.normal_(norm.weight)
    return module


def torchvisions() -> torchvision.models.VisionTransformer:
    module = torchvision.models.VisionTransformer(
        image_size=16, patch_size=4, num_layers=2, num_heads=3, hidden_dim=24, mlp_dim=24,
        num_classes=3,
    )  # fmt: skip
    nn.init.normal_(module.heads.head.weight)  # its zeros would say the same of everything
    return module


def parts(model: Classifier) -> list[nn.Module]:
    kinds = (Attention, nn.MultiheadAttention)
    return [part for part in model.module.modules() if isinstance(part, kinds)]


@pytest.fixture(scope="module", params=LAYOUTS)
def given(request):
    """A name, a transformer whose random weights make some attention sharp, and an image."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        if request.param == "registers":
            model = classifier(registers())
        elif request.param == "torchvision":
            model = classifier(torchvisions(), (16, 16))
        else:
            model = models.load_model(request.param, weights=None)
        for part in parts(model):
            weight = part.qkv.weight if isinstance(part, Attention) else part.in_proj_weight
            weight.data *= 4 if isinstance(part, Attention) else 2
        image = torch.randn(1, len(model.mean), *model.size)
    return request.param, model, image


@pytest.fixture(scope="module")
def found(given):
    return attention_maps(*given[1:])


def seen_by_attention(model: Classifier, image: torch.Tensor) -> list:
    """(module, its input) block by block, without a hook."""
    module, pairs = model.module, []
    if isinstance(module, VisionTransformer):
        x = module.norm_pre(module._pos_embed(module.patch_embed(image)))
        for block in module.blocks:
            pairs.append((block.attn, block.norm1(x)))
            x = block(x)
        return pairs
    patches = module.conv_proj(image).flatten(2).transpose(1, 2)
    x = torch.cat([module.class_token, patches], 1) + module.encoder.pos_embedding
    for block in module.encoder.layers:
        pairs.append((block.self_attention, block.ln_1(x)))
        x = block(x)
    return pairs


def parameters(part: nn.Module, third: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias, in float64, of the queries (0), keys (1) or values (2)."""
    if isinstance(part, Attention):
        weight, bias = part.qkv.weight, part.qkv.bias
    else:
        weight, bias = part.in_proj_weight, part.in_proj_bias
    bias = torch.zeros(len(weight)) if bias is None else bias
    size = len(weight) // 3
    return tuple(p[third * size : (third + 1) * size].double() for p in (weight, bias))


def projected(part: nn.Module, tokens: torch.Tensor, third: int) -> list[torch.Tensor]:
    """Queries, keys or values: for every head (T, D/H) float64."""
    weight, bias = parameters(part, third)
    flat = tokens[0].double() @ weight.T + bias
    size = len(weight) // part.num_heads
    heads = [flat[:, h * size : (h + 1) * size] for h in range(part.num_heads)]
    norm = getattr(part, ("q_norm", "k_norm", "")[third], None)
    if isinstance(norm, nn.LayerNorm):
        for h, head in enumerate(heads):
            centred = head - head.mean(1, keepdim=True)
            spread = (centred.square().mean(1, keepdim=True) + norm.eps).sqrt()
            heads[h] = centred / spread * norm.weight.double() + norm.bias.double()
    return heads


def literal(part: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """softmax(q k^T / sqrt(D/H)) head by head, token by token, (H, T, T) float64."""
    queries, keys = projected(part, tokens, 0), projected(part, tokens, 1)
    matrix = torch.zeros(part.num_heads, tokens.shape[1], tokens.shape[1], dtype=torch.float64)
    for h in range(part.num_heads):
        for t, query in enumerate(queries[h]):
            powers = (keys[h] @ query / math.sqrt(len(query))).exp()
            matrix[h, t] = powers / powers.sum()
    return matrix


def close(one: torch.Tensor, other: torch.Tensor, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(one.double(), other.double(), rtol=0, atol=tolerance)


def test_the_maps_are_the_formula(given, found):
    name, model, image = given
    layers, heads, (rows, columns), prefix = LAYOUTS[name]
    tokens = prefix + rows * columns
    assert found.shape == (layers, heads, tokens, tokens) and not found.requires_grad
    close(found.sum(3), torch.ones(layers, heads, tokens))
    for layer, (part, seen) in enumerate(seen_by_attention(model, image)):
        close(found[layer], literal(part, seen))
    assert found.max() > 3 / tokens, "near uniform attention tests little"


def test_the_attention_makes_the_modules_own_output(given, found):
    """Applied to the values, through the output's projection: what the module returns."""
    _, model, image = given
    for layer, (part, tokens) in enumerate(seen_by_attention(model, image)):
        values = projected(part, tokens, 2)
        mixed = torch.cat([found[layer, h].double() @ v for h, v in enumerate(values)], 1).float()
        if isinstance(part, Attention):
            gate = 1 if part.gate is None else part.gate(tokens[0]).sigmoid()
            expected, output = part.proj(part.norm(mixed) * gate), part(tokens)
        else:
            expected, output = part.out_proj(mixed), part(tokens, tokens, tokens)[0]
        close(expected, output[0], 1e-5)


def test_nothing_changes_what_the_model_says(given):
    _, model, image = given
    before, picture, during = model(image), image.clone(), []
    handle = model.module.register_forward_hook(lambda *passed: during.append(passed[2]))
    attention_maps(model, image)
    handle.remove()
    assert len(during) == 1 and torch.equal(during[0], before)
    assert torch.equal(model(image), before) and torch.equal(image, picture)
    assert not hooks(model.module)


def test_fused_kernels_or_not(given, found):
    _, model, image = given
    before = [getattr(part, "fused_attn", None) for part in parts(model)]
    try:
        for fused in (True, False):
            torch.backends.mha.set_fastpath_enabled(fused)
            for part in parts(model):
                part.fused_attn = fused  # torch's takes no notice
            close(attention_maps(model, image), found)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
        for part, fused in zip(parts(model), before, strict=True):
            part.fused_attn = fused


@pytest.mark.slow
def test_torchvisions_published_transformer():
    model = models.load_model("torchvision:vit_b_16", weights=None)
    image = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    maps = attention_maps(model, image)
    assert maps.shape == (12, 12, 197, 197) and to_patches(model, rollout(maps)).shape == (14, 14)
    close(maps[0], literal(*seen_by_attention(model, image)[0]))


def test_where_the_patches_lie(given, found):
    name, model, _ = given
    _, _, (rows, columns), prefix = LAYOUTS[name]
    assert patch_grid(model) == (rows, columns) and prefix_tokens(model) == prefix
    matrix = found[-1].mean(0)
    askers = range(prefix, len(matrix)) if name == "registers" else [0]
    seen = to_patches(model, matrix)
    assert seen.shape == (rows, columns)
    for row in range(rows):
        for column in range(columns):
            token = prefix + row * columns + column
            asked = sum(matrix[asker, token] for asker in askers) / len(askers)
            close(seen[row, column], asked)


def test_a_class_token_that_is_not_read_is_not_asked():
    model = classifier(vit(global_pool="avg"))
    assert prefix_tokens(model) == 1
    matrix = torch.rand(13, 13)
    close(to_patches(model, matrix).flatten(), matrix[1:, 1:].mean(0))


def test_rollout_by_hand():
    """Two layers of two heads; the means are W1 and W2, and A = (W + I) / 2."""
    first = [[[1, 0, 0], [1, 0, 0], [0, 0, 1]], [[1, 0, 0], [0, 1, 0], [0, 1, 0]]]
    second = [[[0, 1, 0], [0, 0, 1], [1, 0, 0]]] * 2
    # A1 = [1 0 0; 1/4 3/4 0; 0 1/4 3/4], A2 = [1/2 1/2 0; 0 1/2 1/2; 1/2 0 1/2]; the product A2 A1
    expected = [[5 / 8, 3 / 8, 0], [1 / 8, 1 / 2, 3 / 8], [1 / 2, 1 / 8, 3 / 8]]
    close(rollout(torch.tensor([first, second]).float()), torch.tensor(expected))


def test_rollout_by_loops(found):
    result = torch.eye(found.shape[3], dtype=torch.float64)
    for layer in found.double():
        mixed = sum(layer) / len(layer) + torch.eye(len(result), dtype=torch.float64)
        result = torch.stack([row / row.sum() for row in mixed]) @ result
    close(rollout(found), result)
    close(rollout(found).sum(1), torch.ones(len(result)))


def test_post_norm_blocks_and_a_model_inside_another():
    image = torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    inner = vit(block_fn=ResPostBlock)
    own = classifier(nn.Sequential(nn.Identity(), inner))
    assert attention_maps(own, image).equal(attention_maps(classifier(inner), image))
    assert patch_grid(own) == (4, 3) and prefix_tokens(own) == 1


class Encoder(nn.Module):
    """Patches through torch's own encoder, given ``mask``."""

    def __init__(self, **options):
        super().__init__()
        self.patches = nn.Conv2d(3, 24, 4, stride=4)
        options = {"batch_first": True, **options}
        self.tokens_first = not options["batch_first"]
        layer = nn.TransformerEncoderLayer(24, 3, 24, batch_first=options["batch_first"])
        layer.self_attn = nn.MultiheadAttention(24, 3, **options)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(24, 3)
        self.mask = None

    def forward(self, image):
        tokens = self.patches(image).flatten(2).transpose(1, 2)
        if self.tokens_first:
            return self.head(self.layers(tokens.transpose(0, 1)).mean(0))
        return self.head(self.layers(tokens, self.mask).mean(1))


@pytest.fixture(scope="module")
def picture():
    return torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(5))


def test_torchs_own_encoder_is_read(picture):
    model = classifier(Encoder())
    maps = attention_maps(model, picture)
    with taps.read_inputs(model.module, ["layers.layers.0.self_attn"]) as inputs:
        model(picture)
    close(maps[0], literal(parts(model)[0], inputs["layers.layers.0.self_attn"]))
    with pytest.raises(InputError, match="no grid"):
        to_patches(model, maps[0, 0])


class Masked(nn.Module):
    """Its transformer is asked to look back only: the module's weights do not tell."""

    def __init__(self, **options):
        super().__init__()
        self.inner, self.options = vit(), options

    def forward(self, image):
        return self.inner(image, **self.options)


class Inherited(Attention):
    def forward(self, x, attn_mask=None, is_causal=False):
        return super().forward(x) + x


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = vit()
        self.inner.blocks[1] = self.inner.blocks[0]

    def forward(self, image):
        return self.inner(image)


def mixture() -> VisionTransformer:
    module = vit()
    module.blocks[1] = vit(attn_layer=DiffAttention, embed_dim=24, num_heads=2).blocks[1]
    return module


def pyramid() -> VisionTransformer:
    module = vit()
    module.blocks[1].attn = Attention(24, num_heads=2)
    return module


def encoder_with_mask() -> Encoder:
    module = Encoder()
    module.mask = torch.zeros(12, 12).index_fill(1, torch.tensor([7]), float("-inf"))
    return module


REFUSED = {
    "no attention": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(576, 3)), "no attention"),
    "position bias": (
        lambda: VisionTransformerRelPos(**SMALL, depth=1),
        "vision_transformer_relpos.RelPosAttention",
    ),
    "rotary": (lambda: Eva(**SMALL, depth=1, use_rot_pos_emb=True), "EvaAttention"),
    "differential": (lambda: vit(attn_layer=DiffAttention), "DiffAttention"),
    "beside a plain one": (mixture, "DiffAttention"),
    "inherited": (lambda: vit(attn_layer=Inherited), "Inherited"),
    "parallel": (lambda: vit(block_fn=ParallelThingsBlock), "ParallelThingsBlock"),
    "causal": (lambda: Masked(is_causal=True), "blocks.0.attn is more than"),
    "mask": (lambda: Masked(attn_mask=3 * torch.eye(13)), "blocks.0.attn is more than"),
    "torch's mask": (encoder_with_mask, "layers.0.self_attn is more than"),
    "a token of zeros": (lambda: Encoder(add_zero_attn=True), "self_attn is more than"),
    "a biased token": (lambda: Encoder(add_bias_kv=True), "self_attn is more than"),
    "tokens first": (lambda: Encoder(batch_first=False), r"on \[12\]"),
    "run twice": (Twice, r"blocks.0.attn on \[1, 1\]"),
    "pyramid": (pyramid, "differ in heads"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_formula_does_not_describe_is_refused(name, picture):
    build, words = REFUSED[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        model = classifier(build())
    expected = model(picture)
    with pytest.raises(InputError, match=words):
        attention_maps(model, picture)
    assert not hooks(model.module) and torch.equal(model(picture), expected)


def test_a_fused_scale_that_is_not_the_modules_own(picture):
    """The fused kernel takes 1 / sqrt(D/H), whatever ``scale`` says."""
    model = classifier(vit())
    for part in parts(model):
        part.qkv.weight.data *= 20
        part.fused_attn, part.scale = False, 3 * part.scale
    assert attention_maps(model, picture).shape == (2, 3, 13, 13)
    for part in parts(model):
        part.fused_attn = True
    with pytest.raises(InputError, match="more than"):
        attention_maps(model, picture)


@pytest.mark.parametrize(
    ("name", "words"),
    [("mnist_cnn", "no attention"), ("timm:swin_tiny_patch4_window7_224", "WindowAttention")],
)
def test_other_networks_are_refused(name, words):
    model = models.load_model(name, weights=None)
    with pytest.raises(InputError, match=words):
        attention_maps(model, torch.zeros(1, len(model.mean), *model.size))
    with pytest.raises(InputError, match="no grid"):
        patch_grid(model)


def test_images_modes_and_matrices_that_do_not_fit_are_refused(picture):
    model = classifier(vit())
    for image in (picture[0], picture.expand(2, -1, -1, -1), picture[..., :8]):
        with pytest.raises(InputError, match="tiny expects"):
            attention_maps(model, image)
    with pytest.raises(InputError, match="12 tokens"):
        attention.to_patches(model, torch.zeros(12, 12))
    model.module.train()
    with pytest.raises(InputError, match="eval"):
        attention_maps(model, picture)
