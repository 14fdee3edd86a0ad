"""What the machine computes, against NumPy. Run by test_devices.py in processes of 8 devices:

    python -m tests.machine.cases NAME ...

writes a JSON line for each case: its name, the error if it failed, and the rungs of its kernels.
"""

from __future__ import annotations

import functools
import json
import sys
import traceback
import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import NamedSharding

from tests.machine import kernels as k
from tests.machine.kernels import LOGICAL, MESH, P

CASES: dict[str, Callable[[], None]] = {}


def case(*values, name=None):
    """Registers a function, once for each of the values."""

    def register(function):
        base = name or function.__name__
        if not values:
            CASES[base] = function
        for value in values:
            label = value if isinstance(value, (int, str)) else getattr(value, "__name__", value)
            CASES[f"{base}[{label}]"] = functools.partial(function, value)
        return function

    return register


def equal(got, want):
    np.testing.assert_array_equal(np.asarray(got), np.asarray(want))


def local(shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


# -- kernels that talk ------------------------------------------------------------------------


@case(2, 3, 4, 8)
def ring_all_gather(n):
    x = k.numbers(n * 8, 128)
    f = jax.jit(k.over(k.ring_all_gather(n, local((8, 128))), k.mesh(n), P("x"), P("x")))
    for _ in range(3):
        y = f(x)
        equal(y, np.tile(np.asarray(x).reshape(n, 8, 128), (n, 1, 1)))
        assert y.sharding == NamedSharding(k.mesh(n), P("x")) and y.committed


@case("vmem", "any")
def ring_all_gather_in(space):
    x = k.numbers(4 * 8, 128, dtype=jnp.bfloat16)
    where = {"vmem": pltpu.VMEM, "any": pl.ANY}[space]
    gather = k.ring_all_gather(4, local((8, 128), jnp.bfloat16), where)
    y = jax.jit(k.over(gather, k.mesh(4), P("x"), P("x")))(x)
    equal(y, np.tile(np.asarray(x).reshape(4, 8, 128), (4, 1, 1)))


FORMS = {
    "logical": ({"device_id_type": LOGICAL}, lambda me, n: lax.rem(me + 1, n)),
    "tuple": ({"device_id_type": MESH}, lambda me, n: (lax.rem(me + 1, n),)),
    "scalar": ({"device_id_type": MESH}, lambda me, n: lax.rem(me + 1, n)),
    "dict": ({"device_id_type": MESH}, lambda me, n: {"x": lax.rem(me + 1, n)}),
}


@case(*FORMS)
def permute_by(form):
    where, to = FORMS[form]
    x = k.numbers(5 * 8, 128)
    f = jax.jit(k.over(k.permute(local((8, 128)), to, **where), k.mesh(5), P("x"), P("x")))
    equal(f(x), np.roll(np.asarray(x), 8, 0))


@case("coordinates", "one axis", "joint", "logical")
def permute_in_two_dimensions(form):
    """Along x of a mesh of 2 x 4, or round all eight."""
    on = k.mesh(2, 4, names="yx")

    def to(me, n):
        right = lax.rem(me + 1, n)
        both = lax.rem(lax.axis_index("y") * n + me + 1, 8)
        return {"coordinates": (lax.axis_index("y"), right), "one axis": {"x": right},
                "joint": {("y", "x"): both}, "logical": both}[form]  # fmt: skip

    def kernel(x_ref, o_ref, send, recv):
        def together():
            sem = pltpu.get_barrier_semaphore()
            for i in range(8):
                k.signal(sem, 1, device_id=i, device_id_type=LOGICAL)
            k.wait(sem, 8)

        together()
        copy = pltpu.make_async_remote_copy(
            x_ref, o_ref, send, recv, device_id=to(lax.axis_index("x"), lax.axis_size("x")),
            device_id_type=LOGICAL if form == "logical" else MESH,
        )  # fmt: skip
        copy.start()
        copy.wait()

    x = k.numbers(8 * 2, 16)
    run = k.call(kernel, local((2, 16)), scratch=[k.DMA, k.DMA])
    y = jax.jit(k.over(run, on, P(("y", "x")), P(("y", "x"))))(x)
    parts = np.asarray(x).reshape(2, 4, 2, 16)
    if form in ("coordinates", "one axis"):
        equal(y, np.roll(parts, 1, 1).reshape(16, 16))
    else:
        equal(y, np.roll(parts.reshape(8, 2, 16), 1, 0).reshape(16, 16))


@case(2, 3, 4)
def ring_reduce_scatter(n):
    x = k.numbers(n, n, 8, 128)
    shard = local((n, 8, 128))
    run = k.ring_reduce_scatter(n, shard)
    y = jax.jit(k.over(lambda x: run(x[0])[None], k.mesh(n), P("x"), P("x")))(x)
    equal(y, np.asarray(x).sum(0))


@case()
def slices_on_both_sides():
    def kernel(x_ref, o_ref, send, recv):
        me, n = lax.axis_index("x"), lax.axis_size("x")
        o_ref[...] = jnp.zeros_like(o_ref)
        k.barrier()
        copy = pltpu.make_async_remote_copy(
            x_ref.at[pl.ds(me, 3), pl.ds(128, 128)], o_ref.at[pl.ds(8 - me, 3), pl.ds(0, 128)],
            send, recv, device_id=(lax.rem(me + 1, n),), device_id_type=MESH,
        )  # fmt: skip
        copy.start()
        copy.wait()

    x = k.numbers(4 * 16, 256)
    run = k.call(kernel, local((16, 256)), scratch=[k.DMA, k.DMA], space=pltpu.VMEM)
    y = jax.jit(k.over(run, k.mesh(4), P("x"), P("x")))(x)
    want = np.zeros((4, 16, 256), np.float32)
    for me, part in enumerate(np.asarray(x).reshape(4, 16, 256)):
        want[(me + 1) % 4, 8 - me : 11 - me, :128] = part[me : me + 3, 128:]
    equal(y, want.reshape(64, 256))


@case()
def semaphores_one_by_one():
    """Arrays of semaphores, counts, a wait that leaves the count, a read."""

    def kernel(o_ref, sems):
        me, n = lax.axis_index("x"), lax.axis_size("x")
        for i in range(3):
            k.signal(sems.at[i], i + 1, device_id=lax.rem(me + i, n), device_id_type=LOGICAL)
        for i in range(3):
            k.wait(sems.at[i], i + 1, decrement=False)
            read = getattr(pl, "semaphore_read", None) or pltpu.semaphore_read
            o_ref[i] = read(sems.at[i])
            k.wait(sems.at[i], i + 1)
        o_ref[3] = me

    run = k.call(kernel, local((4,), jnp.int32), scratch=[k.REGULAR((3,))], space=pltpu.SMEM,
                 inputs=0)  # fmt: skip
    y = jax.jit(k.over(lambda: run(), k.mesh(4), (), P("x")))()
    equal(y, np.array([[1, 2, 3, me] for me in range(4)]).ravel())


@case()
def memory_of_run_scoped():
    def kernel(x_ref, o_ref):
        def body(buffer, ready, send, recv):
            me, n = lax.axis_index("x"), lax.axis_size("x")
            to = lax.rem(me + 1, n)
            k.signal(ready, 1, device_id=lax.rem(me + n - 1, n), device_id_type=LOGICAL)
            k.wait(ready, 1)
            copy = pltpu.make_async_remote_copy(
                x_ref, buffer, send, recv, device_id=to, device_id_type=LOGICAL
            )
            copy.start()
            copy.wait_send()
            copy.wait_recv()
            o_ref[...] = buffer[...] + 1

        pl.run_scoped(body, pltpu.VMEM((8, 128), jnp.float32), k.REGULAR, k.DMA, k.DMA)

    x = k.numbers(3 * 8, 128)
    run = k.call(kernel, local((8, 128)), space=pltpu.VMEM)
    equal(jax.jit(k.over(run, k.mesh(3), P("x"), P("x")))(x), np.roll(np.asarray(x), 8, 0) + 1)


@case()
def a_grid_that_talks():
    """Each cell sends one block on."""

    def kernel(x_ref, o_ref, got, send, recv):
        i, me, n = pl.program_id(0), lax.axis_index("x"), lax.axis_size("x")

        @pl.when(i == 0)
        def _():
            k.barrier()

        copy = pltpu.make_async_remote_copy(
            x_ref, got.at[i], send, recv.at[i], device_id=(lax.rem(me + 1, n),),
            device_id_type=MESH,
        )  # fmt: skip
        copy.start()
        copy.wait()
        o_ref[...] = got[i] * 2

    def run(x):
        block = pl.BlockSpec((8, 128), lambda i: (i, 0))
        return pl.pallas_call(
            kernel, grid=(4,), in_specs=[block], out_specs=block, out_shape=local(x.shape),
            scratch_shapes=[pltpu.VMEM((4, 8, 128), jnp.float32), k.DMA, k.DMA((4,))],
            compiler_params=pltpu.CompilerParams(collective_id=0),
        )(x)  # fmt: skip

    x = k.numbers(2 * 32, 128)
    equal(jax.jit(k.over(run, k.mesh(2), P("x"), P("x")))(x), 2 * np.roll(np.asarray(x), 32, 0))


@case()
def devices_that_do_different_things():
    """Only the first sends; each of the others passes it on when it has it."""

    def kernel(x_ref, o_ref, send, recv):
        me, n = lax.axis_index("x"), lax.axis_size("x")
        copy = pltpu.make_async_remote_copy(
            o_ref, o_ref, send, recv, device_id=(lax.rem(me + 1, n),), device_id_type=MESH
        )

        @pl.when(me == 0)
        def _():
            o_ref[...] = x_ref[...]

        @pl.when(me > 0)
        def _():
            copy.wait_recv()

        @pl.when(me < n - 1)
        def _():
            copy.start()
            copy.wait_send()

    x = k.numbers(6 * 8, 128)
    run = k.call(kernel, local((8, 128)), scratch=[k.DMA, k.DMA], space=pltpu.VMEM)
    y = jax.jit(k.over(run, k.mesh(6), P("x"), P("x")))(x)
    equal(y, np.tile(np.asarray(x)[:8], (6, 1)))


@case()
def results_that_some_receive():
    """The others' are undefined, which is NaN here."""

    def kernel(x_ref, o_ref, send, recv):
        k.barrier()
        me = lax.axis_index("x")
        copy = pltpu.make_async_remote_copy(
            x_ref, o_ref, send, recv, device_id={"x": me + 1}, device_id_type=MESH
        )

        @pl.when(me % 2 == 0)
        def _():
            copy.start()
            copy.wait_send()

        @pl.when(me % 2 == 1)
        def _():
            copy.wait_recv()

    x = k.numbers(32, 128)
    run = k.call(kernel, local((8, 128)), scratch=[k.DMA, k.DMA])
    f = jax.jit(k.over(run, k.mesh(4), P("x"), P("x")))
    want = np.full((32, 128), np.nan, np.float32)
    want[8:16], want[24:] = x[:8], x[16:24]
    for _ in range(2):
        equal(f(x), want)
    rounds = k.over(
        lambda x: lax.fori_loop(0, 3, lambda i, _: run(x + i), x), k.mesh(4), P("x"), P("x")
    )
    want[8:16], want[24:] = x[:8] + 2, x[16:24] + 2
    equal(jax.jit(rounds)(x), want)


@case()
def in_a_loop():
    """The kernel's memory is the same in every round, its results aren't."""
    right = k.permute(local((8, 128)), FORMS["dict"][1], **FORMS["dict"][0])

    def steps(x):
        def step(x, _):
            y = right(x)
            return y, y + 0

        return lax.scan(step, x, None, length=5)

    x = k.numbers(4 * 8, 128)
    last, all_ = jax.jit(k.over(steps, k.mesh(4), P("x"), (P("x"), P(None, "x"))))(x)
    want = [np.roll(np.asarray(x), 8 * i, 0) for i in range(1, 6)]
    equal(last, want[-1])
    equal(all_, np.stack(want))


@case()
def two_kernels_and_a_collective():
    n = 4
    right = k.permute(local((8, 128)), FORMS["tuple"][1], **FORMS["tuple"][0])

    def f(x):
        y = right(right(x)) + lax.psum(x, "x")
        return k.double(y)

    x = k.numbers(n * 8, 128)
    p = np.asarray(x).reshape(n, 8, 128)
    want = np.roll(p, 2, 0) + p.sum(0)
    equal(jax.jit(k.over(f, k.mesh(n), P("x"), P("x")))(x), 2 * want.reshape(n * 8, 128))


@case()
def any_order_gives_the_same():
    """Programs that are right don't depend on who runs when."""
    from pallas_shim.evaluator import passes
    from pallas_shim.evaluator.execute import Executable
    from pallas_shim.evaluator.lower import lower
    from pallas_shim.evaluator.machine import order
    from pallas_shim.evaluator.machine.order import Order

    on = k.mesh(4)
    reduce = k.ring_reduce_scatter(4, local((4, 8, 128)))
    right = k.permute(local((8, 128)), FORMS["dict"][1], **FORMS["dict"][0])

    def f(x):
        mine = k.double(reduce(x)) + lax.psum(x[0], "x")
        return right(right(mine)), k.ring_all_gather(4, local((8, 128)))(mine)

    x = k.numbers(16, 8, 128)
    mapped = jax.jit(k.over(f, on, P("x"), P("x")))
    want = [np.asarray(y) for y in mapped(x)]
    jaxpr = jax.make_jaxpr(mapped)(x)
    orders = [Order(), order.LATE, *map(Order, range(12)), Order(choices=(1, 1, 2, 0, 1, 3))]
    for program in (
        lower(jaxpr), passes.optimise(lower(jaxpr)), lower(jaxpr, timed=True)
    ):  # fmt: skip
        for each in orders:
            with order.running(each):
                got = Executable(program, lambda _: False)(np.asarray(x))
            for one, expected in zip(got, want, strict=True):
                equal(one, expected)


def in_other_orders(kernel, x, count, scratch=(), n=3):
    """Explores a kernel on some devices whose shard is (8, 128)."""
    from pallas_shim.evaluator import schedules
    from pallas_shim.evaluator.execute import Executable
    from pallas_shim.evaluator.lower import lower

    run = k.call(kernel, local((8, 128)), scratch=scratch, space=pltpu.VMEM)
    f = jax.jit(k.over(run, k.mesh(n), P("x"), P("x")))
    program = lower(jax.make_jaxpr(f)(x), timed=True)
    equal(f(x), Executable(program, lambda _: False)(np.asarray(x))[0])
    return schedules.explore(Executable(program, lambda _: False), [np.asarray(x)], count)


def right_of(copy_from, copy_to, send, recv):
    me, n = lax.axis_index("x"), lax.axis_size("x")
    return pltpu.make_async_remote_copy(
        copy_from, copy_to, send, recv, device_id={"x": lax.rem(me + 1, n)}, device_id_type=MESH
    )


@case()
def a_right_kernel_in_other_orders():
    def kernel(x_ref, o_ref, got, send, recv):
        k.barrier()
        copy = right_of(x_ref, got, send, recv)
        copy.start()
        copy.wait_recv()
        o_ref[...] = got[...] + 1
        copy.wait_send()

    found = in_other_orders(kernel, k.numbers(24, 128), 80, [VMEM, k.DMA, k.DMA])
    assert found.other is None and found.runs == 80, found


@case("reads early", "sends again too early", "no barrier")
def a_wrong_kernel_in_other_orders(fault):
    """Each computes the right thing in the programs' own order."""

    def kernel(x_ref, o_ref, got, send, recv):
        if fault != "no barrier":
            k.barrier()
        copy = right_of(x_ref, got, send, recv)
        if fault == "no barrier":
            got[...] = jnp.zeros_like(got)
            k.barrier()
            got[...] = jnp.zeros_like(got)
        copy.start()
        if fault == "reads early":
            copy.wait_send()
            # The programs' own order lets all others send first.
            k.signal(pltpu.get_barrier_semaphore(), 1)
            k.wait(pltpu.get_barrier_semaphore(), 1)
            o_ref[...] = got[...]
            copy.wait_recv()
            o_ref[...] = o_ref[...] + got[...]
        elif fault == "sends again too early":
            again = right_of(o_ref, got, send, recv)
            copy.wait()
            o_ref[...] = x_ref[...]
            again.start()
            o_ref[...] = o_ref[...] + got[...]
            again.wait()
        else:
            copy.wait()
            o_ref[...] = got[...]

    found = in_other_orders(kernel, k.numbers(24, 128), 400, [VMEM, k.DMA, k.DMA])
    assert found.other is not None, found


def races(kernel, x, scratch=(), n=3, space=pltpu.VMEM):
    """What watching a kernel on some devices finds."""
    run = k.call(kernel, local((8, 128)), scratch=scratch, space=space)
    return found_in(jax.jit(k.over(run, k.mesh(n), P("x"), P("x"))), x)


def found_in(f, x):
    """What watching a function of one result finds."""
    from pallas_shim.evaluator.execute import Executable
    from pallas_shim.evaluator.lower import lower
    from pallas_shim.evaluator.machine import order
    from pallas_shim.evaluator.machine.clocks import Clocks

    found: list = []
    executable = Executable(lower(jax.make_jaxpr(f)(x), timed=True, on_mesh=True), lambda _: False)
    with order.running(order.OWN_ORDER, Clocks(found.append)):
        (got,) = executable(np.asarray(x))
    equal(f(x), got)
    return found


VMEM = pltpu.VMEM((8, 128), jnp.float32)
UNORDERED = {
    "right": [],
    "no barrier": ["copy-unordered"],
    "not awaited": ["copy-unordered"],
    "source changed": ["copy-not-awaited"],
    "one semaphore for two": ["copy-unordered"],
    "one row beside the other": [],
    "a row too many": ["copy-unordered"],
    "signal before the store": ["copy-unordered"],
    "a masked store beside a row": [],
    "a masked store over a row": ["copy-unordered"],
    "a masked load beside a row": [],
    "a masked load over a row": ["copy-unordered"],
    "indices beside a row": [],
    "indices over a row": ["copy-unordered"],
    "equal copies": [],
}


@case(*UNORDERED)
def races_between_devices(fault):
    def kernel(x_ref, o_ref, got, common, send, recv, done):
        me, n = lax.axis_index("x"), lax.axis_size("x")
        got[...] = jnp.zeros_like(got)
        if fault != "no barrier":
            k.barrier()
        else:
            k.signal(done, 1, device_id={"x": lax.rem(me + n - 1, n)}, device_id_type=MESH)
        rows = pl.ds(0, 4) if "row" in fault else pl.ds(0, 8)
        copy = right_of(x_ref.at[rows], got.at[rows], send, recv)
        if fault != "equal copies":
            copy.start()
        if fault == "not awaited":
            o_ref[...] = got[...]
        if fault == "one row beside the other":
            got[4:] = jnp.ones((4, 128))
        if fault == "a row too many":
            got[3:] = jnp.ones((5, 128))
        over = "over" in fault
        chosen = lax.broadcasted_iota(jnp.int32, (8, 128), 0) >= (3 if over else 4)
        if "masked store" in fault:
            pltpu.store(got, jnp.ones_like(got), mask=chosen)
        if "masked load" in fault:
            o_ref[...] = jnp.where(chosen, pltpu.load(got, mask=chosen), 0)
        if "indices" in fault:
            at = lax.iota(jnp.int32, 2)
            o_ref[0, 0:2] = got[(3 if over else 4) + 2 * at, at]
        if fault == "equal copies":
            x_ref[...] = jnp.ones_like(x_ref)
            equal_copy = pltpu.make_async_remote_copy(
                x_ref, common, send, done, device_id={"x": 0}, device_id_type=MESH
            )
            equal_copy.start()
            equal_copy.wait_send()

            @pl.when(me == 0)
            def _():
                for _ in range(3):
                    equal_copy.wait_recv()

        if fault == "source changed":
            x_ref[...] = jnp.zeros_like(x_ref)
        if fault == "one semaphore for two":
            other = right_of(x_ref, common, send, recv)
            other.start()
            other.wait_recv()
            o_ref[...] = got[...]
            other.wait_send()
        if fault != "equal copies":
            copy.wait()
        if fault == "no barrier":
            k.wait(done, 1)
        if fault == "signal before the store":

            @pl.when(me == 1)
            def _():
                k.wait(done, 1)
                other = pltpu.make_async_remote_copy(
                    x_ref, common, send, recv, device_id={"x": 0}, device_id_type=MESH
                )
                other.start()
                other.wait_send()

            @pl.when(me == 0)
            def _():
                k.signal(done, 1, device_id={"x": 1}, device_id_type=MESH)
                common[...] = jnp.zeros_like(common)
                right_of(x_ref, common, send, recv).wait_recv()

        o_ref[...] = got[...]

    done = k.DMA if fault == "equal copies" else k.REGULAR
    found = races(kernel, k.numbers(24, 128), [VMEM, VMEM, k.DMA, k.DMA, done])
    rules = [f.rule for f in found if f.kind == "races"]
    assert sorted(set(rules)) == UNORDERED[fault], found
    for finding in found:
        assert finding.kernel == "kernel" and all("cases.py" in a.where for a in finding.accesses)


@case()
def the_cells_of_a_race():
    """Each cell sends its block to the right, and uses what came in the cell before it."""

    def kernel(x_ref, o_ref, got, send, recv):
        i = pl.program_id(0)

        @pl.when(i == 0)
        def _():
            got[...] = jnp.zeros_like(got)
            k.barrier()

        copy = right_of(x_ref, got, send, recv)
        copy.start()
        copy.wait_send()

        @pl.when(i == 1)
        def _():
            o_ref[...] = got[...]

        copy.wait_recv()

    def run(x):
        block = pl.BlockSpec((8, 128), lambda i, _: (i, 0))
        return pl.pallas_call(
            kernel, grid=(2, 1), in_specs=[block], out_specs=spec, out_shape=local((8, 128)),
            scratch_shapes=[VMEM, k.DMA, k.DMA],
            compiler_params=pltpu.CompilerParams(collective_id=0),
        )(x)  # fmt: skip

    spec = pl.BlockSpec((8, 128), lambda i, _: (0, 0))
    x = k.numbers(2 * 16, 128)
    found = found_in(jax.jit(k.over(run, k.mesh(2), P("x"), P("x"))), x)
    cells = {
        (f.rule, *sorted((a.what, a.cell) for a in f.accesses)) for f in found if f.ref == "got"
    }
    assert ("copy-unordered", ("copies into", (1, 0)), ("reads", (1, 0))) in cells, cells
    assert all(a.cell is not None and a.program for f in found for a in f.accesses), found


@case()
def a_wait_for_as_many_rows_as_came_in_checked_memory():
    """A device that gets two copies waits for twice its rows at once."""

    def kernel(x_ref, o_ref, send, recv):
        me = lax.axis_index("x")
        for rows in (pl.ds(0, 4), pl.ds(4, 4)):
            copy = pltpu.make_async_remote_copy(
                x_ref.at[rows], o_ref.at[rows], send, recv,
                device_id=(1,), device_id_type=MESH,
            )  # fmt: skip

            @pl.when(me == 0)
            def _(copy=copy):
                copy.start()
                copy.wait_send()

        came = jnp.where(me == 1, 2, 0)

        @pl.when(came > 0)
        def _():
            all_rows = pl.ds(0, 4 * came)
            pltpu.make_async_copy(x_ref.at[all_rows], o_ref.at[all_rows], recv).wait()

    x = k.numbers(2 * 8, 128)
    run = k.call(kernel, local((8, 128)), scratch=[k.DMA, k.DMA], interpret=pltpu.InterpretParams())
    y = jax.jit(k.over(run, k.mesh(2), P("x"), P("x")))(x)
    equal(y[8:], np.asarray(x)[:8])


@case("right", "not stored", "a row left out")
def undefined_elements_that_other_devices_could_have_written(fault):
    """The first device sends what it has stored; each of the others passes it on."""
    from tests.check.harness import check

    def kernel(x_ref, o_ref, send, recv):
        me, n = lax.axis_index("x"), lax.axis_size("x")
        rows = pl.ds(0, 7) if fault == "a row left out" else pl.ds(0, 8)
        copy = right_of(o_ref.at[rows], o_ref.at[rows], send, recv)

        @pl.when(me == 0)
        def _():
            if fault != "not stored":
                o_ref[...] = x_ref[...]

        @pl.when(me > 0)
        def _():
            copy.wait_recv()

        @pl.when(me < n - 1)
        def _():
            copy.start()
            copy.wait_send()

    run = k.call(kernel, local((8, 128)), scratch=[k.DMA, k.DMA], space=pltpu.VMEM)
    x = k.numbers(3 * 8, 128)
    f = jax.jit(k.over(run, k.mesh(3), P("x"), P("x")))
    f(x)
    rules = [] if fault == "right" else ["uninitialized/never-written"]
    found = check(f, x)
    assert found.rules == rules, found.findings
    assert [finding.ref for finding in found.findings] == ["o_ref"] * len(rules)


@case()
def no_race_where_a_later_kernel_waits_for_the_copy():
    """One kernel starts a copy, and hands its semaphores on to others that wait for them."""
    n = 4
    sem = pltpu.SEMAPHORE

    def start(x_ref, same_ref, o_ref, send, recv):
        sent_by = lax.rem(lax.axis_index("x") + n - 1, n)
        ready = pltpu.get_barrier_semaphore()
        k.signal(ready, 1, device_id={"x": sent_by}, device_id_type=MESH)
        k.wait(ready, 1)
        right_of(x_ref, o_ref, send, recv).start()

    def waits(x_ref, sem_ref, o_ref):
        pltpu.make_async_copy(x_ref, x_ref, sem_ref).wait()

    def passed_on(_, x):
        like = local((8, 128))
        x, y, send, recv = pl.pallas_call(
            start, out_shape=(like, like, k.DMA(()), k.DMA(())),
            in_specs=[k.spec(k.ANY)], out_specs=tuple(map(k.spec, (k.ANY, k.ANY, sem, sem))),
            input_output_aliases={0: 0}, compiler_params=pltpu.CompilerParams(collective_id=0),
        )(x)  # fmt: skip
        done = pl.pallas_call(
            waits, out_shape=like, in_specs=[k.spec(k.ANY), k.spec(sem)], out_specs=k.spec(k.ANY),
            input_output_aliases={0: 0},
        )  # fmt: skip
        done(x, send)
        return done(y, recv)

    x = k.numbers(n * 8, 128)
    f = jax.jit(k.over(lambda x: lax.fori_loop(0, 3, passed_on, x), k.mesh(n), P("x"), P("x")))
    equal(f(x), np.roll(np.asarray(x), 3 * 8, 0))
    assert not found_in(f, x)


@case()
def a_race_between_cores():
    """The second core reads what the first may not have written yet."""
    from pallas_shim.evaluator.execute import Executable
    from pallas_shim.evaluator.lower import lower
    from pallas_shim.evaluator.machine import order
    from pallas_shim.evaluator.machine.clocks import Clocks

    def run(waits):
        def body(refs):
            x_ref, o_ref = refs

            @pl.core_map(tensor_cores(2))
            def _():
                def scoped(ready, part):
                    me = lax.axis_index("core")

                    @pl.when(me == 0)
                    def _():
                        pltpu.sync_copy(x_ref, part)
                        pltpu.sync_copy(part, o_ref)
                        k.signal(ready, 1, core_index=1)

                    @pl.when(me == 1)
                    def _():
                        if waits:
                            k.wait(ready, 1)
                        pltpu.sync_copy(o_ref, part)
                        if not waits:
                            k.wait(ready, 1)

                pl.run_scoped(scoped, k.REGULAR, VMEM)

        f = jax.jit(lambda x: k.double(pl.run_state(body)((x, jnp.zeros_like(x)))[1]))
        x = k.numbers(8, 128)
        found: list = []
        executable = Executable(lower(jax.make_jaxpr(f)(x), timed=True), lambda _: False)
        with order.running(order.OWN_ORDER, Clocks(found.append)):
            executable(np.asarray(x))
        equal(f(x), 2 * np.asarray(x))
        return found

    assert run(True) == []
    (finding,) = run(False)
    assert {a.program for a in finding.accesses} == {"core 0 (core=0)", "core 1 (core=1)"}


@case("equal values", "in place")
def copies_of_subcores(what):
    """All write the same, or each writes where its neighbour may not have read yet."""
    from jax.experimental.pallas import tpu_sc as plsc

    from tests.check.harness import check

    if not hasattr(pl, "kernel") or not hasattr(plsc, "fetch_and_add"):
        return double_for_the_report()
    mesh = plsc.VectorSubcoreMesh(
        core_axis_name="core", subcore_axis_name="subcore", num_cores=1, num_subcores=4
    )

    def kernel(o_ref, own_ref):
        me = lax.axis_index("subcore")
        own_ref[...] = jnp.full(16, 0 if what == "equal values" else me, jnp.int32)
        pltpu.sync_copy(own_ref, o_ref.at[0 if what == "equal values" else me])
        plsc.subcore_barrier()
        if what == "in place":
            pltpu.sync_copy(o_ref.at[(me + 1) % 4], own_ref)
            pltpu.sync_copy(own_ref, o_ref.at[me])

    run = pl.kernel(
        kernel, out_type=jax.ShapeDtypeStruct((4, 16), jnp.int32), mesh=mesh,
        scratch_types=[pltpu.VMEM((16,), jnp.int32)],
    )  # fmt: skip
    findings = check(run, kinds=["races"]).findings
    assert {f.rule for f in findings} == (
        set() if what == "equal values" else {"copy-unordered"}
    ), findings
    for finding in findings:
        assert finding.ref == "o_ref" and len(finding.accesses) == 2
        assert all("tests/machine/cases.py:" in (a.where or "") for a in finding.accesses)
    double_for_the_report()


@case()
def what_a_view_says_of_copies_between_devices():
    from pallas_shim import recording

    jax.clear_caches()
    f = jax.jit(k.over(
        k.permute(local((8, 128)), lambda me, n: ((me + 1) % n,), device_id_type=MESH), k.mesh(4),
        P("x"), P("x"),
    ))  # fmt: skip
    x = k.numbers(32, 128)
    with recording.record("a ring") as trace:
        equal(f(x), np.roll(x, 8, 0))
    (kernel,) = trace.kernels
    assert [run.program for run in kernel.runs] == [f"device {n} (x={n})" for n in range(4)]
    copies = [event for event in kernel.events if event.kind == "copy"]
    # Each device's copy counts on a semaphore of its own, and on one of its neighbour's.
    assert len(copies) == 8 and {copy.nbytes for copy in copies} == {8 * 128 * 4}
    assert all(copy.awaited for copy in copies)
    assert [run.copied for run in kernel.runs] == [[8 * 128 * 4]] * 4
    assert {copy.owner for copy in copies} == {run.program for run in kernel.runs}
    assert {copy.semaphore for copy in copies} == {"send_sem", "recv_sem"}
    jax.clear_caches()


@case()
def what_a_view_says_of_cores():
    from pallas_shim import recording

    jax.clear_caches()
    with recording.record("two cores") as trace:
        CASES["cores_that_pass_something_on[2]"]()
    (kernel,) = trace.kernels
    assert [run.program.split()[:2] for run in kernel.runs] == [["core", "0"], ["core", "1"]]
    assert all(run.recorded == run.cells == 1 for run in kernel.runs)
    assert {event.kind for event in kernel.events} == {"copy", "signal", "wait"}
    assert not trace.notes
    jax.clear_caches()


@case()
def several_threads_at_once():
    import concurrent.futures

    f = jax.jit(k.over(k.ring_all_gather(4, local((8, 128))), k.mesh(4), P("x"), P("x")))
    xs = [k.numbers(32, 128, seed=seed) for seed in range(4)]
    f(xs[0])

    def check(x):
        for _ in range(20):
            equal(f(x), np.tile(np.asarray(x).reshape(4, 8, 128), (4, 1, 1)))

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(check, xs))


