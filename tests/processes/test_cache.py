"""PALLAS_NUMPY_CACHE: the second process reads what the first one kept, and nothing stale."""

from __future__ import annotations

import re
import sys

import pytest

from pallas_shim.cache.encode import decode_data
from pallas_shim.cache.keeping import Facts
from pallas_shim.cache.store import Store
from tests.processes.conftest import Python, rows_of

HELPER = """
SCALE = 3

class Settings:
    offset = 1

    def shift(self, x):
        return x + self.offset
"""

SCRIPT = """
import functools, os, sys, time
import jax, jax.numpy as jnp, numpy as np
from jax.experimental import pallas as pl
import helper

if "--sampled" in sys.argv:
    from pallas_shim.cache import verify
    verify.ONE_IN = 1
if "--x64" in sys.argv:
    jax.config.update("jax_enable_x64", True)
if "--precision" in sys.argv:
    jax.config.update("jax_default_matmul_precision", "highest")
if "--patched" in sys.argv:
    helper.Settings.shift = lambda self, x: x - self.offset
TABLE = {"factor": 2 if "--table" not in sys.argv else 5}
captured = jnp.arange(8.0) * (2 if "--captured" in sys.argv else 1)

def call(kernel, x):
    return pl.pallas_call(kernel, out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
                          interpret=True)(x)

def scale_kernel(x_ref, o_ref):
    o_ref[...] = helper.Settings().shift(x_ref[...]) * helper.SCALE * TABLE["factor"]

def plain_kernel(x_ref, o_ref):
    o_ref[...] = x_ref[...] * 2

@jax.jit
def scaled(x):
    return call(scale_kernel, x)

@functools.partial(jax.jit, static_argnames="power")
def tree(x, *, power):
    y = call(plain_kernel, x["a"])
    return {"y": (y ** power, [y.sum()]), "weak": jnp.where(True, 1.0, 2.0), "none": None}

@functools.partial(jax.jit, donate_argnums=0)
def donating(x):
    return call(plain_kernel, x)

@jax.jit
def capturing(x):
    return call(plain_kernel, x) + captured

def keyed_kernel(x_ref, o_refs):
    for n, name in enumerate(o_refs):
        o_refs[name][...] = x_ref[...] * (n + 1)

names = ("b", "c") if "--names" in sys.argv else ("a", "b")
like = jax.ShapeDtypeStruct((8,), jnp.result_type(float))
wrapped = jax.jit(pl.pallas_call(keyed_kernel, out_shape=dict.fromkeys(names, like),
                                 interpret=True))

@jax.jit
def timed(x):
    return call(plain_kernel, x) + 0 * time.time()

@jax.jit
def printing(x):
    jax.debug.print("sum {}", x.sum())
    return call(plain_kernel, x)

@jax.jit
def without(x):
    return x * 2

x = jnp.arange(8.0)
out = tree({"a": x}, power=3 if "--static" in sys.argv else 2)
given = x + 0
results = {
    "scaled": scaled(x), "again": scaled(x), "wide": scaled(jnp.arange(16.0)),
    "tree": out["y"][0], "sum": out["y"][1][0], "donating": donating(given),
    "wrapped": wrapped(x)["b"], "capturing": capturing(x), "timed": timed(x),
    "printing": printing(x), "without": without(x),
}
jax.effects_barrier()
assert given.is_deleted() and out["weak"].weak_type and out["none"] is None
assert not results["scaled"].weak_type and isinstance(out["y"], tuple)
assert scaled.lower(x).compile()(x).tolist() == results["scaled"].tolist()
assert jax.vmap(scaled)(x[None]).tolist() == [results["scaled"].tolist()]
print({name: np.asarray(value).tolist() for name, value in results.items()})
"""

KEPT = ("scaled", "tree", "donating", "capturing", "wrapped")


