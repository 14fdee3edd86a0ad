"""A function with kernels, compiled as a whole for a TPU: where XLA puts the kernels' operands,
what runs around the kernels, and how long each takes."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from pallas_shim.chip import bundles, dumps, hlo, jobs, scalar_unit
from pallas_shim.chip.copies import LOCAL
from pallas_shim.chip.model import MODELS, Model, rates
from pallas_shim.chip.tpus import Target

# They have no code of their own.
_FREE = frozenset({
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id",
    "replica-id",
})  # fmt: skip
# Operations on fewer bytes, such as a loop's counter, are left out.
_SCALARS = 1024
_FREE_CALLS = ("AllocateBuffer", "ConcatBitcast")
_TARGET = r'custom_call_target="([^"]*)"'
# XLA's operations that only stream: they take the time of their bytes. The others take what XLA
# says of them.
_STREAMS = frozenset({"broadcast", "reduce"})
# Where XLA's operations take less than this share of the kernels' time, the error is the kernels'.
LITTLE = 1 / 8


class Placed(NamedTuple):
    """An operand or a result of a kernel: its type, its bytes, the memory it lies in, and the
    user's name of it, if that is known."""

    type: str
    size: int
    space: str
    is_result: bool
    name: str = ""

    def text(self) -> str:
        """The form for people."""
        named = f"{self.name} " if self.name else "to " if self.is_result else "from "
        return f"{named}{self.type} in {self.space.upper()}"


@dataclasses.dataclass(frozen=True)
class XlaOperation:
    """An operation of XLA's, or a kernel, as it stands in the compiled function.

    ``origin``: JAX's name of what it comes from, or the kernel's name. ``times``: how often it runs
    in one call; None: unknown. ``seconds``: what all of that takes; None: unknown. ``placed``: of a
    kernel. ``waited``: the seconds that a kernel waits for copies. ``unknown``: why there is no
    time. Seconds are those of the function's estimate; without one there are none.
    """

    name: str
    opcode: str
    origin: str
    times: int | None
    seconds: float | None = None
    placed: tuple[Placed, ...] = ()
    waited: float = 0.0
    unknown: str | None = None

    @property
    def is_kernel(self) -> bool:
        return self.opcode == KERNEL


KERNEL = "kernel"


@dataclasses.dataclass(frozen=True)
class Whole:
    """A function on one TPU. ``operations``: in the order in which they run; those that take no
    time are left out. ``seconds``: an estimate of a call, with its ``error``; ``kernels`` and
    ``around``: the parts that kernels, and XLA's operations, take. ``unknown``: why what is missing
    is missing."""

    function: str
    tpu: str
    operations: tuple[XlaOperation, ...] = ()
    seconds: float | None = None
    kernels: float | None = None
    around: float | None = None
    error: str | None = None
    unknown: str | None = None

    @property
    def share(self) -> float | None:
        """The share of the kernels in what all operations take."""
        if self.kernels is None or self.around is None:
            return None
        return self.kernels / max(self.kernels + self.around, 1e-12)

    def row(self) -> dict[str, Any]:
        """The JSON form."""
        made = dataclasses.asdict(self)
        for row, each in zip(made["operations"], self.operations, strict=True):
            row["placed"] = [placed._asdict() for placed in each.placed]
        return {**made, "share": self.share}


class KnownKernel(NamedTuple):
    """What else is known of a kernel: the user's names of it and of its operands and results, and
    what a run in NumPy decided."""

    kernel: str | None = None
    names: Sequence[str] = ()
    executed: scalar_unit.Executed = scalar_unit.NOTHING


# Tells that of the kernel whose operands and results have these types.
Lookup = Callable[[tuple[str, ...]], KnownKernel]


def whole(
    function: str, target: Target, answer: jobs.Answer, known: Lookup = lambda _: KnownKernel()
) -> Whole:
    """What the compiler made of a function. Never raises because of the compiler's words."""
    made = Whole(function, target.name)
    if not isinstance(answer.schedule, dumps.Compiled):
        said = answer.unread or f"{answer.outcome}: {answer.message}"
        return dataclasses.replace(made, unknown=f"not compiled as a whole: {said}")
    try:
        module = hlo.read(answer.schedule.hlo)
        walk = _Walk(module, answer.schedule.kernels, target.tpu.name, known)
        walk.walk(module.computations[module.entry], 1)
    except (dumps.UnreadableDump, LookupError) as error:
        said = str(error) if isinstance(error, dumps.UnreadableDump) else repr(error)
        return dataclasses.replace(made, unknown=f"no program with libtpu {answer.libtpu}: {said}")
    made = dataclasses.replace(made, operations=tuple(walk.found))
    return _estimated(made, MODELS.get(target.tpu.name))


