"""Every way to reach a kernel: on which rung it runs, and that what comes out is jit's."""

from __future__ import annotations

import contextlib
import functools
import gc
import sys
import threading
import weakref
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

import pallas_shim
from pallas_shim import dispatch
from pallas_shim.dispatch import planning
from pallas_shim.evaluator import compiler
from pallas_shim.jax_compat import kernel_info
from pallas_shim.jax_compat.hooks import jit_entry
from pallas_shim.reports.uses import REPORT
from tests.shimmed import (
    double,
    double_kernel,
    only_row,
    rungs,
    setting,
    shim,
    unruly,
    unruly_kernel,
)

__all__ = ["setting", "shim"]

X = np.arange(1, 9, dtype=np.float32)


@jax.custom_vjp
def squared(x):
    return double(x) * x / 2


squared.defvjp(lambda x: (squared(x), x), lambda x, ct: (double(x) * ct,))


def disabled(x):
    with jax.disable_jit():
        return double(x)


def through_pure_callback(x):
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return jax.jit(lambda x: double(jax.pure_callback(lambda x: np.asarray(x), shape, x)))(x)


@jax.jit
def through_a_semaphore(x):
    """One kernel starts a copy, another waits for it."""
    x_ref, out_ref = jax.new_ref(x), jax.new_ref(jnp.zeros_like(x))
    sem_ref = pl.empty_ref_like(pltpu.SemaphoreType.DMA(()))

    def start():
        pltpu.make_async_copy(x_ref, out_ref, sem_ref).start()

    def wait():
        pltpu.make_async_copy(x_ref, out_ref, sem_ref).wait()

    pl.pallas_call(start, out_shape=())()
    pl.pallas_call(wait, out_shape=())()
    return 2 * jax.freeze(out_ref)


# name: (function of X, what it is)
WAYS: dict[str, Any] = {
    "eager": (double, 2 * X),
    "jit": (jax.jit(double), 2 * X),
    "jit in jit": (jax.jit(lambda x: jax.jit(double)(x) + 1), 2 * X + 1),
    "jit of a partial": (functools.partial(jax.jit, inline=True)(double), 2 * X),
    "vmap": (lambda x: jax.vmap(double)(x.reshape(2, 4)).reshape(8), 2 * X),
    "jit of vmap": (jax.jit(lambda x: jax.vmap(double)(x.reshape(4, 2)).reshape(8)), 2 * X),
    "grad": (jax.grad(lambda x: squared(x).sum()), 2 * X),
    "jit of value_and_grad": (jax.jit(lambda x: jax.vjp(squared, x)[1](jnp.ones(8))[0]), 2 * X),
    "jvp": (lambda x: jax.jvp(double, (x,), (x,))[1], 2 * X),
    "scan": (lambda x: lax.scan(lambda c, _: (double(c), None), x, None, length=3)[0], 8 * X),
    "while": (lambda x: lax.while_loop(lambda c: c[0] < 8, double, x), 8 * X),
    "cond": (lambda x: lax.cond(x[0] > 0, double, lambda x: x, x), 2 * X),
    "fori_loop": (jax.jit(lambda x: lax.fori_loop(0, 2, lambda _, c: double(c), x)), 4 * X),
    "disable_jit": (disabled, 2 * X),
    "remat": (jax.jit(jax.checkpoint(lambda x: double(x))), 2 * X),
    "interpret=False": (jax.jit(functools.partial(double, interpret=False)), 2 * X),
    "InterpretParams": (
        jax.jit(functools.partial(double, interpret=pltpu.InterpretParams())),
        2 * X,
    ),
    "pure_callback": (through_pure_callback, 2 * X),
    "donation": (lambda x: jax.jit(double, donate_argnums=0)(x + 0), 2 * X),
    "refs and a semaphore": (through_a_semaphore, 2 * X),
}


@pytest.mark.parametrize("way", WAYS)
def test_runs_in_numpy(way, shim, setting):
    setting(strict=True)
    function, expected = WAYS[way]
    for _ in range(2):
        np.testing.assert_array_equal(np.asarray(function(jnp.asarray(X))), expected)
    assert rungs() == {"numpy"}


def compiled_ahead(x):
    return jax.jit(double).lower(x).compile()(x)


def sharded(x):
    one = jax.sharding.NamedSharding(jax.make_mesh((1,), ("i",)), jax.sharding.PartitionSpec())
    return jax.jit(double)(jax.device_put(x, one))


