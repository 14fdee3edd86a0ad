"""python -m pallas_shim bisect script.py: finds the pass or the rule that makes a number wrong.

The script runs here, with the shim on. Each run of a function or kernel is repeated twice: by the
unoptimised program, which is the reference for the passes, and by JAX. If the optimised program
differs from the unoptimised one, the program after each pass runs. That finds the first pass whose
result differs, and the first value in it that differs. If the unoptimised program differs from JAX,
each primitive runs by itself.

`agree` compares results: integers are equal; floats agree within the rounding of sums.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import jaxpr_as_fun

from pallas_shim import agreement, dispatch, jax_compat, patching, scripts, settings
from pallas_shim.evaluator import codegen, compiler, ops, printer
from pallas_shim.evaluator.analysis.alias import AliasAnalysis
from pallas_shim.evaluator.execute import Executable
from pallas_shim.evaluator.program import (
    ArrayType,
    Instruction,
    Operation,
    Program,
    Region,
    Value,
    make_instruction,
)
from pallas_shim.evaluator.registry import Unsupported
from pallas_shim.jax_compat import arrays, jaxprs
from pallas_shim.jax_compat.callbacks import CALLBACK_PRIMITIVES

Results = Sequence[np.ndarray] | Exception

# The limits: bytes of intermediate values, and of runs inside XLA's programs, that are kept; and
# the number of runs of one instruction that are repeated in JAX.
_MOST_BYTES = 1 << 28
_MOST_RUNS = 16


def main(target: list[str]) -> int:
    """Runs a target, given as on Python's command line (a script, ``-m``, ``-c``), and prints what
    differs. Returns the exit status: 0 if nothing differs, 1 if something does, 2 if the script
    failed and nothing differed."""
    if not target or (target[0].startswith("-") and target[0] not in ("-m", "-c")):
        print("usage: python -m pallas_shim bisect script.py [args], or -m module, or -c code\n")
        print("Says which pass, rule or loop of the shim makes a number differ from JAX's.\n")
        print("example: python -m pallas_shim bisect bench.py --size 8")
        return 0 if target and target[0] in ("-h", "--help") else 2
    os.environ["PALLAS_NUMPY_CACHE"] = "0"  # a program from the cache has no passes to look at
    settings.current.cache_clear()
    patching.activate()
    recorder = RunComparer()
    dispatch.observe(recorder)
    failed = False
    try:
        scripts.run(target)
    except SystemExit as ended:
        failed = ended.code not in (None, 0)
    except BaseException:
        traceback.print_exc()
        failed = True
    recorder.finish()
    dispatch.observe(None)
    print("\n".join(recorder.report()), file=sys.stderr)
    if recorder.findings:
        return 1
    return 2 if failed else 0


# -- when results agree -------------------------------------------------------------------------


def agree(got: Results, want: Results) -> bool:
    """Whether results are the same, as `agreement.agree` says. Errors agree if they are of one
    type."""
    if isinstance(got, Exception) or isinstance(want, Exception):
        return type(got) is type(want)
    return len(got) == len(want) and all(map(agreement.agree, got, want))


# -- what is recorded ---------------------------------------------------------------------------


@dataclasses.dataclass(eq=False)
class _Function:
    """One function or kernel. ``stages`` maps the name of each stage to the program after it."""

    name: str
    jaxpr: Any
    axes: Mapping[Any, int]
    stages: list[tuple[str, Program]] = dataclasses.field(default_factory=list)
    calls: int = 0
    in_jax: Callable[..., Any] | None = None
    unasked: str | None = None  # the reason why JAX can't run it

    def program(self, program: Program, after: str) -> None:
        """Watches the function's pipeline, see `passes.Watcher`."""
        self.stages.append((after, program))

    def make_stages(self) -> None:
        if not self.stages:
            asked = settings.current()
            options = compiler.Options(asked.passes_left_out, [self], tpu_cores=asked.tpu_cores)
            compiler.make_program(self.jaxpr, name=self.name, axes=self.axes, options=options)


