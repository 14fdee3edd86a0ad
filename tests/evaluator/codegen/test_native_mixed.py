"""Native code of programs that also do what has no defined bits: NumPy does that, with its bits."""

from __future__ import annotations

import ctypes
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_shim.evaluator.floating import as_xla
from pallas_shim.evaluator.lower import lower
from pallas_shim.evaluator.passes import NAMES, optimise
from tests.fuzz.natively import compare_natively

pytest.importorskip("llvmlite")

from pallas_shim.evaluator.codegen import native  # noqa: E402
from pallas_shim.evaluator.codegen.native import exponential, functions, sums  # noqa: E402
from pallas_shim.evaluator.codegen.native.source import Source  # noqa: E402

LOOPS = [(ufunc, char) for ufunc, chars in functions._LOOPS.items() for char in chars]


def check(f, *args, called=None, passes=(NAMES, ())):
    """Native code of a function gives NumPy's bits, of its program as lowered and optimised."""
    program = lower(jax.make_jaxpr(f)(*args))
    arrays = [np.asarray(arg) for arg in args]
    for skip in passes:
        optimised = optimise(program, skip)
        assert compare_natively(optimised, arrays) == ""
        if called is not None:
            assert native.compiled(optimised).called.keys() == called


def numbers(*shape, seed=0, dtype=np.float32):
    """Some are zeros, infinite, or no numbers."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape).astype(dtype) * rng.choice(np.array([1, 1, 30], dtype), shape)
    special = np.array([0, -0.0, np.inf, -np.inf, np.nan, 1e30, 1e-30, 2e5], dtype)
    x.flat[rng.integers(0, x.size, 8)] = special
    return x


# -- written out, with NumPy's steps ---------------------------------------------------------------


def test_exp_of_float32_has_numpys_bits():
    """tests/fuzz/exhaustive.py compares all numbers."""
    function = exponential.compiled()
    edges = np.array([-87.33655, 88.72284, 88.376, -0.0, 0, 1, 104, -104], np.float32)
    near = (edges.view(np.int32)[:, None] + np.arange(-2000, 2000, dtype=np.int32)).reshape(-1)
    bits = np.arange(1 << 18, dtype=np.uint32) * np.uint32(16411)
    if not exponential.is_numpys():
        pytest.skip("NumPy has another function for this processor")
    for operands in (near.view(np.float32), bits.view(np.float32)):
        assert as_xla(exponential.agrees, function, operands)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_are_added_up_in_numpys_order(dtype):
    for count in (*range(9, 40), 127, 128, 129, 200, 256, 300, 1000, 1024, 5000):
        assert sums._is_numpys(np.dtype(dtype), count)
        text = Source()
        sums.row_sum(np.dtype(dtype), count)(text, "%row", "%sum")
        assert "%fixed" not in text.text("f", "") and not text.addresses
    for count in (9, 33, 129, 1023, 1024):
        x = numbers(3, count, dtype=dtype)
        x[0] = -0.0
        with jax.enable_x64(True):
            check(lambda x: jnp.sum(x, axis=1), x, called=set())


@pytest.mark.parametrize("count", [9, 16, 31, 33, 64, 100, 129, 200])
def test_maxima_of_rows(count):
    x = numbers(40, count)
    x[::4] = np.minimum(x[::4], -0.0)
    x[1::4, ::3] = 0
    check(lambda x: [jnp.max(x, axis=1), jnp.min(x, axis=1)], x, called=set())


# -- NumPy's loops --------------------------------------------------------------------------------


@pytest.mark.parametrize("ufunc, char", LOOPS)
def test_a_loop_gives_numpys_bits_in_any_pieces(ufunc, char):
    """NumPy's own results are of arrays of any length, alignment and stride."""
    dtype = np.dtype(char)
    address, data = functions._loop(ufunc, dtype)
    call = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 4)(address)
    x = numbers(3000, dtype=dtype)
    x[::97], x[5::101] = 2e5, np.nan
    for stride in (1, 2, 3, -1):
        strided = x[::stride]
        for length in (*range(1, 36), 500):
            part = strided[length % 7 :][:length]
            with np.errstate(all="ignore"):
                want = ufunc(part)
            given = np.empty(length + 3, dtype)[length % 3 :][:length]
            given[:] = part
            got = np.empty(length + 3, dtype)[length % 2 :][:length]
            cut = length // 3
            for start, count in ((0, cut), (cut, length - cut)):
                arrays = (ctypes.c_void_p * 2)(
                    *[a.ctypes.data + start * dtype.itemsize for a in (given, got)]
                )
                counts = ctypes.c_ssize_t(count)
                steps = (ctypes.c_ssize_t * 2)(dtype.itemsize, dtype.itemsize)
                call(arrays, ctypes.byref(counts), steps, data)
            same = (got.view(f"u{dtype.itemsize}") == want.view(f"u{dtype.itemsize}")) | (
                np.isnan(got) & np.isnan(want)
            )
            assert same.all(), (stride, length)


