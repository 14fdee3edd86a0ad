"""Lowering: a jaxpr becomes a Program.

Every call-like equation is inlined, every parameter resolved, and each equation
turned into instructions by the rule of its primitive. Equal specialisations are
made once per lowering, so that unrolled kernels (thousands of equations of a
few kinds) cost a dictionary look-up each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from pallas_shim import jax_compat
from pallas_shim.evaluator import registry
from pallas_shim.evaluator.program import (
    PURE,
    ArrayType,
    Effects,
    Instruction,
    KeyType,
    Operation,
    Program,
    RefType,
    Region,
    Type,
    Value,
    make_instruction,
)
from pallas_shim.evaluator.registry import LOWERING_RULES, Unsupported
from pallas_shim.evaluator.specialise import specialise
from pallas_shim.refusal import Refusal


def lower(
    jaxpr: Any,
    consts: Sequence[Any] = (),
    name: str = "program",
    axes: Mapping[Any, int] = MappingProxyType({}),
) -> Program:
    """Lowers a jaxpr to a Program whose parameters are the jaxpr's inputs.

    Args:
      jaxpr: a JAX Jaxpr or ClosedJaxpr, of any supported version.
      consts: values of the jaxpr's constvars, where it does not hold its own.
      name: for messages.
      axes: the sizes of the named axes of the devices that the jaxpr is for.

    Raises:
      Unsupported: some primitive has no rule, or its rule refuses this case. The
        error names the primitive and the user's source line.
    """
    registry.load()
    lowering = Lowering(axes)
    opened, _ = jax_compat.open_jaxpr(jaxpr)
    try:
        params = tuple(Value(lowering.type(v.aval)) for v in opened.invars)
        with lowering.block() as body:
            results = lowering.inline(jaxpr, params, consts)
    except Unsupported:
        raise
    except Refusal as refused:  # of an input, or of a captured value
        raise Unsupported("type", str(refused)) from refused
    return Program(name, Region(params, tuple(body), tuple(results)))


def type_of(aval: Any) -> Type:
    """The evaluator's type of a JAX abstract value.

    Raises:
      UnsupportedType: it has none.
    """
    shape, dtype, space, key_ndim = jax_compat.describe_aval(aval)
    if space is not None:
        return RefType(shape, dtype, space, key_ndim)
    return KeyType(shape, dtype, key_ndim) if key_ndim else ArrayType(shape, dtype)


class KernelScope(NamedTuple):
    """The kernel that is being lowered.

    ``indices`` and ``sizes`` are its program ids and its grid's sizes; ``names`` gives the
    index and size of the axes that have a name. ``shared`` holds the refs that are made once
    for all cells, by whatever asked for them: see `Lowering.shared`. ``checked`` is how its
    memory is checked, if it is; ``for_device``: the user asked for no interpreter.
    """

    indices: Sequence[Value]
    sizes: Sequence[Value]
    names: Mapping[Any, tuple[Value, Value]]
    shared: dict[Any, Value]
    checked: jax_compat.CheckedMemory | None
    for_device: bool


class Lowering:
    """The state of one lowering, and what lowering rules emit instructions with.

    ``kernels`` is a stack, the innermost last. ``axes``: see `lower`.
    """

    def __init__(self, axes: Mapping[Any, int]) -> None:
        self.axes = axes
        self.body: list[Instruction] = []
        self.source: Any = None
        self._defining = False
        self.kernels: list[KernelScope] = []
        self._operations: dict[Any, Operation] = {}
        self._consts: dict[Any, Value] = {}
        self._types: dict[Any, Type] = {}

    # -- jaxprs ---------------------------------------------------------------------------

    def inline(
        self, jaxpr: Any, args: Sequence[Value], consts: Sequence[Any] = ()
    ) -> list[Value]:
        """Emits a jaxpr's equations here; ``args`` stand for its inputs. Returns its outputs."""
        jaxpr, own_consts = jax_compat.open_jaxpr(jaxpr)
        env: dict[Any, Value] = {}
        # Given consts come first, since those that a jaxpr of run_scoped holds may be tracers.
        for var, const in zip(jaxpr.constvars, consts or own_consts, strict=True):
            if not isinstance(const, Value):
                const = self.const(const, self.type(var.aval))
            env[var] = const
        env.update(zip(jaxpr.invars, args, strict=True))
        outer = self.source
        for eqn in jaxpr.eqns:
            if not self._defining:
                self.source = jax_compat.source_of(eqn) or outer
            ins = [self._read(env, atom) for atom in eqn.invars]
            try:
                outs = self.eqn(eqn, ins)
            except Unsupported as unsupported:
                if unsupported.source is None:
                    unsupported.source = jax_compat.user_source(self.source)
                raise
            except Refusal as refused:
                name = jax_compat.primitive_name(eqn.primitive)
                place = jax_compat.user_source(self.source)
                raise Unsupported(name, str(refused), place) from refused
            env.update(zip(eqn.outvars, outs, strict=True))
        self.source = outer
        return [self._read(env, atom) for atom in jaxpr.outvars]

    def inline_definition(self, jaxpr: Any, args: Sequence[Value]) -> list[Value]:
        """As `inline`, of a jaxpr that JAX or we made of an equation of the user's: where its own
        equations come from is nothing to the user."""
        outer, self._defining = self._defining, True
        try:
            return self.inline(jaxpr, args)
        finally:
            self._defining = outer

    def _read(self, env: dict[Any, Value], atom: Any) -> Value:
        if jax_compat.is_literal(atom):
            return self.const(atom.val, self.type(atom.aval))
        return env[atom]

    def eqn(self, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
        name = jax_compat.primitive_name(eqn.primitive)
        structured = LOWERING_RULES.get(name)
        if structured is not None:
            return structured(self, eqn, ins)
        outs = tuple([self.type(v.aval) for v in eqn.outvars])
        return self.apply(name, ins, outs, eqn.params, multiple=eqn.primitive.multiple_results)

    def type(self, aval: Any) -> Type:
        """The evaluator's type of a JAX abstract value."""
        try:
            return self._types[aval]
        except KeyError:
            result = self._types[aval] = type_of(aval)
            return result

    # -- emitting -------------------------------------------------------------------------

    def const(self, array: Any, type: Type | None = None) -> Value:
        """A value known now. Equal small constants are one value."""
        array = jax_compat.to_numpy(array, None if type is None else type.dtype)
        type = type or ArrayType(array.shape, array.dtype)
        if array.size > 16:
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
        key: Any = (primitive, tuple([v.type for v in ins]), tuple(outs), tuple(params.items()))
        try:
            operation = self._operations.get(key)
        except TypeError:  # some parameter can't be hashed: specialise each time
            key, operation = None, None
        if operation is None:
            operation = specialise(primitive, key[1] if key else tuple(v.type for v in ins),
                                   tuple(outs), params, multiple)
            if key is not None:
                self._operations[key] = operation
        return self.emit(operation, ins)

    def memory(
        self,
        name: str,
        ins: Sequence[Value],
        outs: Sequence[Type],
        fn: Callable[..., Any],
        effects: Effects,
        *,
        params: Mapping[str, Any] | None = None,
        key: Any = None,
        view: bool = False,
    ) -> tuple[Value, ...]:
        """Emits an operation with effects whose callable a lowering rule made itself.

        ``key``: whatever, beside name and types, tells this callable from others of the
        same name; equal keys share one operation. None: never shared.
        """
        types = tuple(v.type for v in ins)
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
    ) -> None:
        """Emits what makes a ref that other instructions use already."""
        types = tuple(v.type for v in ins)
        operation = Operation(name, {}, types, (ref.type,), fn, effects, view)
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
            name, params, tuple(v.type for v in ins), tuple(outs), None, PURE, multiple=True
        )
        return self.emit(operation, ins, tuple(regions))

    def emit(
        self, operation: Operation, ins: Sequence[Value], regions: tuple[Region, ...] = ()
    ) -> tuple[Value, ...]:
        outs = tuple(map(Value, operation.outs))
        self.body.append(make_instruction((operation, tuple(ins), outs, regions, self.source)))
        return outs

    def shared(self, key: Any, type: RefType, primitive: str) -> Value:
        """Memory of the innermost kernel, one ref for all its cells, made when it starts.

        Raises:
          Unsupported: there is no kernel around ``primitive``.
        """
        if not self.kernels:
            raise Unsupported(primitive, "used outside a kernel")
        return self.kernels[-1].shared.setdefault(key, Value(type))

    @property
    def checked(self) -> jax_compat.CheckedMemory | None:
        """How the memory of the kernel that is being lowered is checked, if it is."""
        return self.kernels[-1].checked if self.kernels else None

    @property
    def for_device(self) -> bool:
        """Whether this is inside a kernel for which the user asked for no interpreter."""
        return bool(self.kernels) and self.kernels[-1].for_device

    # -- regions --------------------------------------------------------------------------

    @contextmanager
    def block(self) -> Iterator[list[Instruction]]:
        """Instructions emitted inside the with-statement go to the yielded list."""
        outer, self.body = self.body, []
        try:
            yield self.body
        finally:
            self.body = outer

    def region(
        self, params: Sequence[Type], build: Callable[[Sequence[Value]], Sequence[Value]]
    ) -> Region:
        """A region with the given parameter types, whose instructions ``build`` emits."""
        values = tuple(map(Value, params))
        with self.block() as body:
            results = tuple(build(values))
        return Region(values, tuple(body), results)


def scalar(value: int) -> np.ndarray:
    """An int32 scalar, the type of JAX's indices and program ids."""
    return np.asarray(value, np.int32)
