"""Reading and replacing activations, counting passes. The only file that registers hooks."""

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from minexp.errors import InputError

ACTIVATIONS = frozenset(  # class names, torch's, timm's own and others': "after the non-linearity"
    {"ReLU", "ReLU6", "LeakyReLU", "PReLU", "ELU", "CELU", "SELU", "GELU", "GELUTanh", "QuickGELU"}
    | {"SiLU", "Swish", "Mish", "Hardswish", "HardSwish", "Tanh"}
)
LAYERS = (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, nn.AvgPool2d)  # whose maps serve at need


@contextmanager
def read(module: nn.Module, taps: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Collect the outputs of the named submodules during the forward passes inside the block.

    Yields a dict tap -> activations (N, C, h, w), (N, T, D) or (N, D), overwritten by every
    forward pass and with gradients if the pass had them; of a tuple or a list its first. On exit,
    by an error too, no hook is left.

    Raises:
        InputError: a name that is no submodule; the nearest right ones are listed.
    """
    activations: dict[str, Tensor] = {}
    submodules = _named(module, taps)
    handles = [
        submodules[tap].register_forward_hook(
            lambda _module, _inputs, output, tap=tap: activations.__setitem__(tap, _first(output))
        )
        for tap in taps
    ]
    try:
        yield activations
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def read_inputs(module: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """As :func:`read`, but each submodule's first input instead of its output."""
    inputs: dict[str, Tensor] = {}
    submodules = _named(module, names)
    handles = [
        submodules[name].register_forward_pre_hook(
            lambda _module, given, name=name: inputs.__setitem__(name, given[0])
        )
        for name in names
    ]
    try:
        yield inputs
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def replace(module: nn.Module, changes: Mapping[str, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Let the named submodules give ``changes[tap](output)`` instead of ``output`` in the block.

    A function must return a new tensor, not write into the one it is given. On exit, by an error
    too, no hook is left and the module computes what it did before.

    Raises:
        InputError: a name that is no submodule; the nearest right ones are listed.
    """
    submodules = _named(module, changes)
    handles = [
        submodules[tap].register_forward_hook(
            lambda _module, _inputs, output, change=change: change(output)
        )
        for tap, change in changes.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def count(module: nn.Module) -> Iterator[list[int]]:
    """Count what goes through ``module`` inside the block.

    Yields a list with one number a forward pass: the size of its batch.
    """
    batches: list[int] = []
    handle = module.register_forward_hook(
        lambda _module, inputs, _output: batches.append(len(inputs[0]))
    )
    try:
        yield batches
    finally:
        handle.remove()


def _named(module: nn.Module, names: Iterable[str]) -> dict[str, nn.Module]:
    submodules = {name: part for name, part in module.named_modules() if name}
    for name in names:
        if name not in submodules:
            near = difflib.get_close_matches(name, submodules, n=5, cutoff=0.3)
            nearest = f"; the nearest: {', '.join(near)}" if near else ""
            raise InputError(f"no submodule named {name!r} to tap{nearest}")
    return submodules


def _first(output: Any) -> Any:
    """The output, or the first of a tuple, as blocks return it that pass more than tokens on."""
    return output[0] if isinstance(output, tuple | list) and output else output


def trace(module: nn.Module, image: Tensor) -> list[tuple[str, Tensor, int]]:
    """Every submodule's output of one forward pass, in the order in which they end.

    (name, output, its version: how often it had been written in place). Outputs that neither are
    nor begin with a tensor are left out; a module that runs twice is there twice.
    """
    found: list[tuple[str, Tensor, int]] = []

    def note(name: str):
        def hook(_module, _inputs, output):
            output = _first(output)
            if isinstance(output, Tensor):
                found.append((name, output, output._version))

        return hook

    handles = [part.register_forward_hook(note(name)) for name, part in module.named_modules()]
    try:
        with torch.no_grad():
            module(image)
    finally:
        for handle in handles:
            handle.remove()
    return [item for item in found if item[0]]


def check(module: nn.Module, taps: Sequence[str], image: Tensor) -> tuple[str, ...]:
    """The taps in the order in which they fire on ``image`` (1, C, H, W).

    Raises:
        InputError: a name that is no submodule or is there twice, one that does not run, whose
            output is no tensor of real numbers, has another number of rows than the image (parts
            of one image, as the windows of Swin's attention), or is overwritten in place by what
            follows.
    """
    _named(module, taps)
    if len(set(taps)) < len(taps):
        raise InputError(f"taps={', '.join(taps)}: one is named twice")
    last = _last_runs(trace(module, image))
    for tap in taps:
        if tap not in last:
            raise InputError(f"tap {tap!r} does not run, or its output is no tensor")
        output, version = last[tap]
        if not output.is_floating_point() or output.shape[:1] != image.shape[:1]:
            raise InputError(
                f"tap {tap!r} gives {tuple(output.shape)} {output.dtype} for one image; expected "
                "(1, ...) of real numbers; tap what contains it"
            )
        if output._version != version:
            raise InputError(
                f"tap {tap!r} is overwritten in place by what follows it; tap the next module"
            )
    return tuple(name for name in last if name in set(taps))


Runs = dict[str, tuple[Tensor, int]]  # name -> last output and its version, in the order they end


def _last_runs(records: list[tuple[str, Tensor, int]]) -> Runs:
    last: Runs = {}
    for name, output, version in records:
        last.pop(name, None)  # a later run moves it to the end
        last[name] = (output, version)
    return last


def default(module: nn.Module, image: Tensor) -> tuple[str, ...]:
    """Which outputs to match (paper 000, section 3.1.1), by what runs on ``image`` (1, C, H, W).

    A transformer's: its blocks, the children of a container that all give tokens (N, T, D). Else,
    for every resolution, the last map (N, C, h, w) after a non-linearity, at best one outside the
    stages that lead on to another resolution. Where a resolution has none, as in ConvNeXt and
    Swin, whose non-linearities lie inside their blocks: its last stage, whatever the layout of its
    maps. Where a network has neither (its non-linearities are no modules): the last map of each.
    """
    records = trace(module, image)
    return _token_blocks(module, records, image) or _last_maps(module, records, image)


def _token_blocks(
    module: nn.Module, records: list[tuple[str, Tensor, int]], image: Tensor
) -> tuple[str, ...]:
    """The children of the innermost containers whose children are blocks and all give tokens."""
    runs = _last_runs(records)
    tokens = {name for name, (out, _) in runs.items() if out.ndim == 3 and len(out) == len(image)}
    blocks: dict[str, list[str]] = {}
    for container, part in module.named_modules():
        if not isinstance(part, nn.Sequential | nn.ModuleList) or len(part) < 2:
            continue
        names = [f"{container}.{name}".lstrip(".") for name, _ in part.named_children()]
        if tokens.issuperset(names) and all(map(_is_block, part)):
            blocks[container] = names
    innermost = [c for c in blocks if not any(o != c and _lies_in(o, c) for o in blocks)]
    return tuple(name for container in innermost for name in blocks[container])


def _is_block(part: nn.Module) -> bool:
    """Of more than one layer: neither a step inside a block nor an embedding between blocks."""
    return sum(isinstance(inside, nn.Linear | nn.Conv2d) for inside in part.modules()) > 1


def _last_maps(
    module: nn.Module, records: list[tuple[str, Tensor, int]], image: Tensor
) -> tuple[str, ...]:
    parts, runs = dict(module.named_modules()), _last_runs(records)
    places = {name: _places(output, image) for name, (output, _) in runs.items()}
    stages = {name for name in places if _is_stage(name, parts[name], places)}
    activated = {id(out) for name, out, _ in records if _is_activated(parts[name], out, image)}
    best: dict[int, tuple[int, str]] = {}  # number of places -> rank and name
    for name, (output, version) in runs.items():
        here, rank = places[name], _rank(parts[name], name in stages, id(output) in activated)
        if here < 2 or output._version != version:
            continue
        if rank == 3 and any(_lies_in(name, s) and places[s] not in (0, here) for s in stages):
            rank = 2
        if rank >= best.get(here, (0, ""))[0]:
            best[here] = (rank, name)
    least = min(1, max((rank for rank, _ in best.values()), default=0))
    return tuple(name for rank, name in best.values() if rank >= least)


def _rank(part: nn.Module, stage: bool, activated: bool) -> int:
    """How well a map serves: 3 after a non-linearity, 1 as a stage's, 0 as a layer's, or not: -1.

    What merely passes an activated map on, as a dropout does, does not stand for it.
    """
    if activated and (stage or type(part).__name__ in ACTIVATIONS):
        return 3
    return int(stage) if stage or isinstance(part, LAYERS) else -1


def _is_stage(name: str, part: nn.Module, places: dict[str, int]) -> bool:
    """Has children, and the maps that they give are of one resolution: not a row of stages."""
    inside = {places.get(f"{name}.{child}", 0) for child, _ in part.named_children()}
    return any(part.children()) and len(inside - {0, 1}) <= 1


def _lies_in(name: str, container: str) -> bool:
    return not container or name.startswith(f"{container}.")


def _places(output: Tensor, image: Tensor) -> int:
    """How many places a map (N, C, h, w) or (N, h, w, C) of the images has; 0 for what is none.

    A map has the images' proportions, to two pixels; tokens by features (1, heads, T, D) do not.
    """
    if output.ndim != 4 or len(output) != len(image):
        return 0
    height, width = image.shape[-2:]
    for h, w in (output.shape[2:], output.shape[1:3]):
        if abs(h * width - w * height) <= 2 * max(height, width):
            return h * w
    return 0


def _is_activated(part: nn.Module, output: Tensor, image: Tensor) -> bool:
    """Whether a part is an activation that gives a map (N, C, h, w)."""
    maps = output.ndim == 4 and output[0, 0].numel() == _places(output, image)
    return maps and type(part).__name__ in ACTIVATIONS
