"""Photographs to explain: the ones that installed packages carry, and a folder of your own."""

import csv
import importlib.util
import os
from pathlib import Path

from minexp.errors import RunError
from minexp.images import refuse, regular_file

_COLUMNS = ("file", "index", "description", "sha256")

# name: (package, file inside it, licence as scikit-image's docstrings and scikit-learn's README
# state it)
BUNDLED: dict[str, tuple[str, str, str]] = {
    "chelsea": ("skimage", "data/chelsea.png", "CC0 by the photographer, Stefan van der Walt"),
    "coffee": ("skimage", "data/coffee.png", "CC0 by the photographer, Rachel Michetti"),
    "rocket": ("skimage", "data/rocket.jpg", "public domain, SpaceX"),
    "motorcycle": (
        "skimage",
        "data/motorcycle_left.png",
        "none stated; cite Scharstein et al., GCPR 2014",
    ),
    "camera": ("skimage", "data/camera.png", "CC0 by the photographer, Lav Varshney"),
    "astronaut": (
        "skimage",
        "data/astronaut.png",
        "no known copyright restrictions, public domain, NASA",
    ),
    "china": ("sklearn", "datasets/images/china.jpg", "CC BY 2.0, danielbuechele on Flickr"),
    # The README's credit line says danielbuechele, its links lead to vultilion.
    "flower": ("sklearn", "datasets/images/flower.jpg", "CC BY 2.0, vultilion on Flickr"),
}


def bundled_images() -> dict[str, Path]:
    """Name -> file of the photographs in BUNDLED (which states their licences), in that order.

    The packages are located, not imported. Raises RunError if a file is missing.
    """
    found = {}
    for name, (package, file, _) in BUNDLED.items():
        spec = importlib.util.find_spec(package)
        places = spec.submodule_search_locations if spec else None
        root = places[0] if places else package
        found[name] = Path(root) / file
        if not found[name].is_file():
            raise RunError(
                f"the bundled picture {name!r} is missing: expected {str(found[name])!r}; "
                f"install the package {package!r} again"
            )
    return found


def sample_images() -> dict[str, dict]:
    """The pictures of the folder MINEXP_IMAGES: stem -> {"path", "index", "description", "sha256"}.

    Listed by its ``manifest.csv``, in that order; {} if the variable is unset or empty.
    ``index`` is the ImageNet class. Checksums are handed on, not computed. Raises InputError if
    the folder, the manifest, a column or a listed file is missing or cannot be read.
    """
    if not os.environ.get("MINEXP_IMAGES"):
        return {}
    folder = Path(os.environ["MINEXP_IMAGES"])
    if not os.path.isdir(folder):
        raise refuse(
            folder,
            "is not a folder",
            "expected one with a manifest.csv; correct or unset MINEXP_IMAGES",
        )
    manifest = regular_file(folder / "manifest.csv")
    try:
        with manifest.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file, strict=True))
    except (OSError, ValueError, csv.Error) as error:
        raise refuse(
            manifest, "cannot be read", "expected CSV in UTF-8; save it so", error
        ) from None
    missing = [column for column in _COLUMNS if not rows or column not in rows[0]]
    if missing:
        raise refuse(manifest, f"has no rows or no column {', '.join(missing)}", "add them")
    samples = dict(_sample(row, manifest, line) for line, row in enumerate(rows, start=1))
    if len(samples) < len(rows):
        raise refuse(
            manifest, "lists a file name's stem twice", "expected distinct stems; rename a file"
        )
    return samples


def _sample(row: dict[str, str | None], manifest: Path, line: int) -> tuple[str, dict]:
    """Row number ``line`` of the manifest as (file stem, entry). Raises InputError."""
    name, index, description, digest = (row[column] or "" for column in _COLUMNS)
    path = manifest.parent / name
    if (
        Path(name).name != name or not path.is_file()
    ):  # a name with a folder in it could lead anywhere
        raise refuse(
            manifest, f"row {line} names {name!r}", "expected a file in the same folder; correct it"
        )
    if not (index.isascii() and index.isdigit() and digest):
        raise refuse(
            manifest, f"row {line} is incomplete", "expected a whole number as index and a sha256"
        )
    return path.stem, {
        "path": path,
        "index": int(index),
        "description": description,
        "sha256": digest,
    }


PAPER_SUBJECTS = (  # of paper 000's figures 2, 4, 6 and 7, as the ends of the samples' file names
    *("EntleBucher", "house_finch", "otter", "zucchini", "Granny_Smith", "jackfruit"),
    *("window_shade", "basketball", "Egyptian_cat", "aircraft_carrier", "toilet_seat", "stinkhorn"),
)


def paper_subjects() -> list[Path]:
    """Those of :func:`sample_images` that show the paper's own subjects, in its order."""
    known = sample_images()
    return [
        known[stem]["path"]
        for subject in PAPER_SUBJECTS
        for stem in known
        if stem.endswith(f"_{subject}")
    ]
