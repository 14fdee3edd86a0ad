"""The contract of the IR: what it says of our operations, and that wrong programs and wrong passes
are caught."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
from jax.experimental import pallas as pl

from pallas_shim.evaluator import ops, passes, rules
from pallas_shim.evaluator.lower import lower
from pallas_shim.evaluator.memory import same
from pallas_shim.evaluator.passes.rewrite import writing_over
from pallas_shim.evaluator.program import (
    PURE,
    Effects,
    Operation,
    Program,
    Region,
    Value,
)
from pallas_shim.evaluator.verify import InvalidProgram, Verifier, verify, verify_pass
from pallas_shim.evaluator.verify.kept import ADDS_STORES, LEAVES_OUT_UNSEEN_STORES
from pallas_shim.jax_compat.state import Index
from tests.evaluator.passes.programs import (
    FLOATS,
    INTS,
    MATRIX,
    ROW,
    SCALAR,
    instructions,
    make,
    random_program,
)


def change(program: Program, which, to) -> Program:
    """The program in which ``to`` gives, for the instructions for which ``which`` holds, the
    instructions in their place."""

    def region(r: Region) -> Region:
        body: list[Any] = []
        for i in r.body:
            i = i._replace(regions=tuple(map(region, i.regions)))
            body += to(i) if which(i) else [i]
        return Region(r.params, tuple(body), r.results)

    return Program(program.name, region(program.top))


def named(name):
    return lambda i: i.name == name


def with_operation(i, **changes):
    fields = {name: getattr(i.operation, name) for name in Operation.__slots__}
    return i._replace(operation=Operation(**{**fields, **changes}))


def build(b, x, row):
    """Loads, stores, arithmetic, and each kind of region."""
    doubled = b.binary("add", x, x)
    b.store(row, doubled)
    loaded = b.load(row)
    buffer = b.allocate(MATRIX)
    b.store(buffer, loaded, b.int(1))

    def body(counter, carry):
        b.store(buffer, b.binary("mul", carry, doubled), counter)
        return [b.binary("add", counter, b.int(1)), b.binary("sub", carry, loaded)]

    count, carried = b.scan([b.int(0), doubled], [], body, 3)
    (chosen,) = b.switch(count, [INTS], [lambda: [carried], lambda: [b.binary("xor", x, carried)]])
    (last,) = b.repeat(count, [chosen], lambda i, v: [b.binary("or", v, x)])
    b.over_grid([b.int(2)], lambda i: b.store(buffer, x, i))
    return [last, b.load(buffer)]


@pytest.fixture
def program() -> Program:
    return make([INTS, ROW], build).program


def test_what_is_right_passes(program):
    verify(program)
    passes.optimise(program, watchers=[Verifier()])


_WITH_RULES = {"blocks", "each", "lookup", "sum_of_products"}


def test_all_that_has_a_row_is_described():
    rules.load()
    for row in ops.ROWS.values():
        assert row.does and row.makers
        assert all(param.meaning for param in row.params)
    assert not set(ops.ROWS) & (set(rules.IMPL_RULES) - _WITH_RULES)


def test_the_passes_that_change_stores_are_in_the_pipeline():
    assert passes.NAMES >= ADDS_STORES | LEAVES_OUT_UNSEEN_STORES


# -- one program ------------------------------------------------------------------------------


BROKEN = {
    "a use before its definition": (
        lambda p: Program(p.name, Region(p.top.params, p.top.body[::-1], p.top.results)),
        "is used before it is defined",
    ),
    "a definition that is gone": (
        lambda p: change(p, named("allocate"), lambda i: []), "before it is defined",
    ),
    "a double definition": (
        lambda p: change(p, named("or"), lambda i: [i, i]), "defined elsewhere, too",
    ),
    "a use outside of the region": (
        lambda p: Program(p.name, Region(p.top.params, p.top.body, (
            next(i for i in instructions(p) if i.name == "mul").outs[0],))),
        "outside of where it is defined",
    ),
    "a wrong type of a result": (
        lambda p: change(p, named("xor"), lambda i: [i._replace(outs=(Value(SCALAR),))]),
        "result 0 is a",
    ),
    "a wrong type of an operation": (
        lambda p: change(p, named("sub"), lambda i: [
            with_operation(i, outs=(FLOATS,))._replace(outs=(Value(FLOATS),))]),
        "float32",
    ),
    "an effect left out": (
        lambda p: change(p, named("store"), lambda i: [with_operation(i, effects=PURE)]),
        "its effects are",
    ),
    "an effect on what is no ref": (
        lambda p: change(p, named("get"), lambda i: [
            with_operation(i, effects=Effects(reads=(7,)))]),
        "its effects are",
    ),
    "a missing parameter": (
        lambda p: change(p, named("store"), lambda i: [with_operation(i, params={})]),
        "no parameter 'path'",
    ),
    "an unknown parameter": (
        lambda p: change(p, named("store"), lambda i: [
            with_operation(i, params={**i.operation.params, "mask": 1})]),
        "unknown parameter 'mask'",
    ),
    "an unknown operation": (
        lambda p: change(p, named("xor"), lambda i: [with_operation(i, name="xorr")]),
        "no rule for it",
    ),
    "a wrong path": (
        lambda p: change(p, named("get"), lambda i: [
            with_operation(i, params={"path": (Index((0, 0, 0)),)})]),
        "its path",
    ),
    "a region too many": (
        lambda p: change(p, named("scan"), lambda i: [i._replace(
            regions=(*i.regions, Region((), (), ())))]),
        "2 regions, not one",
    ),
    "a region too few": (
        lambda p: change(p, named("while"), lambda i: [i._replace(regions=i.regions[:1])]),
        "1 regions, not a condition and a body",
    ),
    "a result of a branch too few": (
        lambda p: change(p, named("switch"), lambda i: [i._replace(regions=(
            i.regions[0], Region((), i.regions[1].body, ())))]),
        "the results of branch 1",
    ),
    "a carry of another type": (
        lambda p: change(p, named("scan"), lambda i: [i._replace(regions=(Region(
            i.regions[0].params, i.regions[0].body, i.regions[0].results[::-1]),))]),
        "what a round carries on",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_wrong_program_is_caught(program, name):
    broken, said = BROKEN[name]
    with pytest.raises(InvalidProgram, match=said) as error:
        verify(broken(program), "the pass that is tested")
    assert "wrong after the pass that is tested" in str(error.value)


def test_the_message_names_the_instruction_and_the_users_line():
    def f(x):
        return x * x

    broken = change(
        lower(jax.make_jaxpr(f)(np.float32([1]))), named("mul"),
        lambda i: [i._replace(outs=(Value(FLOATS),))],
    )  # fmt: skip
    with pytest.raises(InvalidProgram, match=r"= mul %0, %0\n  at .*test_verify.py:\d+ \("):
        verify(broken)


def over(i, position):
    return i._replace(operation=writing_over(i.operation, i.ins, position))


@pytest.mark.parametrize("later", ["operand", "result", "loop", "view", "argument", "buffer"])
def test_writing_over_what_is_still_there(later):
    def f(b, x, y):
        mine = b.binary("add", x, y)
        if later == "view":
            view = b.reverse(mine)
        if later == "buffer":
            ref = Value(ROW)
            b.define("buffer", ref, [mine], same, Effects(allocates=True))
        result = b.binary("mul", x if later == "argument" else mine, y)
        if later == "operand":
            return [b.binary("sub", result, mine)]
        if later == "loop":
            return b.scan([result], [], lambda v: [b.binary("or", v, mine)], 3)
        if later == "view":
            return [result, view]
        if later == "buffer":
            return [result, b.load(ref)]
        return [result, mine] if later == "result" else [result]

    before = make([INTS, INTS], f).program
    verify(before)
    broken = change(before, named("mul"), lambda i: [over(i, 0)])
    with pytest.raises(InvalidProgram, match="it writes over an array"):
        verify(broken)


def test_writing_over_what_a_round_carries():
    def f(b, x, y):
        def body(carry):
            made = b.binary("add", carry, y)
            return [b.binary("mul", made, carry)]

        return b.scan([x], [], body, 3)

    before = make([INTS, INTS], f).program
    verify(change(before, named("mul"), lambda i: [over(i, 0)]))  # made in this round
    with pytest.raises(InvalidProgram, match="isn't one of this round's own"):
        verify(change(before, named("mul"), lambda i: [over(i, 1)]))


def as_view(i):
    view = i.operation.params["as_view"]
    params = {"path": i.operation.params["path"]}
    return with_operation(i, params=params, fn=view, view=True)


@pytest.mark.parametrize("where", ["straight", "loop", "carried", "result"])
def test_a_view_that_is_overwritten(where):
    def f(b, x, row):
        if where == "result":
            return [b.load(row)]
        if where == "carried":
            def body(carry):
                b.store(row, b.binary("add", carry, x))
                return [b.load(row)]

            return b.scan([x], [], body, 3)
        loaded = b.load(row)
        if where == "loop":
            def step(carry):
                total = b.binary("add", carry, loaded)
                b.store(row, total)
                return [total]

            return b.scan([x], [], step, 3)
        b.store(row, x)
        return [b.binary("add", loaded, x)]

    before = make([INTS, ROW], f).program
    verify(before)
    with pytest.raises(InvalidProgram, match="overwrit|the caller's memory"):
        verify(change(before, named("get"), lambda i: [as_view(i)]))


def test_an_operands_own_memory_is_only_read():
    def f(b, x):
        ref = Value(ROW)
        b.define("buffer", ref, [x], same, Effects(allocates=True))
        b.store(ref, x)
        return [b.load(ref)]

    with pytest.raises(InvalidProgram, match="an operand's own memory"):
        verify(make([INTS], f).program)


# -- a program before and after a pass ----------------------------------------------------------


def stores(program):
    return [i for i in instructions(program) if i.name == "store"]


@pytest.mark.parametrize("name", sorted(passes.NAMES - {"codegen"}))
@pytest.mark.parametrize("number", range(4))
def test_a_dropped_store_is_caught(program, name, number):
    """Each of the stores, those in loops too, after any pass."""
    lost = stores(program)[number]
    broken = change(program, lambda i: i == lost, lambda i: [])
    verify(broken)
    with pytest.raises(InvalidProgram, match="gone"):
        verify_pass(program, broken, name)


@pytest.mark.parametrize("name", sorted(passes.NAMES - {"codegen"}))
def test_a_pass_that_drops_stores_is_caught_in_the_pipeline(monkeypatch, name):
    """In a kernel whose cells become one, and whose stores have been moved and merged by then."""

    def kernel(x_ref, o_ref):
        def body(i, _):
            o_ref[i, :] = x_ref[i, :] * 2 + 1
            return 0

        jax.lax.fori_loop(0, 8, body, 0)

    def f(x):
        block = pl.BlockSpec((8, 4), lambda i: (i, 0))
        return pl.pallas_call(
            kernel, out_shape=x, grid=(4,), in_specs=[block], out_specs=block, interpret=True
        )(x)

    before = lower(jax.make_jaxpr(f)(np.ones((32, 4), np.float32)))

    def dropping(run):
        def wrong(program):
            after = run(program)
            store = next(i for i in instructions(after) if i.operation.effects.writes)
            return change(after, lambda i: i.operation is store.operation, lambda i: [])

        return wrong

    done = [n for n, _ in passes.PIPELINE].index(name)
    wrong = tuple(
        (n, dropping(run) if at == done else run) for at, (n, run) in enumerate(passes.PIPELINE)
    )
    monkeypatch.setattr(passes, "PIPELINE", wrong)
    with pytest.raises(InvalidProgram, match=f"wrong after {name}"):
        passes.optimise(before, watchers=[Verifier()])


def test_what_the_world_sees_is_kept():
    def f(b, x):
        b.print(x)
        return [b.binary("add", x, x)]

    before = make([INTS], f).program
    broken = change(before, named("debug_callback"), lambda i: [])
    for name in ("hoisting", "dead_code"):
        with pytest.raises(InvalidProgram, match="gone"):
            verify_pass(before, broken, name)


def test_a_load_and_a_store_that_change_places():
    def f(b, x, row):
        loaded = b.load(row)
        b.store(row, x)
        return [loaded]

    before = make([INTS, ROW], f).program
    load, store = before.top.body
    after = Program("test", Region(before.top.params, (store, load), before.top.results))
    verify(after)
    with pytest.raises(InvalidProgram, match="changed places with a store"):
        verify_pass(before, after, "batching")


def test_results_and_parameters_stay():
    before = make([INTS], lambda b, x: [b.binary("add", x, x)]).program
    other = make([INTS], lambda b, x: [b.binary("add", x, x)]).program
    with pytest.raises(InvalidProgram, match="other parameters"):
        verify_pass(before, other, "hoisting")
    fewer = Program("test", Region(before.top.params, before.top.body, ()))
    with pytest.raises(InvalidProgram, match="results of other types"):
        verify_pass(before, fewer, "hoisting")


@pytest.mark.parametrize("seed", range(12))
def test_right_passes_are_right(seed):
    passes.optimise(random_program(seed).program, watchers=[Verifier()])
