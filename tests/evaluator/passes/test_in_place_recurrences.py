from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import pallas as pl

from pallas_shim.evaluator.execute import Executable
from pallas_shim.evaluator.lower import lower
from pallas_shim.evaluator.passes import optimise
from pallas_shim.evaluator.passes.copy_elision import elide_copies
from pallas_shim.evaluator.passes.in_place_recurrences import compute_recurrences_in_place
from pallas_shim.evaluator.passes.strength_reduction import reduce_strength
from pallas_shim.evaluator.program import RefType

from .programs import INT, INTS, instructions, make, outcome

TALL = RefType((9, 4), INT, "vmem")


def left(build):
    """The names of the instructions; asserts that the pass changes nothing that can be seen."""
    made = make([INTS, TALL, TALL], build)
    before = reduce_strength(elide_copies(made.program))
    program = compute_recurrences_in_place(before)
    for emits in (lambda loop: False, lambda loop: True):
        assert outcome(program, made.log, emits) == outcome(before, made.log, emits)
    return [i.name for i in instructions(program) if i.name not in ("rows", "scan")]


def recurrence(b, x, body, length=9, carried=1):
    """``body(counter, *states)`` gives the next states."""

    def step(n, *states):
        return [b.binary("add", n, b.int(1)), *body(n, *states)]

    return b.scan([b.int(0), *[x] * carried], [], step, length)[1:]


def test_what_is_carried_is_computed_in_the_row_and_so_is_what_it_is_computed_from():
    def build(b, x, source, target):
        def body(n, state):
            state = b.binary("add", b.binary("mul", state, b.load(source, n)), x)
            b.store(target, state, n)
            return [state]

        recurrence(b, x, body)
        return []

    assert left(build) == ["mul", "add"]


def test_what_a_loop_carried_is_a_copy_if_it_is_used():
    def build(b, x, source, target):
        def body(n, state, _):
            new = b.binary("mul", state, b.load(source, n))
            b.store(target, new, n)
            return [new, state]

        last, before = recurrence(b, x, body, carried=2)
        b.store(target, x, 8)
        b.store(target, x, 7)
        return [last, before]

    assert left(build) == ["mul", "copy", "copy", "store", "store"]


def test_what_is_stored_twice_is_computed_in_one_row_and_copied_to_the_other():
    def build(b, x, source, target):
        other = b.allocate(TALL)

        def body(n, state):
            new = b.binary("add", b.binary("mul", state, b.load(source, n)), x)
            b.store(target, new, n)
            b.store(other, new, n)
            return [new]

        return [*recurrence(b, x, body), b.load(other)]

    assert left(build)[1:] == ["mul", "add", "store", "copy", "get"]


def test_a_view_of_the_row_is_copied_too():
    def build(b, x, source, target):
        def body(n, state):
            new = b.binary("mul", b.binary("add", state, x), b.load(source, n))
            b.store(target, new, n)
            return [b.reverse(new)]

        (last,) = recurrence(b, x, body)
        b.store(target, x, 8)
        return [last]

    assert left(build) == ["add", "mul", "rev", "copy", "store"]


def test_what_is_used_beside_the_result_has_an_array_of_its_own():
    def build(b, x, source, target):
        def body(n, state):
            product = b.binary("mul", state, b.load(source, n))
            new = b.binary("add", product, x)
            b.store(target, new, n)
            return [b.binary("xor", new, product)]

        return recurrence(b, x, body)

    assert left(build) == ["mul", "add", "xor"]


def read_another_row(b, n, new, target):
    return b.binary("add", new, b.load(target, 3))


def read_the_row(b, n, new, target):
    return b.binary("add", new, b.load(target, n))


def write_another_row(b, n, new, target):
    b.store(target, new, 0)
    return new


def write_in_a_branch(b, n, new, target):
    def branch():
        b.store(target, new, 1)
        return []

    b.switch(n, [], [branch, list])
    return new


def print_it(b, n, new, target):
    b.print(new)
    return new


@pytest.mark.parametrize(
    ("then", "stores"),
    [
        (read_another_row, 1),
        (read_the_row, 1),
        (write_another_row, 2),
        (write_in_a_branch, 2),
        (print_it, 1),
    ],
)
@pytest.mark.parametrize("before", [False, True])
def test_not_if_something_else_touches_the_memory_or_may_keep_the_result(then, stores, before):
    def build(b, x, source, target):
        def body(n, state):
            new = b.binary("add", b.binary("mul", state, b.load(source, n)), state)
            if not before:
                b.store(target, new, n)
            result = then(b, n, new, target)
            if before:
                b.store(target, new, n)
            return [result]

        return recurrence(b, x, body)

    assert left(build).count("store") == stores


def test_memory_that_another_walk_reads_is_left_alone():
    def build(b, x, source, target):
        def body(n, state):
            new = b.binary("add", state, b.load(target, n))
            b.store(target, new, n)
            return [new]

        return recurrence(b, x, body)

    assert "store" in left(build)


def test_a_loop_inside_may_hand_the_result_on():
    def build(b, x, source, target):
        def body(n, state):
            new = b.binary("add", state, b.load(source, n))
            b.store(target, new, n)
            times = b.int(0)
            return b.repeat(times, [new], lambda _, inner: [b.binary("mul", inner, inner)])

        (last,) = recurrence(b, x, body)
        b.store(target, x, 8)
        return [last]

    assert "copy" in left(build)


def test_a_result_of_another_shape_or_type_is_left_alone():
    def build(b, x, source, target):
        def body(n, state):
            new = b.binary("add", b.broadcast(n), state)
            b.store(target, b.reverse(new), n)
            return [new]

        return recurrence(b, x, body)

    assert left(build).count("store") == 1


@pytest.mark.parametrize("dtype", [np.float32, np.int32, jnp.bfloat16])
def test_kernels(dtype):
    def kernel(decay_ref, x_ref, out_ref, last_ref):
        def step(t, state):
            state = decay_ref[t] * state + x_ref[t]
            out_ref[t] = state
            return state

        zeros = jnp.zeros(x_ref.shape[1:], dtype)
        last_ref[...] = lax.fori_loop(0, x_ref.shape[0], step, zeros)

    x = np.random.default_rng(0).normal(size=(20, 8, 128)).astype(dtype)
    shapes = [jax.ShapeDtypeStruct(shape, dtype) for shape in (x.shape, x.shape[1:])]
    f = pl.pallas_call(kernel, shapes, interpret=True)
    program = lower(jax.make_jaxpr(f)(x, x))
    results = [
        Executable(optimise(program, skip=skip))(x, x) for skip in ((), {"in_place_recurrences"})
    ]
    for got, expected in zip(*results, strict=True):
        assert np.asarray(got).tobytes() == np.asarray(expected).tobytes()
