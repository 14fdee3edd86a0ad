"""The complete contents of a jaxpr as a digest, for caches keyed by a jaxpr alone.

Each value is read by its own type, bit for bit. A value of an unknown type is refused by name.
Nothing is left out, except what `UNSEEN` lists.
"""

from __future__ import annotations

import collections
import contextlib
import enum
import hashlib
import io
import itertools
import marshal
import operator
import pickle
import types
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax._src import config, core
from jax._src.literals import TypedInt, TypedNdArray
from jax._src.mesh import AbstractMesh, Mesh
from jax._src.pallas import core as pallas_core
from jax._src.state import discharge as state_discharge
from jax._src.state import types as state_types

from pallas_shim.jax_compat import library_names, object_state
from pallas_shim.jax_compat.callbacks import CALLBACK_PRIMITIVES
from pallas_shim.jax_compat.inputs import SHARDING, TREE, sharding_without_mesh
from pallas_shim.jax_compat.jaxprs import open_jaxpr, primitive_name
from pallas_shim.jax_compat.object_state import UNSEEN, Unreadable

# The jaxprs of these primitives get their constants as operands. What they hold themselves isn't
# used, and in JAX 0.12 it is tracers.
_GIVEN_CONSTS = frozenset({"run_scoped"})

# Reading more captured bytes than this takes longer than making a key may take.
LARGEST = 16 << 20


# Later versions of marshal may write equal values as different bytes.
_MARSHAL = 2
_PROTOCOL = 3  # of pickle
# How many equations are read at once.
_AT_ONCE = 128


def configuration() -> str:
    """A digest of JAX's configuration, of the process and of this thread, without meshes and their
    axes.

    Raises:
      Unreadable: some value can't be read completely.
    """
    global _last_configuration
    settings = jax.config.values
    context = [value for value in config.trace_context() if not isinstance(value, _OF_MESHES)]
    now = [*settings, *settings.values(), *context]
    known, digest = _last_configuration
    if len(known) == len(now) and all(map(operator.is_, known, now)):
        return digest
    digest = Contents(sorted(settings.items()), context).digest
    _last_configuration = (now if all(map(_is_constant, now)) else [], digest)
    return digest


_OF_MESHES = (AbstractMesh, core.AxisEnv)
# The values of the last configuration that was read, if all are constants, and its digest.
_last_configuration: tuple[list[Any], str] = ([], "")


def _is_constant(value: Any) -> bool:
    """Whether this object is the same value for ever."""
    if type(value) is tuple:
        return all(map(_is_constant, value))
    return type(value) in _CONSTANTS or isinstance(value, enum.Enum)


_CONSTANTS = {bool, int, float, str, type(None)}


