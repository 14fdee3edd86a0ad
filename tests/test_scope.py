"""PALLAS_NUMPY_SCOPE: functions that hold no kernel."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl

from tests.oracle import compare
from tests.shimmed import double, only_function, only_row, setting, shim

__all__ = ["setting", "shim"]

ROOT = Path(__file__).parents[1]
X = np.arange(12, dtype=np.float32).reshape(3, 4)


def test_by_default_jaxs_own_exact_functions_are_run_too(shim):
    jax.clear_caches()
    jax.jit(lambda x: x * 3)(X)
    assert shim.functions() == []
    key = jax.random.key(0)
    jax.random.normal(key, (3,))
    jnp.sort(X)
    functions = {row["function"] for row in shim.functions()}
    assert "sort" in functions and not functions & {"_normal", "<lambda>"}


def test_with_kernels_no_other_function_is_run(shim, setting):
    jax.clear_caches()
    setting(scope="kernels")
    jnp.sort(X)
    assert shim.functions() == []


@pytest.mark.parametrize("run", [
    lambda: jax.jit(lambda x: jnp.tanh(x) @ x.T)(X),
    lambda: jnp.cumsum(X, axis=1),
    lambda: jax.random.normal(jax.random.key(7), (4, 5)),
    lambda: jax.random.permutation(jax.random.key(7), 20),
    lambda: jax.grad(lambda x: (x * x).sum())(jnp.asarray(X)),
    lambda: jax.vmap(jnp.linalg.norm)(X),
    # The initial value isn't in the padding, nor in the holes, for XLA.
    lambda: jax.lax.reduce_window(X, np.float32(1), lambda a, b: a + b, (2, 1), (1, 1), "SAME"),
    lambda: jax.lax.reduce_window(
        X, np.float32(1), lambda a, b: a + b, (2, 2), (1, 1), ((1, 1), (0, 1)), (2, 1)
    ),
])  # fmt: skip
def test_with_all_functions_without_kernels_are_run_as_jax_would(shim, setting, run):
    want = np.asarray(run())
    jax.clear_caches()
    setting(scope="all")
    got = run()
    assert isinstance(got, jax.Array)
    compare(np.asarray(got), want, rtol=1e-6)
    rows = shim.functions()
    assert rows and {row["rung"] for row in rows} == {"numpy"}
    assert shim.rows() == [] and all(row["source"] is None for row in rows)


def test_what_runs_for_long_is_compiled(shim, setting):
    setting(scope="all")
    f = jax.jit(lambda x: jnp.exp(x) + 1)
    large = np.ones(1 << 16, np.float32)
    for calls in range(1, 10_000):
        last = f(large)
        if only_function()["calls"] < calls:
            break
    else:
        pytest.fail("it was never compiled")
    compare(np.asarray(f(large)), np.asarray(last), rtol=1e-6)
    assert only_function()["calls"] == calls - 1  # JAX runs it from now on


def test_heavy_work_is_compiled_at_once(shim, setting):
    setting(scope="all")
    x = np.ones((800, 800), np.float32)
    result = jax.jit(lambda x: jax.lax.fori_loop(0, 50, lambda _, y: jnp.sin(y) ** 0, x))(x)
    assert np.allclose(result, 1)
    assert "<lambda>" not in {row["function"] for row in shim.functions()}


def test_a_product_is_rounded_as_in_a_kernel(shim, setting):
    """The comparison in JAX's quickstart for Pallas, more than once."""
    setting(scope="all")

    def kernel(x_ref, y_ref, o_ref):
        o_ref[...] = x_ref[...] @ y_ref[...]

    @jax.jit
    def matmul(x, y):
        return pl.pallas_call(
            kernel,
            out_shape=jax.ShapeDtypeStruct((512, 512), x.dtype),
            grid=(2, 2),
            in_specs=[
                pl.BlockSpec((256, 512), lambda i, j: (i, 0)),
                pl.BlockSpec((512, 256), lambda i, j: (0, j)),
            ],
            out_specs=pl.BlockSpec((256, 256), lambda i, j: (i, j)),
        )(x, y)

    x, y = jnp.asarray(np.random.default_rng(0).standard_normal((2, 512, 512), np.float32))
    for _ in range(3):
        np.testing.assert_allclose(matmul(x, y), x @ y)
    many = jnp.stack([x] * 8), jnp.stack([y] * 8)
    np.testing.assert_allclose(jax.vmap(matmul)(*many), jax.vmap(jnp.matmul)(*many))


def test_what_has_no_rule_is_compiled(shim, setting):
    setting(scope="all", strict=True)
    f = jax.jit(lambda high: jax.lax.rng_uniform(jnp.float32(0), high, (3,)))
    assert f(np.float32(1)).shape == (3,)
    assert shim.functions() == []


def test_kernels_are_run_as_before(shim, setting):
    setting(scope="all")
    assert np.array_equal(jax.jit(double)(X), 2 * X)
    assert only_row()["name"] == "double_kernel"


def test_the_variable():
    code = (
        "import jax, jax.numpy as jnp; from jax.experimental import pallas as pl\n"
        "print(jax.jit(lambda x: x + 1)(jnp.arange(3)))"
    )
    environ = {
        **os.environ, "PALLAS_NUMPY": "1", "PALLAS_NUMPY_SCOPE": "all",
        "PALLAS_NUMPY_REPORT": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'sitecustomize_pkg'}",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[1 2 3]\n"
    assert "also in NumPy, and how often:" in done.stderr and "<lambda> (1)" in done.stderr
