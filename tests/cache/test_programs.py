"""Programs kept by their jaxprs: read where they are those that would be made, and never else."""

from __future__ import annotations

import functools
import os
import threading
import time
import types
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import pallas as pl

from pallas_shim import dispatch
from pallas_shim.cache import later, programs, verify
from pallas_shim.cache.programs import CachedProgram
from pallas_shim.cache.store import Store
from pallas_shim.cache.verify import CacheError
from pallas_shim.evaluator import compiler
from pallas_shim.evaluator.codegen import source as codegen_source
from pallas_shim.evaluator.lower import lower
from pallas_shim.evaluator.passes import optimise
from pallas_shim.evaluator.registry import IMPL_RULES, ImplRule
from pallas_shim.jax_compat import user_source
from pallas_shim.reports.uses import REPORT, Use
from tests.kernels import blocks, control, numeric, refs
from tests.kernels import memory as memory_kernels
from tests.kernels.harness import cases
from tests.shimmed import double, only_row, setting, shim

__all__ = ["setting", "shim"]

X = np.arange(8.0, dtype=np.float32)
CASES = cases(blocks, control, memory_kernels, numeric, refs)


@pytest.fixture
def directory(tmp_path, setting, monkeypatch):
    """The directory of the cache, which is on; nothing is sampled."""
    later._put_off.clear()
    setting(cache=str(tmp_path / "programs"), cache_verify=False)
    # The cache by functions is another one.
    monkeypatch.setattr(dispatch.Answers, "load", lambda self, call: None)
    monkeypatch.setattr(verify, "is_sampled", lambda: False)
    yield tmp_path / "programs"
    later._put_off.clear()


def became(f=double, x=X):
    """What became of the program of a function, as if in a new process; its result."""
    jax.clear_caches()
    REPORT.clear()
    result = np.asarray(jax.jit(f)(x))
    later.do_all()
    return only_row()["cache"], result.tolist()


def test_the_second_time_a_program_is_read(shim, directory, monkeypatch):
    want = (X + X).tolist()
    assert became() == ("written after tracing", want)
    assert became() == ("read after tracing", want)
    monkeypatch.setattr(compiler, "lower", None)  # so lowering would fail
    assert became() == ("read after tracing", want)
    assert len(list(directory.iterdir())) == 1


def looping(rounds):
    def kernel(x_ref, o_ref):
        def body(i, total):
            return jnp.where(total > 50, total - x_ref[i % 8], total + i)

        o_ref[...] = jnp.full_like(x_ref, lax.fori_loop(0, rounds, body, x_ref[0]))

    return pl.pallas_call(kernel, out_shape=jax.ShapeDtypeStruct(X.shape, X.dtype))


def test_the_code_of_loops_is_read_with_their_program(shim, directory, monkeypatch, setting):
    want = [became(looping(rounds))[1] for rounds in (200, 300)]
    assert want[0] != want[1]
    compiled = []
    stock = compile

    def noting(source, *args):
        compiled.append(source)
        return stock(source, *args)

    monkeypatch.setattr(codegen_source, "compile", noting, raising=False)
    for verified in (False, True):
        setting(cache=str(directory), cache_verify=verified)
        for rounds, result in zip((200, 300), want, strict=True):
            assert became(looping(rounds)) == ("read after tracing", result)
    assert not compiled
    assert became(looping(250))[0] == "written after tracing" and len(compiled) == 1


def test_code_of_another_source_is_not_run(shim, directory, monkeypatch):
    first, want = became(looping(200)), became(looping(300))
    assert first[1] != want[1]
    stock = programs.marshal.loads

    def swapped(data):
        (code,) = stock(data).values()
        return {"def loop(f):\n    f[:] = []": code}

    monkeypatch.setattr(programs, "marshal", types.SimpleNamespace(loads=swapped))
    assert became(looping(300)) == ("read after tracing", want[1])


