"""Whatever a user can see of a jitted call, beside its numbers, is as under stock JAX.

Each function here does something with jitted functions and says what came of it: values, types,
errors with their messages, counts. It is done on stock JAX and under the shim, with a function that
holds a kernel, and, under PALLAS_NUMPY_SCOPE=all, with one that holds none.
"""

from __future__ import annotations

import copy
import enum
import functools
import gc
import inspect
import logging
import pickle
import re
import threading
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import io_callback

import pallas_shim
from tests.shimmed import double, rungs, setting

__all__ = ["setting"]

Work = Callable[[Any], Any]
Observation = Callable[[Work], Any]

OBSERVATIONS: dict[str, Observation] = {}


def observed(observation: Observation) -> Observation:
    OBSERVATIONS[observation.__name__] = observation
    return observation


def plain(x):
    """x + x, with no kernel."""
    return x + x


# Before JAX 0.9.2.
OTHERWISE_BEFORE = {
    "how_deep_the_stack_is_while_it_is_traced": "tracing has two frames of the shim's more",
    "how_deep_the_stack_is_in_functions_with_rules_of_their_own": "the same",
    "keys_that_are_used_again": "jit's C++ cache serves the second call, without a check",
}


@pytest.mark.parametrize("work", [double, plain], ids=["kernel", "no kernel"])
@pytest.mark.parametrize("name", OBSERVATIONS)
def test_what_a_user_sees_is_as_under_jit(name, work, setting):
    if name in OTHERWISE_BEFORE and jax.__version_info__ < (0, 9, 2):
        pytest.skip(OTHERWISE_BEFORE[name])
    observation = OBSERVATIONS[name]
    want = observation(work)
    jax.clear_caches()
    setting(scope="all" if work is plain else "kernels")
    with pallas_shim.active():
        got = observation(work)
    jax.clear_caches()
    assert got == want


