"""Compares native code with NumPy for all numbers: of each unary operation and conversion for types
of up to 32 bits, and of each binary one for all pairs of types of 8 and 16 bits.

    python -m tests.fuzz.exhaustive                  # hours
    python -m tests.fuzz.exhaustive int8 uint8       # only these types: seconds

Prints each operation with the numbers compared. At the first difference it ends with status 1.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pallas_shim.dispatch.native import same
from pallas_shim.evaluator.codegen import native
from pallas_shim.evaluator.execute import Executable
from pallas_shim.evaluator.floating import as_xla
from pallas_shim.evaluator.lower import lower
from pallas_shim.evaluator.passes import optimise

_CHUNK = 1 << 20
_COMPARISONS = (lax.eq, lax.ne, lax.lt, lax.le, lax.gt, lax.ge)
_BINARY = {
    "i": (lax.add, lax.sub, lax.mul, lax.div, lax.rem, lax.max, lax.min, lax.bitwise_and,
          lax.bitwise_or, lax.bitwise_xor, lax.shift_left, lax.shift_right_logical,
          lax.shift_right_arithmetic, *_COMPARISONS),
    "f": (lax.add, lax.sub, lax.mul, lax.div, lax.max, lax.min, *_COMPARISONS),
}  # fmt: skip
_UNARY = {
    "i": (lax.neg, lax.sign, lax.abs, lax.bitwise_not, lax.population_count, lax.clz, lax.square),
    "f": (lax.neg, lax.abs, lax.sqrt, lax.floor, lax.ceil, lax.square, lax.sign, lax.is_finite,
          lambda x: lax.round(x, lax.RoundingMethod.TO_NEAREST_EVEN), lax.exp),
}  # fmt: skip
_TYPES = (
    "int8", "uint8", "int16", "uint16", "bfloat16", "float16", "int32", "uint32", "float32",
)  # fmt: skip
_TARGETS = ("bool", *_TYPES, "int64", "uint64", "float64")


def _numbers(dtype: np.dtype, start: int, count: int) -> np.ndarray:
    bits = np.arange(start, start + count, dtype=np.uint64)
    return bits.astype(f"u{dtype.itemsize}").view(dtype)


def _singles(dtype: np.dtype) -> Iterator[tuple[np.ndarray, ...]]:
    total = 1 << 8 * dtype.itemsize
    for start in range(0, total, _CHUNK):
        yield (_numbers(dtype, start, min(_CHUNK, total)),)


def _pairs(dtype: np.dtype) -> Iterator[tuple[np.ndarray, ...]]:
    each = 1 << 8 * dtype.itemsize
    rows = min(each, _CHUNK // each)
    for start in range(0, each, rows):
        x = np.repeat(_numbers(dtype, start, rows), each)
        yield x, np.tile(_numbers(dtype, 0, each), rows)


def _compare(name: str, f: Callable[..., Any], chunks: Iterator[tuple[np.ndarray, ...]]) -> None:
    begin, count, code = time.monotonic(), 0, None
    for args in chunks:
        if code is None:
            program = optimise(lower(jax.make_jaxpr(f)(*args)), ())
            in_numpy = Executable(program, lambda loop: False)
            try:
                code = native.compiled(program)
            except native.NotNative as error:
                print(f"{name}: not native: {error}", flush=True)
                return
        want, got = in_numpy(*args), as_xla(code.run, args)
        if not same(want, got):
            different = np.flatnonzero(np.asarray(want[0]) != np.asarray(got[0]))[:5]
            sys.exit(f"{name}: differs at {[(a[different], got[0][different]) for a in args]}")
        count += args[0].size
    print(f"{name}: {count:,} in {time.monotonic() - begin:.0f} s", flush=True)


def _name(f: Any) -> str:
    return getattr(f, "__name__", "").replace("<lambda>", "round")


def main(types: list[str]) -> None:
    jax.config.update("jax_enable_x64", True)
    for dtype in (jnp.dtype(name) for name in types or _TYPES):
        kind = "f" if jnp.issubdtype(dtype, jnp.floating) else "i"
        for unary in _UNARY[kind]:
            if unary is not lax.abs or dtype.kind != "u":
                _compare(f"{_name(unary)} {dtype.name}", unary, _singles(dtype))
        for target in _TARGETS:
            convert = lambda x, target=target: lax.convert_element_type(x, target)  # noqa: E731
            _compare(f"{dtype.name} to {target}", convert, _singles(dtype))
        if dtype.itemsize <= 2:
            for binary in _BINARY[kind]:
                _compare(f"{_name(binary)} {dtype.name}, pairs", binary, _pairs(dtype))


if __name__ == "__main__":
    main(sys.argv[1:])
