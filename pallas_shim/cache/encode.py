"""Programs as bytes, and back.

The bytes hold data only. A callable is kept as what it closes over and the place of its code in
this package's sources (or its name in a library's module). The process that reads it uses its own
code. A program that can't be expressed this way isn't kept.
"""

from __future__ import annotations

import copy
import enum
import functools
import marshal
import math
import sys
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import ml_dtypes
import numpy as np

from pallas_shim import jax_compat
from pallas_shim.cache import libraries, places
from pallas_shim.evaluator.op_types import NAMES_THE_USERS, READ_BY_CODEGEN
from pallas_shim.evaluator.program import (
    PURE,
    Effects,
    Instruction,
    Operation,
    Program,
    Region,
    Value,
    make_instruction,
)

# The modules whose functions and classes may be kept by name.
_NAMED = ("builtins", "functools", "math", "ml_dtypes", "numpy", "operator", "opt_einsum", "scipy")
_OWN = ("pallas_shim",)

_PLAIN = frozenset({bool, int, float, complex, str, bytes, type(None)})
# Later versions of marshal may write equal values as different bytes.
_MARSHAL = 2
_ALIGNMENT = 64


class NotData(Exception):
    """A program holds something that can't be kept; the message says what."""


def encode(program: Program, sources: Mapping[int, int] | None = None) -> bytes:
    """A program as bytes.

    Args:
      sources: the number of each source of an instruction, by its id. Without it, sources are
        kept as text.

    Raises:
      NotData: the program holds something that isn't data.
    """
    encoder = _Encoder(sources, _looked_at(program))
    contents = {"name": program.name, "top": encoder.region(program.top)}
    first = len(encoder.objects)
    return encoder.packed(contents, first, encoder.later())


def decode(data: bytes | memoryview, sources: Sequence[Any] = ()) -> Program:
    """The reverse of `encode`. ``sources``: the sources, in the order of their numbers."""
    contents, decoder = _unpacked(data, sources)
    return Program(contents["name"], decoder.region(contents["top"]))


def encode_data(value: Any) -> bytes:
    """Plain data and arrays as bytes.

    Raises:
      NotData: the value is something else.
    """
    encoder = _Encoder()
    return encoder.packed({"term": encoder.term(value)})


def decode_data(data: bytes) -> Any:
    """The reverse of `encode_data`."""
    contents, decoder = _unpacked(data)
    return decoder.term(contents["term"])


def _unpacked(
    data: bytes | memoryview, sources: Sequence[Any] = ()
) -> tuple[dict[str, Any], _Decoder]:
    size = int.from_bytes(data[:8], "little")
    contents = marshal.loads(data[8 : 8 + size])
    arrays = memoryview(data)[8 + size + _padding(8 + size) :]
    return contents, _Decoder(contents, arrays, sources)


def _padding(size: int) -> int:
    return -size % _ALIGNMENT


def _within(module: str, roots: Sequence[str]) -> bool:
    return module.partition(".")[0] in roots


# -- encoding ----------------------------------------------------------------------------------


def _is_plain(x: Any) -> bool:
    return type(x) in _PLAIN or (type(x) is tuple and all(map(_is_plain, x)))


_UNCHANGING = frozenset({"dtype", "ellipsis", "named", "range", "record", "slice", "tuple"})


# Constants are often broadcast numbers or rows. Reading larger ones takes longer than broadcasting.
_SMALL = 1 << 11


def _without_repeats(array: np.ndarray) -> np.ndarray:
    """The array, or a part of it that gives it when it is broadcast: along some axes the first
    element only. Elements are compared by their bits."""
    if array.nbytes <= _SMALL:
        return array
    bits = array.view(f"V{array.itemsize}")
    for axis in range(array.ndim):
        first = bits.take([0], axis)
        if bits.shape[axis] > 1 and (bits == first).all():
            bits = first
    return array if bits.shape == array.shape else bits.view(array.dtype)


def _looked_at(program: Program) -> set[Operation]:
    """The operations whose types and parameters are looked at when the program is prepared. Those
    of the others are half of what there is to read."""
    found = set()
    for instruction in program.top.body:
        operation = instruction.operation
        if operation.fn is None or isinstance(operation.fn, np.ufunc):
            found.add(operation)
        for region in instruction.regions:
            found.update(inner.operation for inner in region.walk())
    return found


def _columns(rows: Sequence[Sequence[Any]], count: int) -> list[Sequence[Any]]:
    """The columns of a table, which are sooner decoded than its rows."""
    return list(zip(*rows, strict=True)) or [()] * count