@pytest.fixture(scope="module")
def python(source):
    """A Python with the shim from a copy, which nobody edits: an edit makes other keys. What
    checks programs passes the cache by, so it is off."""
    variables = {"PYTHONPATH": str(source / "sitecustomize_pkg"), "PALLAS_NUMPY_VERIFY": "0"}
    return Python(sys.executable, variables)


def prepared(directory):
    (directory / "helper.py").write_text(HELPER)
    (directory / "script.py").write_text(SCRIPT)
    return directory


@pytest.fixture
def project(tmp_path):
    return prepared(tmp_path)


def run(python, project, *options, **variables):
    """What the script printed, and what became of each function's program."""
    report = project / "report.json"
    variables = {
        "PALLAS_NUMPY": "1",
        "PALLAS_NUMPY_CACHE": str(project / "cache"),
        "PALLAS_NUMPY_REPORT": str(report),
        **variables,
    }
    got = python.run(project / "script.py", *options, cwd=project, **variables)
    assert got.returncode == 0, got.stderr
    rows = [row for row in rows_of(report) if row["rung"] == "numpy"]
    return got.stdout, {row["function"]: row["cache"] for row in rows}, rows


def test_what_one_process_kept_the_next_one_reads(python, project):
    stock = python.run(project / "script.py", cwd=project)
    first, became, _ = run(python, project)
    assert first == stock.stdout
    assert {name: became[name] for name in KEPT} == dict.fromkeys(KEPT, "written")
    assert "time" in became["timed"] and "debug" in became["printing"]
    assert "without" not in became

    second, became, rows = run(python, project)
    assert second == stock.stdout
    assert {name: became[name] for name in KEPT} == dict.fromkeys(KEPT, "read")
    assert became["timed"].startswith("not kept: ")
    assert all(row["tracing_s"] is None for row in rows if row["function"] == "donating")

    for path in (project / "cache").iterdir():
        path.write_bytes(path.read_bytes()[:-7])
    third, became, _ = run(python, project)
    assert third == stock.stdout
    assert {name: became[name] for name in KEPT} == dict.fromkeys(KEPT, "written")
    assert run(python, project)[1]["scaled"] == "read"


def edit(old, new):
    def change(project):
        path = project / "helper.py"
        assert old in HELPER
        path.write_text(HELPER.replace(old, new))

    return change


def nothing(project):
    pass


CHANGES = {
    "a constant of another module, a captured array, a static argument": (
        edit("SCALE = 3", "SCALE = 4"), ["--captured", "--static"],
        ("scaled", "capturing", "tree"), {},
    ),
    "a method, the containers of a pallas_call made before jit": (
        edit("x + self.offset", "x * self.offset"), ["--names"], ("scaled", "wrapped"), {},
    ),
    "a patched method": (nothing, ["--patched"], ("scaled",), {}),
    "an item of a table": (nothing, ["--table"], ("scaled",), {}),
    "64 bits": (nothing, ["--x64"], KEPT, {}),
    "the precision of products": (nothing, ["--precision"], KEPT, {}),
    "a pass left out": (nothing, [], KEPT, {"PALLAS_NUMPY_PASSES": "-hoisting"}),
}  # fmt: skip


@pytest.fixture(scope="module")
def kept(python, tmp_path_factory):
    project = prepared(tmp_path_factory.mktemp("kept"))
    run(python, project)
    return project


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_seen(name, python, kept):
    change, options, affected, variables = CHANGES[name]
    change(kept)
    try:
        stock = python.run(kept / "script.py", *options, cwd=kept)
        got, became, _ = run(python, kept, *options, **variables)
    finally:
        (kept / "helper.py").write_text(HELPER)
    assert got == stock.stdout
    assert {f: became[f] for f in KEPT} == {
        f: "written" if f in affected else "read" for f in KEPT
    }


def test_a_directory_that_is_not_private_is_not_used(python, project):
    (project / "cache").mkdir()
    (project / "cache").chmod(0o777)
    _, became, _ = run(python, project)
    assert all("may write" in became[name] for name in KEPT)
    assert list((project / "cache").iterdir()) == []


