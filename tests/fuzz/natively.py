"""Random kernels of operations that have native code, and the comparison of that with NumPy."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax import lax

from pallas_shim.dispatch.native import same
from pallas_shim.evaluator.codegen import native
from pallas_shim.evaluator.execute import Executable
from pallas_shim.evaluator.floating import as_xla
from pallas_shim.evaluator.program import Program
from tests.fuzz.kernels import Body, Call, Scope
from tests.fuzz.operations import (
    BOOL,
    Operations,
    Pool,
    Value,
    cast,
    fits,
    is_float,
    tame,
)

_INTEGERS = tuple(map(np.dtype, ("int8", "uint8", "int16", "uint16", "int32", "uint32")))
_POOL = Pool(_INTEGERS, (np.dtype(np.float32),))
_PURE = (
    ("elementwise",) * 5 + ("compare", "select", "cast", "whole_clamp", "whole_reduce") * 2
    + ("constant", "broadcast", "transpose", "reshape", "concatenate", "slice", "reverse", "iota")
    + ("dot", "dot")
)  # fmt: skip
_MEMORY = ("load",) * 6 + ("store",) * 6 + ("update",) * 3 + ("swap", "add_update")
_CONTROL = ("loop", "loop", "scan", "repeat", "branch", "branch", "when")
_DEEPEST = 2
_ARITHMETIC = {
    "add": lambda a, b: (a.bound + b.bound, min(a.quantum, b.quantum)),
    "sub": lambda a, b: (a.bound + b.bound, min(a.quantum, b.quantum)),
    "mul": lambda a, b: (a.bound * b.bound, a.quantum * b.quantum),
    "max": lambda a, b: (max(a.bound, b.bound), min(a.quantum, b.quantum)),
    "min": lambda a, b: (max(a.bound, b.bound), min(a.quantum, b.quantum)),
}


class _NativeBody(Body):
    arrays = False
    integer_binary = Operations.integer_binary

    def block(self, scope: Scope, least: int, most: int) -> None:
        for _ in range(self.number(least, most)):
            kind = self.number(0, 9)
            if kind < 5:
                scope.values.append(getattr(self, self.one(_PURE))(scope.values))
            elif kind < 9 or scope.depth == _DEEPEST:
                getattr(self, "do_" + self.one(_MEMORY))(scope)
            else:
                getattr(self, "do_" + self.one(_CONTROL))(scope)

    def elementwise(self, values: Sequence[Value]) -> Value:
        a = self.recent(values)
        if not is_float(a.dtype):
            return super().elementwise([a, *[v for v in values if not is_float(v.dtype)]])
        if self.rarely(3):
            return self._unary(a)
        b = self.like(values, a)
        name = self.one(_ARITHMETIC)
        if not a.quantum or not b.quantum or not fits(a.dtype, *_ARITHMETIC[name](a, b)):
            return Value(lax.neg(a.x), a.bound, a.quantum)
        return Value(getattr(lax, name)(a.x, b.x), *_ARITHMETIC[name](a, b))

    def _unary(self, a: Value) -> Value:
        if not is_float(a.dtype):
            return super()._unary(a)
        return Value(getattr(lax, self.one(["neg", "abs"]))(a.x), a.bound, a.quantum)

    def dot(self, values: Sequence[Value]) -> Value:
        """Of integers, which may have been widened before."""
        integers = [v for v in values if not is_float(v.dtype)]
        a = self.of_dtype(integers, self.pool.integers)
        if self.number(0, 1):
            narrow = self.one(list(map(np.dtype, ("int8", "uint8", "int16", "bool"))))
            a = cast(cast(a, narrow), np.dtype(np.int32))
        return super().dot([a, *integers])

    def whole_clamp(self, values: Sequence[Value]) -> Value:
        a = self.of_dtype(values, self.pool.integers)
        low, high = self.like(values, a), self.like(values, a)
        return Value(lax.clamp(low.x, a.x, high.x))

    def whole_reduce(self, values: Sequence[Value]) -> Value:
        a = self.of_rank(values, 1)
        if is_float(a.dtype):
            a = cast(tame(a), np.dtype(np.int32))
        names = ["and", "or"] if a.dtype == BOOL else ["and", "or", "xor", "max", "min"]
        axes = self.axes(len(a.shape))
        return Value(getattr(lax, f"reduce_{self.one(names)}")(a.x, axes))


class Natively(Call):
    """A kernel of operations that have native code."""

    body_type = _NativeBody

    def __init__(self, source: random.Random):
        super().__init__(source, _POOL)


class OtherBits(AssertionError):
    """Native code and NumPy differ. The message shows the program and its arguments."""


def compare_natively(program: Program, args: Sequence[np.ndarray]) -> str:
    """Runs a program in NumPy and natively. Returns why there is no native code, else "".

    Raises:
      OtherBits: the results differ in a bit.
    """
    try:
        code = native.compiled(program, threads=2)
    except native.NotNative as error:
        return str(error)
    want: list[Any] = Executable(program, lambda loop: False)(*args)
    got = as_xla(code.run, args)
    if not same(want, got):
        wrong = [n for n, pair in enumerate(zip(want, got, strict=True)) if not same(*zip(pair))]
        parts = {"arguments": args, "native": got, "NumPy": want, "results that differ": wrong}
        shown = [f"{name}: {part!r}" for name, part in parts.items()]
        raise OtherBits("\n".join(["native code gave other bits", str(program), *shown]))
    return ""