class Contents:
    """The contents of a jaxpr, and its equations and those of the jaxprs inside it, in order.

    ``beside`` goes into the digest, too. (Other values than jaxprs can be read, too.)

    ``digest``: equal for two jaxprs that are equal, bit for bit, in all that lowering may look at,
    and whose inner jaxprs are the same objects at the same places. ``equations``: those of each
    jaxpr once, so jaxprs with equal digests have equally many, and the same ones at the same
    places. ``primitives``: all primitives in them.

    Raises:
      Unreadable: some part of the jaxpr can't be read completely.
    """

    def __init__(self, jaxpr: Any, *beside: Any):
        self.equations: list[Any] = []
        self.primitives: dict[Any, str] = {}
        # Of descriptions; see below. No token is 0.
        self._tokens = collections.defaultdict[Any, int](itertools.count(1).__next__)
        self._by_id: dict[Any, int] = {}  # the jaxpr keeps them alive
        self._kept: list[Any] = []  # kept alive, so that no other object gets the same id
        self._jaxprs: list[Any] = []
        self._numbers: dict[int, int] = {}  # of jaxprs
        self._bytes = 0
        top = self.read((jaxpr, *beside))
        words = []
        for each in self._jaxprs:  # reading one finds those inside it
            words.append(self._words(each))
        self.digest = _digest(marshal.dumps((top, words, list(self._tokens)), _MARSHAL)).hex()

    # A token is a number that stands for a value: the place of its description among all. A
    # description is a tuple of a kind and then numbers, bytes and texts. The kind says whether a
    # number is a token or a plain number, so equal descriptions are of equal values.

    def read(self, value: Any) -> bytes:
        """A value as bytes. They are equal only for equal values, and tokens stand for parts."""
        file = io.BytesIO()
        pickler = _Pickler(file, _PROTOCOL)
        pickler.fast = True  # which objects are the same doesn't count
        pickler.contents = self
        try:
            pickler.dump(value)
        except (RecursionError, ValueError) as error:
            kind = type(value).__name__
            raise Unreadable(f"a {kind} that is nested too deeply, or holds itself") from error
        except OverflowError as error:
            raise Unreadable(f"a {type(value).__name__} with a number of many digits") from error
        return file.getvalue()

    # -- jaxprs -------------------------------------------------------------------------------

    def _jaxpr(self, jaxpr: Any) -> Any:
        opened, consts = open_jaxpr(jaxpr)
        number = self._opened(opened)
        return ("closed", number, *consts) if consts else f"jaxpr {number}"

    def _opened(self, jaxpr: Any) -> int:
        """The number of a jaxpr, without the constants that it may hold."""
        number = self._numbers.get(id(jaxpr))
        if number is None:
            number = self._numbers[id(jaxpr)] = len(self._jaxprs)
            self._jaxprs.append(jaxpr)
        return number

    def _words(self, jaxpr: Any) -> tuple[str | None, bytes]:
        """A jaxpr's name, and its variables and equations as numbers. A variable is its own number,
        counted from 0; a literal is ~ its token.

        The equations are read in columns (all primitives, all parameters and so on), which takes a
        fraction of the time of reading them one by one. They are read in batches, which stay in the
        processor's cache meanwhile.
        """
        constvars, invars, outvars, eqns, debug_info = _of_jaxpr(jaxpr)
        name = debug_info.func_name if debug_info else None
        if name is not None and type(name) is not str:
            raise Unreadable(f"a name of the type {type(name).__name__}")
        self.equations += eqns
        given = [*constvars, *invars]
        number = dict(zip(map(id, given), itertools.count(), strict=False))
        words = [len(constvars), len(given), len(eqns), *self._avals(given)]
        count, known = len(given), self._by_id.get
        for start in range(0, len(eqns), _AT_ONCE):
            some = eqns[start : start + _AT_ONCE]
            ins, outs = list(map(_invars, some)), list(map(_outvars, some))
            defined = [*itertools.chain.from_iterable(outs)]
            number.update(zip(map(id, defined), itertools.count(count), strict=False))
            count += len(defined)
            words += map(len, ins)
            words += map(len, outs)
            words += self._avals(defined)
            words += self._contexts(some)
            words += [
                known((eqn.primitive, *params, *map(id, params.values())) if params
                      else eqn.primitive)
                or self._params(eqn)
                for eqn, params in zip(some, map(_params, some), strict=True)
            ]  # fmt: skip
            words += self._uses([*itertools.chain.from_iterable(ins)], number)
        words += self._uses(outvars, number)
        return name, array("i", words).tobytes()

    def _avals(self, typed: Sequence[Any]) -> list[Any]:
        """The tokens of the types of variables or literals."""
        avals = list(map(_aval, typed))
        tokens: list[Any] = list(map(self._by_id.get, map(id, avals)))
        if None in tokens:
            for position in _missing(tokens):
                tokens[position] = self._aval(avals[position])
        return tokens

    def _contexts(self, eqns: Sequence[Any]) -> list[Any]:
        """A number of tokens, and those of the equations' contexts. If all have the same context,
        it is one token."""
        contexts = list(map(_ctx, eqns))
        if all(map(operator.is_, contexts, itertools.repeat(contexts[0]))):
            del contexts[1:]
        tokens = self._known(contexts)
        if len(set(tokens)) == 1:
            del tokens[1:]
        return [len(tokens), *tokens]

    def _known(self, values: Sequence[Any]) -> list[int]:
        """The tokens of values that others share."""
        known = self._by_id.get
        return [known(id(value)) or self._value(value) for value in values]

    def _value(self, value: Any) -> int:
        read = self.read(value)  # from now on, it may have a token
        return self._by_id.get(id(value)) or self._new(value, "value", read)

    def _new(self, value: Any, *description: Any) -> int:
        """The token of a value that is known from now on."""
        token = self._by_id[id(value)] = self._tokens[description]
        self._kept.append(value)
        return token

    def _params(self, eqn: Any) -> int:
        """The token of an equation's primitive and parameters."""
        primitive, params = eqn.primitive, eqn.params
        name = self.primitives.get(primitive)
        if name is None:
            name = self.primitives[primitive] = primitive_name(primitive)
            if name in CALLBACK_PRIMITIVES:
                raise Unreadable(f"its {name}, which calls back Python")
            _require_jaxs_discharge(primitive, name)
        parts: list[Any] = ["equation", name, primitive.multiple_results]
        seen = params
        if name in UNSEEN:
            seen = {key: value for key, value in params.items() if key not in UNSEEN[name]}
        if name in _GIVEN_CONSTS:
            given = {key: value for key, value in seen.items() if isinstance(value, _JAXPRS)}
            seen = {key: value for key, value in seen.items() if key not in given}
            for key, value in given.items():
                parts += [key, self._opened(open_jaxpr(value)[0])]
        try:
            if seen:
                parts.append(self.read(seen))
        except Unreadable:
            for key, value in seen.items():
                try:
                    self.read(value)
                except Unreadable as error:
                    raise Unreadable(f"the {key} of its {name}: {error}") from None
            raise
        token = self._tokens[tuple(parts)]
        key = (primitive, *params, *map(id, params.values())) if params else primitive
        self._by_id[key] = token
        return token

    def _uses(self, used: Sequence[Any], number: Mapping[int, int]) -> list[Any]:
        """The numbers of variables and literals."""
        uses: list[Any] = list(map(number.get, map(id, used)))
        if None in uses:
            positions = [position for position, place in enumerate(uses) if place is None]
            tokens = self._literals([used[position] for position in positions])
            for position, token in zip(positions, tokens, strict=True):
                uses[position] = ~token
        return uses

    def _literals(self, literals: Sequence[Any]) -> list[Any]:
        """The tokens of literals. Each is an object of its own, but many are equal."""
        avals, values = self._avals(literals), list(map(_val, literals))
        if set(map(type, values)) == _TYPED and set(map(_ndim, values)) == _SCALAR:
            dtypes = map(id, map(_dtype, values))
            keys: list[Any] = list(zip(avals, dtypes, map(_raw, values), strict=True))
        else:
            keys = list(map(self._literal_key, avals, values))
        tokens = list(map(self._by_id.get, keys))
        if None in tokens:
            for position in _missing(tokens):
                token = self._tokens["literal", self.read(values[position]), avals[position]]
                tokens[position] = self._by_id[keys[position]] = token
        return tokens

    def _literal_key(self, aval: int, value: Any) -> Any:
        if type(value) is TypedNdArray and not value.ndim:
            return aval, id(value.dtype), _raw(value)
        if type(value) is TypedInt:
            return aval, id(value.dtype), int(value)
        return aval, "value", self.read(value)

    def _aval(self, aval: Any) -> int:
        """The token of a type. Before JAX 0.10 each array has a type object of its own."""
        known = self._by_id.get(id(aval))
        if known is None:
            if type(aval) is not core.ShapedArray:
                return self._new(aval, "type", self.read(self._object(aval)))
            parts, shape = _array_type(aval), aval.shape
            key = (*map(id, parts), *shape)
            known = self._by_id.get(key)
            if known is None:
                dims = shape if set(map(type, shape)) <= _INT else (self.read(shape),)
                known = self._new(aval, "array type", *self._known(parts), *dims)
                self._by_id[key] = known
            self._by_id[id(aval)] = known
            self._kept.append(aval)
        return known

    # -- values -------------------------------------------------------------------------------

    # These methods give what stands for a value of a certain type: a token, a text that starts with
    # a word, or a tuple that starts with a word or the token of a class.

    def _shared(self, value: Any) -> int:
        """The token of an object that is met more than once."""
        known = self._by_id.get(id(value))
        if known is None:
            return self._new(value, "object", self.read(self._object(value)))
        return known

    def _member(self, value: enum.Enum) -> int:
        known = self._by_id.get(id(value))
        if known is None:
            return self._new(value, "member", self._named(type(value)), value.name)
        return known

    def _array_of_another_trace(self, value: Any) -> Any:
        raise Unreadable("an array of another trace")

    def _scalar(self, value: np.generic) -> Any:
        return "scalar", self._array(np.asarray(value))

    def _typed_int(self, value: TypedInt) -> Any:
        if not vars(value).keys() <= _OF_TYPED_INT:
            return self._object(value)
        return "typed int", int(value), value.dtype

    def _dtype(self, dtype: np.dtype) -> int:
        known = self._by_id.get(id(dtype))
        if known is None:
            if dtype.hasobject or dtype.names is not None or dtype.subdtype or dtype.metadata:
                raise Unreadable(f"the dtype {dtype}")
            return self._new(dtype, "dtype", dtype.str, self._named(dtype.type))
        return known

    def _array(self, value: np.ndarray) -> int:
        self._bytes += value.nbytes
        if self._bytes > LARGEST:
            raise Unreadable(f"arrays of more than {LARGEST >> 20} MB")
        dtype = self._dtype(value.dtype)
        data = value.tobytes()
        content = data if len(data) < 64 else _digest(data)
        # The strides matter: sums are taken in the order in which the elements lie in memory.
        shape = value.shape
        return self._tokens["array", dtype, len(shape), *shape, *value.strides, content]

    def _ndarray(self, value: np.ndarray) -> Any:
        if value.dtype.hasobject and value.size < 1000:
            return "objects", value.shape, value.ravel().tolist()
        return self._array(value)

    def _jax_array(self, value: Any) -> Any:
        base = getattr(value, "_base_array", None)
        if base is not None:  # the array under an array of PRNG keys
            return "keys", base, value.dtype
        if not value.is_fully_addressable or value.is_deleted():
            raise Unreadable("an array that isn't here")
        return "jax", self._array(np.asarray(value)), value.aval

    def _set(self, value: Any) -> Any:
        if not value:
            return type(value).__name__
        # A set's order differs between processes.
        if not all(type(item) in (str, int) for item in value):
            raise Unreadable("a set of other things than texts and numbers")
        return type(value).__name__, sorted(map(repr, value))

    def _tree(self, tree: Any) -> Any:
        # Of each node: its kind, the number of its children, its class, and its own data. Data that
        # isn't a few integers is held by itself.
        numbers: list[int] = []
        held: list[Any] = []
        for kind, arity, data, node_class, _, _ in tree.__getstate__()[1]:
            if data is None and node_class is None:
                numbers += (kind, arity, -1)
            elif node_class and type(data) is tuple and set(map(type, data)) == _INT:
                numbers += (kind, arity, len(data), self._named(node_class), *data)
            else:
                numbers += (kind, arity, -2)
                held += (data, node_class)
        written = array("q", numbers).tobytes()
        return ("tree", written, *held) if held else self._tokens["tree", written]

    def _sharding(self, sharding: Any) -> Any:
        known = self._by_id.get(id(sharding))
        if known is None:
            parts = sharding_without_mesh(sharding)
            if parts is None:
                raise Unreadable("a sharding over a mesh of devices")
            return self._new(sharding, "sharding", *parts)
        return known

    def _mesh(self, mesh: Any) -> Any:
        if not mesh.empty:
            raise Unreadable("a mesh of devices")
        return f"mesh {type(mesh).__name__}"

    def _named(self, value: Any) -> int:
        """A class or function of JAX or another library, keyed by the library's version."""
        known = self._by_id.get(id(value))
        if known is None:
            place = library_names.place(value)
            if place is None:
                name = getattr(value, "__qualname__", None) or type(value).__name__
                kind = "class" if isinstance(value, type) else "function"
                raise Unreadable(f"the {kind} {name}")
            return self._new(value, "named", *place)
        return known

    def _object(self, value: Any) -> Any:
        """An object of a class that JAX defines in Python: its class and its whole state."""
        kind: Any = type(value)
        if not library_names.is_jaxs_class(kind):
            raise Unreadable(f"a {kind.__module__}.{kind.__qualname__}")
        state = object_state.state(kind)
        parts: list[Any] = [self._by_id.get(id(kind)) or self._named(kind)]
        if state.is_tuple:
            parts += ["items", len(value), *value]
        if state.plain is not None:
            parts += ["plain", state.plain(value)]
        if state.slots:
            try:
                parts += state.get_slots(value)
            except AttributeError:  # some have not been set
                every = [(name, getattr(value, name, _UNSET)) for name in state.slots]
                parts.append([name for name, part in every if part is not _UNSET])
                parts += [part for _, part in every if part is not _UNSET]
        if state.has_variables:
            variables = vars(value)
            names = object_state.seen(kind, tuple(variables))
            parts += [self._tokens["variables", *names], *map(variables.__getitem__, names)]
        return tuple(parts)


