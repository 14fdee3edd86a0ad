"""Native code for one element: the operations of which all bits are defined.

Nothing here may be reordered or contracted. Floats have no sums and no functions such as exp.
bfloat16 and float16 are widened, computed, and rounded once, as the rules do it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from pallas_shim.evaluator.codegen.native import narrow
from pallas_shim.evaluator.codegen.native.source import (
    NotNative,
    Source,
    is_literal,
    literal,
    type_of,
)
from pallas_shim.evaluator.program import Operation

_FLOAT32 = np.dtype(np.float32)


def element(
    to: Source, name: str, types: Sequence[np.dtype], out: np.dtype, xs: Sequence[str]
) -> str:
    """The register with the result of a primitive on elements.

    Raises:
      NotNative: the primitive isn't among those here, or not for these types.
    """
    if name == "convert_element_type":
        return convert(to, types[0], out, xs[0])
    if name == "select_n":
        return _select(to, types, out, xs)
    if name in _COMPARISONS:
        return _compare(to, name, types[0], xs)
    dtype, kind = types[0], _kind(types[0])
    is_narrow = kind == "narrow"
    write = _TABLES["float" if is_narrow else kind].get(name)
    if name.startswith(_POWER) and kind == "float":
        write = _power(int(name.removeprefix(_POWER)))
    if write is None or any(other != dtype for other in types):
        raise NotNative(f"{name} of {dtype.name}")
    if not is_narrow:
        return write(to, dtype, *xs)
    result = write(to, _FLOAT32, *[narrow.widened(to, dtype, x) for x in xs])
    return narrow.rounded(to, dtype, result) if out == dtype else result


_POWER = "integer_pow "


def name_of(operation: Operation) -> str:
    """The name of what an operation does to elements."""
    name, params = operation.name, operation.params
    if name == "integer_pow" and "y" in params:
        return f"{_POWER}{params['y']}"
    if name == "round" and "rounding_method" in params:
        return "round_to_even" if params["rounding_method"].name == "TO_NEAREST_EVEN" else name
    return name


def _kind(dtype: np.dtype) -> str:
    type_of(dtype)
    if dtype.kind == "f" and dtype.itemsize >= 4:
        return "float"
    return {"b": "boolean", "i": "integer", "u": "integer"}.get(dtype.kind, "narrow")


def _signed(dtype: np.dtype) -> bool:
    return dtype.kind == "i"


# -- comparisons and choices --------------------------------------------------------------------

_COMPARISONS = {
    # name: (of floats, of signed, of unsigned integers)
    "eq": ("oeq", "eq", "eq"),
    "ne": ("une", "ne", "ne"),
    "lt": ("olt", "slt", "ult"),
    "le": ("ole", "sle", "ule"),
    "gt": ("ogt", "sgt", "ugt"),
    "ge": ("oge", "sge", "uge"),
}


def _compare(to: Source, name: str, dtype: np.dtype, xs: Sequence[str]) -> str:
    of_floats, of_signed, of_unsigned = _COMPARISONS[name]
    kind = _kind(dtype)
    if kind == "narrow":
        xs, dtype, kind = [narrow.widened(to, dtype, x) for x in xs], _FLOAT32, "float"
    if kind == "float":
        return to.let(f"fcmp {of_floats} {type_of(dtype)} {xs[0]}, {xs[1]}")
    how = of_signed if _signed(dtype) else of_unsigned
    return to.let(f"icmp {how} {type_of(dtype)} {xs[0]}, {xs[1]}")


def _select(to: Source, types: Sequence[np.dtype], out: np.dtype, xs: Sequence[str]) -> str:
    which, *cases = xs
    kind = type_of(out)
    if types[0].kind == "b":
        if len(cases) == 1:
            return cases[0]
        return to.let(f"select i1 {which}, {kind} {cases[1]}, {kind} {cases[0]}")
    result = cases[0]
    how, number = ("sge" if _signed(types[0]) else "uge"), type_of(types[0])
    for index, case in enumerate(cases[1:], 1):
        reached = to.let(f"icmp {how} {number} {which}, {index}")
        result = to.let(f"select i1 {reached}, {kind} {case}, {kind} {result}")
    return result


# -- conversions --------------------------------------------------------------------------------


def convert(to: Source, source: np.dtype, target: np.dtype, x: str) -> str:
    a, b = type_of(source), type_of(target)
    of, into = _kind(source), _kind(target)
    if source == target:
        return x
    if of == "narrow":
        if into == "boolean":
            return to.let(f"icmp ne i16 {to.let(f'and i16 {x}, 32767')}, 0")
        return convert(to, _FLOAT32, target, narrow.widened(to, source, x))
    if into == "narrow":
        if (source.name, target.name) == ("float64", "float16"):
            raise NotNative(f"conversion from {source.name} to {target.name}")
        return narrow.rounded(to, target, convert(to, source, _FLOAT32, x))
    if into == "boolean":
        if of == "float":
            return to.let(f"fcmp une {a} {x}, 0.0")
        return to.let(f"icmp ne {a} {x}, 0")
    if of == "float" and into == "float":
        how = "fpext" if target.itemsize > source.itemsize else "fptrunc"
        return to.let(f"{how} {a} {x} to {b}")
    if of == "float":
        # NaN becomes 0, and what is out of range the nearest number in range.
        sign = "s" if _signed(target) else "u"
        return to.call(b, f"llvm.fpto{sign}i.sat.{b}.{_suffix(source)}", f"{a} {x}")
    if into == "float":
        return to.let(f"{'sitofp' if _signed(source) else 'uitofp'} {a} {x} to {b}")
    if of == "boolean" or target.itemsize > source.itemsize:
        return to.let(f"{'sext' if _signed(source) else 'zext'} {a} {x} to {b}")
    return x if target.itemsize == source.itemsize else to.let(f"trunc {a} {x} to {b}")


def _suffix(dtype: np.dtype) -> str:
    return f"f{8 * dtype.itemsize}"


def as_index(to: Source, dtype: np.dtype, x: str) -> str:
    """An integer as one of 64 bits."""
    if is_literal(x):
        return x
    if _kind(dtype) == "boolean":
        return to.let(f"zext i1 {x} to i64")
    if _kind(dtype) != "integer":
        raise NotNative(f"an index of the type {dtype.name}")
    if dtype.itemsize == 8:
        return x
    return to.let(f"{'sext' if _signed(dtype) else 'zext'} {type_of(dtype)} {x} to i64")


def clamped(to: Source, start: str, dim: int, size: int) -> str:
    """`memory.clamped` of an integer of 64 bits."""
    last = dim - size
    if is_literal(start) and 0 <= int(start) <= last:
        return start
    if last == 0:
        return "0"
    if dim < 1 << 31:
        start = to.let(f"sext i32 {to.let(f'trunc i64 {start} to i32')} to i64")
    negative = to.let(f"icmp slt i64 {start}, 0")
    from_end = to.let(f"add i64 {start}, {dim}")
    start = to.let(f"select i1 {negative}, i64 {from_end}, i64 {start}")
    start = to.call("i64", "llvm.smax.i64", f"i64 {start}", "i64 0")
    return to.call("i64", "llvm.smin.i64", f"i64 {start}", f"i64 {last}")


# -- integers -----------------------------------------------------------------------------------

Write = Callable[..., str]


def _plain(instruction: str) -> Write:
    return lambda to, dtype, x, y: to.let(f"{instruction} {type_of(dtype)} {x}, {y}")


def _minmax(which: str) -> Write:
    """Of floats: NaN if one is, and -0 is less than 0."""

    def write(to: Source, dtype: np.dtype, x: str, y: str) -> str:
        kind = type_of(dtype)
        name = f"llvm.{'s' if _signed(dtype) else 'u'}{which}.{kind}"
        if dtype.kind == "f":
            name = f"llvm.{which}imum.{_suffix(dtype)}"
        return to.call(kind, name, f"{kind} {x}", f"{kind} {y}")

    return write


def _shift(how: str) -> Write:
    """All bits go out if the count is negative, or at least the width. An arithmetic shift takes
    the first bit of unsigned integers for a sign, too."""

    def write(to: Source, dtype: np.dtype, x: str, by: str) -> str:
        kind, width = type_of(dtype), 8 * dtype.itemsize
        if by.isdigit() and int(by) < width:
            return to.let(f"{how} {kind} {x}, {by}")
        fits = to.let(f"icmp ult {kind} {by}, {width}")
        # Shifting by too much is undefined, even if nothing uses the result.
        most = to.let(f"select i1 {fits}, {kind} {by}, {kind} {width - 1}")
        shifted = to.let(f"{how} {kind} {x}, {most}")
        if how == "ashr":
            return shifted
        return to.let(f"select i1 {fits}, {kind} {shifted}, {kind} 0")

    return write


def _divide(to: Source, dtype: np.dtype, x: str, y: str) -> str:
    """Towards zero. A division by zero has all bits set, and the lowest / -1 wraps."""
    kind = type_of(dtype)
    zero = to.let(f"icmp eq {kind} {y}, 0")
    if not _signed(dtype):
        safe = to.let(f"select i1 {zero}, {kind} 1, {kind} {y}")
        quotient = to.let(f"udiv {kind} {x}, {safe}")
        return to.let(f"select i1 {zero}, {kind} -1, {kind} {quotient}")
    minus_one = to.let(f"icmp eq {kind} {y}, -1")
    special = to.let(f"or i1 {zero}, {minus_one}")
    safe = to.let(f"select i1 {special}, {kind} 1, {kind} {y}")
    quotient = to.let(f"sdiv {kind} {x}, {safe}")
    negated = to.let(f"sub {kind} 0, {x}")
    quotient = to.let(f"select i1 {minus_one}, {kind} {negated}, {kind} {quotient}")
    return to.let(f"select i1 {zero}, {kind} -1, {kind} {quotient}")


def _remainder(to: Source, dtype: np.dtype, x: str, y: str) -> str:
    kind = type_of(dtype)
    whole = to.let(f"mul {kind} {_divide(to, dtype, x, y)}, {y}")
    return to.let(f"sub {kind} {x}, {whole}")


def _floor_divide(to: Source, dtype: np.dtype, x: str, by: str) -> str:
    """``by`` is positive."""
    if not _signed(dtype):
        return _divide(to, dtype, x, by)
    kind = type_of(dtype)
    quotient = _divide(to, dtype, x, by)
    rest = to.let(f"sub {kind} {x}, {to.let(f'mul {kind} {quotient}, {by}')}")
    below = to.let(f"icmp slt {kind} {rest}, 0")
    less = to.let(f"sub {kind} {quotient}, 1")
    return to.let(f"select i1 {below}, {kind} {less}, {kind} {quotient}")


def _floor_remainder(to: Source, dtype: np.dtype, x: str, by: str) -> str:
    kind = type_of(dtype)
    whole = to.let(f"mul {kind} {_floor_divide(to, dtype, x, by)}, {by}")
    return to.let(f"sub {kind} {x}, {whole}")


def _abs(to: Source, dtype: np.dtype, x: str) -> str:
    kind = type_of(dtype)
    if not _signed(dtype):
        return x
    return to.call(kind, f"llvm.abs.{kind}", f"{kind} {x}", "i1 false")


def _sign(to: Source, dtype: np.dtype, x: str) -> str:
    kind = type_of(dtype)
    positive = to.let(f"zext i1 {to.let(f'icmp ne {kind} {x}, 0')} to {kind}")
    if not _signed(dtype):
        return positive
    negative = to.let(f"icmp slt {kind} {x}, 0")
    return to.let(f"select i1 {negative}, {kind} -1, {kind} {positive}")


def _clamp(to: Source, dtype: np.dtype, low: str, x: str, high: str) -> str:
    return _minmax("min")(to, dtype, _minmax("max")(to, dtype, low, x), high)


def _count(name: str, *flags: str) -> Write:
    def write(to: Source, dtype: np.dtype, x: str) -> str:
        kind = type_of(dtype)
        return to.call(kind, f"llvm.{name}.{kind}", f"{kind} {x}", *flags)

    return write


def _mulhi(to: Source, dtype: np.dtype, x: str, y: str) -> str:
    """The upper half of the product."""
    kind, width = type_of(dtype), 8 * dtype.itemsize
    double, extend = f"i{2 * width}", "sext" if _signed(dtype) else "zext"
    wide = [to.let(f"{extend} {kind} {operand} to {double}") for operand in (x, y)]
    product = to.let(f"mul {double} {wide[0]}, {wide[1]}")
    return to.let(f"trunc {double} {to.let(f'lshr {double} {product}, {width}')} to {kind}")


_INTEGERS: dict[str, Write] = {
    "add": _plain("add"),
    "add_any": _plain("add"),
    "sub": _plain("sub"),
    "mul": _plain("mul"),
    "mulhi": _mulhi,
    "and": _plain("and"),
    "or": _plain("or"),
    "xor": _plain("xor"),
    "max": _minmax("max"),
    "min": _minmax("min"),
    "clamp": _clamp,
    "div": _divide,
    "rem": _remainder,
    "floor_divide": _floor_divide,
    "floor_remainder": _floor_remainder,
    "shift_left": _shift("shl"),
    "shift_right_logical": _shift("lshr"),
    "shift_right_arithmetic": _shift("ashr"),
    "neg": lambda to, dtype, x: to.let(f"sub {type_of(dtype)} 0, {x}"),
    "not": lambda to, dtype, x: to.let(f"xor {type_of(dtype)} {x}, -1"),
    "square": lambda to, dtype, x: to.let(f"mul {type_of(dtype)} {x}, {x}"),
    "abs": _abs,
    "sign": _sign,
    "population_count": _count("ctpop"),
    "clz": _count("ctlz", "i1 false"),
}

_BOOLEANS: dict[str, Write] = {
    "and": _plain("and"),
    "or": _plain("or"),
    "xor": _plain("xor"),
    "max": _plain("or"),
    "min": _plain("and"),
    "not": lambda to, dtype, x: to.let(f"xor i1 {x}, true"),
}


# -- floats -------------------------------------------------------------------------------------


def _function(name: str) -> Write:
    def write(to: Source, dtype: np.dtype, x: str) -> str:
        kind = type_of(dtype)
        return to.call(kind, f"llvm.{name}.{_suffix(dtype)}", f"{kind} {x}")

    return write


def _float_sign(to: Source, dtype: np.dtype, x: str) -> str:
    """1, or the number itself if it is NaN or zero; with the number's sign."""
    kind = type_of(dtype)
    zero = literal(dtype.type(0))
    different = to.let(f"fcmp one {kind} {x}, {zero}")
    whole = to.let(f"fcmp oeq {kind} {x}, {zero}")
    kept = to.let(f"select i1 {whole}, {kind} {zero}, {kind} {x}")
    made = to.let(f"select i1 {different}, {kind} {literal(dtype.type(1))}, {kind} {kept}")
    return to.call(kind, f"llvm.copysign.{_suffix(dtype)}", f"{kind} {made}", f"{kind} {x}")


