"""Readers of classes, their contents and instances, for a fingerprint."""

from __future__ import annotations

import collections
import enum
import functools
import sys
import types
from typing import Any

from pallas_shim.cache import libraries
from pallas_shim.cache.fingerprint import Fingerprint, reader, reader_if, reader_otherwise
from pallas_shim.cache.values import CONTAINERS
from pallas_shim.jax_compat import inputs

# Attributes that code may not read, or that add nothing to what is read otherwise.
_CLASS_ATTRIBUTES = frozenset(
    """__abstractmethods__ __annotate__ __annotate_func__ __annotations__ __annotations_cache__
    __dict__ __firstlineno__ __module__ __orig_bases__ __parameters__
    __static_attributes__ __weakref__ _abc_impl __type_params__""".split()
)


@reader_if(lambda value: isinstance(value, type))
def _read_class(fingerprint: Fingerprint, kind: type) -> None:
    """Reads a class: its bases, and all its attributes."""
    module, name = kind.__module__, kind.__qualname__
    functions = inputs.pytree_functions(kind)
    if functions is not None:
        for function in (functions.to_iter, functions.from_iter):
            identity = libraries.identity(function)
            if identity is not None and libraries.is_library(module):
                fingerprint.emit(identity)
            else:
                fingerprint.add(function)
    if libraries.is_library(module):
        fingerprint.owned(module, name, kind)
        if "<locals>" not in name:
            if libraries.home(kind) is None and not libraries.is_public(kind):
                raise fingerprint.refusal(f"{module}.{name} is another class than {name} there")
            return
    elif libraries.is_standard(module) and module != "__main__":
        raise fingerprint.refusal(f"the class {module}.{name} has state that can't be read")
    elif not _made_in_python(kind):
        raise fingerprint.refusal(f"the class {module}.{name} isn't written in Python")
    fingerprint.emit("class", module, name, kind.__name__)
    fingerprint.path.append(name)
    fingerprint.add(type(kind))
    fingerprint.add_registered(kind)
    for base in kind.__bases__:
        if libraries.is_library(base.__module__) and libraries.home(base) is not None:
            fingerprint.of_library(base)
        else:
            fingerprint.add(base)
    fingerprint.found.defined.update(vars(kind))
    for attribute, value in vars(kind).items():
        if attribute == "__dataclass_fields__":
            fingerprint.found.defined.update(value)
            fingerprint.add_all([
                (f.name, repr(f.type), f.default, f.default_factory, f.init, f.repr, f.hash,
                 f.compare, f.kw_only, f.metadata)
                for f in value.values()
            ])  # fmt: skip
        elif attribute == "_value2member_map_" and isinstance(kind, enum.EnumMeta):
            _read_values_of_enum(fingerprint, kind, value)
        elif attribute not in _CLASS_ATTRIBUTES:
            fingerprint.emit(attribute)
            # Code can't name a special method, and only an enum's `__repr__` uses `_value_repr_`.
            if type(value) in _METHODS and attribute.startswith(("__", "_value_repr_")):
                fingerprint.emit(value.__name__)
                fingerprint.of_library(value.__objclass__)
            else:
                fingerprint.add(value, attribute)
    fingerprint.path.pop()


def _read_values_of_enum(
    fingerprint: Fingerprint, kind: enum.EnumMeta, members: dict[Any, Any]
) -> None:
    """Reads the members by their values, without those that Python adds when flags are combined."""
    named = set(map(id, kind.__members__.values()))
    for member in members.values():
        if id(member) not in named and not _OF_FLAGS.issuperset(vars(member)):
            raise fingerprint.refusal("combined flags with attributes of their own")
    fingerprint.emit("_value2member_map_")
    fingerprint.add_items({k: m for k, m in members.items() if id(m) in named})


_OF_FLAGS = frozenset({"_name_", "_value_", "_inverted_", "__objclass__", "_sort_order_"})


