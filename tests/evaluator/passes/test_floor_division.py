from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from pallas_shim.evaluator.execute import Executable
from pallas_shim.evaluator.lower import lower
from pallas_shim.evaluator.passes import optimise
from pallas_shim.evaluator.passes.constant_folding import fold_constants
from pallas_shim.evaluator.passes.floor_division import FloorDivision

from .programs import check_pass

TYPES = [np.int8, np.int16, np.int32]


def values(dtype) -> np.ndarray:
    info = np.iinfo(dtype)
    return np.array([info.min, info.min + 1, -9, -8, -7, -1, 0, 1, 6, 7, 8, info.max], dtype)


def simplified(f, *args):
    return check_pass(lambda program: FloorDivision.run(fold_constants(program)), f, *args)


CASES = {
    "//": (lambda x, by: x // by, "floor_divide"),
    "%": (lambda x, by: x % by, "floor_remainder"),
    "jnp.floor_divide": (jnp.floor_divide, "floor_divide"),
    "jnp.mod": (jnp.mod, "floor_remainder"),
}


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("by", [2, 7, 127])
@pytest.mark.parametrize("case", CASES)
def test_quotients_and_remainders_are_one_operation(case, by, dtype):
    f, name = CASES[case]
    for x in (values(dtype), values(dtype).reshape(3, 4), dtype(-9)):
        assert simplified(lambda x: f(x, dtype(by)), x) == [name]


@pytest.mark.parametrize("dtype", TYPES)
def test_they_are_those_of_jax(dtype):
    def f(x):
        return [x // dtype(by) for by in (1, 2, 7, 127)] + [x % dtype(by) for by in (1, 2, 7, 127)]

    x = values(dtype)
    want = [np.asarray(y) for y in jax.jit(f)(x)]
    for loop in (False, True):
        # By numbers one by one, in a loop, and by all at once.
        each = (lambda x: lax.map(f, x)) if loop else f
        program = optimise(lower(jax.make_jaxpr(each)(x)))
        for emits in (False, True):
            got = Executable(program, lambda loop, emits=emits: emits)(x)
            np.testing.assert_array_equal(got, want)


def test_both_together():
    f = lambda x: jnp.divmod(x, 7)  # noqa: E731
    assert sorted(simplified(f, values(np.int32))) == ["floor_divide", "floor_remainder"]


@pytest.mark.parametrize("f", [
    lambda x: x // -2,
    lambda x: x % -2,
    lambda x: x // jnp.abs(x),
    lambda x: lax.div(x, jnp.int32(3)),
    lambda x: lax.rem(x, jnp.int32(3)),
    lambda x: lax.select(x < 0, lax.div(x, x * 0 + 3), lax.div(x, x * 0 + 3) - 1),
], ids=range(6))  # fmt: skip
def test_other_divisions_are_left_alone(f):
    assert not {"floor_divide", "floor_remainder"} & set(simplified(f, values(np.int32)))


def test_a_correction_by_another_number_is_left_alone():
    """What looks nearly like a division of jnp's."""

    def nearly(step, other, floor):
        def f(x):
            quotient = lax.div(x, jnp.full_like(x, 3))
            remainder = lax.rem(x, jnp.full_like(x, other))
            wrong = (lax.sign(x) != floor) & (remainder != 0)
            return lax.select(wrong, quotient - step, quotient)

        return simplified(f, values(np.int32))

    assert nearly(1, 3, 1) == ["floor_divide"]
    for step, other, floor in ((2, 3, 1), (1, 4, 1), (1, 3, 0)):
        assert "floor_divide" not in nearly(step, other, floor)
