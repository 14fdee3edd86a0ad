from __future__ import annotations

from collections import Counter
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_shim.evaluator.passes.batching import batch
from pallas_shim.evaluator.passes.constant_folding import fold_constants
from pallas_shim.evaluator.passes.mask_narrowing import MaskNarrowing
from pallas_shim.evaluator.passes.movements import Movements
from pallas_shim.evaluator.registry import BATCHING_RULES, IMPL_RULES
from pallas_shim.evaluator.rules import load

from .programs import INT, ROW, SCALAR, ArrayType, Builder, check_pass, make, names, outcome

LANES = 8
RANDOM = np.random.default_rng(0)
TILES = RANDOM.integers(-9, 9, (LANES, 4, 6)).astype(np.int32)
FLOATS = TILES.astype(np.float32) / 4
TILE = ArrayType((4, 6), INT)


def batched(f, *args):
    return Counter(check_pass(batch, f, *args))


def each(f, tiles=TILES):
    """How often each instruction is there after ``f`` was applied to every tile."""
    return batched(lambda *xs: [f(x) for x in xs], *tiles)


# -- one form of each primitive ----------------------------------------------------------------

INDICES = np.array([[2, 0, 1, 3, 3, 9], [1, 1, -1, 0, 2, 2]])
ROWS = np.array([2, 9, 2])  # one outside, one twice

SAMPLES: dict[str, Any] = {
    "add": lambda x: x + x,
    "exp": (jnp.exp, FLOATS),
    "max": lambda x: lax.max(x, 2 * x),
    "clamp": lambda x: lax.clamp(-2, x, 3),
    "round": (lambda x: lax.round(x, lax.RoundingMethod.TO_NEAREST_EVEN), FLOATS),
    "pow": (lambda x: lax.pow(x, 3), FLOATS),
    "integer_pow": lambda x: lax.integer_pow(x, 3),
    "select_n": lambda x: lax.select_n(x > 0, x, -x),
    "real": (lax.real, FLOATS.astype(np.complex64)),
    "imag": (lax.imag, FLOATS.astype(np.complex64)),
    "complex": (lambda x: lax.complex(x, -x), FLOATS),
    "convert_element_type": lambda x: x.astype(jnp.bfloat16),
    "bitcast_convert_type": lambda x: lax.bitcast_convert_type(x, jnp.int8),
    "reduce_precision": (lambda x: lax.reduce_precision(x, 5, 2), FLOATS),
    "broadcast_in_dim": lambda x: lax.broadcast_in_dim(x, (4, 2, 6), (0, 2)),
    "reshape": lambda x: x.reshape(3, 8),
    "squeeze": (lambda x: lax.squeeze(x, (1,)), TILES[:, :, None]),
    "transpose": lambda x: x.T,
    "rev": lambda x: lax.rev(x, (1,)),
    "slice": lambda x: lax.slice(x, (1, 0), (4, 5), (2, 1)),
    "split": lambda x: lax.split(x, (1, 2, 3), axis=1)[1],
    "concatenate": lambda x: jnp.concatenate([x, TILES[0], x], 1),
    "pad": lambda x: lax.pad(x, np.int32(7), ((1, -1, 0), (0, 2, 1))),
    "gather": lambda x: jnp.take_along_axis(x, INDICES, 0, mode="fill"),
    "scatter": lambda x: x.at[ROWS].set(-x[:3], mode="drop"),
    "scatter-add": lambda x: x.at[ROWS].add(x[:3]),
    "scatter-sub": lambda x: x.at[ROWS].subtract(x[:3]),
    "scatter-mul": lambda x: x.at[:, ROWS].multiply(x[:, :3]),
    "scatter-max": lambda x: x.at[ROWS].max(-x[:3]),
    "scatter-min": (lambda x: x.at[ROWS, ROWS].min(-x[0, :3]), FLOATS),
    "reduce_sum": lambda x: x.sum(1),
    "reduce_prod": lambda x: x.prod(0),
    "reduce_max": lambda x: x.max(0),
    "reduce_min": (lambda x: x.min(0), FLOATS),
    "reduce_and": lambda x: (x > 0).all(1),
    "reduce_or": lambda x: (x > 0).any(1),
    "reduce_xor": lambda x: lax.reduce_xor(x, (0,)),
    "argmax": lambda x: jnp.argmax(x, 1),
    "argmin": (lambda x: jnp.argmin(x, 0), FLOATS),
    "cumsum": (lambda x: lax.cumsum(x, 1, reverse=True), FLOATS),
    "cumprod": lambda x: lax.cumprod(x, 0),
    "cummax": (lambda x: lax.cummax(x, 0), FLOATS),
    "cummin": lambda x: lax.cummin(x, 1),
    "cumlogsumexp": (lambda x: lax.cumlogsumexp(x, 1), FLOATS),
    "sort": lambda x: lax.sort([x, -x], dimension=0, num_keys=1)[1],
    "top_k": lambda x: lax.top_k(x, 2)[1],
    "dot_general": (lambda x: x @ FLOATS[0].T, FLOATS),
    "roll": lambda x: pltpu.roll(x, 2, 1, stride=1, stride_axis=0),
    "reciprocal": (lambda x: pl.reciprocal(x + 9, approx=True), FLOATS),
}
# Some versions of JAX don't have these.
NEWER: dict[str, Any] = {
    "tile": lambda x: lax.tile(x, (2, 3)),
    "stack": lambda x: lax.stack([x, -x], axis=1),
    "unstack": lambda x: lax.unstack(x, axis=1)[2],
    "pack_elementwise": lambda x: pltpu.pack_elementwise([x, -x], packed_dtype=jnp.int16),
    "unpack_elementwise": lambda x: pltpu.unpack_elementwise(
        x, index=1, packed_dtype=jnp.int16, unpacked_dtype=jnp.int32
    ),
}
SAMPLES |= {n: sample for n, sample in NEWER.items() if hasattr(lax, n) or hasattr(pltpu, n)}


