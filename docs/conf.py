"""Sphinx for two things: the course site (`make site`) and the slides (`make slides`).

Neither is built from this folder: `tools/build_site.py` and `tools/make_slides.py` assemble pages from docs/ and the
stored notebooks and point Sphinx here. Nothing is executed, and the pages load nothing from other hosts.
"""

import re
import sys
from importlib.metadata import version as version_of
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))              # mathml.py

project = "tokenpool"
author = "The tokenpool developers"
project_copyright = f"{author}; MIT licence"
version = release = version_of("tokenpool")
language = "en_GB"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_revealjs", "mathml"]
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath", "html_image"]
myst_heading_anchors = 4                                    # GitHub's anchors, so that links work there too
myst_dmath_double_inline = True
html_math_renderer = "mathml"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
napoleon_google_docstring, napoleon_numpy_docstring = True, False
default_role = "code"                                       # docstrings put names in `single` marks
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
add_module_names = False
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = "tokenpool"
html_static_path = ["_static"]
templates_path = ["_templates"]
html_css_files = ["maths.css", "site.css"]
html_copy_source = html_show_sourcelink = html_use_index = False
html_domain_indices = html_show_search_summary = False    # a page on disk may not load summaries
html_sidebars = {"**": ["sidebar/brand.html", "sidebar/search.html", "sidebar/scroll-start.html",
                        "sidebar/navigation.html", "sidebar/evidence.html", "sidebar/scroll-end.html"]}
_BLUE = {"color-brand-primary": "#005A8F", "color-brand-content": "#005A8F"}
_SKY = {"color-brand-primary": "#7CC4F0", "color-brand-content": "#7CC4F0"}
html_theme_options = {"light_css_variables": _BLUE, "dark_css_variables": _SKY, "navigation_with_keys": True}
pygments_style, pygments_dark_style = "friendly", "github-dark"

revealjs_html_theme = "revealjs-simple"
revealjs_style_theme = "slides.css"
revealjs_static_path = ["_static"]
revealjs_css_files = ["maths.css"]
revealjs_script_files = ["plotly.min.js", "slides.js"]
revealjs_script_plugins = [{"name": "RevealNotes", "src": "revealjs/plugin/notes/notes.js"}]
revealjs_script_conf = {
    "width": 1280, "height": 720, "margin": 0.0, "center": False, "hash": True, "slideNumber": "c/t",
    "controls": False, "progress": True, "transition": "none", "backgroundTransition": "none",
    "navigationMode": "linear",                             # one arrow key steps through all slides
    "pdfSeparateFragments": False, "help": True,
}


def _plain_bars(app, what, name, obj, options, lines):
    """In docstrings |x| is a length; to Sphinx it would be the name of a text to put there."""
    lines[:] = [re.sub(r"\|(\w+)\|", r"\|\1\|", line) for line in lines]


def setup(app):
    app.connect("autodoc-process-docstring", _plain_bars)
