"""The hooks, the boundary and the check of JAX's version."""

from __future__ import annotations

import ast
import functools
import importlib
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_shim import jax_compat
from pallas_shim.jax_compat import arrays, checked, hooks, version
from tests.shimmed import double

JAX_COMPAT = pathlib.Path(version.__file__).parent
X = np.arange(8, dtype=np.float32)


# -- version ----------------------------------------------------------------------------------


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


@pytest.mark.parametrize("path", sorted(JAX_COMPAT.glob("*.py")), ids=lambda p: p.name)
def test_every_private_name_is_checked_at_activation(path):
    used = private_names(ast.parse(path.read_text()))
    modules = {module for module, _ in known()}
    packages = {(m.rpartition(".")[0], m.rpartition(".")[2]) for m in modules}
    assert used - known() - packages == set()


def test_only_jax_compat_uses_private_names():
    root = JAX_COMPAT.parents[1]
    files = [*root.glob("pallas_shim/**/*.py"), *root.glob("patches/*.py")]
    offenders = [
        path for path in files
        if path.parent != JAX_COMPAT and private_names(ast.parse(path.read_text()))
    ]
    assert offenders == []


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


# -- jaxprs -----------------------------------------------------------------------------------


def test_kernels_are_found_however_deep():
    def deep(x):
        def body(_, c):
            return lax.cond(c[0] > 0, jax.jit(double), lambda c: c, c)

        return lax.fori_loop(0, 3, body, x) + double(x)

    jaxpr = jax.make_jaxpr(deep)(X)
    assert [e.primitive.name for e in hooks.kernel_equations(jaxpr)] == ["pallas_call"] * 2
    assert hooks.kernel_equations(jax.make_jaxpr(lambda x: x + 1)(X)) == ()


def test_a_kernel_is_described_to_the_user():
    def my_kernel(x_ref, o_ref):
        o_ref[...] = x_ref[...]

    call = pl.pallas_call(my_kernel, out_shape=jax.ShapeDtypeStruct((8,), X.dtype), grid=(2, 5))
    (eqn,) = hooks.kernel_equations(jax.make_jaxpr(call)(X))
    line = my_kernel.__code__.co_firstlineno
    assert hooks.describe_kernel(eqn) == ("my_kernel", f"{__file__}:{line}", "(2, 5)")


def test_inputs_that_nothing_depends_on():
    jaxpr = jax.make_jaxpr(lambda a, b, c: (a * 2, b + 1, c)[1:])(1.0, 2.0, 3.0)
    assert hooks.used_arguments(jaxpr, keep_unused=False) == (False, True, True)
    assert hooks.used_arguments(jaxpr, keep_unused=True) == (True, True, True)


def asked(interpret):
    (eqn,) = hooks.kernel_equations(jax.make_jaxpr(lambda x: double(x, interpret))(X))
    return hooks.unhonoured(eqn)


@pytest.mark.parametrize(
    "interpret",
    [
        True,
        False,
        pltpu.InterpretParams(),
        pltpu.InterpretParams(dma_execution_mode="eager", vector_clock_size=64),
        pltpu.InterpretParams(out_of_bounds_reads="uninitialized", uninitialized_memory="zero"),
        pltpu.InterpretParams(allow_hbm_allocation_in_run_scoped=True),
    ],
)
def test_what_is_honoured(interpret):
    assert asked(interpret) is None


@pytest.mark.parametrize("option", ["detect_races", "skip_floating_point_ops"])
def test_what_is_not_honoured(option):
    assert option in asked(pltpu.InterpretParams(**{option: True}))


def test_a_grid_recorder_is_not_honoured():
    assert "grid_point_recorder" in asked(pltpu.InterpretParams(grid_point_recorder=print))


def test_an_interpreter_that_somebody_changed(monkeypatch):
    checked.remember_interpreter()
    assert asked(pltpu.InterpretParams()) is None
    name = next(iter(checked._functions))
    monkeypatch.setattr(f"{checked._INTERPRETER}.{name}", functools.partial(print))
    assert f"`{name}`" in asked(pltpu.InterpretParams())
    assert asked(True) is None


# -- arrays -----------------------------------------------------------------------------------


def read(*args):
    dtypes = arrays.argument_dtypes([jax.typeof(a) for a in args])
    return arrays.read(args, dtypes, any_platform=False)


def test_a_jax_array_is_read_without_a_copy():
    x = jnp.asarray(X)
    (a,), place = read(x)
    (b,), _ = read(x)
    assert a.ctypes.data == b.ctypes.data and not a.flags.writeable
    assert not place.committed and place.sharding == x.sharding


def test_other_values_are_read_as_jit_takes_them():
    key = jax.random.key(3)
    values, _ = read(np.arange(3), np.float64(1.5), True, 7, 2.5, 1j, key)
    assert [str(v.dtype) for v in values] == [
        "int32", "float32", "bool", "int32", "float32", "complex64", "uint32"
    ]
    np.testing.assert_array_equal(values[-1], jax.random.key_data(key))


def test_an_integer_that_does_not_fit():
    with pytest.raises(OverflowError):
        arrays.read((2**40,), (np.dtype(np.int32),), any_platform=False)


def test_an_unknown_value_is_left_to_jit():
    with pytest.raises(arrays.Elsewhere, match="str"):
        arrays.read(("x",), (X.dtype,), any_platform=False)


def written(array, aval=None):
    _, place = read(X)
    aval = aval or jax.typeof(jnp.asarray(array))
    (out,) = arrays.write([array], arrays.result_types([aval]), place)
    return out


@pytest.mark.parametrize(
    "view", [lambda a: a, lambda a: a[:], lambda a: a.view(), lambda a: a[2:6]]
)
@pytest.mark.parametrize("size", [8, 1 << 18])
def test_what_is_written_can_not_change(view, size):
    array = np.arange(size, dtype=np.float32)
    out = written(view(array))
    want = np.asarray(view(array)).copy()
    array[:] = -1
    np.testing.assert_array_equal(np.asarray(out), want)


def test_an_array_that_is_a_result_twice():
    _, place = read(X)
    results = [np.ones(1 << 18, np.float32)] * 2
    avals = [jax.typeof(jnp.asarray(results[0]))] * 2
    out = arrays.write(results, arrays.result_types(avals), place)
    results[0][:] = 5
    for each in out:
        assert (np.asarray(each) == 1).all()


def test_keys_are_written():
    key = jax.random.key(5)
    out = written(np.asarray(jax.random.key_data(key)), jax.typeof(key))
    assert out.dtype == key.dtype and type(out) is type(key)
    assert jax.random.bits(out) == jax.random.bits(key)


def test_which_types_are_plain():
    plain = jax.typeof(jnp.asarray(X))
    assert arrays.is_plain(plain) and arrays.is_plain(jax.typeof(jax.random.key(0)))
    assert not arrays.is_plain(jax.core.ShapedArray((3,), jax.dtypes.float0))


def test_a_literal_becomes_a_plain_array():
    jaxpr = jax.make_jaxpr(lambda x: x + np.float32(1.5))(jnp.float32(0))
    (literal,) = [a for a in jax_compat.open_jaxpr(jaxpr)[0].eqns[0].invars if hasattr(a, "val")]
    array = jax_compat.to_numpy(literal.val, np.dtype(np.float32))
    assert type(array) is np.ndarray and array == 1.5
