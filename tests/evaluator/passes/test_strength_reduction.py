from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl

from pallas_shim.cache.encode import decode, encode
from pallas_shim.evaluator.execute import Executable
from pallas_shim.evaluator.lower import lower
from pallas_shim.evaluator.passes import optimise
from pallas_shim.evaluator.passes.copy_elision import elide_copies
from pallas_shim.evaluator.passes.store_fusion import fuse_stores
from pallas_shim.evaluator.passes.strength_reduction import reduce_strength
from pallas_shim.evaluator.program import RefType

from .programs import INT, INTS, instructions, make, outcome

TALL = RefType((9, 4), INT, "vmem")


def walked(param_types, build, *earlier):
    """The names of the instructions; asserts that the pass changes nothing that can be seen."""
    made = make(param_types, build)
    before = made.program
    for run in earlier:
        before = run(before)
    program = reduce_strength(before)
    assert outcome(program, made.log) == outcome(before, made.log)
    return [i.name for i in instructions(program)]


def counting(b, body, length=9, start=0, step=1, carry=(), reverse=False):
    def one(n, *carried):
        results = body(n, *carried) or []
        return [b.binary("add", n, b.int(step)), *results]

    return b.scan([b.int(start), *carry], [], one, length, reverse)


def running_sum(b, x, source, target, **how):
    def body(n, total):
        total = b.binary("add", total, b.load(source, n))
        b.store(target, total, n)
        return [total]

    return counting(b, body, carry=[x], **how)[1:]


@pytest.mark.parametrize("how", [{}, {"length": 8, "start": 1}, {"length": 5, "step": 2}])
def test_rows_are_taken_one_by_one_and_the_counter_goes(how):
    def build(b, x, source, target):
        return running_sum(b, x, source, target, **how)

    names = walked([INTS, TALL, TALL], build, elide_copies)
    assert names == ["rows", "rows", "scan", "add", "store"]


@pytest.mark.parametrize(
    "how",
    [{"start": 1}, {"start": -1}, {"step": -1}, {"length": 2}, {"reverse": True, "start": 2}],
)
def test_not_where_the_counter_leaves_the_array_or_the_loop_is_short(how):
    def build(b, x, source, target):
        return running_sum(b, x, source, target, **how)

    assert "rows" not in walked([INTS, TALL, TALL], build, elide_copies)


def test_a_copy_is_still_made_before_what_overwrites_it():
    def build(b, x, ref):
        def body(n, last):
            old = b.load(ref, n)
            b.store(ref, last, n)
            return [b.binary("add", old, last)]

        return counting(b, body, carry=[x])[1:]

    names = walked([INTS, TALL], build, elide_copies)
    assert names == ["rows", "rows", "scan", "get", "store", "add"]


def test_what_another_access_has_written_is_seen():
    def build(b, x, ref):
        def body(n, last):
            b.store(ref, last, 3)
            b.store(ref, b.binary("mul", b.load(ref, n), last), 8)
            return [b.load(ref, n)]

        return counting(b, body, carry=[x])[1:]

    assert walked([INTS, TALL], build, elide_copies).count("rows") == 2


def test_a_result_is_computed_where_it_is_stored():
    def build(b, x, ref, other):
        counting(b, lambda n: b.store(ref, b.binary("sub", b.load(other, n), x), n))
        return []

    names = walked([INTS, TALL, TALL], build, elide_copies, fuse_stores)
    assert names == ["rows", "rows", "scan", "sub"]


def test_a_counter_that_is_used_stays():
    def build(b, x, ref):
        return [*counting(b, lambda n: b.store(ref, x, n))]

    assert walked([INTS, TALL], build) == ["rows", "scan", "store", "add"]


def test_memory_of_the_round_itself_is_not_walked_along():
    def build(b, x, ref):
        def body(n):
            own = b.allocate(TALL)
            b.store(own, x, n)
            b.store(ref, b.load(own, n), 0)

        counting(b, body)
        return []

    assert "rows" not in walked([INTS, TALL], build)


def _kernel(form, dtype):
    def kernel(x, a, o):
        def step(t, h):
            match form:
                case "elements":
                    h = a[t] * h + x[t]
                    o[t] = h
                case "slices":
                    h = a[pl.ds(t, 1), :][0] * h + x[pl.ds(t, 1), :][0]
                    o[pl.ds(t, 1), :] = h[None]
                case "columns":
                    h = a[:, t] * h + x[:, t]
                    o[:, t] = h
                case "parts":
                    h = h.at[:4].set(a[t, 4:8] * h[:4]) + x[t]
                    o[t, :4] = h[4:8]
                    o[t, 4:8] = h[:4]
                case "in place":
                    o[t] = x[t]
                    o[t] = o[t] * a[t] + h
                    h = o[t]
            return h

        jax.lax.fori_loop(0, 8, step, jnp.ones((8,), dtype))

    return pl.pallas_call(
        kernel, jax.ShapeDtypeStruct((16, 16), dtype), grid=(2, 2), interpret=True,
        in_specs=[pl.BlockSpec((8, 8), lambda i, j: (i, j))] * 2,
        out_specs=pl.BlockSpec((8, 8), lambda i, j: (j, i)),
    )  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("form", ["elements", "slices", "columns", "parts", "in place"])
def test_kernels_with_and_without(form, dtype):
    call = _kernel(form, dtype)
    values = np.arange(256.0).reshape(16, 16) % 7 - 3
    x = jnp.asarray(values, dtype)
    a = jnp.asarray(np.where(values == 2, np.nan if dtype != "int8" else 5, values / 4), dtype)
    program = lower(jax.make_jaxpr(call)(x, a))
    args = [np.asarray(x), np.asarray(a)]
    (plain,) = Executable(optimise(program, skip={"strength_reduction"}))(*args)
    after = optimise(program)
    (got,) = Executable(after)(*args)
    assert got.tobytes() == plain.tobytes()
    (kept,) = Executable(decode(encode(after)))(*args)
    assert kept.tobytes() == plain.tobytes()
    assert any(i.name == "rows" for i in after.top.walk())