COMPOSED = {
    "exp": jnp.exp, "log": jnp.log, "tanh": jnp.tanh, "sin": jnp.sin, "cos": jnp.cos,
    "logistic": lax.logistic, "exp2": jnp.exp2, "rsqrt": lax.rsqrt,
    "log2": lambda x: lax.log(x) / np.float32(np.log(2)),
}  # fmt: skip


@pytest.mark.parametrize("name", COMPOSED)
@pytest.mark.parametrize("shape", [(), (3, 1500), (5, 33)])
def test_functions(name, shape):
    f = COMPOSED[name]
    x = numbers(8 * 4000)[: max(int(np.prod(shape)), 1)].reshape(shape)
    check(lambda x: [f(x) * 2 + x, f(x * x + 1)], x, called=set(), passes=[()])


@pytest.mark.parametrize("dtype", ("bfloat16", "float16"))
def test_functions_of_narrow_floats(dtype):
    every = np.arange(1 << 16, dtype=np.uint16).view(jnp.dtype(dtype))
    check(lambda x: [jnp.exp(x), jnp.log(x), jnp.tanh(x), jnp.sin(x), jnp.cos(x)], every,
          called=set(), passes=[()])  # fmt: skip


# -- rows -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", (9, 15, 16, 17, 100, 129, 1000, 1025, 8192, 8200, 20000))
def test_sums_of_rows_have_numpys_order(length):
    x = numbers(3, length)
    x[~np.isfinite(x)] = 0.1
    check(lambda x: [jnp.sum(x * 2, axis=1), x - jnp.mean(x, axis=1, keepdims=True)], x)


@pytest.mark.parametrize("axes", [(0,), (1,), (2,), (0, 1), (1, 2), (0, 2), (0, 1, 2)])
def test_sums_along_other_axes(axes):
    x = np.random.default_rng(0).standard_normal((5, 7, 40)).astype(np.float32)
    check(lambda x: [jnp.sum(x * 2, axis=axes) + 1, jnp.max(x + 1, axis=axes)], x)
    check(lambda x: jnp.sum(x.transpose(1, 0, 2) * 2, axis=axes) + 1, x)


@pytest.mark.parametrize("dtype", (np.int32, np.int8, np.float32, np.bool_))
def test_other_reductions_of_rows(dtype):
    x = (np.arange(4 * 45) * 37 % 101).reshape(4, 45).astype(dtype)
    if dtype == np.bool_:
        check(lambda x: [x.any(1), x.all(1), ~(x ^ True).any(1)], x)
        return
    check(lambda x: [x.max(1), x.min(1), x - x.max(1, keepdims=True), (x * 2).min(0)], x)
    if dtype != np.float32:
        check(lambda x: [lax.reduce_xor(x, (1,)), lax.reduce_and(x, (1,)), x.sum(1)], x)


def test_a_zero_that_is_greatest_has_the_right_sign():
    x = np.zeros((6, 20), np.float32)
    x[::2] = -0.0
    x[3, 7], x[2, 9] = -0.0, 0.0
    check(lambda x: [jnp.max(x, 1), jnp.min(x, 1), 1 / jnp.max(x, 1, keepdims=True) + x], x)


def test_rows_beside_square_arrays():
    """A row's results have the shape of a row."""
    x = numbers(12, 12)
    check(lambda x: [x + jnp.max(x, 1), x + jnp.max(x, 1)[:, None], jnp.max(x, 1) * x[0]], x)
    for dims in ((0,), (1,)):
        check(lambda x: x * 2 + lax.broadcast_in_dim(jnp.max(x, 1), (12, 12), dims), x)  # noqa: B023


def test_rows_of_rows():
    x = np.random.default_rng(0).standard_normal((4, 12, 20)).astype(np.float32)

    def f(x):
        inner = jnp.sum(jnp.exp(x), axis=2)
        return [inner / jnp.sum(inner, axis=1, keepdims=True), x - inner.max(1)[:, None, None],
                jnp.exp(inner) * 2]  # fmt: skip

    check(f, x, called=set())