def _estimated(made: Whole, model: Model | None) -> Whole:
    def without(why: str) -> Whole:
        untimed = tuple(dataclasses.replace(o, seconds=None, waited=0.0) for o in made.operations)
        said = f"no estimate of seconds: {why}"
        return dataclasses.replace(made, operations=untimed, unknown=said)

    if model is None:
        return without(f"no measured times of a {made.tpu} to fit and to check")
    missing = [each for each in made.operations if each.seconds is None]
    if missing:
        return without(f"{missing[0].name}: {missing[0].unknown}")
    kernels, around = (
        sum(each.seconds or 0.0 for each in made.operations if each.is_kernel is chosen)
        for chosen in (True, False)
    )
    error = model.mostly_kernels if around < LITTLE * kernels else model.mixed
    if kernels + around < model.launch:
        error += "; most of this one is the launch, so that says little of the rest"
    return dataclasses.replace(
        made, kernels=kernels, around=around, seconds=kernels + around + model.launch, error=error
    )


class _Walk:
    """Goes through a program in the order in which it runs."""

    def __init__(
        self, module: hlo.Module, kernels: dict[str, dumps.Files], tpu: str, known: Lookup
    ) -> None:
        self.found: list[XlaOperation] = []
        self._module, self._tpu, self._known = module, tpu, known
        self._model = MODELS.get(tpu)
        self._files = kernels
        # The compiler compiles equal kernels once.
        self._by_code = {
            _code(where, each): kernels[name]
            for where in module.computations.values()
            for name, each in where.items()
            if name in kernels
        }

    def walk(self, where: dict[str, hlo.HloInstruction], times: int | None) -> float:
        """Adds the operations of a computation. Returns the seconds of one turn, as far as they
        are known."""
        clock = 0.0
        begun: dict[str, float] = {}
        for each in where.values():
            if each.opcode == "while":
                turns = hlo.turns(self._module, where, each)
                all_turns = None if turns is None or times is None else turns * times
                body = self._module.computations[each.attribute(r"body=%([^ ,]+)") or ""]
                clock += self.walk(body, all_turns) * (turns or 0)
            elif each.opcode in ("conditional", "call"):
                is_known = each.opcode == "call"
                for called in hlo.inner(self._module, each):
                    clock += self.walk(called, times if is_known else None)
            elif each.opcode in ("copy-start", "slice-start"):
                begun[each.name] = clock
            elif each.opcode in _FREE or each.attribute(_TARGET) in _FREE_CALLS:
                begun[each.name] = begun.get(each.operands[0], clock) if each.operands else clock
            elif each.is_kernel or _size(where, each) >= _SCALARS:
                made = self._operation(where, each, times, clock - _since(begun, each, clock))
                clock += (made.seconds or 0.0) / max(times or 1, 1)
                if made.seconds != 0.0:
                    self.found.append(made)
        return clock

    def _operation(
        self, where: dict[str, hlo.HloInstruction], each: hlo.HloInstruction, times: int | None,
        passed: float,
    ) -> XlaOperation:  # fmt: skip
        """``passed``: the seconds since a copy was started, if this waits for one."""
        opcode = KERNEL if each.is_kernel else each.opcode
        made = XlaOperation(each.name, opcode, _origin(each), times)
        if times is None:
            made = dataclasses.replace(made, unknown="data decides how often it runs")
        if each.is_kernel:
            return self._kernel(where, each, made)
        if self._model is None or times is None:
            return made
        if any(inner.is_kernel for inner in self._called(each).values()):
            return dataclasses.replace(made, unknown="XLA runs a kernel as a part of it")
        model = self._model
        cycles = each.attribute(r'"estimated_cycles":"(\d+)"')
        if each.opcode in ("copy-done", "slice-done"):
            seconds = max(sum(a.size for a in each.arrays) / model.bandwidth - passed, 0.0)
        elif cycles is not None and not self._streams(each):
            seconds = int(cycles) / model.clock
        elif each.opcode == "custom-call" or each.opcode.endswith("-start"):
            return dataclasses.replace(made, unknown="XLA says no time of it")
        else:
            read = [array for name in each.operands for array in _arrays(where, name)]
            moved = [*each.arrays, *read]
            if each.opcode == "dynamic-update-slice":  # in place: only the slice moves
                moved = [read[1]] * 2
            seconds = sum(a.size for a in moved if a.space == "hbm") / model.bandwidth
        return dataclasses.replace(made, seconds=seconds * times)

    def _streams(self, each: hlo.HloInstruction) -> bool:
        """Whether an operation reads and writes whole arrays, and does little else."""
        if each.opcode in _STREAMS:
            return True
        if "kind=kLoop" not in each.rest or "copy" in each.name:
            return False
        return not any(inner.opcode.startswith("dynamic-") for inner in self._called(each).values())

    def _called(self, each: hlo.HloInstruction) -> dict[str, hlo.HloInstruction]:
        """What a fusion consists of."""
        return self._module.computations.get(each.attribute(r"calls=%([^ ,]+)") or "", {})

    def _kernel(
        self, where: dict[str, hlo.HloInstruction], each: hlo.HloInstruction, made: XlaOperation
    ) -> XlaOperation:
        given = [array for name in each.operands for array in _arrays(where, name)]
        known = self._known(tuple(array.type for array in (*given, *each.arrays)))
        files = self._files.get(each.name) or self._by_code.get(_code(where, each))
        spaces = {} if files is None else _spaces(files)
        made = dataclasses.replace(made, origin=known.kernel or made.origin, placed=tuple(
            Placed(array.type, array.size, spaces.get(n, array.space), n >= len(given),
                   known.names[n] if n < len(known.names) else "")
            for n, array in enumerate((*given, *each.arrays))
        ))  # fmt: skip
        if files is None:
            return dataclasses.replace(made, unknown="there is no schedule of it")
        if made.times is None or self._model is None:
            return made
        try:
            ran = scalar_unit.run(bundles.read(files), self._tpu, rates(self._tpu), known.executed)
        except (scalar_unit.Unknown, dumps.UnreadableDump) as error:
            return dataclasses.replace(made, unknown=str(error))
        kinds = {copy.kind.removeprefix("dma.") for copy in ran.copies.values()}
        if not {end for kind in kinds for end in kind.split("_to_")} <= LOCAL:
            return dataclasses.replace(made, unknown="it talks to other devices or cores")
        clock = self._model.clock
        return dataclasses.replace(
            made, seconds=ran.cycles / clock * made.times,
            waited=sum(ran.waits.values()) / clock * made.times,
        )  # fmt: skip