def _power(exponent: int) -> Write:
    """By squaring, as the rule does it."""

    def write(to: Source, dtype: np.dtype, x: str) -> str:
        kind, one, result = type_of(dtype), literal(dtype.type(1)), ""
        rest = abs(exponent)
        while rest:
            if rest & 1:
                result = to.let(f"fmul {kind} {result}, {x}") if result else x
            rest >>= 1
            if rest:
                x = to.let(f"fmul {kind} {x}, {x}")
        result = result or one
        return to.let(f"fdiv {kind} {one}, {result}") if exponent < 0 else result

    return write


def _is_finite(to: Source, dtype: np.dtype, x: str) -> str:
    kind, infinity = type_of(dtype), literal(dtype.type(np.inf))
    return to.let(f"fcmp one {kind} {_function('fabs')(to, dtype, x)}, {infinity}")


_FLOATS: dict[str, Write] = {
    "add": _plain("fadd"),
    "add_any": _plain("fadd"),
    "sub": _plain("fsub"),
    "mul": _plain("fmul"),
    "div": _plain("fdiv"),
    "neg": lambda to, dtype, x: to.let(f"fneg {type_of(dtype)} {x}"),
    "square": lambda to, dtype, x: to.let(f"fmul {type_of(dtype)} {x}, {x}"),
    "abs": _function("fabs"),
    "sqrt": _function("sqrt"),
    "floor": _function("floor"),
    "ceil": _function("ceil"),
    "round_to_even": _function("rint"),
    "sign": _float_sign,
    "is_finite": _is_finite,
    "max": _minmax("max"),
    "min": _minmax("min"),
    "clamp": _clamp,
}

_TABLES: dict[str, dict[str, Write]] = {
    "boolean": _BOOLEANS,
    "integer": _INTEGERS,
    "float": _FLOATS,
}


# -- several results ------------------------------------------------------------------------------

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA


def threefry(to: Source, key1: str, key2: str, x1: str, x2: str) -> tuple[str, str]:
    """The Threefry-2x32 hash, as `rules.random.threefry2x32`."""

    def both(how: str, a: str, b: str) -> str:
        return to.let(f"{how} i32 {a}, {b}")

    keys = (key1, key2, both("xor", both("xor", key1, key2), str(_PARITY)))
    x1, x2 = both("add", x1, key1), both("add", x2, key2)
    for turn in range(5):
        for by in _ROTATIONS[turn % 2]:
            x1 = both("add", x1, x2)
            turned = both("or", both("shl", x2, str(by)), both("lshr", x2, str(32 - by)))
            x2 = both("xor", turned, x1)
        x1 = both("add", x1, keys[(turn + 1) % 3])
        x2 = both("add", both("add", x2, keys[(turn + 2) % 3]), str(turn + 1))
    return x1, x2