class _Pickler(pickle.Pickler):
    """Writes numbers, texts, tuples and the like, and for any other object what `_READERS` give."""

    contents: Contents

    def persistent_id(self, value: Any) -> Any:
        read = _READERS[type(value)]
        return None if read is None else read(self.contents, value)


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


_UNSET = object()
_invars, _outvars = operator.attrgetter("invars"), operator.attrgetter("outvars")
_params, _ctx = operator.attrgetter("params"), operator.attrgetter("ctx")
_of_jaxpr = operator.attrgetter("constvars", "invars", "outvars", "eqns", "debug_info")
_aval, _val = operator.attrgetter("aval"), operator.attrgetter("val")
_ndim, _dtype = operator.attrgetter("ndim"), operator.attrgetter("dtype")
_raw = np.ndarray.tobytes if issubclass(TypedNdArray, np.ndarray) else lambda x: x.val.tobytes()


def _missing(tokens: Sequence[Any]) -> Iterator[int]:
    """The positions that hold None. They may be filled meanwhile."""
    position = -1
    for _ in range(tokens.count(None)):
        position = tokens.index(None, position + 1)
        yield position


_OF_TYPED_INT = {"dtype", "aval"}  # its type follows from its dtype
_INT, _SCALAR, _TYPED = {int}, {0}, {TypedNdArray}
# The fields of an array's type besides its shape.
_array_type = object_state.getter(
    tuple(name for name in object_state.slots(core.ShapedArray)
          if name != "shape" and name not in UNSEEN["ShapedArray"])
)  # fmt: skip