def _since(begun: dict[str, float], each: hlo.HloInstruction, clock: float) -> float:
    return min((begun[name] for name in each.operands if name in begun), default=clock)


def _size(where: dict[str, hlo.HloInstruction], each: hlo.HloInstruction) -> int:
    """The bytes of an instruction's operands and results."""
    read = (array for name in each.operands for array in _arrays(where, name))
    return sum(array.size for array in (*each.arrays, *read))


def _arrays(where: dict[str, hlo.HloInstruction], name: str) -> tuple[hlo.Array, ...]:
    return where[name].arrays if name in where else ()


def _code(where: dict[str, hlo.HloInstruction], each: hlo.HloInstruction) -> tuple[Any, ...]:
    """Equal for kernels with the same code."""
    given = tuple(_arrays(where, name) for name in each.operands)
    return each.arrays, given, each.attribute(r'"body":"([^"]*)"')


def _origin(each: hlo.HloInstruction) -> str:
    """JAX's name of what an instruction comes from, without what exporting it adds."""
    name = each.attribute(r'op_name="([^"]*)"') or ""
    return re.sub(r"^.*?call_exported/jit\(call\)/?", "", name)


def _spaces(files: dumps.Files) -> dict[int, str]:
    """The memory of each of a kernel's operands and results, as its code says."""
    found = re.finditer(
        r"inlined_call_operand\.(?P<space>\w+) \[shape: [^\]]*\], index: (?P<at>\d+)", files.bundles
    )
    return {int(each["at"]): each["space"] for each in found}
