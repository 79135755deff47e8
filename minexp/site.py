"""The paper as a site that opens from disk: ``make site``, or ``python -m minexp.site``.

Sphinx builds it from the pages in ``notebooks/`` and from the executed notebooks as they are;
nothing is computed. Every script, font and formula comes from the site itself. The packages it
takes are those of the extra ``site``.
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from html import escape
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import nbformat

from minexp import circuit_html, goals, summary
from minexp.errors import InputError, RunError
from minexp.paths import FIGURES, NOTEBOOKS, ROOT

OUT = ROOT / "build" / "site"
COUNT = 8  # notebooks of the whole paper
PAGES = ("*.md", "*.rst", "*.bib", "conf.py", "_static/*")


def build(out: Path = OUT) -> Path:
    """Build the site into the folder ``out``, which an earlier site gives way; its first page.

    Raises:
        InputError: ``out`` holds something else than a site.
        RunError: a package of the extra ``site``, or what the first page shows, is missing; or
            Sphinx fails or warns, as of a link that leads nowhere.
    """
    if out.exists() and any(out.iterdir()) and not (out / ".buildinfo").exists():
        raise InputError(f"{out}: not empty, and no site; expected a folder for the site alone")
    mathjax()
    shutil.rmtree(out, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="minexp-site-") as folder:
        sources, memory = Path(folder) / "sources", Path(folder) / "doctrees"
        gather(sources)
        options = ("-b", "html", "-q", "-W", "--keep-going", "-d", str(memory))
        command = [sys.executable, "-m", "sphinx", *options, str(sources), str(out)]
        if subprocess.run(command, cwd=ROOT).returncode:
            raise RunError("Sphinx failed; its messages are above")
    for template in (out / "_static").glob("*webpack-macros.html"):  # of the theme, no page
        template.unlink()
    return out / "index.html"


def gather(sources: Path) -> None:
    """Copy the pages and the executed notebooks, their code folded, and write the first page's."""
    for path in (path for pattern in PAGES for path in NOTEBOOKS.glob(pattern)):
        target = sources / path.relative_to(NOTEBOOKS)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    for path in executed():
        nbformat.write(folded(nbformat.read(path, 4)), sources / path.name)
    (sources / "landing.html").write_text(landing(*shown()), encoding="utf-8")


def executed() -> list[Path]:
    """The numbered notebooks that have run, in their order; not what a failed run left."""
    found = sorted((FIGURES / "executed").glob("[0-9][0-9]_*.ipynb"))
    return [path for path in found if not path.name.endswith(".partial.ipynb")]


