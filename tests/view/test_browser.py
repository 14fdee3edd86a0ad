"""The page in a real browser: its sliders move, and nothing logs an error."""

from __future__ import annotations

import pathlib
import shutil

import numpy as np
import pytest

from pallas_shim import recording
from pallas_shim.view import page
from tests.shimmed import shim  # noqa: F401
from tests.view import kernels
from tests.view.kernels import numbers

BROWSER, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
pytestmark = [
    pytest.mark.usefixtures("shim"),
    pytest.mark.skipif(not (BROWSER and DRIVER), reason="no chromium and chromedriver here"),
]
# It isn't to ask the network for anything.
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--window-size=1400,1500",
)  # fmt: skip


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER or ""
    for flag in (*_FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(str(DRIVER)))
    yield driver
    driver.quit()


class Page:
    """The page of a trace, as a user has it."""

    def __init__(self, browser, path: pathlib.Path, trace) -> None:
        from selenium.webdriver.support.wait import WebDriverWait

        path.write_text(page.render(trace), "utf-8")
        self.browser = browser
        browser.get(path.as_uri())
        WebDriverWait(browser, 30).until(lambda _: self("return document.body.dataset.ready"))

    def __call__(self, script: str, *arguments):
        return self.browser.execute_script(script, *arguments)

    def slide(self, slider: str, value: int) -> None:
        self(
            "const s = document.getElementById(arguments[0]); s.value = arguments[1];"
            "s.dispatchEvent(new Event('input'))", slider, value,
        )  # fmt: skip

    def text(self, selector: str) -> str:
        return self("return document.querySelector(arguments[0]).textContent", selector)

    def outlines(self, operand: int) -> set[tuple[float, ...]]:
        """The rectangles that an operand's picture shows, as (row, row end, column, column end)."""
        shapes = self(f"return document.getElementById('operand-{operand}').layout.shapes")
        return {(s["y0"], s["y1"], s["x0"], s["x1"]) for s in shapes}


def test_sliders(browser, tmp_path):
    with recording.record("test") as trace:
        kernels.matmul(numbers(32, 64), numbers(64, 128))
        kernels.copies(numbers(32, 128))
    shown = Page(browser, tmp_path / "view.html", trace)
    assert shown.text("#about b") == "matmul_kernel"
    assert shown.outlines(0) == {(0, 8, 0, 16)}
    shown.slide("order", 37)
    assert shown.text("#cell").startswith("Cell (2, 1, 1): 2.5 KiB fetched")
    assert shown("return ['axis-0', 'axis-1', 'axis-2'].map(n => +document.getElementById(n).value)"
                 ) == [2, 1, 1]  # fmt: skip
    assert shown.outlines(0) == {(16, 24, 16, 32)}
    assert shown.outlines(1) == {(16, 32, 32, 64)}
    shown.slide("axis-2", 3)
    assert shown.text("#cell").startswith("Cell (2, 1, 3):")
    assert shown("return document.getElementById('order').value") == "39"
    assert shown.outlines(2) == {(16, 24, 32, 64)}
    lines = shown("return [...document.querySelectorAll('#lines tr.writes')].map(r => r.innerText)")
    assert [line.split()[0] for line in lines] == [
        str(line.number) for line in trace.kernels[0].lines
        if line.text.strip().startswith(("acc_ref[...] +=", "o_ref[...] ="))
    ]  # fmt: skip
    for mode in ("reads", "writes", "values", "visits"):
        shown(
            "const s = document.getElementById('mode'); s.value = arguments[0];"
            "s.dispatchEvent(new Event('change'))", mode,
        )  # fmt: skip
        z = np.array(shown("return document.getElementById('operand-2').data[0].z"))
        assert z.shape == (32, 64)
        right = {
            "reads": z.max() == 0,
            "writes": z.min() == z.max() == 1,
            "visits": z[0, 0] == 1 and z[31, 63] == 61,
            "values": z.max() > 1e5,
        }
        assert right[mode]
    shown("document.querySelectorAll('#kernels button')[1].click()")
    assert shown.text("#about b") == "copies_kernel"
    rows = shown("return document.getElementById('timeline-plot').data.map(d => [...new Set(d.y)])")
    assert {"sem[0]", "sem[1]", "sem[2]"} == {name for row in rows for name in row}
    logged = [entry for entry in browser.get_log("browser") if entry["level"] != "INFO"]
    assert not logged


def test_many_cells(browser, tmp_path):
    x = numbers(2_000 * 4)
    with recording.record("test") as trace:
        kernels.add(x, x, 2_000)
    shown = Page(browser, tmp_path / "view.html", trace)
    shown.slide("order", 1_999)
    assert shown.text("#cell").startswith("Cell (1999,): 32 B fetched, 16 B written back")
    assert shown.outlines(0) == {(0, 1, 7_996, 8_000)}
    assert not [entry for entry in browser.get_log("browser") if entry["level"] != "INFO"]