class _Encoder:
    def __init__(
        self, sources: Mapping[int, int] | None = None, looked_at: Collection[Operation] = ()
    ) -> None:
        self._sources = sources
        self._looked_at = looked_at
        self._details: dict[Operation, Any] = {}
        self.objects: list[Any] = []
        self.operations: list[Any] = []
        self.values: list[Any] = []
        self.arrays: list[bytes] = []
        self._size = 0
        self._again: dict[Any, list[int]] = {}
        self._terms: dict[int, Any] = {}  # by id, so that a mutable object stays one object
        self._kept: list[Any] = []
        self._under_way: set[int] = set()
        self._operation_at: dict[Operation, int] = {}
        self._value_at: dict[Value, int] = {}

    def packed(
        self, contents: dict[str, Any], first: int | None = None, later: Sequence[int] = ()
    ) -> bytes:
        """The bytes. ``first``: how many objects are needed at first. ``later``: the numbers of the
        operations whose details aren't."""
        details = list(self._details.values())
        rest: Any = later, self.objects[first:] if later else [], [details[n] for n in later]
        for number in later:
            details[number] = None
        contents = {
            **contents,
            "operations": _columns(self.operations, 5),
            "details": details,
            "values": _columns(self.values, 2),
            "objects": self.objects[:first],
            "later": marshal.dumps(rest, _MARSHAL),
        }
        head = marshal.dumps(contents, _MARSHAL)
        size = len(head).to_bytes(8, "little")
        return b"".join([size, head, b"\0" * _padding(8 + len(head)), *self.arrays])

    # A term: plain data and tuples of it stand for themselves; any other object is a list of one
    # number, its position among the objects.

    def term(self, x: Any) -> Any:
        if _is_plain(x):
            return x
        known = self._terms.get(id(x))
        if known is None:
            if id(x) in self._under_way:
                raise NotData(f"a {type(x).__name__} that holds itself")
            self._under_way.add(id(x))
            content = self._object(x)
            self._under_way.discard(id(x))
            # Equal immutable objects may become one object.
            again = marshal.dumps(content, _MARSHAL) if content[0] in _UNCHANGING else None
            known = self._again.get(again)
            if known is None:
                known = [len(self.objects)]
                self.objects.append(content)
                if again is not None:
                    self._again[again] = known
            self._terms[id(x)] = known
            self._kept.append(x)
        return known

    def terms(self, xs: Any) -> list[Any]:
        return [self.term(x) for x in xs]

    def _object(self, x: Any) -> list[Any]:
        kind = type(x)
        if kind in (tuple, list):
            return [kind.__name__, *self.terms(x)]
        if kind is dict:
            return ["dict", *self.terms([part for item in x.items() for part in item])]
        if kind is slice:
            return ["slice", *self.terms((x.start, x.stop, x.step))]
        if kind is range:
            return ["range", x.start, x.stop, x.step]
        if x is Ellipsis:
            return ["ellipsis"]
        if isinstance(x, np.dtype):
            return ["dtype", self._dtype(x)]
        if isinstance(x, np.generic):
            return ["scalar", *self._array(np.asarray(x))]
        if isinstance(x, np.ndarray):
            return ["array", *self._array(np.asarray(x))]
        if isinstance(x, tuple) and hasattr(x, "_fields"):
            return ["record", self.term(kind), *self.terms(x)]
        if isinstance(x, enum.Enum):
            return ["attribute", self.term(kind), x.name]
        if kind is functools.partial:
            return ["partial", *self.terms((x.func, x.args, x.keywords))]
        if kind is types.MethodType:
            return ["attribute", self.term(x.__self__), x.__name__]
        if kind is types.FunctionType:
            own = self._function(x)
            if own is not None:
                return own
        if _within(kind.__module__, _OWN) and hasattr(x, "__dict__"):
            return ["instance", *self.terms((kind, vars(x)))]
        return self._named(x)

    def _dtype(self, dtype: np.dtype) -> str:
        if dtype.hasobject or _dtype(dtype.name) != dtype:
            raise NotData(f"the dtype {dtype}")
        return dtype.name

    def _array(self, array: np.ndarray) -> list[Any]:
        order = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
        kept = _without_repeats(array)
        data = kept.tobytes(order)  # type: ignore[arg-type]
        start = self._size
        self.arrays.append(data + b"\0" * _padding(len(data)))
        self._size += len(self.arrays[-1])
        shapes = [kept.shape] if kept is array else [kept.shape, array.shape]
        return [self._dtype(array.dtype), start, order, array.flags.writeable, *shapes]

    def _function(self, function: types.FunctionType) -> list[Any] | None:
        """A function of this package: the place of its code, and the values that it closes over."""
        module = function.__globals__.get("__name__", "")
        if not _within(module, _OWN) or vars(sys.modules[module]) is not function.__globals__:
            return None
        if vars(sys.modules[module]).get(function.__name__) is function:
            return ["named", module, function.__name__]  # reading it must give the same object
        place = places.code_place(module, function.__code__)
        if place is None or function.__dict__:
            return None
        cells = [cell.cell_contents for cell in function.__closure__ or ()]
        around = (function.__defaults__, function.__kwdefaults__)
        return ["function", module, place, *self.terms(around), *self.terms(cells)]

    def _named(self, x: Any) -> list[Any]:
        owner = getattr(x, "__self__", None)
        name = getattr(x, "__qualname__", None) or getattr(x, "__name__", None)
        if isinstance(owner, np.ufunc):
            return ["attribute", self.term(owner), x.__name__]
        home = libraries.home(x)
        if isinstance(name, str) and isinstance(x, type) and vars(jax.lax).get(name) is x:
            return ["named", "jax.lax", name]
        if home is not None and (_within(home[0], _NAMED) or _within(home[0], _OWN)):
            return ["named", *home]
        module = getattr(x, "__module__", None)
        raise NotData(f"a {type(x).__name__}" + (f" ({module}.{name})" if name else ""))

    # Programs.

    def value(self, value: Value) -> int:
        known = self._value_at.get(value)
        if known is None:
            known = self._value_at[value] = len(self.values)
            self.values.append(self.terms((value.type, value.const)))
        return known

    def operation(self, operation: Operation) -> int:
        known = self._operation_at.get(operation)
        if known is None:
            if operation.name in NAMES_THE_USERS:
                raise NotData(f"its {operation.name} holds a name that the user chose")
            content = [
                operation.name,
                self._held_by(operation, operation.fn),
                self.term(tuple(operation.effects)),
                operation.view,
                operation.multiple,
            ]
            known = self._operation_at[operation] = len(self.operations)
            self.operations.append(content)
            self._details[operation] = None
            if operation in self._looked_at:
                self._details[operation] = self._detail(operation)
        return known

    def later(self) -> list[int]:
        """Encodes the types and parameters of all other operations. Returns their numbers."""
        missing = [o for o, detail in self._details.items() if detail is None]
        for operation in missing:
            self._details[operation] = self._detail(operation)
        return [self._operation_at[operation] for operation in missing]

    def _detail(self, operation: Operation) -> list[Any]:
        # Only structured operations and codegen look at parameters after lowering.
        params = {
            name: value
            for name, value in operation.params.items()
            if operation.fn is None or name in READ_BY_CODEGEN
        } or None
        return [self._held_by(operation, x) for x in (operation.ins, operation.outs, params)]

    def _held_by(self, operation: Operation, x: Any) -> Any:
        try:
            return self.term(x)
        except NotData as error:
            raise NotData(f"its {operation.name} holds {error}") from None

    def instruction(self, instruction: Instruction) -> list[Any]:
        operation, ins, outs, regions, source = instruction
        return [
            self.operation(operation),
            [self.value(v) for v in ins],
            [self.value(v) for v in outs],
            [self.region(r) for r in regions],
            self.source(source),
        ]

    def source(self, source: Any) -> Any:
        if self._sources is not None:
            return self._sources.get(id(source))
        known = self._terms.get(id(source))
        if known is None:
            known = self._terms[id(source)] = self.term(jax_compat.user_source(source))
            self._kept.append(source)
        return known

    def region(self, region: Region) -> list[Any]:
        return [
            [self.value(v) for v in region.params],
            [self.instruction(i) for i in region.body],
            [self.value(v) for v in region.results],
        ]