@case()
def two_meshes_of_the_same_devices():
    line, square = k.mesh(4), k.mesh(2, 2, names="ab")

    def f(x):
        y = k.over(lambda x: k.double(lax.psum(x, "x")), line, P("x"), P())(x)
        return k.over(lambda y: y + lax.axis_index("b"), square, P("a", "b"), P("a", "b"))(y)

    x = k.numbers(16, 8)
    total = 2 * np.asarray(x).reshape(4, 4, 8).sum(0)
    equal(jax.jit(f)(x), total + np.repeat([0, 1], 4))


# -- cores ------------------------------------------------------------------------------------


def tensor_cores(count):
    make = pltpu.create_tensorcore_mesh
    return make("core", num_cores=count)


@case(2, 4)
def cores_that_pass_something_on(count):
    """Each core waits for the one before it, adds, and signals the one after it."""
    x = k.numbers(count, 8, 128)

    def body(refs):
        x_ref, o_ref = refs

        @pl.core_map(tensor_cores(count))
        def _():
            me = lax.axis_index("core")

            def scoped(ready, part, total):
                pltpu.sync_copy(x_ref.at[me], part)

                @pl.when(me > 0)
                def _():
                    k.wait(ready, 1)
                    pltpu.sync_copy(o_ref.at[jnp.maximum(me - 1, 0)], total)
                    part[...] = part[...] + total[...]

                pltpu.sync_copy(part, o_ref.at[me])

                @pl.when(me < count - 1)
                def _():
                    k.signal(ready, 1, core_index=me + 1)

            vmem = pltpu.VMEM((8, 128), jnp.float32)
            pl.run_scoped(scoped, k.REGULAR, vmem, vmem)

    run = jax.jit(lambda x: pl.run_state(body)((x, jnp.zeros_like(x)))[1])
    for _ in range(2):
        equal(run(x), np.cumsum(np.asarray(x), 0))


