"""Random operations on arrays, drawn while a kernel is traced.

Every float is a multiple of some power of two below some bound, and both are kept beside it, so
that operations are drawn only where every order of evaluation gives the same: XLA contracts
products and sums, and keeps more digits in chains of narrow floats than their type has.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax import lax

BOOL = np.dtype(bool)
_NARROW_FLOATS = (
    "float8_e4m3fn", "float8_e5m2", "float8_e4m3b11fnuz", "float8_e4m3fnuz", "float8_e5m2fnuz",
    "float8_e3m4", "float8_e4m3",
)  # fmt: skip
SIZES = (1, 2, 3, 4, 5, 8)
# What inputs hold, and what is stored: these stay exact in every float type but the narrowest,
# which hold whole numbers.
BOUND, QUANTUM = 4.0, 0.25
_LARGEST = 512


def _dtypes(*names: str) -> tuple[np.dtype, ...]:
    return tuple(np.dtype(getattr(ml_dtypes, name, name)) for name in names)


class Pool(NamedTuple):
    """The types of a kernel's values, beside bool.

    ``packed``: types that only memory has, since XLA aborts on most operations of them.
    ``complexes``: types that memory doesn't have, since JAX's interpreter makes none.
    ``x64``: 64-bit types are enabled.
    """

    integers: tuple[np.dtype, ...]
    floats: tuple[np.dtype, ...]
    packed: tuple[np.dtype, ...] = ()
    complexes: tuple[np.dtype, ...] = ()
    x64: bool = False

    @property
    def dtypes(self) -> tuple[np.dtype, ...]:
        return (BOOL, *self.integers, *self.floats, *self.complexes)

    @property
    def stored(self) -> tuple[np.dtype, ...]:
        return (BOOL, *self.integers, *self.floats, *self.packed)


_INTEGERS = _dtypes("int8", "uint8", "int16", "uint16", "int32", "uint32")
_FLOATS = _dtypes("float32", "bfloat16", "float16")
USUAL = Pool(_INTEGERS, _FLOATS)
NARROW = Pool(
    _dtypes("int8", "int32", "uint8"),
    _dtypes("float32", "bfloat16", *_NARROW_FLOATS),
    packed=_dtypes("int4", "uint4", "int2", "uint2", "float4_e2m1fn"),
)
WIDE = Pool(
    _dtypes("int64", "uint64", "int32", "uint8"),
    _dtypes("float64", "float32"), complexes=_dtypes("complex128", "complex64"), x64=True,
)  # fmt: skip
COMPLEX = Pool(_dtypes("int32", "uint8"), _dtypes("float32"), complexes=_dtypes("complex64"))


class Value(NamedTuple):
    """An array. If it is of floats, its finite elements are multiples of ``quantum`` of at most
    ``bound`` in magnitude; a quantum of zero: nothing is known of them."""

    x: Any
    bound: float = 0.0
    quantum: float = 0.0

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.x.dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.x.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)


class Choices:
    """Random choices, all from one source."""

    def __init__(self, source: random.Random, pool: Pool = USUAL):
        self._source = source
        self.pool = pool

    def number(self, low: int, high: int) -> int:
        return self._source.randint(low, high)

    def one(self, options: Iterable[Any]) -> Any:
        options = tuple(options)
        return options[self.number(0, len(options) - 1)]

    def rarely(self, times: int = 4) -> bool:
        """True once in so many times."""
        return self.number(1, times) == times

    def shape(self, ranks: Sequence[int] = (0, 1, 1, 2, 2, 3)) -> tuple[int, ...]:
        shape: list[int] = []
        for _ in range(self.one(ranks)):
            shape.append(self.one([s for s in SIZES if s * math.prod(shape) <= 64]))
        return tuple(shape)

    def axes(self, rank: int) -> tuple[int, ...]:
        return tuple(axis for axis in range(rank) if self.number(0, 1))


def fits(dtype: np.dtype, bound: float, quantum: float) -> bool:
    """Whether a float type holds every multiple of ``quantum`` up to ``bound``."""
    info = ml_dtypes.finfo(dtype)
    most = min(2.0 ** (info.nmant + 1) * quantum, float(info.max), 2.0**15)
    return max(2.0**-10, float(info.smallest_subnormal)) <= quantum and bound <= most


def is_float(dtype: np.dtype) -> bool:
    """Of real or complex numbers, which are bounded part by part."""
    return dtype.kind == "c" or not (dtype == BOOL or is_integer(dtype))


def is_integer(dtype: np.dtype) -> bool:
    return dtype.kind in "iu" or dtype.name.startswith(("int", "uint"))


def bits(dtype: np.dtype) -> int:
    """The width of an integer type."""
    return ml_dtypes.iinfo(dtype).bits


def known(x: Any) -> Value:
    """A value of which no more is known than that it was stored."""
    return Value(x, BOUND, _stored_quantum(np.dtype(x.dtype)))


def _stored_quantum(dtype: np.dtype) -> float:
    return QUANTUM if not is_float(dtype) or fits(dtype, BOUND, QUANTUM) else 1.0


def tame(value: Value) -> Value:
    """The same, or whole numbers near zero instead of floats too large or too fine."""
    if not is_float(value.dtype) or (value.bound <= BOUND and value.quantum >= QUANTUM):
        return value
    if value.dtype.kind == "c":
        parts = [tame(Value(part(value.x), value.bound, value.quantum)) for part in _PARTS]
        return Value(lax.complex(parts[0].x, parts[1].x), BOUND, 1.0)
    limit = np.asarray(BOUND, value.dtype)
    return Value(lax.clamp(-limit, without_signed_zeros(rounded(value.x)), limit), BOUND, 1.0)


def rounded(x: Any) -> Any:
    """To whole numbers. XLA makes NaN of a constant of float8_e3m4."""
    return lax.round(lax.optimization_barrier(x))


_PARTS = (lax.real, lax.imag)


def real(value: Value) -> Value:
    """The value, or its real part: what has an order."""
    return value._replace(x=lax.real(value.x)) if value.dtype.kind == "c" else value


def ordered(value: Value) -> Value:
    """The value in a type that sorts take."""
    return cast(value, np.dtype(np.float32)) if value.dtype.name.endswith("fnuz") else value


def cast(value: Value, dtype: np.dtype) -> Value:
    if value.dtype == dtype:
        return value
    if is_float(value.dtype) and is_float(dtype) and not (
        value.quantum and fits(dtype, value.bound, value.quantum)
    ):
        value = tame(value)
    bound, quantum = value.bound, value.quantum
    if not is_float(dtype):
        bound = quantum = 0.0
    elif not is_float(value.dtype):
        largest = 1.0 if value.dtype == BOOL else 2.0 ** bits(value.dtype)
        bound, quantum = (largest, 1.0) if fits(dtype, largest, 1.0) else (0.0, 0.0)
    if value.dtype == BOOL and is_float(dtype):
        # LLVM has +0 for a negative number times a False that was converted.
        one, zero = (jnp.full(value.shape, number, dtype) for number in (1, 0))
        return Value(lax.select(value.x, one, zero), bound, quantum)
    # XLA makes 0 of a constant NaN, and -0 of any other.
    x = lax.optimization_barrier(value.x) if dtype.name.startswith("float4") else value.x
    if value.dtype.name.startswith("float4") and dtype.name.endswith("fnuz"):
        # Such a type has no -0, but XLA gives it back where it leaves out a cast there and back.
        x = x.astype(jnp.float32)
        x = lax.select(x == 0, jnp.zeros_like(x), x)
    return Value(lax.convert_element_type(x, dtype), bound, quantum)


def fit(value: Value, shape: tuple[int, ...]) -> Value:
    """A value of another shape, of the same elements, repeated or left out."""
    if value.shape == shape:
        return value
    x, size = value.x, math.prod(shape)
    if value.size == 1 or value.size == size and shape:
        x = jnp.broadcast_to(x.reshape(()), shape) if value.size == 1 else x.reshape(shape)
    else:
        flat = x.reshape(value.size)
        if size > value.size:
            flat = jnp.concatenate([flat] * -(-size // value.size))
        x = flat[:size].reshape(shape)
    return value._replace(x=x)


_ARITHMETIC: dict[str, Callable[[Value, Value], tuple[float, float]]] = {
    "add": lambda a, b: (a.bound + b.bound, min(a.quantum, b.quantum)),
    "sub": lambda a, b: (a.bound + b.bound, min(a.quantum, b.quantum)),
    "mul": lambda a, b: (
        a.bound * b.bound * (2 if a.dtype.kind == "c" else 1), a.quantum * b.quantum
    ),
    "rem": lambda a, b: (a.bound, min(a.quantum, b.quantum)),
    "max": lambda a, b: (max(a.bound, b.bound), min(a.quantum, b.quantum)),
    "min": lambda a, b: (max(a.bound, b.bound), min(a.quantum, b.quantum)),
}
_COMPLEX_ARITHMETIC = ("add", "sub", "mul")
_BITWISE = ("bitwise_and", "bitwise_or", "bitwise_xor")
_INTEGER_BINARY = (
    *_ARITHMETIC, "div", *_BITWISE, "shift_left", "shift_right_arithmetic", "shift_right_logical",
)  # fmt: skip
_INTEGER_UNARY = (
    "neg", "abs", "sign", "bitwise_not", "clz", "population_count", "square",
)  # fmt: skip
_FLOAT_UNARY = ("neg", "abs", "sign", "floor", "ceil", "round")
_COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")


class Operations(Choices):
    """Random operations. Each takes the values so far and returns a new one."""

    integer_binary: tuple[str, ...] = _INTEGER_BINARY

    def recent(self, values: Sequence[Value]) -> Value:
        return values[-1 - min(self.number(0, 3), self.number(0, len(values) - 1))]

    def any_of(self, values: Sequence[Value], wanted: Callable[[Value], bool]) -> Value | None:
        found = [v for v in values if wanted(v)]
        return self.recent(found) if found else None

    def of_dtype(self, values: Sequence[Value], dtypes: Sequence[np.dtype]) -> Value:
        """A value of one of the types: one of ``values`` if there is any, or cast from one."""
        found = self.any_of(values, lambda v: v.dtype in dtypes)
        return found or cast(self.recent(values), self.one(dtypes))

    def of_rank(self, values: Sequence[Value], rank: int) -> Value:
        """A value of at least this rank."""
        found = self.any_of(values, lambda v: len(v.shape) >= rank)
        return found or fit(self.recent(values), self.shape((rank,)))

    def like(self, values: Sequence[Value], one: Value) -> Value:
        """Another value of one's type and shape."""
        same = self.any_of(values, lambda v: (v.shape, v.dtype) == (one.shape, one.dtype))
        if same is not None and not self.rarely():
            return same
        if self.rarely():
            number = self.number(0, 4)
            return known(jnp.full(one.shape, _number(number, one.dtype)))
        return fit(cast(self.recent(values), one.dtype), one.shape)

    def scalar(self, values: Sequence[Value]) -> Any:
        """An int32 of rank 0."""
        found = self.any_of(values, lambda v: v.shape == () and v.dtype == np.int32)
        return (found or fit(cast(self.recent(values), np.dtype(np.int32)), ())).x

    def index(self, values: Sequence[Value], last: int) -> Any:
        """An int32 of rank 0 in 0..last, or, rarely, just any."""
        scalar = self.scalar(values)
        return scalar if self.rarely(8) else lax.rem(lax.abs(scalar), np.int32(last + 1))

    # -- elementwise ----------------------------------------------------------------------

    def elementwise(self, values: Sequence[Value]) -> Value:
        a = self.recent(values)
        if self.rarely(3):
            return self._unary(a)
        b = self.like(values, a)
        if a.dtype == BOOL:
            return Value(getattr(lax, self.one(_BITWISE))(a.x, b.x))
        if not is_float(a.dtype):
            return Value(getattr(lax, self.one(self.integer_binary))(a.x, b.x))
        name = self.one(_COMPLEX_ARITHMETIC if a.dtype.kind == "c" else _ARITHMETIC)
        if not a.quantum or not b.quantum or not fits(a.dtype, *_ARITHMETIC[name](a, b)):
            a, b = tame(a), tame(b)
        x = getattr(lax, name)(a.x, b.x)
        if name in ("max", "min"):
            x = without_signed_zeros(x)
        return Value(x, *_ARITHMETIC[name](a, b))

    def _unary(self, a: Value) -> Value:
        if a.dtype == BOOL:
            return Value(lax.bitwise_not(a.x))
        if not is_float(a.dtype):
            if self.rarely():
                return Value(lax.integer_pow(a.x, self.number(0, 4)))
            names = [n for n in _INTEGER_UNARY if n != "abs" or a.dtype.kind == "i"]
            # XLA says that a negative constant starts with -32 zeros.
            return Value(getattr(lax, self.one(names))(lax.optimization_barrier(a.x)))
        if a.dtype.kind == "c":
            return a._replace(x=self.one([lax.neg, lax.conj])(a.x))
        name = self.one(_FLOAT_UNARY)
        bound: float = math.ceil(a.bound)
        quantum = a.quantum
        if name in ("floor", "ceil", "round") and quantum:
            quantum = max(quantum, 1.0)
        if name == "sign":
            bound, quantum = 1.0, 1.0
        if name == "round":
            return Value(without_signed_zeros(rounded(a.x)), bound, quantum)
        return Value(getattr(lax, name)(a.x), bound, quantum)

    def halve(self, values: Sequence[Value]) -> Value:
        """Floats divided, exactly."""
        a = tame(self.of_dtype(values, self.pool.floats))
        by = self.one([2.0, -4.0, 0.5])
        if not fits(a.dtype, a.bound / abs(by), a.quantum / abs(by)):
            by = 1.0
        x = lax.div(a.x, jnp.full(a.shape, by, a.dtype))
        return Value(x, a.bound / abs(by), a.quantum / abs(by))

    def compare(self, values: Sequence[Value]) -> Value:
        a = self.recent(values)
        names = ("eq", "ne") if a.dtype.kind == "c" else _COMPARISONS
        return Value(getattr(lax, self.one(names))(a.x, self.like(values, a).x))

    def is_finite(self, values: Sequence[Value]) -> Value:
        return Value(lax.is_finite(self.of_dtype(values, self.pool.floats).x))

    def select(self, values: Sequence[Value]) -> Value:
        a = self.recent(values)
        cases = [a, *(self.like(values, a) for _ in range(self.number(1, 2)))]
        shape = () if self.rarely() else a.shape
        if len(cases) == 2:
            which = fit(self.of_dtype(values, (BOOL,)), shape).x
        else:
            which = fit(cast(self.recent(values), np.dtype(np.int32)), shape).x
            which = lax.clamp(np.int32(0), which, np.int32(2))
        return Value(lax.select_n(which, *(v.x for v in cases)), *_joined(cases))

    def clamp(self, values: Sequence[Value]) -> Value:
        a = self.any_of(values, lambda v: v.dtype != BOOL and v.dtype.kind != "c")
        if a is None:
            a = cast(self.recent(values), np.dtype(np.int32))
        low, high = self.like(values, a), self.like(values, a)
        if self.number(0, 1):
            low, high = fit(low, ()), fit(high, ())
        x = without_signed_zeros(lax.clamp(low.x, a.x, high.x))
        return Value(x, *_joined([low, a, high]))

    def cast(self, values: Sequence[Value]) -> Value:
        return cast(self.recent(values), self.one(self.pool.dtypes))

    def bitcast(self, values: Sequence[Value]) -> Value:
        a = self.recent(values)
        if a.dtype == BOOL or a.dtype.kind == "c":
            a = cast(a, self.one(self.pool.integers))
        if is_float(a.dtype):
            # Which NaN it is isn't part of a result.
            a = a._replace(x=jnp.where(a.x != a.x, jnp.zeros_like(a.x), a.x))
        size, last = a.dtype.itemsize, a.shape[-1:]
        wider = [
            d for d in self.pool.integers if d.itemsize > size and last == (d.itemsize // size,)
        ]
        same = [d for d in self.pool.integers if d.itemsize <= size]
        return Value(lax.bitcast_convert_type(a.x, self.one(wider or same))) if same else a

    def float_of_bits(self, values: Sequence[Value]) -> Value:
        """2, 2.5, 3 or 3.5, by the lowest two bits of an integer."""
        dtype = self.one([d for d in self.pool.floats if d.itemsize > 1])
        word = np.dtype(f"u{dtype.itemsize}")
        a = cast(self.of_dtype(values, self.pool.integers), word)
        two = np.asarray(2, dtype).view(word)
        shift = word.type(ml_dtypes.finfo(dtype).nmant - 2)
        x = ((a.x & word.type(3)) << shift) | two
        return Value(lax.bitcast_convert_type(x, dtype), 4.0, 0.5)

    # -- shapes ---------------------------------------------------------------------------

    def iota(self, values: Sequence[Value]) -> Value:
        shape = self.shape((1, 2, 3))
        dtype = self.one((*self.pool.integers, *self.pool.floats))
        if is_float(dtype) and not fits(dtype, 8.0, 1.0):
            dtype = np.dtype(np.float32)
        return Value(lax.broadcasted_iota(dtype, shape, self.number(0, len(shape) - 1)), 8.0, 1.0)

    def constant(self, values: Sequence[Value]) -> Value:
        dtype = self.one(self.pool.dtypes)
        number = self.one([0, 1, 1, 2, 3, -1, -3])
        return known(jnp.full(self.shape(), _number(number, dtype)))

    def broadcast(self, values: Sequence[Value]) -> Value:
        a = self.recent(values)
        shape = list(a.shape)
        for _ in range(self.number(0, 3 - min(len(shape), 3))):
            shape.insert(0, self.one([1, 2, 3]))
        for i, size in enumerate(shape):
            if size == 1 and self.number(0, 1):
                shape[i] = self.one(SIZES)
        return self._kept(a, jnp.broadcast_to(a.x, shape))

    def transpose(self, values: Sequence[Value]) -> Value:
        a = self.of_rank(values, 2)
        permutation = list(range(len(a.shape)))
        i, j = self.one(permutation), self.one(permutation)
        permutation[i], permutation[j] = permutation[j], permutation[i]
        return self._kept(a, lax.transpose(a.x, permutation))

    def reshape(self, values: Sequence[Value]) -> Value:
        a = self.recent(values)
        size = a.size
        shapes = [(size,), (1, size), (size, 1)]
        shapes += [(size // n, n) for n in (2, 3, 4) if size % n == 0]
        shapes += [(size // (2 * n), n, 2) for n in (1, 2, 3) if size % (2 * n) == 0]
        return self._kept(a, lax.reshape(a.x, self.one(shapes)))

    def concatenate(self, values: Sequence[Value]) -> Value:
        a = self.of_rank(values, 1)
        axis = self.number(0, len(a.shape) - 1)
        parts = [a, *(self.like(values, a) for _ in range(self.number(1, 2)))]
        x = lax.concatenate([p.x for p in parts], axis)
        return self._kept(Value(x, *_joined(parts)), x)

    def slice(self, values: Sequence[Value]) -> Value:
        a = self.of_rank(values, 1)
        starts, stops, strides = [], [], []
        for size in a.shape:
            starts.append(self.number(0, size - 1))
            stops.append(self.number(starts[-1] + 1, size))
            strides.append(self.number(1, 3))
        return self._kept(a, lax.slice(a.x, starts, stops, strides))

    def dynamic_slice(self, values: Sequence[Value]) -> Value:
        a = self.of_rank(values, 1)
        sizes = [self.number(1, size) for size in a.shape]
        starts = [self.index(values, size - 1) for size in a.shape]
        # XLA makes one slice of two, and then clamps their sum only.
        return self._kept(a, lax.dynamic_slice(lax.optimization_barrier(a.x), starts, sizes))

    def dynamic_update_slice(self, values: Sequence[Value]) -> Value:
        a = self.of_rank(values, 1)
        update = fit(self.like(values, a), tuple(self.number(1, size) for size in a.shape))
        starts = [self.index(values, size - 1) for size in a.shape]
        # XLA writes a part of the same array in place, over what it has yet to read.
        other = lax.rev(a.x, range(len(a.shape)))
        return Value(lax.dynamic_update_slice(other, update.x, starts), *_joined([a, update]))

    def pad(self, values: Sequence[Value]) -> Value:
        a = self.of_rank(values, 1)
        fill = fit(self.like(values, a), ())
        config = []
        for size in a.shape:
            low, high = self.number(-1, 2), self.number(-1, 2)
            if size + low + high < 1:
                low, high = 0, 0
            config.append((low, high, self.one([0, 0, 1])))
        x = lax.pad(a.x, fill.x, config)
        return self._kept(Value(x, *_joined([a, fill])), x)

    def reverse(self, values: Sequence[Value]) -> Value:
        a = self.of_rank(values, 1)
        return self._kept(a, lax.rev(a.x, self.axes(len(a.shape))))

    def take(self, values: Sequence[Value]) -> Value:
        a = self.of_rank(values, 1)
        axis = self.number(0, len(a.shape) - 1)
        indices = fit(cast(self.recent(values), np.dtype(np.int32)), self.shape((0, 1, 2))).x
        mode = self.one(["clip", "wrap", "fill"])
        if mode == "fill" and is_float(a.dtype):
            mode = "clip"
        if not self.rarely():
            indices = lax.rem(lax.abs(indices), np.int32(a.shape[axis]))
        # XLA takes at one index by a slice, as above.
        return self._kept(a, jnp.take(lax.optimization_barrier(a.x), indices, axis, mode=mode))

    def scatter(self, values: Sequence[Value]) -> Value:
        a = tame(real(self.of_rank(values, 1)))
        index = self.index(values, a.shape[0] - 1)
        row = tame(fit(self.like(values, a), a.shape[1:]))
        # XLA writes what was there where the index is outside, which is a slice as above.
        at = lax.optimization_barrier(a.x).at[index]
        if self.number(0, 1) or a.dtype == BOOL:
            return Value(at.set(row.x), *_joined([a, row]))
        change = self.one(["add", "max", "min"])
        x = without_signed_zeros(getattr(at, change)(row.x))
        return Value(x, *_ARITHMETIC[change](a, row))

    def _kept(self, a: Value, x: Any) -> Value:
        """Some of the elements of ``a``, no more than a kernel should hold."""
        return fit(a._replace(x=x), self.shape()) if x.size > _LARGEST else a._replace(x=x)

    # -- reductions -----------------------------------------------------------------------

    def reduce(self, values: Sequence[Value]) -> Value:
        a = self.of_rank(values, 1)
        axes = self.axes(len(a.shape))
        if a.dtype == BOOL:
            return Value(self.one([jnp.any, jnp.all])(a.x, axes))
        if not is_float(a.dtype) and self.rarely():
            name = self.one(["and", "or", "xor", "prod"])
            return Value(getattr(lax, f"reduce_{name}")(a.x, axes))
        name = self.one(["sum", "max", "min"])
        if name != "sum":
            a = real(a)
            return a._replace(x=without_signed_zeros(getattr(lax, f"reduce_{name}")(a.x, axes)))
        terms = math.prod(a.shape[axis] for axis in axes)
        if is_float(a.dtype) and not (a.quantum and fits(a.dtype, a.bound * terms, a.quantum)):
            a = tame(a)
            if not fits(a.dtype, a.bound * terms, a.quantum):
                a = cast(a, np.dtype(np.float32))
        x = without_signed_zeros(jnp.sum(a.x, axes, dtype=a.dtype))
        return Value(x, a.bound * terms, a.quantum)

    def cumulative(self, values: Sequence[Value]) -> Value:
        a = self.of_rank(values, 1)
        if a.dtype == BOOL:
            a = cast(a, self.one(self.pool.integers))
        axis, reverse = self.number(0, len(a.shape) - 1), bool(self.number(0, 1))
        name = self.one(["cumsum", "cummax", "cummin"] + ["cumprod"] * (not is_float(a.dtype)))
        if name != "cumsum":
            a = real(a)
        elif is_float(a.dtype):
            a = tame(a)
            if not fits(a.dtype, a.bound * a.shape[axis], a.quantum):
                a = cast(a, np.dtype(np.float32))
            a = a._replace(bound=a.bound * a.shape[axis])
        x = getattr(lax, name)(a.x, axis=axis, reverse=reverse)
        return a._replace(x=without_signed_zeros(x))

    def arg_extremum(self, values: Sequence[Value]) -> Value:
        a = real(self.of_rank(values, 1))
        find = self.one([lax.argmax, lax.argmin])
        return Value(find(a.x, self.number(0, len(a.shape) - 1), self.one([np.int32, np.uint8])))

    def sort(self, values: Sequence[Value]) -> Value:
        a = ordered(self.of_rank(values, 1))
        axis = self.number(0, len(a.shape) - 1)
        operands = [a, *(self.like(values, a) for _ in range(self.number(0, 2)))]
        keys = self.number(1, len(operands))
        results = lax.sort([v.x for v in operands], dimension=axis, is_stable=True, num_keys=keys)
        chosen = self.number(0, len(operands) - 1)
        return operands[chosen]._replace(x=results[chosen])

    def top_k(self, values: Sequence[Value]) -> Value:
        a = ordered(real(self.of_rank(values, 1)))
        x, indices = lax.top_k(a.x, self.number(1, a.shape[-1]))
        return self.one([a._replace(x=x), Value(indices)])

    def dot(self, values: Sequence[Value]) -> Value:
        a = self.of_rank(values, 1)
        if a.dtype == BOOL:
            a = cast(a, self.one((*self.pool.integers, *self.pool.floats)))
        a = tame(a)
        contract = self.number(0, len(a.shape) - 1)
        others = [i for i in range(len(a.shape)) if i != contract]
        batch = others[: self.number(0, min(len(others), 1))]
        shape = [a.shape[i] for i in batch] + [a.shape[contract]] + [self.one([1, 2, 3, 5])]
        b = tame(fit(self.like(values, a), tuple(shape)))
        terms = a.shape[contract]
        bound, quantum = _ARITHMETIC["mul"](a, b)
        bound *= terms
        out = a.dtype
        if is_float(out) and not fits(out, bound, quantum):
            out = np.dtype(np.float32)
        elif not is_float(out) and out.itemsize <= 4 and self.number(0, 1):
            out = np.dtype(np.int32)
        dimensions = (((contract,), (len(batch),)), (tuple(batch), tuple(range(len(batch)))))
        x = without_signed_zeros(lax.dot_general(a.x, b.x, dimensions, preferred_element_type=out))
        return self._kept(Value(x, bound, quantum), x)


def _number(number: int, dtype: np.dtype) -> np.ndarray:
    """In the type, wrapped if it must be."""
    return np.asarray(number).astype(dtype)


def without_signed_zeros(x: Any) -> Any:
    """Zeros without a sign: that of a sum depends on how many zeros were added, and that of an
    extremum or of a fraction rounded, in XLA, on how the loop was vectorised."""
    return jnp.where(x == 0, jnp.zeros_like(x), x) if is_float(np.dtype(x.dtype)) else x


def _joined(values: Iterable[Value]) -> tuple[float, float]:
    values = tuple(values)
    return max(v.bound for v in values), min(v.quantum for v in values)


PURE = (
    "elementwise", "elementwise", "elementwise", "halve", "compare", "is_finite", "select",
    "clamp", "cast", "cast", "bitcast", "float_of_bits", "iota", "constant", "broadcast",
    "transpose", "reshape", "concatenate", "slice", "dynamic_slice", "dynamic_update_slice",
    "pad", "reverse", "take", "scatter", "reduce", "reduce", "cumulative", "arg_extremum", "sort",
    "top_k", "dot",
)  # fmt: skip
