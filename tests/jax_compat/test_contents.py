"""The digest of a jaxpr: other for any other jaxpr, the same for the same, else refused by name."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import jax
import jax.extend.random
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax._src.state.indexing import Slice
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_shim.jax_compat import contents
from pallas_shim.jax_compat.contents import Contents, Unreadable

X = np.arange(64, dtype=np.float32).reshape(8, 8)
BLOCK = pl.BlockSpec((4, 8), lambda i: (i, 0))


def digest(f, *args):
    jax.clear_caches()
    return Contents(jax.make_jaxpr(f)(*(args or (X,)))).digest


def kernel(x_ref, o_ref):
    o_ref[...] = (x_ref[:4, :] * 2).astype(o_ref.dtype)[: o_ref.shape[0]]


def copying(x_ref, o_ref):
    o_ref[...] = x_ref[...]


def call(body=kernel, shape=(4, 8), dtype=np.float32, **options):
    options = {"interpret": True, **options}
    return pl.pallas_call(body, out_shape=jax.ShapeDtypeStruct(shape, dtype), **options)


def blocks(index_map=lambda i: (i, 0), shape=(4, 8), **options):
    spec = pl.BlockSpec(shape, index_map, **options)
    return call(grid=(2,), in_specs=[spec], out_specs=BLOCK)


def storing(value):
    def body(x_ref, o_ref):
        o_ref[...] = x_ref[:4] + value

    return call(body)


def loading(index):
    def body(x_ref, o_ref):
        o_ref[...] = jnp.broadcast_to(x_ref[index], o_ref.shape)

    return call(body)


def scratch(space):
    def body(x_ref, o_ref, s_ref):
        s_ref[...] = x_ref[...]
        o_ref[...] = s_ref[:4]

    return call(body, scratch_shapes=[space(X.shape, np.float32)])


def looping(length, reverse=False, unroll=1):
    def f(x):
        return lax.scan(
            lambda c, _: (c * 2, c.sum()), x, None, length=length, reverse=reverse, unroll=unroll
        )

    return f


def with_rules(f):
    if isinstance(f, jax.custom_jvp):
        f.defjvp(lambda primals, tangents: (f(*primals), tangents[0]))
    else:
        f.defvjp(lambda x: (f(x), None), lambda _, g: (g,))
    return f


nan = np.array([0x7FC00000, 0x7FC00001, 0xFFC00000], np.uint32).view(np.float32)
captured = np.arange(300, dtype=np.float32)
one_bit = captured.copy()
one_bit.view(np.uint32)[77] ^= 1

# Each family: functions of which no two do the same.
FAMILIES: dict[str, list[Any]] = {
    "operations": [lambda x: x + x, lambda x: x - x, lambda x: x * x, lambda x: x],
    "order": [lambda x: (x + 1, x), lambda x: (x, x + 1), lambda x: (x + 1, x + 1)],
    "operands": [lambda x: x - x.T, lambda x: x.T - x, lambda x: x.T - x.T],
    "zeros, NaNs and literals": [
        *[lambda x, v=v: x + v for v in (*nan, 0.0, -0.0, np.float32(1), 1e-45, np.inf)],
        *[lambda x, v=v: x.astype(int) + v for v in (1, 2, 2**31 - 1)],
    ],
    "constants": [
        *[lambda x, v=v: v + x[0, 0] for v in (captured, one_bit, captured[::-1], captured[:299])],
        lambda x: captured.astype(np.float16) + x[0, 0],
        lambda x: captured.reshape(3, -1) + x[0, 0],
        *[lambda x, v=v: jnp.asarray(v) + x[0, 0] for v in (captured[:5], captured[1:6])],
    ],
    "dtypes": [
        lambda x, t=t: x.astype(t) for t in ("int8", "bfloat16", "float16", "int32", "bool")
    ],
    "weak types": [
        lambda x: jnp.where(x[0, 0] > 0, 1.0, 2.0),
        lambda x: jnp.where(x[0, 0] > 0, np.float32(1), np.float32(2)),
    ],
    "parameters": [
        *[lambda x, a=a: x.sum(a) for a in (0, 1, (0, 1))],
        *[lambda x, s=s: x[s] for s in (slice(2), slice(3), slice(None, None, 2), slice(1, 3))],
        *[lambda x, p=p: jnp.dot(x, x, precision=p) for p in (None, "highest", "high")],
        *[
            lambda x, t=t: jnp.dot(x, x, preferred_element_type=t)
            for t in (jnp.bfloat16, np.float16)
        ],
        *[lambda x, m=m: x.at[jnp.array([9])].get(mode=m) for m in ("clip", "fill")],
        *[lambda x, n=n: lax.sort((x, x), num_keys=n) for n in (1, 2)],
        *[lambda x, n=n: lax.sort((x, x), num_keys=1, dimension=n) for n in (0,)],
        lambda x: lax.sort((x, x), num_keys=1, is_stable=False),
        *[lambda x, r=r: lax.round(x, r) for r in lax.RoundingMethod],
    ],
    "loops": [
        looping(3), looping(4), looping(3, reverse=True),
        lambda x: lax.fori_loop(0, 3, lambda i, c: c * 2, x),
        lambda x: lax.while_loop(lambda c: c[0, 0] < 9, lambda c: c + 1, x),
        lambda x: lax.while_loop(lambda c: c[0, 0] <= 9, lambda c: c + 1, x),
        lambda x: lax.cond(x[0, 0] > 1, lambda: x, lambda: x + 1),
        lambda x: lax.cond(x[0, 0] > 1, lambda: x + 1, lambda: x),
    ],
    "kernels": [
        call(), call(interpret=False), call(interpret=pltpu.InterpretParams()),
        call(interpret=pltpu.InterpretParams(uninitialized_memory="zero")),
        call(interpret=pltpu.InterpretParams(out_of_bounds_reads="uninitialized")),
        call(dtype=np.int32), call(shape=(3, 8)),
        call(copying, (8, 8), input_output_aliases={0: 0}), call(copying, (8, 8)),
        call(name="another"), call(grid=(1,)), call(grid=(2,)), call(grid=(2, 1)),
        *map(storing, (1.0, 2.0, -0.0, 0.0)),
        *map(loading, (0, 1, slice(0, 1), pl.ds(1, 1))),
        scratch(pltpu.VMEM), scratch(pltpu.SMEM),
    ],
    "blocks": [
        blocks(), blocks(lambda i: (0, 0)), blocks(lambda i: (1 - i, 0)),
        blocks(lambda i: (i * 2 % 2, 0)), blocks(shape=(8, 8)), blocks(shape=(4, pl.Element(8))),
        blocks(memory_space=pltpu.VMEM), blocks(memory_space=pltpu.SMEM),
        call(grid=(2,), in_specs=[BLOCK], out_specs=pl.BlockSpec((4, 8), lambda i: (1 - i, 0))),
    ],
    "compiler parameters": [
        *[
            call(grid=(2,), in_specs=[BLOCK], out_specs=BLOCK,
                 compiler_params=pltpu.CompilerParams(dimension_semantics=(s,)))
            for s in ("parallel", "arbitrary")
        ],
        call(grid=(2,), in_specs=[BLOCK], out_specs=BLOCK),
    ],
    "random numbers": [
        *[
            lambda x, impl=impl: jax.random.bits(jax.random.key(1, impl=impl), (3,))
            for impl in ("threefry2x32", "rbg", "unsafe_rbg")
        ],
        lambda x: jax.random.bits(jax.random.key(2), (3,)),
        lambda x: jax.random.bits(jax.random.key(1), (3,), np.uint8),
    ],
    "calls": [
        jax.jit(lambda x: x + 1), jax.jit(lambda x: x + 2), jax.checkpoint(lambda x: x + 1),
        with_rules(jax.custom_jvp(lambda x: x + 1)), with_rules(jax.custom_vjp(lambda x: x + 1)),
    ],
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_whatever_differs_has_another_digest(family):
    found: dict[str, int] = {}
    for number, f in enumerate(FAMILIES[family]):
        other = found.setdefault(digest(f), number)
        assert other == number, (family, other, number)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_function_traced_again_has_the_same_digest(family):
    for f in FAMILIES[family]:
        assert digest(f) == digest(f)


def test_arguments_count():
    types = [
        X, X[:4], X.astype(np.int32), X.astype(np.float16), X[None],
        jax.ShapeDtypeStruct((8, 8), np.float32, weak_type=True),
    ]  # fmt: skip
    assert len({digest(lambda x: x * 1, x) for x in types}) == len(types)


def test_what_is_beside_counts():
    jaxpr = jax.make_jaxpr(jnp.sin)(X)
    values = [(), 0, False, None, 0.0, -0.0, "0", b"0", (0,), [0], {0: 0}, {0}, np.int8(0), 1, "ab"]
    digests = [Contents(jaxpr, value).digest for value in values]
    digests += [Contents(jaxpr).digest, Contents(jaxpr, "a", "b").digest]
    assert len(set(digests)) == len(digests)


def test_the_configuration_counts():
    jaxpr = jax.make_jaxpr(jnp.sin)(X)

    def now():
        return Contents(jaxpr, contents.configuration()).digest

    plain = now()
    with jax.default_matmul_precision("highest"):
        assert now() != plain
    assert now() == plain
    before = jax.config.jax_numpy_rank_promotion
    for value in ("warn", "raise"):  # for all threads
        jax.config.update("jax_numpy_rank_promotion", value)
        try:
            assert now() != plain
        finally:
            jax.config.update("jax_numpy_rank_promotion", before)
    assert now() == plain


def test_a_value_of_the_configuration_that_may_change_is_read_each_time(monkeypatch):
    changing: list[int] = []
    values = {**jax.config.values, "changing": changing}
    monkeypatch.setattr(type(jax.config), "values", property(lambda self: values))
    digests = set()
    for number in range(3):
        digests |= {contents.configuration(), contents.configuration()}
        assert len(digests) == number + 1
        changing.append(number)


def test_where_the_function_is_does_not_count():
    source = "def f(x):\n    y = x + 1\n    return y * 2\n"
    spaces: list[dict] = [{}, {}]
    for space, lines in zip(spaces, ("", "\n\n\n"), strict=True):
        exec(compile(lines + source, "moved.py", "exec"), space)
    one, other = (Contents(jax.make_jaxpr(space["f"])(X)) for space in spaces)
    assert one.digest == other.digest
    assert len(one.equations) == len(other.equations) == 2


def test_equations_are_those_of_inner_jaxprs_too():
    f = looping(3)
    read = Contents(jax.make_jaxpr(lambda x: call()(f(x)[0]))(X))
    names = [equation.primitive.name for equation in read.equations]
    assert {"scan", "mul", "pallas_call", "get", "swap"} <= set(names)


def test_which_inner_jaxprs_are_one_object_counts():
    """The places of equations go by it."""
    inner = jax.jit(lambda x: x + 1)
    same, own = inner.trace(X).jaxpr, jax.jit(lambda x: x + 1).trace(X).jaxpr
    twice = jax.make_jaxpr(lambda x: inner(inner(x)))(X)
    assert Contents(twice).digest == Contents(twice).digest
    assert Contents(same).digest == Contents(own).digest


def refused(f, match, *args):
    with pytest.raises(Unreadable, match=match):
        Contents(jax.make_jaxpr(f)(*(args or (X,))))


def test_what_calls_python_is_refused():
    refused(lambda x: jax.pure_callback(np.sin, x, x), "its pure_callback")
    refused(lambda x: (jax.debug.callback(print, x), x)[1], "its debug_")


def test_an_implementation_of_random_numbers_of_the_users_is_refused():
    def seed(words):
        return jnp.zeros(2, np.uint32)

    def unused(*args):
        raise NotImplementedError

    own = jax.extend.random.define_prng_impl(
        key_shape=(2,), seed=seed, split=unused, random_bits=unused, fold_in=unused, name="own"
    )
    refused(lambda x: (x, jax.random.key(1, impl=own)), "the function .*seed")


def test_an_unknown_object_is_refused_wherever_it_is():
    jaxpr = jax.make_jaxpr(jnp.sin)(X)

    class Own(tuple):
        pass

    class Number(int):
        pass

    def function():
        pass

    unknown = (object(), Own(), Number(3), function, lambda: 1, Own, functools.partial(print),
               open, np.random.default_rng(0), itertools.count(), {object()}, memoryview(b"x"),
               np.array([object()]), np.dtype([("a", int)]))  # fmt: skip
    for value in unknown:
        for place in (value, (1, value), {"a": [value]}):
            print(value)
            with pytest.raises(Unreadable):
                Contents(jaxpr, place)


def test_what_holds_itself_is_refused():
    loop: list = []
    loop.append(loop)
    with pytest.raises(Unreadable, match="itself"):
        Contents(jax.make_jaxpr(jnp.sin)(X), loop)


def test_what_is_nested_too_deeply_is_refused():
    deep: tuple = ()
    for _ in range(20_000):
        deep = (deep,)
    with pytest.raises(Unreadable, match="too deeply"):
        Contents(jax.make_jaxpr(jnp.sin)(X), deep)


def test_trees_and_their_data_count():
    jaxpr = jax.make_jaxpr(jnp.sin)(X)
    held = [
        *[Slice(*each) for each in ((0, 1, 1), (0, 1, 2), (0, 2, 1), (False, 1, 1), (0.0, 1, 1))],
        (1,), (1, 2), [1], [1, 2], {"a": 1}, {"b": 1}, {1: 1}, {2: 1}, None, (None,), ((), ()),
        (Slice(0, 1, 1), Slice(0, 2, 1)), (Slice(0, 2, 1), Slice(0, 1, 1)),
    ]  # fmt: skip
    trees = list(map(jax.tree_util.tree_structure, held))
    assert len({Contents(jaxpr, tree).digest for tree in trees}) == len(trees)
    with pytest.raises(Unreadable, match="digits"):
        Contents(jaxpr, jax.tree_util.tree_structure(Slice(0, 1 << 70, 1)))


def test_which_objects_are_the_same_does_not_count():
    """Processes share objects in different ways, depending on what they have traced before."""
    jaxpr = jax.make_jaxpr(jnp.sin)(X)
    mesh = jax.sharding.AbstractMesh((), ())

    def make():
        return [
            (1000, 2.5), "".join(["a", "b"]), frozenset(["x"]), np.dtype("f4").newbyteorder("="),
            jax.core.ShapedArray((3,), np.float32), Slice(0, 5, 1), jax.ShapeDtypeStruct,
            jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None)),
            jax.tree_util.tree_structure((1, Slice(0, 5, 1))), {"a": [1, (2, 3)]},
        ]  # fmt: skip

    one, other = make(), make()
    assert Contents(jaxpr, one, one).digest == Contents(jaxpr, one, other).digest
    assert Contents(jaxpr, one, other).digest != Contents(jaxpr, one, other[:-1]).digest


def test_large_constants_are_refused(monkeypatch):
    monkeypatch.setattr(contents, "LARGEST", 1000)
    refused(lambda x: x[0, 0] + captured, "MB")


def test_a_mesh_of_devices_is_refused():
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    mesh = Mesh(np.array(jax.devices()[:1]), ("x",))
    sharding = NamedSharding(mesh, PartitionSpec("x"))
    refused(jax.jit(lambda x: x + 1, in_shardings=sharding), "mesh")
