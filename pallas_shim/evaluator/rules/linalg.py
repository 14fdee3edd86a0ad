"""Matrix products, and the primitives that JAX computes with LAPACK."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import scipy  # imports its parts at their first use, which keeps them out of most first calls

from pallas_shim.evaluator import blas, products, scalar_types
from pallas_shim.evaluator.lower import Lowering
from pallas_shim.evaluator.memory import same
from pallas_shim.evaluator.program import Array, ArrayType, Types, Value
from pallas_shim.evaluator.registry import Stack, Unsupported, batch_rule, impl_rule, lowering_rule
from pallas_shim.evaluator.rules.casts import cast
from pallas_shim.jax_compat import definitions

Function = Callable[..., Any]

_PRECISIONS = ("DEFAULT", "HIGH", "HIGHEST")


# -- products -------------------------------------------------------------------------------


def multiplication(
    primitive: str, lhs: np.dtype, rhs: np.dtype, out: np.dtype, terms: int, precision: Any
) -> tuple[np.dtype, Function | None]:
    """The way to sum ``terms`` products: the dtype to sum in, and a function that rounds the sums.

    Integers are summed in floating point, by BLAS, if every sum is exact there. Otherwise they are
    summed in the result's dtype, and wrap around.

    Raises:
      Unsupported: the requested arithmetic is not one of these.
    """
    pair = precision if isinstance(precision, (tuple, list)) else (precision,)
    for one in pair:
        if one is not None and getattr(one, "name", str(one)) not in _PRECISIONS:
            raise Unsupported(primitive, f"the precision {one}")
    inexact = [
        scalar_types.wide(d) for d in (lhs, rhs, out) if d.kind == "c" or scalar_types.is_float(d)
    ]
    if inexact:
        if scalar_types.wide(out) not in inexact:
            raise Unsupported(primitive, f"floating-point operands with a result of {out.name}")
        work = functools.reduce(np.promote_types, inexact)
        return work, None if work == out else lambda sums: sums.astype(out)
    bound = terms * _magnitude(lhs) * _magnitude(rhs)
    if bound < 1 << 24:
        work = np.dtype(np.float32)
    elif bound < 1 << 53:
        work = np.dtype(np.float64)
    else:
        work = scalar_types.wide(out)
        return work, None if work == out else lambda sums: sums.astype(out)
    if out.kind == "b":
        return work, lambda sums: sums != 0
    if out.kind == "i" and bound <= np.iinfo(out).max:
        return work, lambda sums: sums.astype(out)
    return work, lambda sums: sums.astype(np.int64).astype(out)


def _magnitude(dtype: np.dtype) -> int:
    if dtype.kind == "b":
        return 1
    info = ml_dtypes.iinfo(dtype)
    return max(-int(info.min), int(info.max))


@lowering_rule("dot_general")
def _dot_of_an_algorithm(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    """Converts operands and sums as the algorithm says, like XLA on a CPU. XLA has some algorithms
    on a GPU only, such as TF32_TF32_F32. Here these compute in the dtypes of their operands."""
    out = lowering.type(eqn.outvars[0].aval)
    params = {"dimension_numbers": eqn.params["dimension_numbers"]}
    dtypes = definitions.dtypes_of_product(eqn)
    if dtypes is None:
        params["precision"] = eqn.params["precision"]
        return lowering.apply("dot_general", ins, [out], params)

    def converted(value: Value, dtype: np.dtype) -> Value:
        if value.type.dtype == dtype:
            return value
        type = ArrayType(value.type.shape, dtype)
        return lowering.apply("convert_element_type", [value], [type], {})[0]

    ins = [converted(value, dtype) for value, dtype in zip(ins, dtypes[:2], strict=True)]
    sums = lowering.apply("dot_general", ins, [ArrayType(out.shape, dtypes[2])], params)
    return [converted(sums[0], out.dtype)]


@impl_rule("dot_general")
def _dot_general(
    ins: Types, outs: Types, *, dimension_numbers: Any, precision: Any = None, **_: Any
) -> Callable[..., Any]:
    (lhs_contracting, rhs_contracting), (lhs_batch, rhs_batch) = dimension_numbers
    (lhs, rhs), (out,) = ins, outs
    lhs_free = products.others(lhs.ndim, lhs_contracting, lhs_batch)
    rhs_free = products.others(rhs.ndim, rhs_contracting, rhs_batch)
    stacks = products.stacks(lhs.shape, rhs.shape, dimension_numbers)
    rows, terms, columns = *stacks[0][-2:], stacks[1][-1]
    work, finish = multiplication(
        "dot_general", lhs.dtype, rhs.dtype, out.dtype, terms, precision
    )
    left = _matrices(lhs, lhs_batch, lhs_free, lhs_contracting, work)
    right = _matrices(rhs, rhs_batch, rhs_contracting, rhs_free, work)
    reshapes = len(lhs_free) != 1 or len(rhs_free) != 1
    # A single product isn't summed, because 0 + -0 would lose the sign of a zero. XLA keeps it.
    multiply: Function = np.multiply
    if terms != 1:
        of_stacks = products.product_of_stacks(*stacks)
        multiply = of_stacks or blas.product(rows, terms, columns)
    if left is None and right is None and finish is None and not reshapes:
        return multiply

    is_whole, shape = finish is None and not reshapes, out.shape

    def run(x: Array, y: Array, out: Array | None = None) -> Array:
        x = x if left is None else left(x)
        y = y if right is None else right(y)
        if is_whole:
            return multiply(x, y, out=out)
        product = multiply(x, y)
        if reshapes:
            product = product.reshape(shape)
        if finish is not None:
            product = finish(product)
        if out is not None:
            out[...] = product
        return product

    return run


@impl_rule("sum_of_products")
def _sum_of_products(
    ins: Types, outs: Types, *, starts: bool, dimension_numbers: Any, precision: Any = None,
    **_: Any,
) -> Callable[..., Any]:  # fmt: skip
    """The operands are what the sum starts with, if it ``starts`` with anything but zeros, and
    pairs of matrices. The other parameters are those of each product."""
    (out,), (lhs, rhs) = outs, ins[starts : starts + 2]
    stacks = products.stacks(lhs.shape, rhs.shape, dimension_numbers)
    terms = stacks[0][-1]
    finish = multiplication(
        "sum_of_products", lhs.dtype, rhs.dtype, out.dtype, terms, precision
    )[1]
    (lhs_contracting, rhs_contracting), (lhs_batch, rhs_batch) = dimension_numbers
    lhs_free = products.others(lhs.ndim, lhs_contracting, lhs_batch)
    rhs_free = products.others(rhs.ndim, rhs_contracting, rhs_batch)
    if finish is not None or len(lhs_free) != 1 or len(rhs_free) != 1:
        raise Unsupported("sum_of_products", "of results that aren't matrices of the sum's dtype")
    left = _matrices(lhs, lhs_batch, lhs_free, lhs_contracting, out.dtype) or same
    right = _matrices(rhs, rhs_batch, rhs_contracting, rhs_free, out.dtype) or same
    add_up = products.sum_of_products(*stacks, out.dtype, left, right)

    def run(*arrays: Array, out: Array | None = None) -> Array:
        start = arrays[0] if starts else None
        matrices = arrays[starts:]
        return add_up(start, list(zip(matrices[::2], matrices[1::2], strict=True)), out)

    return run


@batch_rule("dot_general", ones=True)
def _dot_general_batch(
    stack: Stack, *, dimension_numbers: Any, **params: Any
) -> Mapping[str, Any] | None:
    def behind(pair: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(d + 1 for d in dims) for dims in pair)

    contracting, batch = map(behind, dimension_numbers)
    return {"dimension_numbers": (contracting, tuple((0, *dims) for dims in batch)), **params}


def _matrices(
    array: ArrayType,
    batch: Sequence[int],
    rows: Sequence[int],
    columns: Sequence[int],
    dtype: np.dtype,
) -> Function | None:
    """A function that turns an array into a batch of matrices of ``dtype``. None if the array
    already is one."""
    order = (*batch, *rows, *columns)
    sizes = [array.shape[d] for d in batch]
    shape = (*sizes, *(math.prod(array.shape[d] for d in dims) for dims in (rows, columns)))
    transposes = order != tuple(range(array.ndim))
    reshapes = len(rows) != 1 or len(columns) != 1
    casts = array.dtype != dtype
    if not (transposes or reshapes or casts):
        return None
    if not casts and not reshapes:
        return lambda x: x.transpose(order)

    widen = cast(array.dtype, dtype) if casts else same

    def prepare(x: Array) -> Array:
        x = widen(x)
        return x.transpose(order).reshape(shape) if reshapes else x.transpose(order)

    return prepare


# -- by definition --------------------------------------------------------------------------


@lowering_rule(
    "ragged_dot_general",
    "qr",
    "ormqr",
    "cholesky_update",
    "symmetric_product",
    "lu_pivots_to_permutation",
)
def _defined(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    return lowering.inline(definitions.definition(eqn), ins)


@lowering_rule("custom_linear_solve")
def _custom_linear_solve(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    """Applies the user's solver to its constants and the right-hand sides."""
    lengths, jaxprs = eqn.params["const_lengths"], eqn.params["jaxprs"]
    start = lengths.matvec + lengths.vecmat
    consts = ins[start : start + lengths.solve]
    return lowering.inline(jaxprs.solve, [*consts, *ins[sum(lengths) :]])