@case()
def cores_of_several_devices():
    """The first cores of all devices send to the right, each tells its second core."""
    x = k.numbers(3, 2, 8, 128)

    def kernel(x_ref, o_ref):
        me, n, core = lax.axis_index("x"), lax.axis_size("x"), lax.axis_index("core")

        def scoped(told, send, recv):
            @pl.when(core == 0)
            def _():
                copy = pltpu.make_async_remote_copy(
                    x_ref, o_ref, send, recv, device_id={"x": lax.rem(me + 1, n)},
                    device_id_type=MESH,
                )  # fmt: skip
                copy.start()
                copy.wait()
                k.signal(told, 1, device_id={"core": 1}, device_id_type=MESH)

            @pl.when(core == 1)
            def _():
                k.wait(told, 1)

        pl.run_scoped(scoped, k.REGULAR, k.DMA, k.DMA)

    def run(x):
        def body(refs):
            pl.core_map(tensor_cores(2))(lambda: kernel(*refs))

        return pl.run_state(body)((x, jnp.zeros_like(x)))[1]

    equal(jax.jit(k.over(run, k.mesh(3), P("x"), P("x")))(x), np.roll(np.asarray(x), 1, 0))


@case()
def the_cores_that_the_tpu_has():
    """Inside shard_map JAX would ask the devices, which are CPUs."""
    if "create_tensorcore_mesh" not in vars(pltpu):
        return double_for_the_report()

    def run(x):
        def body(refs):
            x_ref, o_ref = refs
            cores = pltpu.create_tensorcore_mesh("core")

            @pl.core_map(cores)
            def _():
                pltpu.sync_copy(x_ref, o_ref)

        return k.double(pl.run_state(body)((x, jnp.zeros_like(x)))[1])

    x = k.numbers(4, 8, 128)
    equal(jax.jit(k.over(run, k.mesh(4), P("x"), P("x")))(x), 2 * np.asarray(x))


