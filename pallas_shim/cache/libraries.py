"""Tells which code is fully described by its library's version, so that it need not be read."""

from __future__ import annotations

import enum
import functools
import operator
import sys
import types
from typing import Any

import numpy as np

from pallas_shim.cache import pure
from pallas_shim.cache.bytecode import contents
from pallas_shim.jax_compat import inputs

# Distributions that are keyed by their versions. Their code isn't followed.
VERSIONED = frozenset({"jax", "jaxlib", "ml_dtypes", "numpy", "opt_einsum", "scipy"})
# Names in the standard library whose results depend only on their arguments, by module. `warn` is
# among them, because its effects don't change what is computed.
_STANDARD = {
    "_abc": "*", "_collections_abc": "*", "_functools": "*", "_operator": "*",
    "math": "*", "cmath": "*", "numbers": "*", "bisect": "*", "heapq": "*",
    "collections.abc": "*",
    "abc": "ABC ABCMeta abstractmethod",
    "collections": "ChainMap Counter OrderedDict defaultdict deque namedtuple",
    "contextlib": """AbstractContextManager ContextDecorator ExitStack _GeneratorContextManager
        contextmanager nullcontext suppress""",
    "copy": "copy deepcopy replace",
    "dataclasses": """FrozenInstanceError InitVar KW_ONLY MISSING _MISSING_TYPE asdict astuple
        _recursive_repr _replace dataclass field is_dataclass replace""",
    "_warnings": "warn",
    "enum": """CONFORM EJECT KEEP STRICT FlagBoundary Enum EnumMeta EnumType Flag IntEnum IntFlag
        ReprEnum StrEnum auto unique""",
    "fractions": "Fraction",
    "functools": """cached_property cmp_to_key partial partialmethod reduce total_ordering
        update_wrapper wraps""",
    "itertools": "*",
    "operator": """abs add and_ concat contains countOf eq floordiv ge getitem gt iadd iand
        iconcat ifloordiv ilshift imatmul imod imul index indexOf inv invert ior ipow irshift isub
        itemgetter itruediv ixor le lt lshift matmul mod mul ne neg not_ or_ pos pow rshift sub
        truediv truth xor""",
    "re": "compile escape findall fullmatch match search split sub subn",
    "string": """ascii_letters ascii_lowercase ascii_uppercase capwords digits hexdigits
        octdigits punctuation""",
    "reprlib": "recursive_repr",
    "types": "EllipsisType MappingProxyType NoneType SimpleNamespace",
    "typing": """Annotated Any AnyStr Callable _GenericAlias _ProtocolMeta
        _no_init_or_replace_init _proto_hook ClassVar Dict Final Generic Hashable Iterable
        Iterator List Literal Mapping NamedTuple NewType Optional ParamSpec Protocol Self Sequence
        Set TYPE_CHECKING Tuple Type TypeAlias TypeVar Union assert_never assert_type cast final
        overload runtime_checkable""",
    "warnings": "warn",
    "__future__": "annotations",
}  # fmt: skip
# Functions that aren't public, but that public functions return.
_MAKERS = frozenset({
    ("jax._src.pallas.pallas_call", "_pallas_call"),
    ("jax._src.traceback_util", "api_boundary"),
    ("jax._src.tree_util", "register_dataclass"),
    ("jax._src.tree_util", "_register_dataclass"),
    ("jax._src.tree_util", "register_static"),
})
# Modules of pure functions that the key identifies by name.
_PURE = frozenset({*_STANDARD, "builtins", "keyword", "reprlib", "textwrap"})
_IMPURE = ("numpy.random",)
# Kernels that come with JAX. Everything in their modules is a function of its arguments.
_KERNELS = "jax.experimental.pallas.ops."
# The modules to search for callables without a module of their own.
_UFUNCS = ("numpy", "scipy.special")


def is_library(module: str) -> bool:
    """Whether a module's functions depend on their arguments and the module's version only."""
    return (top(module) in VERSIONED and not is_impure(module)) or module in _PURE


def is_impure(module: str) -> bool:
    """Whether a library's module has functions whose results differ between equal calls."""
    return module.startswith(_IMPURE)


def is_standard(module: str) -> bool:
    return top(module) in sys.stdlib_module_names


def is_from_elsewhere(module: str) -> bool:
    """Whether a module belongs to Python or to a library."""
    return top(module) in VERSIONED or (is_standard(module) and module != "__main__")


def top(module: str) -> str:
    return module.partition(".")[0]


def is_pure(module: str, name: str, value: Any) -> bool:
    """Whether a library's value gives equal results for equal arguments.

    The value is known by this name in its module, or by another public name; or a public function
    made it.
    """
    table = _tables()
    if isinstance(value, enum.EnumMeta) and top(module) in VERSIONED:
        return True
    if name.partition(".")[0] in table.get(module, ()):
        return True
    if module.startswith(_KERNELS) or id(value) in _pure_values():
        return True
    if module in _STANDARD and _STANDARD[module] == "*":
        return True
    if isinstance(value, types.FunctionType) and "<locals>" in value.__code__.co_qualname:
        home = value.__globals__.get("__name__", "")
        name = value.__code__.co_qualname.partition(".")[0]
        maker = vars(sys.modules[home]).get(name)
        if home.startswith(_KERNELS) or (home, name) in _MAKERS:
            return True
        return id(maker) in _pure_values()
    return False