@pytest.mark.parametrize("name", SAMPLES)
def test_a_primitive_runs_once_for_all(name):
    sample = SAMPLES[name] if isinstance(SAMPLES[name], tuple) else (SAMPLES[name],)
    assert each(*sample)[name] == 1


def test_there_is_a_sample_of_every_form():
    load()
    elementwise = {name for name, form in BATCHING_RULES.items() if form.broadcasts}
    assert set(BATCHING_RULES) - elementwise <= {
        *SAMPLES, *NEWER, "take", "count", "slice_sticking_out", "update_sticking_out"
    }
    assert set(BATCHING_RULES) <= set(IMPL_RULES)


def test_takes():
    gather = lambda x: jnp.take_along_axis(x, np.array([[2], [0], [1]]), 0)  # noqa: E731
    run = lambda program: batch(Movements.run(fold_constants(program)))  # noqa: E731
    count = Counter(check_pass(run, lambda *xs: [gather(x) for x in xs], *TILES))
    assert count == {"join": 1, "take": 1, "member": LANES}


def test_counts():
    run = lambda program: batch(MaskNarrowing.run(program))  # noqa: E731
    of_masks = lambda *xs: [jnp.sum(x > 0, 1) for x in xs]  # noqa: E731
    assert Counter(check_pass(run, of_masks, *TILES))["count"] == 1


def test_gathers_with_indices_of_their_own():
    def f(*tiles):
        columns = [jnp.abs(x[0] % 4)[None] for x in tiles]
        return [jnp.take_along_axis(x, i, 0) for x, i in zip(tiles, columns, strict=True)]

    assert batched(f, *TILES)["gather"] == 1


