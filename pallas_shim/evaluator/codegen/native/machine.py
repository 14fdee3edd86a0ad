"""Turns the text of a function into machine code, by LLVM through llvmlite, and calls it."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pallas_shim.evaluator.codegen.native import ffi
from pallas_shim.evaluator.codegen.native.places import ALIGNMENT
from pallas_shim.evaluator.codegen.native.source import NotNative
from pallas_shim.evaluator.memory import aligned

# The memory of a NumPy array stands behind a Python object's two words.
_DATA = 16
_PLAIN = 0x101  # NumPy's flags of C order and alignment


@functools.cache
def llvm() -> Any:
    """Loads LLVM, and gives llvmlite's bindings.

    Raises:
      ImportError: llvmlite isn't installed.
      NotNative: it can't be used here.
    """
    from llvmlite import binding

    if object.__basicsize__ != _DATA or ctypes.sizeof(ctypes.c_void_p) != 8:
        raise NotNative("this Python's objects are laid out otherwise")
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    return binding


def _target() -> Any:
    """LLVM for this processor. An engine owns its own one."""
    binding = llvm()
    return binding.Target.from_default_triple().create_target_machine(
        cpu=binding.get_host_cpu_name(),
        features=binding.get_host_cpu_features().flatten(),
        opt=2,
        codemodel="jitdefault",
        jit=True,
    )


class Handler(NamedTuple):
    """A handler of XLA's FFI: where it is, which parameters it gets, and the bytes of the workspace
    behind the results."""

    address: int
    used: tuple[bool, ...]
    workspace: int


class MachineCode:
    """A function in machine code: call it with NumPy arrays, get a list of them."""

    def __init__(
        self,
        text: str,
        params: Sequence[bool],
        results: Sequence[tuple[tuple[int, ...], np.dtype]],
        workspace: int,
        kept: Sequence[Any],
        called: Mapping[str, int],
    ) -> None:
        """``params``: whether each parameter is used; ``kept``: objects whose addresses are in the
        text; ``called``: the operations that NumPy does, and how many instructions that is."""
        self.text, self.called = text, dict(called)
        binding, target = llvm(), _target()
        module = binding.parse_assembly(text)
        module.verify()
        options = binding.create_pipeline_tuning_options(speed_level=2)
        options.loop_unrolling = False
        options.loop_vectorization = options.slp_vectorization = True
        builder = binding.create_pass_builder(target, options)
        builder.getModulePassManager().run(module, builder)
        self._engine = binding.create_mcjit_compiler(module, target)
        self._engine.finalize_object()
        count = len(params) + len(results) + 1
        # Such a call holds the interpreter's lock, and raises what C code has set.
        kind = ctypes.PYFUNCTYPE(ctypes.c_int, *[ctypes.py_object] * count)
        self._call = kind(self._engine.get_function_address("run"))
        self._used, self._results = tuple(params), tuple(results)
        self._workspace, self._kept = workspace + ALIGNMENT, tuple(kept)
        address = self._engine.get_global_value_address(ffi.COUNTS[1:])
        self._counts = (ctypes.c_int64 * 2).from_address(address)

    @property
    def handler(self) -> Handler | None:
        """The entry for XLA, whose threads can't call Python. None if the function does so."""
        if self.called:
            return None
        workspace = self._workspace - ALIGNMENT
        return Handler(self._engine.get_function_address("handler"), self._used, workspace)

    def counts(self) -> tuple[int, float]:
        """The calls by XLA until now, and the seconds that they took."""
        calls, nanoseconds = self._counts
        return calls, nanoseconds * 1e-9

    def run(self, args: Sequence[np.ndarray]) -> list[Any]:
        """Runs it. The arguments are as in `execute.Executable`."""
        arrays = [
            arg
            if not used or type(arg) is np.ndarray and arg.flags.num & _PLAIN == _PLAIN
            else np.array(arg, order="C")
            for arg, used in zip(args, self._used, strict=True)
        ]
        results = [aligned(shape, dtype) for shape, dtype in self._results]
        self._call(*arrays, *results, np.empty(self._workspace, np.uint8))
        return [result if result.shape else result[()] for result in results]


def module(
    function: str, declared: Sequence[str], used: Sequence[bool], results: int, workspace: bool,
    releases: bool,
) -> str:  # fmt: skip
    """The text of a module around a function.

    ``used``: whether each parameter is. ``releases``: whether other threads may run meanwhile.
    """
    params = len(used)
    save, restore, check = map(
        _of_python, ("PyEval_SaveThread", "PyEval_RestoreThread", "PyErr_CheckSignals")
    )
    names = [*[f"p{i}" for i in range(params)], *[f"r{i}" for i in range(results)], "workspace"]
    given = ", ".join(f"ptr %o_{name}" for name in names)
    lines = [f"define i32 @run({given}) {{"]
    for name in names:
        lines += [
            f"  %a_{name} = getelementptr i8, ptr %o_{name}, i64 {_DATA}",
            f"  %{name} = load ptr, ptr %a_{name}",
        ]
    lines += [
        "  %address = ptrtoint ptr %workspace to i64",
        f"  %above = add i64 %address, {ALIGNMENT - 1}",
        f"  %even = and i64 %above, {-ALIGNMENT}",
        "  %aligned = inttoptr i64 %even to ptr",
        "  %thread = alloca ptr",
    ]
    if releases:
        lines += [f"  %state = call ptr {save}()", "  store ptr %state, ptr %thread"]
    passed = ", ".join(f"ptr %{name}" for name in [*names[:-1], "aligned", "thread"])
    lines.append(f"  %status = call i32 @program({passed})")
    if releases:
        lines += ["  %after = load ptr, ptr %thread", f"  call void {restore}(ptr %after)"]
    lines += [
        "  ret i32 %status",
        "}",
        "define internal i32 @poll(ptr %thread) noinline {",
        "  %unknown = icmp eq ptr %thread, null",  # to Python
        "  br i1 %unknown, label %go_on, label %look",
        "go_on:",
        "  ret i32 0",
        "look:",
    ]
    if releases:
        lines += ["  %state = load ptr, ptr %thread", f"  call void {restore}(ptr %state)"]
    lines.append(f"  %status = call i32 {check}()")
    if releases:
        lines += [f"  %again = call ptr {save}()", "  store ptr %again, ptr %thread"]
    lines += ["  ret i32 %status", "}"]
    attributes = 'attributes #0 = { nounwind "denormal-fp-math"="preserve-sign,preserve-sign" }'
    entry = ffi.handler(used, results, workspace)
    return "\n".join([*declared, *lines, entry, function, attributes])


def _of_python(name: str) -> str:
    """The address of a function of Python's own."""
    function = getattr(ctypes.pythonapi, name)
    return f"inttoptr (i64 {ctypes.cast(function, ctypes.c_void_p).value} to ptr)"
