"""The builder, which emits a program's instructions.

Equal specialisations are made once, so an unrolled kernel (thousands of equations of a few kinds)
costs a dictionary look-up for each equation. `lower.Lowering` is a builder that reads jaxprs. A
pass that puts new instructions into a program has a builder of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from pallas_shim import jax_compat
from pallas_shim.evaluator.program import (
    PURE,
    ArrayType,
    Effects,
    Instruction,
    Operation,
    Region,
    Type,
    Value,
    make_instruction,
)
from pallas_shim.evaluator.specialise import specialise

# Larger constants are not compared with one another, because comparing them takes time.
_LARGEST_SHARED = 16


class Builder:
    """Emits instructions to ``body``. Each gets ``source``, its line in the user's code."""

    def __init__(self) -> None:
        self.body: list[Instruction] = []
        self.source: Any = None
        self._operations: dict[Any, Operation] = {}
        self._consts: dict[Any, Value] = {}

    # -- operations -------------------------------------------------------------------------

    def operation(
        self,
        primitive: str,
        ins: tuple[Type, ...],
        outs: tuple[Type, ...],
        params: Mapping[str, Any],
        multiple: bool = False,
    ) -> Operation:
        """A primitive that has a rule, specialised. Asking again gives the same object.

        Raises:
          Unsupported: no rule, or the rule refuses.
        """
        key: Any = (primitive, ins, outs, tuple(params.items()))
        try:
            operation = self._operations.get(key)
        except TypeError:  # arrays can't be hashed, but their contents can be compared
            key = (primitive, ins, outs, tuple([(k, _hashable(v)) for k, v in params.items()]))
            try:
                operation = self._operations.get(key)
            except TypeError:  # another parameter can't be hashed either: specialise each time
                return specialise(primitive, ins, outs, params, multiple)
        if operation is None:
            operation = specialise(primitive, ins, outs, params, multiple)
            self._operations[key] = operation
        return operation

    def once(self, key: Any, make: Callable[[], Operation]) -> Operation:
        """Returns what ``make`` gives, which is called only once for each key.

        The key starts with the operation's name, and holds all that tells the operation from others
        of that name.
        """
        operation = self._operations.get(key)
        if operation is None:
            operation = self._operations[key] = make()
        return operation

    # -- emitting -------------------------------------------------------------------------

    def const(self, array: Any, type: Type | None = None) -> Value:
        """A value that is known at compile time. Equal small constants are one value."""
        array = jax_compat.to_numpy(array, None if type is None else type.dtype)
        type = type or ArrayType(array.shape, array.dtype)
        if array.size > _LARGEST_SHARED:
            return Value(type, array)
        key = (type, array.tobytes())
        if key not in self._consts:
            self._consts[key] = Value(type, array)
        return self._consts[key]

    def apply(
        self,
        primitive: str,
        ins: Sequence[Value],
        outs: Sequence[Type],
        params: Mapping[str, Any],
        multiple: bool = False,
    ) -> tuple[Value, ...]:
        """Emits a primitive that has a rule."""
        types = tuple([v.type for v in ins])
        return self.emit(self.operation(primitive, types, tuple(outs), params, multiple), ins)

    def apply_one(self, primitive: str, ins: Sequence[Value], out: Type, **params: Any) -> Value:
        """Emits a primitive that has a rule and one result. Returns that result."""
        (result,) = self.apply(primitive, ins, (out,), params)
        return result

    def memory(
        self,
        name: str,
        ins: Sequence[Value],
        outs: Sequence[Type],
        fn: Callable[..., Any] | None,
        effects: Effects,
        *,
        params: Mapping[str, Any] | None = None,
        key: Any = None,
        view: bool = False,
    ) -> tuple[Value, ...]:
        """Emits an operation with effects. A lowering rule made its callable.

        ``key`` tells this callable from others with the same name and types. Operations with equal
        keys are one object. None: the operation is never shared.
        """
        types = tuple([v.type for v in ins])
        full = (name, types, tuple(outs), key)
        operation = self._operations.get(full) if key is not None else None
        if operation is None:
            operation = Operation(
                name, params or {}, types, tuple(outs), fn, effects, view, len(outs) != 1
            )
            if key is not None:
                self._operations[full] = operation
        return self.emit(operation, ins)

    def define(
        self,
        name: str,
        ref: Value,
        ins: Sequence[Value],
        fn: Callable[..., Any],
        effects: Effects,
        view: bool = False,
        params: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """Emits the definition of a value that other instructions use already."""
        types = tuple([v.type for v in ins])
        operation = Operation(name, params, types, (ref.type,), fn, effects, view)
        self.body.append(Instruction(operation, tuple(ins), (ref,), (), self.source))

    def structured(
        self,
        name: str,
        ins: Sequence[Value],
        outs: Sequence[Type],
        regions: Sequence[Region],
        params: Mapping[str, Any],
    ) -> tuple[Value, ...]:
        """Emits an operation with regions, which execute.py runs."""
        operation = Operation(
            name, params, tuple([v.type for v in ins]), tuple(outs), None, PURE, multiple=True
        )
        return self.emit(operation, ins, tuple(regions))

    def emit(
        self, operation: Operation, ins: Sequence[Value], regions: tuple[Region, ...] = ()
    ) -> tuple[Value, ...]:
        outs = tuple(map(Value, operation.outs))
        self.body.append(make_instruction((operation, tuple(ins), outs, regions, self.source)))
        return outs

    # -- regions --------------------------------------------------------------------------

    def block(self, body: list[Instruction] | None = None) -> Emitting:
        """``with builder.block() as body`` emits the instructions inside it to ``body``.

        That is the given list, or a new one.
        """
        return Emitting(self, [] if body is None else body)

    def region(
        self, params: Sequence[Type], build: Callable[[Sequence[Value]], Sequence[Value]]
    ) -> Region:
        """A region with the given parameter types, whose instructions ``build`` emits."""
        values = tuple(map(Value, params))
        with self.block() as body:
            results = tuple(build(values))
        return Region(values, tuple(body), results)


class Emitting:
    """What `Builder.block` returns. (Each region has one, and a generator takes longer.)"""

    __slots__ = ("_builder", "_body", "_outer")

    def __init__(self, builder: Builder, body: list[Instruction]) -> None:
        self._builder, self._body = builder, body

    def __enter__(self) -> list[Instruction]:
        self._outer, self._builder.body = self._builder.body, self._body
        return self._body

    def __exit__(self, *error: object) -> None:
        self._builder.body = self._outer


def _hashable(param: Any) -> Any:
    """Makes a parameter hashable for a key: an array is replaced by its contents."""
    if isinstance(param, np.ndarray):
        return (param.shape, param.dtype, param.tobytes())
    return param
