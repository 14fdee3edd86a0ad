"""What a function reaches: all that tracing it could read, as one digest.

A function is its code, what it closes over, its defaults, and the globals that its code names,
each followed in turn: functions, classes and their methods, instances and their state, modules
by the attributes that are asked of them. JAX, NumPy and the like are keyed by their versions,
and the standard library's pure modules by Python's. What can't be read is refused, never left
out: a key that says too little is a wrong number.
"""

from __future__ import annotations

import builtins
import collections
import dis
import enum
import functools
import hashlib
import operator
import re
import sys
import types
import typing
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from pallas_shim.jax_compat import inputs

# Distributions that are known by their versions; their code isn't followed.
_VERSIONED = frozenset({"jax", "jaxlib", "ml_dtypes", "numpy", "opt_einsum", "scipy"})
# Modules of the standard library whose functions depend on nothing but their arguments, and
# some whose effects (a warning, a line in a log) don't change what is computed.
_PURE = frozenset(
    """__future__ _collections_abc _functools _operator abc bisect builtins cmath collections
    collections.abc contextlib copy dataclasses enum fractions functools heapq itertools
    keyword logging math numbers operator re reprlib string textwrap types typing
    warnings""".split()
)
_IMPURE = ("numpy.random",)
# What reads or does more than its arguments say.
_OPAQUE_BUILTINS = frozenset(
    "__import__ breakpoint compile eval exec globals input locals open print vars".split()
)
# Annotations aren't followed, so who reads them can't be followed either.
_ANNOTATIONS = frozenset({"__annotations__", "get_annotations", "get_type_hints"})
_MODULE_ATTRIBUTES = frozenset(
    """__annotations__ __builtins__ __cached__ __doc__ __file__ __loader__ __name__ __package__
    __path__ __spec__""".split()
)
_CLASS_ATTRIBUTES = frozenset(
    """__abstractmethods__ __annotate__ __annotate_func__ __annotations__ __annotations_cache__
    __dict__ __doc__ __firstlineno__ __module__ __orig_bases__ __parameters__
    __static_attributes__ __weakref__ _abc_impl""".split()
)
# Arrays of more bytes than this are refused, not read.
_LARGEST_ARRAY = 64 << 20


class Unkeyable(Exception):
    """A function reaches something whose state can't be read; says what."""


