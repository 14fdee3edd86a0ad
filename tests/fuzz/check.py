"""Runs one random kernel in the evaluator and in JAX, and compares."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence
from typing import Any
from unittest.mock import patch

import jax
import numpy as np
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from jax.errors import JaxRuntimeError
from jax.extend.core import jaxpr_as_fun

from pallas_shim.cache import later
from pallas_shim.cache.programs import CachedProgram
from pallas_shim.evaluator import codegen
from pallas_shim.evaluator.codegen.native import lowering as native_lowering
from pallas_shim.evaluator.codegen.native import threads as native_threads
from pallas_shim.evaluator.execute import Executable
from pallas_shim.evaluator.lower import lower
from pallas_shim.evaluator.machine.order import OWN_ORDER
from pallas_shim.evaluator.passes import NAMES, optimise
from pallas_shim.evaluator.registry import Unsupported
from pallas_shim.reports.uses import Use
from tests.fuzz.cells import ManyCells
from tests.fuzz.copies import Copying
from tests.fuzz.devices import Racing, Talking, deadlocks
from tests.fuzz.empty import Empty
from tests.fuzz.inexact import InexactCall
from tests.fuzz.kernels import Call
from tests.fuzz.keys import Keys
from tests.fuzz.natively import Natively, OtherBits, compare_natively
from tests.fuzz.operations import COMPLEX, NARROW, WIDE
from tests.fuzz.programs import Program
from tests.fuzz.variants import Checked, Prefetched, Scalars
from tests.fuzz.views import Views
from tests.oracle import compare, x64

# Hypothesis is behind the choices, so that it shrinks a kernel that fails.
sources = st.randoms(use_true_random=False)
quiet = settings(
    database=None,
    deadline=None,
    phases=(Phase.generate, Phase.shrink),
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)

# Which passes are left out, and which loops become functions.
WAYS: dict[str, tuple[Collection[str], Callable[[Any], bool]]] = {
    "without passes": (NAMES, codegen.choice(NAMES)),
    "with all passes": ((), codegen.pays),
    **{f"without {name}": ((name,), codegen.choice((name,))) for name in sorted(NAMES)},
    "without passes, all loops functions": (NAMES, lambda loop: True),
    "with all passes, all loops functions": ((), lambda loop: True),
}


# What JAX raises for a kernel that it can't run.
_REFUSALS = (
    AssertionError, AttributeError, NotImplementedError, TypeError, ValueError, JaxRuntimeError,
)  # fmt: skip


class Mismatch(AssertionError):
    """The evaluator's results aren't JAX's. The message shows the kernel and its arguments."""


# What a kernel is drawn by: its name, and how many of a hundred are.
GENERATORS: dict[str, tuple[int, Callable[[random.Random], Any]]] = {
    "kernels": (10, Call),
    "cells": (15, ManyCells),
    "scalars": (10, Scalars),
    "copies": (5, Copying),
    "programs": (5, Program),
    "inexact": (10, InexactCall),
    "narrow": (5, lambda source: Call(source, NARROW)),
    "wide": (5, lambda source: Call(source, WIDE)),
    "complex": (10, lambda source: Call(source, COMPLEX)),
    "checked": (5, Checked),
    "keys": (5, Keys),
    "empty": (5, Empty),
    "views": (5, Views),
    "prefetched": (5, Prefetched),
    "devices": (5, Talking),
    "schedules": (5, Racing),
    "natively": (5, Natively),
}


def check(source: random.Random, only: str | None = None) -> bool:
    """Draws a kernel and runs it. False: JAX's interpreter itself fails on it, and nothing was
    compared.

    Args:
      only: the name of one of GENERATORS, instead of any.

    Raises:
      Mismatch: the evaluator, with all passes, none, or all but one, doesn't do what JAX does.
    """
    names = [name for name, (share, _) in GENERATORS.items() for _ in range(share)]
    call = GENERATORS[only or source.choice(names)][1](source)
    with x64(call.pool.x64):
        jaxpr = jax.make_jaxpr(call.function)(*call.args)
        if isinstance(call, Talking):
            _compare_talking(call, jaxpr)
            return True
        try:
            reference = getattr(call, "reference", None)
            model = jaxpr if reference is None else jax.make_jaxpr(reference)(*call.args)
            want = _in_jax(model, call.args)
        except _REFUSALS:
            return False
        _compare(jaxpr, call.args, want, call.rtol)
        for way in getattr(call, "ways", ()):
            _compare_way(call, way, jaxpr, want)
    return True