def with_out_shardings(x):
    return jax.jit(double, out_shardings=jax.sharding.SingleDeviceSharding(jax.devices()[0]))(x)


def pmapped(x):
    return jax.pmap(double)(x[None])[0]


def after_heavy_work(x):
    def function(x):
        a = jnp.full((1024, 1024), 0, jnp.bfloat16) + x[0].astype(jnp.bfloat16)
        for _ in range(4):
            a = (a @ a) / 1024 / a[0, 0]
        return double(x) * a[0, 0]

    return jax.jit(function)(x)


@pytest.mark.parametrize(
    "function",
    [compiled_ahead, sharded, with_out_shardings, after_heavy_work],
)
def test_xla_calls_back(function, shim, setting):
    setting(strict=True)
    for _ in range(2):
        out = function(jnp.asarray(X))
        np.testing.assert_allclose(np.asarray(out), 2 * X, rtol=1e-6)
    assert rungs() == {"callback"}
    assert sum(row["calls"] for row in shim.rows()) == 2


@pytest.mark.parametrize(
    "dtype", ["bfloat16", "float16", "int4", "int8", "uint32", "bool", "float8_e4m3fn", "complex64"]
)
def test_a_callback_keeps_the_dtype(dtype, shim):
    x = jnp.asarray(np.array([[0, 1, 1], [1, 0, 1]]).astype(jnp.dtype(dtype)))

    def kernel(x_ref, o_ref):
        o_ref[...] = x_ref[...]

    def copy(x):
        return pl.pallas_call(
            kernel, out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype), interpret=True
        )(x)

    out = jax.jit(copy).lower(x).compile()(x)
    assert out.dtype == x.dtype
    np.testing.assert_array_equal(np.asarray(out), np.asarray(x))
    assert rungs() == {"callback"}


def test_a_callback_in_64_bits(shim):
    with jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64():
        x = jnp.asarray(np.arange(4, dtype=np.float64))
        out = jax.jit(double).lower(x).compile()(x)
        assert out.dtype == np.float64
        np.testing.assert_array_equal(np.asarray(out), np.arange(4) * 2.0)


@pytest.mark.parametrize("orders", [{"schedules": 2}, {"seed": "3"}])
def test_other_orders(orders, shim, setting):
    jax.clear_caches()
    setting(**orders)
    np.testing.assert_array_equal(jax.jit(double)(np.arange(4.0)), 2 * np.arange(4.0))
    assert rungs(shim) == {"numpy"}
    jax.clear_caches()


# -- kernels that stay with JAX ---------------------------------------------------------------

def test_an_option_that_is_not_honoured_is_not_dropped(shim, monkeypatch):
    """Each that JAX has now is. A newer JAX may have others."""
    option = "skip_floating_point_ops"
    monkeypatch.setattr(kernel_info, "_HONOURED", kernel_info._HONOURED - {option})
    interpret = pltpu.InterpretParams(**{option: True})
    with pytest.warns(dispatch.FallbackWarning, match=option):
        numbers = X.astype(np.int32)
        out = jax.jit(functools.partial(double, interpret=interpret))(jnp.asarray(numbers))
    np.testing.assert_array_equal(np.asarray(out), 2 * numbers)
    assert only_row()["rung"] == "jax"
    assert option in only_row()["reason"]


@pytest.mark.parametrize("interpret", [True, False])
def test_an_unsupported_kernel_stays_with_jax_and_says_so(interpret, shim, recwarn):
    for _ in range(2):
        # Traced anew each time, so it is decided anew.
        out = jax.jit(lambda x: unruly(x, interpret) + 1)(jnp.asarray(X))
        np.testing.assert_array_equal(np.asarray(out), 3 * X + 1)
    (warning,) = [w for w in recwarn if w.category is dispatch.FallbackWarning]
    text = str(warning.message)
    assert "unknown_to_the_shim" in text and "unruly_kernel" in text
    first = unruly_kernel.__code__.co_firstlineno
    assert f"{unruly_kernel.__code__.co_filename}:{first + 1}" in text
    assert warning.filename == unruly_kernel.__code__.co_filename
    assert warning.lineno == unruly_kernel.__code__.co_firstlineno
    assert rungs() == {"jax"}