@reader_otherwise
def _read_instance(fingerprint: Fingerprint, value: Any) -> None:
    """Reads an instance of a class written in Python: its class and its state."""
    kind = type(value)
    if inputs.is_primitive(value):
        raise fingerprint.refusal(f"the primitive {value}, of which JAX keeps rules elsewhere")
    if libraries.is_standard(kind.__module__) and kind.__module__ not in ("__main__", *_READ):
        raise fingerprint.refusal(f"a {kind.__module__}.{kind.__qualname__} can't be read")
    fingerprint.emit("instance")
    if libraries.identity(kind) is not None and libraries.home(kind) is not None:
        if not libraries.is_plain_class(kind):
            raise fingerprint.refusal(f"a {kind.__module__}.{kind.__qualname__} can't be read")
        fingerprint.of_library(kind)
    else:
        fingerprint.add(kind)
    for base in kind.__mro__:
        if base in CONTAINERS:
            CONTAINERS[base](fingerprint, value)
        elif base is not object and not _made_in_python(base):
            raise fingerprint.refusal(f"a {kind.__module__}.{kind.__qualname__} can't be read")
    for base in kind.__mro__:
        slots = vars(base).get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else slots:
            name = f"_{base.__name__.lstrip('_')}{slot}" if slot.startswith("__") else slot
            if slot not in ("__dict__", "__weakref__"):
                fingerprint.emit(slot)
                member: Any = vars(base).get(name)
                if isinstance(member, types.MemberDescriptorType):
                    try:
                        fingerprint.add(member.__get__(value), f".{slot}")
                    except AttributeError:
                        fingerprint.emit("unset")
                else:
                    fingerprint.emit("hidden")
    try:
        state = object.__getattribute__(value, "__dict__")
    except AttributeError:
        return
    if type(state) is not dict:
        raise fingerprint.refusal(f"the variables of a {kind.__qualname__} can't be read")
    fingerprint.add_variables(state)


_METHODS = (types.WrapperDescriptorType, types.MethodDescriptorType)
# Modules of the standard library whose instances keep all their state in attributes.
_READ = ("dataclasses", "enum")


def _made_in_python(kind: type) -> bool:
    """Whether a class statement made the class, so that all state of an instance can be read."""
    module = sys.modules.get(kind.__module__)
    file = getattr(module, "__file__", None)
    in_python = kind.__module__ == "__main__" or (file is not None and file.endswith(".py"))
    # A class written in C has methods of these types.
    in_c = any(
        isinstance(value, _IN_C)
        and kind in (getattr(value, "__objclass__", None), getattr(value, "__self__", None))
        for value in vars(kind).values()
    )
    return in_python and not in_c and bool(kind.__flags__ & _HEAP_TYPE)


_IN_C = (types.WrapperDescriptorType, types.MethodDescriptorType, types.BuiltinFunctionType)
_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE


@reader(property, enum.property)
def _read_property(fingerprint: Fingerprint, value: Any) -> None:
    fingerprint.add_all((value.fget, value.fset, value.fdel, value.__doc__))


@reader(classmethod, staticmethod)
def _read_wrapped_method(fingerprint: Fingerprint, value: Any) -> None:
    fingerprint.add(value.__func__)


@reader(functools.cached_property)
def _read_cached_property(fingerprint: Fingerprint, value: Any) -> None:
    fingerprint.add_all((value.func, value.attrname))


@reader(functools.partialmethod)
def _read_partial_method(fingerprint: Fingerprint, value: Any) -> None:
    fingerprint.add_all((value.func, value.args, value.keywords))


@reader(types.MemberDescriptorType, types.GetSetDescriptorType)
def _read_descriptor(fingerprint: Fingerprint, value: Any) -> None:
    fingerprint.emit(value.__name__)


@reader(type(collections.namedtuple("_", "x").x))  # type: ignore[attr-defined]
def _read_field(fingerprint: Fingerprint, value: Any) -> None:
    fingerprint.emit(repr(value.__reduce__()[1]), value.__doc__ or "")
