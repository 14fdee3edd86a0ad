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

from pallas_shim.evaluator.codegen.native import calls
from pallas_shim.evaluator.codegen.native.lowering import NativeLowering
from pallas_shim.evaluator.codegen.native.machine import MachineCode, module
from pallas_shim.evaluator.codegen.native.source import NotNative
from pallas_shim.evaluator.program import ArrayType, Program

__all__ = ["MachineCode", "NotNative", "compiled", "source"]

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
    lowering = NativeLowering(program)
    lowering.function()
    if lowering.called and lowering.gain < 0:
        raise NotNative(f"too little beside {', '.join(lowering.called)}")
    params, results = len(top.params), len(top.results)
    names = [*[f"%p{i}" for i in range(params)], *[f"%r{i}" for i in range(results)], "%workspace"]
    pointers = ", ".join(f"ptr noalias {name}" for name in names)
    text = lowering.to.text("program", f"{pointers}, ptr %thread")
    if lowering.called:
        text += calls.helpers()
    declared, used = sorted(lowering.to.declared), _used(program)
    workspace = lowering.workspace.nbytes > 0
    # Who calls Python holds its lock, and lets other threads run there.
    releases = lowering.work >= _RELEASES_THREADS and not lowering.called
    return lowering, module(text, declared, used, results, workspace, releases)


def compiled(program: Program) -> MachineCode:
    """A program in machine code.

    Raises:
      NotNative: for part of the program there is no code.
      ImportError: llvmlite isn't installed.
    """
    lowering, text = source(program)
    return MachineCode(
        text,
        _used(program),
        [(value.type.shape, value.type.dtype) for value in program.top.results],
        lowering.workspace.nbytes,
        lowering.kept,
        lowering.called,
    )


def _used(program: Program) -> list[bool]:
    used = set(program.top.uses())
    return [param in used for param in program.top.params]
