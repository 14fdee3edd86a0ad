"""Operations on scalars, as they run, against the rules' own functions."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from pallas_shim.evaluator import memory, rules, scalars
from pallas_shim.evaluator.floating import as_xla
from pallas_shim.evaluator.lower import specialise
from pallas_shim.evaluator.memory import Dynamic
from pallas_shim.evaluator.program import ArrayType, Operation, RefType
from pallas_shim.jax_compat.state import Index

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


def operation(name: str, ins: list[np.dtype], out: np.dtype, **params: Any) -> Operation:
    types = tuple(ArrayType((), dtype) for dtype in ins)
    return specialise(name, types, (ArrayType((), out),), params, multiple=False)


def agree(of: Operation, *args: np.generic) -> None:
    """The scalar form does what the rule's function does to arrays, whichever way it gets them."""
    form = scalars.function(of)
    assert form is not None and form is not of.fn
    assert of.fn is not None
    with as_xla():
        want = of.fn(*[np.asarray(x).reshape(1) for x in args])
        for got in (form(*args), form(*map(np.asarray, args))):
            assert isinstance(got, np.generic) and got.dtype == want.dtype, (args, got)
            same_bits = got.tobytes() == want.tobytes()
            assert same_bits or got != got and want[0] != want[0], (of.name, args, got, want)


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
    of = operation(name, [dtype, dtype], np.dtype(bool) if name in COMPARISONS else dtype)
    for pair in itertools.product(values(dtype), repeat=2):
        agree(of, *pair)


@pytest.mark.parametrize("name,kinds", [("neg", "iuf"), ("abs", "if"), ("not", "biu")])
def test_one_operand(name, kinds):
    for dtype in TYPES:
        if dtype.kind in kinds:
            for value in values(dtype):
                agree(operation(name, [dtype], dtype), value)


@pytest.mark.parametrize("name", ["max", "min"])
def test_floats_have_zeros_and_nan(name):
    of = operation(name, [np.dtype("f")] * 2, np.dtype("f"))
    assert scalars.function(of) is of.fn


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_select(dtype):
    of = operation("select_n", [np.dtype(bool), dtype, dtype], dtype)
    for no, yes in itertools.permutations(values(dtype), 2):
        for which in (False, True):
            agree(of, np.bool_(which), no, yes)


@pytest.mark.parametrize("source", [t for t in TYPES if t.kind in "biu"], ids=str)
@pytest.mark.parametrize("target", [t for t in TYPES if t.kind in "iuf"], ids=str)
def test_conversion(source, target):
    of = operation("convert_element_type", [source], target)
    if source == target or scalars.function(of) is of.fn:
        assert source == target or source.itemsize > 4 and target.kind == "f"
        return
    for value in values(source):
        agree(of, value)


@pytest.mark.parametrize("shape,dims,leaves", [
    ((5,), (Dynamic(0),), 1),
    ((3, 5), (Dynamic(1), Dynamic(0)), 2),
    ((3, 5), (2, Dynamic(0)), 1),
    ((3,), (1,), 0),
    ((), None, 0),
])  # fmt: skip
def test_elements_of_memory(shape, dims, leaves):
    """As the view of them, with indices outside."""
    path = () if dims is None else (Index(dims),)
    dtype = np.dtype(np.float32)
    ref, element = RefType(shape, dtype, "smem"), ArrayType((), dtype)
    number = ArrayType((), np.dtype(np.int32))
    view = memory.viewer(shape, dtype, path)
    get = Operation("get", {"path": path}, (ref, *[number] * leaves), (element,), view)
    store = Operation(
        "store", {"path": path}, (ref, element, *[number] * leaves), (),
        memory.writer(shape, dtype, path), multiple=True,
    )  # fmt: skip
    read, write = map(scalars.function, (get, store))
    assert read is not view and write is not store.fn
    for at in itertools.product(map(np.int32, (-9, -1, 0, 2, 4, 5, 2**31 - 1)), repeat=leaves):
        array = np.arange(np.prod(shape, dtype=int), dtype=dtype).reshape(shape)
        got, want = read(array, *at), view(array, *at).copy()
        assert isinstance(got, np.float32) and got == want
        expected = array.copy()
        view(expected, *at)[...] = 100
        assert write(array, np.float32(100), *at) == ()
        np.testing.assert_array_equal(array, expected)
        assert got == want  # not a view


def test_a_slice_is_no_element():
    path = (memory.Index((memory.Slice(0, 1, 1),)),)
    ref, row = RefType((3,), np.dtype(np.float32), "vmem"), ArrayType((1,), np.dtype(np.float32))
    of = Operation("get", {"path": path}, (ref,), (row,), memory.viewer((3,), row.dtype, path))
    assert scalars.function(of) is of.fn