# -- decoding ----------------------------------------------------------------------------------


def _attribute(module: str, name: str) -> Any:
    found: Any = places.named(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


@functools.cache
def _dtype(name: str) -> np.dtype:
    return np.dtype(getattr(ml_dtypes, name, name))


@functools.cache
def _effects(parts: tuple[Any, ...]) -> Effects:
    effects = Effects(*parts)
    return PURE if effects == PURE else effects


class _KeptOperation(Operation):
    """An operation whose types and parameters are decoded when somebody asks for them."""

    __slots__ = ("_decode",)

    def __init__(self, decode: Callable[[], None], parts: Sequence[Any]):
        self._decode = decode
        self.name, self.fn, effects, self.view, self.multiple = parts
        self.effects = _effects(effects)

    def __getattr__(self, name: str) -> Any:
        if name not in ("ins", "outs", "params"):
            raise AttributeError(name)
        self._decode()
        return object.__getattribute__(self, name)


class _Decoder:
    def __init__(self, contents: Any, arrays: memoryview, sources: Sequence[Any]):
        self._later = contents["later"]
        self._arrays = arrays
        self._sources = sources
        self._objects: list[Any] = []
        self._make(contents["objects"])
        self._values = list(map(Value, *map(self.terms, contents["values"])))
        operations = zip(*map(self.terms, contents["operations"]), strict=True)
        self._operations = [
            _KeptOperation(self.decode_later, parts) if detail is None
            else self.operation(parts, detail)
            for parts, detail in zip(operations, contents["details"], strict=True)
        ]  # fmt: skip

    def _make(self, objects: Sequence[Any]) -> None:
        for kind, *parts in objects:
            self._objects.append(_MAKERS[kind](self, *parts))

    def decode_later(self) -> None:
        """Decodes what was left out at first. Several threads may do so at the same time."""
        whole = copy.copy(self)
        whole._objects = self._objects.copy()
        numbers, objects, details = marshal.loads(self._later)
        whole._make(objects)
        for number, detail in zip(numbers, details, strict=True):
            operation = self._operations[number]
            operation.ins, operation.outs, params = whole.terms(detail)
            operation.params = params or {}

    def term(self, term: Any) -> Any:
        return self._objects[term[0]] if type(term) is list else term

    def terms(self, terms: Sequence[Any]) -> list[Any]:
        objects = self._objects
        return [objects[term[0]] if type(term) is list else term for term in terms]

    def operation(self, parts: Sequence[Any], detail: Sequence[Any]) -> Operation:
        name, fn, effects, view, multiple = parts
        ins, outs, params = self.terms(detail)
        return Operation(name, params or {}, ins, outs, fn, _effects(effects), view, multiple)

    def instruction(self, content: Any) -> Instruction:
        operation, ins, outs, regions, source = content
        values = self._values
        parts = (
            self._operations[operation],
            tuple([values[i] for i in ins]),
            tuple([values[i] for i in outs]),
            tuple([self.region(region) for region in regions]) if regions else (),
            self._sources[source] if type(source) is int else self.term(source),
        )
        return make_instruction(parts)

    def region(self, content: Any) -> Region:
        params, body, results = content
        values = self._values
        return Region(
            tuple([values[i] for i in params]),
            tuple([self.instruction(i) for i in body]),
            tuple([values[i] for i in results]),
        )

    # One method for each kind of object.

    def dict(self, *parts: Any) -> Any:
        terms = self.terms(parts)
        return dict(zip(terms[::2], terms[1::2], strict=True))

    def array(
        self,
        name: str,
        start: int,
        order: Any,
        writeable: bool,
        kept: tuple[int, ...],
        shape: tuple[int, ...] | None = None,
    ) -> np.ndarray:
        dtype, count = _dtype(name), math.prod(kept)
        array = np.frombuffer(self._arrays, dtype, count, start) if count else np.empty(0, dtype)
        array = array.reshape(kept, order=order)
        if shape is None:
            return array.copy(order="K") if writeable else array
        array = np.array(np.broadcast_to(array, shape), order=order)
        array.flags.writeable = writeable
        return array

    def function(self, module: str, place: str, *parts: Any) -> Callable[..., Any]:
        defaults, keywords, *cells = self.terms(parts)
        code = places.code_at(module, place)
        closure = tuple(map(types.CellType, cells))
        made = types.FunctionType(code, vars(sys.modules[module]), code.co_name, defaults, closure)
        made.__kwdefaults__ = keywords
        return made

    def record(self, kind: Any, *parts: Any) -> Any:
        return self.term(kind)(*self.terms(parts))

    def instance(self, *parts: Any) -> Any:
        kind, state = self.terms(parts)
        made = object.__new__(kind)
        vars(made).update(state)
        return made

    def partial(self, *parts: Any) -> Any:
        function, args, keywords = self.terms(parts)
        return functools.partial(function, *args, **keywords)


_MAKERS: dict[str, Callable[..., Any]] = {
    "tuple": lambda decoder, *parts: tuple(decoder.terms(parts)),
    "list": lambda decoder, *parts: decoder.terms(parts),
    "dict": _Decoder.dict,
    "slice": lambda decoder, *parts: slice(*decoder.terms(parts)),
    "range": lambda decoder, *parts: range(*parts),
    "ellipsis": lambda decoder: ...,
    "dtype": lambda decoder, name: _dtype(name),
    "scalar": lambda decoder, *parts: decoder.array(*parts)[()],
    "array": _Decoder.array,
    "record": _Decoder.record,
    "instance": _Decoder.instance,
    "partial": _Decoder.partial,
    "function": _Decoder.function,
    "attribute": lambda decoder, owner, name: getattr(decoder.term(owner), name),
    "named": lambda decoder, module, name: _attribute(module, name),
}
