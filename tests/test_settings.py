"""Every variable, its values, and the messages for bad ones."""

from __future__ import annotations

import dataclasses

import pytest

from pallas_shim import settings
from pallas_shim.evaluator import passes
from pallas_shim.evaluator.findings import KINDS
from pallas_shim.settings import CHECKS, PASSES, SettingError, Settings, read


def test_nothing_set():
    assert read({}) == read({"HOME": "/", "PALLAS_NUMPYISH": "x"}) == Settings()


def test_passes_that_native_code_does_without(monkeypatch):
    asked = read({"PALLAS_NUMPY_PASSES": "-hoisting"})
    numpy_only = read({"PALLAS_NUMPY_NATIVE": "0"})
    monkeypatch.setattr(settings, "llvm_is_installed", lambda: True)
    assert asked.passes_left_out == {"hoisting", "loop_distribution"}
    assert not numpy_only.passes_left_out
    monkeypatch.setattr(settings, "llvm_is_installed", lambda: False)
    assert asked.passes_left_out == {"hoisting"}


@pytest.mark.parametrize("name", ["", "_STRICT", "_LOG", "_REPORT", "_PASSES"])
def test_empty_is_unset(name):
    assert read({f"PALLAS_NUMPY{name}": ""}) == Settings()


@pytest.mark.parametrize(
    "name, value, fields",
    [
        ("", "0", {}),
        ("", "1", {}),
        ("", "force", {"force": True}),
        ("_STRICT", "0", {}),
        ("_STRICT", "1", {"strict": True}),
        ("_LOG", "1", {"log": True}),
        ("_REPORT", "0", {}),
        ("_REPORT", "1", {"report": "1"}),
        ("_REPORT", "a b/r.json", {"report": "a b/r.json"}),
        ("_CACHE", "0", {"cache": None}),
        ("_CACHE", "trace", {}),
        ("_CACHE", "function", {"cache": "function"}),
        ("_CACHE_VERIFY", "1", {"cache_verify": True}),
        ("_CACHE_VERIFY", "0", {}),
        ("_CACHE", "a b/c", {"cache": "a b/c"}),
        ("_VERIFY", "1", {"verify": True}),
        ("_COMPILE", "0", {}),
        ("_COMPILE", "v6e,v5e:4x4,v6e", {"compile": ("v6e", "v5e:4x4")}),
        ("_COMPILE", "v4:2x2x1", {"compile": ("v4:2x2x1",)}),
        ("_COMPILE_EXECUTOR", "0", {}),
        ("_COMPILE_EXECUTOR", "ray:auto", {"compile_executor": "ray:auto"}),
        ("_PROFILE", "0", {}),
        ("_PROFILE", "a b/p.html", {"profile": "a b/p.html"}),
        ("_NATIVE", "0", {"native": False}),
        ("_NATIVE", "1", {}),
        ("_NATIVE", "force", {"native_force": True}),
        ("_THREADS", "3", {"threads": 3}),
        ("_DUMP", "0", {}),
        ("_DUMP", "a b/d", {"dump": "a b/d"}),
        ("_TPU", "v5e:2x4", {"tpu": "v5e", "topology": (2, 4)}),
        ("_TPU", "v4:2x2x1", {"tpu": "v4", "topology": (2, 2, 1)}),
        ("_SCHEDULES", "20", {"schedules": 20}),
        ("_SEED", "7", {"seed": "7"}),
        ("_SEED", "choices:0,2", {"seed": "choices:0,2"}),
        ("_PROGRESS", "0", {"progress": False}),
        ("_PROGRESS", "1", {"progress": True}),
        ("_CHECK", "0", {}),
        ("_CHECK", "1", {"check": frozenset(KINDS)}),
        ("_CHECK", "races,bounds", {"check": frozenset({"bounds", "races"})}),
        ("_PASSES", "-hoisting", {"disabled_passes": frozenset({"hoisting"})}),
        ("_PASSES", "-in_place,-movements", {"disabled_passes": {"in_place", "movements"}}),
    ],
)
def test_values(name, value, fields):
    assert read({f"PALLAS_NUMPY{name}": value}) == dataclasses.replace(Settings(), **fields)


@pytest.mark.parametrize(
    "name, value, allowed",
    [
        ("", "yes", "0, 1 or force"),
        ("", " 1", "0, 1 or force"),
        ("_STRICT", "true", "0 or 1"),
        ("_LOG", "debug", "0 or 1"),
        ("_REPORT", "true", "the path for a JSON file"),
        ("_REPORT", "Yes", "the path for a JSON file"),
        ("_CACHE", "1", "a directory"),
        ("_COMPILE", "v6e,v9", "v4, v5e"),
        ("_COMPILE", "v6e:4", "v4, v5e"),
        ("_COMPILE_EXECUTOR", "pool", "module:factory"),
        ("_PROFILE", "profile.txt", ".html and .json files"),
        ("_DUMP", "1", "a directory"),
        ("_THREADS", "0", "1 or more"),
        ("_VERIFY", "yes", "0 or 1"),
        ("_TPU", "v5e:2x2x2", "v5e:2x4"),
        ("_TPU", "v5e:0x4", "v5e:2x4"),
        ("_SCHEDULES", "many", "a number"),
        ("_SEED", "first", "early, late"),
        ("_CHECK", "yes", "uninitialized"),
        ("_CHECK", "bounds,", "uninitialized"),
        ("_PASSES", "hoisting", "-hoisting"),
        ("_PASSES", "-hoisting,movements", "-hoisting"),
        ("_PASSES", "-hoisting,", "-hoisting"),
        ("_PASSES", "-hosting", "in_place"),
        ("_PASSES", "-hoisting,-walks", "walks is called strength_reduction now"),
    ],
)
def test_bad_values(name, value, allowed):
    with pytest.raises(SettingError) as error:
        read({f"PALLAS_NUMPY{name}": value})
    message = str(error.value)
    assert f"PALLAS_NUMPY{name}={value!r}" in message and allowed in message


@pytest.mark.parametrize(
    "ours, omp, threads",
    [(None, "2", 2), ("3", "2", 2), ("3", "8,4", 3), ("3", "0", 3), (None, "many", None)],
)
def test_no_more_threads_than_openmp_may_have(ours, omp, threads):
    ours = {} if ours is None else {"PALLAS_NUMPY_THREADS": ours}
    found = read({**ours, "OMP_NUM_THREADS": omp}).threads
    assert found == (Settings().threads if threads is None else threads)


def test_one_order_and_several():
    with pytest.raises(SettingError, match="one order, and PALLAS_NUMPY_SCHEDULES=3"):
        read({"PALLAS_NUMPY_SCHEDULES": "3", "PALLAS_NUMPY_SEED": "late"})


def test_a_variable_that_does_not_exist():
    with pytest.raises(SettingError, match="PALLAS_NUMPY_STICT .*PALLAS_NUMPY_STRICT"):
        read({"PALLAS_NUMPY_STICT": "1"})


def test_the_checks_are_those_of_the_evaluator():
    assert KINDS == CHECKS


def test_the_passes_are_those_of_the_evaluator():
    assert sorted(passes.NAMES) == list(PASSES)
