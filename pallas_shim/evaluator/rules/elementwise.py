"""Elementwise arithmetic, comparisons and bit operations: a table with one row per operation.

A row gives the NumPy callable for each kind of dtype. Narrow types (bfloat16, float16, float8,
int4, ...) are widened, computed, and rounded once, unless XLA computes step by step in the narrow
type (`in_place`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from pallas_shim.evaluator.lower import Lowering
from pallas_shim.evaluator.program import Array, Types, Value
from pallas_shim.evaluator.registry import Stack, Unsupported, batch_rule, impl_rule, lowering_rule
from pallas_shim.evaluator.rules import complex_math, float32_functions
from pallas_shim.evaluator.rules import elementwise_math as math
from pallas_shim.evaluator.rules.casts import cast
from pallas_shim.evaluator.scalar_types import is_float, is_integer, wide
from pallas_shim.jax_compat.special import COMPOSED, composition

Function = Callable[..., Any] | math.ByDtype


class Row(NamedTuple):
    """The callables of one primitive by kind of operand. None means that there is no operation for
    that kind."""

    boolean: Function | None = None
    integer: Function | None = None
    real: Function | None = None
    complex: Function | None = None

    def of(self, dtype: np.dtype) -> Function | None:
        if dtype == np.bool_:
            return self.boolean
        if is_integer(dtype):
            return self.integer
        return self.real if is_float(dtype) else self.complex


def everywhere(fn: Function) -> Row:
    return Row(fn, fn, fn, fn)


def numbers(fn: Function) -> Row:
    return Row(None, fn, fn, fn)


def reals(fn: Function) -> Row:
    return Row(real=fn)


def inexact(fn: Function, of_complex: Function | None = None) -> Row:
    return Row(real=fn, complex=of_complex or fn)


def integers(fn: Function) -> Row:
    return Row(integer=fn)


def bits(fn: Function) -> Row:
    return Row(fn, fn)


TABLE: dict[str, Row] = {
    # arithmetic
    "add": numbers(np.add),
    "add_any": numbers(np.add),
    "sub": numbers(np.subtract),
    "mul": numbers(np.multiply),
    "div": Row(None, math.int_div, np.divide, complex_math.divide),
    "rem": Row(None, math.int_rem, np.fmod),
    "neg": numbers(np.negative),
    "abs": numbers(np.abs),
    "sign": Row(None, np.sign, math.sign, complex_math.sign),
    "square": numbers(np.square),
    "one_minus_square": numbers(math.one_minus_square),
    "mulhi": integers(math.mulhi),
    "max": Row(np.maximum, np.maximum, math.maximum),
    "min": Row(np.minimum, np.minimum, math.minimum),
    # rounding
    "floor": reals(np.floor),
    "ceil": reals(np.ceil),
    "is_finite": reals(np.isfinite),
    "nextafter": reals(math.nextafter),
    # exponentials and roots
    "exp": inexact(np.exp, complex_math.exp),
    "exp2": inexact(math.exp2, complex_math.exp2),
    "expm1": inexact(float32_functions.expm1, complex_math.expm1),
    "log": inexact(np.log, complex_math.log),
    "log2": inexact(math.log2),
    "log1p": inexact(float32_functions.log1p, complex_math.log1p),
    "logistic": inexact(math.logistic, complex_math.logistic),
    "sqrt": inexact(np.sqrt, complex_math.sqrt),
    "rsqrt": inexact(float32_functions.rsqrt, complex_math.rsqrt),
    "cbrt": reals(math.cbrt),
    # trigonometry
    "sin": inexact(np.sin, complex_math.sin),
    "cos": inexact(np.cos, complex_math.cos),
    "tan": inexact(np.tan, complex_math.tan),
    "asin": inexact(np.arcsin, complex_math.asin),
    "acos": inexact(np.arccos, complex_math.acos),
    "atan": inexact(np.arctan, complex_math.atan),
    "atan2": reals(math.atan2),
    "sinh": inexact(np.sinh, complex_math.sinh),
    "cosh": inexact(np.cosh, complex_math.cosh),
    "tanh": inexact(np.tanh, complex_math.tanh),
    "asinh": inexact(np.arcsinh, complex_math.asinh),
    "acosh": inexact(np.arccosh, complex_math.acosh),
    "atanh": inexact(np.arctanh, complex_math.atanh),
    # special functions
    "erf": reals(float32_functions.erf),
    "erfc": reals(math.erfc),
    "erf_inv": reals(float32_functions.erf_inv),
    "lgamma": reals(math.lgamma),
    "digamma": reals(math.digamma),
    "polygamma": reals(math.polygamma),
    "zeta": reals(math.zeta),
    "bessel_i0e": reals(math.bessel_i0e),
    "bessel_i1e": reals(math.bessel_i1e),
    # comparisons
    "eq": everywhere(np.equal),
    "ne": everywhere(np.not_equal),
    "lt": Row(np.less, np.less, np.less),
    "le": Row(np.less_equal, np.less_equal, np.less_equal),
    "gt": Row(np.greater, np.greater, np.greater),
    "ge": Row(np.greater_equal, np.greater_equal, np.greater_equal),
    "eq_to": Row(np.equal, np.equal, math.total_order(np.equal)),
    "lt_to": Row(np.less, np.less, math.total_order(np.less)),
    "le_to": Row(np.less_equal, np.less_equal, math.total_order(np.less_equal)),
    # bits
    "and": bits(np.bitwise_and),
    "or": bits(np.bitwise_or),
    "xor": bits(np.bitwise_xor),
    "not": bits(np.invert),
    "shift_left": integers(np.left_shift),
    "shift_right_arithmetic": integers(math.shift_right_arithmetic),
    "shift_right_logical": integers(math.shift_right_logical),
    "population_count": integers(math.population_count),
    "clz": integers(math.clz),
    # complex numbers
    "conj": Row(real=math.to_complex, complex=np.conjugate),
}


def specialised(fn: Function, dtype: np.dtype, out: np.dtype) -> Callable[..., Any]:
    """``fn`` for operands of ``dtype``, widened and rounded back if they are narrow."""
    computed = wide(dtype)
    if isinstance(fn, math.ByDtype):
        if fn.in_place:
            return fn.of(dtype)
        fn = fn.of(dtype if is_integer(dtype) else computed)
    if computed == dtype:
        return fn
    widen = cast(dtype, computed)
    if out == dtype:
        narrow = cast(computed, out)
        return lambda *xs: narrow(fn(*map(widen, xs)))
    return lambda *xs: fn(*map(widen, xs))


# XLA counts in the whole byte that holds a 4-bit number, and keeps the upper half of the count.
NOT_ON_INT4 = {("population_count", "int4"), ("mulhi", "int4"), ("mulhi", "uint4")}
NOT_ON_FLOAT8 = {"nextafter", "eq_to", "lt_to", "le_to"}
ROUNDED_TWICE = {("sqrt", np.dtype(ml_dtypes.float8_e3m4))}


def refuses(name: str, dtype: np.dtype) -> bool:
    """Whether the primitive doesn't support this dtype."""
    if TABLE[name].of(dtype) is None or (name, dtype) in ROUNDED_TWICE:
        return True
    if is_integer(dtype):
        return (name, dtype.name) in NOT_ON_INT4
    return name in NOT_ON_FLOAT8 and dtype.itemsize == 1 and dtype != np.bool_


