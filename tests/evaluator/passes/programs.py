"""Programs for the tests of the passes: a builder, and random ones.

A random program has ints and floats, buffers of its own and of the caller, views of them,
loads and stores at static and dynamic places, output to a log, and every kind of control
flow. Its arithmetic is plain NumPy under the primitives' names, so that it stands alone.
"""

from __future__ import annotations

import random
from typing import NamedTuple

import jax
import numpy as np
from hypothesis import strategies as st

from pallas_shim.evaluator import codegen, memory, refs, rules
from pallas_shim.evaluator.execute import Executable
from pallas_shim.evaluator.lower import Lowering, lower
from pallas_shim.evaluator.passes.dead_code import remove_dead_code
from pallas_shim.evaluator.program import (
    PURE,
    ArrayType,
    Effects,
    Instruction,
    Operation,
    Program,
    RefType,
    Region,
    Value,
)
from pallas_shim.evaluator.verify import verify
from pallas_shim.jax_compat.state import Index, Slice

INT = np.dtype(np.int32)
FLOAT = np.dtype(np.float32)
BOOL = np.dtype(np.bool_)
SCALAR = ArrayType((), INT)
INTS = ArrayType((4,), INT)
FLOATS = ArrayType((4,), FLOAT)
ROW = RefType((4,), INT, "vmem")
MATRIX = RefType((3, 4), INT, "vmem")

_BINARY = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}
_COMPARISONS = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}
_WHOLE_ROW = Slice(0, 4, 1)


class Builder(Lowering):
    """A lowering with the instructions that the tests need. What the programs made with it
    print goes to ``log``."""

    def __init__(self):
        super().__init__(axes={})
        rules.load()
        self.log = []

    def pure(self, name, fn, ins, out, view=False, **params):
        key = (name, *params.values())
        (value,) = self.memory(name, ins, [out], fn, PURE, key=key, view=view, params=params)
        return value

    def int(self, number):
        return self.const(np.int32(number))

    def binary(self, name, x, y):
        return self.pure(name, _BINARY[name], [x, y], x.type)

    def compare(self, name, x, y):
        return self.pure(name, _COMPARISONS[name], [x, y], ArrayType(x.type.shape, BOOL))

    def convert(self, x, dtype):
        convert = lambda x: x.astype(dtype)  # noqa: E731
        out = ArrayType(x.type.shape, dtype)
        return self.pure("convert_element_type", convert, [x], out)

    def select(self, predicate, x, y):
        return self.pure("select_n", lambda p, x, y: np.where(p, y, x), [predicate, x, y], x.type)

    def broadcast(self, x):
        fn = lambda x: np.broadcast_to(x, (4,))  # noqa: E731
        out = ArrayType((4,), x.type.dtype)
        return self.pure("broadcast_in_dim", fn, [x], out, view=True, broadcast_dimensions=())

    def reverse(self, x):
        return self.pure("rev", lambda x: x[::-1], [x], x.type, view=True, dimensions=(0,))

    def gather(self, x, indices):
        """Elements of a row at constant places; those outside of it are -7."""
        dimension_numbers = jax.lax.GatherDimensionNumbers((), (0,), (0,))
        params = {
            "dimension_numbers": dimension_numbers, "slice_sizes": (1,), "fill_value": -7,
            "mode": jax.lax.GatherScatterMode.FILL_OR_DROP,
        }  # fmt: skip
        at = self.const(np.array(indices, INT)[:, None])
        (value,) = self.apply("gather", [x, at], [x.type], params)
        return value

    def slice(self, x, start, size):
        """Some rows of an array."""
        bounds = slice(start, start + size)
        out = ArrayType((size, *x.type.shape[1:]), x.type.dtype)
        return self.pure(
            "slice", lambda x: x[bounds], [x], out, view=True,
            start_indices=(start,) + (0,) * (x.type.ndim - 1),
            limit_indices=(start + size, *out.shape[1:]), strides=None,
        )  # fmt: skip

    def concatenate(self, xs):
        rows = sum(x.type.shape[0] for x in xs)
        out = ArrayType((rows, *xs[0].type.shape[1:]), xs[0].type.dtype)
        return self.pure("concatenate", lambda *xs: np.concatenate(xs), xs, out, dimension=0)

    def iota(self):
        return self.pure("iota", lambda: np.arange(4, dtype=INT), [], INTS)

    def allocate(self, type):
        return refs.allocate(self, type)

    def load(self, ref, row=None):
        """A whole ref, or one row of a matrix."""
        path, leaves = self._path(row)
        out = ArrayType(ref.type.shape[-1:] if path else ref.type.shape, ref.type.dtype)
        return refs.load(self, ref, path, leaves, out)

    def store(self, ref, value, row=None):
        path, leaves = self._path(row)
        refs.store(self, ref, path, leaves, value)

    def row(self, ref, row):
        path, leaves = self._path(row)
        fn = memory.viewer(ref.type.shape, ref.type.dtype, path)
        (view,) = self.memory("view", [ref, *leaves], [ROW], fn, PURE, key=path, view=True)
        return view

    def _path(self, row):
        if row is None:
            return (), []
        if isinstance(row, Value):
            return (Index((memory.Dynamic(0), _WHOLE_ROW)),), [row]
        return (Index((row, _WHOLE_ROW)),), []

    def print(self, value):
        self.memory("debug_callback", [value], [], self._print, Effects(io=True))

    def _print(self, value):
        self.log.append(np.array(value))
        return ()

    def scan(self, carry, xs, body, length, reverse=False):
        """``body(*carry, *x)`` gives the new carry and the ys."""
        rows = [ArrayType(v.type.shape[1:], v.type.dtype) for v in xs]
        types = [v.type for v in carry]
        region = self.region([*types, *rows], lambda args: body(*args))
        for y in region.results[len(carry) :]:
            types.append(ArrayType((length, *y.type.shape), y.type.dtype))
        given = {"length": length, "reverse": reverse, "num_carry": len(carry)}
        return self.structured("scan", [*carry, *xs], types, [region], given)

    def repeat(self, times, carry, body):
        """A while loop: ``carry = body(i, *carry)`` for i below a value."""
        types = [SCALAR, *(v.type for v in carry)]
        condition = self.region(types, lambda args: [self.compare("lt", args[0], times)])
        region = self.region(
            types, lambda args: [self.binary("add", args[0], self.int(1)), *body(*args)]
        )
        return self.structured("while", [self.int(0), *carry], types, [condition, region], {})[1:]

    def switch(self, index, types, branches):
        regions = [self.region((), lambda _, branch=branch: branch()) for branch in branches]
        return self.structured("switch", [index], types, regions, {})

    def over_grid(self, sizes, cell):
        def build(indices):
            cell(*indices)
            return ()

        region = self.region([SCALAR] * len(sizes), build)
        types = tuple(v.type for v in sizes)
        operation = Operation("grid", {"name": "test"}, types, (), None, PURE, multiple=True)
        self.emit(operation, sizes, (region,))