# -- LAPACK ---------------------------------------------------------------------------------


def _decomposition(primitive: str, *, rank: int = 2, multiple: bool = True) -> Callable[..., Any]:
    """Registers ``make(ins, outs, **params) -> fn`` where ``fn`` takes one matrix of each batch.

    ``fn`` returns a tuple, or None if LAPACK fails. Then the results are NaN, as in JAX. ``rank``
    is the rank of the first operand without its batch dimensions.
    """

    def register(make: Function) -> Function:
        @impl_rule(primitive)
        def batched(ins: Types, outs: Types, **params: Any) -> Callable[..., Any]:
            if any(a.dtype not in _LAPACK for a in (*ins, *outs)):
                raise Unsupported(primitive, f"LAPACK has no {ins[0].dtype.name}")
            empty = not any(out.size for out in outs)
            if 0 in ins[0].shape[-rank:] and not empty:
                raise Unsupported(primitive, "empty matrices")
            function = make(ins, outs, **params)
            batch = ins[0].shape[: ins[0].ndim - rank]

            def run(*arrays: Array) -> Array:
                results = tuple(np.empty(out.shape, out.dtype) for out in outs)
                if empty:
                    return results
                for index in np.ndindex(batch):
                    values = function(*(array[index] for array in arrays))
                    for i, result in enumerate(results):
                        result[index] = np.nan if values is None else values[i]
                return results

            return run if multiple else lambda *arrays: run(*arrays)[0]

        return make

    return register


