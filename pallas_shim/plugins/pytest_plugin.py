"""The pytest plugin. It imports nothing until one of its options or its fixture is used.

With pytest-xdist, each worker is a process of one run: all write to one report and to one directory
of findings, and the process that prints the summary reads them.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pallas_shim.plugins.pytest_session import Session
    from pallas_shim.plugins.recording import Recording

_OPTIONS = ("pallas_numpy", "pallas_strict", "pallas_check", "pallas_compile", "pallas_report")
_SESSION: pytest.StashKey[Session] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("pallas_shim", "Pallas kernels in NumPy")
    group.addoption("--pallas-numpy", action="store_true", help="run Pallas kernels in NumPy")
    group.addoption(
        "--pallas-strict",
        action="store_true",
        help="the same, and a kernel that would be left to JAX is an error, and so is one that "
        "--pallas-compile has refused",
    )
    group.addoption(
        "--pallas-check",
        action="store_true",
        help="the same as --pallas-numpy, and a test fails if one of its kernels would be wrong "
        "on a device (PALLAS_NUMPY_CHECK and PALLAS_NUMPY_SUPPRESSIONS say which faults)",
    )
    group.addoption(
        "--pallas-compile",
        metavar="TPUS",
        help="the same as --pallas-numpy, and the session fails if the compiler of one of these "
        "TPUs (as in v6e,v5e) refuses a kernel that a test reached",
    )
    group.addoption(
        "--pallas-report",
        metavar="PATH",
        help="the same as --pallas-numpy, with the table of all kernels at the end, and as JSON "
        "in this file",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    _begin(early_config, early_config.known_args_namespace)  # a conftest may import JAX


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "pallas_stock: the test runs on stock JAX, with pallas_shim switched off"
    )
    _begin(config, config.option)


def _begin(config: pytest.Config, options: Any) -> None:
    if _SESSION in config.stash or not any(getattr(options, name, None) for name in _OPTIONS):
        return
    from pallas_shim.plugins.pytest_session import Session

    session = Session(options)
    config.stash[_SESSION] = session
    config.pluginmanager.register(session, "pallas_shim_session")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[Any]:
    shim = sys.modules.get("pallas_shim")
    if item.get_closest_marker("pallas_stock") is None or shim is None or not shim.is_active():
        return (yield)
    shim.deactivate()
    try:
        return (yield)
    finally:
        shim.activate()


@pytest.fixture
def pallas_report() -> Iterator[Recording]:
    """What this test's kernels did: .rows, .rungs, .fallbacks, .findings. The shim is active."""
    from pallas_shim.plugins.recording import Recording

    with Recording() as recording:
        yield recording
