"""Functions of floats that NumPy's loops compute, called from native code by their addresses.

These loops give each number the same bits, whatever its neighbours are and however the array is cut
or laid out. Other functions don't: some of NumPy's loops compute strided arrays otherwise.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pallas_shim.evaluator.codegen.native import elements, exponential
from pallas_shim.evaluator.codegen.native.source import NotNative, Source
from pallas_shim.evaluator.program import ArrayType, Value

_LOOPS: dict[np.ufunc, str] = {
    np.exp: "f", np.log: "fd", np.tanh: "fd", np.sin: "fd", np.cos: "fd",
}  # fmt: skip
# NumPy's PyUFuncObject: the arrays of its loops and of what is passed to them.
_FUNCTIONS, _DATA = 32, 40


@functools.cache
def loop(ufunc: np.ufunc, dtype: np.dtype) -> Callable[..., None] | None:
    """What writes a call of the loop of a ufunc. It is of (source, count, addresses of the operands
    and of the result), which are contiguous. None: there is no such loop."""
    if dtype.char not in _LOOPS.get(ufunc, ""):
        return None
    return functools.partial(_call, *_loop(ufunc, dtype), ufunc.nin + 1, dtype.itemsize)


def _loop(ufunc: np.ufunc, dtype: np.dtype) -> tuple[int, int]:
    """The addresses of a loop and of its data."""
    kinds = f"{dtype.char * ufunc.nin}->{dtype.char}"
    number = ufunc.types.index(kinds)
    functions, data = (
        ctypes.c_void_p.from_address(id(ufunc) + at).value for at in (_FUNCTIONS, _DATA)
    )
    if functions is None:
        raise NotNative(f"{ufunc.__name__} without a loop")
    function = ctypes.c_void_p.from_address(functions + 8 * number).value
    passed = ctypes.c_void_p.from_address(data + 8 * number).value if data else None
    assert function is not None
    return function, passed or 0


def _call(
    function: int, data: int, arrays: int, step: int, to: Source, count: str, *addresses: str,
    steps: Sequence[int] = (),
) -> None:  # fmt: skip
    given = to.variable(f"[{arrays} x ptr]")
    counts, strides = to.variable("i64"), to.variable(f"[{arrays} x i64]")
    to.set(counts, "i64", count)
    for number, address in enumerate(addresses):
        slot = to.let(f"getelementptr ptr, ptr {given}, i64 {number}")
        to.set(slot, "ptr", address)
        slot = to.let(f"getelementptr i64, ptr {strides}, i64 {number}")
        to.set(slot, "i64", str(steps[number] if steps else step))
    called, passed = to.fixed(function), to.fixed(data)
    to.line(f"call void {called}(ptr {given}, ptr {counts}, ptr {strides}, ptr {passed})")


def reduction(ufunc: np.ufunc, dtype: np.dtype) -> Callable[..., None]:
    """What writes the reduction of a row by NumPy's loop. It is of (source, how many, address of
    the row, of the result), and starts from what the result is."""
    function, data = _loop(ufunc, dtype)

    def write(to: Source, count: int, row: str, result: str) -> None:
        steps = (0, dtype.itemsize, 0)
        _call(function, data, 3, 0, to, str(count), result, row, result, steps=steps)

    return write


# -- by the names of primitives -------------------------------------------------------------------

# What a primitive is made of: (steps, operand) -> result.
Composition = Callable[[Any, Any], Any]


def _plain(ufunc: np.ufunc) -> Composition:
    return lambda steps, x: steps.loop(ufunc, x)


def _logistic(steps: Any, x: Any) -> Any:
    one = steps.number(1)
    return steps("div", one, steps("add", one, steps.loop(np.exp, steps("neg", x))))


def _exp2(steps: Any, x: Any) -> Any:
    return steps.loop(np.exp, steps("mul", x, steps.number(np.log(2))))


def _log2(steps: Any, x: Any) -> Any:
    return steps("mul", steps.loop(np.log, x), steps.number(1 / np.log(2)))


def _rsqrt(steps: Any, x: Any) -> Any:
    """Of infinity, zeros, and numbers whose reciprocal is flushed, it is another one."""
    one, zero = steps.number(1), steps.number(0)
    root = steps("sqrt", steps("div", one, x))
    large = steps("gt", x, one)
    scaled = steps("select_n", large, x, steps("mul", x, steps.number(2.0**-40)))
    of_scaled = steps("sqrt", steps("div", one, scaled))
    of_large = steps("mul", of_scaled, steps.number(2.0**-20))
    other = steps("select_n", large, of_scaled, of_large)
    other = steps("select_n", steps("gt", x, zero), steps("div", one, steps("sqrt", x)), other)
    return steps("select_n", steps("gt", root, zero), other, root)


FUNCTIONS: dict[str, Composition] = {
    "exp": _plain(np.exp), "log": _plain(np.log), "tanh": _plain(np.tanh), "sin": _plain(np.sin),
    "cos": _plain(np.cos),
    "logistic": _logistic, "exp2": _exp2, "log2": _log2, "rsqrt": _rsqrt,
}  # fmt: skip
_USES: dict[str, tuple[np.ufunc, ...]] = {
    "exp": (np.exp,), "log": (np.log,), "tanh": (np.tanh,), "sin": (np.sin,), "cos": (np.cos,),
    "logistic": (np.exp,), "exp2": (np.exp,), "log2": (np.log,), "rsqrt": (),
}  # fmt: skip
# Of narrow types, XLA rounds each step of the others.
WIDENED = frozenset({"exp", "log", "tanh", "sin", "cos"})


def write(to: Any, name: str, out: Value, operand: Value) -> None:
    """Writes a function of a value's elements.

    Raises:
      NotNative: there is none for this type.
    """
    shape, dtype = operand.type.shape, operand.type.dtype
    computed = dtype if dtype.kind == "f" and dtype.itemsize >= 4 else np.dtype(np.float32)
    loops = _USES[name]
    if out.type != operand.type or any(loop(ufunc, computed) is None for ufunc in loops):
        raise NotNative(f"{name} of {dtype.name}")
    if name == "rsqrt" and dtype != np.float32:
        raise NotNative(f"{name} of {dtype.name}")
    if computed != dtype and name not in WIDENED:
        raise NotNative(f"{name} of {dtype.name}")
    elements.convert(Source(), dtype, computed, "%x")  # refuses what it can't
    steps = _Steps(to, shape, computed)
    result = FUNCTIONS[name](steps, steps.converted(operand, computed))
    to.left[result] += 1
    to.elementwise([out], [result], lambda text, xs: [elements.convert(text, computed, dtype, *xs)])
    to.used_by(shape, operand)
    steps.end()


class _Steps:
    """Writes the steps of a composition, which are operations on elements."""

    def __init__(self, to: Any, shape: tuple[int, ...], dtype: np.dtype):
        self._to, self._shape, self._dtype = to, shape, dtype
        self._made: list[Value] = []

    def number(self, number: float) -> Value:
        return Value(ArrayType((), self._dtype), np.asarray(number).astype(self._dtype))

    def __call__(self, name: str, *xs: Value) -> Value:
        is_test = name in ("gt", "lt")
        out = self._value(np.dtype(bool) if is_test else self._dtype, xs)
        types = [x.type.dtype for x in xs]
        self._to.elementwise(
            [out], xs, lambda to, xs: [elements.element(to, name, types, out.type.dtype, xs)]
        )
        return out

    def loop(self, ufunc: np.ufunc, x: Value) -> Value:
        out = self._value(self._dtype, [x])
        if ufunc is np.exp and self._dtype == np.float32 and exponential.is_numpys():
            self._to.elementwise([out], [x], lambda to, xs: [exponential.write(to, *xs)])
        else:
            self._to.numpy_loop(out, ufunc, x)
        return out

    def converted(self, x: Value, dtype: np.dtype) -> Value:
        return x if x.type.dtype == dtype else self("convert_element_type", x)

    def end(self) -> None:
        """The steps' results have no further uses."""
        for value in self._made:
            self._to.used(value)

    def _value(self, dtype: np.dtype, xs: Sequence[Value]) -> Value:
        out = Value(ArrayType(self._shape, dtype))
        self._made.append(out)
        self._to.left[out] += 1  # so that it is kept until the end, come what may
        for x in xs:
            self._to.left[x] += 1
        return out
