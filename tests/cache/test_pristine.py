"""A library that somebody changed is seen; what it imports by itself is no change."""

from __future__ import annotations

import importlib.util
import sys
import types

import jax
import pytest

from pallas_shim.cache import pristine, pure


@pytest.fixture
def before():
    pristine.forget()
    pristine.note()
    yield
    pristine.forget()


@pytest.mark.parametrize(
    "origin, is_seen",
    [("numpy.lib", False), ("flatbuffers.compat", False), ("users", True), ("flatbuffered", True)],
)
def test_a_function_of_somebody_elses_in_a_new_module_is_seen(origin, is_seen, before, monkeypatch):
    module = types.ModuleType("jax._src.imported_later")
    exec("def borrowed(): pass", {"__name__": origin}, vars(module))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    found = pristine.changed()
    assert found == (f"{module.__name__}.borrowed isn't the library's" if is_seen else None)


@pytest.mark.parametrize("module", sorted(pure.PURE))
def test_no_pure_function_is_of_a_package_that_is_not_compared(module):
    values = vars(importlib.import_module(module)) if importlib.util.find_spec(module) else {}
    names = pure.PURE[module].split()
    origins = {getattr(values[name], "__module__", None) or "" for name in names if name in values}
    assert origins or not values
    assert not [origin for origin in origins if origin.startswith(pristine._NOT_TRACED)]


def test_a_replaced_function_is_seen_among_ordinary_state(before, monkeypatch):
    monkeypatch.setattr(jax.numpy, "_a_cache_of_its_own", {}, raising=False)
    assert pristine.changed() is None
    monkeypatch.setattr(jax.lax, "sin", jax.lax.cos)
    assert pristine.changed() == "jax.lax.sin isn't what was imported"


def test_what_computes_constants_while_tracing_is_compared(before, monkeypatch):
    # Under ensure_compile_time_eval, tracing lowers and runs operations.
    hlo = importlib.import_module("jaxlib.mlir.dialects._stablehlo_ops_gen")
    monkeypatch.setattr(hlo, "sine", hlo.cosine)
    assert pristine.changed() == f"{hlo.__name__}.sine isn't what was imported"
