"""Every variable, its values, and the messages for bad ones."""

from __future__ import annotations

import dataclasses

import pytest

from pallas_shim.evaluator import passes
from pallas_shim.settings import PASSES, SettingError, Settings, read


def test_nothing_set():
    assert read({}) == read({"HOME": "/", "PALLAS_NUMPYISH": "x"}) == Settings()


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
        ("_DUMP", "0", {}),
        ("_DUMP", "a b/d", {"dump": "a b/d"}),
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
        ("_CACHE", "1", "a directory"),
        ("_COMPILE", "v6e,v9", "v4, v5e"),
        ("_COMPILE", "v6e:4", "v4, v5e"),
        ("_COMPILE_EXECUTOR", "pool", "module:factory"),
        ("_PROFILE", "profile.txt", ".html or .json"),
        ("_DUMP", "1", "a directory"),
        ("_VERIFY", "yes", "0 or 1"),
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


def test_a_variable_that_does_not_exist():
    with pytest.raises(SettingError, match="PALLAS_NUMPY_STICT .*PALLAS_NUMPY_STRICT"):
        read({"PALLAS_NUMPY_STICT": "1"})


def test_the_passes_are_those_of_the_evaluator():
    assert sorted(passes.NAMES) == list(PASSES)
