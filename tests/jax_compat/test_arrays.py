"""The boundary between JAX's values and NumPy arrays."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_shim.evaluator import memory
from pallas_shim.jax_compat import arrays

X = np.arange(8, dtype=np.float32)


def read(*args):
    dtypes = arrays.argument_dtypes([jax.typeof(a) for a in args])
    return arrays.read(args, dtypes, any_platform=False)


def test_a_jax_array_is_read_without_a_copy():
    x = jnp.asarray(X)
    (a,), place = read(x)
    (b,), _ = read(x)
    assert a.ctypes.data == b.ctypes.data and not a.flags.writeable
    assert not place.committed and place.sharding == x.sharding


def test_other_values_are_read_as_jit_takes_them():
    key = jax.random.key(3)
    values, _ = read(np.arange(3), np.float64(1.5), True, 7, 2.5, 1j, key)
    assert [str(v.dtype) for v in values] == [
        "int32", "float32", "bool", "int32", "float32", "complex64", "uint32"
    ]
    np.testing.assert_array_equal(values[-1], jax.random.key_data(key))


def test_an_integer_that_does_not_fit():
    with pytest.raises(OverflowError):
        arrays.read((2**40,), (np.dtype(np.int32),), any_platform=False)


def test_an_unknown_value_is_left_to_jit():
    with pytest.raises(arrays.Elsewhere, match="str"):
        arrays.read(("x",), (X.dtype,), any_platform=False)


def written(array, aval=None):
    _, place = read(X)
    aval = aval or jax.typeof(jnp.asarray(array))
    (out,) = arrays.write([array], arrays.result_types([aval]), place)
    return out


@pytest.mark.parametrize(
    "view", [lambda a: a, lambda a: a[:], lambda a: a.view(), lambda a: a[2:6]]
)
@pytest.mark.parametrize("size", [8, 1 << 18])
def test_what_is_written_can_not_change(view, size):
    array = np.arange(size, dtype=np.float32)
    out = written(view(array))
    want = np.asarray(view(array)).copy()
    array[:] = -1
    np.testing.assert_array_equal(np.asarray(out), want)


@pytest.mark.parametrize("views", (1, 2))
def test_only_the_one_view_of_an_array_is_not_copied(views):
    _, place = read(X)
    results = [memory.aligned((64, 64), X.dtype)]
    results[0][...] = 1
    address = results[0].ctypes.data
    others = [results[0][:1] for _ in range(views - 1)]
    types = arrays.result_types([jax.typeof(jnp.ones((64, 64), X.dtype))])
    (out,) = arrays.write(results, types, place)
    for other in others:
        other[...] = 2
    assert (np.asarray(out) == 1).all()
    assert (out.unsafe_buffer_pointer() == address) == (views == 1)


def test_an_array_that_is_a_result_twice():
    _, place = read(X)
    results = [np.ones(1 << 18, np.float32)] * 2
    avals = [jax.typeof(jnp.asarray(results[0]))] * 2
    out = arrays.write(results, arrays.result_types(avals), place)
    results[0][:] = 5
    for each in out:
        assert (np.asarray(each) == 1).all()


def test_keys_are_written():
    key = jax.random.key(5)
    out = written(np.asarray(jax.random.key_data(key)), jax.typeof(key))
    assert out.dtype == key.dtype and type(out) is type(key)
    assert jax.random.bits(out) == jax.random.bits(key)


def test_which_types_are_plain():
    plain = jax.typeof(jnp.asarray(X))
    assert arrays.is_plain(plain) and arrays.is_plain(jax.typeof(jax.random.key(0)))
    assert not arrays.is_plain(jax.core.ShapedArray((3,), jax.dtypes.float0))
