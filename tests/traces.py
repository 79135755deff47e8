"""What a use of a network must not leave behind."""

from torch import nn


def hooks(module: nn.Module) -> int:
    """How many hooks of any kind sit on the module and everything in it."""
    return sum(
        len(store)
        for part in module.modules()
        for name, store in vars(part).items()
        if "_hooks" in name and store
    )


def switches(module: nn.Module) -> list[tuple]:
    """Every part's training flag, and whether it works in place."""
    return [
        (name, part.training, getattr(part, "inplace", None))
        for name, part in module.named_modules()
    ]
