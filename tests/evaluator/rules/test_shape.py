"""Shape rules against JAX. Each check runs many cases through one compilation."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from pallas_shim.evaluator.lower import lower
from pallas_shim.evaluator.program import ArrayType
from pallas_shim.evaluator.rules import IMPL_RULES, Unsupported, load
from tests.oracle import check_rule

DTYPES = [
    np.bool_, np.int8, np.uint32, np.float16, np.float32, np.complex64,
    ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn,
]  # fmt: skip
if jax.__version_info__ >= (0, 9):  # before, XLA transposes int4 wrongly and can't gather it
    DTYPES.append(ml_dtypes.int4)
SHAPES = [(), (0,), (5,), (1, 1), (3, 0, 2), (2, 3, 4), (2, 1, 3, 2)]
names = {"ids": lambda d: np.dtype(d).name}


def filled(shape, dtype=np.float32):
    return np.arange(math.prod(shape)).reshape(shape).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES, **names)
def test_every_rule_for_every_dtype(dtype):
    def f(x, y):
        return (
            lax.broadcast_in_dim(x, (4, 2, 3, 5), (1, 2)),
            lax.reshape(x, (3, 2)),
            lax.reshape(x, (3, 2), dimensions=(1, 0)),
            lax.transpose(x, (1, 0)),
            lax.expand_dims(x, (0, 3)),
            lax.squeeze(x[:1], (0,)),
            lax.concatenate([x, y, x], 0),
            jnp.stack([x, y], 1),
            lax.pad(x, y[0, 0], [(1, 2, 1), (0, 1, 2)]),
            lax.rev(x, (1,)),
            lax.slice(x, (0, 1), (2, 3), (1, 2)),
            lax.split(x, (1, 2), axis=1),
            jnp.tile(x, (2, 3)),
        )

    check_rule(f, filled((2, 3), dtype), filled((2, 3), dtype)[::-1])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_rule_for_every_rank(shape):
    axes = range(len(shape))

    def f(x):
        return [
            lax.broadcast(x, (2, 3)),
            lax.broadcast_in_dim(x, (*shape, 3), tuple(axes)),
            lax.broadcast_in_dim(x, shape, tuple(axes)),
            x.ravel(),
            x.T,
            lax.reshape(x, (x.size,), dimensions=tuple(axes)[::-1]),
            jnp.expand_dims(x, 0),
            jnp.squeeze(x),
            lax.rev(x, tuple(axes)[::2]),
            lax.pad(x, np.float32(-1), [(i, 1, i) for i in axes]),
            lax.slice(x, [d // 2 for d in shape], shape),
            jnp.tile(x, (2,) * len(shape)),
            jnp.tile(x, (1,) * len(shape)),
            *([lax.concatenate([x, x], i) for i in axes]),
            *([lax.split(x, (d // 2, d - d // 2), i) for i, d in enumerate(shape)]),
            *([jnp.stack([x, x, x], i) for i in range(len(shape) + 1)]),
            *([jnp.unstack(x, axis=i) for i in axes]),
        ]

    check_rule(f, filled(shape))


def test_large_broadcasts_are_views():
    def f(x, y):
        return lax.broadcast_in_dim(x, (100, 200), (1,)), jnp.broadcast_to(y, (300, 100))

    got = check_rule(f, filled((200,)), np.float32(3))
    assert all(0 in result.strides for result in got)


@settings(max_examples=25, derandomize=True, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 4), st.integers(-6, 5), st.integers(-6, 5), st.integers(0, 3)
        ),
        min_size=1,
        max_size=3,
    )
)
def test_pad(dims):
    shape, config = [d[0] for d in dims], [d[1:] for d in dims]
    # JAX refuses to make dimensions of negative size, and so do we make none.
    config = [
        (low, high, step) if n + (n - 1) * step * (n > 0) + low + high >= 0 else (0, 0, step)
        for n, (low, high, step) in zip(shape, config, strict=True)
    ]
    check_rule(lambda x, y: lax.pad(x, y, config), filled(shape), np.float32(-0.0))


@settings(max_examples=15, derandomize=True, deadline=None)
@given(st.data())
def test_slice(data):
    shape = data.draw(st.lists(st.integers(0, 7), max_size=4))
    bounds = [sorted(data.draw(st.tuples(*[st.integers(0, n)] * 2))) for n in shape]
    strides = [data.draw(st.integers(1, 4)) for _ in shape]
    start, limit = [a for a, _ in bounds], [b for _, b in bounds]
    check_rule(lambda x: lax.slice(x, start, limit, strides), filled(shape))


@pytest.mark.parametrize("dtype", [d for d in DTYPES if d is not np.bool_], **names)
def test_iota(dtype):
    # 70,000 is more than most of these hold: it wraps, rounds or overflows as in XLA.
    check_rule(
        lambda: [
            lax.iota(dtype, 70_000),
            *[lax.broadcasted_iota(dtype, (3, 4, 2), d) for d in range(3)],
            lax.broadcasted_iota(dtype, (3, 0), 0),
        ]
    )


def test_iota_cannot_be_written_to():
    load()
    fn = IMPL_RULES["iota"].make((), (ArrayType((3,), np.dtype(np.int32)),), dimension=0)
    with pytest.raises(ValueError, match="read-only"):
        fn()[0] = 1


def test_empty_is_zero():
    check_rule(lambda: lax.empty((2, 3), np.dtype(np.float32)))


def test_key_arrays_keep_the_words_of_a_key_together():
    def f(words):
        keys = jax.random.wrap_key_data(words)
        results = (
            keys.T,
            keys.reshape(3, 2),
            keys[1:, ::2],
            lax.broadcast_in_dim(keys, (4, 2, 3), (1, 2)),
            lax.rev(keys, (0, 1)),
            jnp.concatenate([keys, keys], 1),
            jnp.stack([keys, keys]),
            jnp.squeeze(keys[:1], 0),
            lax.split(keys, (1, 2), 1)[1],
        )
        return [jax.random.key_data(k) for k in results]

    check_rule(f, filled((2, 3, 2), np.uint32))


def test_identities():
    sharding = NamedSharding(Mesh(np.array(jax.devices()[:1]), ("a",)), PartitionSpec("a"))

    def f(x, y):
        return (
            lax.optimization_barrier((x, y)),
            jnp.array(x, copy=True),
            lax.with_sharding_constraint(x, sharding),
            jax.device_put(x, jax.devices()[0]),
            checkpoint_name(y, "y"),
        )

    check_rule(f, filled((3,)), filled((2, 2), np.int32))


def test_a_layout_over_several_devices_is_unsupported():
    mesh = AbstractMesh((2,), ("a",), (AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("a"))
    jaxpr = jax.make_jaxpr(lambda x: lax.with_sharding_constraint(x, sharding))(filled((4,)))
    with pytest.raises(Unsupported, match="sharding_constraint: .* 2 devices"):
        lower(jaxpr)
