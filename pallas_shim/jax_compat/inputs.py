"""The inputs of JAX's tracing beside the function and its arguments, for cache keys."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax._src import config, core, pjit, tree_util
from jax._src.mesh import AbstractMesh
from jax._src.sharding_impls import UnspecifiedValue


def configuration() -> Iterator[Any]:
    """JAX's configuration, process and thread, outside any trace and mesh."""
    yield sorted(jax.config.values.items())
    for value in config.trace_context():
        if not isinstance(value, (AbstractMesh, core.AxisEnv)):
            yield value
    yield [(d.platform, d.device_kind, d.process_index) for d in jax.devices()]
    yield jax.process_index()


def jit_options(jit_info: Any) -> list[tuple[str, Any]] | None:
    """The options with which a jitted function was made, and the names of its parameters. None if
    an option says where arrays lie."""
    signature = jit_info.fun_signature
    options: list[tuple[str, Any]] = [("parameters", signature and [*signature.parameters])]
    for name in jit_info._fields:
        value = getattr(jit_info, name)
        if name.endswith("_leaves"):
            if not all(leaf is None or isinstance(leaf, UnspecifiedValue) for leaf in value):
                return None
        elif not name.endswith("_treedef") and name != "fun_signature":
            options.append((name, value))
    return options


_JITTED: Any = type(jax.jit(lambda: None))
JIT_INFO: Any = pjit.PjitInfo


def jitted(value: Any) -> tuple[Callable[..., Any], Any] | None:
    """The function behind a jitted one, and what jit was told; None if it isn't jitted."""
    if type(value) is not _JITTED:
        return None
    return value._fun, value._jit_info


# The number of weak references that jit itself has to a function that was not traced. A call makes
# one more.
REFERENCES_OF_JIT = 1


def is_jits_own(function: Any) -> bool:
    """Whether the one weak reference to a function is jit's, so that JAX remembers no trace of
    it: another jitted form of it shares that, and makes one beside any other."""
    jax.jit(function)
    return weakref.getweakrefcount(function) == REFERENCES_OF_JIT


def variables_of_jitted(value: Any) -> dict[str, Any]:
    """Attributes that the user set on a jitted function, or on the function in it."""
    return {
        name: part
        for name, part in vars(value).items()
        if name in _NAMES or not name.startswith("__") and name not in _OF_JIT
    }


_NAMES = frozenset({"__name__", "__qualname__", "__module__", "__doc__"})
_OF_JIT = frozenset(vars(jax.jit(lambda: None)))


def pytree_functions(kind: type) -> Any:
    """JAX's functions that flatten and unflatten a container of this type, None if it has none."""
    return tree_util._registry.get(kind)


def captured_value(array: Any) -> np.ndarray | None:
    """The value of an array on one device, None if it isn't one that stays where it was made."""
    if isinstance(array, jax.Array) and not isinstance(array, jax.core.Tracer):
        plain = isinstance(array.dtype, np.dtype)
        if plain and not array.committed and len(array.devices()) == 1:
            return np.asarray(array)
    return None


def split_arguments(
    jit_info: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[list[Any], Any]:
    """A call's static arguments with their places, and the tree of all others."""
    static_positions = {n % len(args) if args else n for n in jit_info.static_argnums}
    names = jit_info.static_argnames
    static = [(i, args[i]) for i in sorted(static_positions) if i < len(args)]
    named = [(name, kwargs[name]) for name in sorted(kwargs) if name in names]
    rest = [arg for i, arg in enumerate(args) if i not in static_positions]
    return [static, named], (rest, {k: v for k, v in kwargs.items() if k not in names})


def tree_parts(tree: Any) -> Any:
    """The containers of a tree: the type of each, its own data, and its children."""
    if tree.node_data() is None:
        return None
    return [*tree.node_data(), *map(tree_parts, tree.children())]


TREE: Any = jax.tree_util.PyTreeDef


def is_ordinary_tree(tree: Any) -> bool:
    """Whether jit itself takes apart all of a tree's containers, so that `tree_parts` says
    everything about it."""
    return tree.__getstate__()[0] is tree_util.default_registry


SHARDING: Any = jax.sharding.NamedSharding


def sharding_without_mesh(sharding: Any) -> list[str] | None:
    """A key that tells shardings on an empty mesh apart, None if there is a mesh."""
    if not sharding.mesh.empty or sharding._logical_device_ids is not None:
        return None
    return [str(type(sharding.mesh)), repr(sharding.spec), str(sharding.memory_kind)]


def is_array_type(aval: Any) -> bool:
    """Whether a type is that of an array of numbers."""
    return type(aval) is core.ShapedArray and isinstance(aval.dtype, np.dtype)


def is_jaxs_own(function: Any) -> bool:
    """Whether a function is one of JAX's that certainly hold no kernel."""
    module = getattr(function, "__module__", None) or ""
    return module.partition(".")[0] == "jax" and "pallas" not in module


def is_primitive(value: Any) -> bool:
    """Whether a value is a primitive of JAX's or of somebody else's."""
    return isinstance(value, core.Primitive)