# -- calls ----------------------------------------------------------------------------------------


def test_what_is_called():
    x = numbers(16, 16)
    x[~np.isfinite(x)] = 1
    check(lambda x: jnp.exp(x @ x.T * 0.01 + 1) * jnp.where(x > 0, x, 0) + jnp.cumsum(x, 1) * 2, x,
          called={"dot_general", "cumsum"})  # fmt: skip


@pytest.mark.parametrize("terms", [1, 5])
def test_products_are_written_where_native_code_wants_them(terms):
    """Plain ones, transposed and reshaped ones, with one term or several."""
    x, y = numbers(8, terms), numbers(terms, 12, seed=1)
    x[~np.isfinite(x)], y[~np.isfinite(y)] = 1, -1

    def f(x, y, whole):
        return [jnp.abs(x @ y) + 1, jnp.abs(jnp.tensordot(whole, y, 1)) + 1,
                jnp.abs(y.T @ x.T) + 1, jnp.abs(jnp.einsum("bik,kj->jbi", whole, y)) + 1,
                jnp.abs(whole.astype(jnp.bfloat16) @ y.astype(jnp.bfloat16)) + 1]  # fmt: skip

    check(f, x, y, np.stack([x, x]), called={"dot_general"})


def test_a_call_in_a_loop_and_in_a_branch():
    x = np.random.default_rng(1).standard_normal((12, 12)).astype(np.float32)

    def f(x):
        step = lambda i, c: lax.cond(  # noqa: E731
            i % 3 == 0, lambda c: c @ x * 0.1 - c, lambda c: jnp.sort(c + i, 1) * 2 - 1, c
        )
        return lax.fori_loop(0, 7, step, x)

    check(f, x)


def test_what_is_called_writes_over_nothing_that_is_used():
    x, row = numbers(40, 129), numbers(1, 129, seed=1)

    def f(x, row):
        y = jnp.abs(x[:, :1])
        return [jnp.tan(y), jnp.minimum(y / (jnp.abs(row) + 1), jnp.sort(jnp.exp(-row), 1))]

    check(f, x, row)


def test_layouts_of_numpys_results():
    """The order of a sum depends on how NumPy laid out what is summed."""
    x = np.random.default_rng(0).standard_normal((20, 30)).astype(np.float32)
    check(lambda x: [jnp.sum(x.T * 2 + 1, axis=1), jnp.sum(jnp.cumsum(x, 0)[::-1] * 2, axis=1),
                     (x.T * 2) @ (x + 1)], x)  # fmt: skip


def test_an_error_in_a_call_is_raised(monkeypatch):
    x = np.ones((8, 8), np.float32)
    program = lower(jax.make_jaxpr(lambda x: jnp.sort(x * 2 + x, 0) - 1 + x * 3)(x))
    from pallas_shim.evaluator.codegen.native import calls

    def failing(operation, results):
        def fail(*arrays):
            raise ZeroDivisionError("in a call")

        return fail

    monkeypatch.setattr(calls, "_function", failing)
    code = native.compiled(program)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError, match="in a call"):
            code.run([x])


def test_calls_keep_no_memory():
    import sys

    x = np.ones((8, 8), np.float32)
    code = native.compiled(lower(jax.make_jaxpr(lambda x: jnp.sort(x * 2 + x, 0) - 1 + x * 3)(x)))
    before = sys.getrefcount(x), sys.getrefcount(x.dtype)
    for _ in range(100):
        code.run([x])
    assert sys.getrefcount(x) == before[0]
    assert sys.getrefcount(x.dtype) < before[1] + 50


# -- whole kernels, random programs ---------------------------------------------------------------


def test_kernels():
    def softmax(x_ref, out_ref):
        weights = jnp.exp(x_ref[...] - jnp.max(x_ref[...], axis=1, keepdims=True))
        out_ref[...] = weights / jnp.sum(weights, axis=1, keepdims=True)

    def norm(x_ref, out_ref):
        x = x_ref[...]
        centred = x - jnp.mean(x, axis=1, keepdims=True)
        variance = jnp.mean(centred * centred, axis=1, keepdims=True)
        out_ref[...] = jax.nn.gelu(centred * lax.rsqrt(variance + 1e-6))

    def entropy(x_ref, out_ref):
        x = x_ref[...]
        highest = jnp.max(x, axis=1, keepdims=True)
        total = jnp.log(jnp.sum(jnp.exp(x - highest), axis=1, keepdims=True)) + highest
        out_ref[...] = jnp.broadcast_to(total, x.shape)

    spec = pl.BlockSpec((8, 200), lambda i: (i, 0))
    for kernel in (softmax, norm, entropy):
        f = pl.pallas_call(kernel, jax.ShapeDtypeStruct((32, 200), jnp.float32), grid=(4,),
                           in_specs=[spec], out_specs=spec, interpret=True)  # fmt: skip
        check(f, np.random.default_rng(0).standard_normal((32, 200)).astype(np.float32),
              called=set())  # fmt: skip


