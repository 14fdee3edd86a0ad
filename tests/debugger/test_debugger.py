"""Stepping through kernels: where it stops, the values of the user's names, who wrote what."""

from __future__ import annotations

import io
import pdb
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_shim import dispatch
from pallas_shim.debugger.commands import DebugSession, Quit, cell_of
from tests.shimmed import shim  # noqa: F401

pytestmark = pytest.mark.usefixtures("shim")


@pytest.fixture(autouse=True)
def fresh():
    """The names are noted when JAX traces."""
    jax.clear_caches()
    yield
    jax.clear_caches()


def line_of(text: str) -> int:
    """The number of this file's only line that ends with such a comment."""
    with open(__file__) as file:
        (found,) = [n for n, line in enumerate(file, 1) if line.rstrip().endswith(f"# {text}")]
    return found


def debugged(call, *commands: str, **options) -> list[str]:
    """What the debugger prints after each command, from a call that these commands debug.

    The first is what it prints by itself.
    """
    out = io.StringIO()
    session = DebugSession(**options, stdin=io.StringIO("\n".join(commands) + "\n"), stdout=out)
    dispatch.observe(session)
    session.start()
    try:
        call()
    except Quit:
        pass
    finally:
        session.end()
        dispatch.observe(None)
    return out.getvalue().split("(kernel) ")


def twice(x):
    y = x * 2  # twice
    return y


def kernel(x_ref, o_ref):
    a = x_ref[...]  # load
    b = twice(a)  # call
    pair = (a, b)
    steps = 3

    def body(i, carried):
        return carried + x_ref[i] * steps  # body

    total = jax.lax.fori_loop(0, 4, body, jnp.float32(0))  # loop

    @pl.when(pl.program_id(0) == 1)  # when
    def _():
        o_ref[0] = total  # first

    o_ref[1:] = pair[1][1:] + 1  # rest


@jax.jit
def run(x):
    spec = pl.BlockSpec((4,), lambda i: (i,))
    return pl.pallas_call(
        kernel, grid=(2,), in_specs=[spec], out_specs=spec, out_shape=x, interpret=True
    )(x)


X = np.arange(8, dtype=np.float32)


def stops(outputs: list[str]) -> list[int]:
    """The lines at which it stopped."""
    return [
        int(line.partition("(")[2].partition(")")[0])
        for output in outputs for line in output.splitlines() if line.startswith("> ")
    ]  # fmt: skip


def test_steps_stop_at_each_line():
    found = stops(debugged(lambda: run(X), *["s"] * 12, "q"))
    assert found[0] == line_of("load") and line_of("twice") in found
    # A call alone makes no instruction. JAX 0.8 counts a loop's rounds at the line of the loop.
    rounds = [n for n in found if n not in (line_of("twice"), line_of("loop"))]
    assert rounds[:7] == [
        line_of(name) for name in ("load", "body", "body", "body", "body", "when", "rest")
    ] or rounds == [line_of("load"), *[line_of("body")] * (len(rounds) - 1)]


def test_next_stays_in_the_function():
    found = stops(debugged(lambda: run(X), *["n"] * 4, "q"))
    assert line_of("twice") not in found
    assert found[0] == line_of("load") and line_of("loop") in found


def test_names_have_the_values_of_the_line():
    out = debugged(
        lambda: run(X), f"b {line_of('rest')}", "c", "p a", "p b", "p pair", "p steps", "p total",
        "a * 2 + np.ones(4)", "whatis a", "p nothing", "p 1 +", "locals", "q",
    )  # fmt: skip
    shown = dict(zip(("a", "b", "pair", "steps", "total", "sum"), out[3:9], strict=True))
    assert shown["a"] == f"{np.arange(4, dtype=np.float32)!r}\n"
    assert "array([0., 2., 4., 6.], dtype=float32)" in shown["b"]
    assert shown["pair"].startswith("(array([0., 1., 2., 3.]") and shown["steps"] == "3\n"
    assert "18.0" in shown["total"] and "array([1., 3., 5., 7.])" in shown["sum"]
    assert out[9] == "float32[4]\n"
    assert "name 'nothing' is not defined" in out[10] and "these have one: x_ref" in out[10]
    assert "SyntaxError" in out[11]
    assert "total: float32[] 18.0" in out[12].replace("np.float32(18.0)", "18.0")


def test_a_name_has_no_value_before_its_line():
    out = debugged(lambda: run(X), "p a", "q")
    assert "name 'a' is not defined" in out[1]


def test_a_loop_has_the_values_of_its_round():
    out = debugged(
        lambda: run(X), f"b {line_of('body')} if i == 2", "c", "p i, carried, x_ref[i]", "u", "q",
    )  # fmt: skip
    assert [word for word in ("2", "3.0", "2.0") if word in out[3]] == ["2", "3.0", "2.0"]
    assert out[3].count("np.float32(3.0)") == 1


def test_up_shows_the_callers_names():
    out = debugged(lambda: run(X), f"b {line_of('twice')}", "c", "w", "p x", "u", "p a", "d", "q")
    assert out[3].index("kernel()") < out[3].index("twice()")
    assert "> " in out[5] and f"({line_of('call')})kernel()" in out[5]
    assert out[4] == out[6] == f"{np.arange(4, dtype=np.float32)!r}\n"


def test_a_cell():
    out = debugged(lambda: run(X), "p x_ref", "a", "cell", "q", cell=(1,))
    assert "cell (1,)" in out[0] and "array([4., 5., 6., 7.]" in out[1]
    assert "x_ref: float32[4]" in out[2] and "block (1,) of an array of (8,)" in out[2]
    assert len(out) == 4  # there is no cell after it


