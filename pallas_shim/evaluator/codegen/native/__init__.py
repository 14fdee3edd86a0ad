"""Native code: turns a whole program into machine code, by LLVM.

What has defined bits is native: integers, booleans, and the arithmetic of floats that rounds once,
in the order of the program. What has none stays with NumPy. Native code calls the loops of some of
its functions by their addresses, on parts of arrays that stay in a cache (`functions.py`), and adds
up rows by NumPy's own loop. Anything else is a call of Python (`calls.py`). A program is refused,
by name, if part of it can't be called, or if calls are most of it. llvmlite, which has LLVM, is an
extra.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

from pallas_shim.evaluator.codegen.native import calls, host
from pallas_shim.evaluator.codegen.native import threads as shared
from pallas_shim.evaluator.codegen.native.expanding import expanded
from pallas_shim.evaluator.codegen.native.lowering import NativeLowering
from pallas_shim.evaluator.codegen.native.machine import MachineCode, facts, module, object_code
from pallas_shim.evaluator.codegen.native.sharing import Sharing, Unshareable
from pallas_shim.evaluator.codegen.native.source import NotNative
from pallas_shim.evaluator.program import ArrayType, Instruction, Program

__all__ = ["MachineCode", "NotNative", "ObjectStore", "compiled", "loaded", "object_code", "source"]


class ObjectStore(Protocol):
    """Object code kept for other processes, by the facts it depends on and the text it was compiled
    from."""

    def read(self, facts: tuple[str, ...], text: str) -> bytes | None: ...

    def write(self, facts: tuple[str, ...], text: str, code: bytes) -> None: ...

# Elements computed in a run from which other threads of Python may run meanwhile.
_RELEASES_THREADS = 20_000


def source(program: Program) -> tuple[NativeLowering, str]:
    """The text of a program's module, and what is known of it.

    Raises:
      NotNative: for part of the program there is no code.
    """
    top = program.top
    for value in (*top.params, *top.results):
        if not isinstance(value.type, ArrayType):
            raise NotNative(f"arguments and results of the type {value.type}")
        if not math.prod(value.type.shape):
            raise NotNative("arrays without elements")
    lowering = _lowered(program)
    if lowering.called and lowering.gain < 0:
        raise NotNative(f"too little beside {', '.join(lowering.called)}")
    params, results = len(top.params), len(top.results)
    names = [*[f"%p{i}" for i in range(params)], *[f"%r{i}" for i in range(results)], "%workspace"]
    pointers = ", ".join(f"ptr noalias {name}" for name in names)
    text = lowering.to.text("program", f"{pointers}, ptr %thread")
    if lowering.called:
        text += calls.helpers()
    if lowering.to.functions:
        text += shared.helpers(host.load)
        lowering.to.declared |= shared.DECLARED
    declared, used = sorted(lowering.to.declared), _used(program)
    workspace, addresses = lowering.workspace.nbytes > 0, len(lowering.to.addresses)
    # Who calls Python holds its lock, and lets other threads run there.
    releases = lowering.work >= _RELEASES_THREADS and not lowering.called
    return lowering, module(text, declared, used, results, workspace, releases, addresses)


def _lowered(program: Program) -> NativeLowering:
    program = expanded(program)
    refused: list[Instruction] = []
    while True:
        lowering = NativeLowering(program, Sharing(program, refused))
        try:
            lowering.function()
            return lowering
        except Unshareable as error:
            refused.append(error.grid)


def compiled(
    program: Program,
    objects: ObjectStore | None = None,
    compiler: Callable[[str], bytes] = object_code,
    threads: int = 1,
) -> MachineCode:
    """A program in machine code. ``objects`` keeps it for other processes. ``compiler`` makes
    object code of a text. At most so many ``threads`` share a loop.

    Raises:
      NotNative: for part of the program there is no code.
      ImportError: llvmlite isn't installed.
    """
    lowering, text = source(program)
    code = None if objects is None else objects.read(facts(), text)
    if code is None:
        code = compiler(text)
        if objects is not None:
            objects.write(facts(), text, code)
    return _machine_code(program, lowering, code, threads)


def loaded(program: Program, objects: ObjectStore, threads: int = 1) -> MachineCode | None:
    """A program in machine code that another process has compiled. None: there is none.
    ``threads``: as in `compiled`.

    Raises: as `compiled`.
    """
    lowering, text = source(program)
    code = objects.read(facts(), text)
    return None if code is None else _machine_code(program, lowering, code, threads)


def _machine_code(
    program: Program, lowering: NativeLowering, code: bytes, threads: int
) -> MachineCode:
    results = [(value.type.shape, value.type.dtype) for value in program.top.results]
    return MachineCode(
        code,
        _used(program),
        results,
        lowering.workspace.nbytes,
        lowering.to.addresses,
        lowering.kept,
        lowering.called,
        threads if lowering.to.functions else 1,
    )


def _used(program: Program) -> list[bool]:
    used = set(program.top.uses())
    return [param in used for param in program.top.params]
