"""`from_end`: gathers that count negative indices from the end, in NumPy and natively."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_shim.evaluator.codegen.native.expanding import expanded
from pallas_shim.evaluator.execute import Executable
from pallas_shim.evaluator.lower import lower
from pallas_shim.evaluator.passes.dead_code import remove_dead_code
from pallas_shim.evaluator.passes.from_end import FromEnd
from pallas_shim.evaluator.verify import verify

from .programs import check_pass, names

SIZE = 8
X = np.arange(3 * SIZE, dtype=np.float32).reshape(3, SIZE) + 1
INSIDE = np.array([[0, 7, 3, 3], [5, 1, 0, 7], [2, 2, 6, 4]], np.int32)
ANYWHERE = np.array([[0, -1, 8, 7], [-8, -9, -16, 100], [-(2**31), 2**31 - 1, 3, -3]], np.int32)

MODES = ("fill", "clip")


def check(f, *args):
    """The names of what the pass leaves; natively, it becomes what it was."""
    found = check_pass(FromEnd.run, f, *args)
    changed = FromEnd.run(lower(jax.make_jaxpr(f)(*args)))
    back = expanded(changed)
    verify(back)
    assert "gather_from_end" not in names(back)
    want, got = Executable(changed)(*args), Executable(remove_dead_code(back))(*args)
    assert [x.tobytes() for x in want] == [x.tobytes() for x in got]
    return found


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("at", [INSIDE, ANYWHERE, INSIDE - SIZE])
@pytest.mark.parametrize("dtype", [np.int32, np.int16, np.int8])
def test_indices_need_no_correction(mode, at, dtype):
    at = at.astype(dtype)
    f = lambda x, at: jnp.take_along_axis(x, at, 1, mode=mode)  # noqa: E731
    if dtype == np.int32:
        found = check(f, X, at)
        assert "gather_from_end" in found and "select_n" not in found
        assert np.array_equal(Executable(lower(jax.make_jaxpr(f)(X, at)))(X, at)[0],
                              np.asarray(jax.jit(f)(X, at)), equal_nan=True)  # fmt: skip
    else:
        check(f, X, at)


@pytest.mark.parametrize("at", [INSIDE, ANYWHERE])
def test_rows_of_an_array(at):
    found = check(lambda x, at: x[at.ravel()], X, at)
    assert "gather_from_end" in found


def test_other_corrections_are_left_alone():
    def gathered(moved, otherwise=lambda at: at, limit=0):
        def f(x, at):
            at = at.ravel()
            return x.at[jnp.where(at < limit, moved(at), otherwise(at))].get(
                mode="clip", wrap_negative_indices=False
            )

        return f

    rows = len(X)
    assert "gather_from_end" in check(gathered(lambda at: at + rows), X, ANYWHERE)
    others = [
        gathered(lambda at: at + rows + 1),
        gathered(lambda at: at * 2 + rows),
        gathered(lambda at: jnp.abs(at) + rows),
        gathered(lambda at: at + rows, lambda at: at * 2),
        gathered(lambda at: at + rows, limit=1),
    ]
    for f in others:
        assert "gather_from_end" not in check(f, X, ANYWHERE)