@case()
def deadlock_of_cores():
    def body(refs):
        @pl.core_map(tensor_cores(2))
        def _():
            def scoped(ready):
                @pl.when(lax.axis_index("core") == 1)
                def _():
                    k.wait(ready, 1)

                @pl.when(lax.axis_index("core") == 0)
                def _():
                    k.signal(ready, 1, core_index=0)
                    k.wait(ready, 1)

            pl.run_scoped(scoped, k.REGULAR)

    error = raises(jax.jit(lambda x: pl.run_state(body)((x,))[0]), k.numbers(8, 128))
    assert "core 1 (core=1) waits for ready, which has 0 and needs 1" in str(error), error


@case()
def subcores():
    """A barrier, memory in common, and a counter on one of the subcores."""
    if not hasattr(pl, "kernel") or jax.__version_info__ < (0, 10):
        return double_for_the_report()
    from jax.experimental.pallas import tpu_sc as plsc

    if not hasattr(plsc, "fetch_and_add"):
        return double_for_the_report()
    n = 16
    mesh = plsc.VectorSubcoreMesh(
        core_axis_name="core", subcore_axis_name="subcore", num_cores=1, num_subcores=n
    )

    @pl.kernel(
        out_type=jax.ShapeDtypeStruct((n, 16), jnp.int32), mesh=mesh,
        scratch_types=[pltpu.VMEM((16,), jnp.int32), pltpu.VMEM_SHARED((n, 16), jnp.int32),
                       pltpu.SMEM((1,), jnp.int32)],
    )  # fmt: skip
    def kernel(o_ref, own, common, counter):
        me = lax.axis_index("subcore")
        counter[0] = 0
        own[...] = jnp.full((16,), me * me, jnp.int32)
        pltpu.sync_copy(own, common.at[me])
        plsc.subcore_barrier()
        plsc.fetch_and_add(counter.at[0], me, subcore_id=3)
        pltpu.sync_copy(common.at[(me + 5) % n], own)
        plsc.subcore_barrier()

        @pl.when(me == 3)
        def _():
            own[...] = jnp.full((16,), counter[0], jnp.int32)

        pltpu.sync_copy(own, o_ref.at[me])

    want = np.array([((i + 5) % n) ** 2 for i in range(n)])
    want[3] = sum(range(n))
    equal(kernel(), np.broadcast_to(want[:, None], (n, 16)))