# JAX 0.12 has one class of jaxprs; earlier versions have two.
_JAXPRS = (core.Jaxpr, getattr(core, "ClosedJaxpr", core.Jaxpr))


def _require_jaxs_discharge(primitive: Any, name: str) -> None:
    """Raises Unreadable if the rule for a primitive that touches memory is not JAX's own."""
    rule = state_discharge._discharge_rules.get(primitive)
    rule = getattr(rule, "func", rule)
    if rule is not None and not (getattr(rule, "__module__", None) or "").startswith("jax."):
        raise Unreadable(f"its {name}, whose discharge rule isn't JAX's")


# The readers of values of other types that are derived from these, the first that fits.
_DERIVED: tuple[tuple[Any, Callable[[Contents, Any], Any]], ...] = (
    (jax.core.Tracer, Contents._array_of_another_trace),
    (_JAXPRS, Contents._jaxpr),
    (np.dtype, Contents._dtype),
    (np.generic, Contents._scalar),
    (jax.Array, Contents._jax_array),
    (enum.Enum, Contents._member),
    (core.AbstractValue, Contents._aval),
    ((type, types.FunctionType, types.BuiltinFunctionType, np.ufunc), Contents._named),
    (object, Contents._object),
)


# The classes of parts of nearly all types.
_SHARED = filter(None, [getattr(core, "ManualAxisType", None)])