def test_only_the_unsupported_kernel_stays_with_jax(shim):
    with pytest.warns(dispatch.FallbackWarning):
        out = jax.jit(lambda x: unruly(double(x)) - 7)(jnp.asarray(X))
    np.testing.assert_array_equal(np.asarray(out), 6 * X - 7)
    assert {row["name"]: row["rung"] for row in shim.rows()} == {
        "double_kernel": "callback",
        "unruly_kernel": "jax",
    }


@pytest.mark.parametrize("checked", (False, True))
@pytest.mark.parametrize("at", ("lower", "prepare"))
def test_a_bug_of_the_compiler_costs_no_call(at, checked, shim, setting, monkeypatch, tmp_path):
    """``checked``: the program comes from no cache."""
    setting(cache=str(tmp_path), verify=checked)

    def fail(*args, **kwargs):
        raise ZeroDivisionError("for the test")

    if at == "lower":
        monkeypatch.setattr(compiler, "lower", fail)
    else:
        monkeypatch.setattr(compiler.codegen, "choice", fail)
    with pytest.warns(dispatch.FallbackWarning, match="a bug in pallas_shim: ZeroDivisionError"):
        out = jax.jit(lambda x: double(x) + checked)(X)
    np.testing.assert_array_equal(np.asarray(out), 2 * X + checked)
    assert rungs() == {"jax"}


def test_strict_makes_it_an_error(shim, setting):
    setting(strict=True)
    with pytest.raises(dispatch.StrictError, match="unruly_kernel.*unknown_to_the_shim"):
        jax.jit(unruly)(jnp.asarray(X))