def test_off_nothing_is_kept(python, project):
    home = {"HOME": str(project), "XDG_CACHE_HOME": ""}
    _, became, _ = run(python, project, PALLAS_NUMPY_CACHE="0", **home)
    assert set(became.values()) == {None}
    assert not (project / "cache").exists() and not (project / ".cache").exists()


# -- verified -------------------------------------------------------------------------------------


def swapped(project):
    """Puts the program of each of two functions in the place of the other's, with checksums that
    are right; the paths."""
    store = Store(str(project / "cache"))
    found = {}
    for path in (project / "cache").iterdir():
        data = store.read(path.stem) or b""
        try:
            facts = Facts(*decode_data(data[8 : 8 + int.from_bytes(data[:8], "little")]))
        except Exception:  # it is the program of a jaxpr
            continue
        if facts.results[0][0] == (8,):
            found[facts.function] = path, data
    (scaled, data), (capturing, other) = found["scaled"], found["capturing"]
    assert store.write(scaled.stem, other) is None and store.write(capturing.stem, data) is None
    return scaled, capturing


def test_verified_programs_are_those_that_are_made(python, kept):
    want = python.run(kept / "script.py", cwd=kept).stdout
    got, became, _ = run(python, kept, PALLAS_NUMPY_CACHE_VERIFY="1", PYTHONHASHSEED="5")
    assert got == want
    assert {name: became[name] for name in KEPT} == dict.fromkeys(KEPT, "read, and verified")
    got, became, _ = run(python, kept, "--sampled")
    assert got == want
    assert {name: became[name] for name in KEPT} == dict.fromkeys(KEPT, "read")


def test_a_wrong_program_is_found(python, project):
    run(python, project)
    paths = swapped(project)
    variables = {"PALLAS_NUMPY": "1", "PALLAS_NUMPY_CACHE": str(project / "cache")}
    got = python.run(project / "script.py", "--sampled", cwd=project, **variables)
    assert "pallas_shim: ERROR: the program of " in got.stderr and "removed" in got.stderr
    assert not any(path.exists() for path in paths)

    run(python, project)
    paths = swapped(project)
    variables["PALLAS_NUMPY_CACHE_VERIFY"] = "1"
    got = python.run(project / "script.py", cwd=project, **variables)
    assert got.returncode == 1 and "CacheError: the program of " in got.stderr
    assert not all(path.exists() for path in paths)


# -- by their jaxprs ------------------------------------------------------------------------------


def test_by_default_programs_are_kept_by_their_jaxprs(python, project):
    home = {"HOME": str(project), "XDG_CACHE_HOME": "", "PALLAS_NUMPY_CACHE": ""}
    home["PALLAS_NUMPY_VERIFY"] = "0"  # what is to be checked is made, not read
    directory = project / ".cache" / "pallas_shim" / "programs"
    stock = python.run(project / "script.py", cwd=project)
    first, became, _ = run(python, project, **home, PYTHONHASHSEED="1")
    assert first == stock.stdout
    names = (*KEPT, "timed")
    assert {name: became[name] for name in names} == dict.fromkeys(names, "written after tracing")
    assert directory.stat().st_mode & 0o777 == 0o700

    (project / "script.py").write_text("\n\n# moved\n" + SCRIPT)
    (project / "helper.py").write_text(HELPER.replace("SCALE = 3", "SCALE = 4"))
    stock = python.run(project / "script.py", cwd=project)
    second, became, rows = run(python, project, **home, PYTHONHASHSEED="2")
    assert second == stock.stdout != first
    assert became["scaled"] == "written after tracing"
    for name in ("tree", "donating", "capturing", "wrapped", "timed"):
        assert became[name] == "read after tracing"
    lines = (project / "script.py").read_text().splitlines()
    (row,) = [row for row in rows if row["function"] == "donating"]
    number = int(row["source"].rpartition(":")[2])
    assert lines[number - 1] == "def plain_kernel(x_ref, o_ref):"
    assert row["tracing_s"] is not None


