"""The site: built once from what is committed, then read by Python and by headless Chromium."""

import base64
import io
import json
import re
import shutil
import tomllib
from importlib.util import find_spec

import nbformat
import numpy as np
import pytest
import torch
from packaging.requirements import Requirement
from PIL import Image

from minexp import landing, results, site
from minexp.config import configure, preset
from minexp.errors import InputError
from minexp.paths import FIGURES, NOTEBOOKS, ROOT
from minexp.references import open_reference

PHONE, DESK = (390, 844), (1280, 800)
PACKAGES = ("sphinx", "myst_nb", "sphinx_book_theme", "sphinxcontrib.bibtex")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder of the built site."""
    if absent := [name for name in PACKAGES if not find_spec(name.partition(".")[0])]:
        pytest.skip(f"the site's packages are not installed ({absent[0]}): make site")
    return site.build(tmp_path_factory.mktemp("site") / "html").parent


@pytest.fixture(scope="module")
def browser(built, tmp_path_factory):
    """Headless Chromium that resolves no host name and logs console and requests."""
    if not (shutil.which("chromium") and shutil.which("chromedriver") and find_spec("selenium")):
        pytest.skip("needs chromium, chromedriver and selenium")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in (
        *("headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run"),
        *("disable-background-networking", "disable-component-update", "disable-sync"),
        f"user-data-dir={tmp_path_factory.mktemp('chromium')}",
        "host-resolver-rules=MAP * ~NOTFOUND",
    ):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    driver.get("about:blank")
    yield driver
    driver.quit()


def look(browser, page, size=DESK, colours="light"):
    """Open a page at a size (width, height) in CSS pixels, with a reader's preferred colours."""
    metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    prefers = {"features": [{"name": "prefers-color-scheme", "value": colours}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", prefers)
    for log in ("browser", "performance"):
        browser.get_log(log)  # what came before is forgotten
    browser.get(page.as_uri())
    typeset = "return !window.MathJax?.startup || MathJax.startup.promise.then(() => true)"
    assert browser.execute_script(typeset)


def requested(browser):
    """The addresses asked for since :func:`look`."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
    return [params["request"]["url"] for params in sent]


def pages(built):
    return sorted(built.rglob("*.html"))


# --- in the browser


@pytest.mark.parametrize(("size", "colours"), [(DESK, "light"), (PHONE, "dark")])
def test_pages_open_from_disk_alone_without_error_and_fit(browser, built, size, colours):
    for page in pages(built):
        look(browser, page, size, colours)
        addresses = requested(browser)
        assert page.as_uri() in addresses, "the log shows what is asked for"
        assert [a for a in addresses if not a.startswith(("file:///", "data:"))] == []
        console = browser.get_log("browser")
        errors = [e["message"] for e in console if e["level"] in ("SEVERE", "WARNING")]
        assert errors == [], page.name
        assert browser.find_elements("css selector", "[data-mjx-error], mjx-merror") == []
        root = "document.documentElement"
        assert browser.execute_script(f"return {root}.dataset.theme") == colours
        wide = browser.execute_script(f"return {root}.scrollWidth")
        assert wide <= size[0], page.name


def test_a_request_that_leaves_the_machine_would_be_seen(browser, tmp_path):
    (tmp_path / "page.html").write_text('<script src="https://example.org/a.js"></script>')
    look(browser, tmp_path / "page.html")
    assert "https://example.org/a.js" in requested(browser)
    assert any(entry["level"] == "SEVERE" for entry in browser.get_log("browser"))


@pytest.mark.parametrize("size", [DESK, PHONE])
def test_the_slider_moves_the_mask(browser, built, size):
    from selenium.webdriver.common.keys import Keys

    curve, _ = site.shown()
    look(browser, built / "index.html", size)
    slider, mask, words, dot = (
        browser.find_element("id", f"curve-{name}") for name in ("slider", "mask", "words", "dot")
    )
    found = curve["points"][curve["found"]]
    assert mask.get_attribute("src") == found["mask"] and "explanation found" in words.text
    seen = set()
    for key, point in ((Keys.HOME, curve["points"][0]), (Keys.END, curve["points"][-1])):
        slider.send_keys(key)
        assert mask.get_attribute("src") == point["mask"]
        assert f"confidence {point['confidence']:.2f}" in words.text
        seen.add(dot.get_attribute("cx"))
    assert len(seen) == 2 and mask.size["width"] == mask.size["height"] > 200


@pytest.mark.parametrize("colours", ["light", "dark"])
def test_hovering_a_node_shows_its_channel(browser, built, colours):
    from selenium.webdriver import ActionChains

    _, circuit = site.shown()
    look(browser, built / "index.html", colours=colours)
    dots = browser.find_elements("css selector", "#circuit-graph circle")
    words, image = (browser.find_element("id", f"circuit-{name}") for name in ("words", "map"))
    assert len(dots) == len(circuit["nodes"]) and not image.is_displayed()
    for index in (0, len(dots) // 2):
        ActionChains(browser).move_to_element(dots[index]).perform()
        assert words.text.startswith(circuit["nodes"][index]["id"])
        assert image.is_displayed()
        assert image.get_attribute("src") == circuit["nodes"][index]["map"]


def test_equations_are_rendered_and_numbered(browser, built):
    look(browser, built / "method.html")
    shown = browser.find_elements("css selector", "mjx-container[display='true'] svg")
    assert len(shown) == (NOTEBOOKS / "method.md").read_text().count("{math}\n")


# --- in the files


def test_no_link_is_broken(built):
    assert site.broken_links(built) == []


def test_broken_links_are_found(tmp_path):
    (tmp_path / "b.html").write_text('<p id="here"></p>')
    links = ("b.html#here", "b.html#gone", "c.html", "https://example.org", "#top", "b.html?q=1")
    body = "".join(f'<a href="{link}"></a>' for link in links)
    (tmp_path / "a.html").write_text(f"{body}<script>let s = '<a href=\"x\">'</script>")
    expected = ["a.html: b.html#gone", "a.html: c.html", "a.html: #top"]
    assert site.broken_links(tmp_path) == expected


def test_the_pages_hold_every_run_notebook_with_its_code_folded(built):
    for notebook in site.executed():
        page = (built / f"{notebook.stem}.html").read_text()
        assert page.count("<table") >= 1 and "<p>| " not in page, "Markdown shown as a table"
        assert page.count("<details") >= 5 and "Show the code" in page
        assert f"{notebook.stem}.html" in (built / "contents.html").read_text()
    for name in site.missing():
        assert name in (built / "contents.html").read_text()


def test_the_site_names_no_place_of_this_machine(built):
    texts = [path.read_text() for path in built.rglob("*.html")]
    places = [str(ROOT) + "/", str(built.parent), "/site-packages/"]
    assert not [place for place in places for text in texts if place in text]


def test_another_folder_is_not_overwritten(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        site.build(tmp_path)
    assert (tmp_path / "mine.txt").exists()


# --- what goes into it


def pins(lock):
    """The requirements of a lock file, each with its hash."""
    text = (ROOT / lock).read_text()
    assert not re.search(r"https?:|file:| @ ", text)
    found = re.findall(r"^(\S+==.*?) \\\n    --hash=sha256:[0-9a-f]{64}", text, re.MULTILINE)
    assert len(found) == len(re.findall(r"^\S", text, re.MULTILINE))
    return found


def test_the_sites_lock_has_its_extra_and_moves_no_version_of_the_first():
    own, first = (
        {(Requirement(pin).name, str(Requirement(pin).specifier)) for pin in pins(lock)}
        for lock in ("requirements-site.lock", "requirements.lock")
    )
    names = dict(first)
    assert {pin for pin in own if pin[0] in names} <= first
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for wanted in map(Requirement, project["optional-dependencies"]["site"]):
        versions = [pin.removeprefix("==") for name, pin in own if name == wanted.name]
        assert versions and all(wanted.specifier.contains(version) for version in versions)


def test_every_cited_entry_and_no_other_is_in_the_bibliography():
    entries = re.findall(r"^@\w+\{([^,]+),", (NOTEBOOKS / "references.bib").read_text(), re.M)
    texts = "".join(path.read_text() for path in NOTEBOOKS.glob("*.md"))
    assert sorted(entries) == sorted(set(re.findall(r"\{cite:[pt]\}`([^`]+)`", texts)))


def test_substitutions_are_those_the_pages_use():
    used = {
        name
        for path in NOTEBOOKS.glob("*.md")
        for name in re.findall(r"\{\{ (\w+) \}\}", path.read_text())
    }
    assert used == site.substitutions().keys()


def test_what_a_failed_run_left_is_no_page(tmp_path, monkeypatch):
    (tmp_path / "executed").mkdir()
    for name in ("01_first.ipynb", "02_second.partial.ipynb", "notes.ipynb"):
        (tmp_path / "executed" / name).write_text("{}")
    monkeypatch.setattr(site, "FIGURES", tmp_path)
    assert [path.name for path in site.executed()] == ["01_first.ipynb"]


def test_folding_tags_code_and_nothing_else():
    new = nbformat.v4
    cells = [new.new_code_cell("1"), new.new_markdown_cell("text")]
    cells[0].metadata["tags"] = ["parameters"]
    code, text = site.folded(new.new_notebook(cells=cells)).cells
    assert code.metadata["tags"] == ["parameters", "hide-input"] and "tags" not in text.metadata


def test_bars_are_escaped_outside_of_literals():
    lines = ["mean |m| of ``a | b``", "and |d|"]
    site.escape_bars(None, "function", "f", None, None, lines)
    assert lines == [r"mean \|m\| of ``a | b``", r"and \|d\|"]


def test_the_slider_steps_where_the_confidence_rises_or_the_area_grows():
    areas, confidences = [0.5, 0.1, 0.11, 0.3, 0.31], [0.9, 0.2, 0.1, 0.6, 0.601]
    assert landing.steps(areas, confidences, set()) == [1, 3, 0]
    assert landing.steps(areas, confidences, {2}) == [1, 2, 3, 0]


def test_what_is_shown_is_made_of_a_result(mnist_cnn, tmp_path):
    reference = "mnist:4711"
    image, _ = open_reference(reference, mnist_cnn)
    config = configure(preset("digits"), {"steps": 6})
    result, _ = results.explain_to_files(reference, mnist_cnn, config, tmp_path)
    found = results.read_mask(tmp_path / "mnist-4711.json")
    curve = landing.curve(mnist_cnn, image, found, result, config)
    point = curve["points"][curve["found"]]
    assert point["area"] == pytest.approx(result["area"], abs=1e-5)
    assert point["confidence"] == pytest.approx(result["explanation_confidence"], abs=1e-4)
    mask = Image.open(io.BytesIO(base64.b64decode(point["mask"].partition(",")[2])))
    assert torch.equal(torch.from_numpy(np.array(mask)), found[0, 0].bool())
    less = landing.dwindling(found, result["minimality"])
    areas = [mask.mean().item() for mask in (found, *less)]
    assert len(less) == result["minimality"]["active"] - 1 and areas == sorted(areas)[::-1]
    page = site.landing(
        curve | {"image": reference, "licence": "<b>"},
        landing.circuit(mnist_cnn, image, found, result)["circuit"],
    )
    assert not re.search(r"@[A-Z]+@|<b>|https?://(?!www\.w3\.org/2000/svg)", page)


def test_the_masks_shown_are_the_results():
    curve, circuit = site.shown()
    points = curve["points"]
    assert [p["area"] for p in points] == sorted(p["area"] for p in points)
    assert points[-1]["area"] == 1 and points[curve["found"]]["noise"] > 0.9
    assert points[curve["found"]]["confidence"] >= curve["confidence"] - 1e-4
    assert {"image", "sha256", "model", "commit", "command"} <= curve.keys()
    assert len(circuit["nodes"]) > 10 and (FIGURES / "landing" / "circuit.json").is_file()


def test_the_page_on_your_own_model_runs(tmp_path, monkeypatch, capsys):
    text = (NOTEBOOKS / "own_model.md").read_text()
    code = "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    few = "minexp.explain(model, image, minexp.configure(minexp.preset('small'), {'steps': 4}))"
    code = code.replace("minexp.explain(model, image)", few).replace('"steps": 100', '"steps": 4')
    Image.effect_mandelbrot((80, 70), (-3, -2.5, 2, 2.5), 50).convert("RGB").save(
        tmp_path / "cat.jpg"
    )
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "own_model.md", "exec"), {})
    assert "of the pixels" in capsys.readouterr().out
