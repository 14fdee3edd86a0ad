"""The HTML page of a trace: one file, which needs no server and no network."""

from __future__ import annotations

import base64
import functools
import gzip
import html
import json
import pathlib
from typing import Any

from pallas_shim.view.data import Trace

_HERE = pathlib.Path(__file__).parent


class MissingPackages(ImportError):
    """The packages that make the page are not installed. The text says how to get them."""


def render(trace: Trace) -> str:
    """The page as text.

    Raises:
      MissingPackages
    """
    try:
        import jinja2
        from plotly import offline
    except ImportError as error:
        raise MissingPackages(
            f"a view needs jinja2 and plotly ({error}): pip install 'pallas_shim[view]'"
        ) from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template("page.html").render(
        trace=trace,
        data=_script_data(trace.to_dict()),
        plotly=_packed(offline.get_plotlyjs()),
        css=(_HERE / "page.css").read_text("utf-8"),
        script=(_HERE / "page.js").read_text("utf-8"),
    )


def frame(trace: Trace) -> str:
    """The page as an element of another page, a notebook's.

    Raises: as `render`.
    """
    inner = html.escape(render(trace))
    style = "width: 100%; height: 900px; border: 0"
    return f'<iframe srcdoc="{inner}" style="{style}" title="Pallas kernels"></iframe>'


@functools.cache
def _packed(script: str) -> str:
    """A script at 40% of its size, as text."""
    return base64.b64encode(gzip.compress(script.encode(), 9, mtime=0)).decode()


def _script_data(value: Any) -> str:
    """JSON that can stand inside a script element."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
