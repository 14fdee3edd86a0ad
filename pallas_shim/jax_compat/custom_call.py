"""XLA executables of one custom call: machine code that jit's C++ path enters without Python."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax._src import config
from jax._src.interpreters import pxla


def compiled(
    name: str,
    target: str,
    address: int,
    args: Sequence[jax.ShapeDtypeStruct],
    used: Sequence[bool],
    results: Sequence[jax.ShapeDtypeStruct],
    workspace: int,
    device: Any,
) -> Any | None:
    """Compiles an executable, as jit has one for each signature. None: JAX has none of that kind.

    ``name``: the function's, for profiles. ``target``: a name that no other code has. ``address``:
    where the handler is, in the form of XLA's FFI. It gets the arguments that are ``used``, then
    the ``results`` and, if there is one, a ``workspace`` of so many bytes. The code must stay.
    """
    jax.ffi.register_ffi_target(target, _capsule(address), platform="cpu")
    types = [*results]
    if workspace:
        types.append(jax.ShapeDtypeStruct((workspace,), np.uint8))

    def call(*operands: Any) -> Sequence[Any]:
        given = [x for x, is_used in zip(operands, used, strict=True) if is_used]
        return jax.ffi.ffi_call(target, types)(*given)[: len(results)]

    call.__name__ = call.__qualname__ = name
    # Otherwise a thread of its own would take numbers of 64 bits for ones of 32.
    with config.enable_x64(True), jax.default_device(device):
        executable = jax.jit(call).lower(*args).compile()._executable
    if not isinstance(executable, pxla.MeshExecutable):
        return None
    return executable if isinstance(executable.unsafe_call, pxla.ExecuteReplicated) else None


def _capsule(address: int) -> Any:
    kind = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
    make = kind(("PyCapsule_New", ctypes.pythonapi))
    return make(address, b"xla._CUSTOM_CALL_TARGET", None)
