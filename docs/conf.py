"""The documentation as a site: sphinx-build -W -b html docs site.

The pages are plain Markdown, which code hosts show as they are. Nothing is fetched to build the
site or to read it.
"""

import pathlib
import sys

CHECKOUT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(CHECKOUT))

import pallas_shim  # noqa: E402

project = "pallas_shim"
release = version = pallas_shim.__version__
copyright = "the authors of pallas_shim, Apache 2.0"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["walkthroughs/outputs"]
nitpicky = True
# What signatures name, and has no page.
nitpick_ignore_regex = [("py:.*", r"(?!pallas_shim\.).*"), ("py:.*", r"pallas_shim\.\w+\..*")]

myst_heading_anchors = 4  # links as code hosts make them: usage.md#the-report
myst_enable_extensions = ["colon_fence"]

default_role = "literal"
autodoc_typehints = "signature"
autodoc_member_order = "bysource"

html_theme = "furo"
html_title = f"pallas_shim {release}"
html_show_sourcelink = False
copybutton_exclude = ".linenos, .gp, .go"