_LAPACK = tuple(map(np.dtype, ("f4", "f8", "c8", "c16", "i4")))


@_decomposition("cholesky", multiple=False)
def _cholesky(ins: Types, outs: Types, **_: Any) -> Callable[..., Any]:
    (potrf,) = scipy.linalg.lapack.get_lapack_funcs(("potrf",), dtype=ins[0].dtype)

    def run(a: Array) -> Array:
        factor, info = potrf(a, lower=1, clean=0)
        return None if info else (factor,)

    return run


@_decomposition("triangular_solve", multiple=False)
def _triangular_solve(
    ins: Types,
    outs: Types,
    *,
    left_side: Any,
    lower: Any,
    transpose_a: Any,
    conjugate_a: Any,
    unit_diagonal: Any,
    **_: Any,
) -> Callable[..., Any]:
    (trsm,) = scipy.linalg.blas.get_blas_funcs(("trsm",), dtype=ins[0].dtype)
    transposition = (2 if conjugate_a else 1) if transpose_a else 0
    options = {
        "side": 0 if left_side else 1,
        "lower": int(lower),
        "trans_a": transposition,
        "diag": int(unit_diagonal),
    }
    conjugates = conjugate_a and not transpose_a
    return lambda a, b: (trsm(1, a.conj() if conjugates else a, b, **options),)


@_decomposition("lu")
def _lu(ins: Types, outs: Types, **_: Any) -> Callable[..., Any]:
    (getrf,) = scipy.linalg.lapack.get_lapack_funcs(("getrf",), dtype=ins[0].dtype)
    rows = ins[0].shape[-2]

    def run(a: Array) -> tuple[Array, ...]:
        factors, pivots, _ = getrf(a)
        permutation = np.arange(rows, dtype=np.int32)
        for i, pivot in enumerate(pivots):
            permutation[[i, pivot]] = permutation[[pivot, i]]
        return factors, pivots, permutation

    return run


@_decomposition("geqrf")
def _geqrf(ins: Types, outs: Types, **_: Any) -> Callable[..., Any]:
    (geqrf,) = scipy.linalg.lapack.get_lapack_funcs(("geqrf",), dtype=ins[0].dtype)
    return lambda a: geqrf(a)[:2]


@_decomposition("geqp3")
def _geqp3(ins: Types, outs: Types, **_: Any) -> Callable[..., Any]:
    (geqp3,) = scipy.linalg.lapack.get_lapack_funcs(("geqp3",), dtype=ins[0].dtype)

    def run(a: Array, fixed: Array) -> Array:
        if fixed.any():
            raise Unsupported("geqp3", "columns that are fixed in front")
        return geqp3(a)[:3]

    return run


@_decomposition("householder_product", multiple=False)
def _householder_product(ins: Types, outs: Types, **_: Any) -> Callable[..., Any]:
    name = "ungqr" if ins[0].dtype.kind == "c" else "orgqr"
    (gqr,) = scipy.linalg.lapack.get_lapack_funcs((name,), dtype=ins[0].dtype)
    return lambda a, taus: gqr(a, taus)[:1]


