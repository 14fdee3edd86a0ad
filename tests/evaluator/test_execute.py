"""Running programs: errors, threads, memory, progress."""

import io
import threading
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import pallas as pl

from pallas_shim.evaluator import progress
from pallas_shim.evaluator.execute import Executable
from pallas_shim.evaluator.lower import lower
from tests.evaluator.codegen.emitting import WAYS, use
from tests.oracle import check_kernel, compare


@pytest.fixture(autouse=True, params=WAYS)
def way(request, monkeypatch):
    use(monkeypatch, request.param)


def executable(f, *args):
    return Executable(lower(jax.make_jaxpr(f)(*args)))


def check(f, *args):
    got = executable(f, *args)(*map(np.asarray, jax.tree.leaves(args)))
    want = jax.tree.leaves(jax.jit(f)(*args))
    for a, b in zip(got, want, strict=True):
        compare(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [0, 1, 5])
def test_scan(length, reverse):
    def f(init, xs):
        return lax.scan(lambda c, x: ((c[1], c[0] + x), c[0] * x), init, xs, reverse=reverse)

    check(f, (jnp.float32(1), jnp.float32(2)), jnp.arange(length, dtype=jnp.float32))


@pytest.mark.parametrize("n", [0, 1, 7])
def test_while_with_constants_on_both_sides(n):
    def f(n, step):
        return lax.while_loop(lambda c: c[0] < n, lambda c: (c[0] + step, c[1] + c[0]), (0, 0))

    check(f, jnp.int32(n), jnp.int32(2))


@pytest.mark.parametrize("index", [-3, 0, 1, 2, 9])
def test_switch_clamps_its_index(index):
    def f(i, x):
        return lax.switch(i, [lambda x: x + 1, lambda x: x * 2, lambda x: -x], x)

    check(f, jnp.int32(index), jnp.arange(3, dtype=jnp.int32))


def test_swapped_carries_of_nested_loops():
    def f(a, b):
        def outer(i, c):
            return lax.fori_loop(0, i, lambda j, c: (c[1], c[0] + j), c)

        return lax.fori_loop(0, 4, outer, (a, b))

    check(f, jnp.int32(3), jnp.int32(5))


def test_an_error_names_the_primitive_and_the_users_line():
    def fail(x):
        raise RuntimeError("no")

    def f(x):
        def body(c, _):
            return c + jax.pure_callback(fail, jax.ShapeDtypeStruct((), jnp.float32), c), None

        return lax.scan(body, x, None, length=3)

    with pytest.raises(RuntimeError, match="no") as caught:
        executable(f, jnp.float32(0))(np.float32(0))
    (note,) = caught.value.__notes__
    assert "pure_callback" in note and "test_execute.py" in note


def test_an_unsupported_primitive_is_named_with_the_users_line():
    from jax.extend.core import Primitive

    from pallas_shim.evaluator.rules import Unsupported

    unknown = Primitive("no_such_primitive")
    unknown.def_abstract_eval(lambda x: x)
    with pytest.raises(Unsupported, match="no_such_primitive.*test_execute.py:"):
        executable(lambda x: unknown.bind(x), jnp.float32(0))


def test_threads_share_an_executable():
    def kernel(x_ref, o_ref):
        o_ref[...] = lax.fori_loop(0, 10, lambda i, c: c + x_ref[...], x_ref[...])

    def f(x):
        out = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return pl.pallas_call(kernel, out_shape=out, grid=(4,))(x)

    run = executable(f, jnp.zeros((8, 8), jnp.int32))
    results = {}

    def work(k):
        for _ in range(20):
            (results[k],) = run(np.full((8, 8), k, np.int32))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for k in range(4):
        np.testing.assert_array_equal(results[k], 11 * k)


def test_intermediates_are_dropped_after_their_last_use():
    def f(x):
        for k in range(32):
            x = x + np.float32(k)
        return x

    x = np.zeros(1 << 18, np.float32)
    run = executable(f, x)
    tracemalloc.start()
    try:
        run(x)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * x.nbytes


