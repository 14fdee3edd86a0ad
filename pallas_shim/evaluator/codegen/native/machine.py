"""Turns the text of a function into machine code, by LLVM through llvmlite, and calls it."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pallas_shim.evaluator.codegen.native import ffi, host
from pallas_shim.evaluator.codegen.native.places import ALIGNMENT
from pallas_shim.evaluator.codegen.native.source import FIXED, NotNative
from pallas_shim.evaluator.codegen.native.threads import LATE, LIMIT
from pallas_shim.evaluator.memory import aligned

# The memory of a NumPy array stands behind a Python object's two words.
_DATA = 16
_PLAIN = 0x101  # NumPy's flags of C order and alignment
# Held while LLVM works. A fork waits for it so many seconds. If it has to go on without, the new
# process can't use LLVM, whose locks stay locked there.
_working = threading.RLock()
_PATIENCE = 1.0
_is_lost = False
# An engine that ends asks for LLVM's lock, too.
_engines: weakref.WeakSet[Any] = weakref.WeakSet()
_endless: list[Any] = []


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


@functools.cache
def facts() -> tuple[str, ...]:
    """What object code depends on besides its text: LLVM, the processor, and how the objects of
    Python and NumPy are laid out."""
    import llvmlite

    binding = llvm()
    version = ".".join(map(str, binding.llvm_version_info))
    laid_out = sys.version, np.__version__
    return (*laid_out, llvmlite.__version__, version, binding.get_default_triple(), *_processor())


@functools.cache
def features() -> frozenset[str]:
    """LLVM's names of what the processor has. Without llvmlite, nothing is known of it."""
    try:
        known = llvm().get_host_cpu_features()
    except ImportError:
        return frozenset()
    return frozenset(name for name, is_there in known.items() if is_there)


def _processor() -> tuple[str, str]:
    """Its name and its features."""
    binding = llvm()
    return binding.get_host_cpu_name(), binding.get_host_cpu_features().flatten()


def _target() -> Any:
    """LLVM for this processor. An engine owns its own one."""
    name, features = _processor()
    return llvm().Target.from_default_triple().create_target_machine(
        cpu=name, features=features, opt=2, codemodel="jitdefault", jit=True
    )  # fmt: skip


def object_code(text: str) -> bytes:
    """The object code of a module.

    Raises:
      NotNative: this process can't use LLVM.
    """
    with _working:
        _require_llvm()
        binding, target = llvm(), _target()
        module = binding.parse_assembly(text)
        module.verify()
        options = binding.create_pipeline_tuning_options(speed_level=2)
        options.loop_unrolling = False
        options.loop_vectorization = options.slp_vectorization = True
        builder = binding.create_pass_builder(target, options)
        builder.getModulePassManager().run(module, builder)
        return target.emit_object(module)


def loaded(code: bytes) -> Any:
    """The engine that has loaded object code."""
    with _working:
        _require_llvm()
        binding = llvm()
        engine = binding.create_mcjit_compiler(binding.parse_assembly(""), _target())
        engine.add_object_file(binding.ObjectFileRef.from_data(code))
        engine.finalize_object()
        _engines.add(engine)
        return engine


