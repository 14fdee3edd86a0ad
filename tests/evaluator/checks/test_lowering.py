"""Where checks are emitted, and where they aren't needed."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from pallas_shim.evaluator.checks import lowering
from tests.check.harness import check

X = np.arange(16 * 128, dtype=np.float32).reshape(16, 128)
BY_ROWS = pl.BlockSpec((8, 128), lambda i: (i, 0))


def call(kernel, out=BY_ROWS):
    return pl.pallas_call(
        kernel, jax.ShapeDtypeStruct(X.shape, X.dtype), grid=(2,), in_specs=[BY_ROWS],
        out_specs=out, interpret=True,
    )  # fmt: skip


def checks(checked):
    """What the checks that are left do."""
    return {
        i.operation.params["checks"] for i in checked.program.top.walk() if i.name == "check"
    }


def test_a_kernel_for_which_all_is_proven_has_no_checks():
    def kernel(x_ref, o_ref):
        o_ref[...] = x_ref[...] + 1

    assert not checks(check(call(kernel), X))


def test_an_index_of_the_grid_is_proven():
    def kernel(x_ref, o_ref):
        o_ref[...] = jnp.zeros_like(o_ref)
        o_ref[pl.program_id(0) * 4, :] = x_ref[pl.program_id(0) + 6, :]

    assert not checks(check(call(kernel), X))


def test_an_output_that_is_read_is_watched():
    def kernel(x_ref, o_ref):
        @pl.when(x_ref[0, 0] >= 0)
        def _():
            o_ref[...] = x_ref[...]

        o_ref[...] += x_ref[...]

    assert {"read", "written", "block"} <= checks(check(call(kernel), X))


def test_what_a_check_itself_does_wrong_does_not_end_the_run(monkeypatch):
    def broken(site, place):
        def check(*operands):
            raise AttributeError("no such thing")

        return check

    monkeypatch.setattr(lowering, "bounds", broken)

    def kernel(x_ref, o_ref):
        o_ref[...] = x_ref[pl.ds(x_ref[0, 0].astype(jnp.int32) * 0, 8)]

    checked = check(call(kernel), X)
    assert not checked.findings
    ((name, reason),) = set(checked.not_checked)
    assert name == "kernel" and "AttributeError: no such thing" in reason


def summed(look):
    def kernel(x_ref, o_ref):
        x = look(x_ref[...])
        o_ref[...] += x

    return call(kernel)


def test_a_second_run_does_not_print(capfd):
    def look(x):
        jax.debug.print("sum {}", x.sum())
        return x

    checked = check(summed(look), X)
    jax.effects_barrier()
    assert checked.rules == ["uninitialized/read-before-write"]
    assert capfd.readouterr().out.count("sum") == 2  # once in each cell


def test_a_function_that_needs_the_host_does_not_run_again():
    calls = []

    def host(x):
        calls.append(x)
        return x

    def look(x):
        return jax.pure_callback(host, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

    checked = check(summed(look), X)
    assert not checked.findings and len(calls) == 2
    ((_, reason),) = checked.not_checked
    assert "calls back to the host" in reason