class Made(NamedTuple):
    program: Program
    log: list


def make(param_types, build) -> Made:
    """The program whose results ``build(builder, *params)`` gives."""
    builder = Builder()
    params = tuple(map(Value, param_types))
    with builder.block() as body:
        results = tuple(build(builder, *params))
    return Made(Program("test", Region(params, tuple(body), results)), builder.log)


def instructions(program: Program) -> list[Instruction]:
    return list(program.top.walk())


def names(program: Program) -> list[str]:
    return [i.name for i in instructions(program)]


def outcome(program: Program, log: list, emits=codegen.pays) -> tuple:
    """All that can be seen of a run: the results' bytes, the caller's buffers, the log."""
    verify(program)
    args = [_argument(position, v.type) for position, v in enumerate(program.top.params)]
    log.clear()
    results = Executable(program, emits)(*args)
    return tuple(_seen(array) for array in (*results, *args, *log))


def check_pass(run, f, *args) -> list[str]:
    """The names of the instructions of ``f`` after a pass and dead code; asserts that it does
    what it did before, bit for bit."""
    before = lower(jax.make_jaxpr(f)(*args))
    after = run(before)
    verify(after)
    after = remove_dead_code(after)
    results = (Executable(program)(*args) for program in (before, after))
    assert list(map(_seen, next(results))) == list(map(_seen, next(results)))
    return names(after)


def _argument(position: int, type) -> np.ndarray:
    count = int(np.prod(type.shape))
    return (np.arange(count) * 7 - 5 * position).reshape(type.shape).astype(type.dtype)


