"""From a function to what runs it: the settings as the compiler's options, and the cache of
programs."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from pallas_shim import dump, settings
from pallas_shim.cache.programs import CachedProgram
from pallas_shim.dispatch import observing
from pallas_shim.dispatch.function import Function
from pallas_shim.evaluator import call_stack, compiler
from pallas_shim.evaluator.execute import Executable
from pallas_shim.evaluator.machine import shards
from pallas_shim.evaluator.passes import Watcher
from pallas_shim.evaluator.program import Program
from pallas_shim.evaluator.registry import Unsupported
from pallas_shim.evaluator.verify import InvalidProgram, Verifier
from pallas_shim.jax_compat import arrays, call_info, kernel_info, sharded

R = TypeVar("R")


def compiled(function: Function, *, keep: bool) -> tuple[CachedProgram | None, Executable]:
    """What runs a function, and what keeps its program for later processes, if that is wanted.

    Raises:
      Unsupported: some part of it has no program.
      InvalidProgram: the user has programs checked, and this one is wrong.
      OSError: the user has programs written, and that failed.
    """
    folder = _folder(function.name)
    options = _options(folder)
    if folder is not None:
        folder.jaxpr(function.jaxpr)
    # Who looks at a program wants to see it made.
    if not keep or options.watchers or observing.current is not None:
        return None, _made(compiler.compile, function, options)
    make = functools.partial(_made, compiler.make_program, function, options)
    cached = CachedProgram(function.jaxpr, function.name, function.axes, make)
    program = cached.get()
    with _bugs_refuse(function.name):
        return cached, compiler.prepare(program, options)


# What the programs of a mesh meet for, and what they await, are functions of their own.
NOT_KEPT_ON_MESH = "its devices run as programs that wait for one another"


@dataclasses.dataclass(frozen=True, slots=True)
class MeshPlan:
    """What a function on a mesh of devices needs beside: ``cut`` has the positions of arguments
    that may come in the devices' parts, and how these are cut."""

    on: sharded.OnMesh
    cut: Mapping[int, sharded.Names]
    results: tuple[sharded.Result, ...]


def compiled_on_mesh(
    function: Function, types: Sequence[arrays.ResultType]
) -> tuple[Executable, MeshPlan]:
    """What runs a function of several devices, and what its calls need to know beside.

    Raises: as `compiled`.
    """
    on = function.on
    assert on is not None
    folder = _folder(function.name)
    options = _options(folder)
    if folder is not None:
        folder.jaxpr(function.jaxpr)
    made = _made(compiler.make_program, function, options)
    results = sharded.results(on, call_info.out_avals(function.jaxpr), types)
    parts: list[int] = []
    cut: Mapping[int, sharded.Names] = {}
    if observing.current is None:  # it compares whole arrays
        parts = [
            position
            for position, names in shards.results(made).items()
            if sharded.is_cut_so(results[position], names, on)
        ]
        cut = shards.parameters(made) if on.whole else {}
    with _bugs_refuse(function.name):
        return compiler.prepare(made, options, parts), MeshPlan(on, cut, results)


def program(function: Function) -> Program:
    """The program of a function, made now and not to be run.

    Raises: as `compiled`.
    """
    return _made(compiler.make_program, function, _options(None))


def kept(name: str, program: Program) -> Executable:
    """What runs a program that an earlier process made."""
    folder = _folder(name)
    if folder is not None:
        folder.program(program, "cache")
    return compiler.prepare(program, _options(folder))


def _folder(name: str) -> dump.Folder | None:
    directory = settings.current().dump
    return None if directory is None else dump.Folder(directory, name)


def _options(folder: dump.Folder | None) -> compiler.Options:
    """What the user's settings ask of the compiler. ``folder``: where it is to be written down."""
    asked = settings.current()
    watchers: list[Watcher] = [Verifier()] if asked.verify else []
    if folder is not None:
        watchers.append(folder)
    emitted = None if folder is None else folder.code
    return compiler.Options(asked.disabled_passes, watchers, emitted)


def _made(make: Callable[..., R], function: Function, options: compiler.Options) -> R:
    """What the compiler makes of a function."""
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
    """What goes wrong inside, in the compiler, is a reason to leave a function to JAX."""
    try:
        yield
    except (Unsupported, InvalidProgram, OSError, RecursionError):
        raise
    except Exception as error:
        # A wrong rule must not cost the user the call, but it must be seen.
        kind = type(error).__name__
        raise Unsupported(
            name, f"compiling it failed, which is a bug in pallas_shim: {kind}: {error}"
        ) from error


def with_depth_of(jaxpr: Any, name: str, call: Callable[..., R], *args: Any, **kwargs: Any) -> R:
    """What a call gives that goes through a jaxpr; made again with room for its nesting, if that
    is more than Python's recursion limit lets through.

    Raises:
      Unsupported: there is no room for so much.
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
        f"its loops, branches and calls are {levels} deep inside one another, for which there is "
        "no room on the stack",
    )
