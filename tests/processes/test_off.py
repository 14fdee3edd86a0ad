"""Off costs one tiny module."""

from __future__ import annotations

import sys

import pytest


def imported(python, **variables) -> list[str]:
    variables = {"PALLAS_NUMPY_VERIFY": "", "PALLAS_NUMPY_CACHE": "", **variables}
    got = python.run("-X", "importtime", "-c", "pass", **variables)
    assert got.returncode == 0
    return [line.rpartition("|")[2].strip() for line in got.stderr.splitlines()[1:]]


@pytest.mark.parametrize("variables", [{}, {"PALLAS_NUMPY": "0"}, {"PALLAS_NUMPY": ""}])
def test_off_imports_one_module(bare, from_wheel, variables):
    got, stock = imported(from_wheel, **variables), imported(bare)
    # The parent environment may offer the same modules again; each counts once.
    assert sorted(got) == sorted([*stock, "_pallas_shim_start"])


def test_variables_without_the_first_are_told(python):
    uses = "from jax.experimental import pallas"
    got = python.run("-c", uses, PALLAS_NUMPY_REPORT="1", PALLAS_NUMPY_VERIFY="")
    assert (got.returncode, got.stdout) == (0, "")
    (line,) = got.stderr.splitlines()
    assert "set PALLAS_NUMPY=1" in line and "PALLAS_NUMPY_REPORT" in line
    for code, variables in (
        ("import jax", {}),
        (uses, {"PALLAS_NUMPY": "0"}),
        (f"import pallas_shim; pallas_shim.activate(); {uses}", {}),
    ):
        got = python.run("-c", code, PALLAS_NUMPY_STRICT="1", **variables)
        assert (got.returncode, got.stderr) == (0, "")


def test_off_through_pythonpath(python):
    """sitecustomize.py is one module more."""
    got, stock = imported(python), imported(python.stock())
    assert set(got) - set(stock) <= {"_pallas_shim_start", "sitecustomize"}


def test_importing_the_package_imports_nothing_heavy(python):
    code = "import sys, pallas_shim; print(*sys.modules)"
    modules = set(python.run("-c", code).stdout.split())
    assert "pallas_shim" in modules
    assert modules.isdisjoint({"jax", "jaxlib", "numpy", "wrapt", "importlib_metadata"})


def test_on_imports_three_modules_until_jax_is_imported(bare, from_wheel):
    got, stock = imported(from_wheel, PALLAS_NUMPY="1"), imported(bare)
    ours = {"_pallas_shim_start", "pallas_shim", "pallas_shim.startup"}
    assert set(got) - set(stock) <= {*ours, "atexit"}


def test_jax_starts_it(python):
    code = """if True:
        import sys, pallas_shim
        print(pallas_shim.is_active(), "wrapt" in sys.modules, "jax" in sys.modules)
        import jax
        print(pallas_shim.is_active(), "wrapt" in sys.modules)
        pallas_shim.deactivate()
        print(pallas_shim.is_active())
    """
    got = python.run("-c", code, PALLAS_NUMPY="1")
    assert (got.stdout, got.stderr) == ("True False False\nTrue True\nFalse\n", "")


def test_scripts_that_use_no_tpu_do_not_import_its_lowering(python):
    code = """if True:
        import sys
        from jax.experimental import pallas
        print("jax._src.pallas.mosaic.lowering" in sys.modules)
    """
    assert python.stock().run("-c", code).stdout == python.run("-c", code, PALLAS_NUMPY="1").stdout


def test_its_imports_run_without_the_collector(python):
    code = """if True:
        import gc, sys
        class Asks:
            @staticmethod
            def find_spec(name, path=None, target=None):
                if name == "pallas_shim.dispatch":
                    print(gc.isenabled())
        sys.meta_path.insert(0, Asks)
        from jax.experimental import pallas
        print(gc.isenabled())
    """
    assert python.run("-c", code, PALLAS_NUMPY="1").stdout == "False\nTrue\n"


@pytest.mark.parametrize("call", ["activate", "deactivate"])
def test_switched_before_jax_is_imported(python, call):
    code = f"""if True:
        import pallas_shim
        pallas_shim.{call}()
        import jax
        from jax.experimental import pallas
        print(pallas_shim.is_active(), "pallas_shim.dispatch" in __import__("sys").modules)
    """
    got = python.run("-c", code, PALLAS_NUMPY="1")
    assert (got.stdout, got.stderr) == (f"{call == 'activate'} {call == 'activate'}\n", "")


def test_another_finder_finds_jax_first(python):
    code = """if True:
        import sys
        from importlib.machinery import PathFinder
        class First:
            @staticmethod
            def find_spec(name, path=None, target=None):
                return PathFinder.find_spec(name, path, target) if name == "jax" else None
        sys.meta_path.insert(0, First)
        import jax
        from jax.experimental import pallas
        print("pallas_shim.dispatch" in sys.modules)
    """
    got = python.run("-c", code, PALLAS_NUMPY="1")
    assert (got.stdout, got.stderr) == ("True\n", "")


def test_once_however_often_started(from_wheel):
    """Python 3.15 may call what .start files name more than once, and sitecustomize begins too."""
    code = """if True:
        import pkgutil, pathlib, sys, _pallas_shim_start
        file = pathlib.Path(_pallas_shim_start.__file__).with_name("pallas_shim.start")
        (line,) = file.read_text().splitlines()
        assert pkgutil.resolve_name(line) is _pallas_shim_start.start
        import pallas_shim
        pallas_shim.deactivate()
        pkgutil.resolve_name(line)()
        _pallas_shim_start.begin()
        print(pallas_shim.is_active())
    """
    got = from_wheel.run("-c", code, PALLAS_NUMPY="1")
    assert (got.stdout, got.stderr) == ("False\n", "")


def test_a_site_directory_added_later_starts_it(from_wheel, bare, tmp_path):
    """As with pip install --target and site.addsitedir."""
    code = "import sys; print(next(p for p in sys.path if p.endswith('site-packages')))"
    directory = from_wheel.run("-c", code).stdout.strip()
    code = f"""if True:
        import site
        site.addsitedir({directory!r})
        import pallas_shim
        print(pallas_shim.is_active())
    """
    assert bare.run("-c", code, PALLAS_NUMPY="1").stdout == "True\n", sys.version