def _seen(array) -> tuple:
    array = np.asarray(array)
    return array.shape, array.dtype, array.tobytes()


def structure(program: Program):
    """Everything a pass could change in a program, to see that it did not."""

    def region(r: Region):
        return (id(r), r.params, tuple(map(instruction, r.body)), r.results)

    def instruction(i: Instruction):
        fields = tuple(getattr(i.operation, name) for name in Operation.__slots__)
        values = tuple((v, v.type, id(v.const)) for v in (*i.ins, *i.outs))
        return (id(i), i.operation, _frozen(fields), values, tuple(map(region, i.regions)))

    return region(program.top)


def _frozen(fields):
    return tuple(tuple(f.items()) if isinstance(f, dict) else f for f in fields)


# -- random programs --------------------------------------------------------------------------


class _Scope(NamedTuple):
    """The values that a statement may use, by kind."""

    scalars: list[Value]
    ints: list[Value]
    floats: list[Value]
    rows: list[Value]
    matrices: list[Value]

    def inner(self) -> _Scope:
        return _Scope(*map(list, self))


_STATEMENTS = (
    "constant", "iota", "binary", "binary", "float", "select", "truth", "broadcast", "reverse",
    "reverse", "allocate", "row", "load", "load", "load", "load", "store", "store", "store",
    "store", "print", "unrolled", "unrolled", "gather", "floor", "product",
)  # fmt: skip
_CONTROL = ("scan", "while", "switch", "grid", "recurrence")


