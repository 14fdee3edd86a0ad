"""Programs as bytes: what comes back does the same, bit for bit."""

from __future__ import annotations

import functools
import re
import types

import jax
import ml_dtypes
import numpy as np
import pytest

from pallas_shim.cache import encode as encode_module
from pallas_shim.cache import places
from pallas_shim.cache.encode import NotData, decode, decode_data, encode, encode_data
from pallas_shim.evaluator import memory
from pallas_shim.evaluator.execute import Executable
from pallas_shim.evaluator.lower import lower
from pallas_shim.evaluator.op_types import NAMES_THE_USERS
from pallas_shim.evaluator.passes import optimise
from pallas_shim.evaluator.program import ArrayType
from tests.evaluator.codegen.emitting import emit_all
from tests.kernels import blocks, control, numeric, refs, transforms
from tests.kernels import memory as memory_kernels
from tests.kernels.harness import cases

__all__ = ["emit_all"]

CASES = cases(blocks, control, memory_kernels, numeric, refs, transforms)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.tpu])
def test_a_program_comes_back(name, emit_all, monkeypatch):
    f, args, *_ = CASES[name].build()
    program = optimise(lower(jax.make_jaxpr(f)(*args)))
    arrays = [np.asarray(x) for x in jax.tree.leaves(args)]
    if not NAMES_THE_USERS.isdisjoint(i.name for i in program.top.walk()):
        with pytest.raises(NotData, match="holds a name that the user chose"):
            encode(program)
        return
    with monkeypatch.context() as without_files:
        without_files.setattr(places, "_all_code", _too_slow)
        data = encode(program)
        back = decode(data)
    assert len(list(back.top.walk())) == len(list(program.top.walk()))
    want = Executable(program)(*arrays)
    loops = [*map(_without_globals, emit_all)]
    emit_all.clear()
    got = Executable(back)(*arrays)
    assert [*map(_without_globals, emit_all)] == loops
    for one, other in zip(got, want, strict=True):
        one, other = np.asarray(one), np.asarray(other)
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert one.tobytes() == other.tobytes()


def test_what_a_run_does_not_need_is_decoded_when_it_is_asked_for(monkeypatch):
    f, args, *_ = CASES["numeric.softmax"].build()
    program = optimise(lower(jax.make_jaxpr(f)(*args)))
    asked = []
    decode_later = encode_module._Decoder.decode_later

    def noted(decoder):
        asked.append(decoder)
        decode_later(decoder)

    monkeypatch.setattr(encode_module._Decoder, "decode_later", noted)
    back = decode(encode(program))
    Executable(back)(*[np.asarray(x) for x in args])
    assert not asked
    assert str(back) == str(program)
    assert len(asked) == 1
    for one, other in zip(back.top.walk(), program.top.walk(), strict=True):
        assert one.operation.ins == other.operation.ins
        assert one.operation.outs == other.operation.outs
    assert not hasattr(back.top.body[0].operation, "another")


def _too_slow(module):
    raise AssertionError(f"the code of a function of {module} is looked for in its file")


def _without_globals(source: str) -> str:
    """A loop's source: which functions and constants are one object isn't kept."""
    return re.sub(r"\bg\d+", "g", source)


@pytest.mark.parametrize(
    "value",
    [
        None, True, 3, -(2**70), "text", 0.1, float("inf"), -0.0, 1 - 2j, ..., range(1, 9, 2),
        slice(1, None, 3), (1, [2, (3,)], {"a": (4.5,), 2: None}), np.dtype("int8"),
        np.dtype(ml_dtypes.bfloat16), np.dtype(ml_dtypes.int4), np.float32, np.add, np.take,
        ArrayType((2, 3), np.dtype(np.float16)), memory.Dynamic(3), ValueError,
    ],
    ids=lambda data: getattr(data, "__name__", None) or repr(data),
)  # fmt: skip
def test_plain_data_comes_back(value):
    back = decode_data(encode_data(value))
    assert type(back) is type(value) and back == value and repr(back) == repr(value)


ROW = np.arange(100, dtype=np.float32)
SIGNALING = np.full((50, 100), 0x7F800001, np.uint32).view(np.float32)
ZEROS = np.zeros((50, 100), np.float32)
ALMOST = ZEROS.copy()
ALMOST[-1, -1] = -0.0
REPEATED = [
    ZEROS,
    np.array(np.broadcast_to(ROW, (50, 100))),
    np.array(np.broadcast_to(ROW[:, None], (100, 50)), order="F"),
    SIGNALING,
    ALMOST,
    np.tile(ROW, (20, 1))[::2],
    np.zeros((50, 0, 100)),
    np.full((3000,), 1.5, ml_dtypes.bfloat16),
    np.full((3000,), 3, ml_dtypes.int4),
    np.full((20, 100), 1 - 2j),
]


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.int16).reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.zeros((0, 4), np.float32),
        np.array(2.5),
        np.arange(8, dtype=np.float32).astype(ml_dtypes.bfloat16),
        np.arange(4).astype(ml_dtypes.int4),
        np.broadcast_to(np.float32(2), (3, 3)),
        np.array([np.nan, -0.0, np.inf]),
        *REPEATED,
    ],
    ids=lambda a: f"{a.dtype}{a.shape}",
)
def test_an_array_comes_back(array):
    back = decode_data(encode_data(array))
    assert back.dtype == array.dtype and back.shape == array.shape
    assert back.tobytes() == array.tobytes()
    assert back.flags.writeable == array.flags.writeable
    assert back.flags.c_contiguous == array.flags.c_contiguous or not array.flags.forc
    assert back.flags.aligned


def test_what_repeats_is_kept_once():
    for array in REPEATED[:4]:
        assert len(encode_data(array)) < array.nbytes / 4


def test_a_callable_comes_back():
    view = memory.viewer((4, 5), np.dtype(np.float32), ())
    assert isinstance(view, types.FunctionType)
    array = np.ones((4, 5), np.float32)
    assert decode_data(encode_data(view))(array) is array
    partial = decode_data(encode_data(functools.partial(np.sum, axis=1)))
    np.testing.assert_array_equal(partial(array), [5, 5, 5, 5])
    assert decode_data(encode_data(np.add.reduce))([1, 2]) == 3


def test_what_is_one_object_stays_one():
    shared = [1]
    one, (other,) = decode_data(encode_data((shared, (shared,))))
    assert one is other


def here():
    return 1


@pytest.mark.parametrize(
    "value", [here, lambda: 1, object(), {1: object()}, np.array([None]), open, jax.numpy.add]
)
def test_what_is_not_data_is_refused(value):
    with pytest.raises(NotData):
        encode_data([value])
