"""Readers of plain data, containers and arrays, for a digest."""

from __future__ import annotations

import collections
import fractions
import functools
import itertools
import operator
import re
import struct
import types
import typing
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from jax import tree_util

from pallas_shim.cache import libraries
from pallas_shim.cache.fingerprint import Fingerprint, reader, reader_if
from pallas_shim.jax_compat import inputs

# Larger arrays, in bytes, are refused.
_LARGEST_ARRAY = 64 << 20

# Types of data that a user may have put into a library's module, in place of the library's.
DATA = frozenset(
    {bool, int, float, complex, str, bytes, range, type(None), tuple, list, dict, set, frozenset,
     np.ndarray}
)  # fmt: skip


@reader(int, range, type(...), type(NotImplemented))
def _read_plain(fingerprint: Fingerprint, value: Any) -> None:
    fingerprint.emit(repr(value))


@reader(str)
def _read_text(fingerprint: Fingerprint, text: str) -> None:
    fingerprint.emit(text)
    fingerprint.found.texts.add(text)


@reader(bytes, bytearray)
def _read_bytes(fingerprint: Fingerprint, data: bytes) -> None:
    fingerprint.emit(bytes(data))


@reader(float)
def _read_float(fingerprint: Fingerprint, value: float) -> None:
    fingerprint.emit(struct.pack("<d", value))


@reader(complex)
def _read_complex(fingerprint: Fingerprint, value: complex) -> None:
    fingerprint.emit(struct.pack("<dd", value.real, value.imag))


@reader(tuple, list)
def _read_sequence(fingerprint: Fingerprint, values: Any) -> None:
    fingerprint.add_all(values)


@reader(dict, types.MappingProxyType)
def _read_mapping(fingerprint: Fingerprint, mapping: Any) -> None:
    fingerprint.add_items(mapping)


@reader(collections.OrderedDict, collections.Counter)
def _read_mapping_with_variables(fingerprint: Fingerprint, mapping: Any) -> None:
    fingerprint.add_items(mapping)
    fingerprint.add_variables(vars(mapping))


@reader(collections.defaultdict)
def _read_default(fingerprint: Fingerprint, mapping: Any) -> None:
    fingerprint.add(mapping.default_factory)
    fingerprint.add_items(mapping)


@reader(collections.deque)
def _read_deque(fingerprint: Fingerprint, values: Any) -> None:
    fingerprint.add(values.maxlen)
    fingerprint.add_all(values)


@reader(collections.ChainMap)
def _read_chain(fingerprint: Fingerprint, mapping: Any) -> None:
    fingerprint.add_variables(vars(mapping))


@reader(types.SimpleNamespace)
def _read_namespace(fingerprint: Fingerprint, namespace: Any) -> None:
    fingerprint.add_variables(vars(namespace))


@reader(set, frozenset)
def _read_set(fingerprint: Fingerprint, values: Any) -> None:
    """Refuses a set of several values, because its order may differ.

    The code's own sets are read elsewhere: `rules` allows only uses of these without an order. Any
    code may iterate over other sets.
    """
    if len(values) > 1:
        raise fingerprint.refusal("a set, whose order may differ")
    fingerprint.add_all(values)


def read_in_any_order(fingerprint: Fingerprint, values: Iterable[Any]) -> None:
    """Reads a set whose order has no effect."""
    digests = []
    for value in values:
        inner = Fingerprint(outer=fingerprint)
        inner.add(value)
        digests.append(inner.digest())
    fingerprint.emit("in any order", *sorted(digests))


@reader(object)
def _read_object(fingerprint: Fingerprint, value: object) -> None:
    """Reads a plain object, which has nothing but its identity."""


@reader(slice)
def _read_slice(fingerprint: Fingerprint, value: slice) -> None:
    fingerprint.add_all((value.start, value.stop, value.step))


@reader(fractions.Fraction)
def _read_fraction(fingerprint: Fingerprint, value: fractions.Fraction) -> None:
    fingerprint.add_all((value.numerator, value.denominator))


@reader(operator.itemgetter, operator.attrgetter, operator.methodcaller)
def _read_getter(fingerprint: Fingerprint, getter: Any) -> None:
    made = getter.__reduce__()  # a partial, if the getter has keywords
    names = made[1][:1] if type(getter) is operator.methodcaller else made[1]
    if type(getter) is not operator.itemgetter:
        for name in names:
            fingerprint.found.attributes.update(str(name).split("."))
    fingerprint.add(made[1])
    if type(made[0]) is functools.partial:
        fingerprint.add_all((made[0].args, made[0].keywords))
        fingerprint.found.attributes.update(made[0].args[:1])


@reader(re.Pattern)
def _read_pattern(fingerprint: Fingerprint, pattern: re.Pattern[str]) -> None:
    fingerprint.add_all((pattern.pattern, pattern.flags))


@reader(typing.TypeVar)
def _read_type_variable(fingerprint: Fingerprint, variable: Any) -> None:
    fingerprint.emit(repr(variable))
    fingerprint.add_all((variable.__bound__, variable.__constraints__))