def on_cores(count, wait=False, **kwargs):
    """A function that copies its operand, a part on each of the cores of a mesh."""
    mesh = pltpu.create_tensorcore_mesh("core", num_cores=count)

    def body(refs):
        x, o = refs

        @pl.core_map(mesh, **kwargs)
        def _():
            part = pl.ds(jax.lax.axis_index("core") * (8 // count), 8 // count)

            def scoped(sem):
                if wait:
                    for core in range(count):
                        semaphore_signal(sem, 1, core_index=core)
                    semaphore_wait(sem, count)
                pltpu.sync_copy(x.at[part], o.at[part])

            pl.run_scoped(scoped, pltpu.SemaphoreType.REGULAR)

    return lambda x: pl.run_state(body)((x, jnp.zeros_like(x)))[1]


semaphore_signal = getattr(pl, "semaphore_signal", None) or pltpu.semaphore_signal
semaphore_wait = getattr(pl, "semaphore_wait", None) or pltpu.semaphore_wait


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("count", [1, 2])
def test_cores_of_a_mesh(count, shim, setting):
    setting(strict=True)
    copy = on_cores(count)
    for run in (copy, jax.jit(copy)):
        np.testing.assert_array_equal(run(jnp.asarray(X)), X)
    assert rungs() == {"numpy"}
    np.testing.assert_array_equal(jax.jit(copy).lower(X).compile()(X), X)
    assert rungs() == {"numpy", "callback"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("asked", [{}, {"interpret": pltpu.InterpretParams()}])
def test_cores_that_wait_for_one_another(asked, shim, setting):
    setting(strict=True)
    copy = on_cores(2, wait=True, **asked)
    for run in (copy, jax.jit(copy)):
        np.testing.assert_array_equal(run(jnp.asarray(X)), X)
    assert rungs() == {"numpy"}
    np.testing.assert_array_equal(jax.jit(copy).lower(X).compile()(X), X)
    assert rungs() == {"numpy", "callback"}


def test_an_exported_function_holds_no_callback(shim):
    with pytest.warns(dispatch.FallbackWarning, match="export"):
        exported = export.export(jax.jit(double))(jax.ShapeDtypeStruct(X.shape, X.dtype))
    assert "python_cpu_callback" not in exported.mlir_module()
    np.testing.assert_array_equal(np.asarray(exported.call(X)), 2 * X)


# -- what comes out is what jit gives ---------------------------------------------------------


def same_kind(got, want):
    assert got.dtype == want.dtype and got.shape == want.shape
    assert got.weak_type == want.weak_type
    assert got.sharding == want.sharding
    assert got.committed == want.committed
    assert type(got) is type(want)


@pytest.mark.parametrize("committed", [False, True])
def test_results_are_arrays_as_jit_makes_them(committed, shim):
    x = jax.device_put(X, jax.devices()[0]) if committed else jnp.asarray(X)
    got = jax.jit(lambda x, s: (double(x), x, s * 2, jnp.sum(x), x.astype(jnp.bfloat16)))(x, 3)
    want = jax.jit(lambda x, s: (x + x, x, s * 2, jnp.sum(x), x.astype(jnp.bfloat16)))(x, 3)
    assert rungs() == {"numpy"}
    for g, w in zip(got, want, strict=True):
        same_kind(g, w)
        np.testing.assert_array_equal(np.asarray(g), np.asarray(w))


def test_every_kind_of_argument(shim):
    @functools.partial(jax.jit, static_argnames="scale")
    def function(tree, key, *, scale):
        y = double(tree["x"]) * scale + tree["n"] + tree["f"]
        return {"y": y, "k": jax.random.split(key), "b": tree["b"], "none": None}

    key = jax.random.key(7)
    tree = {"x": X, "n": 3, "f": 0.5, "b": True}
    out = function(tree, key, scale=2)
    assert rungs() == {"numpy"}
    np.testing.assert_array_equal(np.asarray(out["y"]), X * 4 + 3.5)
    assert out["y"].dtype == np.float32 and not out["y"].weak_type
    assert out["b"].dtype == bool and out["none"] is None
    same_key = jax.random.split(key)
    assert out["k"].dtype == same_key.dtype and out["k"].shape == (2,)
    np.testing.assert_array_equal(
        jax.random.key_data(out["k"]), jax.random.key_data(same_key)
    )
    np.testing.assert_array_equal(np.asarray(function(tree, key, scale=3)["y"]), X * 6 + 3.5)


def test_results_share_no_memory_with_what_can_be_written(shim):
    x = X.copy()
    function = jax.jit(lambda x: (x, double(x), x.reshape(2, 4)))
    first = function(x)
    x[:] = -1
    np.testing.assert_array_equal(np.asarray(first[0]), X)
    np.testing.assert_array_equal(np.asarray(first[2]).ravel(), X)
    held = jnp.asarray(X)
    second = function(held)
    held.delete()
    for result in second:
        assert np.isfinite(np.asarray(result)).all()
    third = function(x)
    np.testing.assert_array_equal(np.asarray(second[1]), 2 * X)
    np.testing.assert_array_equal(np.asarray(third[1]), np.full(8, -2))


@pytest.mark.parametrize("size", [1, 8])
def test_an_array_closed_over_is_taken_as_it_was(size, shim):
    offset = np.ones(size, np.float32)
    function = jax.jit(lambda x: double(x) + offset)
    function(X)
    offset[:] = 100
    np.testing.assert_array_equal(np.asarray(function(X)), 2 * X + 1)
    assert rungs() == {"numpy"}


# name: (what the arguments become, which are donated, further options, deleted ones)
DONATIONS = {
    "one": (lambda x, y: (double(x), y), (0,), {}, [True, False]),
    "both": (lambda x, y: (double(x), y), (0, 1), {}, [True, True]),
    "unused": (lambda x, y: double(y), (0,), {}, [False, False]),
    "unused but kept": (lambda x, y: double(y), (0,), {"keep_unused": True}, [True, False]),
    "one result for two": (lambda x, y: double(x) + y, (0, 1), {}, [True, False]),
    "other shape": (lambda x, y: double(x + y).reshape(2, 4), (1,), {}, [False, True]),
    "no result": (lambda x, y: double(x + y).sum(), (0,), {}, [False, False]),
}


@pytest.mark.filterwarnings("ignore:Some donated buffers")
@pytest.mark.parametrize("case", DONATIONS)
def test_donated_arguments_are_deleted_as_by_jit(case, shim):
    function, donated, options, deleted = DONATIONS[case]
    for run in (function, lambda x, y: jax.tree.map(lambda r: r, function(x, y))):
        args = [jnp.asarray(X) + 0, jnp.asarray(X) + 1]
        jax.jit(run, donate_argnums=donated, **options)(*args)
        assert [a.is_deleted() for a in args] == deleted
    assert rungs() == {"numpy"}
    stock = [jnp.asarray(X) + 0, jnp.asarray(X) + 1]
    with pallas_shim_off():
        jax.jit(
            lambda x, y: function(x, y), donate_argnums=donated, **options
        )(*stock)
    assert [a.is_deleted() for a in stock] == deleted


def pallas_shim_off():
    class Off:
        def __enter__(self):
            pallas_shim.deactivate()

        def __exit__(self, *_):
            pallas_shim.activate()

    return Off()


def test_a_deleted_argument_is_refused(shim):
    function = jax.jit(double)
    x = jnp.asarray(X)
    function(x)
    x.delete()
    with pytest.raises(RuntimeError, match="deleted"):
        function(x)


def test_debug_nans(shim):
    function = jax.jit(lambda x: double(x) - double(x))
    np.testing.assert_array_equal(np.asarray(function(jnp.asarray(X))), 0 * X)
    with jax.debug_nans(True), pytest.raises(FloatingPointError, match="nan"):
        function(jnp.full(8, np.inf, np.float32))


# -- errors -----------------------------------------------------------------------------------


class OwnError(Exception):
    pass


def reporting(callback):
    def reporting_kernel(x_ref, o_ref):
        jax.debug.callback(callback, x_ref[0])
        o_ref[...] = x_ref[...]

    return jax.jit(
        pl.pallas_call(
            reporting_kernel, out_shape=jax.ShapeDtypeStruct(X.shape, X.dtype), interpret=True
        )
    )


def test_an_error_keeps_its_type_and_names_the_kernel(shim):
    def fail(_):
        raise OwnError("stop")

    with pytest.raises(OwnError, match="stop") as caught:
        reporting(fail)(X)
    notes = "\n".join(caught.value.__notes__)
    assert "reporting_kernel" in notes and __file__ in notes


def test_an_error_that_xla_passes_on_names_the_kernel(shim):
    def fail(_):
        raise OwnError("stop")

    compiled = reporting(fail).lower(X).compile()
    with pytest.raises(jax.errors.JaxRuntimeError, match="OwnError: stop.*reporting_kernel"):
        compiled(X).block_until_ready()


def test_ctrl_c_is_not_an_error_of_the_kernel(shim):
    def interrupt(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reporting(interrupt)(X)


# -- the shape of the patch -------------------------------------------------------------------


def test_functions_without_a_kernel_keep_jits_fast_path(shim, monkeypatch):
    function = jax.jit(lambda x: x + 1)
    function(X)
    monkeypatch.setattr(dispatch, "call_jit", lambda *_: pytest.fail("the fast path is gone"))
    for _ in range(3):
        function(X)


def test_a_jitted_function_stays_what_it_is(shim):
    function = jax.jit(double)
    assert type(function) is type(jax.jit(lambda x: x))
    function(X)
    assert "pallas_call" in str(function.trace(X).jaxpr)
    assert function.eval_shape(X).shape == X.shape
    function.clear_cache()
    np.testing.assert_array_equal(np.asarray(function(X)), 2 * X)
    assert "double" in repr(function)
    assert function.__name__ == "double"


def test_functions_from_before_follow_the_switch():
    function = jax.jit(lambda x: double(x) + 5)
    for _ in range(2):
        function(X)  # XLA's, and in jit's C++ cache
        REPORT.clear()
        with pallas_shim.active():
            np.testing.assert_array_equal(np.asarray(function(X)), 2 * X + 5)
            np.testing.assert_array_equal(np.asarray(function(X)), 2 * X + 5)
            assert only_row()["calls"] == 2
            function.lower(X).compile()(X)
            assert rungs() == {"numpy", "callback"}
        function(X)
        function.lower(X).compile()(X)
        assert sum(row["calls"] for row in REPORT.rows()) == 3


def test_deactivating_puts_jax_back():
    module, name = jit_entry.JIT_CALL
    before = getattr(module, name)
    with pallas_shim.active():
        assert getattr(module, name) is not before
    assert getattr(module, name) is before


def test_a_plan_goes_with_its_function(shim):
    function = jax.jit(lambda x: double(x) + 6)
    before = set(planning._plans)
    function(X)
    (jaxpr,) = [weakref.ref(jaxpr) for jaxpr in planning._plans if jaxpr not in before]
    assert jaxpr() is not None
    function.clear_cache()
    del function
    jax.clear_caches()
    gc.collect()
    assert jaxpr() is None


def test_threads_share_a_kernel(shim):
    function = jax.jit(lambda x: double(x) * 2)
    results: list = [None] * 8
    barrier = threading.Barrier(8)

    def work(i):
        barrier.wait()
        for _ in range(20):
            results[i] = np.asarray(function(X + i))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, result in enumerate(results):
        np.testing.assert_array_equal(result, (X + i) * 4)
    assert only_row()["calls"] == 160


@pytest.mark.parametrize("on", [True, False])
def test_garbage_collection_is_paused_while_a_kernel_is_traced_and_then_as_it_was(shim, on):
    while_tracing = []

    def kernel(x_ref, out_ref):
        while_tracing.append(gc.isenabled())
        out_ref[...] = x_ref[...]

    call = pl.pallas_call(kernel, jax.ShapeDtypeStruct((8, 128), np.float32))
    was_on = gc.isenabled()
    (gc.enable if on else gc.disable)()
    try:
        jax.jit(call)(jnp.ones((8, 128)))
        assert gc.isenabled() is on
        assert while_tracing == [False]
    finally:
        (gc.enable if was_on else gc.disable)()


def test_an_error_of_the_users_kernel_shows_none_of_our_frames(shim):
    def kernel(x_ref, out_ref):
        raise ZeroDivisionError("the user's own")

    function = jax.jit(pl.pallas_call(kernel, jax.ShapeDtypeStruct((8, 128), np.float32)))
    with pytest.raises(ZeroDivisionError) as error:
        function(X)
    assert own_frames(error.traceback) == []


def own_frames(traceback: Any) -> list[str]:
    """The files of a traceback that ends in this one, as far as they are ours, loops included."""
    shown = [entry.frame.code.raw.co_filename for entry in traceback]
    assert shown[-1] == __file__
    own = [sys.modules[name].__path__[0] for name in ("pallas_shim", "pallas_shim.patches")]
    return [file for file in shown if file.startswith((*own, "<"))]


def test_an_error_in_a_loop_shows_none_of_our_frames(shim):
    def fail(x):
        raise ZeroDivisionError("the user's own")

    def function(x):
        def step(i, y):
            return jax.pure_callback(fail, y, y + i)

        return lax.fori_loop(0, 100, step, double(x))

    with pytest.raises(ZeroDivisionError) as error:
        jax.jit(function)(X)
    (note,) = [note for note in error.value.__notes__ if note.startswith("raised by")]
    assert "pure_callback" in note and __file__ in note
    assert own_frames(error.traceback) == []


@pytest.mark.parametrize("outside", [lambda x: x, lambda x: jnp.linalg.svd(x.reshape(2, 2))[1]])
def test_debug_prints_what_jax_prints(outside, capsys, setting):
    def run(x):
        return outside(pl.pallas_call(
            double_kernel, out_shape=x, grid=(2,), in_specs=[pl.BlockSpec((2,), lambda i: (i,))],
            out_specs=pl.BlockSpec((2,), lambda i: (i,)), interpret=True, debug=True,
        )(x))  # fmt: skip

    said = []
    for around in (contextlib.nullcontext(), pallas_shim.active()):
        jax.clear_caches()
        with around:
            jax.block_until_ready(jax.jit(run)(jnp.arange(4.0)))
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] and "kernel in pallas_call double_kernel at " in said[0]
    jax.clear_caches()


def test_debug_of_a_kernel_for_a_tpu(shim, capsys):
    jax.jit(lambda x: pl.pallas_call(double_kernel, out_shape=x, debug=True)(x))(jnp.arange(4.0))
    assert "The kernel jaxpr for pallas_call double_kernel at " in capsys.readouterr().out


def test_a_breakpoint_in_a_kernel_is_told_of(shim, capsys, monkeypatch):
    monkeypatch.setattr(sys, "breakpointhook", lambda: None)

    def kernel(x_ref, o_ref):
        @pl.when(True)
        def _():
            breakpoint()
            o_ref[...] = x_ref[...]

    def other(x_ref, o_ref):
        jax.debug.print("no breakpoint")
        o_ref[...] = x_ref[...]

    for function in (kernel, kernel, other):
        call = functools.partial(pl.pallas_call, functools.partial(function), interpret=True)
        jax.jit(lambda x, call=call: call(out_shape=x)(x))(jnp.arange(4.0))
    (said,) = capsys.readouterr().err.splitlines()
    assert "kernel kernel (" in said and "calls breakpoint(), which stops" in said
    assert "python -m pallas_shim debug" in said
