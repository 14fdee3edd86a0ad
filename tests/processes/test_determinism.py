"""The program of a jaxpr is the same in all processes, whatever the seed of Python's hashes."""

from __future__ import annotations

import difflib
import json
import subprocess
import sys

from tests.processes.conftest import CHECKOUT, Python

SCRIPT = """
import json, random
import jax
from pallas_shim.cache import encode
from pallas_shim.evaluator.compiler import make_program
from pallas_shim.jax_compat import contents
from tests.evaluator.test_determinism import KINDS, TILES, branching
from tests.fuzz.check import GENERATORS
from tests.oracle import x64

def texts(function, args):
    jaxpr = jax.make_jaxpr(function)(*args)
    program = make_program(jaxpr, name="f")
    yield str(program)
    try:
        yield encode.encode(program).hex()
    except encode.NotData as error:
        yield str(error)
    try:
        yield contents.Contents(jaxpr).digest
    except contents.Unreadable as error:
        yield str(error)

found = {"branching": list(texts(branching, TILES))}
for kind in KINDS:
    for seed in range(2):
        call = GENERATORS[kind][1](random.Random(seed))
        with x64(call.pool.x64):
            try:
                found[f"{kind}, seed {seed}"] = list(texts(call.function, call.args))
            except Exception as error:  # a kernel that JAX or the evaluator refuses
                found[f"{kind}, seed {seed}"] = [str(error)]
print(json.dumps(found))
"""


def test_all_processes_make_the_same_programs():
    python = Python(sys.executable, {"PYTHONPATH": str(CHECKOUT), "JAX_PLATFORMS": "cpu"})
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            env=python.environment(PYTHONHASHSEED=seed),
            cwd=CHECKOUT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2")
    ]
    first, other = [json.loads(process.communicate()[0]) for process in processes]
    assert sum(len(texts) == 3 for texts in first.values()) > 0.8 * len(first)
    for name, texts in first.items():
        for one, another in zip(texts, other[name], strict=True):
            lines = difflib.unified_diff(one.splitlines(), another.splitlines(), lineterm="")
            assert one == another, "\n".join([name, *lines])
