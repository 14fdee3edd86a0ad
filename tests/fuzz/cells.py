"""Random kernels of many cells: what one cell leaves for the next is what they are about.

Index maps permute, repeat, shift and look up blocks, so that blocks overlap and come back;
outputs and scratch are written whole, in part, under a condition, or on top of what was there.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from tests.fuzz.kernels import INT, Body, Memory, Scope, data
from tests.fuzz.operations import (
    BOOL,
    BOUND,
    PURE,
    USUAL,
    Choices,
    Pool,
    Value,
    cast,
    fit,
    fits,
    is_float,
    known,
    tame,
)

_MOST_CELLS = 32
_BLOCKS = ((4,), (8,), (1, 8), (2, 4), (4, 4), (8, 3), (2, 2, 2))
_WRITES: tuple[str, ...] = ("whole",) * 4 + ("accumulate",) * 3
_WRITES += ("when", "rows", "moving", "on_top", "loop", "counted")
_SCRATCH = ("carried", "carried", "temporary", "left_behind")

# The index of a block in one dimension, from the grid's indices and the prefetched tables.
Place = Callable[[Sequence[Any], Sequence[Any]], Any]


class Cut(NamedTuple):
    """An array and its blocks."""

    shape: tuple[int, ...]
    dtype: np.dtype
    spec: pl.BlockSpec

    def struct(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self.shape, self.dtype)


class ManyCells(Choices):
    """A random pallas_call of up to 32 cells. ``function(*args)`` runs it."""

    rtol = None  # every float is exact

    def __init__(self, source: random.Random, pool: Pool = USUAL, interpret: Any = True):
        super().__init__(source, pool)
        self._body = Body(source, pool)
        self._data = np.random.default_rng(self.number(0, 1 << 16))
        self._grid: list[int] = []
        for _ in range(self.one([1, 1, 2, 2, 3, 4])):
            room = _MOST_CELLS // math.prod(self._grid)
            self._grid.append(self.one([n for n in (1, 2, 3, 4, 5, 8, 16) if n <= room]))
        cells = math.prod(self._grid)
        self._tables = [self._table(cells) for _ in range(self.one([0, 0, 1, 2]))]
        inputs = [self._cut() for _ in range(self.number(1, 3))]
        outputs = [self._cut() for _ in range(self.number(1, 2))]
        aliases = {}
        if self.rarely():
            aliases = {len(self._tables): 0}
            same = inputs[0]
            if self.number(0, 1):
                block = same.spec.block_shape
                assert block is not None
                same = same._replace(spec=pl.BlockSpec(block, self._index_map(len(block))[0]))
            outputs[0] = same
        scratch = [
            (self.one(_BLOCKS), self.one(self.pool.stored), self.one(_SCRATCH))
            for _ in range(self.one([0, 0, 1, 1, 2]))
        ]
        writes = [self.one(_WRITES) for _ in outputs]
        dynamic = self.rarely(10)
        constant = self.rarely(3)  # the tables are no arguments
        ends = list(
            itertools.accumulate([len(self._tables), len(inputs), len(outputs)])
        )

        def kernel(*refs):
            tables, ins = refs[: ends[0]], refs[ends[0] : ends[1]]
            outs, buffers = refs[ends[1] : ends[2]], refs[ends[2] :]
            scope = self._scope(tables, ins)
            for buffer, (*_, way) in zip(buffers, scratch, strict=True):
                self._use_scratch(scope, buffer, way)
            for _ in range(self.number(1, 6)):
                scope.values.append(getattr(self._body, self.one(PURE))(scope.values))
            if self.rarely(6):
                scope.refs.extend(Memory(ref, i >= ends[0]) for i, ref in enumerate(refs))
                self._body.block(scope, 1, 4)
            for out, way in zip(outs, writes, strict=True):
                getattr(self, f"_write_{way}")(scope, out)

        def function(*args):
            grid = tuple(self._grid)
            if dynamic:
                grid, args = (*grid[:-1], args[0]), args[1:]
            if constant:
                args = (*self._tables, *args)
            spec = pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=len(self._tables),
                grid=grid,
                in_specs=[one.spec for one in inputs],
                out_specs=[one.spec for one in outputs],
                scratch_shapes=[pltpu.VMEM(shape, dtype) for shape, dtype, _ in scratch],
            )
            return pl.pallas_call(
                kernel, [one.struct() for one in outputs], grid_spec=spec,
                input_output_aliases=aliases, interpret=interpret,
            )(*args)  # fmt: skip

        self.function = function
        self.args = [np.array(self._grid[-1], np.int32)] if dynamic else []
        self.args += [] if constant else self._tables
        arrays = [data(self, self._data, one.shape, one.dtype) for one in inputs]
        # XLA takes 0 + x for x, which it isn't if that is -0.
        self.args += [np.where(x == 0, np.zeros_like(x), x) for x in arrays]

    # -- blocks -----------------------------------------------------------------------------

    def _table(self, cells: int) -> np.ndarray:
        """A block for each cell: a permutation, runs of one block, or any."""
        kind = self.one(["permutation", "runs", "any"])
        if kind == "permutation":
            table = self._data.permutation(cells)
        else:
            table = self._data.integers(0, max(cells // 2, 1), cells)
        return (np.sort(table) if kind == "runs" else table).astype(np.int32)

    def _cut(self) -> Cut:
        block, dtype = self.one(_BLOCKS), self.one(self.pool.stored)
        index_map, counts = self._index_map(len(block))
        sizes = [size * count for size, count in zip(block, counts, strict=True)]
        if self.rarely(5):
            # The last block sticks out.
            axis = self.number(0, len(sizes) - 1)
            sizes[axis] -= self.number(0, block[axis] - 1)
        return Cut(tuple(sizes), dtype, pl.BlockSpec(block, index_map))

    def _index_map(self, rank: int) -> tuple[Callable[..., Any], list[int]]:
        """An index map, and how many blocks it counts in each dimension."""
        axes = len(self._grid)
        order = list(range(axes))
        self._source.shuffle(order)
        places = [self._place(order[i % axes]) for i in range(rank)]

        def index_map(*indices):
            return tuple(p(indices[:axes], indices[axes:]) for p in places)

        cells = list(itertools.product(*map(range, self._grid)))
        found = [index_map(*cell, *self._tables) for cell in cells]
        return index_map, [int(max(at)) + 1 for at in zip(*found, strict=True)]

    def _place(self, axis: int) -> Place:
        size = self._grid[axis]
        other = self.number(0, len(self._grid) - 1)

        def flat(indices):
            total = np.int32(0)
            for i, n in zip(indices, self._grid, strict=True):
                total = total * n + i
            return total

        places: dict[str, Place] = {
            "axis": lambda i, _: i[axis],
            "zero": lambda i, _: 0,
            "flat": lambda i, _: flat(i),
            "reversed": lambda i, _: size - 1 - i[axis],
            "rotated": lambda i, _: lax.rem(jnp.int32(i[axis] + 1), jnp.int32(size)),
            "halved": lambda i, _: i[axis] // 2,
            "parity": lambda i, _: i[axis] % 2,
            "sum": lambda i, _: i[axis] + i[other],
            "shifted": lambda i, _: lax.max(jnp.int32(i[axis]) - 1, jnp.int32(0)),
        }
        usual = ["axis"] * 6 + ["zero", "zero", "flat"]
        if self._tables:
            table = self.number(0, len(self._tables) - 1)
            places["table"] = lambda i, tables: tables[table][i[axis]]
            places["flat table"] = lambda i, tables: tables[table][flat(i)]
            usual += ["table", "table", "flat table"]
        return places[self.one([*usual, *places])]

    # -- a cell -----------------------------------------------------------------------------

    def _scope(self, tables: Sequence[Any], ins: Sequence[Any]) -> Scope:
        ids = [pl.program_id(axis) for axis in range(len(self._grid))]
        scope = Scope([Value(i) for i in ids], [])
        if tables and self.number(0, 1):
            scope.values.append(Value(self.one(tables)[self.one(ids)]))
        if self.rarely():
            scope.values.append(Value(jnp.int32(pl.num_programs(0))))
        scope.values.extend(self._body.loaded(ref[...]) for ref in ins)
        return scope

    def _first(self) -> Any:
        """Whether this is the first cell along some axes: an accumulation starts there."""
        axes = self._body.axes(len(self._grid)) or (len(self._grid) - 1,)
        first = pl.program_id(axes[0]) == 0
        for axis in axes[1:]:
            first &= pl.program_id(axis) == 0
        return first

    def _value(self, scope: Scope, ref: Any, shape: tuple[int, ...] | None = None) -> Value:
        shape = ref.shape if shape is None else shape
        return self._body.canonical(scope, jax.ShapeDtypeStruct(shape, ref.dtype))

    def _sum(self, ref: Any, old: Any, new: Value) -> Any:
        if ref.dtype == BOOL:
            return old ^ new.x
        total = known(old + new.x)._replace(bound=BOUND * 2 * _MOST_CELLS)
        exact = not is_float(total.dtype) or fits(total.dtype, total.bound, total.quantum)
        return total.x if exact else tame(total).x

    def _use_scratch(self, scope: Scope, ref: Any, way: str) -> None:
        if way == "carried":
            self._write_accumulate(scope, ref)
        elif way == "temporary":
            ref[...] = self._value(scope, ref).x
        read = known(ref[...])
        if way == "left_behind":
            ref[...] = self._value(scope, ref).x
        # A sum of many cells isn't small any more.
        scope.values.append(tame(read._replace(bound=math.inf)) if is_float(read.dtype) else read)

    # -- what becomes of an output ------------------------------------------------------------

    def _write_whole(self, scope: Scope, ref: Any) -> None:
        ref[...] = self._value(scope, ref).x

    def _write_on_top(self, scope: Scope, ref: Any) -> None:
        ref[...] = self._sum(ref, ref[...], self._value(scope, ref))

    def _write_accumulate(self, scope: Scope, ref: Any) -> None:
        start = self._value(scope, ref)

        @pl.when(self._first())
        def _():
            ref[...] = jnp.zeros_like(ref) if self.number(0, 1) else start.x

        self._write_on_top(scope, ref)

    def _write_when(self, scope: Scope, ref: Any) -> None:
        value = self._value(scope, ref)
        axis = self.number(0, len(self._grid) - 1)
        where = pl.program_id(axis) % 2 == 0 if self.number(0, 1) else self._first()

        @pl.when(where)
        def _():
            ref[...] = value.x

        if self.number(0, 1):

            @pl.when(~where)
            def _():
                self._write_on_top(scope, ref)

    def _write_rows(self, scope: Scope, ref: Any) -> None:
        """All of it, or all but some rows, row by row."""
        for row in range(ref.shape[0]):
            if not self.rarely(8):
                ref[row] = self._value(scope, ref, ref.shape[1:]).x

    def _write_moving(self, scope: Scope, ref: Any) -> None:
        """A part that depends on the cell."""
        length = self.number(1, ref.shape[0])
        start = pl.program_id(0) if self.number(0, 1) else self._body.scalar(scope.values)
        part = (length, *ref.shape[1:])
        ref[pl.ds(start % np.int32(ref.shape[0]), length)] = self._value(scope, ref, part).x

    def _write_loop(self, scope: Scope, ref: Any) -> None:
        """As many times as the cell says."""
        value = self._value(scope, ref)
        self._write_whole(scope, ref)

        @pl.loop(0, pl.program_id(self.number(0, len(self._grid) - 1)))
        def _(i):
            row = fit(value, value.shape[1:])
            at = lax.rem(jnp.asarray(i, INT), np.int32(ref.shape[0]))
            ref[at] = self._sum(ref, ref[at], row)

    def _write_counted(self, scope: Scope, ref: Any) -> None:
        """Rows that a loop adds to, or stores, each at a place that it counts or looks up."""
        rows = ref.shape[0]
        self._write_whole(scope, ref)
        value = self._value(scope, ref, ref.shape[1:])
        kind, old, adds = self.number(0, 3), self.number(0, 3), self.number(0, 3)
        looked_up = fit(cast(self._body.recent(scope.values), INT), (8,)).x

        @pl.loop(0, self.number(0, 8))
        def _(i):
            i = jnp.asarray(i, INT)
            places = [i, i * 3, rows - 1 - i, lax.dynamic_index_in_dim(looked_up, i, 0, False)]
            at, elsewhere = (lax.rem(lax.abs(places[k]), np.int32(rows)) for k in (kind, old))
            if adds:
                ref[at] = self._sum(ref, ref[at if adds > 1 else elsewhere], value)
            else:
                ref[at] = value.x