def _is_of_typing(value: Any) -> bool:
    kind = type(value)
    if isinstance(value, type):
        return False
    return kind.__module__ == "typing" or kind in (types.UnionType, types.GenericAlias)


@reader_if(_is_of_typing)
def _read_of_typing(fingerprint: Fingerprint, value: Any) -> None:
    fingerprint.emit("typing", type(value).__qualname__, repr(value))
    fingerprint.add(getattr(value, "__origin__", None))
    fingerprint.add_all(getattr(value, "__args__", ()))


# -- numbers and arrays -----------------------------------------------------------------------


def _read_array(fingerprint: Fingerprint, array: np.ndarray) -> None:
    if array.dtype.hasobject or array.nbytes > _LARGEST_ARRAY or type(array) is not np.ndarray:
        kind = type(array).__name__
        raise fingerprint.refusal(f"a {kind} of {array.nbytes} bytes, {array.dtype}")
    fingerprint.add(array.dtype)
    fingerprint.emit("array", str(array.shape), str(array.strides), repr(array.flags))
    fingerprint.emit(array.tobytes())


@reader_if(lambda value: isinstance(value, np.dtype))
def _read_dtype(fingerprint: Fingerprint, dtype: np.dtype) -> None:
    if dtype.metadata or (dtype.fields and any(t[0].metadata for t in dtype.fields.values())):
        raise fingerprint.refusal("a dtype with metadata")
    if dtype.kind in "mM":
        raise fingerprint.refusal("a dtype for dates or times")
    fingerprint.emit("dtype", dtype.str, repr(dtype), dtype.name, repr(dtype.isalignedstruct))


@reader_if(lambda value: isinstance(value, np.generic))
def _read_scalar(fingerprint: Fingerprint, value: np.generic) -> None:
    if type(value).__module__ not in ("numpy", "ml_dtypes") or value.dtype.hasobject:
        raise fingerprint.refusal(f"a {type(value).__qualname__}")
    fingerprint.emit("scalar", type(value).__qualname__)
    fingerprint.add(value.dtype)
    fingerprint.emit(value.tobytes())


@reader_if(lambda value: isinstance(value, np.ndarray))
def _read_numpy_array(fingerprint: Fingerprint, array: np.ndarray) -> None:
    _read_array(fingerprint, array)


@reader_if(lambda value: inputs.captured_value(value) is not None)
def _read_jax_array(fingerprint: Fingerprint, array: Any) -> None:
    value = inputs.captured_value(array)
    assert value is not None
    fingerprint.emit("jax.Array", str(array.aval), str(value.dtype), str(value.shape))
    if value.nbytes > _LARGEST_ARRAY:
        raise fingerprint.refusal(f"an array of {value.nbytes} bytes")
    fingerprint.emit(value.tobytes())


@reader_if(lambda value: isinstance(value, np.ufunc))
def _read_ufunc(fingerprint: Fingerprint, ufunc: np.ufunc) -> None:
    home = libraries.home(ufunc)
    if home is None:
        name = getattr(ufunc, "__name__", None)
        raise fingerprint.refusal(f"the ufunc {name} isn't one of NumPy's or SciPy's own")
    fingerprint.owned(*home, ufunc)


# -- what JAX makes ---------------------------------------------------------------------------


@reader(inputs.TREE)
def _read_tree(fingerprint: Fingerprint, tree: Any) -> None:
    """Reads the structure of a container: the types of its nodes, and their data, such as keys."""
    if not inputs.is_ordinary_tree(tree):
        raise fingerprint.refusal("a PyTreeDef of a registry of its own")
    fingerprint.add(inputs.tree_parts(tree))


@reader(inputs.SHARDING)
def _read_sharding(fingerprint: Fingerprint, sharding: Any) -> None:
    """Reads the sharding in a type, if it is on no mesh."""
    parts = inputs.sharding_without_mesh(sharding)
    if parts is None:
        raise fingerprint.refusal("an array for several devices")
    fingerprint.add(parts)


for _kind, _part in (
    (tree_util.DictKey, "key"), (tree_util.FlattenedIndexKey, "key"),
    (tree_util.GetAttrKey, "name"), (tree_util.SequenceKey, "idx"),
):  # fmt: skip
    reader(_kind)(lambda fingerprint, x, _part=_part: fingerprint.add(getattr(x, _part)))

# Readers of the contents of containers, for derived types.
CONTAINERS: dict[type, Callable[[Fingerprint, Any], None]] = {
    tuple: lambda fingerprint, x: fingerprint.add_all(tuple.__iter__(x)),
    list: lambda fingerprint, x: fingerprint.add_all(list.__iter__(x)),
    dict: lambda fingerprint, x: fingerprint.add_all(itertools.chain.from_iterable(dict.items(x))),
    int: lambda fingerprint, x: fingerprint.emit(int.__repr__(x)),
    float: lambda fingerprint, x: fingerprint.emit(struct.pack("<d", float.__float__(x))),
    str: lambda fingerprint, x: _read_text(fingerprint, str.__str__(x)),
    bytes: lambda fingerprint, x: fingerprint.emit(bytes.__getitem__(x, slice(None))),
}
