"""Random kernels: a grid, blocks of operands, scratch, and a body of random statements.

The statements are drawn while JAX traces the kernel, so the source of choices must be fresh and
a kernel is traced only once.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from tests.fuzz.operations import (
    BOOL,
    BOUND,
    PURE,
    QUANTUM,
    USUAL,
    Choices,
    Operations,
    Pool,
    Value,
    cast,
    fit,
    fits,
    is_float,
    known,
    tame,
)

INT = np.dtype(np.int32)
_MEMORY = ("load",) * 6 + ("store",) * 6 + ("update",) * 3 + ("swap", "add_update", "masked")
_CONTROL = ("loop", "loop", "scan", "repeat", "branch", "branch", "when", "scoped", "call")
_DEEPEST = 2
# Types that a packed integer is loaded as.
# Kinds of indices, and those that the kernel computes.
_FIXED = ("all", "int", "range", "strided")
_MOVING = ("dynamic", "moving", "array")
_WHOLE = tuple(map(np.dtype, (np.int32, np.int8, np.uint8)))


class Memory(NamedTuple):
    """A ref, and whether it may be written."""

    ref: Any
    writable: bool


class Scope(NamedTuple):
    """What a statement may use."""

    values: list[Value]
    refs: list[Memory]
    depth: int = 0

    def inner(self, *values: Value) -> Scope:
        return Scope([*self.values, *values], list(self.refs), self.depth + 1)


class Body(Operations):
    """Random statements of a kernel. ``moving``: whether it computes indices of its refs;
    ``outside``: whether these may lie outside; ``arrays``: whether some of them are arrays;
    ``reverses``: whether scans go backwards."""

    moving = True
    outside = True
    arrays = True
    reverses = True

    def block(self, scope: Scope, least: int, most: int) -> None:
        for _ in range(self.number(least, most)):
            kind = self.number(0, 9)
            if kind < 5:
                scope.values.append(getattr(self, self.one(PURE))(scope.values))
            elif kind < 9 or scope.depth == _DEEPEST:
                getattr(self, "do_" + self.one(_MEMORY))(scope)
            else:
                getattr(self, "do_" + self.one(_CONTROL))(scope)

    # -- memory ---------------------------------------------------------------------------

    def view(self, scope: Scope, ref: Any, loaded: bool = False) -> tuple[Any, Any]:
        """A ref, maybe a transformed one, and an index of it. JAX's interpreter doesn't store
        through a bitcast."""
        if self.rarely():
            ref = self._transformed(scope, ref, loaded)
        return ref, self._index(scope, ref.shape)

    def _transformed(self, scope: Scope, ref: Any, loaded: bool) -> Any:
        integers = self.pool.integers
        if loaded and self.rarely(3) and len(ref.shape) >= 2 and ref.dtype in integers:
            fitting = [
                dtype for dtype in integers
                if ref.shape[-2] * np.dtype(ref.dtype).itemsize % dtype.itemsize == 0
            ]  # fmt: skip
            return ref.bitcast(self.one(fitting))
        index = tuple(
            i if isinstance(i, (slice, pl.Slice)) else slice(None)
            for i in self._index(scope, ref.shape)
        )
        return ref.at[index] if index else ref

    def _index(self, scope: Scope, shape: Sequence[int]) -> tuple[Any, ...]:
        """One index a dimension, at most one of them an array; often the whole."""
        if self.number(0, 1):
            return (slice(None),) * len(shape)
        index: list[Any] = []
        for size in shape:
            kind = self.one(_FIXED + _MOVING if self.moving else _FIXED)
            length = self.number(1, size)
            if kind == "int":
                index.append(self.number(0, size - 1))
            elif kind == "dynamic":
                index.append(self.index(scope.values, size - 1))
            elif kind == "range":
                index.append(pl.ds(self.number(0, size - length), length))
            elif kind == "strided":
                stride = self.number(1, 3)
                length = -(-length // stride)
                last = (length - 1) * stride
                index.append(pl.ds(self.number(0, size - 1 - last), length, stride))
            elif kind == "moving":
                index.append(pl.ds(self.index(scope.values, size - length), length))
            elif kind == "array" and self.arrays and not any(hasattr(i, "shape") for i in index):
                indices = fit(cast(self.recent(scope.values), INT), (self.one([1, 2, 4]),)).x
                index.append(lax.rem(lax.abs(indices), np.int32(size)))
            else:
                index.append(slice(None))
        if any(hasattr(i, "shape") and i.shape or getattr(i, "stride", 1) != 1 for i in index):
            # JAX's interpreter takes no plain int among these.
            index = [jnp.int32(i) if isinstance(i, int) else i for i in index]
        return tuple(index)

    def index(self, values: Sequence[Value], last: int) -> Any:
        at = super().index(values, last)
        return at if self.outside else jnp.clip(at, 0, last)

    def _stored(self, scope: Scope, ref: Any, index: Any) -> Any:
        """Something to store there."""
        return self.canonical(scope, jax.eval_shape(lambda: ref[index])).x

    def canonical(self, scope: Scope, type: Any) -> Value:
        """A value of a type, tame."""
        same = self.any_of(scope.values, lambda v: v.dtype == type.dtype)
        value = same if same is not None and self.number(0, 1) else self.recent(scope.values)
        value, dtype = fit(value, tuple(type.shape)), np.dtype(type.dtype)
        value = cast(value, dtype)
        return known(value.x if dtype in self.pool.packed else tame(value).x)

    def loaded(self, x: Any) -> Value:
        """What memory held, in a type to reckon with."""
        value = known(x)
        if value.dtype not in self.pool.packed:
            return value
        return cast(value, self.one(self.pool.floats if is_float(value.dtype) else _WHOLE))

    def _writable(self, scope: Scope) -> Any:
        return self.one([m.ref for m in scope.refs if m.writable])

    def do_load(self, scope):
        ref, index = self.view(scope, self.one(scope.refs).ref, loaded=True)
        scope.values.append(self.loaded(ref[index]))

    def do_store(self, scope):
        ref, index = self.view(scope, self._writable(scope))
        ref[index] = self._stored(scope, ref, index)

    def do_update(self, scope):
        ref, index = self.view(scope, self._writable(scope))
        old = self.loaded(ref[index])
        new = self.loaded(self._stored(scope, ref, index))
        changed = tame(self.elementwise([old, fit(cast(new, old.dtype), old.shape)]))
        ref[index] = cast(changed, np.dtype(ref.dtype)).x

    def do_swap(self, scope):
        ref, index = self.view(scope, self._writable(scope))
        old = jax.ref.swap(ref, index, self._stored(scope, ref, index))
        scope.values.append(self.loaded(old))

    def do_add_update(self, scope):
        integers = self.pool.integers
        refs = [m.ref for m in scope.refs if m.writable and np.dtype(m.ref.dtype) in integers]
        if refs:
            ref = self.one(refs)
            index = self._index(scope, ref.shape)
            jax.ref.addupdate(ref, index, self._stored(scope, ref, index))

    def do_masked(self, scope):
        ref = self._writable(scope)
        mask = fit(self.of_dtype(scope.values, (BOOL,)), tuple(ref.shape)).x
        pltpu.store(ref, self._stored(scope, ref, ...), mask=mask)

    def digest(self, scope: Scope, ref: Any) -> None:
        """Stores all that was computed in the ref's type, the latest first."""
        if self.rarely(6):
            return
        same = [v for v in reversed(scope.values) if v.dtype == ref.dtype and v.size]
        if not same:
            ref[...] = self.canonical(scope, ref).x
            return
        x = jnp.concatenate([v.x.reshape(v.size) for v in same])
        ref[...] = tame(fit(Value(x), tuple(ref.shape))).x

    # -- control flow ---------------------------------------------------------------------

    def _carried(self, scope: Scope) -> list[Value]:
        chosen = [self.recent(scope.values) for _ in range(self.number(1, 2))]
        return [known(tame(v).x) for v in chosen]

    def _step(self, scope: Scope, carry: Sequence[Value], *more: Value) -> list[Any]:
        """A loop's body: the next carry."""
        inner = scope.inner(*carry, *more)
        self.block(inner, 1, 4)
        return [self.canonical(inner, v.x).x for v in carry]

    def do_loop(self, scope):
        carry = self._carried(scope)

        def body(i, xs):
            return self._step(scope, [v._replace(x=x) for v, x in zip(carry, xs, strict=True)],
                              Value(i))

        low = self.number(-1, 1)
        high = self.index(scope.values, 3) % 4 if self.number(0, 1) else self.number(low, 3)
        xs = lax.fori_loop(low, high, body, [v.x for v in carry])
        scope.values.extend(v._replace(x=x) for v, x in zip(carry, xs, strict=True))

    def do_scan(self, scope):
        carry, row = self._carried(scope), tame(self.of_rank(scope.values, 1))

        def body(xs, x):
            values = [v._replace(x=x) for v, x in zip(carry, xs, strict=True)]
            inner = scope.inner(*values, row._replace(x=x))
            self.block(inner, 1, 3)
            return [self.canonical(inner, v.x).x for v in carry], tame(self.recent(inner.values)).x

        reverse = self.reverses and bool(self.number(0, 1))
        xs, ys = lax.scan(body, [v.x for v in carry], row.x, reverse=reverse)
        scope.values.extend(v._replace(x=x) for v, x in zip(carry, xs, strict=True))
        scope.values.append(fit(known(ys), self.shape()))

    def do_repeat(self, scope):
        """A while loop that also looks at what it carries."""
        (carry,) = self._carried(scope)[:1]
        limit = self.number(0, 3)

        def go_on(state):
            i, x = state
            inner = Scope([Value(i), carry._replace(x=x)], [])
            self.block_of_values(inner)
            return (i < limit) & fit(cast(inner.values[-1], BOOL), ()).x

        def body(state):
            i, x = state
            return i + 1, *self._step(scope, [carry._replace(x=x)], Value(i))

        _, x = lax.while_loop(go_on, body, (np.int32(0), carry.x))
        scope.values.append(carry._replace(x=x))

    def block_of_values(self, scope: Scope) -> None:
        for _ in range(self.number(0, 2)):
            scope.values.append(getattr(self, self.one(PURE))(scope.values))

    def _predicate(self, scope: Scope) -> Any:
        return fit(self.of_dtype(scope.values, (BOOL,)), ()).x

    def do_branch(self, scope):
        results = self._carried(scope)

        def branch():
            inner = scope.inner()
            self.block(inner, 0, 3)
            return [self.canonical(inner, v.x).x for v in results]

        if self.number(0, 1):
            xs = lax.cond(self._predicate(scope), branch, lambda: branch())
        else:
            branches = [lambda: branch() for _ in range(self.number(1, 3))]
            xs = lax.switch(self.scalar(scope.values), branches)
        scope.values.extend(v._replace(x=x) for v, x in zip(results, xs, strict=True))

    def do_when(self, scope):
        @pl.when(self._predicate(scope))
        def _():
            self.block(scope.inner(), 1, 3)

    def do_scoped(self, scope):
        type = jax.ShapeDtypeStruct(self.shape((1, 2)), self.one(self.pool.stored))
        result = self.recent(scope.values)

        def body(ref):
            inner = scope.inner()
            inner.refs.append(Memory(ref, True))
            if self.number(0, 1):
                ref[...] = self.canonical(inner, type).x
            self.block(inner, 1, 4)
            return self.canonical(inner, result.x).x

        x = pl.run_scoped(body, pltpu.VMEM(type.shape, type.dtype))
        scope.values.append(known(x))

    def do_call(self, scope):
        """A jitted function."""
        given = [self.recent(scope.values) for _ in range(2)]
        known = []

        @jax.jit
        def function(*xs):
            inner = Scope([v._replace(x=x) for v, x in zip(given, xs, strict=True)], [])
            self.block_of_values(inner)
            known.append(inner.values[-1])
            return inner.values[-1].x

        x = function(*(v.x for v in given))
        scope.values.append(known[0]._replace(x=x))