class Reach:
    """A digest of values, and of all that they reach."""

    def __init__(self, under_way: frozenset[int] = frozenset()) -> None:
        self._under_way = under_way  # the jitted functions that reach this one
        self._parts: list[bytes] = []
        self._seen: dict[int, int] = {}
        self._kept: list[Any] = []
        self._path: list[str] = []
        self._versions: set[str] = set()
        self._names: set[str] = set()
        self._numpy_whole = False

    def digest(self) -> str:
        """The digest.

        Raises:
          Unkeyable: NumPy's random numbers may be reached, or annotations.
        """
        if self._numpy_whole and "random" in self._names:
            raise Unkeyable("it may reach numpy.random, whose numbers differ from run to run")
        annotations = _ANNOTATIONS & self._names
        if annotations:
            raise Unkeyable(f"it reads annotations by {', '.join(sorted(annotations))}")
        for name in sorted(self._versions):
            self._emit("version", name, _version(name))
        return hashlib.sha256(b"".join(self._parts)).hexdigest()

    def add(self, value: Any, what: str = "") -> None:
        """Adds a value; ``what`` names it in messages.

        Raises:
          Unkeyable: it can't be read.
        """
        if what:
            self._path.append(what)
        try:
            self._add(value)
        except RecursionError:
            raise self._refuse("what it holds is nested too deeply") from None
        if what:
            self._path.pop()

    def _refuse(self, reason: str) -> Unkeyable:
        where = " of ".join(reversed(self._path[-3:]))
        return Unkeyable(f"{where}: {reason}" if where else reason)

    def _emit(self, *parts: str | bytes) -> None:
        for part in parts:
            data = part if isinstance(part, bytes) else part.encode("utf-8", "surrogatepass")
            self._parts.append(len(data).to_bytes(6, "little") + data)

    def _add(self, value: Any) -> None:
        kind = type(value)
        plain = _PLAIN.get(kind)
        if plain is not None:
            self._emit(kind.__name__, plain(value))
            return
        if kind not in _UNCHANGING:
            seen = self._seen.get(id(value))
            if seen is not None:
                self._emit("again", str(seen))
                return
            self._seen[id(value)] = len(self._seen)
            self._kept.append(value)
        read = _READERS.get(kind)
        if read is not None:
            self._emit(kind.__name__)
            read(self, value)
        elif isinstance(value, type):
            self._class(value)
        elif isinstance(value, np.dtype):
            self._emit("dtype", value.name if value.fields is None else str(value))
        elif isinstance(value, np.generic):
            self._emit("scalar", str(value.dtype), value.tobytes())
        elif isinstance(value, np.ndarray):
            self._array(value)
        elif (jitted := inputs.jitted(value)) is not None:
            self._emit("jit")
            self.jitted(*jitted)
        elif (captured := inputs.captured_value(value)) is not None:
            self._emit("jax.Array", str(value.aval))
            self._array(captured)
        elif kind is np.ufunc:
            name = str(getattr(value, "__name__", None))
            if getattr(np, name, None) is not value:
                raise self._refuse(f"the ufunc {name} isn't one of NumPy's own")
            self._owned("numpy", name)
        elif _named_in_library(value) and self._is_own(value):
            self._owned(value.__module__, value.__name__)
        else:
            self._instance(value)

    # -- containers and arrays --------------------------------------------------------------

    def _sequence(self, values: Any) -> None:
        self._emit(str(len(values)))
        for value in values:
            self._add(value)

    def _mapping(self, mapping: Any) -> None:
        self._emit(str(len(mapping)))
        for key, value in mapping.items():
            self._add(key)
            self.add(value, f"[{key!r}]" if isinstance(key, (str, int)) else "")

    def _set(self, values: Any) -> None:
        digests = []
        for value in values:
            if type(value) not in _PLAIN:
                raise self._refuse(f"a set of {type(value).__name__}")
            digests.append(f"{type(value).__name__} {value!r}")
        self._sequence(sorted(digests))

    def _array(self, array: np.ndarray) -> None:
        if array.dtype.hasobject or array.nbytes > _LARGEST_ARRAY or type(array) is not np.ndarray:
            raise self._refuse(f"a {type(array).__name__} of {array.nbytes} bytes, {array.dtype}")
        self._emit("array", str(array.dtype), str(array.shape), array.tobytes())

    # -- functions --------------------------------------------------------------------------

    def jitted(self, function: Any, jit_info: Any) -> None:
        """Adds a function and what jit was told of it.

        Raises:
          Unkeyable: it can't be read, or has changed since it was first met: JAX may go on
            with what it traced then.
        """
        name = getattr(function, "__qualname__", "")
        options = inputs.jit_options(jit_info)
        if options is None:
            raise self._refuse(f"jit was told where the arguments of {name} lie")
        if id(function) in self._under_way:
            self._emit("recursive", name)
            return
        reach = Reach(self._under_way | {id(function)})
        reach.add(options)
        reach.add(function, name)
        digest = reach.digest()
        first = _first_met(function, digest)
        if first != digest:
            raise self._refuse(f"what {name} reaches has changed since it was first called")
        self._emit("jitted", digest)

    def _function(self, function: types.FunctionType) -> None:
        name, code = function.__globals__.get("__name__", ""), function.__code__
        self._path.append(f"{name}.{code.co_qualname}")
        cells = [_contents(cell) for cell in function.__closure__ or ()]
        if self._owned_by_library(function):
            self._owned(name, code.co_qualname)
            self._emit(str(code.co_firstlineno), code.co_code)
            if "<locals>" in code.co_qualname:
                self._sequence([cells, function.__defaults__, function.__kwdefaults__])
                self._mapping(function.__dict__)
        else:
            if _is_standard(name) and name != "__main__":
                raise self._refuse("its results may depend on more than its arguments")
            self._code(code, function.__globals__)
            self._sequence([cells, function.__defaults__, function.__kwdefaults__])
            self._mapping(function.__dict__)
        self._path.pop()

    def _owned_by_library(self, function: types.FunctionType) -> bool:
        name = function.__globals__.get("__name__", "")
        module = sys.modules.get(name)
        return _is_library(name) and vars(module) is function.__globals__

    def _owned(self, module: str, name: str) -> None:
        """Adds what a library's version says all of."""
        if module.startswith(_IMPURE):
            raise self._refuse(f"{module}.{name}, whose results differ from run to run")
        top = module.partition(".")[0]
        if top in _VERSIONED:
            self._versions.add(top)
        self._emit("named", module, name)

    def _code(self, code: types.CodeType, namespace: dict[str, Any]) -> None:
        self._names.update(code.co_names)
        self._emit(
            code.co_filename, code.co_qualname, code.co_code, code.co_linetable,
            code.co_exceptiontable,
            repr((
                code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags,
                code.co_firstlineno, code.co_names, code.co_varnames, code.co_freevars,
                code.co_cellvars,
            )),
        )  # fmt: skip
        for const in code.co_consts:
            if isinstance(const, types.CodeType):
                self._code(const, namespace)
            else:
                self._add(const)
        for name, attributes in _globals_read(code):
            if name is None:
                self._imported(attributes[0])
            elif attributes is None:
                raise self._refuse(f"it sets the global {name} while it is traced")
            else:
                self._global(name, attributes, namespace)

    def _global(self, name: str, attributes: list[str], namespace: dict[str, Any]) -> None:
        self._emit("global", name)
        if name in namespace:
            value = namespace[name]
        elif hasattr(builtins, name):
            value = getattr(builtins, name)
            if name in _OPAQUE_BUILTINS:
                raise self._refuse(f"it calls {name}")
        else:
            self._emit("absent")
            return
        for position, attribute in enumerate(attributes):
            if not isinstance(value, types.ModuleType):
                break
            if _is_library(value.__name__):
                self._library_chain(value, attributes[position:])
                return
            if _is_standard(value.__name__):
                raise self._refuse(f"it reaches the module {value.__name__}")
            name = f"{value.__name__}.{attribute}"
            self._emit("attribute", name)
            if attribute not in vars(value):
                if "__getattr__" in vars(value):
                    raise self._refuse(f"{name} is made by the module's __getattr__")
                self._emit("absent")
                return
            value = vars(value)[attribute]
        self.add(value, name)

    def _library_chain(self, module: types.ModuleType, attributes: list[str]) -> None:
        """Adds an attribute of a library's module, its own or one that was put there."""
        value: Any = module
        for attribute in attributes:
            if not isinstance(value, types.ModuleType):
                break
            self._owned(value.__name__, attribute)
            try:
                value = getattr(value, attribute)
            except AttributeError:
                self._emit("absent")
                return
            if isinstance(value, types.ModuleType) and not _is_library(value.__name__):
                self._add(value)
                return
        if isinstance(value, types.ModuleType):
            self._add(value)
        elif type(value) in _DATA or not self._is_own(value):
            self.add(value, attributes[-1])
        else:  # it may be in the place of another
            kind = value if isinstance(value, type) else type(value)
            name = getattr(value, "__qualname__", None) or getattr(value, "__name__", "")
            self._emit(str(getattr(value, "__module__", "")), str(name), kind.__qualname__)

    def _is_own(self, value: Any) -> bool:
        """Whether an attribute of a library is a library's own, not made by others."""
        while hasattr(value, "__wrapped__"):
            value = value.__wrapped__
        if isinstance(value, types.FunctionType):
            local = "<locals>" in value.__code__.co_qualname  # it may hold what others gave it
            return self._owned_by_library(value) and not local
        if isinstance(value, (type, types.BuiltinFunctionType)):
            return _is_library(getattr(value, "__module__", None) or "builtins")
        return type(value).__module__.partition(".")[0] in _VERSIONED

    def _imported(self, name: str) -> None:
        module = name.partition(".")[0]
        if not _is_library(name):
            raise self._refuse(f"it imports {name or 'a module'} while it is traced")
        self._emit("import", name)
        self._numpy_whole |= module == "numpy"
        if module in _VERSIONED:
            self._versions.add(module)

    def _module(self, module: types.ModuleType) -> None:
        """A module that is not asked for a known attribute."""
        name = module.__name__
        if name.startswith(_IMPURE) or (_is_standard(name) and not _is_library(name)):
            raise self._refuse(f"it reaches the module {name}")
        if _is_library(name):
            self._imported(name)
            return
        self._emit(name)
        for attribute, value in vars(module).items():
            if attribute not in _MODULE_ATTRIBUTES:
                self._emit(attribute)
                self.add(value, f"{name}.{attribute}")

    # -- methods, classes and instances ---------------------------------------------------------

    def _builtin(self, function: Any) -> None:
        owner = getattr(function, "__self__", None)
        module = getattr(function, "__module__", None) or ""
        if owner is not None and not isinstance(owner, types.ModuleType):
            self._emit(function.__qualname__)
            self._add(owner)
        elif function.__name__ in _OPAQUE_BUILTINS and module == "builtins":
            raise self._refuse(f"it reaches {function.__name__}")
        elif module and not _is_library(module):
            raise self._refuse(f"it reaches {module}.{function.__name__}")
        else:
            self._owned(module or "builtins", function.__qualname__)

    def _class(self, kind: type) -> None:
        module, name = kind.__module__, kind.__qualname__
        if _is_library(module):
            self._owned(module, name)
            if "<locals>" not in name:
                return
        elif _is_standard(module) and module != "__main__":
            raise self._refuse(f"the class {module}.{name} has state that can't be read")
        elif not _made_in_python(kind):
            raise self._refuse(f"the class {module}.{name} isn't written in Python")
        self._emit("class", module, name)
        self._path.append(name)
        self._add(type(kind))
        self._sequence(kind.__bases__)
        for attribute, value in vars(kind).items():
            if attribute == "__dataclass_fields__":
                self._sequence([
                    (f.name, repr(f.type), f.default, f.default_factory, f.init, f.kw_only)
                    for f in value.values()
                ])  # fmt: skip
            elif attribute not in _CLASS_ATTRIBUTES:
                self._emit(attribute)
                self.add(value, attribute)
        functions = inputs.pytree_functions(kind)
        if functions is not None:
            self._sequence([functions.to_iter, functions.from_iter])
        self._path.pop()

    def _property(self, value: Any) -> None:
        self._sequence([value.fget, value.fset, value.fdel])

    def _instance(self, value: Any) -> None:
        kind = type(value)
        if kind.__module__ == "typing" or isinstance(value, (types.UnionType, types.GenericAlias)):
            self._emit("typing", repr(value))
            return
        if kind.__name__ == "Primitive" and _is_library(kind.__module__):
            raise self._refuse(f"the primitive {value}, of which JAX keeps rules elsewhere")
        if kind.__module__ == "logging":
            self._emit("logger", str(value))
            return
        self._emit("instance")
        self.add(kind)
        for base in kind.__mro__:
            if base in _CONTAINERS:
                _CONTAINERS[base](self, value)
            elif base is not object and not _made_in_python(base):
                raise self._refuse(f"a {kind.__module__}.{kind.__qualname__} can't be read")
        for base in kind.__mro__:
            slots = vars(base).get("__slots__", ())
            for slot in (slots,) if isinstance(slots, str) else slots:
                name = f"_{base.__name__.lstrip('_')}{slot}" if slot.startswith("__") else slot
                if slot not in ("__dict__", "__weakref__"):
                    self._emit(slot)
                    self.add(getattr(value, name, None), f".{slot}")
        if isinstance(getattr(value, "__dict__", None), dict):
            for name, part in vars(value).items():
                self._emit(name)
                self.add(part, f".{name}")