def kinds_of_cores(vector, scalar, out, **kwargs):
    """Runs functions on 4 vector subcores and the scalar subcore of each of two SparseCores, with a
    semaphore for each kind."""
    from jax.experimental.pallas import tpu_sc as plsc

    vectors = plsc.VectorSubcoreMesh(
        core_axis_name="core", subcore_axis_name="subcore", num_cores=2, num_subcores=4
    )
    scalars = plsc.ScalarSubcoreMesh(axis_name="core", num_cores=2)
    return pl.kernel(
        body=[vector, scalar], mesh=[vectors, scalars], out_type=out,
        scratch_types=[k.REGULAR @ vectors, k.REGULAR @ scalars,
                       pltpu.VMEM_SHARED((16,), jnp.int32)], **kwargs,
    )  # fmt: skip


def has_kinds():
    return jax.__version_info__ >= (0, 10, 1)


@case()
def nothing_found_where_one_core_copies_to_a_core_of_another_kind():
    """The only scalar subcore starts a copy to the TensorCore's memory, and waits until it is
    sent. A later kernel there waits for its arrival."""
    if not has_kinds():
        return double_for_the_report()
    from jax.experimental.pallas import tpu_sc as plsc

    from tests.check.harness import check

    sparse = plsc.ScalarSubcoreMesh(axis_name="sparse", num_cores=1)
    tensor = pltpu.create_tensorcore_mesh(axis_name="tensor", num_cores=1)

    def send(x_ref, o_ref, arrived, sent):
        pltpu.make_async_remote_copy(x_ref, o_ref, sent, arrived, device_id={"tensor": 0}).start()
        pltpu.make_async_remote_copy(
            x_ref, o_ref, sent, arrived, device_id={"tensor": 0}
        ).wait_send()

    def receive(x_ref, o_ref, arrived):
        pltpu.make_async_copy(x_ref, o_ref, arrived).wait()
        o_ref[...] += 1

    def f(x):
        x = jax.new_ref(x)
        out, arrived = pl.kernel(
            body=send, mesh=sparse, scratch_types=[k.DMA(())],
            out_type=(pltpu.VMEM(x.shape, x.dtype) @ tensor, k.DMA(()) @ tensor),
        )(x)  # fmt: skip
        out, arrived = jax.new_ref(out), jax.new_ref(arrived)
        pl.kernel(body=receive, mesh=tensor)(x, out, arrived)
        return jax.freeze(out)

    x = k.numbers(8, 128)
    equal(jax.jit(f)(x), np.asarray(x) + 1)
    assert not check(f, x).findings