# -- whole kernels ----------------------------------------------------------------------------


class Operand(NamedTuple):
    """An array of a pallas_call, and how it is cut; without a spec, it isn't."""

    shape: tuple[int, ...]
    dtype: np.dtype
    spec: pl.BlockSpec | None

    def struct(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self.shape, self.dtype)


class Call(Choices):
    """A random pallas_call. ``function(*args)`` runs it. ``batched``: always under vmap, and
    over its scalar prefetch too. ``always_inside``: blocks lie inside their arrays.
    ``writes_first``: no cell reads of its outputs what it hasn't written."""

    function: Callable[..., Any]
    args: list[np.ndarray]
    rtol = None  # every float is exact
    interpret: Any = True
    always_inside = False
    writes_first = False
    body_type = Body

    def __init__(self, source: random.Random, pool: Pool = USUAL, batched: bool = False):
        super().__init__(source, pool)
        self._data = np.random.default_rng(self.number(0, 1 << 16))
        self._grid = [self.number(1, 3) for _ in range(self.one([0, 1, 1, 2, 2]))]
        self._prefetched = 1 if batched else self.number(0, 1)
        # Of a block that lies outside, XLA makes one slice with the kernel's own of it.
        self._inside = self.always_inside or bool(self.number(0, 1))
        body = self.body_type(source, pool)
        body.moving = self._inside
        aliased = self.rarely(3)
        whole = aliased or bool(pool.complexes) or self.always_inside
        inputs = [self.operand(pool.dtypes, not whole) for _ in range(self.number(1, 3))]
        outputs = [self.operand(pool.stored, False) for _ in range(self.number(1, 3))]
        aliases = {}
        if aliased:
            one = inputs[0]
            outputs[0], aliases = one, {self._prefetched: 0}
            if one.spec and self.number(0, 1):
                block = one.spec.block_shape
                assert block is not None
                elsewhere = self._index_map(_starts(block, one.shape))
                outputs[0] = one._replace(spec=pl.BlockSpec(block, elsewhere))
        # Of a block of an array, and of a place outside the block, XLA makes one slice as well.
        whole_arrays = all(one.spec is None for one in (*inputs, *outputs))
        body.outside = whole_arrays and not self.always_inside
        scratch = [
            pltpu.VMEM(self.shape((1, 2)), self.one(pool.stored)) for _ in range(self.number(0, 2))
        ]
        dynamic = bool(self._grid) and not batched and self.rarely(6)

        def kernel(*refs):
            fixed = self._prefetched + len(inputs)
            scope = Scope([], [Memory(ref, i >= fixed) for i, ref in enumerate(refs)])
            scope.values.append(Value(np.int32(self.number(0, 3)) + jnp.int32(0)))
            for axis in range(len(self._grid)):
                scope.values.append(Value(pl.program_id(axis)))
                scope.values.append(Value(jnp.int32(pl.num_programs(axis))))
            for ref in refs[self._prefetched : fixed]:
                scope.values.append(body.loaded(ref[...]))
            for ref in refs[fixed : fixed + len(outputs)] if self.writes_first else ():
                ref[...] = body.canonical(scope, ref).x
            body.block(scope, 6, 20)
            for ref in refs[fixed : fixed + len(outputs)]:
                body.digest(scope, ref)

        def function(*args):
            grid = tuple(self._grid)
            if dynamic:
                grid, args = (args[0], *grid[1:]), args[1:]
            spec = pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=self._prefetched,
                grid=grid,
                in_specs=[one.spec or pl.BlockSpec() for one in inputs],
                out_specs=[one.spec or pl.BlockSpec() for one in outputs],
                scratch_shapes=scratch,
            )
            return pl.pallas_call(
                kernel,
                [one.struct() for one in outputs],
                grid_spec=spec,
                input_output_aliases=aliases,
                interpret=self.interpret,
            )(*args)

        self.function = function
        self.args = [np.array(self._grid[0], np.int32)] if dynamic else []
        if self._prefetched:
            self.args.append(self._data.integers(-1, 4, 4).astype(np.int32))
        self.args += [data(self, self._data, one.shape, one.dtype) for one in inputs]
        if not dynamic and (batched or self.rarely(8)):
            self._batch(batched)

    def _batch(self, first: bool) -> None:
        """Runs it under vmap, over some of the arguments, and maybe certainly the first."""
        axes: list[int | None] = [self.one([None, 0]) for _ in self.args]
        axes[0 if first else -1] = 0
        self.function = jax.vmap(self.function, axes)
        for position, axis in enumerate(axes):
            if axis is not None:
                arg = self.args[position]
                self.args[position] = np.stack([arg, np.roll(arg, 1)])

    def operand(self, dtypes: Sequence[np.dtype], padded: bool) -> Operand:
        """An array; if ``padded``, elements around it may belong to its blocks."""
        dtype, shape = self.one(dtypes), self.shape()
        if not shape or not self._grid or self.rarely():
            return Operand(shape, dtype, None)
        block: list[Any] = []
        sizes = list(shape)
        element = self.rarely(5)
        for i, size in enumerate(shape):
            if element:
                padding = (self.number(0, 2), self.number(0, 2)) if padded else (0, 0)
                block.append(pl.Element(self.number(1, size), padding))
            elif self.rarely():
                block.append(None)
            else:
                block.append(size)
                # The array: so many blocks, and maybe not quite.
                cut = 0 if dtype.kind == "c" else self.one([0, 0, 1, 2])
                sizes[i] = max(1, self.number(1, 3) * size - cut)
        index_map = self._index_map(_starts(block, sizes))
        return Operand(tuple(sizes), dtype, pl.BlockSpec(tuple(block), index_map))

    def _index_map(self, starts: Sequence[int]) -> Callable[..., tuple[Any, ...]]:
        """Index maps that keep, permute, repeat, shift and scale the grid's indices; some of
        them stay below ``starts``."""
        axes = len(self._grid)
        terms = []
        for i in range(len(starts)):
            usual = self.number(0, 3) > 0
            axis = i % axes if usual else self.number(0, axes - 1)
            factor = 1 if usual else self.one([0, 0, 1, 2, -1])
            looked_up = bool(self._prefetched) and self.rarely()
            terms.append((axis, factor, 0 if usual else self.number(-1, 2), looked_up))

        def index_map(*indices):
            grid, prefetched = indices[:axes], indices[axes:]
            at = [
                prefetched[0][grid[axis]] if looked_up else grid[axis] * factor + offset
                for axis, factor, offset, looked_up in terms
            ]
            if self._inside:
                at = [jnp.clip(i, 0, start - 1) for i, start in zip(at, starts, strict=True)]
            return tuple(at)

        return index_map


