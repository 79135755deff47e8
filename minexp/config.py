"""Every number that steers an explanation, in two frozen dataclasses; presets cite the paper."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any

from minexp.errors import InputError

MOST = 2**31 - 2  # of any count; the backgrounds of a seed's final test have the seed after it
CRITERIA = ("label", "confidence")
_COUNTS = (  # of ExplainConfig: the field and its least value
    *(("steps", 1), ("grid", 8), ("noise_draws", 0), ("cell", 1), ("patch", 1), ("seed", 0)),
)
ALIASES = MappingProxyType(  # the paper's subscripts
    {
        "act": "activation",
        "ce": "label",
        "kl": "distribution",
        "bin": "binarization",
        "tv": "total_variation",
        "rob": "robustness",
    }
)


@dataclass(frozen=True)
class LossWeights:
    """The lambdas of paper 000, section 3.2, one a term of :mod:`minexp.losses`; all >= 0."""

    activation: float = 0.5
    label: float = 4.0
    distribution: float = 1.0
    area: float = 300.0
    binarization: float = 0.3
    total_variation: float = 500.0
    robustness: float = 6.0

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if not _is_number(value) or not math.isfinite(value) or value < 0:
                raise InputError(f"loss weight {item.name}={value!r}: expected a number >= 0")


@dataclass(frozen=True)
class ExplainConfig:
    """How one explanation is sought.

    Attributes:
        weights: the lambdas.
        steps: Adam steps, >= 1.
        learning_rate: of the U-Net's weights.
        grid: side of the square grid of mask logits, at most the image's side; None: 56, or the
            image's side where that is less. The mask itself has the image's size.
        adapt: if True the area weight acts, and total variation's in full, only while the mask
            exceeds a budget, which shrinks after three passing steps in a row and grows after one
            that does not pass; if False both act always.
        hard: if True the loss sees the mask thresholded, straight through (paper 000, section
            3.1.2); if False the soft one. Thresholded it is judged and reported either way.
        criterion: "label" or "confidence" (also at least the image's own confidence).
        confidence_slack: how far below the image's the masked image's confidence may lie; where
            the image's is 0.9999, as on digits, "at least" leaves nothing to remove.
        noise_draws: Gaussian backgrounds a mask must survive to be feasible; 0: none.
        noise_lead: by how many logits the label must lead on each of them, or by half its lead on
            the image where that is less. A search among many masks ends with one that just passes
            the backgrounds it was tried on; room on few says more of fresh ones than none on many.
        minimal: whether to delete from the mask found what the criterion does not need, cell by
            cell, and to certify the result (:mod:`minexp.minimality`).
        cell: side of those cells in pixels; None: the patch's, or a 28th of the image's side.
        patch: side in pixels of squares that are on or off as a whole, as a transformer's patches
            are seen; None: the mask's outlines are free.
        seed: of the network's start and of all noise.
        taps: names of the submodules whose activations are matched; None: the model's own.
        tap_weights: alpha_l per tap name; taps not named count 1.
    """

    weights: LossWeights = field(default_factory=LossWeights)
    steps: int = 300
    learning_rate: float = 2e-3
    grid: int | None = None
    adapt: bool = True
    hard: bool = True
    criterion: str = "confidence"
    confidence_slack: float = 0.0
    noise_draws: int = 64
    noise_lead: float = 1.5
    minimal: bool = True
    cell: int | None = None
    patch: int | None = None
    seed: int = 0
    taps: tuple[str, ...] | None = None
    tap_weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, least in _COUNTS:
            value = getattr(self, name)
            if name in ("grid", "cell", "patch") and value is None:
                continue
            if type(value) is not int or not least <= value <= MOST:
                raise InputError(f"{name}={value!r}: expected an integer from {least} to {MOST}")
        if not _is_number(self.learning_rate) or not 0 < self.learning_rate < math.inf:
            raise InputError(f"learning_rate={self.learning_rate!r}: expected a number > 0")
        if not _is_number(self.noise_lead) or not 0 <= self.noise_lead < math.inf:
            raise InputError(f"noise_lead={self.noise_lead!r}: expected a number >= 0")
        if not _is_number(self.confidence_slack) or not 0 <= self.confidence_slack <= 1:
            raise InputError(
                f"confidence_slack={self.confidence_slack!r}: expected a number from 0 to 1"
            )
        for name in ("adapt", "hard", "minimal"):
            if type(getattr(self, name)) is not bool:
                raise InputError(f"{name}={getattr(self, name)!r}: expected true or false")
        if self.criterion not in CRITERIA:
            raise InputError(f"criterion={self.criterion!r}: expected one of {', '.join(CRITERIA)}")
        if self.patch is not None and self.grid is not None:
            raise InputError(f"patch={self.patch}, grid={self.grid}: expected one of the two")
        if self.taps is not None:
            named = isinstance(self.taps, tuple | list) and len(self.taps) > 0
            if not named or not all(isinstance(tap, str) for tap in self.taps):
                raise InputError(f"taps={self.taps!r}: expected names of submodules")
            object.__setattr__(self, "taps", tuple(self.taps))
        if not isinstance(self.weights, LossWeights):
            raise InputError(f"weights={self.weights!r}: expected LossWeights")
        if not isinstance(self.tap_weights, Mapping):
            raise InputError(f"tap_weights={self.tap_weights!r}: expected a mapping tap -> number")
        # a copy: what the caller does to theirs later must not get past the checks below
        object.__setattr__(self, "tap_weights", dict(self.tap_weights))
        for tap, alpha in self.tap_weights.items():
            if not _is_number(alpha) or not math.isfinite(alpha) or alpha < 0:
                raise InputError(f"tap weight {tap}={alpha!r}: expected a number >= 0")

    @property
    def deleted(self) -> int | None:
        """The side asked for of the cells that are deleted: ``cell``, else ``patch``."""
        return self.patch if self.cell is None else self.cell


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return not abs(value) > 1e300  # larger integers are no floats; nan passes on


def configure(config: ExplainConfig, changes: Mapping[str, Any]) -> ExplainConfig:
    """``config`` with fields changed by name: a loss weight's, or one of ExplainConfig's own.

    The paper's short names (:data:`ALIASES`) serve too: ``tv`` is ``total_variation``. ``taps``
    may be one text, names joined by commas.

    Raises:
        InputError: an unknown name, or a value out of range.
    """
    changes = {ALIASES.get(name, name): value for name, value in changes.items()}
    if isinstance(changes.get("taps"), str):
        changes["taps"] = tuple(changes["taps"].split(","))
    weight_names = {item.name for item in fields(LossWeights)}
    own_names = {item.name for item in fields(ExplainConfig)} - {"weights"}
    unknown = sorted(changes.keys() - weight_names - own_names)
    if unknown:
        valid = ", ".join(sorted(weight_names) + sorted(own_names))
        raise InputError(f"unknown setting {unknown[0]!r}; valid: {valid}")
    weights = {name: value for name, value in changes.items() if name in weight_names}
    own = {name: value for name, value in changes.items() if name in own_names}
    return replace(config, weights=replace(config.weights, **weights), **own)


def parse_settings(given: Sequence[str], where: str) -> dict[str, object]:
    """Changes for :func:`configure` from texts ``NAME=VALUE``, the value as JSON, or as it is.

    Of a name given twice the later value holds; but ``taps=A`` and ``taps=B`` are two taps.

    Raises:
        InputError: a text without an equals sign; ``where`` it was given is told.
    """
    changes: dict[str, object] = {}
    for setting in given:
        name, separator, value = setting.partition("=")
        if not separator:
            raise InputError(f"{where} {setting}: expected NAME=VALUE")
        if name == "taps" and isinstance(earlier := changes.get(name), str | list):
            value = ",".join([*([earlier] if isinstance(earlier, str) else earlier), value])
        try:
            changes[name] = json.loads(value)
        except ValueError:
            changes[name] = value
        if name == "taps" and isinstance(changes[name], int | float):
            changes[name] = value  # the name of a submodule: a Sequential's are numbers
    return changes


def _paper(act, ce, kl, area, binarization, tv, rob) -> ExplainConfig:
    """A lambda set in the paper's order, used as the paper does: fixed, from first step to last."""
    weights = LossWeights(act, ce, kl, area, binarization, tv, rob)
    return ExplainConfig(
        weights=weights,
        adapt=False,
        noise_lead=0.0,
        minimal=False,
    )


@dataclass(frozen=True)
class Preset:
    """A named configuration and where it comes from."""

    config: ExplainConfig
    source: str


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "default": Preset(ExplainConfig(), "minexp; adapted weights, chosen on photographs"),
        "digits": Preset(
            ExplainConfig(
                weights=LossWeights(0.2, 1.0, 0.4, 100.0, 0.3, 4.0, 6.0),
                confidence_slack=0.05,
                noise_draws=32,
                noise_lead=0.0,
            ),
            "minexp; adapted weights, settled on training digits",
        ),
        "small": Preset(
            ExplainConfig(
                weights=LossWeights(total_variation=70.0),
                noise_draws=32,
                noise_lead=0.5,
                cell=2,
            ),
            "minexp; adapted weights for pictures of 32 pixels",
        ),
        "house_finch": Preset(
            _paper(1.0, 4.0, 0.4, 15.0, 0.3, 15.0, 6.0), "paper 000, section 6.1"
        ),
        "zucchini": Preset(_paper(2.0, 16.0, 5.0, 45.0, 3.0, 23.0, 20.0), "paper 000, section 6.1"),
        "granny_smith": Preset(
            _paper(0.8, 10.0, 0.64, 24.0, 1.8, 15.0, 2.0), "paper 000, section 6.1"
        ),
        "jackfruit": Preset(_paper(0.5, 5.0, 0.54, 5.3, 1.4, 2.7, 3.2), "paper 000, section 6.1"),
        "window_shade": Preset(
            _paper(1.5, 25.0, 7.5, 80.0, 2.5, 35.0, 25.0), "paper 000, section 6.1"
        ),
        "basketball": Preset(
            _paper(4.5, 15.0, 5.0, 55.0, 1.5, 57.0, 45.0), "paper 000, section 6.2"
        ),
        "egyptian_cat": Preset(
            _paper(4.5, 15.0, 5.0, 56.0, 1.5, 28.0, 28.0), "paper 000, section 6.2"
        ),
        "second_basketball": Preset(
            _paper(4.5, 15.0, 5.0, 55.0, 1.5, 27.0, 28.0), "paper 000, section 6.2"
        ),
        "mnist": Preset(
            _paper(0.6, 4.0, 0.54, 100.0, 1.2, 50.0, 10.0), "paper 000, section 6.3 and appendix A"
        ),
    }
)


def preset(name: str) -> ExplainConfig:
    """The configuration of a preset. Raises InputError naming the valid ones."""
    if name not in PRESETS:
        raise InputError(f"unknown preset {name!r}; choose one of: {', '.join(PRESETS)}")
    return PRESETS[name].config


def default_preset(size: Sequence[int], channels: int) -> str:
    """The preset that suits a model's input (H, W): grayscale digits, small pictures, photographs.

    An outline weighs more in few pixels, and a digit's confidence lies so close to 1 that no pixel
    could go without some slack.
    """
    if max(size) <= 28 and channels == 1:
        return "digits"
    return "small" if max(size) <= 64 else "default"
