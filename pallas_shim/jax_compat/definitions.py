"""Primitives that JAX defines by other primitives: `definition` gives the jaxpr.

JAX lowers many primitives by tracing a function of simpler ones. A random split is threefry hashes
of counters, and a QR decomposition two LAPACK calls. The evaluator inlines the same jaxprs, so
those primitives mean the same as to JAX, in every version and under every setting. Key arrays
appear here as the integers of their keys.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax._src import config, core, random
from jax._src.lax import lax as lax_internal
from jax._src.lax import linalg
from jax._src.random import prng

from pallas_shim.jax_compat.jaxprs import describe_aval, open_jaxpr

# JAX < 0.10.2 has it in the module jax._src.random, later ones in a module of that package.
_gamma_impl = getattr(random, "_gamma_impl", None) or random.core._gamma_impl

Function = Callable[..., Any]


def definition(eqn: Any) -> Any:
    """The jaxpr that defines what an equation computes, from its operands to its results.

    Args:
      eqn: an equation whose primitive is a key of DEFINITIONS.
    """
    avals = tuple(v.aval for v in eqn.invars)
    params = tuple(sorted(eqn.params.items()))
    try:
        return _traced_once(eqn.primitive.name, avals, params, config.trace_context())
    except TypeError:  # some parameter can't be hashed
        return _traced(eqn.primitive.name, avals, params)


def _traced(name: str, avals: Sequence[Any], params: Sequence[tuple[str, Any]]) -> Any:
    function = DEFINITIONS[name](avals, **dict(params))
    infos = map(describe_aval, avals)
    return jax.make_jaxpr(function)(*[jax.ShapeDtypeStruct(i.shape, i.dtype) for i in infos])


@functools.lru_cache(maxsize=256)
def _traced_once(name, avals, params, context):
    # The context holds every setting that tracing depends on, such as
    # jax_threefry_partitionable, which changes the bits.
    return _traced(name, avals, params)


def dtypes_of_product(eqn: Any) -> tuple[np.dtype, np.dtype, np.dtype] | None:
    """The dtypes to which a dot_general converts its operands, and in which it sums. None unless it
    names an algorithm (``jax.lax.DotAlgorithmPreset``) that decides them."""
    algorithm = eqn.params["precision"]
    named = isinstance(algorithm, (lax.DotAlgorithmPreset, lax.DotAlgorithm))
    if not named or algorithm == lax.DotAlgorithmPreset.DEFAULT:
        return None
    dtypes = [v.aval.dtype for v in (*eqn.invars, *eqn.outvars)]
    lhs, rhs, out = lax_internal.get_algorithm_compute_types(algorithm, *dtypes)
    return np.dtype(lhs), np.dtype(rhs), np.dtype(out)


# -- random numbers -------------------------------------------------------------------------


def _random_seed(avals: Sequence[Any], *, impl: Any) -> Function:
    return functools.partial(prng.random_seed_impl_base, impl=impl)


def _random_split(avals: Sequence[Any], *, shape: Sequence[int]) -> Function:
    (keys,) = avals
    return lambda k: prng.random_split_impl_base(keys.dtype._impl, k, keys.ndim, shape=shape)


def _random_fold_in(avals: Sequence[Any]) -> Function:
    keys = avals[0]
    impl = keys.dtype._impl
    if impl.name == "pallas_tpu" and not keys.shape:
        # This one takes its keys whole, where all others take their words.
        return lambda k, data: prng.random_unwrap(
            impl.fold_in(prng.random_wrap(k, impl=impl), data)
        )
    return lambda k, data: prng.random_fold_in_impl_base(impl, k, data, keys.shape)


def _random_bits(avals: Sequence[Any], *, bit_width: int, shape: Sequence[int]) -> Function:
    (keys,) = avals
    return lambda k: prng.random_bits_impl_base(
        keys.dtype._impl, k, keys.ndim, bit_width=bit_width, shape=shape
    )


def _random_gamma(avals: Sequence[Any], *, log_space: bool) -> Function:
    impl = avals[0].dtype._impl
    return lambda k, a: _gamma_impl(
        prng.random_wrap(k, impl=impl), a, log_space=log_space, use_vmap=True
    )


# -- linear algebra -------------------------------------------------------------------------


def _with_params(function: Function) -> Callable[..., Function]:
    return lambda avals, **params: functools.partial(function, **params)


# -- what JAX rewrites when it lowers -------------------------------------------------------


def _call_hi_primitive(avals: Sequence[Any], *, _prim: Any) -> Function:
    return lambda *args: jax.tree.leaves(_prim.expand(*jax.tree.unflatten(_prim.in_tree, args)))


def _einshape_lo(
    avals: Sequence[Any], *, equation: str, sizes: Sequence[tuple[str, int]], **_: Any
) -> Function:
    from jax._src.pallas import einshape  # imports the lowering for a TPU

    return lambda x: einshape._einshape(equation, x, **dict(sizes))


# -- reductions with any computation --------------------------------------------------------


def _combination(jaxpr: Any, consts: Sequence[Any], ndim: int) -> Function:
    """A scalar jaxpr as a function of two lists of arrays of ``ndim`` dimensions."""
    jaxpr, own_consts = open_jaxpr(jaxpr)
    scalar: Function = functools.partial(core.eval_jaxpr, jaxpr, own_consts or consts)
    for _ in range(ndim):
        scalar = jax.vmap(scalar)
    return lambda xs, ys: scalar(*xs, *ys)


def _reduce(avals: Sequence[Any], *, jaxpr: Any, dimensions: Sequence[int], **_: Any) -> Function:
    """Neighbours are combined pairwise, again and again: log2 steps of whole arrays.

    `jax.lax.reduce` requires an associative computation with ``init_values`` as identity.
    """
    shape = avals[0].shape
    kept = [axis for axis in range(len(shape)) if axis not in dimensions]
    count = math.prod(shape[axis] for axis in dimensions)
    kept_shape = tuple(shape[axis] for axis in kept)
    rows = _combination(jaxpr, (), len(kept) + 1)
    single = _combination(jaxpr, (), len(kept))

    def function(*args):
        operands, inits = args[: len(args) // 2], args[len(args) // 2 :]
        starts = [jnp.broadcast_to(init, kept_shape) for init in inits]
        if count == 0:
            return starts
        xs = [x.transpose(*dimensions, *kept).reshape(count, *kept_shape) for x in operands]
        while (n := xs[0].shape[0]) > 1:
            even = [lax.slice_in_dim(x, 0, n - 1, stride=2) for x in xs]
            odd = [lax.slice_in_dim(x, 1, n, stride=2) for x in xs]
            last = [lax.slice_in_dim(x, n - 1, n) for x in xs]
            xs = rows(even, odd)
            if n % 2:
                xs = [jnp.concatenate(pair) for pair in zip(xs, last, strict=True)]
        return single(starts, [x.reshape(kept_shape) for x in xs])

    return function


def _reduce_window(
    avals: Sequence[Any],
    *,
    jaxpr: Any,
    consts: Sequence[Any],
    window_dimensions: Sequence[int],
    window_strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    base_dilation: Sequence[int],
    window_dilation: Sequence[int],
) -> Function:
    """One step for each place in the window, over the whole output. As in XLA, what lies in the
    padding takes no part, even if the initial value changes what it is combined with."""
    combine = _combination(jaxpr, consts, len(window_dimensions))
    config = [
        (int(low), int(high), step - 1)
        for (low, high), step in zip(padding, base_dilation, strict=True)
    ]

    def function(*args):
        operands, inits = args[: len(args) // 2], args[len(args) // 2 :]
        xs = [lax.pad(x, init, config) for x, init in zip(operands, inits, strict=True)]
        reach = [(w - 1) * d + 1 for w, d in zip(window_dimensions, window_dilation, strict=True)]
        out = [
            max((n - r) // stride + 1, 0)
            for n, r, stride in zip(xs[0].shape, reach, window_strides, strict=True)
        ]
        result = [jnp.broadcast_to(init, out) for init in inits]
        padded = any(each != (0, 0, 0) for each in config)
        inside = lax.pad(jnp.ones(operands[0].shape, bool), False, config) if padded else None
        for place in _places(out, window_dimensions, window_strides, window_dilation):
            combined = combine(result, [x[place] for x in xs])
            if inside is not None:
                combined = [
                    jnp.where(inside[place], new, old)
                    for new, old in zip(combined, result, strict=True)
                ]
            result = combined
        return result

    return function


def _places(
    counts: Sequence[int], sizes: Sequence[int], strides: Sequence[int], dilation: Sequence[int]
) -> list[tuple[slice, ...]]:
    """For each place in a window, in row-major order: that place in all ``counts`` windows."""
    if 0 in counts:
        return []
    return [
        tuple(
            slice(i * d, i * d + (n - 1) * stride + 1, stride)
            for i, d, n, stride in zip(place, dilation, counts, strides, strict=True)
        )
        for place in itertools.product(*map(range, sizes))
    ]


def _select_and_scatter(
    avals: Sequence[Any],
    *,
    select_jaxpr: Any,
    select_consts: Sequence[Any],
    scatter_jaxpr: Any,
    scatter_consts: Sequence[Any],
    window_dimensions: Sequence[int],
    window_strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
) -> Function:
    """Each window's element that every later one leaves selected; then, for each place in the
    window, the sources that go there, of which no two meet. Padding is never selected."""
    operand, source, _ = avals
    ndim = operand.ndim
    select = _combination(select_jaxpr, select_consts, ndim)
    scatter = _combination(scatter_jaxpr, scatter_consts, ndim)
    places = _places(source.shape, window_dimensions, window_strides, (1,) * ndim)
    config = [(int(low), int(high), 0) for low, high in padding]
    back = [(-low, -high, 0) for low, high, _ in config]

    def function(x, values, init):
        x = lax.pad(x, init, config)
        inside = lax.pad(jnp.ones(operand.shape, bool), False, config)
        selected, where = jnp.broadcast_to(init, source.shape), jnp.full(source.shape, -1)
        for number, place in enumerate(places):
            (stays,) = select([selected], [x[place]])
            taken = inside[place] & ((where < 0) | ~stays)
            selected, where = jnp.where(taken, x[place], selected), jnp.where(taken, number, where)
        result = jnp.full(x.shape, init)
        for number, place in enumerate(places):
            (new,) = scatter([result[place]], [values])
            result = result.at[place].set(jnp.where(where == number, new, result[place]))
        return lax.pad(result, init, back)

    return function


DEFINITIONS: dict[str, Callable[..., Function]] = {
    "random_seed": _random_seed,
    "random_split": _random_split,
    "random_fold_in": _random_fold_in,
    "random_bits": _random_bits,
    "random_gamma": _random_gamma,
    "ragged_dot_general": _with_params(lax_internal._ragged_dot_general_impl),
    "qr": _with_params(linalg._qr_lowering),
    "cholesky_update": _with_params(linalg._cholesky_update_jax_fn),
    "symmetric_product": _with_params(linalg._symmetric_product_jax_fn),
    "lu_pivots_to_permutation": _with_params(linalg._generic_lu_pivots_to_permutation),
    "reduce": _reduce,
    "reduce_window": _reduce_window,
    "select_and_scatter": _select_and_scatter,
    "call_hi_primitive": _call_hi_primitive,
}
if hasattr(linalg, "_ormqr_lowering"):  # JAX >= 0.10
    DEFINITIONS["ormqr"] = _with_params(linalg._ormqr_lowering)
if importlib.util.find_spec("jax._src.pallas.einshape"):  # JAX >= 0.9.1, as both of these
    from jax._src.lax.scaled_dot import _scaled_dot_impl

    DEFINITIONS |= {
        "einshape_lo": _einshape_lo,
        "scaled_dot": _with_params(_scaled_dot_impl),
    }
if hasattr(random, "philox2x32"):  # JAX >= 0.10.2, as all of these
    from jax._src.random import philox2x32, philox4x32, threefry4x32

    DEFINITIONS |= {
        "philox2x32": _with_params(philox2x32._philox2x32_lowering),
        "philox4x32": _with_params(philox4x32._philox4x32_lowering),
        "threefry4x32": _with_params(threefry4x32._threefry4x32_lowering),
    }