def folded(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook with the code of each cell behind a button."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.metadata["tags"] = [*cell.metadata.get("tags", ()), "hide-input"]
    return notebook


def missing() -> list[str]:
    """The notebooks of the paper that this copy has no run of, by name, or by number alone."""
    run = {path.name[:2] for path in executed()}
    names = {path.name[:2]: path.stem for path in NOTEBOOKS.glob("[0-9][0-9]_*.ipynb")}
    numbers = (f"{number:02}" for number in range(1, COUNT + 1))
    return [names.get(number, number) for number in numbers if number not in run]


def shown() -> tuple[dict, dict]:
    """What ``python -m minexp.landing`` wrote: the curve and the circuit. Raises RunError."""
    found = [FIGURES / "landing" / f"{name}.json" for name in ("curve", "circuit")]
    if gone := [path.name for path in found if not path.is_file()]:
        raise RunError(f"figures/landing has no {gone[0]}; write it: python -m minexp.landing")
    curve, circuit = (json.loads(path.read_text(encoding="utf-8")) for path in found)
    return curve, circuit["circuit"]


def landing(curve: Mapping, circuit: Mapping) -> str:
    """The first page's two figures as HTML: the slider along the curve, and the circuit."""
    found = curve["points"][curve["found"]]
    data = {name: curve[name] for name in ("label", "points", "found")}
    text = _LANDING
    for key, value in {
        "@LABEL@": escape(curve["label"]),
        "@PHOTOGRAPH@": curve["photograph"],
        "@MASK@": found["mask"],
        "@ABOUT@": escape(f"{circuit['title']}, {circuit['about']}"),
        "@CREDIT@": escape(f"Photograph {curve['image'].partition(':')[2]}: {curve['licence']}."),
        "@SCRIPT@": (NOTEBOOKS / "_static" / "curve.js").read_text(encoding="utf-8"),
        "@CIRCUIT@": circuit_html.fragment(circuit),
        "@DATA@": json.dumps(data).replace("<", "\\u003c"),
    }.items():
        text = text.replace(key, value)
    return text


def substitutions() -> dict[str, str]:
    """Name -> text, with the numbers of the files that commands wrote, for ``{{ name }}``."""
    rows, numbers = summary.read(FIGURES / "bench" / "photographs")
    slow = summary.read(FIGURES / "bench" / "slow")[1]
    digits = summary.read(FIGURES / "bench" / "mnist")[1]["methods"]
    ours, best = numbers["methods"]["ours"], goals.best_peer(numbers, "confidence")
    assert best is not None  # the photographs' benchmark has other methods
    rival = best[0]
    reached = goals.reached(rows, numbers, slow)
    networks = json.loads((FIGURES / "models.json").read_text(encoding="utf-8"))
    return {
        "photographs": str(ours["images"]),
        "area": summary.with_interval(ours["area_median"], ".1%"),
        "noise": f"{ours['noise_kept_mean']['value']:.0%}",
        "rival": rival.replace("_", " "),
        "rival_area": f"{numbers['methods'][rival]['area_median']['value']:.0%}",
        "seconds": f"{ours['seconds_median']['value']:.0f}",
        "digits": str(digits["ours"]["images"]),
        "digit_quiet": f"{digits['ours_no_noise']['area_mean']['value']:.1%}",
        "digit_quiet_noise": f"{digits['ours_no_noise']['noise_kept_mean']['value']:.0%}",
        "digit_robust": f"{digits['ours']['area_mean']['value']:.1%}",
        "met": str(sum(goal["met"] for goal in reached)),
        "goals": str(len(reached)),
        "networks": str(sum(not network["reason"] for network in networks)),
        "missing": ", ".join(f"`{name}`" for name in missing()) or "none",
    }


def escape_bars(app, what, name, obj, options, lines: list[str]) -> None:
    """Sphinx's event: let a docstring's |m|, outside of literals, not pass for a substitution."""
    parts = re.split(r"(``.*?``)", "\n".join(lines), flags=re.DOTALL)
    parts[::2] = [part.replace("|", r"\|") for part in parts[::2]]
    lines[:] = "".join(parts).split("\n")


def mathjax() -> Path:
    """The one-file MathJax that draws formulas as SVG. Raises RunError if not installed."""
    try:
        found = files("sphinx-mathjax-offline") or ()
    except PackageNotFoundError:
        raise RunError("the site needs more packages: pip install -e '.[site]'") from None
    return Path(next(file for file in found if file.name == "tex-svg.js").locate()).resolve()


def broken_links(site: Path) -> list[str]:
    """Every relative link of the site's pages that leads to no file or no place in it."""
    pages = {path.resolve(): path.read_text(encoding="utf-8") for path in site.rglob("*.html")}
    ids = {path: set(re.findall(r'\b(?:id|name)="([^"]+)"', text)) for path, text in pages.items()}
    broken = []
    for path, text in pages.items():
        body = re.sub(r"<script\b(?![^>]*\bsrc=).*?</script>", "", text, flags=re.DOTALL)
        for link in re.findall(r'\b(?:href|src)="([^"]*)"', body):
            file, _, place = link.partition("#")
            if re.match(r"[a-z]+:", link) or link.startswith("//"):
                continue
            target = (path.parent / file.partition("?")[0]).resolve() if file else path
            lost = place and target in ids and place not in ids[target]
            if not target.exists() or lost:
                broken.append(f"{path.name}: {link}")
    return broken


_LANDING = """<div class="landing">
<section class="curve"><h2>The pixels</h2>
<div class="picture"><img class="dark-light" src="@PHOTOGRAPH@" alt="the photograph">
<img class="mask dark-light" id="curve-mask" src="@MASK@" alt="the mask on it"></div>
<input type="range" id="curve-slider" min="0" value="0" aria-label="pixels left">
<output id="curve-words"></output>
<svg viewBox="0 0 300 118" role="img" aria-label="confidence by area">
<line x1="30" y1="92" x2="292" y2="92"/><line x1="30" y1="8" x2="30" y2="92"/>
<text x="26" y="12" text-anchor="end">1</text><text x="26" y="95" text-anchor="end">0</text>
<text x="30" y="112">few pixels</text><text x="292" y="112" text-anchor="end">all</text>
<text x="38" y="14">confidence in “@LABEL@”</text>
<path id="curve-path" d=""/><circle id="curve-dot" r="5"/></svg>
<p>@CREDIT@</p>
<script type="application/json" id="curve-data">@DATA@</script>
<script>@SCRIPT@</script></section>
<section><h2>The channels</h2>
<p>The circuit of that explanation: @ABOUT@. Black edges lead forward, red ones back with the
gradient.</p>
@CIRCUIT@</section></div>
"""

if __name__ == "__main__":
    try:
        print(build())
    except (InputError, RunError) as error:
        sys.exit(f"minexp: error: {error}")