def came_of(call: Callable[[], Any]) -> Any:
    """What a call returned, or raised, in a form to compare."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            said: Any = told(jax.block_until_ready(call()))
        except Exception as error:
            said = (type(error).__name__, re.sub(r"0x[0-9a-f]+|\d+ bytes", "", str(error)))
    return said, [(w.category.__name__, str(w.message)) for w in caught]


def told(value: Any) -> Any:
    """A value in a form to compare: arrays with all that can be asked of them."""
    if isinstance(value, jax.Array):
        keys = jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
        data = np.asarray(jax.random.key_data(value) if keys else value)
        return (
            type(value).__name__, str(value.dtype), value.shape, value.weak_type,
            value.sharding, value.committed, sorted(map(str, value.devices())),
            None if keys else value.format, str(jax.typeof(value)), data.tolist(),
            data.flags.writeable, value.is_deleted(),
        )  # fmt: skip
    if isinstance(value, (tuple, list)):
        return [told(each) for each in value]
    if isinstance(value, dict):
        return {name: told(each) for name, each in value.items()}
    if isinstance(value, np.ndarray):
        return type(value).__name__, str(value.dtype), value.shape, value.tolist()
    return re.sub("0x[0-9a-f]+", "", repr(value))


def eight() -> Any:
    return jnp.arange(8, dtype=jnp.float32)


# -- donation ---------------------------------------------------------------------------------


@observed
def donated_and_used_again(work):
    f = jax.jit(lambda x: work(x) + 1, donate_argnums=0)
    x = eight()
    first = came_of(lambda: f(x))
    g = jax.jit(lambda x: work(x) + 2)
    # Of f(x) jit's fast path gives a ValueError, and others a RuntimeError.
    return first, x.is_deleted(), came_of(lambda: g(x)), came_of(lambda: np.asarray(x))


@observed
def donated_twice_in_one_call(work):
    f = jax.jit(lambda x, y: (work(x) + y, y * 2), donate_argnums=(0, 1))
    g = jax.jit(lambda x, y: work(x) + y, donate_argnums=0)
    results = []
    for function in (f, g):
        for _ in range(2):
            x = eight()
            results.append((came_of(lambda: function(x, x)), x.is_deleted()))  # noqa: B023
    x = eight()
    function = g
    function(eight(), eight())
    results.append((came_of(lambda: g(x, x)), x.is_deleted()))
    return results


@observed
def donated_and_of_no_use(work):
    f = jax.jit(lambda x, y: work(x).sum(), donate_argnums=(0, 1))
    x, y = eight(), eight()
    return [came_of(lambda: f(x, y)) for _ in range(2)], x.is_deleted(), y.is_deleted()


DONATIONS: dict[str, Any] = {
    "the same type": (lambda work, x: work(x), (8,), np.float32),
    "another dtype of the same size": (lambda work, x: work(x).astype(jnp.int32), (8,), np.float32),
    "a smaller dtype": (lambda work, x: work(x).astype(jnp.bfloat16), (8,), np.float32),
    "another shape": (lambda work, x: work(x).reshape(2, 4), (8,), np.float32),
    "as many bytes": (lambda work, x: work(x)[:4], (8,), jnp.bfloat16),
    "used by what is dead": (lambda work, x: (x + 1, work(jnp.ones(8)))[1], (8,), np.float32),
    "passed on": (lambda work, x: (x, work(x)), (8,), np.float32),
    "empty": (lambda work, x: (x, work(jnp.ones(8))), (0, 3), np.float32),
}


@observed
def donated_to_results_of_other_types(work):
    results = {}
    for name, (function, shape, dtype) in DONATIONS.items():
        for donated in (1, 2):
            f = jax.jit(
                lambda x, y: (function(work, x), y.sum()),  # noqa: B023
                donate_argnums=tuple(range(donated)),
            )
            for call in range(2):
                x, y = jnp.ones(shape, dtype), jnp.ones(shape, dtype)
                results[name, donated, call] = (
                    came_of(lambda: f(x, y)), x.is_deleted(), y.is_deleted()  # noqa: B023
                )
    return results


@observed
def donated_parts_of_one_array(work):
    """Two arrays that share a buffer."""
    f = jax.jit(lambda x, y: work(x) + y, donate_argnums=0)
    x = eight()
    other = x.addressable_data(0)
    return came_of(lambda: f(x, other)), x.is_deleted(), other.is_deleted()


@observed
def donated_things_that_are_no_arrays(work):
    f = jax.jit(lambda x, y: (work(x), y + 1), donate_argnums=(0, 1))
    x = np.arange(8, dtype=np.float32)
    return came_of(lambda: f(x, 3)), x.tolist()


@observed
def donated_keys(work):
    f = jax.jit(lambda x, k: (work(x), jax.random.split(k)[0]), donate_argnums=1)
    key = jax.random.key(3)
    return came_of(lambda: f(eight(), key)), key.is_deleted()


@observed
def donated_while_numpy_looks(work):
    f = jax.jit(work, donate_argnums=0)
    x = eight()
    view = np.asarray(x)
    out = f(x)
    # XLA copies what is looked at, and doesn't delete it: docs/limits.md.
    return told(out), view.tolist()


@observed
def donated_by_name_in_a_tree(work):
    f = jax.jit(lambda a, b: {"a": work(a["x"]), "b": b * 2}, donate_argnames="a")
    a, b = {"x": eight()}, eight()
    return came_of(lambda: f(a=a, b=b)), a["x"].is_deleted(), b.is_deleted()


@observed
def donation_while_nans_are_looked_for(work):
    f = jax.jit(work, donate_argnums=0)
    x = eight()
    with jax.debug_nans(True):
        return came_of(lambda: f(x)), x.is_deleted()


@observed
def an_array_that_was_deleted(work):
    f = jax.jit(lambda x, unused: work(x))
    x, unused = eight(), eight()
    unused.delete()
    first = came_of(lambda: f(x, unused))
    x.delete()
    return first, came_of(lambda: f(x, eight())), came_of(lambda: f(x, eight()))


@observed
def a_captured_array_that_was_deleted(work):
    c = eight()
    f = jax.jit(lambda x: work(x) + c)
    f(eight())
    c.delete()
    return came_of(lambda: f(eight()))


# -- options ----------------------------------------------------------------------------------


@observed
def compiler_options(work):
    def function(x):
        return work(x) + 1

    none = jax.jit(function)
    some = jax.jit(function, compiler_options={"xla_embed_ir_in_executable": True})
    bad = jax.jit(function, compiler_options={"no_such_option": True})
    return [came_of(lambda: f(eight())) for f in (none, some, bad, none, bad)]  # noqa: B023


@observed
def a_device_or_a_backend(work):
    results = []
    for option in ({"device": jax.devices()[0]}, {"backend": "cpu"}, {"backend": "none"}):
        results.append(came_of(lambda: jax.jit(work, **option)(eight())))  # noqa: B023
    return results


@observed
def unused_arguments(work):
    results = []
    for keep in (False, True):
        f = jax.jit(lambda x, y: work(x), keep_unused=keep)
        results.append([came_of(lambda: f(eight(), y)) for y in (1, eight(), 2**30)])  # noqa: B023
    return results


# -- what is remembered -----------------------------------------------------------------------


@observed
def how_often_it_is_traced(work):
    traces = []

    def function(x, n):
        traces.append((str(x.dtype), x.shape, getattr(n, "weak_type", None)))
        return work(x) * n

    f = jax.jit(function)
    for call in (
        lambda: f(eight(), 2),
        lambda: f(eight(), 3),
        lambda: f(eight(), 3.0),
        lambda: f(eight(), np.float32(3)),
        lambda: f(np.arange(8, dtype=np.float32), 3),
        lambda: f(np.arange(8), 3),
        lambda: f(x=eight(), n=3),
        lambda: f(eight()[None], 3),
        lambda: f(jax.device_put(eight(), jax.devices()[0]), 3),
    ):
        for _ in range(3):
            call()
        traces.append("next")
    with jax.default_matmul_precision("highest"):
        f(eight(), 2)
    traces.append("next")
    f(eight(), 2)
    traces.append("cleared")
    f.clear_cache()
    f(eight(), 2)
    f(eight(), 2)
    traces.append("all cleared")
    jax.clear_caches()
    f(eight(), 2)
    f(eight(), 2)
    return traces


@observed
def how_many_calls_it_remembers(work):
    f = jax.jit(lambda x: work(x))
    sizes = [f._cache_size()]
    for x in (eight(), eight(), eight()[:4], np.arange(8, dtype=np.float32), eight()):
        f(x)
        sizes.append(f._cache_size())
    f.clear_cache()
    return [*sizes, f._cache_size()]


@observed
def no_tracing(work):
    f = jax.jit(lambda x: work(x))
    f(eight())
    f(eight())
    with jax.no_tracing():
        return came_of(lambda: f(eight())), type(came_of(lambda: f(eight()[:3]))).__name__


@observed
def no_tracing_of_what_is_new(work):
    f = jax.jit(lambda x: work(x))
    x = eight()
    y = x[:3]
    f(x)
    with jax.no_tracing():
        try:
            f(y)
        except RuntimeError as error:
            return str(error).partition(" at ")[0], str(error).partition(" for ")[2]
    return None


@observed
def no_execution(work):
    f = jax.jit(lambda x: work(x))
    x = eight()
    jax.block_until_ready(f(x))
    from jax._src import config  # noqa: PLC0415

    with config.no_execution(True):
        return came_of(lambda: f(x))


@observed
def static_arguments(work):
    f = jax.jit(lambda x, n: work(x) * n, static_argnums=1)
    g = jax.jit(lambda x, *, n: work(x) * n, static_argnames="n")
    h = jax.jit(lambda x, n: work(x) * len(n), static_argnums=1)
    return [
        came_of(call)
        for call in (
            lambda: f(eight(), 3),
            lambda: f(eight(), 3.0),
            lambda: g(eight(), n=True),
            lambda: h(eight(), (1, 2)),
            lambda: h(eight(), [1, 2]),
            lambda: h(eight(), np.arange(3)),
            lambda: f(eight()),
            lambda: f(eight(), n=3),
            lambda: f(eight(), 2, 3),
        )
    ]


# -- references -------------------------------------------------------------------------------


@observed
def what_is_kept_alive(work):
    x, captured = eight(), jnp.full(8, 3.0)
    f = jax.jit((lambda captured: lambda x: work(x) + captured)(captured))
    for _ in range(3):
        out = f(x)
    kept = {name: weakref.ref(value) for name, value in
            (("x", x), ("captured", captured), ("out", out), ("fun", f.__wrapped__))}  # fmt: skip
    del x, captured, out
    gc.collect()
    before = {name: ref() is not None for name, ref in kept.items()}
    del f
    gc.collect()
    return before, {name: ref() is not None for name, ref in kept.items()}


@observed
def what_goes_without_collecting_garbage(work):
    results = []
    for function in (
        lambda captured: lambda: work(captured),
        lambda captured: lambda: captured,
        lambda captured: lambda: (captured, work(eight())),
        lambda captured: lambda: work(eight() + captured[0]),
    ):
        captured = jnp.full(8, 3.0)
        g = jax.jit(function(captured))
        ref = weakref.ref(captured)
        del captured
        g()
        g()
        alive = ref() is not None
        gc.disable()
        try:
            del g
            results.append((alive, ref() is not None))
        finally:
            gc.enable()
    return results


@observed
def what_goes_at_once_of_arguments_and_results(work):
    results = []
    for function in (lambda x: work(x), lambda x: x, lambda x: (x, x[1:], work(x))):
        f = jax.jit(function)
        f(eight())
        gc.disable()
        try:
            x = eight()
            out = f(x)
            refs = weakref.ref(x), *map(weakref.ref, jax.tree.leaves(out))
            del x
            results.append([ref() is not None for ref in refs])
            del out
            results.append([ref() is not None for ref in refs])
        finally:
            gc.enable()
    return results


@observed
def live_arrays(work):
    gc.collect()
    before = len(jax.live_arrays())
    f = jax.jit(lambda x: (work(x), x.sum()))
    out = [f(eight()) for _ in range(3)]
    during = len(jax.live_arrays()) - before
    del out
    gc.collect()
    return during, len(jax.live_arrays()) - before


@observed
def pictures_of_memory(work):
    """Which results are one array, and which share memory."""
    f = jax.jit(lambda x, y: (x, x, work(x), y, y + 0, x[:8]))
    x, y = eight(), np.arange(8, dtype=np.float32)
    out = f(x, y)
    same = [[a is b for b in (x, *out)] for a in (x, *out)]
    pointers = [each.unsafe_buffer_pointer() for each in out]
    y[:] = -1
    return (
        same, [told(each) for each in out], y.ctypes.data in pointers,
        x.unsafe_buffer_pointer() in pointers, len(set(pointers)),
    )  # fmt: skip


@observed
def results_are_arrays_like_others(work):
    out = jax.jit(lambda x: work(x))(eight())
    with pytest.raises(ValueError, match="read-only"):
        np.asarray(out)[0] = 5
    copies = (pickle.loads(pickle.dumps(out)), copy.copy(out), copy.deepcopy(out))
    return (
        told(copies), len(out.addressable_shards), out.is_fully_addressable,
        out.sharding.memory_kind, repr(out), came_of(lambda: out.__setitem__(0, 1)),
        came_of(lambda: hash(out)), np.from_dlpack(out).tolist(), out.nbytes,
        out.on_device_size_in_bytes(),
    )  # fmt: skip


# -- arguments --------------------------------------------------------------------------------


class Colour(enum.IntEnum):
    RED = 3


class Wrapped:
    def __jax_array__(self):
        return eight()


ARGUMENTS: dict[str, Callable[[], Any]] = {
    "int": lambda: 3,
    "float": lambda: 0.1,
    "complex": lambda: 1j,
    "bool": lambda: True,
    "a large int": lambda: 2**40,
    "a huge int": lambda: 2**70,
    "enum": lambda: Colour.RED,
    "str": lambda: "x",
    "bytes": lambda: b"x",
    "None": lambda: None,
    "object": object,
    "set": lambda: {1},
    "function": lambda: len,
    "float64": lambda: np.arange(8.0),
    "np.float64": lambda: np.float64(0.1),
    "np.int64": lambda: np.int64(2**40),
    "np.int64 array": lambda: np.full(8, 2**40),
    "uint64": lambda: np.full(8, 2**63, np.uint64),
    "swapped": lambda: np.arange(8, dtype=">f4"),
    "swapped int": lambda: np.arange(8, dtype=">i4"),
    "strided": lambda: np.arange(16, dtype=np.float32)[::-2],
    "read-only": lambda: np.broadcast_to(np.float32(1), 8),
    "Fortran": lambda: np.asfortranarray(np.arange(8, dtype=np.float32).reshape(4, 2)),
    "bool_": lambda: np.bool_(True),
    "longdouble": lambda: np.longdouble(1),
    "str array": lambda: np.array(["a", "b"]),
    "object array": lambda: np.array([None, 1], object),
    "structured": lambda: np.zeros(3, [("a", "f4")]),
    "datetime": lambda: np.datetime64("2020-01-01"),
    "masked": lambda: np.ma.masked_array(np.arange(3.0), [0, 1, 0]),
    "matrix": lambda: np.asmatrix(np.eye(2, dtype=np.float32)),
    "float0": lambda: np.zeros(3, jax.dtypes.float0),
    "bfloat16": lambda: np.arange(8).astype(jnp.bfloat16),
    "a bfloat16": lambda: jnp.bfloat16(1.5),
    "int4": lambda: np.arange(4).astype(jnp.int4),
    "weak": lambda: jnp.asarray(3.0) * 2,
    "empty": lambda: jnp.zeros((0, 3)),
    "key": lambda: jax.random.key(1),
    "keys": lambda: jax.random.split(jax.random.key(1), 3),
    "raw key": lambda: jax.random.PRNGKey(1),
    "rbg key": lambda: jax.random.key(1, impl="rbg"),
    "__jax_array__": Wrapped,
    "token": lambda: lax.create_token(),
    "ref": lambda: jax.new_ref(eight()),
    "struct": lambda: jax.ShapeDtypeStruct((8,), np.float32),
    "memoryview": lambda: memoryview(b"abc"),
    "committed": lambda: jax.device_put(eight(), jax.devices()[0]),
    "sharded": lambda: jax.device_put(
        eight(),
        jax.sharding.NamedSharding(jax.make_mesh((1,), ("i",)), jax.sharding.PartitionSpec("i")),
    ),
    "other memory": lambda: jax.device_put(
        eight(), jax.sharding.SingleDeviceSharding(jax.devices()[0], memory_kind="pinned_host")
    ),
    "a layout": lambda: jax.device_put(
        eight().reshape(4, 2),
        jax.experimental.layout.Format(
            jax.experimental.layout.Layout((1, 0)),
            jax.sharding.SingleDeviceSharding(jax.devices()[0]),
        ),
    ),
}


@pytest.mark.parametrize("work", [double, plain], ids=["kernel", "no kernel"])
@pytest.mark.parametrize("name", ARGUMENTS)
def test_every_argument_is_taken_or_refused_as_by_jit(name, work, setting):
    def observation(work):
        results = []
        for function in (
            lambda x, y: (work(x), y),
            lambda x, y: work(x),
            lambda x, y: (work(x), y + y),
        ):
            f = jax.jit(function)
            results += [came_of(lambda: f(eight(), ARGUMENTS[name]())) for _ in range(2)]  # noqa: B023
        return results

    OBSERVATIONS[f"argument {name}"] = observation
    try:
        test_what_a_user_sees_is_as_under_jit(f"argument {name}", work, setting)
    finally:
        del OBSERVATIONS[f"argument {name}"]


# -- checks and guards ------------------------------------------------------------------------


def _bad(work: Work) -> Any:
    return jax.jit(lambda x: jnp.log(work(x) - 5))


@observed
def nans_are_looked_for(work):
    f = _bad(work)
    x = eight()
    first = told(f(x))
    with jax.debug_nans(True):
        return str(first), came_of(lambda: f(x)), came_of(lambda: f(x + 10))


@observed
def infinities_are_looked_for(work):
    f = jax.jit(lambda x: 1 / work(x))
    x = eight()
    f(x)
    with jax.debug_infs(True):
        return came_of(lambda: f(x)), came_of(lambda: f(x + 1))


@observed
def keys_that_are_used_again(work):
    f = jax.jit(lambda x, k: work(x) + jax.random.bits(k) + jax.random.bits(k))
    x, key = eight(), jax.random.key(3)
    f(x, key)
    with jax.debug_key_reuse(True):
        return came_of(lambda: f(x, key))


@observed
def a_key_that_is_used_again_outside(work):
    f = jax.jit(lambda x, k: work(x) + jax.random.uniform(k))
    x, key = eight(), jax.random.key(3)
    with jax.debug_key_reuse(True):
        return [came_of(lambda: f(x, key))[0][0] for _ in range(2)]


@observed
def tracers_that_leak(work):
    leaked = []

    def function(x):
        y = work(x)
        leaked.append(y)
        return y * 2

    f = jax.jit(function)
    f(eight())
    first = came_of(lambda: f(leaked[0]))[0][0], came_of(lambda: leaked[0] + 1)[0][0]
    with jax.checking_leaks():
        return first, came_of(lambda: jax.jit(lambda x: function(x))(eight()))[0][0]


@observed
def guards_of_transfers(work):
    f = jax.jit(lambda x, y: work(x) + y)
    captured = np.arange(8, dtype=np.float32)
    g = jax.jit(lambda x: work(x) + captured)
    x, y = eight(), np.arange(8, dtype=np.float32)
    results = []
    for _ in range(2):
        for guard in ("disallow", "disallow_explicit", "allow"):
            with jax.transfer_guard(guard):
                results += [
                    came_of(call)
                    for call in (
                        lambda: jax.block_until_ready(f(x, x)).shape,
                        lambda: jax.block_until_ready(f(x, y)).shape,
                        lambda: jax.block_until_ready(f(x, 1)).shape,
                        lambda: jax.block_until_ready(f(x, np.float32(1))).shape,
                        lambda: jax.block_until_ready(g(x)).shape,
                    )
                ]
    return results


@observed
def numpys_own_errors(work):
    f = _bad(work)
    x = eight()
    with np.errstate(all="raise"), warnings.catch_warnings():
        warnings.simplefilter("error")
        jax.block_until_ready(f(x))
        return np.geterr()


@observed
def configurations_that_refuse(work):
    f = jax.jit(lambda x, y: work(x) + y)
    wide = jnp.arange(8, dtype=jnp.int16)
    results = [came_of(lambda: f(eight(), wide)), came_of(lambda: f(eight()[None], wide))]
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        results += [came_of(lambda: f(eight(), wide)), came_of(lambda: f(eight()[None], eight()))]
    return [*results, came_of(lambda: f(eight(), wide))]


@observed
def explanations_of_what_is_traced(work):
    f = jax.jit(lambda x: work(x))
    logger = logging.getLogger("jax")
    heard: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    try:
        with jax.explain_cache_misses(True):
            for x in (eight(), eight(), eight()[:2], eight()):
                f(x)
                heard.append("called")
    finally:
        logger.removeHandler(handler)
    return [text == "called" or text.partition(" at ")[0] for text in heard
            if text == "called" or "<lambda>" in text and "TRACING" in text]  # fmt: skip


@observed
def events_of_a_warm_call(work):
    f = jax.jit(lambda x: work(x))
    x = eight()
    f(x)
    f(x)
    heard: list[str] = []

    def hear(event, *_, **__):
        heard.append(event)

    jax.monitoring.register_event_listener(hear)
    jax.monitoring.register_event_duration_secs_listener(hear)
    try:
        f(x)
        return heard
    finally:
        jax.monitoring.clear_event_listeners()


# -- effects and errors -----------------------------------------------------------------------


class OwnError(Exception):
    pass


@observed
def callbacks_in_order(work):
    seen = []

    def note(x, n):
        seen.append((type(n).__name__, int(n), type(x).__name__, float(x)))
        return np.float32(n)

    one = jax.ShapeDtypeStruct((), np.float32)

    @jax.jit
    def f(x, n):
        a = io_callback(note, one, x[1], n, ordered=True)
        b = io_callback(note, one, x[3], n + 1, ordered=True)
        return work(x) + a + b

    out = [told(f(eight(), n)) for n in (0, 10)]
    jax.effects_barrier()
    return out, seen


@observed
def what_callbacks_get(work):
    seen = []

    def note(*values):
        seen.append([(type(v).__name__, str(v.dtype), v.shape, v.tolist()) for v in values])
        return values[0]

    @jax.jit
    def f(x, n):
        y = jax.pure_callback(note, jax.ShapeDtypeStruct(x.shape, x.dtype), work(x), n, True)
        jax.debug.callback(note, x[0], n * 2)
        return y

    out = [told(f(eight(), n)) for n in (1, 2)]
    jax.effects_barrier()
    return out, sorted(map(str, seen))


@observed
def a_shape_that_is_wrong(work):
    f = jax.jit(lambda x, y: work(x) + y)
    return came_of(lambda: f(eight(), jnp.ones(3))), came_of(lambda: f(eight(), y=eight(), z=1))


@observed
def errors_while_it_is_traced(work):
    traces = []

    def function(x, n):
        traces.append(n)
        if n == 2:
            raise OwnError("two")
        return work(x) if x[0] > n else x

    f = jax.jit(function, static_argnums=1)
    g = jax.jit(lambda x: work(x)[jnp.where(x > 1)])
    said = [came_of(lambda: f(eight(), n)) for n in (1, 2, 2)]  # noqa: B023
    return said, traces, came_of(lambda: g(eight())), came_of(lambda: f(eight(), 3))


@observed
def how_deep_the_stack_is_while_it_is_traced(work):
    depths = []

    def function(x):
        depths.append(len(inspect.stack()) - here)
        return work(x)

    here = len(inspect.stack())
    f = jax.jit(function)
    f(eight())
    f(eight()[:2])
    f.trace(eight()[:3])
    jax.jit(lambda x: f(x[None]))(eight())
    jax.grad(lambda x: f(x.reshape(2, 4)).sum() if work is plain else x.sum())(eight())
    with jax.debug_nans(True):
        f(eight()[:4])
    return depths


@observed
def how_deep_the_stack_is_in_functions_with_rules_of_their_own(work):
    depths = []

    def deep():
        depths.append(len(inspect.stack()) - here)

    def function(x):
        deep()
        return work(x).sum()

    def forward(x):
        deep()
        return work(x).sum(), x

    def backward(x, g):
        deep()
        return (g * x,)

    def tangent(primals, tangents):
        deep()
        return work(*primals).sum(), tangents[0].sum()

    here = len(inspect.stack())
    with_vjp = jax.custom_vjp(function)
    with_vjp.defvjp(forward, backward)
    with_jvp = jax.custom_jvp(function)
    with_jvp.defjvp(tangent)
    for f in (with_vjp, with_jvp):
        f(eight())
        jax.grad(f)(eight())
        jax.jit(f)(eight())
    for plainly in (function, jax.checkpoint(function)):
        jax.vmap(plainly)(eight()[None])
        jax.lax.cond(True, plainly, plainly, eight())
        jax.lax.scan(lambda carry, x, f=plainly: (f(x), carry), np.float32(0), eight()[None])
    return depths


@observed
def an_argument_that_could_not_be_computed(work):
    def fail(x):
        raise OwnError("no")

    shape = jax.ShapeDtypeStruct((8,), np.float32)
    bad = jax.jit(lambda x: jax.pure_callback(fail, shape, x))
    f = jax.jit(lambda x: work(x))
    f(eight())
    kind, *_ = came_of(lambda: f(bad(eight())))[0]
    return kind if work is plain else isinstance(kind, str)


@observed
def a_ref_that_is_written_to(work):
    @jax.jit
    def f(ref, x):
        ref[...] = ref[...] + work(x)
        return ref[0]

    ref = jax.new_ref(eight())
    return [came_of(lambda: f(ref, eight())) for _ in range(2)], told(ref[...])


@observed
def what_a_captured_array_becomes_later(work):
    def step(i, carry):
        return carry + jnp.asarray(captured)[i]

    captured, scale = np.arange(8, dtype=np.float32), np.ones((), np.float32)
    functions = [
        jax.jit(lambda x: work(x) + captured * scale),
        jax.jit(lambda x: (captured, captured[::2], work(captured))),
        jax.jit(lambda x: work(x) + lax.fori_loop(0, 2, step, x)),
    ]
    before = [told(f(eight())) for f in functions]
    captured[:] = 100
    scale[...] = 7
    return before, [told(f(eight())) for f in functions]


@observed
def donated_within_transformations(work):
    f = jax.jit(work, donate_argnums=0)
    x, y, z = eight(), eight(), eight()[None]
    out = [told(jax.jvp(f, (x,), (y,))), told(jax.vmap(f)(z))]
    with jax.ensure_compile_time_eval():
        w = eight()
        out.append(came_of(lambda: f(w)))
    return out, [each.is_deleted() for each in (x, y, z, w)]


@observed
def results_that_are_no_arrays(work):
    return [
        came_of(lambda: jax.jit(lambda x: (work(x), thing))(eight()))  # noqa: B023
        for thing in ("text", object, None, 3, np.float64(2), {"a": ()})
    ]


@observed
def ahead_of_time(work):
    f = jax.jit(lambda x: work(x) + 1, donate_argnums=())
    f(eight())
    lowered = f.lower(eight())
    compiled = lowered.compile()
    return (
        told(compiled(eight())), str(lowered.in_avals), came_of(lambda: compiled(eight()[:3])),
        f.eval_shape(eight()), str(f.trace(eight()).out_info), f.__name__, repr(f).split("0x")[0],
        lowered.args_info,
    )  # fmt: skip


@observed
def derivatives(work):
    f = jax.jit(lambda x: work(x))
    x = eight()
    if work is double:
        return told(jax.jvp(f, (x,), (x,)))
    g = jax.jit(lambda x: (f(x) * x).sum())
    made = jax.value_and_grad(g)(x), jax.vmap(f)(x), jax.jvp(g, (x,), (x,)), jax.vjp(f, x)[1](x)
    return told(made)


@observed
def in_64_bits(work):
    f = jax.jit(lambda x, n: (work(x) + n, n))
    enable = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
    x, wide = eight(), np.arange(8.0)
    first = came_of(lambda: f(wide, 2))
    with enable(True):
        second = [came_of(lambda: f(*args)) for args in ((x, 2), (wide, 2**40), (x, wide))]  # noqa: B023
    return first, second, came_of(lambda: f(wide, 2)), came_of(lambda: f(x, wide))


@observed
def inside_other_functions(work):
    f = jax.jit(lambda x: work(x))
    return [
        came_of(call)
        for call in (
            lambda: lax.scan(lambda c, _: (f(c), None), eight(), None, length=2)[0],
            lambda: jax.make_jaxpr(f)(eight()).out_avals,
            lambda: jax.eval_shape(f, eight()),
            lambda: jax.vmap(f)(eight().reshape(2, 4)),
        )
    ]


@observed
def threads_with_configurations_of_their_own(work):
    f = jax.jit(lambda x: work(x))
    enable = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
    found: dict[bool, list[str]] = {True: [], False: []}

    def run(wide):
        with enable(wide):
            for _ in range(5):
                found[wide].append(str(f(np.arange(8.0)).dtype))

    threads = [threading.Thread(target=run, args=(wide,)) for wide in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@observed
def functions_of_every_kind(work):
    class Module:
        scale = 3

        @functools.partial(jax.jit, static_argnums=0)
        def method(self, x):
            return work(x) * self.scale

        def __call__(self, x):
            return work(x) + self.scale

    module = Module()
    calls = [
        lambda: module.method(eight()),
        lambda: jax.jit(module)(eight()),
        lambda: jax.jit(module.__call__)(eight()),
        lambda: jax.jit(functools.partial(lambda y, x: work(x) + y, 2))(eight()),
    ]
    return [came_of(call) for call in calls for _ in range(2)]


def test_the_functions_here_run_in_numpy(setting):
    """Else nothing is compared."""
    for work in (double, plain):
        setting(scope="all" if work is plain else "kernels")
        with pallas_shim.active():
            jax.jit(lambda x: work(x))(eight())  # noqa: B023
            assert "numpy" in rungs()