def test_arguments_are_not_written_to():
    def kernel(x_ref, o_ref):
        x_ref[...] += 1.0
        o_ref[...] = x_ref[...]

    def f(x):
        out = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return pl.pallas_call(kernel, out_shape=out, input_output_aliases={0: 0})(x)

    x = np.zeros((2, 3), np.float32)
    x.flags.writeable = False
    (got,) = executable(f, x)(x)
    np.testing.assert_array_equal(got, 1)
    np.testing.assert_array_equal(x, 0)


class _Display:
    def __init__(self, *titles):
        self.titles, self.updates, self.closed = titles, [], False

    def update(self, done):
        self.updates.append(done)

    def close(self):
        self.closed = True


@pytest.fixture
def displays(monkeypatch):
    """All that is shown; it needs no second to begin."""
    made = []

    def shows(*titles):
        made.append(_Display(*titles))
        return made[-1]

    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.0)
    progress.show_with(shows)
    yield made
    progress.show_with(None)


def test_progress_of_a_grid(displays):
    cells = list(progress.over_grid("my_kernel", [2, 3]))
    assert cells == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    (shown,) = displays
    assert shown.titles[:3] == ("my_kernel", 6, "cells")
    assert shown.updates == sorted(shown.updates) and shown.updates[-1] == 6 and shown.closed
    assert list(progress.over_grid("none", [])) == [()]
    assert list(progress.over_grid("empty", [3, 0])) == []
    assert list(progress.over_grid("one", [1, 1])) == [(0, 0)] and len(displays) == 1


def test_progress_of_loops_in_few_cells(displays):
    for _ in progress.over_grid("few", [3]):
        assert list(progress.over_grid("inner", [2])) == [(0,), (1,)]
        list(progress.over_rounds(lambda: "loop", 500, range(500)))
    assert [d.titles[0] for d in displays] == ["loop", "few", "loop", "loop"]
    assert all(d.closed for d in displays)
    displays.clear()
    for _ in progress.over_grid("many", [65]):
        list(progress.over_rounds(lambda: "loop", 500, range(500)))
    assert [d.titles[0] for d in displays] == ["many"]


def test_progress_of_loops_one_at_a_time(displays):
    rounds = progress.over_rounds(lambda: "outer", 20_000, range(20_000))
    for number in rounds:
        if number in (3, 3000):
            assert list(progress.over_grid("inner", [2])) == [(0,), (1,)]
    assert list(progress.over_rounds(lambda: "short", 9, range(9))) == list(range(9))
    # As long as the outer one may be a short one, the inner one shows its own.
    assert [d.titles[0] for d in displays] == ["inner", "outer"]
    assert displays[1].updates[-1] == 20_000


def test_progress_of_while_loops(displays):
    def counted(n):
        return lax.fori_loop(0, n, lambda i, c: (c * 3 + i) % 7, jnp.int32(1))

    def search(n):
        def going(c):
            return (c[0] < n) & (c[1] != 9)

        start = jnp.int32(0), jnp.int32(1)
        return lax.while_loop(going, lambda c: (c[0] + 1, c[1] * 3 % 7), start)[0]

    def nested(n):
        return lax.fori_loop(0, 2, lambda i, c: c + counted(n), jnp.int32(0))

    for f, totals in ((counted, [5000]), (search, [None]), (nested, [5000, 5000])):
        displays.clear()
        (got,) = executable(f, jnp.int32(0))(np.int32(5000))
        assert got == f(5000)
        assert [d.titles[1:3] for d in displays] == [(total, "rounds") for total in totals]
        for shown in displays:
            assert shown.titles[0].startswith(f"loop at {__file__}:")
            assert shown.updates == sorted(shown.updates) and 256 < shown.updates[-1] <= 5000
            assert shown.closed
    assert progress._here.shown is None