@case()
def cores_of_several_kinds():
    """The scalar subcore lets the vector subcores go one after the other. Each adds to memory in
    common, and says that it has."""
    if not has_kinds():
        return double_for_the_report()

    def vector(x_ref, o_ref, of_vector, of_scalar, common):
        me, core = lax.axis_index("subcore"), lax.axis_index("core")
        own = jax.empty_ref(jax.typeof(jnp.zeros(16, jnp.int32)), memory_space=pltpu.VMEM)
        k.wait(of_vector, 1)
        pltpu.sync_copy(common, own)
        own[...] = own[...] * 3 + me
        pltpu.sync_copy(own, common)
        k.signal(of_scalar, 1, device_id={"core": core})

    def scalar(x_ref, o_ref, of_vector, of_scalar, common):
        core = lax.axis_index("core")
        pltpu.sync_copy(x_ref.at[core], common)
        for subcore in (2, 0, 3, 1):
            k.signal(of_vector, 1, device_id={"core": core, "subcore": subcore})
            k.wait(of_scalar, 1)
        pltpu.sync_copy(common, o_ref.at[core])

    x = k.numbers(8, 16, dtype=jnp.int32)
    out = local((2, 16), jnp.int32)
    y = jax.jit(k.over(kinds_of_cores(vector, scalar, out), k.mesh(4), P("x"), P("x")))(x)
    want = np.asarray(x)
    for subcore in (2, 0, 3, 1):
        want = want * 3 + subcore
    equal(y, want)


KIND_FAULTS = {
    "right": None,
    "a row outside": ("bounds/outside-ref", "x_ref", "scalar subcore (core=1)"),
    "nothing was copied": (
        "uninitialized/never-written", "o_ref", None,
    ),
    "a row left out": ("uninitialized/never-written", "o_ref", None),
    "memory that nobody wrote": (
        "uninitialized/read-before-write", "own_ref", "vector subcore (core=1, subcore=0)",
    ),
}  # fmt: skip


@case(*KIND_FAULTS)
def what_cores_of_several_kinds_do_wrongly(fault):
    """The scalar subcores hand their rows to the vector subcores, which add to them."""
    if not has_kinds():
        return double_for_the_report()

    from tests.check.harness import check

    def vector(x_ref, o_ref, of_vector, of_scalar, common):
        me, core = lax.axis_index("subcore"), lax.axis_index("core")

        def own(own_ref):
            k.wait(of_vector, 1)
            if fault != "memory that nobody wrote":
                pltpu.sync_copy(common, own_ref)
            own_ref[...] = own_ref[...] + me
            last = 3 if fault == "a row left out" else 4

            @pl.when((me < last) & (fault != "nothing was copied"))
            def _():
                pltpu.sync_copy(own_ref, o_ref.at[core, me])

            k.signal(of_scalar, 1, device_id={"core": core})

        pl.run_scoped(own, pltpu.VMEM((16,), jnp.int32))

    def scalar(x_ref, o_ref, of_vector, of_scalar, common):
        core = lax.axis_index("core")
        row = core + (1 if fault == "a row outside" else 0)
        pltpu.sync_copy(x_ref.at[row], common)
        for subcore in range(4):
            k.signal(of_vector, 1, device_id={"core": core, "subcore": subcore})
        k.wait(of_scalar, 4)

    x = k.numbers(2, 16, dtype=jnp.int32)
    f = kinds_of_cores(vector, scalar, local((2, 4, 16), jnp.int32))
    checked = check(f, x, kinds=["bounds", "uninitialized"])
    assert not checked.not_checked, checked.not_checked
    if fault == "right":
        assert not checked.findings, checked.findings
        equal(checked.results[0], np.asarray(x)[:, None] + np.arange(4)[:, None])
    else:
        rule, ref, program = KIND_FAULTS[fault]
        at = checked.rules.index(rule)
        finding = checked.findings[at]
        assert (finding.ref, finding.accesses[0].program) == (ref, program), finding
    double_for_the_report()


@case()
def deadlock_of_several_kinds():
    if not has_kinds():
        return double_for_the_report()

    def vector(o_ref, of_vector, of_scalar, common):
        @pl.when(lax.axis_index("subcore") == 3)
        def _():
            k.wait(of_vector, 1)

    def scalar(o_ref, of_vector, of_scalar, common):
        @pl.when(lax.axis_index("core") == 1)
        def _():
            k.signal(of_vector, 1, device_id={"core": 1, "subcore": 3})

    error = raises(jax.jit(kinds_of_cores(vector, scalar, local((16,), jnp.int32))))
    assert "vector subcore (core=0, subcore=3) waits for of_vector, which has 0 and needs 1" in str(
        error
    ), error
    assert "core=1" not in str(error), error
    equal(jax.jit(k.double)(jnp.ones((8, 128))), 2 * np.ones((8, 128)))


def double_for_the_report():
    equal(jax.jit(k.double)(jnp.ones((8, 128))), 2 * np.ones((8, 128)))


# -- collectives ------------------------------------------------------------------------------


def with_kernel(f):
    return lambda x: k.double(f(x)) // 2


COLLECTIVES = {
    "psum": (lambda x: lax.psum(x, "x"), lambda p: np.broadcast_to(p.sum(0), p.shape)),
    "pmax": (lambda x: lax.pmax(x, "x"), lambda p: np.broadcast_to(p.max(0), p.shape)),
    "pmin": (lambda x: lax.pmin(x, "x"), lambda p: np.broadcast_to(p.min(0), p.shape)),
    "pmean": (lambda x: lax.pmean(x * 4, "x"), lambda p: np.broadcast_to(p.sum(0), p.shape)),
    "axis_index": (lambda x: x * 0 + lax.axis_index("x").astype(x.dtype),
                   lambda p: np.arange(4.0)[:, None, None] + 0 * p),
    "ppermute": (lambda x: lax.ppermute(x, "x", [(0, 1), (1, 3), (3, 0)]),
                 lambda p: np.stack([p[3], p[0], 0 * p[0], p[1]])),
    "all_gather": (lambda x: lax.all_gather(x, "x").sum(0),
                   lambda p: np.broadcast_to(p.sum(0), p.shape)),
    "all_gather_tiled": (lambda x: lax.all_gather(x, "x", axis=1, tiled=True)[:, 3::4],
                         lambda p: np.broadcast_to(np.concatenate(p, 1)[:, 3::4], p.shape)),
    "psum_scatter": (
        lambda x: jnp.tile(lax.psum_scatter(x, "x", scatter_dimension=0, tiled=True), (4, 1)),
        lambda p: np.stack([np.tile(p.sum(0)[2 * i : 2 * i + 2], (4, 1)) for i in range(4)])),
    "all_to_all": (lambda x: lax.all_to_all(x, "x", 0, 0, tiled=True),
                   lambda p: np.stack([np.concatenate([q[2 * i : 2 * i + 2] for q in p])
                                       for i in range(4)])),
    "groups": (lambda x: lax.psum(x, "x", axis_index_groups=[[0, 2], [3, 1]]),
               lambda p: np.stack([p[0] + p[2], p[1] + p[3]] * 2)),
}  # fmt: skip


@case(*COLLECTIVES)
def collective(name):
    f, want = COLLECTIVES[name]
    x = k.numbers(4 * 8, 16)
    y = jax.jit(k.over(with_kernel(f), k.mesh(4), P("x"), P("x")))(x)
    equal(y, want(np.asarray(x).reshape(4, 8, 16)).reshape(32, 16))


@case()
def collectives_over_two_axes():
    def f(x):
        both = lax.psum(x, ("x", "y")) + 1000 * lax.psum(x, "y")
        order = lax.all_gather(x, ("y", "x")).reshape(-1)[:8]
        return k.double(both), order

    x = k.numbers(4, 8)
    y, order = jax.jit(k.over(f, k.mesh(2, 2), P("x", "y"), (P("x", "y"), P())))(x)
    p = np.asarray(x).reshape(2, 2, 2, 4)  # x, row, y, column
    want = p.sum((0, 2), keepdims=True) + 1000 * p.sum(2, keepdims=True) + 0 * p
    equal(y, 2 * want.reshape(4, 8))
    equal(order, np.concatenate([p[0, :, 0].ravel()]))


