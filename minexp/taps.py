"""Reading and replacing activations, counting passes. The only file that registers hooks."""

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from minexp.errors import InputError

ACTIVATIONS = frozenset(  # class names, torch's, timm's own and others': "after the non-linearity"
    {"ReLU", "ReLU6", "LeakyReLU", "PReLU", "ELU", "CELU", "SELU", "GELU", "GELUTanh", "QuickGELU"}
    | {"SiLU", "Swish", "Mish", "Hardswish", "HardSwish", "Tanh"}
)


@contextmanager
def read(module: nn.Module, taps: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Collect the outputs of the named submodules during the forward passes inside the block.

    Yields a dict tap -> activations (N, C, h, w), (N, T, D) or (N, D), overwritten by every
    forward pass and with gradients if the pass had them. On exit, by an error too, no hook is left.

    Raises:
        InputError: a name that is no submodule; the nearest right ones are listed.
    """
    activations: dict[str, Tensor] = {}
    submodules = _named(module, taps)
    handles = [
        submodules[tap].register_forward_hook(
            lambda _module, _inputs, output, tap=tap: activations.__setitem__(tap, output)
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


def trace(module: nn.Module, image: Tensor) -> list[tuple[str, Tensor, int]]:
    """Every submodule's output of one forward pass, in the order in which they end.

    (name, output, its version: how often it had been written in place). Outputs that are no
    single tensor are left out; a module that runs twice is there twice.
    """
    found: list[tuple[str, Tensor, int]] = []

    def note(name: str):
        def hook(_module, _inputs, output):
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
            output is no single tensor, or is overwritten in place by what follows.
    """
    _named(module, taps)
    if len(set(taps)) < len(taps):
        raise InputError(f"taps={', '.join(taps)}: one is named twice")
    last = {name: (output, version) for name, output, version in trace(module, image)}
    for tap in taps:
        if tap not in last:
            raise InputError(f"tap {tap!r} does not run, or its output is no single tensor")
        output, version = last[tap]
        if output._version != version:
            raise InputError(
                f"tap {tap!r} is overwritten in place by what follows it; tap the next module"
            )
    return tuple(name for name in last if name in set(taps))


def default(module: nn.Module, image: Tensor) -> tuple[str, ...]:
    """Which outputs to match (paper 000, section 3.1.1), by what runs on ``image`` (1, C, H, W).

    Where the children of one container all give tokens (N, T, D) of the same shape, as the blocks
    of a transformer do: these. Else, for every resolution, the last map (N, C, h, w) after a
    non-linearity. Where no map follows one, as in ConvNeXt and Swin, whose non-linearities lie
    inside their blocks: the last stage of every resolution, whatever the layout of its maps.
    """
    records = trace(module, image)
    return _token_blocks(module, records) or _last_maps(module, records)


def _token_blocks(module: nn.Module, records: list[tuple[str, Tensor, int]]) -> tuple[str, ...]:
    shapes = {name: tuple(output.shape) for name, output, _ in records}
    for container, part in module.named_modules():
        if not isinstance(part, nn.Sequential | nn.ModuleList) or len(part) < 2:
            continue
        prefix = f"{container}." if container else ""
        names = [prefix + child for child, _ in part.named_children()]
        first = shapes.get(names[0], ())
        if len(first) == 3 and all(shapes.get(name) == first for name in names):
            return tuple(names)
    return ()


def _last_maps(module: nn.Module, records: list[tuple[str, Tensor, int]]) -> tuple[str, ...]:
    submodules = dict(module.named_modules())
    activations: dict[int, str] = {}  # number of positions -> the last module that gives such maps
    stages: dict[int, tuple[str, Tensor]] = {}
    for name, output, version in records:
        positions = _positions(output)
        if positions < 2 or output._version != version:
            continue
        part = submodules[name]
        if _is_non_linear(part) and output[0, 0].numel() == positions:
            activations.pop(positions, None)  # a later run moves it to the end
            activations[positions] = name
        if any(part.children()) and stages.get(positions, ("", None))[1] is not output:
            stages[positions] = (name, output)
    return tuple(activations.values()) or tuple(name for name, _ in stages.values())


def _positions(output: Tensor) -> int:
    """How many places a map (N, C, h, w) or (N, h, w, C) has; 0 for what is no map."""
    if output.ndim != 4:
        return 0
    _, a, b, c = output.shape
    return a * b if a == b != c else b * c


def _is_non_linear(part: nn.Module) -> bool:
    """An activation, or timm's normalisation that ends in one."""
    names = {type(part).__name__, type(getattr(part, "act", None)).__name__}
    return not names.isdisjoint(ACTIVATIONS)