class RunComparer:
    """Compares each run of a program that `dispatch` reports. See `dispatch.Observer`."""

    def __init__(self) -> None:
        self.findings: dict[_Function, list[str]] = {}
        self._functions: dict[Executable, _Function] = {}
        self._waiting: list[tuple[_Function, list[np.ndarray], Results]] = []
        self._bytes = 0
        self._left_out = 0

    def planned(self, executable: Executable, function: dispatch.Function) -> Executable:
        self._functions[executable] = _Function(function.name, function.jaxpr, function.axes)
        return executable

    def ran(
        self,
        executable: Executable,
        values: Sequence[np.ndarray],
        results: Results,
        inside_xla: bool,
    ) -> None:
        function = self._functions.get(executable)
        if function is None or function in self.findings:
            return
        if not inside_xla:
            self.compare(function, values, results)
            return
        size = sum(v.nbytes for v in values)
        if self._bytes + size > _MOST_BYTES:
            self._left_out += 1
            return
        self._bytes += size
        kept = results if isinstance(results, Exception) else [np.array(r) for r in results]
        self._waiting.append((function, [np.array(v) for v in values], kept))

    def finish(self) -> None:
        """Compares the runs inside XLA's programs."""
        waiting, self._waiting = self._waiting, []
        for function, values, results in waiting:
            if function not in self.findings:
                self.compare(function, values, results)

    def compare(
        self, function: _Function, values: Sequence[np.ndarray], results: Results
    ) -> None:
        function.make_stages()
        lowered = function.stages[0][1]
        function.calls += 1
        called = {i.name for i in lowered.top.walk()} & set(CALLBACK_PRIMITIVES)
        if called:
            function.unasked = f"not compared: its {min(called)} would be seen again"
            return
        plain = _outcome(lowered, values)
        if not agree(results, plain):
            self.findings[function] = _in_passes(function, values, plain)
            return
        reference = _in_jax(function, values)
        if reference is not None and not agree(plain, reference):
            self.findings[function] = _in_rules(function, values, plain, reference)

    def report(self) -> Iterator[str]:
        functions = [f for f in self._functions.values() if f.calls]
        calls = sum(function.calls for function in functions)
        for function, lines in self.findings.items():
            yield f"{function.name}: {lines[0]}"
            yield from lines[1:]
        for function in functions:
            if function.unasked is not None:
                yield f"{function.name}: {function.unasked}"
        if self._left_out:
            yield f"{_counted(self._left_out, 'run')} inside XLA's programs not compared"
        found = f"{len(self.findings)} of them differ" if self.findings else "no difference"
        compared = f"{_counted(len(functions), 'function')} in {_counted(calls, 'call')}"
        yield f"pallas_shim bisect: {compared}, {found}"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _outcome(
    program: Program,
    values: Sequence[np.ndarray],
    emits: Callable[[Instruction], bool] | None = None,
) -> Results:
    """The results of a program. Its loops stay interpreted, unless the caller says which become
    Python functions."""
    try:
        run = Executable(program, emits or (lambda loop: False))
        return [np.array(result) for result in run(*values)]
    except Exception as error:
        return error


def _in_jax(function: _Function, values: Sequence[np.ndarray]) -> Results | None:
    """JAX's results, or None if JAX can't run the function."""
    if function.unasked is not None:
        return None
    try:
        with dispatch.left_to_jax():
            if function.in_jax is None:
                closed = jaxprs.closed(function.jaxpr)
                in_jax = arrays.on_key_data(jaxpr_as_fun(closed), closed.in_avals)
                function.in_jax = jax.jit(in_jax)
            return [np.asarray(x) for x in function.in_jax(*values)]
    except Exception as error:
        what = str(error).partition("\n")[0]
        function.unasked = f"not compared with JAX, which fails: {type(error).__name__}: {what}"
        return None


# -- which pass ---------------------------------------------------------------------------------


def _in_passes(
    function: _Function, values: Sequence[np.ndarray], plain: Results
) -> list[str]:
    """The finding about a function whose result a pass changes."""
    before = function.stages[0][1]
    for name, program in function.stages[1:]:
        found = _outcome(program, values)
        if not agree(found, plain):
            return [
                f"the pass {name} changes its results: {_difference(found, plain)}",
                *_in_pass(before, program, values),
                f"  PALLAS_NUMPY_PASSES=-{name} leaves it out",
            ]
        before = program
    emits = codegen.choice(settings.current().passes_left_out)
    found = _outcome(before, values, emits)
    if agree(found, plain):
        return ["its result was another one than now, with the same program and arguments"]
    lines = [f"code generation changes its results: {_difference(found, plain)}"]
    for loop in before.top.walk():
        if not loop.regions or loop.name == "switch" or not emits(loop):
            continue
        alone = functools.partial(operator.is_, loop)
        if not agree(_outcome(before, values, alone), plain):
            lines += [
                f"  the function of this loop is wrong: {_shown(loop, before)}",
                *_code(before, alone),
            ]
            break
    return [*lines, "  PALLAS_NUMPY_PASSES=-codegen leaves it out"]


