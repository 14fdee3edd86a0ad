"""The check of JAX's version and of its private names."""

from __future__ import annotations

import ast
import configparser
import importlib
import pathlib
import re

import jax
import pytest

from pallas_shim.jax_compat import version, versions

JAX_COMPAT = pathlib.Path(version.__file__).parent
ROOT = pathlib.Path(__file__).parents[2]
LIMITS = ROOT / "docs" / "limits.md"
INDEX = ROOT / "docs" / "index.md"


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


@pytest.mark.parametrize("installed", [*versions.TESTED, *versions.BETWEEN, "0.9.3.dev5"])
def test_supported_versions(installed):
    assert version.supports(installed)


def test_the_versions_that_are_checked_are_tested():
    assert versions.OLDEST == versions.TESTED[0]
    assert versions.CHECKED_ON in versions.TESTED
    assert not set(versions.TESTED) & set(versions.BETWEEN)


def test_setup_cfg_has_the_same_bounds():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    requirements = setup["options"]["install_requires"].strip().splitlines()
    assert f"jax >= {versions.OLDEST}, < {versions.TOO_NEW}" in requirements
    # The oldest Python that is tested is also the oldest that may install the package.
    pythons = {python for v in versions.TESTED for python in versions.pythons(v)}
    oldest = min(pythons, key=lambda python: [int(part) for part in python.split(".")])
    assert setup["options"]["python_requires"] == f">={oldest}"


def test_the_docs_name_the_same_versions():
    (entry,) = re.findall(r"^- \*\*JAX versions\.\*\*.*?(?=^- )", LIMITS.read_text(), re.M | re.S)
    assert tuple(re.findall(r"\b0\.[0-9.]*[0-9]", entry)) == (
        *versions.TESTED, *versions.BETWEEN, versions.OLDEST, versions.TOO_NEW
    )


def test_the_first_page_of_the_docs_lists_them():
    (section,) = re.findall(r"^## Versions$(.*?)^## ", INDEX.read_text(), re.M | re.S)
    found = tuple(re.findall(r"\b0\.[0-9.]*[0-9]", section))
    assert found == (*versions.TESTED, *versions.BETWEEN, versions.OLDEST, versions.TOO_NEW)


def test_nothing_else_lists_them():
    """Neither the script that runs the tests nor the README repeats what versions.py says."""
    for name in ("scripts/test.sh", "README.md", ".ci/run"):
        listed = set(re.findall(r"0\.[0-9.]*[0-9]", (ROOT / name).read_text()))
        assert not listed & ({*versions.TESTED, *versions.BETWEEN} - {versions.CHECKED_ON}), name


def test_what_is_missing_is_named(monkeypatch):
    pjit = importlib.import_module("jax._src.pjit")
    monkeypatch.delattr(pjit, "_pjit_call_impl_python")
    with pytest.raises(version.IncompatibleJax, match=r"jax\._src\.pjit\._pjit_call_impl_python"):
        version.check()


def test_what_kernels_for_a_tpu_lack_is_named(monkeypatch):
    place = next(p for p in version.OF_A_TPU if version.PRIVATE_NAMES[p])
    monkeypatch.setitem(version.PRIVATE_NAMES, place, ("_not_there",))
    version.check()
    with pytest.raises(version.IncompatibleJax, match=rf"{place}\._not_there"):
        version.check_for_a_tpu()


def test_kernels_for_a_tpu_find_their_names():
    version.check_for_a_tpu()
