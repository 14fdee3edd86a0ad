"""How classes, what is in them, and instances are read for a digest."""

from __future__ import annotations

import collections
import enum
import functools
import sys
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pallas_shim.cache import libraries
from pallas_shim.cache.values import CONTAINERS
from pallas_shim.jax_compat import inputs

if TYPE_CHECKING:
    from pallas_shim.cache.reach import Reach

_CLASS_ATTRIBUTES = frozenset(
    """__abstractmethods__ __annotate__ __annotate_func__ __annotations__ __annotations_cache__
    __dict__ __doc__ __firstlineno__ __module__ __orig_bases__ __parameters__
    __static_attributes__ __weakref__ _abc_impl""".split()
)


def read_class(reach: Reach, kind: Any) -> bool:
    """Reads a class: its bases, and all that is in it."""
    if not isinstance(kind, type):
        return False
    module, name = kind.__module__, kind.__qualname__
    functions = inputs.pytree_functions(kind)
    if functions is not None:
        reach.add_all([functions.to_iter, functions.from_iter])
    if libraries.is_library(module):
        reach.owned(module, name)
        if "<locals>" not in name:
            return True
    elif libraries.is_standard(module) and module != "__main__":
        raise reach.refusal(f"the class {module}.{name} has state that can't be read")
    elif not _made_in_python(kind):
        raise reach.refusal(f"the class {module}.{name} isn't written in Python")
    reach.emit("class", module, name)
    reach.path.append(name)
    reach.add(type(kind))
    reach.add_all(kind.__bases__)
    for attribute, value in vars(kind).items():
        if attribute == "__dataclass_fields__":
            reach.add_all([
                (f.name, repr(f.type), f.default, f.default_factory, f.init, f.kw_only)
                for f in value.values()
            ])  # fmt: skip
        elif attribute not in _CLASS_ATTRIBUTES:
            reach.emit(attribute)
            reach.add(value, attribute)
    reach.path.pop()
    return True


def read_instance(reach: Reach, value: Any) -> bool:
    """Reads an instance of a class that is written in Python: its class, and its state."""
    kind = type(value)
    if kind.__module__ == "typing" or isinstance(value, (types.UnionType, types.GenericAlias)):
        reach.emit("typing", repr(value))
        return True
    if kind.__name__ == "Primitive" and libraries.is_library(kind.__module__):
        raise reach.refusal(f"the primitive {value}, of which JAX keeps rules elsewhere")
    if kind.__module__ == "logging":
        reach.emit("logger", str(value))
        return True
    reach.emit("instance")
    reach.add(kind)
    for base in kind.__mro__:
        if base in CONTAINERS:
            CONTAINERS[base](reach, value)
        elif base is not object and not _made_in_python(base):
            raise reach.refusal(f"a {kind.__module__}.{kind.__qualname__} can't be read")
    for base in kind.__mro__:
        slots = vars(base).get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else slots:
            name = f"_{base.__name__.lstrip('_')}{slot}" if slot.startswith("__") else slot
            if slot not in ("__dict__", "__weakref__"):
                reach.emit(slot)
                reach.add(getattr(value, name, None), f".{slot}")
    if isinstance(getattr(value, "__dict__", None), dict):
        for name, part in vars(value).items():
            reach.emit(name)
            reach.add(part, f".{name}")
    return True


def _made_in_python(kind: type) -> bool:
    """Whether a class statement made it, so that all of an instance's state can be read."""
    module = sys.modules.get(kind.__module__)
    file = getattr(module, "__file__", None)
    in_python = kind.__module__ == "__main__" or (file is not None and file.endswith(".py"))
    # What is written in C has methods of these types.
    in_c = any(
        isinstance(value, _IN_C)
        and kind in (getattr(value, "__objclass__", None), getattr(value, "__self__", None))
        for value in vars(kind).values()
    )
    return in_python and not in_c and bool(kind.__flags__ & _HEAP_TYPE)


_IN_C = (types.WrapperDescriptorType, types.MethodDescriptorType, types.BuiltinFunctionType)
_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE

READERS: dict[type, Callable[[Reach, Any], None]] = {
    property: lambda reach, x: reach.add_all((x.fget, x.fset, x.fdel)),
    classmethod: lambda reach, x: reach.add(x.__func__),
    staticmethod: lambda reach, x: reach.add(x.__func__),
    functools.cached_property: lambda reach, x: reach.add(x.func),
    enum.property: lambda reach, x: reach.add_all((x.fget, x.fset, x.fdel)),
    types.MemberDescriptorType: lambda reach, x: reach.emit(x.__name__),
    types.GetSetDescriptorType: lambda reach, x: reach.emit(x.__name__),
    type(collections.namedtuple("_", "x").x): lambda reach, x: reach.emit(repr(x)),  # type: ignore[attr-defined]
}
