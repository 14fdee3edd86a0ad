"""Every variable, its values, and the messages for bad ones."""

from __future__ import annotations

import dataclasses

import pytest

from pallas_shim.evaluator import passes
from pallas_shim.evaluator.findings import KINDS
from pallas_shim.settings import CHECKS, PASSES, SettingError, Settings, read


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
        ("_DUMP", "0", {}),
        ("_DUMP", "a b/d", {"dump": "a b/d"}),
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
        ("_DUMP", "1", "a directory"),
        ("_VERIFY", "yes", "0 or 1"),
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


def test_a_variable_that_does_not_exist():
    with pytest.raises(SettingError, match="PALLAS_NUMPY_STICT .*PALLAS_NUMPY_STRICT"):
        read({"PALLAS_NUMPY_STICT": "1"})


def test_the_checks_are_those_of_the_evaluator():
    assert KINDS == CHECKS


def test_the_passes_are_those_of_the_evaluator():
    assert sorted(passes.NAMES) == list(PASSES)
