"""The exponential function of float32, written out, where that gives NumPy's bits.

NumPy has vectors of it for processors with AVX2 or AVX-512: a rational function of what is left of
the operand after the nearest multiple of log(2), with each step rounded once. Here are the same
steps in the same order, so loops can compute it beside other operations, without writing operands
and results to memory. Other builds of NumPy call the C library, so a sample decides.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

import numpy as np

from pallas_shim.evaluator.codegen.native import machine
from pallas_shim.evaluator.codegen.native.source import NotNative, Source, literal
from pallas_shim.evaluator.floating import as_xla

# From the first on, the result is infinite. Up to the second, it is a subnormal number, or less.
_INFINITE, _ZERO = 88.72284, -87.33655
# Adding and subtracting it rounds to an integer. In between, the last bits are the integer.
_ROUNDS = 1.5 * 2.0**23
_LOG2_E = 1.44269504088896340736
# -log(2), the first part with few digits, so that a multiple of it is exact.
_LOG_2 = (-6.93145752e-1, -1.42860677e-6)
# From the highest power down.
_NUMERATOR = (5.082762527590693718096e-04, 6.757896990527504603057e-03, 5.114512081637298353406e-02,
              2.473615434895520810817e-01, 7.257664613233124478488e-01,
              9.999999999980870924916e-01)  # fmt: skip
_DENOMINATOR = (2.159509375685829852307e-02, -2.742335390411667452936e-01, 1.0)
# Compares every so many of all float32 numbers. It is odd, so that all last bits occur.
_STEP = 4099


def write(to: Source, x: str) -> str:
    """The register with the result."""
    shifted = to.let(f"fmul float {x}, {_number(_LOG2_E)}")
    shifted = to.let(f"fadd float {shifted}, {_number(_ROUNDS)}")
    times = to.let(f"fsub float {shifted}, {_number(_ROUNDS)}")
    rest = x
    for part in _LOG_2:
        rest = _fma(to, times, _number(part), rest)
    above, below = _polynomial(to, _NUMERATOR, rest), _polynomial(to, _DENOMINATOR, rest)
    quotient = to.let(f"fdiv float {above}, {below}")
    # The integer is added to the exponent.
    exponent = to.let(f"shl i32 {to.let(f'bitcast float {shifted} to i32')}, 23")
    scaled = to.let(f"add i32 {to.let(f'bitcast float {quotient} to i32')}, {exponent}")
    result = to.let(f"bitcast i32 {scaled} to float")
    for test, bound, instead in (
        ("ole", _ZERO, _number(0.0)),
        ("oge", _INFINITE, _number(np.inf)),
        ("uno", 0.0, x),
    ):
        is_so = to.let(f"fcmp {test} float {x}, {_number(bound)}")
        result = to.let(f"select i1 {is_so}, float {instead}, float {result}")
    return result


def _number(number: float) -> str:
    return literal(np.float32(number))


def _fma(to: Source, a: str, b: str, c: str) -> str:
    return to.call("float", "llvm.fma.f32", f"float {a}", f"float {b}", f"float {c}")


def _polynomial(to: Source, coefficients: tuple[float, ...], x: str) -> str:
    result = _number(coefficients[0])
    for coefficient in coefficients[1:]:
        result = _fma(to, result, x, _number(coefficient))
    return result


# Of (address of the operands, of the results, how many).
Compiled = Callable[[int, int, int], None]


@functools.cache
def is_numpys() -> bool:
    """Whether it has the bits of NumPy's function here. This compiles a function."""
    try:
        function = compiled()
    except (ImportError, NotNative):
        return False
    every = np.arange((1 << 32) // _STEP, dtype=np.uint32) * np.uint32(_STEP)
    return as_xla(agrees, function, every.view(np.float32))


def agrees(function: Compiled, operands: np.ndarray) -> bool:
    """Whether a compiled function and NumPy's give the same, but for the bits of NaNs."""
    results = np.empty_like(operands)
    function(operands.ctypes.data, results.ctypes.data, operands.size)
    with np.errstate(all="ignore"):
        expected = np.exp(operands)
    differ = results.view(np.uint32) != expected.view(np.uint32)
    return bool(np.isnan(results[differ]).all() and np.isnan(expected[differ]).all())


def compiled() -> Compiled:
    """The function of many numbers.

    Raises:
      ImportError: llvmlite isn't installed.
      NotNative: it can't be used here.
    """
    to, dtype = Source(), np.dtype(np.float32)
    with to.independent_rounds() as rounds, to.loop("%count", rounds) as number:
        at = to.times(number, dtype.itemsize)
        to.store(dtype, write(to, to.load(dtype, "%operands", at)), "%results", at)
    to.line("ret i32 0")
    params = "ptr noalias %operands, ptr noalias %results, i64 %count"
    text = to.text("exponentials", params, linkage="external")
    code = machine.object_code("\n".join([*sorted(to.declared), text, machine.attribute_group()]))
    engine = machine.loaded(code)
    kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
    function = kind(engine.get_function_address("exponentials"))

    def call(operands: int, results: int, count: int, engine: object = engine) -> None:
        function(operands, results, count)  # ``engine`` holds the code

    return call