UNARY = (jnp.exp, jnp.log, jnp.tanh, jnp.sin, lax.rsqrt, jnp.abs, jnp.negative, lax.logistic,
         jnp.exp2, lax.erf, jnp.expm1, jnp.log1p, jnp.sqrt, jnp.square, jnp.tan, lax.cbrt,
         jnp.arctan)  # fmt: skip
BINARY = (jnp.add, jnp.subtract, jnp.multiply, jnp.maximum, jnp.minimum,
          lambda a, b: a / (jnp.abs(b) + 1), lambda a, b: jnp.where(a > b, a, b * 2))  # fmt: skip
SHAPES = ((1, 16), (3, 16), (5, 40), (40, 129), (7, 1030), (12, 12), (2, 3000), (33, 9))


def random_function(source, rows, columns):
    """A function of arrays (rows, columns), twice, (1, columns) and (rows, 1)."""

    def grown(values):
        a, b = source.choice(values[-4:]), source.choice(values)
        kind = source.random()
        if kind < 0.3:
            return source.choice(UNARY)(a)
        if kind < 0.6:
            shapes = a.shape, b.shape
            fits = np.broadcast_shapes(*shapes) in shapes if compatible(*shapes) else False
            return source.choice(BINARY)(a, b) if fits else -a
        if kind < 0.8 and a.ndim:
            axis = source.choice([-1, -1, -1, 0, tuple(range(a.ndim))])
            reduce = source.choice([jnp.sum, jnp.sum, jnp.max, jnp.min])
            return reduce(a, axis=axis, keepdims=source.random() < 0.8)
        if a.ndim < 2:
            return a * 2
        moved = [lambda a: a.T, lambda a: jnp.cumsum(a, source.choice([0, 1])),
                 lambda a: jnp.sort(a, 1), lambda a: jnp.roll(a, 1, source.choice([0, 1])),
                 lambda a: a @ a.T]  # fmt: skip
        return source.choice(moved)(a)

    def function(*arrays):
        values = list(arrays)
        for _ in range(source.randint(4, 14)):
            values.append(grown(values))
        return values[-3:]

    return function


def compatible(a, b):
    return all(m == n or 1 in (m, n) for m, n in zip(a[::-1], b[::-1], strict=False))


@pytest.mark.parametrize("seed", range(10))
def test_random_programs(seed):
    source = random.Random(seed)
    rows, columns = source.choice(SHAPES)
    shapes = (rows, columns), (rows, columns), (1, columns), (rows, 1)
    args = [numbers(*shape, seed=seed + n) for n, shape in enumerate(shapes)]
    jaxpr = jax.make_jaxpr(random_function(source, rows, columns))(*args)
    for skip in (NAMES, ()):
        why = compare_natively(optimise(lower(jaxpr), skip), args)
        assert why == "" or why.startswith(("too little beside", "a call with an array")), why


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_blocks_that_are_multiplied_as_one_product(dtype):
    def kernel(x, y, out, acc):
        @pl.when(pl.program_id(2) == 0)
        def _():
            acc[...] = jnp.zeros_like(acc)

        acc[...] += jnp.dot(x[...], y[...], preferred_element_type=jnp.float32)
        out[...] = jnp.maximum(acc[...], 0).astype(out.dtype)

    f = pl.pallas_call(
        kernel, jax.ShapeDtypeStruct((256, 384), dtype), grid=(2, 3, 2),
        in_specs=[pl.BlockSpec((128, 128), lambda i, j, k: (i, k)),
                  pl.BlockSpec((128, 128), lambda i, j, k: (k, j))],
        out_specs=pl.BlockSpec((128, 128), lambda i, j, k: (i, j)),
        scratch_shapes=[pltpu.VMEM((128, 128), jnp.float32)], interpret=True,
    )  # fmt: skip
    x, y = (numbers(*shape).astype(dtype) for shape in ((256, 256), (256, 384)))
    check(f, x, y)
