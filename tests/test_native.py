"""When programs run natively, and what the report says of it."""

from __future__ import annotations

import itertools

import jax
import numpy as np
import pytest

from pallas_shim.dispatch import background, native
from pallas_shim.reports.uses import REPORT
from tests.shimmed import double, only_row, setting, shim

__all__ = ["setting", "shim"]

numbers = itertools.count()
X = np.arange(-500, 500, dtype=np.int32)

installed = pytest.mark.skipif(not native._is_installed(), reason="llvmlite isn't installed")


@pytest.fixture
def promoted(monkeypatch, shim, setting):
    """Programs have earned their code by their first run. Gives a function that calls a new one
    until its fate is known."""
    setting(native=True)
    monkeypatch.setattr(native, "_EARNS", 0)

    def call(calls: int = 8):
        REPORT.clear()

        def function(x):
            return double(x) * 3

        function.__name__ = f"function_{next(numbers)}"  # the report keeps those of one name
        f = jax.jit(function)
        for _ in range(calls):
            np.testing.assert_array_equal(np.asarray(f(X)), X * 6)
            if background._pool is not None:
                background._pool.submit(lambda: None).result()
        return only_row()

    return call


@installed
def test_a_program_that_has_earned_it_is_native(promoted, monkeypatch):
    runs = []

    def counted(run, values):
        runs.append(run)
        return run(values)

    monkeypatch.setattr(native, "as_xla", counted)
    # NumPy is as fast for so small a program.
    monkeypatch.setattr(native, "min", lambda times: -len(runs) + times[0] * 0, raising=False)
    row = promoted()
    assert len(runs) >= native._COMPARED
    assert row["native"].startswith(("native, ", "not native, since it is no faster"))
    assert row["calls"] == 8 and row["rung"] == "numpy"


@installed
def test_other_bits_keep_numpy(promoted, monkeypatch):
    monkeypatch.setattr(native, "same", lambda *_: False)
    assert "other bits" in promoted()["native"]


@installed
def test_what_cannot_be_native_says_why(promoted, monkeypatch):
    from pallas_shim.evaluator.codegen import native as code

    def refuse(program):
        raise code.NotNative("exp of float32")

    monkeypatch.setattr(code, "compiled", refuse)
    assert promoted()["native"] == "not native: exp of float32"


def test_without_llvmlite_the_report_says_what_would_be_native(promoted, monkeypatch, setting):
    monkeypatch.setattr(native, "_is_installed", lambda: False)
    assert promoted(2)["native"] is None
    setting(report="1")
    assert promoted()["native"] == "would be native: pip install 'pallas_shim[native]'"


def test_switched_off(promoted, setting):
    setting(native=False)
    assert promoted()["native"] is None


@installed
def test_forced(shim, setting, monkeypatch):
    setting(native_force=True)
    f = jax.jit(lambda x: double(x) + 1)
    np.testing.assert_array_equal(np.asarray(f(X)), X * 2 + 1)
    assert only_row()["native"] == "native"
    monkeypatch.setattr(native, "same", lambda *_: False)
    with pytest.raises(native.NativeError, match="gave other bits than NumPy"):
        f(X)


def test_forced_without_llvmlite(shim, setting, monkeypatch):
    setting(native_force=True)
    monkeypatch.setattr(native, "_is_installed", lambda: False)
    with pytest.raises(native.NativeError, match="needs llvmlite: pip install"):
        jax.jit(lambda x: double(x) + 2)(X)


@pytest.mark.parametrize(
    "a, b, equal",
    [
        ([0.0], [-0.0], False),
        ([np.nan], [-np.nan], True),
        ([np.nan], [1.0], False),
        ([1.0], [1.0], True),
    ],
)
def test_same_bits(a, b, equal):
    assert native.same([np.array(a, np.float32)], [np.array(b, np.float32)]) == equal


def test_a_forked_process_compiles_for_itself(monkeypatch):
    monkeypatch.setattr(background, "_is_working", True)
    monkeypatch.setattr(background, "_is_usable", True)
    monkeypatch.setattr(background, "_pool", None)
    background._start_over()
    background.later(lambda: pytest.fail("LLVM may be in the middle of something"))
    assert background._pool is None