def test_a_home_that_can_not_be_written_to_is_no_harm(python, project):
    (project / "file").write_text("")
    home = {"HOME": str(project / "file"), "XDG_CACHE_HOME": "", "PALLAS_NUMPY_CACHE": ""}
    stock = python.run(project / "script.py", cwd=project)
    got = python.run(project / "script.py", cwd=project, PALLAS_NUMPY="1", **home)
    assert (got.stdout, got.stderr) == (stock.stdout, stock.stderr)


def test_a_named_directory_that_can_not_be_used_is_told_of(python, project):
    (project / "file").write_text("")
    variables = {"PALLAS_NUMPY": "1", "PALLAS_NUMPY_CACHE": str(project / "file")}
    got = python.run(project / "script.py", cwd=project, **variables)
    assert got.returncode == 0 and got.stderr.count("no program is kept") == 1


# -- how processes end ----------------------------------------------------------------------------

ENDING = """
import os, signal, sys, threading
import jax, numpy as np
from jax.experimental import pallas as pl

def plain_kernel(x_ref, o_ref):
    o_ref[...] = x_ref[...] * 2

def doubled(x):
    return pl.pallas_call(plain_kernel, out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
                          interpret=True)(x)

def call():
    print(jax.jit(doubled)(np.arange(4.0, dtype=np.float32)).tolist(), flush=True)

def in_child(end):
    child = os.fork()
    if child == 0:
        call()
        end()
    assert os.waitpid(child, 0)[1] == 0

match sys.argv[1]:
    case "exit":
        call(); sys.exit(3)
    case "_exit":
        call(); os._exit(3)
    case "SIGTERM" | "SIGKILL":
        call(); os.kill(os.getpid(), getattr(signal, sys.argv[1]))
    case "raise":
        call(); raise SystemExit("this")
    case "thread":
        thread = threading.Thread(target=call); thread.start(); thread.join()
    case "daemon":
        # Is still at it when Python ends.
        called = threading.Event()
        def go():
            call(); called.set()
            while True: jax.jit(lambda x: doubled(x) + 1)(np.ones(3, np.float32))
        threading.Thread(target=go, daemon=True).start(); called.wait(); sys.exit(0)
    case "at exit":
        import atexit
        atexit.register(call)
    case "fork":
        call(); in_child(lambda: os._exit(0))
    case "fork, exit":
        in_child(lambda: sys.exit(0))
"""


@pytest.mark.parametrize(
    ("ending", "is_kept"),
    [
        ("exit", True), ("_exit", False), ("SIGTERM", False), ("SIGKILL", False), ("raise", True),
        ("thread", True), ("daemon", None), ("at exit", None), ("fork", True),
        ("fork, exit", True),
    ],
)  # fmt: skip
def test_however_a_process_ends_the_cache_is_not_noticed(ending, is_kept, python, tmp_path):
    (tmp_path / "script.py").write_text(ENDING)
    home = {"XDG_CACHE_HOME": str(tmp_path / "home"), "PALLAS_NUMPY_CACHE": ""}

    def run(**variables):
        return python.run(tmp_path / "script.py", ending, cwd=tmp_path, **variables)

    directory = tmp_path / "home" / "pallas_shim" / "programs"
    def seen(done):
        if ending == "daemon":  # JAX's own threads may or may not abort the process
            return done.stdout
        return done.stdout, re.sub(r"pid=\d+", "pid", done.stderr), done.returncode

    want = run(PALLAS_NUMPY="1", PALLAS_NUMPY_CACHE="0")
    for _ in range(2):
        got = run(PALLAS_NUMPY="1", **home)
        assert seen(got) == seen(want)
        files = list(directory.iterdir()) if directory.exists() else []
        assert all(file.suffix == ".program" for file in files)
        if is_kept is not None:
            assert bool(files) == is_kept
