"""How plain data, containers and arrays are read for a digest."""

from __future__ import annotations

import collections
import operator
import re
import types
import typing
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from jax import tree_util

from pallas_shim.cache import libraries
from pallas_shim.jax_compat import inputs

if TYPE_CHECKING:
    from pallas_shim.cache.reach import Reach

# Arrays of more bytes than this are refused, not read.
_LARGEST_ARRAY = 64 << 20

PLAIN: dict[type, Callable[[Any], str | bytes]] = {
    type(None): lambda x: b"",
    bool: repr,
    int: repr,
    float: float.hex,
    complex: lambda x: f"{x.real.hex()} {x.imag.hex()}",
    str: lambda x: x,
    bytes: lambda x: x,
    range: repr,
    type(...): repr,
    type(NotImplemented): repr,
}

# Whether two of these are the same object makes no difference.
UNCHANGING = frozenset({tuple, frozenset, slice, types.MethodType, inputs.TREE})
# What a user could have put into a library's module in the place of what was there.
DATA = frozenset({*PLAIN, tuple, list, dict, set, frozenset, np.ndarray})


def _read_set(reach: Reach, values: Any) -> None:
    digests = []
    for value in values:
        if type(value) not in PLAIN:
            raise reach.refusal(f"a set of {type(value).__name__}")
        digests.append(f"{type(value).__name__} {value!r}")
    reach.add_all(sorted(digests))


def _read_array(reach: Reach, array: np.ndarray) -> None:
    if array.dtype.hasobject or array.nbytes > _LARGEST_ARRAY or type(array) is not np.ndarray:
        raise reach.refusal(f"a {type(array).__name__} of {array.nbytes} bytes, {array.dtype}")
    reach.emit("array", str(array.dtype), str(array.shape), array.tobytes())


def _read_tree(reach: Reach, tree: Any) -> None:
    """What a container's form holds: the types of the containers and what they keep of their
    own, keys above all."""
    if not inputs.is_ordinary_tree(tree):
        raise reach.refusal("a PyTreeDef of a registry of its own")
    reach.add(inputs.tree_parts(tree))


def _read_sharding(reach: Reach, sharding: Any) -> None:
    """The sharding of a type on no mesh, which is a part of it."""
    parts = inputs.sharding_without_mesh(sharding)
    if parts is None:
        raise reach.refusal("an array that is to lie on several devices")
    reach.add(parts)


def read_number(reach: Reach, value: Any) -> bool:
    """Reads NumPy's and JAX's numbers and arrays, and NumPy's functions on them."""
    if isinstance(value, np.dtype):
        reach.emit("dtype", value.name if value.fields is None else str(value))
    elif isinstance(value, np.generic):
        reach.emit("scalar", str(value.dtype), value.tobytes())
    elif isinstance(value, np.ndarray):
        _read_array(reach, value)
    elif (captured := inputs.captured_value(value)) is not None:
        reach.emit("jax.Array", str(value.aval))
        _read_array(reach, captured)
    elif isinstance(value, np.ufunc):
        home = libraries.home(value)
        if home is None:
            name = getattr(value, "__name__", None)
            raise reach.refusal(f"the ufunc {name} isn't one of NumPy's or SciPy's own")
        reach.owned(*home)
    else:
        return False
    return True


# The contents of containers, for types that derive from them too.
CONTAINERS: dict[type, Callable[[Reach, Any], None]] = {
    tuple: lambda reach, x: reach.add_all(tuple.__iter__(x)),
    list: lambda reach, x: reach.add_all(list.__iter__(x)),
    dict: lambda reach, x: reach.add_items(x),
    set: _read_set,
    frozenset: _read_set,
    int: lambda reach, x: reach.emit(int.__repr__(x)),
    float: lambda reach, x: reach.emit(float.hex(x)),
    str: lambda reach, x: reach.emit(str.__str__(x)),
    bytes: lambda reach, x: reach.emit(bytes(x)),
}

READERS: dict[type, Callable[[Reach, Any], None]] = {
    **{kind: CONTAINERS[kind] for kind in (tuple, list, dict, set, frozenset)},
    types.MappingProxyType: lambda reach, x: reach.add_items(x),
    collections.OrderedDict: lambda reach, x: reach.add_items(x),
    slice: lambda reach, x: reach.add_all((x.start, x.stop, x.step)),
    operator.attrgetter: lambda reach, x: reach.add_all(x.__reduce__()),
    operator.itemgetter: lambda reach, x: reach.add_all(x.__reduce__()),
    operator.methodcaller: lambda reach, x: reach.add_all(x.__reduce__()),
    re.Pattern: lambda reach, x: reach.add_all((x.pattern, x.flags)),
    typing.TypeVar: lambda reach, x: reach.emit(repr(x)),
    inputs.TREE: _read_tree,
    tree_util.DictKey: lambda reach, x: reach.add(x.key),
    tree_util.FlattenedIndexKey: lambda reach, x: reach.add(x.key),
    tree_util.GetAttrKey: lambda reach, x: reach.add(x.name),
    tree_util.SequenceKey: lambda reach, x: reach.add(x.idx),
    inputs.SHARDING: _read_sharding,
}