def test_scatters_with_indices_of_their_own():
    def f(*tiles):
        return [x.at[jnp.abs(x[:3, 0] % 5)].add(x[1:4], mode="drop") for x in tiles]

    assert batched(f, *TILES)["scatter-add"] == 1


def test_rolls_by_distances_of_their_own():
    rolled = lambda *xs: [pltpu.roll(x, abs(x[0, 0]), 1) for x in xs]  # noqa: E731
    assert batched(rolled, *TILES)["roll"] == LANES


def test_a_sum_of_floats_is_left_alone():
    assert each(lambda x: x.sum(1), FLOATS)["reduce_sum"] == LANES


# -- operands --------------------------------------------------------------------------------


def test_what_all_share_is_not_stacked():
    count = batched(lambda y, *xs: [x * y for x in xs], TILES[0], *TILES[1:])
    assert count == {"join": 1, "mul": 1, "member": LANES - 1}


def test_constants_are_stacked_beforehand():
    count = batched(lambda *xs: [x * TILES[-i] for i, x in enumerate(xs)], *TILES)
    assert count == {"join": 1, "mul": 1, "member": LANES}


@pytest.mark.parametrize("rank", [0, 1])
def test_operands_of_lower_rank_broadcast(rank):
    """Scalars, and what grid batching leaves as it was beside arrays that got an axis."""

    def build(b, *tiles_and_others):
        tiles, others = tiles_and_others[:LANES], tiles_and_others[LANES:]
        return [b.binary("mul", x, y) for x, y in zip(tiles, others, strict=True)]

    other = SCALAR._replace(shape=TILE.shape[len(TILE.shape) - rank :])
    made = make([TILE] * LANES + [other] * LANES, build)
    after = batch(made.program)
    assert Counter(names(after))["mul"] == 1
    assert outcome(after, made.log) == outcome(made.program, made.log)


def test_a_predicate_for_a_whole_array_chooses_it():
    def f(*xs):
        return [lax.select_n(x[0, 0] > 0, x, -x) for x in xs]

    assert batched(f, *TILES)["select_n"] == LANES


def test_operands_that_lie_evenly_in_a_stack_are_a_view_of_it():
    def f(*xs):
        squares = [x * x for x in xs]
        return [a + b for a, b in zip(squares[::2], squares[1::2], strict=True)]

    assert batched(f, *TILES) == {"join": 1, "mul": 1, "members": 2, "add": 1, "member": LANES / 2}


def test_members_in_any_order_are_one_take():
    def f(*xs):
        squares = [x * x for x in xs]
        return [squares[i] - squares[j] for i, j in enumerate((3, 1, 2, 0, 7, 4, 6, 5))]

    assert batched(f, *TILES) == {"join": 1, "mul": 1, "take": 1, "sub": 1, "member": LANES}


def test_a_group_is_in_the_order_of_its_operands():
    def f(*xs):
        squares = [x * x for x in xs]
        return [-squares[i] for i in (3, 1, 2, 0, 7, 4, 6, 5)]

    assert batched(f, *TILES) == {"join": 1, "mul": 1, "neg": 1, "member": LANES}


# -- slices and concatenations -------------------------------------------------------------------


def test_slices_are_a_stack_and_their_concatenation_is_none():
    def f(x):
        rows = [x[i : i + 2] for i in range(0, 16, 2)]
        return jnp.concatenate([-row for row in rows])

    assert batched(f, np.arange(64).reshape(16, 4)) == {"windows": 1, "neg": 1, "reshape": 1}


@pytest.mark.parametrize("step", [2, 3])
def test_slices_on_a_grid_and_concatenations_along_both_axes(step):
    def f(x):
        rows = [
            [-x[i : i + 2, j : j + 2] for j in range(1, 4 * step, step)]
            for i in range(2, 6 * step, step)
        ]
        return jnp.concatenate([jnp.concatenate(row, 1) for row in rows])

    x = np.arange(22 * 17).reshape(22, 17)
    count = batched(f, x)
    assert (count["windows"], count["slice"], count["neg"]) == (1, 0, 1)