def cell(name: str, dtype: np.dtype) -> Function:
    """The table's callable for a primitive and a dtype.

    Raises:
      Unsupported: there is none.
    """
    fn = TABLE[name].of(dtype)
    if fn is None or refuses(name, dtype):
        raise Unsupported(name, f"of {dtype.name} operands is not implemented")
    return fn


def _register(name: str) -> None:
    @impl_rule(name)
    def make(ins: Types, outs: Types, **_: Any) -> Callable[..., Any]:
        dtype = ins[0].dtype
        return specialised(cell(name, dtype), dtype, outs[0].dtype)


for _name in TABLE:
    _register(_name)


@impl_rule("round")
def _round(ins: Types, outs: Types, *, rounding_method: Any, **_: Any) -> Callable[..., Any]:
    even = rounding_method.name == "TO_NEAREST_EVEN"
    dtype = ins[0].dtype
    return specialised(np.rint if even else math.round_away_from_zero, dtype, dtype)


@impl_rule("pow")
def _pow(ins: Types, outs: Types, **_: Any) -> Callable[..., Any]:
    dtype, exponent = ins[0].dtype, ins[1].dtype
    fn = specialised(math.power, dtype, dtype)
    return fn if exponent == dtype else lambda x, y: fn(x, y.astype(dtype))