def check_natively(source: random.Random, only: str | None = None) -> list[str]:
    """Draws a kernel, and compares native code with NumPy, without passes and with all. Returns why
    there is no native code of each of the two, "" if there is.

    Raises:
      Mismatch: they differ.
    """
    names = [name for name, (share, _) in GENERATORS.items() for _ in range(share)]
    call = GENERATORS[only or source.choice(names)][1](source)
    with x64(call.pool.x64):
        jaxpr = jax.make_jaxpr(call.function)(*call.args)
        try:
            program = lower(jaxpr)
        except Unsupported as error:
            return [str(error)]
        try:
            args = [np.asarray(arg) for arg in call.args]
            share = source.choice([native_threads._SHARE, 1e-12])  # or threads share every loop
            few = patch.object(native_lowering, "_CALLED", 0.0)  # however little is native
            with few, patch.object(native_threads, "_SHARE", share):
                return [compare_natively(optimise(program, skip), args) for skip in (NAMES, ())]
        except OtherBits as error:
            raise Mismatch(f"{error}\n{jaxpr}") from error


def check_cached(source: random.Random, only: str | None = None) -> str:
    """Draws a kernel, keeps its program on disk, traces the kernel anew, and reads the program.
    Returns what became of it, as in a report. The settings say where the programs are kept.

    Raises:
      Mismatch: the program doesn't give the same bits as the one that was made, or isn't found.
    """
    names = [name for name, (share, _) in GENERATORS.items() for _ in range(share)]
    call = GENERATORS[only or source.choice(names)][1](source)
    with x64(call.pool.x64):
        jaxpr = jax.make_jaxpr(call.function)(*call.args)
        again = jax.make_jaxpr(call.function)(*call.args)
        if str(again) != str(jaxpr):  # some kinds draw while they are traced
            again = jaxpr
        try:
            want = _outcome(optimise(lower(jaxpr, name="f")), call.args)
            _kept(jaxpr)
            program, became = _kept(again)
            if became != "read after tracing" and not became.startswith("not kept"):
                raise Mismatch(f"it is {became}, the second time")
            if _outcome(program, call.args) != want:
                raise Mismatch("the program on disk gives something else")
        except Unsupported as error:
            return f"not kept: {error}"
        except Exception as error:
            raise Mismatch(f"{error}\n{jaxpr}\narguments: {call.args!r}") from error
    return became


def _kept(jaxpr: Any) -> tuple[Any, str]:
    """The program of a jaxpr, made or read, and what became of it."""
    cached = CachedProgram(jaxpr, "f", {}, lambda: optimise(lower(jaxpr, name="f")))
    program, use = cached.get(), Use("f", (), "numpy", "")
    cached.tell(use)
    later.do_all()
    return program, str(use.traced_cache)


def _outcome(program: Any, args: Sequence[np.ndarray]) -> Any:
    """The results of a program, bit for bit, or the error that ends it."""
    try:
        return [np.asarray(x).tobytes() for x in Executable(program)(*map(np.asarray, args))]
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _in_jax(jaxpr: Any, args: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [np.asarray(x) for x in jax.jit(jaxpr_as_fun(jaxpr))(*args)]


def _compare_way(call: Program, way: str, jaxpr: Any, want: Sequence[np.ndarray]) -> None:
    try:
        got = [np.asarray(x) for x in jax.tree.leaves(call.shimmed(way))]
        for one, other in zip(got, want, strict=True):
            compare(one, other)
    except Exception as error:
        raise Mismatch(f"{way}: {error}\n{jaxpr}\narguments: {call.args!r}") from error


def _compare_talking(call: Talking, jaxpr: Any) -> None:
    """Compares a kernel whose devices talk with what it has to compute, or to raise."""
    want = call.expected()
    try:
        if want:
            _compare(jaxpr, call.args, want)
        elif want is None:
            for skipped in (NAMES, ()):
                executable = Executable(optimise(lower(jaxpr), skipped))
                assert deadlocks(executable, call.args, OWN_ORDER), "no deadlock"
        call.more(jaxpr)
    except Exception as error:
        if isinstance(error, Mismatch):
            raise
        shown = f"{call.fault} in round {call.at}, {call.rounds}"
        raise Mismatch(f"{error}\n{shown}\n{jaxpr}\narguments: {call.args!r}") from error


def _compare(
    jaxpr: Any, args: Sequence[np.ndarray], want: Sequence[np.ndarray], rtol: float | None = None
) -> None:
    args = [np.asarray(arg) for arg in args]
    for arg in args:
        arg.flags.writeable = False
    try:
        program = lower(jaxpr)
    except Unsupported as error:
        raise Mismatch(f"{error}\n{jaxpr}") from error
    for way, (skipped, emits) in WAYS.items():
        got: list[np.ndarray] = []
        try:
            got = [np.asarray(x) for x in Executable(optimise(program, skipped), emits)(*args)]
            for one, other in zip(got, want, strict=True):
                compare(one, other, rtol=rtol)
        except Exception as error:
            parts = {"arguments": args, "got": got, "want": want}
            shown = [f"{name}: {part!r}" for name, part in parts.items()]
            raise Mismatch("\n".join([f"{way}: {error}", str(jaxpr), *shown])) from error
