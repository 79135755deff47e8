"""Named variants of our method for the ablations: name -> settings, as ``bench --methods`` takes.

Section 5 and Figure 3 of paper 000 state no weights. Their rows are told here in the scale of the
paper's own sets: area and total variation at the house finch's 15 (section 6.1), three times that
("heavily weighting both") and a third ("relaxing"). As in the paper these weights hold from first
step to last; so ours is also ablated in its default, adapted search. Nothing is deleted from any
variant's mask: deletion would hide what the terms did.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from types import MappingProxyType

from minexp.config import LossWeights, parse_settings
from minexp.errors import InputError

LEVELS = (0, 5, 15, 45)  # of area and of total variation in the grid
MOST_TAPS = 24  # of a network, whose taps are told by number


@dataclass(frozen=True)
class Variant:
    """``settings`` as in "ours+…"; ``only_tap``, from 1, shallow to deep: all others weigh 0."""

    settings: str
    source: str
    only_tap: int | None = None


TERMS = tuple(item.name for item in fields(LossWeights))
_NONE = "+".join(f"{term}=0" for term in TERMS if term != "activation")
_WITHOUT = {f"without_{term}": term for term in TERMS}

VARIANTS: Mapping[str, Variant] = MappingProxyType(
    {
        "base": Variant("minimal=false", "the default search of minexp, before deletion"),
        "activation_only": Variant(
            f"preset=house_finch+{_NONE}", "section 5: only the activation matching losses"
        ),
        **{
            f"area{area}_tv{tv}": Variant(
                f"preset=house_finch+area={area}+total_variation={tv}",
                "section 5 and Figure 3, in the scale of section 6.1",
            )
            for area in LEVELS
            for tv in LEVELS
        },
        **{
            name: Variant(
                f"minimal=false+{term}=0", "section 3.2, a term of the objective left out"
            )
            for name, term in _WITHOUT.items()
        },
        **{
            f"only_tap_{k}": Variant("minimal=false", "section 3.1.1, the weights alpha_l", k)
            for k in range(1, MOST_TAPS + 1)
        },
        "soft": Variant("minimal=false+hard=false", "section 3.1.2, without the threshold"),
    }
)
FIGURE3 = MappingProxyType(  # the figure's rows, in its order
    {
        "both heavy": "area45_tv45",
        "both normal": "area15_tv15",
        "both relaxed": "area5_tv5",
        "area off": "area0_tv15",
    }
)
GROUPS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "figure3": (*FIGURE3.values(), "activation_only"),
        "grid": tuple(f"area{area}_tv{tv}" for area in LEVELS for tv in LEVELS),
        "leave_one_out": ("base", *_WITHOUT),
        "threshold": ("base", "soft"),
    }
)


def expand(names: Sequence[str], taps: Sequence[str]) -> list[str]:
    """The methods asked for, each once, with the members in place of a group's name.

    The group "taps" has one variant for each of the model's ``taps``, and "base". Settings changed
    of a group, "grid+steps=100", are changed of each member.
    """
    groups = {**GROUPS, "taps": ("base", *(f"only_tap_{k}" for k in range(1, len(taps) + 1)))}
    found = []
    for name in names:
        head, plus, changed = name.partition("+")
        found += [f"{one}{plus}{changed}" for one in groups[head]] if head in groups else [name]
    return list(dict.fromkeys(found))


def changes(name: str, taps: Sequence[str]) -> dict[str, object]:
    """A variant's settings for :func:`minexp.config.configure`, with "preset" among them.

    Raises InputError where the model has not as many ``taps``.
    """
    variant = VARIANTS[name]
    found = parse_settings(variant.settings.split("+"), f"variant {name}:")
    if variant.only_tap is None:
        return found
    if variant.only_tap > len(taps):
        raise InputError(f"method {name!r}: the model has {len(taps)} taps: {', '.join(taps)}")
    others = (tap for k, tap in enumerate(taps, 1) if k != variant.only_tap)
    return found | {"tap_weights": dict.fromkeys(others, 0.0)}
