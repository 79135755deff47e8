"""Sphinx's settings. The sources are those that ``python -m minexp.site`` gathers and builds."""

from minexp import site

project = "minexp"
author = "the minexp authors"
copyright = "the minexp authors, MIT licence"
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "sphinxcontrib.bibtex",
]
suppress_warnings = ["mystnb.unknown_mime_type"]

# What the notebooks show is what their run showed: nothing is run here.
nb_execution_mode = "off"
nb_code_prompt_show = "Show the code"
nb_code_prompt_hide = "Hide the code"
nb_render_markdown_format = "gfm"  # with tables
nb_ipywidgets_js = {}  # else from a CDN
myst_enable_extensions = ["amsmath", "deflist", "dollarmath", "substitution"]
myst_heading_anchors = 3
myst_substitutions = site.substitutions()
bibtex_bibfiles = ["references.bib"]
bibtex_reference_style = "author_year"

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
add_module_names = False
maximum_signature_line_length = 80

# One script with its glyphs within: a page opened from disk may load no fonts of its own.
mathjax_path = site.mathjax().name
html_static_path = ["_static", str(site.mathjax())]
html_css_files = ["site.css"]
html_theme = "sphinx_book_theme"
html_title = "minexp"
html_theme_options = {
    "use_download_button": False,
    "use_fullscreen_button": False,
    "show_toc_level": 2,
    "navbar_start": [],
    "navbar_center": [],
    "navbar_end": [],
    "navbar_persistent": [],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
html_context = {"default_mode": "auto"}  # else the theme complains on the console
html_copy_source = False
html_show_sourcelink = False
numfig = True
math_numfig = False


def setup(app):
    app.connect("autodoc-process-docstring", site.escape_bars)