def test_a_kernel_that_each_call_makes_anew_is_lowered_once(shim, directory, monkeypatch):
    def scaled(x, factor):
        def kernel(x_ref, o_ref):
            o_ref[...] = x_ref[...] * factor

        return pl.pallas_call(kernel, out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype))(x)

    lowered: list[str] = []
    stock = compiler.lower

    def counted(*args, **kwargs):
        lowered.append(kwargs["name"])
        return stock(*args, **kwargs)

    monkeypatch.setattr(compiler, "lower", counted)
    for factor in (2, 3, 2, 3, 2):
        assert np.asarray(scaled(X, factor)).tolist() == (X * factor).tolist()
    assert len(lowered) == 2
    assert not directory.exists() or not list(directory.iterdir())
    later.do_all()
    assert len(list(directory.iterdir())) == 2 and not programs._unwritten


def test_what_cannot_be_kept_is_made_for_each_call(directory, monkeypatch):
    def refuse(*args):
        raise programs.encode.NotData("something")

    monkeypatch.setattr(programs.encode, "encode", refuse)
    for _ in range(2):
        jaxpr = jax.make_jaxpr(lambda x: x + 1)(X)
        cached = CachedProgram(jaxpr, "f", {}, lambda jaxpr=jaxpr: lower(jaxpr, name="f"))
        program, use = cached.get(), Use("f", (), "numpy", "")
        cached.tell(use)
        np.testing.assert_array_equal(compiler.prepare(program, compiler.Options())(X)[0], X + 1)
    later.do_all()
    assert use.traced_cache == "not kept: something"


def test_a_change_of_python_that_no_key_could_see_is_seen(shim, directory):
    world = {"factor": 2}

    def scaled(x):
        factor = eval("world['factor']", {"world": world})

        def kernel(x_ref, o_ref):
            o_ref[...] = x_ref[...] * factor

        return pl.pallas_call(kernel, out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype))(x)

    for factor in (2, 3, 2):
        world["factor"] = factor
        assert became(scaled)[1] == (X * factor).tolist()
    assert became(scaled)[0] == "read after tracing"


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.tpu][::3])
def test_sources_are_those_of_the_equations_at_hand(name, directory):
    f, args, *_ = CASES[name].build()

    def made():
        return optimise(lower(jax.make_jaxpr(f)(*args), name="f"))

    def sources(program):
        return [user_source(i.source) for i in program.top.walk()]

    for what in ("to be written when the process ends", "read after tracing"):
        jaxpr = jax.make_jaxpr(f)(*args)
        cached = CachedProgram(
            jaxpr, "f", {}, lambda jaxpr=jaxpr: optimise(lower(jaxpr, name="f"))
        )
        program, use = cached.get(), Use("f", (), "numpy", "")
        cached.tell(use)
        if use.traced_cache != what:
            assert use.traced_cache is not None and "calls back" in use.traced_cache
            return
        later.do_all()
        if (use.traced_cache or "").startswith("not kept"):
            return
    assert sources(program) == sources(made()) and any(sources(program))


def test_lines_move_with_the_function(directory):
    source = "def f(x):\n    y = x.sum()\n    return y * 2\n"
    for lines in ("", "\n" * 7):
        space: dict = {}
        exec(compile(lines + source, "/tmp/moved.py", "exec"), space)
        jaxpr = jax.make_jaxpr(space["f"])(X)
        cached = CachedProgram(jaxpr, "f", {}, lambda jaxpr=jaxpr: lower(jaxpr, name="f"))
        program, use = cached.get(), Use("f", (), "numpy", "")
        cached.tell(use)
        later.do_all()
        at = {user_source(i.source) for i in program.top.walk()}
        assert at == {f"/tmp/moved.py:{line + len(lines)} (f)" for line in (2, 3)}
    assert use.traced_cache == "read after tracing"