def test_who_wrote_an_element():
    out = debugged(
        lambda: run(X), f"b {line_of('rest')}", "c", "who o_ref", "cl 1", "cell", "who o_ref[2]",
        "who x_ref[0]", "who a", f"b {line_of('rest')}", "c", "who o_ref", "q",
    )  # fmt: skip
    assert "nothing in the kernel has written it" in out[3]
    assert "nothing in the kernel" in out[6]  # the second cell's block
    assert "nothing in the kernel" in out[7]
    assert "from [0] on: " in out[11] and f":{line_of('first')} (store), in cell (1,)" in out[11]
    assert "from [1] on: nothing" in out[11]


def test_a_watchpoint():
    out = debugged(lambda: run(X), "watch o_ref[2]", "b", "c", "p o_ref[2]", "cl 1", "c", cell=(1,))
    assert "1: watches o_ref[2]" in out[2]
    assert "o_ref[2] changed from nan to 13.0" in out[3]
    assert f":{line_of('rest')} (store), in cell (1,)" in out[3]
    assert "13.0" in out[4]


def test_mistakes_at_the_prompt():
    out = debugged(lambda: run(X), "b nowhere", "b 100000", "cell x", "cl 7", "watch a", "d", "p")
    said = [line for output in out[1:] for line in output.splitlines()]
    assert len([line for line in said if line.startswith("*** ")]) == 7


def own_breakpoint(x_ref, o_ref):
    y = x_ref[...] + 1

    @pl.when(pl.program_id(0) == 1)
    def _():
        z = y * 2
        breakpoint()
        pdb.set_trace()
        o_ref[...] = z  # after


def test_breakpoint_in_a_kernel():
    @jax.jit
    def call(x):
        spec = pl.BlockSpec((4,), lambda i: (i,))
        return pl.pallas_call(
            own_breakpoint, grid=(2,), in_specs=[spec], out_specs=spec, out_shape=x,
            interpret=True,
        )(x)  # fmt: skip

    hook, set_trace = sys.breakpointhook, pdb.set_trace
    results = []
    out = debugged(lambda: results.append(call(X)), "c", "p z", "p y", "c", "c")
    after = line_of("after")
    assert out[1].startswith("breakpoint()") and stops(out)[1:] == [after - 1, after]
    assert "array([10., 12., 14., 16.]" in out[2] and "array([5., 6., 7., 8.]" in out[3]
    np.testing.assert_array_equal(results[0][4:], [10, 12, 14, 16])
    assert (sys.breakpointhook, pdb.set_trace) == (hook, set_trace)


def test_a_kernel_called_by_xla():
    def outside(x):
        return jnp.linalg.svd(run(x).reshape(2, 4))[1]

    out = debugged(lambda: jax.block_until_ready(jax.jit(outside)(X)), "p x_ref", "c")
    assert "array([0., 1., 2., 3.]" in out[1]


def scoped(o_ref):
    def body(buffer):
        buffer[...] = jnp.full((4,), 3.0)
        o_ref[...] = buffer[...]  # scoped

    pl.run_scoped(body, pltpu.VMEM((4,), jnp.float32))


def test_memory_of_a_scope():
    call = jax.jit(lambda: pl.pallas_call(
        scoped, out_shape=jax.ShapeDtypeStruct((4,), jnp.float32), interpret=True
    )())  # fmt: skip
    out = debugged(call, f"b {line_of('scoped')}", "c", "p buffer", "who buffer[1]", "q")
    assert "array([3., 3., 3., 3.]" in out[3] and "(store)" in out[4]


def test_only_the_kernel_asked_for():
    assert debugged(lambda: run(X), kernel="another") == [""]
    jax.clear_caches()
    assert len(debugged(lambda: run(X), "q", kernel="kernel")) == 2


def test_the_results_are_right():
    stock = run(X)
    results = []
    debugged(lambda: results.append(run(X)), "s", "s", "c")
    np.testing.assert_array_equal(results[0][1:4], stock[1:4])
    np.testing.assert_array_equal(results[0][4:], stock[4:])


def test_cells_in_text():
    assert cell_of("3,0") == cell_of("(3, 0)") == (3, 0) and cell_of("2") == (2,)
    with pytest.raises(ValueError, match="3,0"):
        cell_of("x")


@jax.jit
def shared(a):
    return a * 3  # shared


def calls_twice(x_ref, o_ref):
    first = x_ref[...]
    second = first + 10
    total = shared(first)
    total = total + shared(second)
    for step in range(3):
        total = total + step  # unrolled
    o_ref[...] = total


def test_names_belong_to_the_call_and_to_the_round():
    """A jaxpr that is used twice, lines that are traced thrice, and cells that come again."""
    spec = pl.BlockSpec((2,), lambda i: (i,))
    call = jax.jit(lambda x: pl.pallas_call(
        calls_twice, grid=(2,), in_specs=[spec], out_specs=spec, out_shape=x, interpret=True
    )(x))  # fmt: skip
    look = [f"b {line_of('shared')}", f"b {line_of('unrolled')}"]
    out = debugged(lambda: [call(X[:4]), call(X[4:])], *look, *["c", "p a", "c", "p a"],
                   *["c", "p step, total"] * 1, "cl 1 2", "cell", *look,
                   "c", "p a", "c", "p a", "c", "p step, total", "q")  # fmt: skip
    first = out[out.index(next(o for o in out if "(4" not in o and "array" in o)) :]
    shown = [o.strip() for o in first if "array" in o]
    assert [text.partition("[")[2].partition("]")[0] for text in shown] == [
        "0., 1.", "10., 11.", "30., 36.", "2., 3.", "12., 13.", "42., 48.",
    ]  # fmt: skip
    assert shown[2].startswith("(0, ") and shown[5].startswith("(0, ")