@case()
def narrow_sums_are_wide_inside():
    x = jnp.asarray([256.0] + [1.0] * 7, jnp.bfloat16).reshape(8, 1)
    y = jax.jit(k.over(lambda x: k.double(lax.psum(x, "x")), k.mesh(8), P("x"), P()))(x)
    equal(y, [[528.0]])  # 263 as bfloat16, twice


# -- around shard_map -------------------------------------------------------------------------


@case()
def results_are_sharded_as_jit_would():
    on = k.mesh(2, 2)
    x = k.numbers(8, 16)
    specs = [P("x"), P("x", "y"), P(("x", "y")), P(None, "y"), P()]
    for given in specs:
        f = jax.jit(k.over(k.double, on, given, given))
        plain = jax.jit(k.over(lambda x: x * 2, on, given, given))
        for arg in (x, np.asarray(x), jax.device_put(x, NamedSharding(on, given)),
                    jax.device_put(x, NamedSharding(on, P("y")))):  # fmt: skip
            y, want = f(arg), plain(arg)
            equal(y, want)
            assert y.sharding == want.sharding, (y.sharding, want.sharding)
            assert y.committed and want.committed
            for a, b in zip(y.addressable_shards, want.addressable_shards, strict=True):
                assert a.device == b.device and a.index == b.index
                equal(a.data, b.data)