def test_arrays_of_a_program_are_aligned(directory):
    """NumPy computes with others by other loops."""
    table = np.arange(300, dtype=np.float32)
    for _ in range(2):
        jaxpr = jax.make_jaxpr(lambda x: x[0] + table)(X)
        cached = CachedProgram(jaxpr, "f", {}, lambda jaxpr=jaxpr: lower(jaxpr, name="f"))
        program, use = cached.get(), Use("f", (), "numpy", "")
        cached.tell(use)
        later.do_all()
    assert use.traced_cache == "read after tracing"
    operands = [value for i in program.top.walk() for value in i.ins]
    (kept,) = [v.const for v in operands if v.const is not None and v.const.size == table.size]
    assert kept.tolist() == table.tolist()
    assert kept.__array_interface__["data"][0] % 16 == 0


def tripled(x):
    def kernel(x_ref, o_ref):
        o_ref[...] = x_ref[...] * 3

    return pl.pallas_call(kernel, out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype))(x)


def with_wrong_entry(directory):
    """Puts the program of `tripled`, with a checksum that is right, in the place of `double`'s."""
    became(double)
    (own,) = directory.iterdir()
    became(tripled)
    (other,) = set(directory.iterdir()) - {own}
    store = Store(str(directory))
    assert store.write(own.stem, store.read(other.stem)) is None
    return own


def test_verifying_finds_a_wrong_program(shim, directory, setting):
    own = with_wrong_entry(directory)
    setting(cache_verify=True)
    with pytest.raises(CacheError, match=r"program of double .* it has .*mul.*, where .*add"):
        became(double)
    assert not own.exists()
    assert became(double) == ("written after tracing", (X + X).tolist())
    assert became(double) == ("read after tracing", (X + X).tolist())


def test_a_sampled_program_is_verified_at_exit(shim, directory, monkeypatch, capsys):
    own = with_wrong_entry(directory)
    monkeypatch.setattr(verify, "is_sampled", lambda: True)
    assert became(double)[0] == "read after tracing"
    said = capsys.readouterr().err
    assert "ERROR: the program of double" in said and "may be wrong" in said
    assert not own.exists()
    assert became(double) == ("written after tracing", (X + X).tolist())
    assert became(double) == ("read after tracing", (X + X).tolist())
    assert capsys.readouterr().err == ""


def test_a_program_in_memory_that_is_found_wrong_is_not_written(shim, directory, setting):
    def call():
        jax.clear_caches()
        return np.asarray(jax.jit(double)(X)).tolist()

    REPORT.clear()
    call()
    (unwritten,) = programs._unwritten.values()
    unwritten._program = optimise(lower(jax.make_jaxpr(lambda x: x * x)(X), name="double"))
    setting(cache=str(directory), cache_verify=True)
    with pytest.raises(CacheError, match="program of double"):
        call()
    later.do_all()
    assert not list(directory.iterdir()) and not programs._unwritten
    assert "not kept: it was found to be wrong" in [row["cache"] for row in REPORT.rows()]
    assert call() == (X + X).tolist()
    later.do_all()
    assert len(list(directory.iterdir())) == 1


def test_one_in_so_many_is_sampled(monkeypatch):
    verify._random.seed(0)
    assert 150 < sum(verify.is_sampled() for _ in range(10_000)) < 250
    monkeypatch.setattr(verify, "ONE_IN", 1)
    assert verify.is_sampled()


def test_a_damaged_entry_is_written_anew(shim, directory):
    became()
    (path,) = directory.iterdir()
    path.write_bytes(path.read_bytes()[:-9])
    assert became()[0] == "written after tracing"
    store = Store(str(directory))
    assert store.write(path.stem, b"12345678" + b"no program") is None
    assert became() == ("written after tracing", (X + X).tolist())
    assert became() == ("read after tracing", (X + X).tolist())


def test_settings_and_versions_are_in_the_key(shim, directory, setting, monkeypatch):
    became()
    setting(disabled_passes=frozenset({"hoisting"}))
    assert became()[0] == "written after tracing"
    setting(disabled_passes=frozenset())
    facts = programs.process.facts()
    for position in range(len(facts)):
        other = (*facts[:position], "another", *facts[position + 1 :])
        monkeypatch.setattr(programs.process, "facts", lambda other=other: other)
        assert became()[0] == "written after tracing"
    monkeypatch.setattr(programs.process, "facts", lambda: facts)
    assert became()[0] == "read after tracing"


