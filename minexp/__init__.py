"""minexp: which few pixels, and which few channels, made this classifier decide?

import minexp
model = minexp.load_model("efficientnet_lite0")
explanation = minexp.explain(model, minexp.load_image("cat.jpg", model))
"""

from importlib import import_module

from minexp.public import PUBLIC

__all__ = sorted([*PUBLIC, "explain"])


def __getattr__(name: str):
    """Public names load their module, and so torch, only when asked for: --help stays instant."""
    if name == "explain":  # both the function and the file are called so: the module is callable
        return import_module("minexp.explain")
    if name not in PUBLIC:
        raise AttributeError(f"module 'minexp' has no attribute {name!r}")
    return getattr(import_module(f"minexp.{PUBLIC[name]}"), name)
