"""The check of JAX's version and of its private names."""

from __future__ import annotations

import ast
import importlib
import pathlib

import jax
import pytest

from pallas_shim.jax_compat import version

JAX_COMPAT = pathlib.Path(version.__file__).parent


def private_names(tree: ast.Module) -> set[tuple[str, str]]:
    """(module, name) of all that a module takes from jax._src, by import or as an attribute."""
    names: set[tuple[str, str]] = set()
    local: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jax._src"):
            module = str(node.module)
            for alias in node.names:
                local[alias.asname or alias.name] = f"{module}.{alias.name}"
                names.add((module, alias.name))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id in local:
                names.add((local[node.value.id], node.attr))
    return names


def known() -> set[tuple[str, str]]:
    return {
        (place, name)
        for places, alternatives in version.PRIVATE_NAMES.items()
        for place in places.split("|")
        for each in alternatives
        for name in each.partition(">=")[0].split("|")
    }


@pytest.mark.parametrize("path", sorted(JAX_COMPAT.rglob("*.py")), ids=lambda p: p.name)
def test_every_private_name_is_checked_at_activation(path):
    used = private_names(ast.parse(path.read_text()))
    modules = {module for module, _ in known()}
    packages = {(m.rpartition(".")[0], m.rpartition(".")[2]) for m in modules}
    assert used - known() - packages == set()


@pytest.mark.parametrize(
    "installed", ["0.7.2", "0.13.0", "0.4.38", "1.0", "0.13.0.dev20270101"]
)
def test_another_jax_is_refused(installed, monkeypatch):
    monkeypatch.setattr(jax, "__version__", installed)
    with pytest.raises(version.IncompatibleJax, match=f"JAX {installed} isn't supported"):
        version.check()


@pytest.mark.parametrize("installed", ["0.8.0", "0.10.2", "0.12.0.1", "0.9.3.dev5"])
def test_supported_versions(installed):
    assert version.supports(installed)


def test_what_is_missing_is_named(monkeypatch):
    pjit = importlib.import_module("jax._src.pjit")
    monkeypatch.delattr(pjit, "_pjit_call_impl_python")
    with pytest.raises(version.IncompatibleJax, match=r"jax\._src\.pjit\._pjit_call_impl_python"):
        version.check()
