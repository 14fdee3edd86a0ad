"""Compiles functions: turns the settings into the compiler's options, and uses the cache of
programs."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from pallas_shim import dump, settings
from pallas_shim.cache.programs import CachedProgram
from pallas_shim.check.collect import COLLECTOR
from pallas_shim.dispatch import observing
from pallas_shim.dispatch.function import Function
from pallas_shim.evaluator import call_stack, compiler
from pallas_shim.evaluator.checks.lowering import Checks
from pallas_shim.evaluator.execute import Executable
from pallas_shim.evaluator.findings import Finding
from pallas_shim.evaluator.machine import order, shards
from pallas_shim.evaluator.passes import Watcher
from pallas_shim.evaluator.program import Program
from pallas_shim.evaluator.registry import Unsupported
from pallas_shim.evaluator.schedules import ORDER_DEPENDENT, Schedules
from pallas_shim.evaluator.verify import InvalidProgram, Verifier
from pallas_shim.jax_compat import arrays, call_info, checked, kernel_info, sharded

R = TypeVar("R")


def compiled(function: Function, *, keep: bool) -> tuple[CachedProgram | None, Executable]:
    """Compiles a function. Also returns the object that keeps its program for later processes.

    That object is None if the program isn't to be kept.

    Raises:
      Unsupported: some part of the function has no program.
      InvalidProgram: programs are checked, and this one is wrong.
      OSError: programs are to be written to files, and that failed.
    """
    folder = _folder(function.name)
    options = _options(folder, function)
    if folder is not None:
        folder.jaxpr(function.jaxpr)
    # A dump or an observer needs each step of the compilation, so the cache is not used. It holds
    # no checked programs either, and none that can run in any order.
    whole = keep and not options.watchers and observing.current is None
    if not whole or options.runs_otherwise():
        return None, _made(compiler.compile, function, options)
    make = functools.partial(_made, compiler.make_program, function, options)
    cached = CachedProgram(function.jaxpr, function.name, function.axes, make)
    program = cached.get()
    with _bugs_refuse(function.name):
        return cached, compiler.prepare(program, options)


# The operations that wait and meet hold functions of their own, which can't be kept.
NOT_KEPT_ON_MESH = "its devices run as programs that wait for one another"


@dataclasses.dataclass(frozen=True, slots=True)
class MeshPlan:
    """The data that calls of a function on a mesh need.

    ``cut`` has the positions of the arguments that may come as the devices' parts, and the axes
    along which these are cut.
    """

    on: sharded.OnMesh
    cut: Mapping[int, sharded.Names]
    results: tuple[sharded.Result, ...]


def compiled_on_mesh(
    function: Function, types: Sequence[arrays.ResultType]
) -> tuple[Executable, MeshPlan]:
    """Compiles a function of several devices. Also returns what its calls need to know.

    Raises: as `compiled`.
    """
    on = function.on
    assert on is not None
    folder = _folder(function.name)
    options = _options(folder, function)
    if folder is not None:
        folder.jaxpr(function.jaxpr)
    made = _made(compiler.make_program, function, options)
    results = sharded.results(on, call_info.out_avals(function.jaxpr), types)
    parts: list[int] = []
    cut: Mapping[int, sharded.Names] = {}
    if observing.current is None:  # an observer compares whole arrays
        parts = [
            position
            for position, names in shards.results(made).items()
            if sharded.is_cut_so(results[position], names, on)
        ]
        # The programs that the options ask for may use an argument elsewhere, too.
        cut = shards.parameters(made) if on.whole and not options.runs_otherwise() else {}
    with _bugs_refuse(function.name):
        executable = compiler.prepare(made, options, parts)
        executable = compiler.repeated(
            executable, function.jaxpr, function.name, function.axes, True, options, parts
        )
        return executable, MeshPlan(on, cut, results)


def program(function: Function) -> Program:
    """Makes the program of a function, not to be run.

    Raises: as `compiled`.
    """
    return _made(compiler.make_program, function, _options(None, function))


def kept(name: str, program: Program) -> Executable:
    """Prepares a program that an earlier process made."""
    folder = _folder(name)
    if folder is not None:
        folder.program(program, "cache")
    return compiler.prepare(program, _options(folder, None))


def _folder(name: str) -> dump.Folder | None:
    directory = settings.current().dump
    return None if directory is None else dump.Folder(directory, name)


def _options(folder: dump.Folder | None, function: Function | None) -> compiler.Options:
    """The options that the settings ask for. ``folder``: where the dump goes, if there is one.
    ``function``: None if its program was made before."""
    asked = settings.current()
    watchers: list[Watcher] = [Verifier()] if asked.verify else []
    if folder is not None:
        watchers.append(folder)
    emitted = None if folder is None else folder.code
    options = compiler.Options(
        asked.passes_left_out, watchers, emitted, tpu_cores=asked.tpu_cores
    )
    races = frozenset() if function is None else function.races
    told = _Races(function is not None and kernel_info.raises_on_race(function.jaxpr))
    options = options._replace(found=functools.partial(_found, asked.check, races, told))
    if asked.check or races:
        skipped = COLLECTOR.skip if asked.check else _nothing_skipped
        options = options._replace(checks=Checks(asked.check | races, skipped))
        if races:
            options = options._replace(started=told.start)
            if told.raises:
                options = options._replace(ended=told.end)
    if function is None or not function.kernels:
        return options
    if kernel_info.waits_for_its_copies(function.jaxpr):
        options = options._replace(late=True)
    if asked.schedules:
        names = ", ".join(dict.fromkeys(kernel.name for kernel in function.kernels))
        seed = int(asked.seed or 0)
        source = function.kernels[0].source
        tried = Schedules(asked.schedules, seed, names, source, COLLECTOR.skip)
        return options._replace(schedules=tried)
    if asked.seed is not None:
        return options._replace(order=order.parse(asked.seed))
    return options


def _nothing_skipped(kernel: str, reason: str) -> None:
    """Ignores what isn't checked, as JAX's race detector does."""


class _Races:
    """Says of races what JAX's detector says. ``raises``: as an error, when the call ends."""

    def __init__(self, raises: bool) -> None:
        self.raises = raises
        self._first: str | None = None

    def start(self) -> None:
        self._first = None
        checked.note_race(None)

    def found(self, message: str) -> None:
        if self.raises:
            self._first = self._first or message
        else:
            checked.note_race(message)

    def end(self) -> None:
        if self._first is not None:
            raise RuntimeError(f"RACE DETECTED\n  {self._first}")


