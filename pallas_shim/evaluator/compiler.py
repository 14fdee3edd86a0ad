"""The door into the evaluator: a jaxpr goes in, and what runs it comes out. Read this first.

    lower      jaxpr -> Program       lower.py asks the rule of each primitive (rules/)
    optimise   Program -> Program     the passes, in the order of the list in passes/__init__.py
    prepare    Program -> Executable  a closure for each instruction (execute.py), and for each loop
                                      that turns often enough, a Python function (codegen/)

A Program (program.py; what it may hold stands in ops.py) is immutable and holds no user data, so a
cache can keep it and come in by the last step. An Executable is called with NumPy arrays, and
gives NumPy arrays; JAX has no part in that.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from pallas_shim.evaluator import codegen
from pallas_shim.evaluator.execute import Executable
from pallas_shim.evaluator.lower import lower
from pallas_shim.evaluator.passes import Watcher, optimise
from pallas_shim.evaluator.program import Instruction, Program


class Options(NamedTuple):
    """How something is compiled.

    skip: the names of passes to leave out, "codegen" too (`passes.NAMES`).
    watchers: see the program that lowering makes, and that of each pass.
    emitted: is told each loop that becomes a Python function, and the source of that.
    """

    skip: Collection[str] = frozenset()
    watchers: Collection[Watcher] = ()
    emitted: Callable[[Instruction, str], None] | None = None


ALL_PASSES = Options()


def compile(
    jaxpr: Any,
    *,
    name: str,
    axes: Mapping[Any, int] = MappingProxyType({}),
    on_mesh: bool = False,
    options: Options = ALL_PASSES,
) -> Executable:
    """What runs a jaxpr. The arguments and errors are those of `make_program`."""
    program = make_program(jaxpr, name=name, axes=axes, on_mesh=on_mesh, options=options)
    return prepare(program, options)


def make_program(
    jaxpr: Any,
    *,
    name: str,
    axes: Mapping[Any, int] = MappingProxyType({}),
    on_mesh: bool = False,
    options: Options = ALL_PASSES,
) -> Program:
    """The optimised program of a jaxpr.

    Args:
      jaxpr: a JAX Jaxpr or ClosedJaxpr, of any supported version.
      name: for messages.
      axes: the sizes of the named axes of the devices that the jaxpr is for.
      on_mesh: whether arrays may be laid out over several devices, which changes no value.
      options: see there.

    Raises:
      Unsupported: some primitive has no rule, or its rule refuses this case. The error names the
        primitive and the user's source line.
      ValueError: there is no pass of some name in ``options.skip``.
      RecursionError: it is nested deeper than Python's stack has room for.
      Exception: what a watcher raises.
    """
    program = lower(jaxpr, name=name, axes=axes, on_mesh=on_mesh)
    return optimise(program, options.skip, options.watchers)


def prepare(
    program: Program, options: Options = ALL_PASSES, parts: Collection[int] = ()
) -> Executable:
    """What runs an optimised program, whether it was made now or kept by a cache.

    ``parts``: the positions of the results that stay in the parts of a mesh's devices.
    """
    emits = codegen.choice(options.skip)
    return Executable(program, emits, options.emitted, parts=parts)