def _code(program: Program, emits: Callable[[Instruction], bool]) -> list[str]:
    """The source of the Python functions that loops become."""
    lines: list[str] = []

    def note(loop: Instruction, source: str) -> None:
        lines.extend(["    " + line for line in source.splitlines()])

    Executable(program, emits, note)
    return lines


def _difference(got: Results, want: Results) -> str:
    """The difference in words."""
    if isinstance(got, Exception) or isinstance(want, Exception):
        one, other = (
            f"{type(r).__name__}: {r}" if isinstance(r, Exception) else "results"
            for r in (got, want)
        )
        return f"{one}, where it was {other}"
    pairs = list(zip(got, want, strict=True))
    position = next(n for n, pair in enumerate(pairs) if not agreement.agree(*pair))
    a, b = map(np.asarray, pairs[position])
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        return f"result {position} is {a.dtype}{a.shape}, where it was {b.dtype}{b.shape}"
    with np.errstate(all="ignore"):
        wrong = np.argwhere(~((a == b) | ((a != a) & (b != b))))
    at = tuple(map(int, wrong[0]))
    return (
        f"result {position} has {a[at]} at {at}, where it was {b[at]} "
        f"({len(wrong)} of {a.size} elements differ)"
    )


def _shown(instruction: Instruction, program: Program, names: printer.Names | None = None) -> str:
    text = printer.instruction(instruction, printer.names(program) if names is None else names)
    place = jax_compat.user_source(instruction.source)
    return text + (f"  # at {place}" if place else "")


def _in_pass(before: Program, after: Program, values: Sequence[np.ndarray]) -> list[str]:
    """The first value that both programs have and that differs.

    The finding also shows how the pass changed the instructions that make the value.
    """
    names = printer.names(after, printer.names(before))
    wanted, found = _Trace(before, values), _Trace(after, values)
    for key, number, got in found.events:
        runs = wanted.runs.get(key, [])
        if len(runs) != len(found.runs[key]) or agreement.agree(got, runs[number]):
            continue
        instruction = found.makers[key]
        own = {_key(i) for i in before.top.walk()}, {_key(i) for i in after.top.walk()}
        lines = [f"  first in   {_shown(instruction, after, names)}"]
        for what, program, others in (("was      ", before, own[1]), ("is       ", after, own[0])):
            maker = wanted.makers[key] if program is before else instruction
            changed = [i for i in _made_of(program, maker) if _key(i) not in others]
            lines += [f"    {what}{_shown(i, program, names)}" for i in changed[-12:]]
        return lines
    if found.is_full or wanted.is_full:
        return ["  too much is computed to find the first value that differs"]
    return ["  no value that both programs have differs before the results"]


def _key(instruction: Instruction) -> Any:
    operation, ins, outs, _, _ = instruction
    return (operation.name, operation.fn, ins, outs)


def _made_of(program: Program, last: Instruction) -> list[Instruction]:
    """The instructions that ``last`` depends on, and itself, in order.

    It depends on them through values, and through memory that it reads or that others overwrite.
    """
    everything = list(program.top.walk())
    try:
        memory: AliasAnalysis | None = AliasAnalysis(program)
    except Unsupported:
        memory = None
    values, chosen = {*last.ins, *last.outs}, {id(last)}
    roots: set[Value] = set()
    results = {
        out: result
        for i in everything for region in i.regions
        for out, result in zip(i.outs, region.results, strict=False)
    }  # fmt: skip
    while True:
        before = len(chosen), len(values), len(roots)
        for i in everything:
            operation, ins, outs, _, _ = i
            over = operation.params.get(ops.INTO)
            touched = set(memory.roots(i, operation.effects.writes)) if memory else set()
            if not (
                id(i) in chosen
                or not values.isdisjoint(outs)
                or (over is not None and ins[over] in values)
                or not roots.isdisjoint(touched)
            ):
                continue
            chosen.add(id(i))
            values.update(ins)
            values.update(results[out] for out in outs if out in results)
            if memory:
                roots.update(memory.roots(i, operation.effects.reads))
        if (len(chosen), len(values), len(roots)) == before:
            return [i for i in everything if id(i) in chosen]