_met: dict[int, tuple[weakref.ref[Any], str]] = {}


def _first_met(function: Any, digest: str) -> str:
    """The digest of a jitted function when it was first met."""
    known = _met.get(id(function))
    if known is None or known[0]() is not function:
        known = _met[id(function)] = (weakref.ref(function), digest)
    return known[1]


# -- what is known -------------------------------------------------------------------------------


def _is_library(module: str) -> bool:
    top = module.partition(".")[0]
    return (top in _VERSIONED and not module.startswith(_IMPURE)) or module in _PURE


def _is_standard(module: str) -> bool:
    return module.partition(".")[0] in sys.stdlib_module_names


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


def _named_in_library(value: Any) -> bool:
    module, name = getattr(value, "__module__", None), getattr(value, "__name__", None)
    if not isinstance(module, str) or not isinstance(name, str) or not _is_library(module):
        return False
    return getattr(sys.modules.get(module), name, None) is value


@functools.cache
def _version(library: str) -> str:
    module = sys.modules[library]
    path = module.__file__ or ""
    if "site-packages" not in path and "dist-packages" not in path:
        raise Unkeyable(f"{library} isn't installed but lies in {path}, where it may change")
    return str(module.__version__)


def _contents(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return Ellipsis, "empty"


# -- what code reads ----------------------------------------------------------------------------

_LOAD_GLOBAL, _IMPORT_NAME = dis.opmap["LOAD_GLOBAL"], dis.opmap["IMPORT_NAME"]
_LOAD_NAMES = frozenset(
    dis.opmap[name] for name in ("LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS") if name in dis.opmap
)
_STORES = frozenset((dis.opmap["STORE_GLOBAL"], dis.opmap["DELETE_GLOBAL"]))
_LOAD_ATTR, _LOAD_METHOD = dis.opmap["LOAD_ATTR"], dis.opmap.get("LOAD_METHOD")
# From Python 3.12 on, the lowest bit of LOAD_ATTR's argument says whether a method is loaded.
_ATTR_SHIFT = 0 if sys.version_info < (3, 12) else 1


def _globals_read(code: types.CodeType) -> Iterator[tuple[str | None, Any]]:
    """The globals that code names, each with the attributes that it then asks for in turn.

    ``(name, None)`` is a global that is set; ``(None, [module])`` an import.
    """
    names, data = code.co_names, code.co_code
    found: dict[tuple[str, ...], None] = {}
    chain: list[str] = []
    high = 0
    for at in range(0, len(data), 2):
        operation, argument = data[at], high | data[at + 1]
        if operation == 0:  # room for a cache
            continue
        if operation == dis.EXTENDED_ARG:
            high = argument << 8
            continue
        high = 0
        if chain and operation == _LOAD_ATTR:
            chain.append(names[argument >> _ATTR_SHIFT])
            continue
        if chain and operation == _LOAD_METHOD:
            chain.append(names[argument])
            continue
        if chain:
            found[tuple(chain)] = None
            chain = []
        if operation == _LOAD_GLOBAL:
            chain = [names[argument >> 1]]
        elif operation in _LOAD_NAMES:
            chain = [names[argument]]
        elif operation == _IMPORT_NAME:
            yield None, [names[argument]]
        elif operation in _STORES:
            yield names[argument], None
    for name, *attributes in found:
        yield name, attributes


# -- how values are read --------------------------------------------------------------------------

_PLAIN: dict[type, Callable[[Any], str | bytes]] = {
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
_UNCHANGING = frozenset({tuple, frozenset, slice, types.MethodType})
# What a user could have put into a library's module in the place of what was there.
_DATA = frozenset({*_PLAIN, tuple, list, dict, set, frozenset, np.ndarray})

_CONTAINERS: dict[type, Callable[[Reach, Any], None]] = {
    tuple: lambda reach, x: reach._sequence(tuple.__getitem__(x, slice(None))),
    list: lambda reach, x: reach._sequence(list.__getitem__(x, slice(None))),
    dict: Reach._mapping,
    set: Reach._set,
    frozenset: Reach._set,
    int: lambda reach, x: reach._emit(int.__repr__(x)),
    float: lambda reach, x: reach._emit(float.hex(x)),
    str: lambda reach, x: reach._emit(str.__str__(x)),
    bytes: lambda reach, x: reach._emit(bytes(x)),
}


def _read_cached(reach: Reach, function: Any) -> None:
    if function.cache_info().currsize and not _is_library(function.__module__):
        raise reach._refuse(f"{function.__qualname__} holds results of earlier calls")
    reach._add(function.__wrapped__)


_READERS: dict[type, Callable[[Reach, Any], None]] = {
    tuple: Reach._sequence,
    list: Reach._sequence,
    dict: Reach._mapping,
    types.MappingProxyType: Reach._mapping,
    collections.OrderedDict: Reach._mapping,
    set: Reach._set,
    frozenset: Reach._set,
    slice: lambda reach, x: reach._sequence((x.start, x.stop, x.step)),
    types.FunctionType: Reach._function,
    types.MethodType: lambda reach, x: reach._sequence((x.__func__, x.__self__)),
    types.BuiltinFunctionType: Reach._builtin,
    types.MethodDescriptorType: lambda reach, x: reach._sequence((x.__name__, x.__objclass__)),
    types.WrapperDescriptorType: lambda reach, x: reach._sequence((x.__name__, x.__objclass__)),
    types.ClassMethodDescriptorType: lambda reach, x: reach._sequence((x.__name__, x.__objclass__)),
    types.MethodWrapperType: lambda reach, x: reach._sequence((x.__name__, x.__self__)),
    types.MemberDescriptorType: lambda reach, x: reach._emit(x.__name__),
    types.GetSetDescriptorType: lambda reach, x: reach._emit(x.__name__),
    types.ModuleType: Reach._module,
    property: Reach._property,
    classmethod: lambda reach, x: reach._add(x.__func__),
    staticmethod: lambda reach, x: reach._add(x.__func__),
    functools.cached_property: lambda reach, x: reach._add(x.func),
    functools.partial: lambda reach, x: reach._sequence((x.func, x.args, x.keywords, vars(x))),
    type(functools.lru_cache(len)): _read_cached,
    operator.attrgetter: lambda reach, x: reach._sequence(x.__reduce__()),
    operator.itemgetter: lambda reach, x: reach._sequence(x.__reduce__()),
    operator.methodcaller: lambda reach, x: reach._sequence(x.__reduce__()),
    re.Pattern: lambda reach, x: reach._sequence((x.pattern, x.flags)),
    typing.TypeVar: lambda reach, x: reach._emit(repr(x)),
    type(collections.namedtuple("_", "x").x): lambda reach, x: reach._emit(repr(x)),  # type: ignore[attr-defined]
    enum.property: lambda reach, x: reach._sequence((x.fget, x.fset, x.fdel)),
}