def _found(
    wanted: Collection[str], races: Collection[str], told: _Races, finding: Finding
) -> None:
    """Hands on a finding to those who asked for it: for its kind, for other orders, or of JAX."""
    if finding.kind in wanted or finding.rule == ORDER_DEPENDENT:
        COLLECTOR.add(finding)
    if finding.kind in races and finding.rule in _RACES:
        told.found(finding.message)


# What JAX's race detector finds, too.
_RACES = frozenset({
    "block-of-two", "cells", "carried-over-parallel", "read-before-wait",
    "source-changed-in-flight", "target-written-in-flight", "copy-not-awaited", "copy-unordered",
    "unordered",
})  # fmt: skip


def _made(make: Callable[..., R], function: Function, options: compiler.Options) -> R:
    """Runs one of the compiler's functions."""
    with _bugs_refuse(function.name):
        return make(
            function.jaxpr,
            name=function.name,
            axes=function.axes,
            on_mesh=function.on is not None,
            options=options,
        )


@contextlib.contextmanager
def _bugs_refuse(name: str) -> Iterator[None]:
    """Turns an internal error of the compiler into a reason to leave the function to JAX."""
    try:
        yield
    except (Unsupported, InvalidProgram, OSError, RecursionError):
        raise
    except Exception as error:
        # A wrong rule must not cost the user the call, but it must be visible.
        kind = type(error).__name__
        raise Unsupported(
            name, f"compiling it failed, which is a bug in pallas_shim: {kind}: {error}"
        ) from error


def with_depth_of(jaxpr: Any, name: str, call: Callable[..., R], *args: Any, **kwargs: Any) -> R:
    """Calls a function that recurses through a jaxpr, and returns its result.

    If Python's recursion limit stops the call, it is repeated with room for the jaxpr's nesting.

    Raises:
      Unsupported: there isn't enough room for the nesting.
    """
    call = functools.partial(call, *args, **kwargs)
    try:
        return call()
    except RecursionError:
        levels = kernel_info.nesting(jaxpr)
    if levels <= call_stack.DEEPEST:
        with contextlib.suppress(RecursionError):
            return call_stack.with_depth(levels, call)
    raise Unsupported(
        name,
        f"its loops, branches and calls are nested {levels} deep, too deep for the stack",
    )