@_decomposition("eigh")
def _eigh(
    ins: Types,
    outs: Types,
    *,
    lower: Any,
    subset_by_index: Any = None,
    algorithm: Any = None,
    **_: Any,
) -> Callable[..., Any]:
    size = ins[0].shape[-1]
    if subset_by_index not in (None, (0, size)) or algorithm is not None:
        raise Unsupported("eigh", "subset_by_index and algorithm have no CPU form in JAX")
    name = "heevd" if ins[0].dtype.kind == "c" else "syevd"
    (evd,) = scipy.linalg.lapack.get_lapack_funcs((name,), dtype=ins[0].dtype)

    def run(a: Array) -> Array:
        values, vectors, info = evd(a, compute_v=1, lower=int(lower))
        return None if info else (vectors, values)

    return run


@_decomposition("svd")
def _svd(
    ins: Types,
    outs: Types,
    *,
    full_matrices: Any,
    compute_uv: Any,
    subset_by_index: Any = None,
    algorithm: Any = None,
    **_: Any,
) -> Callable[..., Any]:
    if subset_by_index not in (None, (0, min(ins[0].shape[-2:]))):
        raise Unsupported("svd", "subset_by_index has no CPU form in JAX")
    name = "DEFAULT" if algorithm is None else algorithm.name
    if name not in _SVD:
        raise Unsupported("svd", f"the algorithm {name} has no CPU form in JAX")
    (gesxd,) = scipy.linalg.lapack.get_lapack_funcs((_SVD[name],), dtype=ins[0].dtype)
    options = {"compute_uv": int(compute_uv), "full_matrices": int(bool(full_matrices))}

    def run(a: Array) -> Array:
        u, s, vt, info = gesxd(a, **options)
        return None if info else (s, u, vt)

    return run


_SVD = {"DEFAULT": "gesdd", "DIVIDE_AND_CONQUER": "gesdd", "QR": "gesvd"}


@_decomposition("eig")
def _eig(
    ins: Types,
    outs: Types,
    *,
    compute_left_eigenvectors: Any,
    compute_right_eigenvectors: Any,
    **_: Any,
) -> Callable[..., Any]:
    left, right = compute_left_eigenvectors, compute_right_eigenvectors

    def run(a: Array) -> Array:
        try:
            result = scipy.linalg.eig(a, left=left, right=right, check_finite=False)
        except np.linalg.LinAlgError:
            return None
        return result if left or right else (result,)

    return run


@_decomposition("schur")
def _schur(ins: Types, outs: Types, *, sort_eig_vals: Any, **_: Any) -> Callable[..., Any]:
    if sort_eig_vals:
        raise Unsupported("schur", "sort_eig_vals has no CPU form in JAX")
    kind = "complex" if ins[0].dtype.kind == "c" else "real"

    def run(a: Array) -> Array:
        try:
            return scipy.linalg.schur(a, output=kind, check_finite=False)
        except np.linalg.LinAlgError:
            return None

    return run


@_decomposition("hessenberg")
def _hessenberg(ins: Types, outs: Types, **_: Any) -> Callable[..., Any]:
    (gehrd,) = scipy.linalg.lapack.get_lapack_funcs(("gehrd",), dtype=ins[0].dtype)
    return lambda a: gehrd(a)[:2]


@_decomposition("tridiagonal")
def _tridiagonal(ins: Types, outs: Types, *, lower: Any, **_: Any) -> Callable[..., Any]:
    name = "hetrd" if ins[0].dtype.kind == "c" else "sytrd"
    (trd,) = scipy.linalg.lapack.get_lapack_funcs((name,), dtype=ins[0].dtype)
    return lambda a: trd(a, lower=int(lower))[:4]


@_decomposition("tridiagonal_solve", rank=1, multiple=False)
def _tridiagonal_solve(
    ins: Types, outs: Types, *, perturb_singular: Any = False, **_: Any
) -> Callable[..., Any]:
    if perturb_singular:
        raise Unsupported("tridiagonal_solve", "perturb_singular")
    (gtsv,) = scipy.linalg.lapack.get_lapack_funcs(("gtsv",), dtype=ins[0].dtype)

    def run(below: Array, diagonal: Array, above: Array, b: Array) -> Array:
        *_, x, info = gtsv(below[1:], diagonal, above[:-1], b)
        return None if info else (x,)

    return run


# -- Fourier transforms ---------------------------------------------------------------------

# In the order of JAX's FftType.
_FFT = ("fftn", "ifftn", "rfftn", "irfftn")


@impl_rule("fft")
def _fft(
    ins: Types, outs: Types, *, fft_type: Any, fft_lengths: Any, **_: Any
) -> Callable[..., Any]:
    transform = getattr(scipy.fft, _FFT[int(fft_type)])
    lengths = tuple(fft_lengths)
    axes = tuple(range(-len(lengths), 0))
    if not lengths:
        return lambda x: np.array(x, outs[0].dtype)
    if not outs[0].size or not ins[0].size:
        return lambda x: np.zeros(outs[0].shape, outs[0].dtype)
    return lambda x: transform(x, s=lengths, axes=axes)