class _Readers(dict[type, Callable[[Contents, Any], Any] | None]):
    """The readers of values of exactly these types."""

    def __missing__(self, kind: type) -> Callable[[Contents, Any], Any]:
        read = self[kind] = next(read for base, read in _DERIVED if issubclass(kind, base))
        return read


_READERS = _Readers({
    # The pickler writes these by itself.
    **dict.fromkeys((type(None), bool, int, float, str, bytes, tuple, list, dict)),
    complex: lambda read, x: ("complex", x.real, x.imag),
    type(...): lambda read, x: "ellipsis",
    types.MappingProxyType: lambda read, x: ("proxy", dict(x)),
    slice: lambda read, x: ("slice", x.start, x.stop, x.step),
    range: lambda read, x: ("range", x.start, x.stop, x.step),
    set: Contents._set,
    frozenset: Contents._set,
    np.ndarray: Contents._ndarray,
    **dict.fromkeys(_SHARED, Contents._shared),
    TypedNdArray: lambda read, x: ("typed", read._array(np.asarray(x)), bool(x.weak_type)),
    TypedInt: Contents._typed_int,
    TREE: Contents._tree,
    SHARDING: Contents._sharding,
    Mesh: Contents._mesh,
    AbstractMesh: Contents._mesh,
})  # fmt: skip


def get_ready() -> None:
    """Looks at the classes that are in nearly every kernel, and reads the configuration."""
    for kind in (tuple, dict, np.float32, np.int32, np.bool_):
        library_names.place(kind)
    for module, names in _IN_MOST_KERNELS.items():
        for kind in filter(None, [getattr(module, name, None) for name in names]):
            if _READERS[kind] is Contents._object and library_names.is_jaxs_class(kind):
                object_state.state(kind)
                object_state.seen(kind, tuple(getattr(kind, "__dataclass_fields__", ())))
    with contextlib.suppress(Unreadable):  # then nothing is kept
        configuration()


_IN_MOST_KERNELS = {
    core: ("Jaxpr", "JaxprEqnContext", "ManualAxisType", "MemorySpace", "ShapedArray"),
    pallas_core: ("BlockMapping", "Blocked", "GridMapping", "MemorySpace"),
    state_types: ("AbstractRef",),
}
