"""The circuit of a picture, or of a result's explanation beside it, written to files."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import matplotlib
import networkx as nx
from torch import Tensor
from tqdm import tqdm

from minexp import circuit_compare, circuit_html, circuit_table, drawing, figures, jobs
from minexp.ablation import Reference
from minexp.channels import NEED_MEANS, Reading, read
from minexp.circuit import CHANNELS, build, check_choice, choose
from minexp.circuit_files import write_graphml, write_json
from minexp.circuit_item import image_of, is_result, label_of, network
from minexp.classifier import Classifier
from minexp.errors import InputError
from minexp.masking import apply_mask
from minexp.paths import write_text
from minexp.references import open_reference, stem
from minexp.results import check_inputs, read_mask, read_result


def draw(given: Sequence[str], model: Classifier, out: Path, settings: Mapping) -> Iterator[str]:
    """:func:`circuit_to_files` for each argument; yields the lines to print.

    Everything is checked before the first file is written. Raises InputError.
    """
    matplotlib.use("agg")
    pictures = _checked(given, model, settings, out)
    reference = None
    if settings["ranking"] in NEED_MEANS:
        reference = circuit_table.make_reference(model, pictures)
    for item in given:
        yield circuit_to_files(item, model, out, settings, reference)


def evaluate(
    given: Sequence[str],
    model: str,
    out: Path,
    settings: Mapping,
    *,
    taps: Sequence[str] = (),
    n_jobs: int = 1,
    force: bool = False,
) -> Iterator[str]:
    """The evaluation of many images by a model of this name; yields its table.

    Raises InputError.
    """
    if settings["share"] is not None:
        raise InputError("--share goes with a drawing; expected --channels with --evaluate")
    jobs.check(n_jobs)
    _checked(given, network(model, taps), settings, out)
    with tqdm(total=len(given), unit="image") as bar:
        summary = circuit_table.evaluate_many(
            model, given, out, taps=taps, ranking=settings["ranking"],
            nodes=settings["channels"] or CHANNELS, n_jobs=n_jobs, force=force,
            on_item=lambda: bar.update(),
        )  # fmt: skip
    yield circuit_table.table(summary)


def _checked(given: Sequence[str], model: Classifier, settings: Mapping, out: Path) -> list[str]:
    """The images behind the arguments, all of them readable."""
    check_choice(**settings)
    pictures = [image_of(item) for item in given]
    check_inputs(pictures, model, [], out)
    for item in given:
        if is_result(item) and read_result(Path(item))["model"] != model.name:
            raise InputError(
                f"{item} is of {read_result(Path(item))['model']}; give that as --model"
            )
    return pictures


def circuit_to_files(
    given: str, model: Classifier, out: Path, settings: Mapping, reference: Reference | None
) -> str:
    """Write ``<stem>.circuit.json``, ``.graphml``, ``.svg`` and ``.html``; returns a line to print.

    Of a result (its JSON) also those of its explanation, ``<stem>.explanation.…``, and
    ``<stem>.comparison.json`` with ``.pair.svg``. ``settings``: ranking, channels, share.
    """
    item = image_of(given)
    image, _ = open_reference(item, model)
    name = stem(item)
    graph, about = _write(out / name, model, image, label_of(given), settings, reference)
    if not is_result(given):
        return f"{item}: {about}"
    masked = apply_mask(image, read_mask(Path(given)))
    label = graph.graph["label_index"]
    other, _ = _write(out / f"{name}.explanation", model, masked, label, settings, reference)
    reference = reference or circuit_table.make_reference(model, [item])
    found = circuit_compare.compare(model, image, masked, reference, label=label)
    found["overlap"] = circuit_compare.overlap(graph, other)
    write_text(out / f"{name}.comparison.json", json.dumps(found, indent=2) + "\n")
    pictures = (model.to_pixels(image), model.to_pixels(masked))
    figures.save_panel(out / f"{name}.pair.svg", drawing.pair_figure(graph, other, pictures))
    carried = "carry" if found["carried"] else "do NOT carry"
    return (
        f"{item}: {about}; explanation: nodes shared {found['overlap']['nodes']:.2f}; its first "
        f"{found['fraction']:.0%} of channels by {found['ranking']} {carried} the image's decision"
    )


def _write(
    base: Path,
    model: Classifier,
    image: Tensor,
    label: int | None,
    settings: Mapping,
    reference: Reference | None,
) -> tuple[nx.DiGraph, str]:
    means = reference.means if reference else None
    reading: Reading = read(model, image, label)
    chosen = choose(reading, **settings, means=means)
    graph = build(model, reading, chosen, ranking=settings["ranking"], means=means)
    pixels = model.to_pixels(image)

    def path(end: str) -> Path:
        return base.with_name(f"{base.name}.{end}")

    figures.save_panel(path("svg"), drawing.circuit_figure(graph, pixels))
    maps = circuit_html.thumbnails(graph, reading)
    circuit_html.write_html(path("html"), graph, maps, circuit_html.picture(pixels))
    write_graphml(path("graphml"), graph)
    write_json(path("circuit.json"), graph)
    numbers = f"{graph.number_of_nodes()} nodes, {graph.number_of_edges()} edges"
    untraced = f"; {graph.graph['untraced']}" if graph.graph["untraced"] else ""
    return graph, f"{graph.graph['label']} {graph.graph['confidence']:.2f}, {numbers}{untraced}"