def test_a_kernel_in_a_program_of_xlas_is_kept_too(shim, directory):
    def f(x):
        return lax.fori_loop(0, 2, lambda _, x: double(x), x)

    for what in ("written after tracing", "read after tracing"):
        jax.clear_caches()
        REPORT.clear()
        compiled = jax.jit(f).lower(X).compile()
        np.testing.assert_array_equal(compiled(X), X * 4)
        later.do_all()
        row = only_row()
        assert (row["rung"], row["cache"]) == ("callback", what)


def test_another_packages_rule_is_refused(shim, directory, monkeypatch):
    monkeypatch.setitem(IMPL_RULES, "sin", ImplRule(lambda ins, outs, **params: np.cos))

    def f(x):
        return jnp.sin(double(x))

    assert became(f) == (
        f"not kept: its sin, whose rule is of {__name__}",
        np.cos(X + X).tolist(),
    )


def test_without_a_usable_directory_all_works(shim, setting, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    setting(cache=str(tmp_path / "file" / "cache"))
    found, result = became()
    assert found.startswith("not kept: ") and result == (X + X).tolist()
    assert "no program is kept" in capsys.readouterr().err


def test_without_a_home_all_works_silently(shim, setting, monkeypatch, capsys):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    setting(cache="trace")
    found, result = became()
    assert "home" in found and result == (X + X).tolist()
    assert capsys.readouterr().err == ""


def test_threads_meet_at_the_first_call(shim, directory):
    for _ in range(2):
        jax.clear_caches()
        f = jax.jit(double)
        with ThreadPoolExecutor(4) as pool:
            for result in pool.map(f, [X] * 8):
                np.testing.assert_array_equal(result, X + X)
        later.do_all()
    assert len(list(directory.iterdir())) == 1


# -- what is put off ------------------------------------------------------------------------------


@pytest.fixture
def put_off():
    later._put_off.clear()
    yield later._put_off
    later._put_off.clear()


def test_what_is_put_off_is_done_in_order_and_once(put_off):
    done: list[Any] = []
    for number in range(3):
        later.at_exit(lambda seconds, number=number: done.append(number))
    assert done == []
    later.do_all()
    later.do_all()
    assert done == [0, 1, 2]


def test_what_fails_or_is_interrupted_disturbs_nobody(put_off, caplog):
    done: list[Any] = []

    def fail(seconds):
        raise ValueError("no")

    def interrupt(seconds):
        raise KeyboardInterrupt

    for work in (fail, done.append, interrupt, done.append):
        later.at_exit(work)
    later.do_all()
    assert len(done) == 1 and "ValueError: no" in caplog.text and not put_off


def test_the_end_of_a_process_is_put_off_for_so_long_only(put_off, monkeypatch):
    monkeypatch.setattr(later, "SECONDS", 0.05)
    done: list[Any] = []
    later.at_exit(lambda seconds: time.sleep(2 * seconds))
    later.at_exit(done.append)
    later.do_all()
    assert done == []
    check = verify.CacheCheck("f", 10.0, functools.partial(done.pop, 0), lambda: None)
    check.at_exit(1.0)  # it would take longer
    assert done == []


def test_not_all_work_is_held(put_off):
    done: list[Any] = []
    for number in range(later._MOST + 3):
        later.at_exit(lambda seconds, number=number: done.append(number))
    assert done == [0, 1, 2] and len(put_off) == later._MOST


@pytest.mark.filterwarnings("ignore:os.fork")
def test_a_forked_child_does_not_do_its_parents_work(put_off):
    later.at_exit(lambda seconds: None)
    child = os.fork()
    if child == 0:
        os._exit(len(put_off))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(put_off) == 1


def test_threads_put_off_at_the_same_time(put_off):
    done: list[Any] = []
    threads = [
        threading.Thread(target=lambda: list(map(later.at_exit, [done.append] * 500)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    later.do_all()
    assert len(done) == 2000
