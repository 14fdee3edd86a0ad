"""Native code that widens bfloat16 and float16 to float32, and rounds float32 to them.

Both are their bits, which are computed as integers, since subnormal float32s would be zeros.
"""

from __future__ import annotations

import numpy as np

from pallas_shim.evaluator.codegen.native.source import NotNative, Source, literal

_NAN = 0x7FC0_0000
_INFINITY = 0x7F80_0000


def widened(to: Source, dtype: np.dtype, x: str) -> str:
    """The float32 with the value of a narrow float.

    Raises:
      NotNative: of another type than these two.
    """
    if dtype.name == "bfloat16":
        return _as_float(to, _i32(to, "shl", to.let(f"zext i16 {x} to i32"), "16"))
    if dtype.name != "float16":
        raise NotNative(f"values of the type {dtype.name}")
    bits = to.let(f"zext i16 {x} to i32")
    magnitude = _i32(to, "and", bits, "32767")
    placed = _i32(to, "shl", magnitude, "13")
    normal = _i32(to, "add", placed, str((127 - 15) << 23))
    whole = to.let(f"uitofp i32 {magnitude} to float")
    tiny = to.let(f"fmul float {whole}, {literal(np.float32(2**-24))}")
    result = _choice(to, "ult", magnitude, 1 << 10, _bits(to, tiny), normal)
    special = _i32(to, "or", placed, str(_INFINITY))
    result = _choice(to, "uge", magnitude, 31 << 10, special, result)
    sign = _i32(to, "shl", _i32(to, "and", bits, "32768"), "16")
    return _as_float(to, _i32(to, "or", result, sign))


def rounded(to: Source, dtype: np.dtype, x: str) -> str:
    """The narrow float nearest to a float32; of two, the even one.

    Raises:
      NotNative: of another type than these two.
    """
    bits = _bits(to, x)
    magnitude = _i32(to, "and", bits, str(0x7FFF_FFFF))
    sign = _i32(to, "and", _i32(to, "lshr", bits, "16"), "32768")
    if dtype.name == "bfloat16":
        result = _to_even(to, magnitude, 16, 0)
        result = _choice(to, "ugt", magnitude, _INFINITY, str(_NAN >> 16), result)
    elif dtype.name == "float16":
        result = _to_even(to, magnitude, 13, -((127 - 15) << 23))
        infinity = 31 << 10
        result = to.call("i32", "llvm.smin.i32", f"i32 {result}", f"i32 {infinity}")
        # The spacing of float32s at 0.5 is the smallest float16, as is the spacing of float16s up
        # to 2^-13.
        half = literal(np.float32(0.5))
        multiple = to.let(f"fadd float {_as_float(to, magnitude)}, {half}")
        small = _i32(to, "sub", _bits(to, multiple), str(int(np.float32(0.5).view(np.int32))))
        least = int(np.float32(2**-13).view(np.int32))
        result = _choice(to, "ult", magnitude, least, small, result)
        result = _choice(to, "ugt", magnitude, _INFINITY, str(infinity | 1 << 9), result)
    else:
        raise NotNative(f"values of the type {dtype.name}")
    return to.let(f"trunc i32 {_i32(to, 'or', result, sign)} to i16")


def _to_even(to: Source, magnitude: str, dropped: int, rebiased: int) -> str:
    """A magnitude without its last bits. A carry out of the mantissa adds one to the exponent, as
    it should."""
    odd = _i32(to, "and", _i32(to, "lshr", magnitude, str(dropped)), "1")
    total = _i32(to, "add", magnitude, odd)
    total = _i32(to, "add", total, str((1 << (dropped - 1)) - 1 + rebiased))
    return _i32(to, "ashr", total, str(dropped))


def _i32(to: Source, instruction: str, a: str, b: str) -> str:
    return to.let(f"{instruction} i32 {a}, {b}")


def _choice(to: Source, how: str, x: str, bound: int, yes: str, no: str) -> str:
    is_so = to.let(f"icmp {how} i32 {x}, {bound}")
    return to.let(f"select i1 {is_so}, i32 {yes}, i32 {no}")


def _bits(to: Source, x: str) -> str:
    return to.let(f"bitcast float {x} to i32")


def _as_float(to: Source, x: str) -> str:
    return to.let(f"bitcast i32 {x} to float")
