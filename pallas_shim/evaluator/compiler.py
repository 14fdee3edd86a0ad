"""The door into the evaluator: a jaxpr goes in, an Executable comes out. Read this first.

    lower      jaxpr -> Program       lower.py asks the rule of each primitive (rules/)
    optimise   Program -> Program     the passes, in the order of the list in passes/__init__.py
    prepare    Program -> Executable  a closure for each instruction (execute.py), and for each loop
                                      that turns often enough, a Python function (codegen/)

A Program is immutable and holds no user data, so a cache can keep it and start from the last step.
program.py defines it, and ops.py lists what it may hold. An Executable takes NumPy arrays and
returns NumPy arrays, without JAX.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from pallas_shim.evaluator import codegen
from pallas_shim.evaluator.checks.lowering import Checks
from pallas_shim.evaluator.execute import Executable
from pallas_shim.evaluator.findings import Finding
from pallas_shim.evaluator.lower import lower
from pallas_shim.evaluator.machine import shards
from pallas_shim.evaluator.machine.order import Order
from pallas_shim.evaluator.passes import NAMES, Watcher, optimise
from pallas_shim.evaluator.program import Instruction, Program
from pallas_shim.evaluator.racing import EndedExecutable, RacingExecutable
from pallas_shim.evaluator.schedules import (
    ExploredExecutable,
    LateExecutable,
    OrderedExecutable,
    Schedules,
)
from pallas_shim.evaluator.verdict import CheckedExecutable
from pallas_shim.evaluator.watching import Watch, probed


class Options(NamedTuple):
    """The options with which a function is compiled.

    skip: the names of passes to leave out, "codegen" too (`passes.NAMES`).
    watchers: each gets the program after lowering and after each pass.
    emitted: is called with each loop that becomes a Python function, and the function's source.
    checks: what kernels are checked for while they run; None if they aren't. ``found`` is called
      with each finding, ``started`` before each checked run, and ``ended`` after each call.
    timed: copies may happen later than they start, and programs run in any order, as
      `machine.order` says. No pass runs.
    late: copies happen when they are waited for; a call finds out whether that makes a difference.
    order: the program always runs in this order. schedules: calls are repeated in other orders, and
      ``found`` is called with a finding if results depend on it. None: they aren't.
    tpu_cores: the cores of the TPU that kernels are for, if they are for no interpreter.
    """

    skip: Collection[str] = frozenset()
    watchers: Collection[Watcher] = ()
    emitted: Callable[[Instruction, str], None] | None = None
    checks: Checks | None = None
    found: Callable[[Finding], None] = lambda finding: None
    started: Callable[[], None] = lambda: None
    ended: Callable[[], None] | None = None
    timed: bool = False
    late: bool = False
    order: Order | None = None
    schedules: Schedules | None = None
    tpu_cores: int = 1

    def runs_otherwise(self) -> bool:
        """Whether a call does more than run the optimised program once, in the usual order."""
        others = (self.checks, self.order, self.schedules)
        return self.late or any(other is not None for other in others)


ALL_PASSES = Options()


def compile(
    jaxpr: Any,
    *,
    name: str,
    axes: Mapping[Any, int] = MappingProxyType({}),
    on_mesh: bool = False,
    options: Options = ALL_PASSES,
) -> Executable:
    """Compiles a jaxpr. The arguments and errors are those of `make_program`."""
    program = make_program(jaxpr, name=name, axes=axes, on_mesh=on_mesh, options=options)
    return repeated(prepare(program, options), jaxpr, name, axes, on_mesh, options)


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
      options: see `Options`.

    Raises:
      Unsupported: some primitive has no rule, or its rule refuses this case. The error names the
        primitive and the user's source line.
      ValueError: ``options.skip`` has a name that no pass has.
      RecursionError: the jaxpr is nested deeper than Python's stack has room for.
      Exception: what a watcher raises.
    """
    program = lower(jaxpr, name=name, axes=axes, on_mesh=on_mesh, checks=options.checks,
                    timed=options.timed, tpu_cores=options.tpu_cores)  # fmt: skip
    skip = set(NAMES) if options.timed else options.skip
    return optimise(program, skip, options.watchers)


def repeated(
    executable: Executable,
    jaxpr: Any,
    name: str,
    axes: Mapping[Any, int],
    on_mesh: bool,
    options: Options,
    parts: Collection[int] = (),
) -> Executable:
    """The executable, which was made of the other arguments, with the checks and other orders that
    the options ask for: it reports what it finds."""

    def timed() -> Executable:
        # a watcher has seen the other program
        asked = Options(timed=True, tpu_cores=options.tpu_cores)
        program = make_program(jaxpr, name=name, axes=axes, on_mesh=on_mesh, options=asked)
        return prepare(program, asked, shards.results(program).keys() & set(parts))

    if options.order is not None:
        return OrderedExecutable(timed(), options.order)
    checks = options.checks
    if checks is not None:
        disturbing = checks._replace(disturbing=True, skipped=lambda kernel, reason: None)

        def disturbed() -> Executable:
            program = lower(jaxpr, (), name, axes, on_mesh, disturbing, options.timed,
                            tpu_cores=options.tpu_cores)  # fmt: skip
            return Executable(program, lambda loop: False, parts=parts)

        def unchecked() -> Executable:
            asked = options._replace(checks=None, watchers=(), emitted=None)
            program = make_program(jaxpr, name=name, axes=axes, on_mesh=on_mesh, options=asked)
            return prepare(program, asked, parts)

        executable = CheckedExecutable(
            executable, disturbed, unchecked, checks, options.found, options.started
        )
        if not checks.kinds.isdisjoint(("races", "sync")):
            executable = RacingExecutable(executable, timed, checks, options.found)
    if options.late:
        executable = LateExecutable(executable, timed)
    if options.schedules is not None:
        executable = ExploredExecutable(executable, timed, options.schedules, options.found)
    if options.ended is not None:
        executable = EndedExecutable(executable, options.ended)
    return executable


def prepare(
    program: Program, options: Options = ALL_PASSES, parts: Collection[int] = ()
) -> Executable:
    """Makes a program executable. It was optimised just now, or comes from a cache.

    ``parts``: the positions of the results that stay split into the parts of a mesh's devices.
    """
    emits = codegen.choice({"codegen"} if options.timed else options.skip)
    return Executable(program, emits, options.emitted, parts=parts)


def compile_watched(
    jaxpr: Any,
    watch: Watch,
    *,
    name: str,
    axes: Mapping[Any, int] = MappingProxyType({}),
    on_mesh: bool = False,
    tpu_cores: int = 1,
) -> Executable:
    """Compiles a jaxpr without optimising it, so that a watch is told of each instruction that it
    wants. The other arguments and the errors are those of `make_program` and `Options`."""
    program = lower(jaxpr, name=name, axes=axes, on_mesh=on_mesh, watch=watch, tpu_cores=tpu_cores)
    return Executable(probed(program, watch), lambda loop: False)
