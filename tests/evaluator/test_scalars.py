"""Operations on scalars, as they run, against the rules' own functions."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import numpy as np
import pytest

from pallas_shim.evaluator import rules, scalars
from pallas_shim.evaluator.program import ArrayType, Operation
from pallas_shim.evaluator.specialise import specialise
from tests.oracle import as_xla_computes, check_kernel

rules.load()

TYPES = [np.dtype(t) for t in "? b B h H i I q Q f d F".split()]
COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")


def values(dtype: np.dtype) -> list[np.generic]:
    numbers: list[Any]
    if dtype.kind == "b":
        numbers = [False, True]
    elif dtype.kind in "iu":
        info = np.iinfo(dtype)
        numbers = [info.min, info.min + 1, 0, 1, 2, 7, info.max - 1, info.max]
    else:
        tiny = np.finfo(dtype).tiny
        numbers = [0.0, -0.0, 1, -1.5, np.inf, -np.inf, np.nan, tiny, tiny / 2, 3e4]
    return [np.asarray(number).astype(dtype)[()] for number in numbers]


def operation(name: str, ins: list[np.dtype], out: np.dtype, shape: Any = ()) -> Operation:
    types = tuple(ArrayType(shape, dtype) for dtype in ins)
    return specialise(name, types, (ArrayType(shape, out),), {}, multiple=False)


@as_xla_computes
def agree(name: str, out: np.dtype, *args: np.generic) -> None:
    """What runs for scalars does what the rule has for arrays, whichever way it gets them."""
    ins = [x.dtype for x in args]
    of_scalars, of_arrays = operation(name, ins, out), operation(name, ins, out, (1,))
    run = scalars.function(of_scalars)
    assert run is not None and of_arrays.fn is not None
    assert run is not of_arrays.fn, "no faster form"
    want = of_arrays.fn(*[np.asarray(x).reshape(1) for x in args])
    for got in (run(*args), run(*map(np.asarray, args))):
        assert isinstance(got, np.generic) and got.dtype == want.dtype, (args, got)
        same_bits = got.tobytes() == want.tobytes()
        assert same_bits or got != got and want[0] != want[0], (name, args, got, want)


# What has a faster form: the names, and the kinds of dtype.
FASTER = [
    (("add", "sub", "mul"), "iuf"),
    (COMPARISONS, "biuf"),
    (("and", "or", "xor", "max", "min"), "biu"),
]


@pytest.mark.parametrize("name,dtype", [
    (name, dtype)
    for names, kinds in FASTER for name in names for dtype in TYPES if dtype.kind in kinds
])  # fmt: skip
def test_two_operands(name, dtype):
    out = np.dtype(bool) if name in COMPARISONS else dtype
    for pair in itertools.product(values(dtype), repeat=2):
        agree(name, out, *pair)


@pytest.mark.parametrize("name", ["div", "rem"])
@pytest.mark.parametrize("dtype", [t for t in TYPES if t.kind in "iu"], ids=str)
@as_xla_computes
def test_division_of_integers(name, dtype):
    """The rule itself has a way for scalars."""
    of_scalars, of_arrays = (operation(name, [dtype] * 2, dtype, shape) for shape in ((), (1,)))
    for x, y in itertools.product(values(dtype), repeat=2):
        (want,) = of_arrays.fn(x.reshape(1), y.reshape(1))
        got = of_scalars.fn(x, y)
        assert (got.dtype, got) == (want.dtype, want), (x, y)


@pytest.mark.parametrize("name,kinds", [("neg", "iuf"), ("abs", "if"), ("not", "biu")])
def test_one_operand(name, kinds):
    for dtype in TYPES:
        if dtype.kind in kinds:
            for value in values(dtype):
                agree(name, dtype, value)


@pytest.mark.parametrize("name", ["max", "min"])
def test_floats_have_zeros_and_nan(name):
    of = operation(name, [np.dtype("f")] * 2, np.dtype("f"))
    assert scalars.function(of) is of.fn


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_select(dtype):
    for no, yes in itertools.permutations(values(dtype), 2):
        for which in (False, True):
            agree("select_n", dtype, np.bool_(which), no, yes)


# Lowering leaves out a conversion to the same type; 64 bits go to floats as arrays do.
@pytest.mark.parametrize("source,target", [
    (source, target)
    for source in TYPES if source.kind in "biu"
    for target in TYPES if target.kind in "iuf" and target != source
    if source.itemsize <= 4 or target.kind != "f"
])  # fmt: skip
def test_conversion(source, target):
    for value in values(source):
        agree("convert_element_type", target, value)


def test_a_loaded_scalar_is_no_view():
    """What is stored after it was loaded doesn't change it."""

    def kernel(x_ref, o_ref):
        before = x_ref[2]
        x_ref[2] = before + 1
        o_ref[0] = before * 10 + x_ref[2]

    x = np.array([1, 2, 3], np.int32)
    check_kernel(kernel, jax.ShapeDtypeStruct((1,), np.int32), x)