@case()
def operations_around():
    on = k.mesh(4)
    x = k.numbers(8, 16)
    times2 = k.over(lambda x: 2 * x, on, P("x"), P("x"))
    for after in (
        lambda y: y + 1, lambda y: y.T, lambda y: y.sum(), lambda y: y.sum(1), lambda y: y[None],
        lambda y: (y, y * 2), lambda y: jnp.sin(y).astype(jnp.bfloat16),
    ):  # fmt: skip
        y = jax.jit(lambda x, after=after: after(k.over(k.double, on, P("x"), P("x"))(x)))(x)
        want = jax.jit(lambda x, after=after: after(times2(x)))(x)
        for a, b in zip(jax.tree.leaves(y), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(np.asarray(a, np.float32), np.asarray(b, np.float32), 1e-2)
            assert a.sharding.is_equivalent_to(b.sharding, a.ndim), (a.sharding, b.sharding)


@case()
def shardings_given_to_jit():
    on = k.mesh(4)
    x = k.numbers(8, 16)
    rows, columns = NamedSharding(on, P("x")), NamedSharding(on, P(None, "x"))
    f = jax.jit(k.over(k.double, on, P("x"), P("x")), in_shardings=rows, out_shardings=columns)
    for arg in (x, jax.device_put(x, rows)):
        y = f(arg)
        equal(y, 2 * np.asarray(x))
        assert y.sharding == columns
    try:
        f(jax.device_put(x, columns))
    except ValueError:
        pass
    else:
        raise AssertionError("an argument that is sharded otherwise than jit was told")


@case()
def under_a_mesh():
    make = getattr(jax.sharding, "set_mesh", None) or jax.set_mesh
    on = jax.make_mesh((4,), ("x",), axis_types=(jax.sharding.AxisType.Explicit,),
                       devices=jax.devices()[:4])  # fmt: skip
    with make(on):
        x = jax.device_put(k.numbers(8, 16), P("x"))
        f = jax.jit(jax.shard_map(k.double, in_specs=P("x"), out_specs=P("x"), check_vma=False))
        y = f(x)
        equal(y, 2 * np.asarray(x))
        times2 = jax.shard_map(lambda x: 2 * x, in_specs=P("x"), out_specs=P("x"))
        assert y.sharding == jax.jit(times2)(x).sharding


@case()
def replicas_may_differ():
    """Without check_vma each device keeps what it computed."""
    f = jax.jit(k.over(lambda x: k.double(x + lax.axis_index("x")), k.mesh(3), P(), P()))
    y = f(jnp.zeros((2, 2)))
    for device, shard in enumerate(y.addressable_shards):
        equal(shard.data, np.full((2, 2), 2 * device))


@case()
def some_axes_left_to_xla():
    on = k.mesh(2, 4)
    f = jax.jit(k.over(lambda x: k.double(lax.psum(x, "x")), on, P("x"), P(), axis_names={"x"}))
    x = k.numbers(8, 16)
    equal(f(x), 2 * np.asarray(x).reshape(2, 4, 16).sum(0))


@case()
def one_inside_another():
    def inner(x):
        return k.double(lax.psum(x, "y")) + lax.psum(x, "x")

    def outer(x):
        return jax.shard_map(
            inner, in_specs=P(None, "y"), out_specs=P(None, "y"), axis_names={"y"},
            check_vma=False,
        )(x)  # fmt: skip

    on = k.mesh(2, 2)
    f = jax.jit(k.over(outer, on, P("x"), P("x"), axis_names={"x"}))
    x = k.numbers(4, 8)
    p = np.asarray(x).reshape(2, 2, 2, 4)
    want = 2 * p.sum(2, keepdims=True) + p.sum(0, keepdims=True) + 0 * p
    equal(f(x), want.reshape(4, 8))


@case()
def mapped_scanned_and_differentiated():
    on = k.mesh(4)

    @jax.custom_vjp
    def twice(x):
        return k.double(x)

    twice.defvjp(lambda x: (k.double(x), None), lambda _, g: (k.double(g),))

    def f(x):
        return lax.psum(twice(x) ** 2, "x")

    mapped = k.over(f, on, P("x"), P())
    x = k.numbers(3, 8, 4)
    y = np.asarray(x).reshape(3, 4, 2, 4)
    equal(jax.jit(jax.vmap(mapped))(x), (4 * y**2).sum(1))

    def loss(x):
        total, _ = lax.scan(lambda c, x: (c + mapped(x).sum(), None), 0.0, x)
        return total

    equal(jax.jit(loss)(x), (4 * y**2).sum())
    equal(jax.jit(jax.grad(loss))(x), 8 * np.asarray(x))


@case()
def a_kernel_that_talks_mapped_and_differentiated():
    right = k.permute(local((8, 128)), FORMS["dict"][1], **FORMS["dict"][0])
    left = k.permute(local((8, 128)), lambda me, n: {"x": lax.rem(me + n - 1, n)})

    @jax.custom_vjp
    def shift(x):
        return right(x)

    shift.defvjp(lambda x: (right(x), None), lambda _, g: (left(g),))
    on = k.mesh(4)
    x = k.numbers(3, 32, 128)
    rolled = np.roll(np.asarray(x), 8, 1)
    across = k.over(shift, on, P("x"), P("x"))
    equal(jax.jit(jax.vmap(across))(x), rolled)
    equal(jax.jit(k.over(jax.vmap(shift), on, P(None, "x"), P(None, "x")))(x), rolled)

    def loss(x, w):
        return (jax.checkpoint(across)(x) * w).sum()

    equal(jax.jit(jax.grad(loss))(x[0], x[1]), np.roll(np.asarray(x[1]), -8, 0))
    chosen = jax.vmap(lambda p, x: lax.cond(p, across, lambda x: x, x))
    y = jax.jit(chosen)(jnp.array([True, False, True]), x)
    equal(y, np.stack([rolled[0], x[1], rolled[2]]))


@case()
def without_jit_and_by_pmap():
    x = k.numbers(4, 8)
    equal(k.over(k.double, k.mesh(4), P("x"), P("x"))(x), 2 * np.asarray(x))
    y = jax.pmap(lambda x: k.double(lax.psum(x, "i")), "i")(x)
    equal(y, np.tile(2 * np.asarray(x).sum(0), (4, 1)))


@case()
def keys_that_are_cut():
    keys = jax.random.split(jax.random.key(3), 8)

    def draw(keys):
        return k.double(jax.vmap(lambda key: jax.random.bits(key, (4,)) >> 1)(keys))

    y = jax.jit(k.over(draw, k.mesh(4), P("x"), P("x")))(keys)
    equal(y, 2 * (jax.vmap(lambda key: jax.random.bits(key, (4,)))(keys) >> 1))


# -- what is certainly wrong ------------------------------------------------------------------


def raises(function, *args):
    try:
        jax.block_until_ready(function(*args))
    except Exception as error:
        return error
    raise AssertionError("no error")


@case()
def deadlock_names_everybody():
    def kernel(x_ref, o_ref, ready):
        @pl.when(lax.axis_index("x") == 1)
        def _():
            k.signal(ready, 1, device_id={"x": 0}, device_id_type=MESH)

        k.wait(ready, 2)
        o_ref[...] = x_ref[...]

    run = k.call(kernel, local((8, 128)), scratch=[k.REGULAR], space=pltpu.VMEM)
    error = raises(jax.jit(k.over(run, k.mesh(3), P("x"), P("x"))), k.numbers(24, 128))
    text = str(error)
    assert type(error).__name__ == "Deadlock", error
    for device, has in ((0, 1), (1, 0), (2, 0)):
        assert f"device {device} (x={device}) waits for ready, which has {has} and needs 2" in text
    assert "machine/kernels.py" in text, text


@case()
def deadlock_of_one_alone():
    def kernel(x_ref, o_ref, ready):
        k.signal(ready, 1)
        k.wait(ready, 1)
        k.signal(ready, 2)
        k.wait(ready, 3 if x_ref.shape[0] == 8 else 2)
        o_ref[...] = x_ref[...]

    def run(x):
        return k.call(kernel, local(x.shape), scratch=[k.REGULAR], space=pltpu.VMEM)(x)

    equal(jax.jit(run)(k.numbers(16, 128)), k.numbers(16, 128))
    error = raises(jax.jit(run), k.numbers(8, 128))
    assert "the kernel kernel waits for ready, which has 2 and needs 3" in str(error), error
    assert "machine/kernels.py" in str(error)


@case()
def deadlock_at_a_copy():
    """Nobody sends."""

    def kernel(x_ref, o_ref, send, recv):
        other = 1 - lax.axis_index("x")
        copy = pltpu.make_async_remote_copy(
            x_ref, o_ref, send, recv, device_id=(other,), device_id_type=MESH
        )

        @pl.when(lax.axis_index("x") == 0)
        def _():
            copy.start()
            copy.wait_send()

        copy.wait_recv()

    run = k.call(kernel, local((8, 128)), scratch=[k.DMA, k.DMA], space=pltpu.VMEM)
    error = raises(jax.jit(k.over(run, k.mesh(2), P("x"), P("x"))), k.numbers(16, 128))
    assert "device 0 (x=0) waits for recv, which has 0 and needs 4096" in str(error), error
    assert "device 1" not in str(error).replace("device 1 (x=1) waits for the end", "")


@case()
def a_collective_that_some_miss():
    def f(x):
        y = k.double(x)
        return lax.cond(lax.axis_index("x") == 2, lambda: y, lambda: lax.psum(y, "x"))

    error = raises(jax.jit(k.over(f, k.mesh(4), P("x"), P("x"))), k.numbers(4, 8))
    assert "psum along x, to which device 2 (x=2) didn't come" in str(error), error


@case()
def semaphores_left_over():
    def kernel(x_ref, o_ref, ready):
        k.signal(ready, 3, device_id=(1 - lax.axis_index("x"),), device_id_type=MESH)
        k.wait(ready, 1)
        o_ref[...] = x_ref[...]

    run = k.call(kernel, local((8, 128)), scratch=[k.REGULAR], space=pltpu.VMEM)
    f = jax.jit(k.over(run, k.mesh(2), P("x"), P("x")))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            equal(f(k.numbers(16, 128)), k.numbers(16, 128))
    said = [w for w in caught if w.category.__name__ == "SemaphoreWarning"]
    assert len(said) == 1, [str(w.message) for w in caught]
    assert "ready at 2" in str(said[0].message) and said[0].filename.endswith("machine/cases.py")


@case()
def a_device_that_isnt_there():
    f = jax.jit(k.over(
        k.permute(local((8, 128)), lambda me, n: (me + 1,), device_id_type=MESH), k.mesh(4),
        P("x"), P("x"),
    ))  # fmt: skip
    assert "4, of which there are 4" in str(raises(f, k.numbers(32, 128)))


@case()
def an_error_in_one_device_ends_all():
    def check(i):
        if i == 2:
            raise ValueError("the third")

    def f(x):
        jax.debug.callback(check, lax.axis_index("x"))
        return lax.psum(k.double(x), "x")

    g = jax.jit(k.over(f, k.mesh(4), P("x"), P()))
    for _ in range(2):
        assert "the third" in str(raises(g, k.numbers(4, 8)))


@case()
def undefined_elements_beside_memory_that_others_write():
    """A buffer that comes from another device is read, and the output is never written."""
    from tests.check.harness import check

    def kernel(stores, x_ref, o_ref, got, send, recv):
        copy = pltpu.make_async_remote_copy(
            x_ref, got, send, recv, device_id=(1 - lax.axis_index("x"),), device_id_type=MESH
        )
        copy.start()
        copy.wait()
        got[...] = got[...] + 1
        if stores:
            o_ref[...] = got[...]

    scratch = [pltpu.VMEM((8, 128), jnp.float32), k.DMA, k.DMA]
    for stores in (False, True):
        # A function of its own: JAX keeps the trace of one that it has seen.
        body = functools.partial(kernel, stores)
        run = k.call(body, local((8, 128)), scratch=scratch, space=pltpu.VMEM)
        f = k.over(run, k.mesh(2), P("x"), P("x"))
        checked = check(f, k.numbers(16, 128))
        rules = [] if stores else ["uninitialized/never-written"]
        assert checked.rules == rules, checked.findings
        assert not any("again" in reason for _, reason in checked.not_checked)
    double_for_the_report()


SENT = {
    "all of it": [],
    "half of it": ["uninitialized/read-before-write"],
    "what was never written": ["uninitialized/read-before-write"],
    "to oneself": ["uninitialized/read-before-write"],
    "into the result": [],
    "half of the result": ["uninitialized/never-written"],
}


@case(*SENT)
def undefined_elements_of_memory_that_others_write(what):
    from tests.check.harness import check

    def kernel(x_ref, o_ref, got_ref, own_ref, send, recv):
        k.barrier()
        me = lax.axis_index("x")
        if what != "what was never written":
            own_ref[...] = x_ref[...]
        rows = pl.ds(0, 4 if "half" in what else 8)
        result = "result" in what
        copy = pltpu.make_async_remote_copy(
            own_ref.at[rows], (o_ref if result else got_ref).at[rows], send, recv,
            device_id=(lax.select((me == 2) & (what == "to oneself"), me, lax.rem(me + 1, 3)),),
            device_id_type=MESH,
        )  # fmt: skip
        copy.start()
        copy.wait_send()

        @pl.when((me != 0) | (what != "to oneself"))
        def _():
            copy.wait_recv()

        if what == "to oneself":

            @pl.when(me == 2)
            def _():
                copy.wait_recv()  # of its own copy

        if not result:
            o_ref[...] = got_ref[...]

    scratch = [VMEM, VMEM, k.DMA, k.DMA]
    run = k.call(kernel, local((8, 128)), scratch=scratch, space=pltpu.VMEM)
    f = k.over(run, k.mesh(3), P("x"), P("x"))
    checked = check(f, k.numbers(24, 128), kinds=["uninitialized"])
    assert checked.rules == SENT[what] and not checked.not_checked, checked.findings
    if what == "to oneself":
        (finding,) = checked.findings
        assert finding.ref == "got_ref" and finding.accesses[0].program == "device 0 (x=0)"
    double_for_the_report()


def main(names):
    import pallas_shim
    from pallas_shim.reports.uses import REPORT

    pallas_shim.activate()
    for name in names or CASES:
        REPORT.clear()
        error = None
        try:
            CASES[name]()
        except Exception:
            error = traceback.format_exc()
        rungs = sorted({row["rung"] for row in REPORT.rows()})
        reasons = sorted({row["reason"] for row in REPORT.rows() if row["rung"] != "numpy"})
        line = {"case": name, "error": error, "rungs": rungs, "why": reasons}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
