"""The attention matrices of a vision transformer, and how much they look at each patch.

Attention modules keep the matrix to themselves, and fused kernels never make it. So it is computed
anew from each module's input and weights, and believed only where it leads to the module's own
output: what the formula leaves out (a mask, a bias) is refused.
"""

from collections.abc import Iterable
from contextlib import ExitStack
from functools import reduce

import torch
from timm.models.vision_transformer import Attention, ParallelThingsBlock
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from minexp import taps
from minexp.classifier import Classifier
from minexp.errors import InputError

PLAIN = (Attention, nn.MultiheadAttention)  # exactly these: one that inherits may do otherwise


@torch.no_grad()
def attention_maps(model: Classifier, image: Tensor) -> Tensor:
    """Each layer's and head's attention (L, H, T, T) on ``image`` (1, C, H, W), shallow to deep.

    softmax(q k^T / sqrt(D_h)), row = who looks, column = at whom; rows sum to 1 (Vaswani et al.,
    NeurIPS 2017, equation 1; Dosovitskiy et al., ICLR 2021, appendix A, equations 5 and 6). One
    forward pass, whose output is as ever. InputError for a model without attention, or with one
    that has windows, a position bias, RoPE or a mask, lies parallel to another or runs twice.
    """
    expected = (1, len(model.mean), *model.size)
    if tuple(image.shape) != expected or model.module.training:
        raise InputError(f"{model.name} expects an image of shape {expected}, and to be in eval()")
    parts = _attention_modules(model)
    with taps.read_inputs(model.module, tuple(parts)) as inputs, ExitStack() as stack:
        outputs = stack.enter_context(taps.read(model.module, tuple(parts)))
        runs = {name: stack.enter_context(taps.count(part)) for name, part in parts.items()}
        model(image.detach().to(model.device))
    if odd := [f"{name} on {batches}" for name, batches in runs.items() if batches != [1]]:
        raise InputError(f"{model.name}: {odd[0]} sequences; expected one run on all tokens, [1]")
    # ``inputs`` has the order in which they ran, which need not be that of their names.
    maps = [_checked(parts[k], inputs[k], outputs[k], f"{model.name}: {k}") for k in inputs]
    if len({found.shape for found in maps}) > 1:
        raise InputError(f"{model.name}: its layers differ in heads or tokens, as in a pyramid")
    return torch.cat(maps)


def _attention_modules(model: Classifier) -> dict[str, nn.Module]:
    """The attention modules that the formula describes. InputError for none, or others beside."""
    named = {name: part for name, part in model.module.named_modules() if name}
    plain = {name: part for name, part in named.items() if type(part) in PLAIN}
    others = {type(part) for part in named.values() if _is_other(part, plain.values())}
    if others or not plain:
        found = ", ".join(sorted(f"{kind.__module__}.{kind.__name__}" for kind in others))
        raise InputError(
            f"{model.name} has {found or 'no attention'}; expected a vision transformer with only "
            "timm.layers.Attention or torch.nn.MultiheadAttention, one a block"
        )
    return plain


def _is_other(part: nn.Module, plain: Iterable[nn.Module]) -> bool:
    """Attention of another kind. What holds a plain one is its frame; what pools comes after."""
    kind = type(part).__name__.lower()
    named = ("attention" in kind or "attn" in kind) and "pool" not in kind
    beside = type(part) is ParallelThingsBlock  # attentions without an order, shallow to deep
    alike = named or isinstance(part, PLAIN)
    return beside or (alike and set(plain).isdisjoint(part.modules()))


def _checked(part: nn.Module, tokens: Tensor, output: Tensor, where: str) -> Tensor:
    """One module's attention (1, H, T, T), if it leads from ``tokens`` (1, T, D) to ``output``."""
    attention, again = _recomputed(part, tokens)
    # Kernels round differently; a mask or a bias shows far above that.
    tolerance = max(1e-3, 8 * torch.finfo(output.dtype).eps) * output.abs().max()
    square = attention.shape[2] == attention.shape[3] == tokens.shape[1]
    if not square or not (again - output).abs().max() <= tolerance:
        raise InputError(f"{where} is more than softmax(q k^T / sqrt(D)) v; a mask?")
    return attention


def _recomputed(part: nn.Module, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """The attention (1, H, T, T) on tokens (1, T, D), and the output (1, T, D) it leads to."""
    if isinstance(part, nn.MultiheadAttention):
        return part(tokens, tokens, tokens, average_attn_weights=False)[::-1]
    assert isinstance(part, Attention)  # PLAIN has no third
    packed = part.qkv(tokens).unflatten(2, (3, part.num_heads, -1))  # (1, T, 3, H, D/H)
    q, k, v = packed.permute(2, 0, 3, 1, 4)  # (1, H, T, D/H) each
    attention = (part.scale * part.q_norm(q) @ part.k_norm(k).transpose(2, 3)).softmax(3)
    mixed = (attention @ v).transpose(1, 2).flatten(2)  # (1, H, T, D/H) -> (1, T, D)
    mixed = getattr(part, "norm", nn.Identity())(mixed)  # older timm has neither norm nor gate
    if (gate := getattr(part, "gate", None)) is not None:
        mixed = mixed * gate(tokens).sigmoid()
    return attention, part.proj(mixed)


def rollout(maps: Tensor) -> Tensor:
    """Attention rollout (T, T) of ``maps`` (L, H, T, T) (Abnar & Zuidema, ACL 2020, section 3).

    Equation 1: the product A_L ... A_1, where A = 0.5 W + 0.5 I, W the mean over heads and I the
    residual connection. Row = token of the last layer, column = token of the input.
    """
    layers = maps.mean(1) + torch.eye(maps.shape[3], dtype=maps.dtype, device=maps.device)
    layers = layers / layers.sum(2, keepdim=True)
    return reduce(lambda below, layer: layer @ below, layers)


def patch_grid(model: Classifier) -> tuple[int, int]:
    """How many (rows, columns) of patches there are; row by row they are the last tokens."""
    return _layout(model)[0]


def prefix_tokens(model: Classifier) -> int:
    """How many tokens come before the patches: class token, distillation token, registers."""
    return _layout(model)[1]


def to_patches(model: Classifier, matrix: Tensor) -> Tensor:
    """How much each patch (rows, columns) is looked at in an attention (T, T).

    By the class token; where the classifier reads none (it pools), by the patches on average.
    """
    grid, prefix, class_token = _layout(model)
    if len(matrix) != prefix + grid[0] * grid[1]:
        raise InputError(f"{model.name}: {len(matrix)} tokens; expected {prefix} + {grid} patches")
    looked_at = matrix[0] if class_token else matrix[prefix:].mean(0)
    return looked_at[prefix:].reshape(grid)


def _layout(model: Classifier) -> tuple[tuple[int, int], int, bool]:
    """The grid of patches, the number of tokens before it, and whether the first is classified."""
    parts: Iterable = model.module.modules()
    for part in parts:  # the transformer may lie inside one's own module
        if isinstance(part, VisionTransformer):
            return (part.image_size // part.patch_size,) * 2, 1, True
        grid = getattr(getattr(part, "patch_embed", None), "grid_size", None)
        if grid is not None and hasattr(part, "num_prefix_tokens"):
            token = getattr(part, "has_class_token", False) and part.global_pool == "token"
            return (grid[0], grid[1]), part.num_prefix_tokens, token
    raise InputError(f"{model.name}: no grid of patches; expected timm's or torchvision's ViT")