def _starts(block: Sequence[Any], shape: Sequence[int]) -> list[int]:
    """How many values of an index map lie inside the array, in each dimension."""
    return [
        size if b is None
        else size + sum(b.padding) - b.block_size + 1 if isinstance(b, pl.Element)
        else -(-size // b)
        for b, size in zip(block, shape, strict=True)
    ]  # fmt: skip


def data(
    choices: Choices, random: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype
) -> np.ndarray:
    """Small numbers and the ends of the range; floats that operations keep exact."""
    if dtype == BOOL:
        return random.integers(0, 2, shape).astype(bool)
    if dtype.kind == "c":
        # Without special values: XLA's products of those follow no rule.
        return (random.integers(-4, 5, shape) + 0.5j * random.integers(-8, 9, shape)).astype(dtype)
    if is_float(dtype):
        fine = fits(dtype, BOUND, QUANTUM)
        x = random.integers(-16, 17, shape) / 4 if fine else random.integers(-4, 5, shape)
        x = x * np.where(random.random(shape) < 0.1, -0.0, 1)
        if choices.rarely():
            special = random.choice([np.nan, np.inf, -np.inf, -0.0], shape)
            x = np.where(random.random(shape) < 0.2, special, x)
        return np.asarray(x).astype(dtype)
    info = ml_dtypes.iinfo(dtype)
    low, high = int(info.min), int(info.max)
    small = random.integers(max(low, -4), min(high, 8) + 1, shape)
    wild = random.choice(np.array([low, high, high // 2, high // 3, 0], object), shape)
    return np.where(random.random(shape) < 0.2, wild, small).astype(dtype)