@pytest.mark.parametrize(
    "starts", [(0, 1, 2, 3, 4), (0, 2, 5, 7, 9), (0, 3, 6, 9, 12)], ids=["overlap", "uneven", "end"]
)
def test_other_slices_are_left_alone(starts):
    x = np.arange(28).reshape(14, 2)
    assert batched(lambda x: [x[i : i + 2] for i in starts], x) == {"slice": 5}


# -- order -------------------------------------------------------------------------------------


def test_effects_stay_in_order():
    def build(b: Builder, row, *tiles):
        for i, x in enumerate(tiles):
            b.print(b.binary("mul", x, x))
            b.store(row, b.binary("add", b.load(row), b.load(row)))
            if i % 3 == 0:
                b.print(b.load(row))
        return []

    made = make([ROW] + [TILE] * LANES, build)
    after = batch(made.program)
    assert Counter(names(after))["mul"] == 1
    assert outcome(after, made.log) == outcome(made.program, made.log)


def test_loops_use_members_of_stacks_outside():
    def f(*xs):
        squares = [x * x for x in xs]
        return lax.fori_loop(0, 3, lambda i, c: [a + b for a, b in zip(c, squares)], list(xs))  # noqa: B905

    count = batched(f, *TILES)
    assert (count["mul"], count["member"]) == (1, 2 * LANES)


def test_what_depends_on_each_other_is_left_alone():
    def f(x):
        for _ in range(10):
            x = x * x
        return x

    assert batched(f, TILES[0]) == {"mul": 10}


def test_large_arrays_are_left_alone_and_in_order():
    large = np.zeros((4, 1 << 16), np.int32)
    program_names = check_pass(batch, lambda *xs: [-(x * x) for x in xs], *large)
    assert program_names == ["mul", "neg"] * 4


def test_a_stack_has_a_largest_size():
    def f(x):
        tiles = [x[i : i + 1] for i in range(64)]
        return lax.concatenate([tile * tile for tile in tiles], 0)

    # Four stacks of 16 tiles of 16 KiB.
    count = batched(f, np.arange(64 << 12, dtype=np.int32).reshape(64, 1 << 12))
    assert count == {"windows": 1, "members": 4, "mul": 4, "join": 1, "reshape": 1}


# -- a bitonic sort -------------------------------------------------------------------------------


def bitonic(tiles):
    """Sorts each position across the tiles."""
    tiles, n = list(tiles), len(tiles)
    size = 2
    while size <= n:
        distance = size // 2
        while distance:
            for i in range(n):
                j = i ^ distance
                if i < j:
                    swap = tiles[i] > tiles[j] if not i & size else tiles[j] > tiles[i]
                    tiles[i], tiles[j] = (
                        jnp.where(swap, tiles[j], tiles[i]),
                        jnp.where(swap, tiles[i], tiles[j]),
                    )
            distance //= 2
        size *= 2
    return tiles


@pytest.mark.parametrize("log_tiles", [3, 5])
def test_a_bitonic_sort_takes_as_many_operations_as_it_has_stages(log_tiles):
    tiles = RANDOM.integers(-50, 50, (1 << log_tiles, 4, 6)).astype(np.int32)
    count = batched(lambda *xs: bitonic(xs), *tiles)
    stages = log_tiles * (log_tiles + 1) // 2
    assert count["gt"] == count["select_n"] == stages
    assert count["join"] + count["take"] + count["members"] <= 5 * stages
    assert (np.sort(tiles, 0) == np.stack(bitonic(tiles))).all()


def test_scalars_stay_single():
    """Their own operators cost less than a stack's member."""
    scalars = RANDOM.integers(-9, 9, 8).astype(np.int32)
    assert each(lambda x: (x + 3) * x, scalars) == {"add": 8, "mul": 8}