@impl_rule("integer_pow")
def _integer_pow(ins: Types, outs: Types, *, y: Any, **_: Any) -> Callable[..., Any]:
    dtype = ins[0].dtype
    computed = wide(dtype) if is_integer(dtype) else dtype
    fn = math.integer_pow(y, computed)
    return fn if computed == dtype else lambda x: fn(x.astype(computed)).astype(dtype)


# JAX doesn't have these two: passes/floor_division.py puts them in place of the operations that jnp
# composes. The divisor is a positive scalar, for which NumPy needs no division instruction.
@impl_rule("floor_divide")
def _floor_divide(ins: Types, outs: Types, **_: Any) -> Callable[..., Any]:
    return np.floor_divide


@impl_rule("floor_remainder")
def _floor_remainder(ins: Types, outs: Types, **_: Any) -> Callable[..., Any]:
    return lambda x, by: x - np.floor_divide(x, by) * by


@impl_rule("polynomial")
def _polynomial(ins: Types, outs: Types, *, unroll: Any = None, **_: Any) -> Callable[..., Any]:
    shape, dtype = outs[0]
    unrolled = len(ins) - 1 <= (8 if unroll is None else unroll)

    def polynomial(x: Array, *coefficients: Array) -> Array:
        # JAX's loop starts with zero, which changes the result for an infinite x.
        result = np.zeros(shape, dtype)
        rest = reversed(coefficients)
        if unrolled:
            result = result + next(rest)
        for c in rest:
            result = result * x + c
        return result

    return polynomial


@impl_rule("clamp")
def _clamp(ins: Types, outs: Types, **_: Any) -> Callable[..., Any]:
    dtype = ins[1].dtype
    lower, upper = (specialised(cell(n, dtype), dtype, dtype) for n in ("max", "min"))
    return lambda low, x, high: upper(lower(x, low), high)


@impl_rule("select_n")
def _select_n(ins: Types, outs: Types, **_: Any) -> Callable[..., Any]:
    predicate, *cases = ins
    if len(cases) == 1:
        return lambda _, x: x.copy()
    if predicate.shape != cases[0].shape:
        if predicate.dtype == np.bool_:
            return lambda which, *xs: xs[bool(which)].copy()
        last = len(cases) - 1
        return lambda which, *xs: xs[min(max(int(which), 0), last)].copy()
    if predicate.dtype == np.bool_:
        if not predicate.shape:
            return lambda which, no, yes: (yes if which else no)[()]
        return math.select(cases[0])
    return math.select_many


@batch_rule("select_n", broadcasts=True)
def _select_batch(stack: Stack, **params: Any) -> Mapping[str, Any] | None:
    # A scalar predicate chooses a whole array.
    return params if stack.ins[0].shape == stack.ins[1].shape else None


@batch_rule(
    *TABLE, "round", "pow", "integer_pow", "clamp", "real", "imag", "complex", "floor_divide",
    "floor_remainder", broadcasts=True,
)
def _batch(stack: Stack, **params: Any) -> Mapping[str, Any] | None:
    return params


@impl_rule("real", view=True)
def _real(ins: Types, outs: Types, **_: Any) -> Callable[..., Any]:
    return lambda x: x.real


@impl_rule("imag")
def _imag(ins: Types, outs: Types, **_: Any) -> Callable[..., Any]:
    return lambda x: x.imag.copy()


@impl_rule("complex")
def _complex(ins: Types, outs: Types, **_: Any) -> Callable[..., Any]:
    def combine(real: Array, imag: Array) -> Array:
        result = np.empty(*outs[0])
        result.real, result.imag = real, imag
        return result

    return combine


@lowering_rule("pvary", "reduced_vary_cast", "reduced_vary_cast_p", "vary_unreduced_cast",
               "vary_unreduced_cast_p", "preduced", "stage", "stop_gradient")
def _same_value(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    return ins


@lowering_rule("tie")
def _tie(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    return ins[1:]


@lowering_rule(*COMPOSED)
def _composed(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    return lowering.inline(composition(eqn), ins)
