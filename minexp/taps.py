"""Reading activations, counting passes. The only file that registers hooks."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from minexp.errors import InputError


@contextmanager
def read(module: nn.Module, taps: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Collect the outputs of the named submodules during the forward passes inside the block.

    Yields a dict tap -> activations (N, C, h, w) or (N, D), overwritten by every forward pass
    and with gradients if the pass had them. On exit, by an error too, no hook is left.

    Raises:
        InputError: a name that is no submodule.
    """
    submodules = dict(module.named_modules())
    unknown = [tap for tap in taps if tap not in submodules or tap == ""]
    if unknown:
        raise InputError(f"no submodule named {', '.join(map(repr, unknown))} to tap")
    activations: dict[str, Tensor] = {}
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