@functools.cache
def _tables() -> dict[str, frozenset[str]]:
    named = {**pure.PURE, **_STANDARD}
    return {module: frozenset(names.split()) for module, names in named.items()}


# Modules of classes whose instances are fully described by their attributes: blocks, references,
# types and the like.
_PLAIN_HOMES = (
    _KERNELS, "jax._src.ad_", "jax._src.api.", "jax._src.core.",
    "jax._src.custom_", "jax._src.dtypes.",
    "jax._src.frozen_dict.", "jax._src.hijax.", "jax._src.indexing.", "jax._src.lax.",
    "jax._src.layout.",
    "jax._src.literals.",
    "jax._src.named_sharding.", "jax._src.nn.", "jax._src.numpy.", "jax._src.pallas.",
    "jax._src.partition_spec.", "jax._src.pjit.", "jax._src.sharding_impls.UnspecifiedValue",
    "jax._src.state.", "jax._src.tree_util.", "jax._src.typing.", "jax._src.util.",
    "jax.experimental.pallas.",
)  # fmt: skip


def is_plain_class(kind: type) -> bool:
    """Whether the attributes of an instance of a library's class are its whole state."""
    if issubclass(kind, enum.Enum) or is_public(kind) or top(kind.__module__) not in VERSIONED:
        return True
    return f"{kind.__module__}.{kind.__qualname__}".startswith(_PLAIN_HOMES)


def is_public(value: Any) -> bool:
    """Whether a value is known as pure under any name."""
    return id(value) in _pure_values()


def _pure_values() -> set[int]:
    """The ids of the values that are known as pure under any name."""
    loaded = tuple(name for name in _tables() if name in sys.modules)
    return _values_in(loaded)


@functools.lru_cache(maxsize=1)
def _values_in(loaded: tuple[str, ...]) -> set[int]:
    found = set()
    for module in loaded:
        held = vars(sys.modules[module])
        for name in _tables()[module]:
            if name in held and type(held[name]) not in _PLAIN:
                found.add(id(held[name]))
                wrapped = getattr(held[name], "__wrapped__", None)
                found.add(id(held[name] if wrapped is None else wrapped))
    return found


@functools.cache
def version(library: str) -> str | None:
    """A library's version. None: the library isn't installed but lies where it may change."""
    module = sys.modules[library]
    path = module.__file__ or ""
    if "site-packages" not in path and "dist-packages" not in path:
        return None
    return str(module.__version__)


def home(value: Any) -> tuple[str, str] | None:
    """The imported module and the name that give a function or class.

    None: that name gives another object, or nothing.
    """
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
    module = getattr(value, "__module__", None)
    without_module = module is None or isinstance(value, np.ufunc)
    for place in _UFUNCS if without_module else (module,):
        if isinstance(name, str) and isinstance(place, str) and place in sys.modules:
            try:
                found = operator.attrgetter(name)(sys.modules[place])
            except AttributeError:
                continue
            if found is value:
                return place, name
    return None


def is_own_module(module: types.ModuleType) -> bool:
    """Whether a module is a library's, and is the one that was imported."""
    name = module.__name__
    return is_library(name) and sys.modules.get(name) is module


def owns_function(function: types.FunctionType) -> bool:
    """Whether a library's module defines a function."""
    name = function.__globals__.get("__name__", "")
    return is_library(name) and vars(sys.modules[name]) is function.__globals__


def identity(value: Any) -> str | None:
    """A text that identifies a library's own function, class or object.

    None: something outside the library made it or a part of it, so the library's version doesn't
    describe it. A replacement of a library's function may have the original's name.
    """
    parts = _identity(value, ())
    return None if parts is None else repr(parts)


def _identity(value: Any, under_way: tuple[Any, ...]) -> tuple[Any, ...] | None:
    if type(value) in _PLAIN:
        return "plain", value
    if any(value is each for each in under_way):
        return "again", len(under_way)
    under_way = (*under_way, value)
    if isinstance(value, types.ModuleType):
        return ("module", value.__name__) if is_own_module(value) else None
    jitted = inputs.jitted(value)
    if jitted is not None:
        function, info = jitted
        options, inside = inputs.jit_options(info), _identity(function, under_way)
        return None if options is None or inside is None else ("jit", options, inside)
    if isinstance(value, types.FunctionType):
        if not owns_function(value):
            return None
        code = value.__code__
        parts: list[Any] = [value.__module__, code.co_qualname, code.co_firstlineno]
        if "<locals>" in code.co_qualname:  # its closure may hold values from outside
            for cell in value.__closure__ or ():
                inside = _identity(contents(cell), under_way)
                if inside is None:
                    return None
                parts.append(inside)
        return tuple(parts)
    if isinstance(value, (type, types.BuiltinFunctionType)):
        module = getattr(value, "__module__", None) or "builtins"
        return (module, value.__qualname__) if is_library(module) else None
    kind = type(value)
    if top(kind.__module__) not in VERSIONED:
        return None
    if isinstance(value, enum.Enum):
        return kind.__module__, kind.__qualname__, value.name
    if hasattr(value, "__wrapped__") and _identity(value.__wrapped__, under_way) is None:
        return None
    place = home(value)
    return place if place is not None and is_library(place[0]) else None


_PLAIN = frozenset({bool, int, float, complex, str, bytes, type(None)})
