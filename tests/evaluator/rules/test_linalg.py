"""Matrix products against JAX within rounding; decompositions up to their definition."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from pallas_shim.evaluator.execute import Executable
from pallas_shim.evaluator.lower import lower
from pallas_shim.evaluator.registry import Unsupported
from tests.evaluator.rules.bounds import both, check_sums
from tests.oracle import check_rule

BF16, F8 = ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn

# lhs, rhs, dimension numbers
DOTS = [
    ((3, 4), (4, 5), (((1,), (0,)), ((), ()))),
    ((3, 4), (5, 4), (((1,), (1,)), ((), ()))),
    ((4, 3), (4, 5), (((0,), (0,)), ((), ()))),
    ((4, 3), (5, 4), (((0,), (1,)), ((), ()))),
    ((4,), (4,), (((0,), (0,)), ((), ()))),
    ((3, 4), (4,), (((1,), (0,)), ((), ()))),
    ((), (), (((), ()), ((), ()))),
    ((3,), (4,), (((), ()), ((), ()))),
    ((2, 3, 4), (2, 4, 5), (((2,), (1,)), ((0,), (0,)))),
    ((3, 2, 4), (4, 5, 2), (((2,), (0,)), ((1,), (2,)))),
    ((2, 3, 4, 5), (5, 4, 6), (((2, 3), (1, 0)), ((), ()))),
    ((2, 3, 4, 5), (3, 6, 2, 7, 5), (((3,), (4,)), ((1, 0), (0, 2)))),
    ((2, 3), (2, 3), (((), ()), ((0, 1), (0, 1)))),
    ((3, 0), (0, 5), (((1,), (0,)), ((), ()))),
    ((0, 4), (4, 5), (((1,), (0,)), ((), ()))),
]
TERMS = 20


def _name(value):
    return np.dtype(value).name if isinstance(value, type) else None


def _data(shape, dtype, seed=0):
    rng = np.random.default_rng(seed)
    dtype = np.dtype(dtype)
    if dtype.kind == "b":
        return rng.random(shape) < 0.3
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        return rng.integers(info.min, info.max, shape, dtype, endpoint=True)
    if dtype.kind == "c":
        return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)


def _dots(**options):
    """Every product of DOTS, in one function: few compilations, many cases."""

    def f(*arrays):
        pairs = zip(arrays[::2], arrays[1::2], DOTS, strict=True)
        return [lax.dot_general(x, y, dims, **options) for x, y, (_, _, dims) in pairs]

    return f


def _operands(lhs_dtype, rhs_dtype):
    shapes = ((_data(a, lhs_dtype), _data(b, rhs_dtype, 1)) for a, b, _ in DOTS)
    return [operand for pair in shapes for operand in pair]


@pytest.mark.parametrize(
    "lhs, rhs", [(np.float32, np.float32), (np.float64, np.float64), (BF16, BF16),
                 (F8, BF16), (BF16, np.float32), (np.complex64, np.complex64)],
    ids=_name,
)  # fmt: skip
def test_products_of_floats(lhs, rhs):
    check_sums(_dots(), *_operands(lhs, rhs), terms=TERMS)


@pytest.mark.parametrize("operands, preferred", [(BF16, np.float32), (np.int8, np.float32)],
                         ids=_name)  # fmt: skip
def test_products_of_floats_with_a_preferred_type(operands, preferred):
    def f(*arrays):
        # The exact sums are asked for in float64.
        wide = arrays[0].dtype == np.float64
        return _dots(preferred_element_type=np.float64 if wide else preferred)(*arrays)

    check_sums(f, *_operands(operands, operands), terms=TERMS)


@pytest.mark.parametrize(
    "lhs, rhs, preferred",
    [(np.int8, np.int8, None), (np.int8, np.int8, np.int32), (np.uint8, np.uint8, np.uint32),
     (np.int8, np.uint8, np.int32), (np.int16, np.int16, np.int32), (np.int32, np.int32, None),
     (np.uint32, np.uint32, None), (np.int64, np.int64, None), (np.int8, np.int32, None),
     (np.int8, np.int8, np.uint32), (bool, bool, None), (bool, bool, np.int32)],
    ids=_name,
)  # fmt: skip
def test_products_of_integers_are_exact(lhs, rhs, preferred):
    check_rule(_dots(preferred_element_type=preferred), *_operands(lhs, rhs))


def test_large_integer_sums_are_exact():
    x = np.full((1, 3000), 127, np.int8)
    f = lambda x: lax.dot(x, x.T, preferred_element_type=np.int32)  # noqa: E731
    check_rule(f, x)
    check_rule(lambda x: lax.dot(x, x.T), x)
    wide = np.full((1, 3000), -(2**15), np.int16)
    check_rule(f, wide)


@settings(derandomize=True, max_examples=10, deadline=None)
@given(
    m=st.integers(1, 40), k=st.integers(1, 300), n=st.integers(1, 40), seed=st.integers(0, 99)
)
def test_any_size(m, k, n, seed):
    x, y = _data((m, k), np.float32, seed), _data((k, n), np.float32, seed + 1)
    check_sums(lax.dot, x, y, terms=k)


def test_special_values_in_products():
    x = np.array([[np.inf, 0], [np.nan, 1], [1, 2], [np.inf, -np.inf]], np.float32)
    check_rule(lambda x, y: lax.dot(x, y), x, np.array([[1, 0], [1, 2]], np.float32))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, BF16], ids=_name)
def test_a_product_of_one_term_keeps_the_sign_of_zero(dtype):
    column = np.array([[-0.0], [0], [2], [np.inf]], dtype)
    check_rule(lambda x: [lax.dot(x, -x.T), lax.dot(x, x.T), lax.dot(x[0], x[2])], column)


def test_ragged_dot():
    x, y = _data((7, 4), np.float32), _data((3, 4, 5), np.float32, 1)
    sizes = np.array([2, 0, 4], np.int32)
    check_sums(lambda x, y: lax.ragged_dot(x, y, sizes), x, y, terms=12)


def test_precisions():
    x = _data((3, 3), np.float32)
    for precision in (lax.Precision.HIGHEST, "highest"):
        check_sums(lambda x, p=precision: lax.dot(x, x, precision=p), x, terms=3)


def test_a_convolution_by_an_algorithm_is_refused():
    def f(x):
        return lax.conv(x, x, (1, 1), "SAME", precision="TF32_TF32_F32")

    with pytest.raises(Unsupported, match="conv_general_dilated: the precision"):
        lower(jax.make_jaxpr(f)(_data((1, 1, 3, 3), np.float32)))


PRESETS = lax.DotAlgorithmPreset


@pytest.mark.parametrize("operand", [np.float32, BF16, np.float16, F8], ids=_name)
@pytest.mark.parametrize("preferred", [None, np.float32])
@pytest.mark.parametrize(
    "algorithm",
    [PRESETS.DEFAULT, PRESETS.F32_F32_F32, PRESETS.BF16_BF16_F32, PRESETS.BF16_BF16_F32_X3,
     PRESETS.BF16_BF16_F32_X6, PRESETS.F16_F16_F16],
    ids=lambda a: a.name,
)  # fmt: skip
def test_algorithms_of_products(operand, preferred, algorithm):
    def f(x, y):
        return lax.dot(x, y, precision=algorithm, preferred_element_type=preferred)

    # XLA itself has no algorithm for most products that aren't of two matrices.
    (got,), (want,) = both(f, _data((5, 20), operand), _data((20, 7), operand, 1))
    # What the sums are rounded to, at the end or at each step.
    types = [want.dtype, np.float16 if algorithm == PRESETS.F16_F16_F16 else np.float32]
    eps = max(float(ml_dtypes.finfo(t).eps) for t in types)
    wide = want.astype(np.float64)
    atol = 8 * eps * np.abs(wide).max()
    np.testing.assert_allclose(got.astype(np.float64), wide, rtol=eps, atol=atol)


def _product(x, algorithm):
    jaxpr = jax.make_jaxpr(lambda x: lax.dot(x, x.T, precision=algorithm))(x)
    (result,) = Executable(lower(jaxpr))(x)
    return result


@pytest.mark.parametrize("algorithm", ["TF32_TF32_F32", "TF32_TF32_F32_X3", "F16_F16_F32"])
def test_an_algorithm_that_xla_has_for_a_gpu_only(algorithm):
    x = _data((5, 7), np.float16).astype(np.float32)
    got = _product(x, algorithm)
    np.testing.assert_allclose(got, x.astype(np.float64) @ x.T, rtol=1e-5, atol=1e-5)


def test_an_algorithm_of_ones_own():
    algorithm = lax.DotAlgorithm(
        lhs_precision_type=BF16, rhs_precision_type=BF16, accumulation_type=np.float32
    )
    x = _data((5, 7), np.float32)
    got = _product(x, algorithm)
    rounded = x.astype(BF16).astype(np.float64)
    np.testing.assert_allclose(got, rounded @ rounded.T, rtol=1e-5, atol=1e-5)


# -- decompositions -------------------------------------------------------------------------

LAPACK = [np.float32, np.complex64]


def _matrices(dtype, *shape):
    return _data(shape or (2, 4, 4), dtype)


def _adjoint(a):
    return a.swapaxes(-1, -2).conj()


def _close(a, b, size=4.0):
    """Equal within what a backward stable algorithm leaves, for matrices of norm ``size``."""
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape
    eps = float(np.finfo(a.dtype).eps)
    assert np.abs(a - b).max(initial=0) <= 100 * size * eps


@pytest.mark.parametrize("dtype", LAPACK, ids=_name)
def test_cholesky(dtype):
    a = _matrices(dtype)
    a = a @ _adjoint(a) + 4 * np.eye(4, dtype=dtype)
    (got,), (want,) = both(lambda a: lax.linalg.cholesky(a), a)
    _close(got, want)
    broken = np.stack([a[0], -a[1]])
    (got,), (want,) = both(lambda a: lax.linalg.cholesky(a), broken)
    assert (np.isnan(got) == np.isnan(want)).all()
    assert np.isnan(got[1]).any()


@pytest.mark.parametrize("left_side", [True, False])
@pytest.mark.parametrize("dtype", LAPACK, ids=_name)
def test_triangular_solve(left_side, dtype):
    a = _matrices(dtype) + 4 * np.eye(4, dtype=dtype)
    b = _data((2, 4, 3) if left_side else (2, 3, 4), dtype, 1)
    options = [
        {"lower": lower, "transpose_a": transpose, "conjugate_a": conjugate,
         "unit_diagonal": False}
        for lower in (False, True) for transpose in (False, True) for conjugate in (False, True)
    ] + [{"lower": True, "unit_diagonal": True}]  # fmt: skip
    got, want = both(
        lambda a, b: [
            lax.linalg.triangular_solve(a, b, left_side=left_side, **o) for o in options
        ],
        a,
        b,
    )
    for one, other in zip(got, want, strict=True):
        _close(one, other, max(4.0, float(np.abs(other).max())))


@pytest.mark.parametrize("dtype", LAPACK, ids=_name)
def test_lu(dtype):
    for shape in ((2, 4, 4), (5, 3), (3, 5)):
        got, want = both(lambda a: lax.linalg.lu(a), _matrices(dtype, *shape))
        _close(got[0], want[0])
        assert (got[1] == want[1]).all() and (got[2] == want[2]).all()


@pytest.mark.parametrize("pivoting", [False, True])
@pytest.mark.parametrize("dtype", LAPACK, ids=_name)
def test_qr(dtype, pivoting):
    for shape, full in (((2, 5, 3), True), ((2, 5, 3), False), ((3, 5), True)):
        a = _matrices(dtype, *shape)
        q, r, *p = both(
            lambda a, full=full: lax.linalg.qr(a, full_matrices=full, pivoting=pivoting), a
        )[0]
        permuted = np.take_along_axis(a, p[0][..., None, :], -1) if pivoting else a
        _close(q @ r, permuted)
        _close(_adjoint(q) @ q, np.broadcast_to(np.eye(q.shape[-1], dtype=dtype), (
            *q.shape[:-2], q.shape[-1], q.shape[-1])))  # fmt: skip
        assert (np.tril(r, -1) == 0).all()


@pytest.mark.parametrize("dtype", LAPACK, ids=_name)
def test_eigh(dtype):
    a = _matrices(dtype)
    a = a + _adjoint(a)
    for lower_half in (True, False):
        half = np.tril(a) if lower_half else np.triu(a)
        (v, w), (_, want) = both(
            lambda a, low=lower_half: lax.linalg.eigh(a, lower=low, symmetrize_input=False), half
        )
        _close(w, want, 8)
        _close(a @ v, v * w[..., None, :], 8)


@pytest.mark.parametrize("dtype", LAPACK, ids=_name)
def test_svd(dtype):
    for shape, full in (((2, 5, 3), True), ((2, 3, 5), False)):
        a = _matrices(dtype, *shape)

        def f(a, full=full):
            return lax.linalg.svd(a, full_matrices=full), lax.linalg.svd(a, compute_uv=False)

        (u, s, vt, alone), (_, want, _, _) = both(f, a)
        k = s.shape[-1]
        _close(s, want)
        _close(alone, s)
        _close((u[..., :k] * s[..., None, :]) @ vt[..., :k, :], a)


@pytest.mark.parametrize("dtype", LAPACK, ids=_name)
def test_nonsymmetric(dtype):
    a = _matrices(dtype)
    (w, left, right), _ = both(lambda a: lax.linalg.eig(a), a)
    _close(a @ right, right * w[..., None, :])
    _close(_adjoint(left) @ a, w[..., None] * _adjoint(left))
    (t, z), _ = both(lambda a: lax.linalg.schur(a), a)
    _close(z @ t @ _adjoint(z), a)
    (h, taus), (want, want_taus) = both(lambda a: lax.linalg.hessenberg(a), a)
    _close(h, want)
    _close(taus, want_taus)


@pytest.mark.parametrize("dtype", LAPACK, ids=_name)
def test_tridiagonal(dtype):
    a = _matrices(dtype)
    a = a + _adjoint(a)
    for lower_half in (True, False):
        got, want = both(lambda a, low=lower_half: lax.linalg.tridiagonal(a, lower=low), a)
        for one, other in zip(got, want, strict=True):
            _close(one, other, 8)
    low, middle, high = (_data((2, 5), dtype, seed) for seed in range(3))
    middle = middle + 4
    low[:, 0] = high[:, -1] = 0
    b = _data((2, 5, 3), dtype, 4)
    (x,), (y,) = both(lax.linalg.tridiagonal_solve, low, middle, high, b)
    _close(x, y)


def test_defined_by_others():
    a, c = _data((3, 4), np.float32), _data((3, 3), np.float32, 1)
    (got,), (want,) = both(
        lambda a, c: lax.linalg.symmetric_product(a, c + c.T, alpha=2.0, beta=0.5), a, c
    )
    _close(got, want, 16)
    r, w = np.triu(_data((4, 4), np.float32)) + 4 * np.eye(4, dtype=np.float32), np.ones(4, "f4")
    (got,), (want,) = both(lax.linalg.cholesky_update, r, w)
    _close(got, want)
    (got,), (want,) = both(
        lambda p: lax.linalg.lu_pivots_to_permutation(p, 5), np.array([[2, 2, 4]], np.int32)
    )
    assert (got == want).all()


def test_solve_and_friends():
    a = _data((4, 4), np.float32) + 4 * np.eye(4, dtype=np.float32)
    b = _data((4, 2), np.float32, 1)
    got, want = both(lambda a, b: (jnp.linalg.solve(a, b), jnp.linalg.inv(a)), a, b)
    for one, other in zip(got, want, strict=True):
        _close(one, other)


def test_empty_matrices():
    got, _ = both(lambda a: (lax.linalg.cholesky(a), lax.linalg.lu(a)), np.zeros((0, 3, 3), "f4"))
    assert all(x.size == 0 for x in got)
    with pytest.raises(Unsupported, match="svd: empty matrices"):
        lower(jax.make_jaxpr(lax.linalg.svd)(np.zeros((0, 3), np.float32)))


# -- Fourier transforms ---------------------------------------------------------------------


@pytest.mark.parametrize("double", [False, True])
def test_fft(double):
    real = np.float64 if double else np.float32
    x = _data((2, 3, 8), np.complex128 if double else np.complex64)
    eps = float(np.finfo(real).eps)

    def f(x, r):
        for lengths in ((8,), (3, 8), (2, 3, 8)):
            yield lax.fft(x, "fft", lengths)
            yield lax.fft(x, "ifft", lengths)
            yield lax.fft(r, "rfft", lengths)
            half = lax.slice_in_dim(x, 0, lengths[-1] // 2 + 1, axis=2)
            yield lax.fft(half, "irfft", lengths)

    got, want = both(lambda x, r: list(f(x, r)), x, np.ascontiguousarray(x.real, real))
    for one, other in zip(got, want, strict=True):
        # A value is a sum of 48 terms; the error of an FFT grows as their norm.
        assert np.abs(one - other).max() <= 10 * eps * max(1.0, float(np.abs(x).sum()))
