"""PALLAS_NUMPY_DUMP, PALLAS_NUMPY_VERIFY and `python -m pallas_shim bisect`, in whole processes."""

from __future__ import annotations

import textwrap

import pytest

# How the package was installed makes no difference to what it writes.
pytestmark = pytest.mark.parametrize("python", ["checkout"], indirect=True)

KERNEL = """
import sys
import jax
import numpy as np
from jax.experimental import pallas as pl

def kernel(x_ref, y_ref, o_ref):
    def body(i, carry):
        o_ref[i, :] = jax.numpy.exp(x_ref[i, :]) + y_ref[i, :] * carry
        return carry + 1.0
    jax.lax.fori_loop(0, x_ref.shape[0], body, 1.0)

@jax.jit
def weigh(x, y):
    return pl.pallas_call(kernel, out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype))(x + 1, y) * 2

x = np.arange(256, dtype=np.float32).reshape(16, 16) / 256
print(float(weigh(x, x).sum()), sys.argv[1:])
"""

# A pass that makes sums of products, one that drops stores, a wrong rule, and wrong functions.
WRONG = {
    "pass": """
        from pallas_shim.evaluator import passes
        from pallas_shim.evaluator.passes.peephole import Peephole

        class Wrong(Peephole):
            def mul(self, instruction):
                return self.builder.apply_one("add", instruction.ins, instruction.outs[0].type)

            methods = {"mul": mul}

        passes.PIPELINE = tuple(
            (name, Wrong.run if name == "select_to_minmax" else run)
            for name, run in passes.PIPELINE
        )
        """,
    "store": """
        from pallas_shim.evaluator import passes
        from pallas_shim.evaluator.program import Program, Region

        def region(r):
            body = [i._replace(regions=tuple(map(region, i.regions))) for i in r.body]
            return Region(r.params, tuple([i for i in body if i.name != "store"]), r.results)

        def drop(program):
            return Program(program.name, region(program.top))

        passes.PIPELINE = tuple(
            (name, drop if name == "hoisting" else run) for name, run in passes.PIPELINE
        )
        """,
    "rule": """
        import numpy as np
        from pallas_shim.evaluator import rules
        from pallas_shim.evaluator.registry import IMPL_RULES, ImplRule

        rules.load()
        IMPL_RULES["exp"] = ImplRule(lambda ins, outs, **_: lambda x: np.exp(x) * np.float32(1.01))
        """,
    "function": """
        from pallas_shim.evaluator import codegen
        from pallas_shim.evaluator.codegen import instructions

        codegen.pays = lambda loop: True
        codegen.choice = lambda skip: codegen.pays
        called = instructions._call

        def wrong(to, instruction):
            called(to, instruction)
            if instruction.name == "exp":
                to.line(f"{to.names[instruction.outs[0]]} *= 2")

        instructions._call = wrong
        """,
}


@pytest.fixture
def script(tmp_path):
    def write(wrong=None):
        path = tmp_path / "script.py"
        path.write_text(textwrap.dedent(WRONG[wrong] if wrong else "") + KERNEL)
        return path

    return write


def test_dump(python, script, tmp_path):
    directory = tmp_path / "dumped"
    ran = python.run("-m", "pallas_shim", f"--dump={directory}", script())
    assert ran.returncode == 0, ran.stderr
    (folder,) = directory.iterdir()
    assert folder.name == "0001-weigh"
    files = {path.name: path.read_text() for path in folder.iterdir()}
    assert "pallas_call" in files["jaxpr.txt"]
    lowered = files["00-lowering.txt"]
    (last,) = (text for name, text in files.items() if name.endswith("-in_place.txt"))
    assert "program weigh (%0:float32[16,16], %1:float32[16,16]):" in lowered
    assert f"{script()}:" in lowered and "store[path=[leaf0, 0+16]]" in lowered
    assert "store" not in last and "# writes &" in last
    python.run("-m", "pallas_shim", f"--dump={directory}", script())
    assert sorted(path.name for path in directory.iterdir()) == ["0001-weigh", "0002-weigh"]


def test_verify(python, script):
    ran = python.run("-m", "pallas_shim", "--verify", script("store"))
    assert ran.returncode == 1
    assert "InvalidProgram: the program weigh is wrong after hoisting" in ran.stderr
    assert "in store[path=[leaf0, 0+16]]" in ran.stderr and f"at {script()}:" in ran.stderr
    assert python.run("-m", "pallas_shim", "--verify", script()).returncode == 0


@pytest.mark.parametrize(
    "wrong, said",
    [
        ("pass", ["the pass select_to_minmax changes", "= mul %", "= add %", "script.py:"]),
        ("store", ["the pass hoisting changes", "first in   %", "was      store[path="]),
        ("rule", ["the rule of exp gives another result than JAX", "= exp %", "script.py:"]),
        (
            "function",
            ["code generation changes", "function of this loop is wrong", "def loop(f)", "*= 2"],
        ),
    ],
)
def test_bisect_finds(python, script, wrong, said):
    # Else what is wrong with a pass is an error before it is a number.
    unchecked = {"PALLAS_NUMPY_VERIFY": "0"}
    ran = python.run("-m", "pallas_shim", "bisect", script(wrong), "a", "b", **unchecked)
    assert ran.returncode == 1, ran.stderr
    assert "['a', 'b']" in ran.stdout
    for part in said:
        assert part in ran.stderr, ran.stderr
    assert "1 of them differ" in ran.stderr


def test_bisect_finds_nothing(python, script, tmp_path):
    ran = python.run("-m", "pallas_shim", "bisect", script())
    assert ran.returncode == 0, ran.stderr
    assert "1 function in 1 call, no difference" in ran.stderr
    keys = "import jax\nfrom jax.experimental import pallas\njax.random.split(jax.random.key(0))"
    ran = python.run("-m", "pallas_shim", "bisect", "-c", keys)
    assert ran.returncode == 0 and "not compared" not in ran.stderr
    failing = tmp_path / "failing.py"
    failing.write_text("raise SystemExit(3)")
    assert python.run("-m", "pallas_shim", "bisect", failing).returncode == 2
    ran = python.run("-m", "pallas_shim", "bisect", "-c", "print(__name__)")
    assert ran.returncode == 0 and ran.stdout == "__main__\n"
