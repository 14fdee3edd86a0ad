"""The walk-throughs of the docs, run as they are written: their files, commands and cells, in
order, with the outputs that they show (``...`` stands for what varies, as in doctest)."""

from __future__ import annotations

import doctest
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple

import nbclient
import nbformat
import pytest

from tests.processes.conftest import CHECKOUT, Python

PAGES = CHECKOUT / "docs" / "walkthroughs"
NOTEBOOK = "first-notebook"
OF_COMMANDS = sorted(path.stem for path in PAGES.glob("*.md") if path.stem != NOTEBOOK)


class Block(NamedTuple):
    """A fenced block of a page. ``file``: the name that stands before it, as in "`bench.py`:"."""

    language: str
    text: str
    file: str | None
    line: int


def blocks(page: str) -> Iterator[Block]:
    text = (PAGES / f"{page}.md").read_text()
    fence = re.compile(r"(?:^`([^`\n]+)`:\n\n)?^```(\w+)\n(.*?)^```$", re.M | re.S)
    for found in fence.finditer(text):
        yield Block(found[2], found[3], found[1], text.count("\n", 0, found.start(2)) + 1)


def check(shown: str, got: str, place: str) -> None:
    """Spaces at the ends of lines don't show, so they don't count. Nor do the lines in which
    pytest-xdist says how it starts, of which there is a varying number."""
    lines = [line.rstrip() for line in got.splitlines() if line != "bringing up nodes..."]
    got = "\n".join(lines).strip("\n") + "\n"
    shown = shown.strip("\n") + "\n"
    assert doctest.OutputChecker().check_output(shown, got, doctest.ELLIPSIS), (
        f"{place}: the page shows\n{shown}\nbut it was\n{got}"
    )


def environment(python: Python, home: pathlib.Path) -> dict[str, str]:
    """That of a user whose Python this is, and who has nothing cached."""
    of_tests = {"PALLAS_NUMPY_VERIFY", "PALLAS_NUMPY_CACHE"}
    made = {k: v for k, v in python.environment().items() if k not in of_tests}
    path = os.pathsep.join([os.path.dirname(python.executable), os.environ["PATH"]])
    # As on a terminal, stdout comes before what stderr says later.
    return {**made, "PATH": path, "XDG_CACHE_HOME": str(home), "PYTHONUNBUFFERED": "1"}


@pytest.mark.parametrize("page", OF_COMMANDS)
def test_commands(page, from_wheel, tmp_path):
    variables = environment(from_wheel, tmp_path / "cache")
    here = tmp_path / "here"
    here.mkdir()
    status = 0
    ran = set()
    found = list(blocks(page))
    for block in found:
        if block.file is not None:
            (here / block.file).parent.mkdir(parents=True, exist_ok=True)
            (here / block.file).write_text(block.text)
        elif block.language == "console":
            start, *commands = re.split(r"^\$ ", block.text, flags=re.M)
            assert not start and commands, f"{page}.md:{block.line}"
            for each in commands:
                command, shown = each.split("\n", 1)
                done = subprocess.run(
                    ["bash", "-c", f"(exit {status})\n{command}"],
                    cwd=here, env=variables, stdin=subprocess.DEVNULL, timeout=120, text=True,
                    stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                )  # fmt: skip
                check(shown, done.stdout, f"{page}.md:{block.line}: {command}")
                status = done.returncode
                ran.add(command)
        else:
            raise AssertionError(f"{page}.md:{block.line}: a block that nobody runs")
    assert ran
    # The steps of a CI job are among the commands.
    steps = re.findall(r"- run: (.*)", "".join(b.text for b in found if b.language == "yaml"))
    assert {step for step in steps if not step.startswith("pip ")} <= ran


def test_the_notebook(tmp_path):
    found = list(blocks(NOTEBOOK))
    cells = [nbformat.v4.new_code_cell(b.text) for b in found if b.language == "python"]
    python = Python(sys.executable, {"PYTHONPATH": str(CHECKOUT / "sitecustomize_pkg")})
    variables = {**environment(python, tmp_path / "cache"), "IPYTHONDIR": str(tmp_path)}
    client = nbclient.NotebookClient(
        nbformat.v4.new_notebook(cells=cells), timeout=120, kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )  # fmt: skip
    client.execute(env=variables)
    ran = iter(cells)
    for block, after in zip(found, [*found[1:], None], strict=True):
        if block.language == "python":
            cell = next(ran)
            if after is not None and after.language == "text":
                got = "".join(
                    output.get("text", "") + output.get("data", {}).get("text/plain", "")
                    for output in cell.outputs
                )
                check(after.text, got, f"{NOTEBOOK}.md:{after.line}")
        else:
            assert block.language == "text", f"{NOTEBOOK}.md:{block.line}"
