"""A library that somebody changed is seen; what it imports by itself is no change."""

from __future__ import annotations

import sys
import types

import pytest

from pallas_shim.cache import pristine


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