def test_progress_ends_with_an_error(displays):
    def fail(x):
        if x > 1_000:
            raise RuntimeError("no")
        return x

    def f(x):
        def body(i, c):
            return c + jax.pure_callback(fail, jax.ShapeDtypeStruct((), jnp.float32), c * 0 + i)

        return lax.fori_loop(0, 2_000, body, x)

    run = executable(f, jnp.float32(0))
    for _ in range(2):  # the second shows its progress, too
        with pytest.raises(RuntimeError, match="no"):
            run(np.float32(0))
    assert [d.closed for d in displays] == [True, True]
    assert f"loop at {__file__}:" in displays[0].titles[0]
    assert displays[0].titles[1:3] == (2_000, "rounds")


def test_progress_in_a_log_and_on_a_terminal(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(progress.sys, "stderr", stream)
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.0)
    progress.LogLines("k", 2_000_000, "cells", 2.0).update(500_000)
    progress.LogLines("k", None, "rounds", 2.0).update(500_000)
    line, endless = stream.getvalue().splitlines()
    assert line.startswith("pallas_shim: k: 500,000 of 2,000,000 cells (25%), ") and "left" in line
    assert endless.startswith("pallas_shim: k: 500,000 rounds, ") and endless.endswith("s so far")
    stream.close()
    progress.LogLines("k", 9, "cells", 1.0).update(1)  # a closed stream is nobody's error


def test_a_bar_on_a_terminal(monkeypatch):
    pytest.importorskip("tqdm")
    stream = io.StringIO()
    monkeypatch.setattr(progress.sys, "stderr", stream)
    shows = progress.bars()
    assert shows is not None
    bar = shows("k", 100, "cells", 1.5)
    bar.update(25)
    bar.refresh()
    bar.update(100)
    bar.close()
    assert "pallas_shim: k:  25%" in stream.getvalue() and "25/100" in stream.getvalue()
    bar = shows("endless", None, "rounds", 1.5)
    bar.update(25)
    bar.refresh()
    bar.close()
    assert "pallas_shim: endless: 25 rounds" in stream.getvalue()


def test_a_vmapped_while_goes_on_while_any_element_does():
    def count(n):
        return lax.while_loop(lambda c: c[0] < n, lambda c: (c[0] + 1, c[1] * 2), (0, 1))

    check(jax.vmap(count), jnp.int32([3, 0, 5, 1]))


def test_a_pure_callback_runs_as_often_as_its_loop():
    calls = []

    def called():
        calls.append(1)
        return np.float32(1)

    def f(n):
        def body(_, c):
            return c + jax.pure_callback(called, jax.ShapeDtypeStruct((), jnp.float32))

        return lax.fori_loop(0, n, body, jnp.float32(0))

    from pallas_shim.evaluator.passes import optimise

    run = Executable(optimise(lower(jax.make_jaxpr(f)(3))))
    assert not calls
    assert run(np.int32(0)) == [0] and not calls
    assert run(np.int32(2)) == [2] and len(calls) == 2


def test_constants_and_loads_of_rank_0_are_scalars():
    def kernel(x, out):
        def body(i, total):
            return lax.select(x[i] > 3, total * 2 - x[i], (total ^ 5) + (x[i] < 2).astype(int))

        out[0] = lax.fori_loop(0, 9, body, jnp.int32(2**30))

    x = jnp.asarray([7, -(2**31), 2**31 - 1, 0, 1, 5, -4, 3, 8], jnp.int32)
    check_kernel(kernel, jax.ShapeDtypeStruct((1,), jnp.int32), x)


def test_a_loop_in_a_loop_carries_several_values_and_large_arrays():
    def f(x, n):
        def outer(carry, y):
            a, b, i = carry
            a, b = lax.while_loop(
                lambda c: c[1][0, 0] < i, lambda c: (c[1] + 1, c[0] + y), (a, b)
            )
            return (b, a, i + 1), (a[0], y)

        return lax.scan(outer, (x, x - 3, n), jnp.arange(4, dtype=jnp.int32))

    check(f, jnp.arange(64 * 128, dtype=jnp.int32).reshape(64, 128), jnp.int32(2))
