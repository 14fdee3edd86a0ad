"""Object code of native programs that is kept for other processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_shim import settings
from pallas_shim.cache import store
from pallas_shim.cache.objects import Objects
from pallas_shim.dispatch import background, native
from pallas_shim.reports.uses import REPORT
from tests.shimmed import double, only_row, setting, shim

__all__ = ["setting", "shim"]

pytestmark = pytest.mark.skipif(not settings.llvm_is_installed(), reason="llvmlite isn't installed")

ROOT = Path(__file__).parents[1]
X = np.arange(-500, 500, dtype=np.int32)


@pytest.fixture
def outcome(monkeypatch, shim, setting, tmp_path):
    """What the report says of a function that was run by a process with nothing in its memory."""
    setting(native=True, cache=str(tmp_path))
    monkeypatch.setattr(native.Way, "_price", lambda way, instructions: 0.0)

    def of() -> str:
        REPORT.clear()
        f = jax.jit(lambda x: double(x) * 5 + 1)
        for _ in range(8):
            np.testing.assert_array_equal(np.asarray(f(X)), X * 10 + 1)
            if background._pool is not None:
                background._pool.submit(lambda: None).result()
        return only_row()["native"]

    return of


def files(directory: Path) -> list[Path]:
    return list(directory.glob("*-object*"))


def test_the_next_process_reads_it(outcome, tmp_path):
    assert ", compiled in " in outcome()
    (file,) = files(tmp_path)
    assert file.stat().st_mode & 0o777 == 0o600
    assert ", read from disk in " in outcome()
    assert files(tmp_path) == [file]


@pytest.mark.parametrize("damage", ("changed", "cut", "empty"))
def test_a_damaged_file_is_removed(outcome, tmp_path, monkeypatch, damage):
    outcome()
    (file,) = files(tmp_path)
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes({"changed": content, "cut": content[:-100], "empty": b""}[damage])
    removed: list[str] = []
    monkeypatch.setattr(store.Store, "remove", lambda self, key: removed.append(key))
    assert ", compiled in " in outcome()
    assert removed[0] + ".program" == file.name
    assert ", read from disk in " in outcome()  # it was written anew


def test_a_file_under_the_name_of_another_is_removed(tmp_path):
    objects = Objects(store.Store(str(tmp_path)))
    objects.write(("LLVM 1",), "text", b"code of 1")
    (file,) = files(tmp_path)
    objects.write(("LLVM 2",), "text", b"code of 2")
    (other,) = set(files(tmp_path)) - {file}
    other.write_bytes(file.read_bytes())
    assert objects.read(("LLVM 2",), "text") is None
    assert files(tmp_path) == [file] and objects.are_there()
    assert objects.read(("LLVM 1",), "text") == b"code of 1"


@pytest.mark.parametrize("what", ("_processor", "version"))
def test_of_another_processor_or_llvm(outcome, tmp_path, monkeypatch, what):
    from pallas_shim.evaluator.codegen.native import machine

    outcome()
    facts = list(machine.facts())
    if what == "version":
        facts[facts.index(".".join(map(str, machine.llvm().llvm_version_info)))] = "1.2.3"
    else:
        facts[-1] = facts[-1].replace("+sse2", "-sse2") + ",-new"
    monkeypatch.setattr("pallas_shim.evaluator.codegen.native.facts", lambda: tuple(facts))
    assert ", compiled in " in outcome()
    assert len(files(tmp_path)) == 2


def test_code_with_an_address_is_not_kept(tmp_path):
    objects = Objects(store.Store(str(tmp_path)))
    objects.write(("LLVM",), "call void inttoptr (i64 4096 to ptr)()", b"code")
    assert not files(tmp_path)


def test_a_directory_of_others_is_not_used(outcome, tmp_path, monkeypatch, setting):
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    setting(native=True, cache=str(open_to_all))
    assert ", compiled in " in outcome()
    assert ", compiled in " in outcome()
    assert not files(open_to_all)


def test_a_file_that_others_may_write_to_is_not_read(outcome, tmp_path):
    outcome()
    (file,) = files(tmp_path)
    file.chmod(0o666)
    assert ", compiled in " in outcome()


def test_without_a_cache_nothing_is_kept(outcome, tmp_path, setting):
    setting(native=True, cache=None)
    assert ", compiled in " in outcome()
    assert not list(tmp_path.iterdir())


def test_kept_code_is_compared_too(outcome, monkeypatch):
    outcome()
    monkeypatch.setattr(native, "same", lambda *_: False)
    assert "other bits" in outcome()


def test_code_that_another_process_has_compiled(tmp_path):
    """Its text has no address in it, though it reads tables and calls functions of Python."""
    code = (
        "import sys, jax, numpy as np\n"
        "from pallas_shim.cache import store\n"
        "from pallas_shim.cache.objects import Objects\n"
        "from pallas_shim.evaluator.codegen import native\n"
        "from pallas_shim.evaluator.lower import lower\n"
        "table = np.random.default_rng(0).permutation(5000)\n"
        "f = lambda x: jax.lax.fori_loop(0, 9, lambda i, y: y[table] + 1, x)\n"
        "x = np.arange(5000, dtype=np.int32)\n"
        "program = lower(jax.make_jaxpr(f)(x))\n"
        "compiled = lambda path: native.compiled(program, Objects(store.Store(path)))\n"
    )
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = [sys.executable, "-c", code + "compiled(sys.argv[1])", str(tmp_path)]
    subprocess.run(run, env=environ, check=True)
    here: dict[str, Any] = {}
    exec(code, here)
    objects = Objects(store.Store(str(tmp_path)))
    loaded = here["native"].loaded(here["program"], objects)
    assert loaded is not None
    (result,) = loaded.run([here["x"]])
    np.testing.assert_array_equal(result, np.asarray(jax.jit(here["f"])(here["x"])))


def test_code_that_calls_numpy(tmp_path):
    from pallas_shim.evaluator.codegen import native as code
    from pallas_shim.evaluator.lower import lower

    x = np.random.default_rng(0).standard_normal((16, 16)).astype(np.float32)
    f = lambda x: jnp.exp(jnp.sort(x * 2 - 1, axis=1)) / (1 + jnp.sum(x * x, 1))  # noqa: E731
    objects = Objects(store.Store(str(tmp_path)))
    compiled = code.compiled(lower(jax.make_jaxpr(f)(x)), objects)
    again = code.loaded(lower(jax.make_jaxpr(f)(x)), objects)
    assert again is not None and again.called == compiled.called == {"sort": 1}
    for got, want in zip(again.run([x]), compiled.run([x]), strict=True):
        np.testing.assert_array_equal(got, want)
    np.testing.assert_allclose(again.run([x])[0], jax.jit(f)(x), rtol=1e-5)
