"""Patches as another package offers them: entry points that are found, applied and undone."""

from __future__ import annotations

import pytest

PLUGIN = """
def patch(module):
    original = module.answer
    module.answer = lambda: "patched " + original()

    def undo():
        module.answer = original
    return undo

def broken(module):
    raise {error}
"""

ENTRY_POINTS = """
[pallas_shim.patches]
plugin_target = plugin:patch
plugin_other = plugin:{other}
"""


@pytest.fixture
def package(tmp_path):
    """Makes a directory for PYTHONPATH: a distribution with two patches, and their targets."""

    def make(error="AssertionError('not called')", other="patch"):
        (tmp_path / "plugin.py").write_text(PLUGIN.format(error=error))
        for target in ("plugin_target", "plugin_other"):
            (tmp_path / f"{target}.py").write_text("def answer(): return __name__\n")
        info = tmp_path / "plugin-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(ENTRY_POINTS.format(other=other))
        return str(tmp_path)

    return make


def test_found_and_applied_when_the_module_is_imported(python, package):
    code = """if True:
        import sys
        import jax
        assert "plugin" not in sys.modules
        import plugin_target
        print(plugin_target.answer())
    """
    path = package()
    got = python.run("-c", code, PALLAS_NUMPY="1", PYTHONPATH=path)
    assert (got.stdout, got.stderr) == ("patched plugin_target\n", "")
    assert python.run("-c", code, PYTHONPATH=path).stdout == "plugin_target\n"
    code = """if True:
        import plugin_target
        print(plugin_target.answer())
        import jax
        print(plugin_target.answer())
    """
    got = python.run("-c", code, PALLAS_NUMPY="1", PYTHONPATH=path)
    assert (got.stdout, got.stderr) == ("plugin_target\npatched plugin_target\n", "")


def test_activate_and_deactivate(python, package):
    code = """if True:
        import os
        import pallas_shim, plugin_target as early
        original = early.answer
        before = dict(os.environ)

        assert not pallas_shim.is_active()
        pallas_shim.deactivate()
        pallas_shim.activate()
        pallas_shim.activate()
        assert pallas_shim.is_active()
        import plugin_other as late
        assert early.answer() == "patched plugin_target"
        assert late.answer() == "patched plugin_other"
        pallas_shim.deactivate()
        assert not pallas_shim.is_active()
        assert early.answer is original and late.answer() == "plugin_other"
        assert os.environ == before

        with pallas_shim.active():
            assert late.answer() == "patched plugin_other"
            with pallas_shim.active():
                assert pallas_shim.is_active()
            assert early.answer() == "patched plugin_target"
        assert early.answer is original and not pallas_shim.is_active()

        try:
            with pallas_shim.active():
                raise KeyError
        except KeyError:
            assert early.answer is original

        pallas_shim.activate()
        with pallas_shim.active():
            pass
        assert pallas_shim.is_active() and early.answer is not original
        print("done")
    """
    got = python.run("-c", code, PYTHONPATH=package())
    assert (got.stdout, got.stderr) == ("done\n", "")


def test_imported_while_inactive(python, package):
    code = """if True:
        import pallas_shim
        with pallas_shim.active():
            pass
        import plugin_target
        assert plugin_target.answer() == "plugin_target"
        with pallas_shim.active():
            assert plugin_target.answer() == "patched plugin_target"
        print(plugin_target.answer())
    """
    got = python.run("-c", code, PYTHONPATH=package())
    assert (got.stdout, got.stderr) == ("plugin_target\n", "")


@pytest.mark.parametrize(
    "error, said",
    [
        ("ImportError('JAX 0.1 is too old')", "JAX 0.1 is too old"),
        ("AttributeError(\"module 'jax' has no attribute 'x'\")", "has no attribute 'x'"),
        ("KeyError('x')", "KeyError: 'x'"),
    ],
)
def test_a_patch_that_fails_leaves_everything_stock(python, package, error, said):
    code = """if True:
        import jax, plugin_target, plugin_other, pallas_shim
        print(plugin_target.answer(), plugin_other.answer(), pallas_shim.is_active())
    """
    path = package(error, other="broken")
    got = python.run("-c", code, PALLAS_NUMPY="1", PYTHONPATH=path)
    assert (got.returncode, got.stdout) == (0, "plugin_target plugin_other False\n")
    (line,) = got.stderr.splitlines()
    assert "stock JAX" in line and said in line and "plugin:broken" in line

    strict = python.run("-c", code, PALLAS_NUMPY="1", PALLAS_NUMPY_STRICT="1", PYTHONPATH=path)
    assert strict.returncode == 1 and said in strict.stderr.splitlines()[-1]