class _Random:
    def __init__(self, seed: int, builder: Builder):
        self.number = random.Random(seed).randint
        self.b = builder

    def one(self, values):
        return values[self.number(0, len(values) - 1)]

    def recent(self, values):
        """Mostly one of the last values, so that one computation leads to the next."""
        return self.one(values[-2:] if self.number(0, 3) else values)

    def block(self, scope: _Scope, depth: int) -> None:
        for _ in range(self.number(10, 24) if depth == 0 else self.number(2, 8)):
            kinds = _STATEMENTS + (_CONTROL if depth < 2 else ())
            getattr(self, f"do_{self.one(kinds)}")(scope, depth)

    def index(self, scope):
        """A row number: a constant, or any scalar, which the load or store clamps."""
        return self.number(0, 2) if self.number(0, 1) else self.one(scope.scalars)

    def do_constant(self, scope, depth):
        scope.ints.append(self.b.const(np.full(4, self.number(-1, 1), INT)))

    def do_iota(self, scope, depth):
        scope.ints.append(self.b.iota())

    def do_binary(self, scope, depth):
        values = self.one([scope.scalars, scope.ints])
        operation = self.one(sorted(_BINARY))
        values.append(self.b.binary(operation, self.recent(values), self.one(values)))

    def do_float(self, scope, depth):
        special = self.b.const(np.full(4, self.one([0.0, -0.0, 1.0, np.nan]), FLOAT))
        other = self.one([special, self.recent(scope.floats)])
        operation = self.one(["add", "sub", "mul"])
        scope.floats.append(self.b.binary(operation, self.recent(scope.floats), other))

    def do_select(self, scope, depth):
        x, y = self.recent(scope.ints), self.one(scope.ints)
        if self.number(0, 1):
            predicate = self.b.const(np.full(4, bool(self.number(0, 1))))
        else:
            predicate = self.b.compare(self.one(sorted(_COMPARISONS)), x, y)
        scope.ints.append(self.b.select(predicate, *self.one([(x, y), (y, x)])))

    def do_truth(self, scope, depth):
        """Booleans widened to integers, combined, and narrowed again."""
        x, y = self.recent(scope.ints), self.recent(scope.ints)
        mask = self.b.convert(self.b.compare(self.one(sorted(_COMPARISONS)), x, y), INT)
        if self.number(0, 1):
            other = self.b.compare(self.one(sorted(_COMPARISONS)), y, self.one(scope.ints))
            other = self.b.convert(other, INT)
        else:
            other = self.b.const(np.arange(4, dtype=INT) % self.number(1, 3))
        mask = self.b.binary(self.one(["and", "or", "xor"]), mask, other)
        scope.ints.append(mask)
        zero_or_one = self.b.const(np.full(4, self.number(0, 1), INT))
        if self.number(0, 1):
            predicate = self.b.compare(self.one(["eq", "ne"]), mask, zero_or_one)
        else:
            predicate = self.b.convert(mask, BOOL)
        scope.ints.append(self.b.select(predicate, x, y))

    def do_floor(self, scope, depth):
        """A quotient or a remainder, corrected as jnp does, or nearly so."""
        values = self.one([scope.scalars, scope.ints])
        x = self.recent(values)

        def number(*numbers):
            return self.b.const(np.full(x.type.shape, self.one(numbers), INT))

        def primitive(name, *ins):
            return self.b.apply(name, ins, [x.type], {})[0]

        by = self.number(2, 4)
        remainder = primitive("rem", x, number(by))
        not_whole = self.b.compare("ne", remainder, number(0))
        if self.number(0, 1):
            plain = primitive("div", x, number(by))
            wrong = self.b.compare("ne", primitive("sign", x), number(1))
            corrected = self.b.binary("sub", plain, number(1, 1, 2))
        else:
            plain = remainder
            wrong = self.b.compare("lt", remainder, number(0))
            corrected = self.b.binary("add", remainder, number(by, by, 1))
        values.append(self.b.select(self.b.binary("and", wrong, not_whole), plain, corrected))

    def do_product(self, scope, depth):
        """Of integers that were narrow before, or of one."""
        x, y = self.recent(scope.ints), self.one(scope.ints)
        x = self.b.convert(self.b.convert(x, np.dtype(np.int8)), INT)
        if self.number(0, 1):
            y = self.b.convert(self.b.convert(y, np.dtype(np.uint8)), INT)
        params = {"dimension_numbers": (((0,), (0,)), ((), ())), "precision": None}
        scope.scalars.append(self.b.apply("dot_general", [x, y], [SCALAR], params)[0])

    def do_broadcast(self, scope, depth):
        scope.ints.append(self.b.broadcast(self.recent(scope.scalars)))

    def do_reverse(self, scope, depth):
        scope.ints.append(self.b.reverse(self.recent(scope.ints)))

    def do_allocate(self, scope, depth):
        scope.rows.append(self.b.allocate(ROW))
        scope.matrices.append(self.b.allocate(MATRIX))

    def do_row(self, scope, depth):
        scope.rows.append(self.b.row(self.one(scope.matrices), self.index(scope)))

    def do_load(self, scope, depth):
        if self.number(0, 1):
            scope.ints.append(self.b.load(self.one(scope.rows)))
        else:
            scope.ints.append(self.b.load(self.one(scope.matrices), self.index(scope)))

    def do_store(self, scope, depth):
        if self.number(0, 1):
            self.b.store(self.one(scope.rows), self.recent(scope.ints))
        else:
            self.b.store(self.one(scope.matrices), self.recent(scope.ints), self.index(scope))

    def do_gather(self, scope, depth):
        indices = [self.number(0, 3) for _ in range(3)] + [self.number(-1, 4)]
        scope.ints.append(self.b.gather(self.recent(scope.ints), indices))

    def do_unrolled(self, scope, depth):
        """The same operations on each of several values: some from outside, or an array's parts."""
        if in_parts := self.number(0, 1):
            whole = self.recent(scope.ints)
            lanes = [self.b.slice(whole, i, 1) for i in range(4)]
        else:
            lanes = [self.one(scope.ints) for _ in range(self.number(2, 6))]
        others = scope.scalars if in_parts else [*scope.scalars, *scope.ints]
        for _ in range(self.number(1, 5)):
            partners = self.one(
                [
                    [self.one(others)] * len(lanes),
                    [self.one(others) for _ in lanes],
                    [lanes[i ^ 1] if i ^ 1 < len(lanes) else lanes[i] for i in range(len(lanes))],
                    lanes[1:] + lanes[:1],
                ]
            )
            kind = self.number(0, 4)
            if kind == 0:
                lanes = [self.b.reverse(lane) for lane in lanes]
            elif kind == 1 and all(p.type == lanes[0].type for p in partners):
                compare = self.one(sorted(_COMPARISONS))
                pairs = list(zip(lanes, partners, strict=True))
                lanes = [self.b.select(self.b.compare(compare, x, y), x, y) for x, y in pairs]
            else:
                operation = self.one(sorted(_BINARY))
                pairs = list(zip(lanes, partners, strict=True))
                lanes = [self.b.binary(operation, x, y) for x, y in pairs]
            if not in_parts and not self.number(0, 3):
                self.b.store(self.one(scope.rows), self.one(lanes))
        if in_parts:
            order = self.one([lanes, lanes[::-1], [lanes[0]] * 4])
            scope.ints.append(self.b.concatenate(order))
        else:
            scope.ints.extend(lanes)

    def do_print(self, scope, depth):
        self.b.print(self.one(self.one([scope.scalars, scope.ints, scope.floats])))

    def do_scan(self, scope, depth):
        def body(counter, carry, x):
            inner = scope.inner()
            inner.scalars.append(counter)
            inner.ints.append(carry)
            inner.ints.append(x)
            self.block(inner, depth + 1)
            counter = self.b.binary("add", counter, self.b.int(1))
            return [counter, self.recent(inner.ints), self.recent(inner.ints)]

        length = 3 if scope.matrices and self.number(0, 1) else self.number(0, 2)
        if length == 3:
            xs = self.b.load(self.one(scope.matrices))
        else:
            xs = self.b.const(np.arange(4 * length, dtype=INT).reshape(length, 4))
        carry = [self.b.int(0), self.recent(scope.ints)]
        count, out, _ = self.b.scan(carry, [xs], body, length, bool(self.number(0, 1)))
        scope.scalars.append(count)
        scope.ints.append(out)

    def do_recurrence(self, scope, depth):
        """A loop that stores in the rows of a matrix, one a round, what it goes on with."""
        inputs, matrix = (self.one(scope.matrices) for _ in range(2))

        def body(counter, state, before):
            inner = scope.inner()
            inner.scalars.append(counter)
            inner.ints.extend([state, before, self.b.load(inputs, counter)])
            if not self.number(0, 2):
                self.block(inner, depth + 1)
            for _ in range(self.number(1, 3)):
                self.do_binary(inner, depth)
            result = self.recent(inner.ints)
            self.b.store(matrix, result, counter)
            if not self.number(0, 3):
                self.b.store(self.one(scope.matrices), result, counter)
            for _ in range(self.number(0, 2)):
                self.do_binary(inner, depth)
            after = self.one([result, result, self.recent(inner.ints), self.b.reverse(result)])
            counter = self.b.binary("add", counter, self.b.int(1))
            return [counter, after, self.one([state, before, result])]

        carry = [self.b.int(0), self.recent(scope.ints), self.recent(scope.ints)]
        count, *out = self.b.scan(carry, [], body, 3, not self.number(0, 7))
        scope.scalars.append(count)
        scope.ints.extend(out)

    def do_while(self, scope, depth):
        def body(i, carry):
            inner = scope.inner()
            inner.scalars.append(i)
            inner.ints.append(carry)
            self.block(inner, depth + 1)
            return [self.recent(inner.ints)]

        times = self.b.int(self.number(0, 2))
        scope.ints.extend(self.b.repeat(times, [self.recent(scope.ints)], body))

    def do_switch(self, scope, depth):
        def branch():
            inner = scope.inner()
            self.block(inner, depth + 1)
            return [self.recent(inner.ints)]

        index = self.recent(scope.scalars)
        scope.ints.extend(self.b.switch(index, [INTS], [branch] * self.number(1, 3)))

    def do_grid(self, scope, depth):
        def cell(*indices):
            inner = scope.inner()
            inner.scalars.extend(indices)
            self.block(inner, depth + 1)

        self.b.over_grid([self.b.int(self.number(0, 2)) for _ in range(2)], cell)


def random_program(seed: int) -> Made:
    """A program of up to a few hundred instructions that ends and prints little."""

    def build(builder, scalar, ints, floats, row, matrix):
        scope = _Scope([scalar, builder.int(1), builder.int(0)], [ints], [floats], [row], [matrix])
        some = _Random(seed, builder)
        some.do_allocate(scope, 0)
        some.block(scope, 0)
        values = [*scope.scalars, *scope.ints, *scope.floats, *map(builder.load, scope.matrices)]
        return [value for value in values if some.number(0, 3) == 0]

    return make([SCALAR, INTS, FLOATS, ROW, MATRIX], build)


# Hypothesis draws only the seed: drawn one by one, the choices come out too alike to reach
# the rare sequences of loads, stores and loops that tell a wrong pass from a right one.
random_programs = st.builds(random_program, seed=st.integers(0, 2**32 - 1))