def _require_llvm() -> None:
    if _is_lost:
        raise NotNative("this process was forked while LLVM was at work")


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
        code: bytes,
        params: Sequence[bool],
        results: Sequence[tuple[tuple[int, ...], np.dtype]],
        workspace: int,
        addresses: Sequence[int],
        kept: Sequence[Any],
        called: Mapping[str, int],
        threads: int = 1,
    ) -> None:
        """``params``: whether each parameter is used; ``addresses``: those that the code uses;
        ``kept``: the objects that lie there; ``called``: the operations that NumPy does, and how
        many instructions that is; ``threads``: how many may share a loop, if more than one."""
        self._engine, self.called = loaded(code), dict(called)
        count = len(params) + len(results) + 1
        # Such a call holds the interpreter's lock, and raises what C code has set.
        kind = ctypes.PYFUNCTYPE(ctypes.c_int, *[ctypes.py_object] * count)
        self._call = kind(self._engine.get_function_address("run"))
        self._used, self._results = tuple(params), tuple(results)
        self._workspace, self._kept = workspace + ALIGNMENT, tuple(kept)
        self._fill(FIXED, addresses)
        self._fill(host.LIST, host.addresses())
        self._late = ctypes.c_int64(0)
        if threads > 1:
            limit, late = map(self._engine.get_global_value_address, (LIMIT[1:], LATE[1:]))
            ctypes.c_int64.from_address(limit).value = threads
            self._late = ctypes.c_int64.from_address(late)
        counts = self._engine.get_global_value_address(ffi.COUNTS[1:])
        self._counts = (ctypes.c_int64 * 2).from_address(counts)

    def _fill(self, name: str, addresses: Sequence[int]) -> None:
        if addresses:
            at = self._engine.get_global_value_address(name[1:])
            (ctypes.c_void_p * len(addresses)).from_address(at)[:] = list(addresses)

    @property
    def handler(self) -> Handler | None:
        """The entry for XLA, whose threads can't call Python. None if the function does so."""
        if self.called:
            return None
        workspace = self._workspace - ALIGNMENT
        return Handler(self._engine.get_function_address("handler"), self._used, workspace)

    def __del__(self) -> None:
        if self._late.value:  # a thread may still have to end in this code
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._engine))

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
    releases: bool, addresses: int,
) -> str:  # fmt: skip
    """The text of a module around a function.

    ``used``: whether each parameter is. ``releases``: whether other threads may run meanwhile.
    ``addresses``: how many addresses it uses.
    """
    params = len(used)
    save = [f"  %save = {host.load('PyEval_SaveThread')}"] if releases else []
    restore = [f"  %restore = {host.load('PyEval_RestoreThread')}"] if releases else []
    names = [*[f"p{i}" for i in range(params)], *[f"r{i}" for i in range(results)], "workspace"]
    given = ", ".join(f"ptr %o_{name}" for name in names)
    lines = [
        host.declaration(),
        f"{FIXED} = global [{addresses} x ptr] zeroinitializer",
        f"define i32 @run({given}) {{",
    ]
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
        lines += [*save, "  %state = call ptr %save()", "  store ptr %state, ptr %thread"]
    passed = ", ".join(f"ptr %{name}" for name in [*names[:-1], "aligned", "thread"])
    lines.append(f"  %status = call i32 @program({passed})")
    if releases:
        lines += [*restore, "  %after = load ptr, ptr %thread", "  call void %restore(ptr %after)"]
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
        lines += [*restore, "  %state = load ptr, ptr %thread", "  call void %restore(ptr %state)"]
    lines += [f"  %check = {host.load('PyErr_CheckSignals')}", "  %status = call i32 %check()"]
    if releases:
        lines += [*save, "  %again = call ptr %save()", "  store ptr %again, ptr %thread"]
    lines += ["  ret i32 %status", "}"]
    attributes = attribute_group()
    entry = ffi.handler(used, results, workspace)
    return "\n".join([*declared, *lines, entry, function, attributes])


def attribute_group() -> str:
    """Of functions: subnormals are zeros."""
    return f"attributes #0 = {{ nounwind {_FLUSHES}{_vector_width()} }}"


_FLUSHES = '"denormal-fp-math"="preserve-sign,preserve-sign"'


def _vector_width() -> str:
    """Asks for vectors of 512 bits on processors that don't run slower because of them: those with
    the instructions of Ice Lake and Zen 4. LLVM would make vectors of 256 bits."""
    return ' "prefer-vector-width"="512"' if "avx512vbmi2" in features() else ""


class _Fork(threading.local):
    """A fork of this thread. ``is_quiet``: LLVM does nothing meanwhile."""

    is_quiet = False


_fork = _Fork()


def _before_fork() -> None:
    _fork.is_quiet = _working.acquire(timeout=_PATIENCE)


def _in_parent() -> None:
    if _fork.is_quiet:
        _working.release()


def _in_child() -> None:
    global _working, _is_lost
    if not _fork.is_quiet:
        _is_lost = True
        _endless.extend(_engines)
    _working = threading.RLock()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(
        before=_before_fork, after_in_parent=_in_parent, after_in_child=_in_child
    )