class _Trace:
    """The values of all instructions in one run of a program.

    ``events``: in order, each value made and each store, which run of its instruction it is, and
    the array. ``runs``: the arrays of each value and each store. ``arguments``: the operands and
    results of the first runs of each instruction.
    """

    def __init__(self, program: Program, values: Sequence[np.ndarray]):
        self.events: list[tuple[Any, int, Any]] = []
        self.runs: dict[Any, list[Any]] = {}
        self.makers: dict[Any, Instruction] = {}
        self.arguments: dict[int, list[tuple[list[Any], Any]]] = {}  # by the instruction's id
        self.is_full = False
        self._bytes = 0
        self._instructions: dict[int, Instruction] = {}
        _outcome(Program(program.name, self._region(program.top)), values)

    def _region(self, region: Region) -> Region:
        return Region(region.params, tuple(map(self._traced, region.body)), region.results)

    def _traced(self, instruction: Instruction) -> Instruction:
        operation, ins, outs, regions, source = instruction
        fn = operation.fn
        if fn is None:
            inner = tuple(map(self._region, regions))
            return make_instruction((operation, ins, outs, inner, source))

        def run(*args: Any) -> Any:
            given = [np.array(a) for a in args] if self._asks(instruction, args) else None
            results = fn(*args)
            made = tuple(results) if operation.multiple else (results,)
            for out, result in zip(outs, made, strict=False):
                self._note(out, instruction, result)
            for position in operation.effects.writes:
                self._note((operation.name, ins, position), instruction, args[position])
            if given is not None:
                copies = [np.array(result) for result in made]
                self.arguments.setdefault(id(instruction), []).append((given, copies))
            return results

        self._instructions[id(instruction)] = instruction
        traced = Operation(
            operation.name, {}, operation.ins, operation.outs, run, operation.effects,
            operation.view, operation.multiple,
        )  # fmt: skip
        return make_instruction((traced, ins, outs, (), source))

    def _asks(self, instruction: Instruction, args: Sequence[Any]) -> bool:
        """Whether to keep the operands of this run."""
        if ops.row_of(instruction.operation) is not ops.PRIMITIVE or self.is_full:
            return False
        return len(self.arguments.get(id(instruction), ())) < _MOST_RUNS

    def _note(self, key: Any, instruction: Instruction, array: Any) -> None:
        if not isinstance(array, (np.ndarray, np.generic)) or array.dtype.hasobject:
            return
        self._bytes += array.nbytes
        if self._bytes > _MOST_BYTES:
            self.is_full = True
            return
        runs = self.runs.setdefault(key, [])
        self.makers[key] = instruction
        copy = np.array(array)
        self.events.append((key, len(runs), copy))
        runs.append(copy)

    def asked(self) -> Iterator[tuple[Instruction, list[Any], list[Any]]]:
        """Each kept run of a primitive: the instruction, its operands and its results."""
        for at, runs in self.arguments.items():
            for given, made in runs:
                yield self._instructions[at], given, made


# -- which rule ---------------------------------------------------------------------------------


def _in_rules(
    function: _Function, values: Sequence[np.ndarray], plain: Results, reference: Results
) -> list[str]:
    """The finding about a function whose unoptimised program differs from JAX's result."""
    lines = [f"lowering is not what JAX does: {_difference(plain, reference)}"]
    program = function.stages[0][1]
    primitives = {
        jax_compat.primitive_name(eqn.primitive): eqn.primitive
        for eqn in jaxprs.equations(function.jaxpr)
    }
    asked: dict[Operation, Callable[..., Any]] = {}
    for instruction, given, made in _Trace(program, values).asked():
        operation = instruction.operation
        primitive = primitives.get(operation.name)
        types = (*operation.ins, *operation.outs)
        if primitive is None or not all(isinstance(t, ArrayType) for t in types):
            continue
        if operation not in asked:
            asked[operation] = jax.jit(
                lambda *xs, p=primitive, o=operation: p.bind(*xs, **o.params)
            )
        try:
            with dispatch.left_to_jax():
                want = [np.asarray(x) for x in jax.tree.leaves(asked[operation](*given))]
        except Exception:
            continue  # lowering made this primitive with parameters of its own, so JAX can't run it
        if [(x.shape, x.dtype) for x in want] != [(x.shape, x.dtype) for x in made]:
            continue
        if not agree(made, want):
            return [
                *lines,
                f"  the rule of {operation.name} gives another result than JAX for the same "
                f"operands: {_difference(made, want)}",
                f"  first in   {_shown(instruction, program)}",
            ]
    return [*lines, "  no rule by itself gives another result: what is wrong is how memory, "
            "indices or control flow are lowered"]  # fmt: skip
