"""Lowering: a jaxpr becomes a Program.

Lowering inlines every call-like equation and resolves every parameter. The rule of its primitive
turns each equation into instructions.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from pallas_shim import jax_compat
from pallas_shim.evaluator import memory, registry
from pallas_shim.evaluator.builder import Builder
from pallas_shim.evaluator.checks.lowering import Checker, Checks
from pallas_shim.evaluator.checks.place import UnknownPlace, located, numbers
from pallas_shim.evaluator.machine.notes import note_elements, note_touch, note_unseen
from pallas_shim.evaluator.machine.programs import Machine
from pallas_shim.evaluator.program import (
    ArrayType,
    KeyType,
    Program,
    RefType,
    Region,
    Type,
    Value,
)
from pallas_shim.evaluator.registry import LOWERING_RULES, Unsupported
from pallas_shim.evaluator.scalar_types import is_float
from pallas_shim.evaluator.watching import Watch
from pallas_shim.jax_compat import state
from pallas_shim.refusal import Refusal

# Primitives whose lines are told when programs wait for ever. JAX keeps only some frames of each,
# which may be its own.
_NAMED_TO_THE_USER = ("dma_", "semaphore_")


def lower(
    jaxpr: Any,
    consts: Sequence[Any] = (),
    name: str = "program",
    axes: Mapping[Any, int] = MappingProxyType({}),
    on_mesh: bool = False,
    checks: Checks | None = None,
    timed: bool = False,
    watch: Watch | None = None,
    tpu_cores: int = 1,
) -> Program:
    """Lowers a jaxpr to a Program whose parameters are the jaxpr's inputs.

    Args:
      jaxpr: a JAX Jaxpr or ClosedJaxpr, of any supported version.
      consts: values of the jaxpr's constvars, if the jaxpr does not hold its own.
      name: for messages.
      axes: the sizes of the named axes of the devices that the jaxpr is for.
      on_mesh: whether arrays may be laid out over several devices, which changes no value.
      checks: what kernels are checked for while they run, if they are.
      timed: copies may happen later than they start, and programs run in any order, as
        `machine.order` says. No pass knows of that, so such a program can't be optimised.
      watch: is told of the cells of each kernel when the program runs.
      tpu_cores: the cores of the TPU that kernels are for, if they are for no interpreter.

    Raises:
      Unsupported: some primitive has no rule, or its rule refuses this case. The
        error names the primitive and the user's source line.
    """
    registry.load()
    lowering = Lowering(axes, on_mesh, checks, timed, watch, tpu_cores)
    if watch is not None:
        watch.named(lowering.names)
    opened, _ = jax_compat.open_jaxpr(jaxpr)
    try:
        params = tuple(Value(lowering.type(v.aval)) for v in opened.invars)
        with lowering.block() as body:
            results = lowering.inline(jaxpr, params, consts)
    except Unsupported:
        raise
    except Refusal as refused:  # of an input or a captured value
        raise Unsupported("type", str(refused)) from refused
    return Program(name, Region(params, tuple(body), tuple(results)))


def type_of(aval: Any) -> Type:
    """The evaluator's type of a JAX abstract value.

    Raises:
      UnsupportedType: the evaluator has no such type.
    """
    shape, dtype, space, key_ndim = jax_compat.describe_aval(aval)
    if space is not None:
        return RefType(shape, dtype, space, key_ndim)
    return KeyType(shape, dtype, key_ndim) if key_ndim else ArrayType(shape, dtype)


class KernelScope(NamedTuple):
    """The kernel that is being lowered.

    ``indices`` and ``sizes`` are its program ids and its grid's sizes. ``names`` gives the index
    and size of each axis that has a name. ``shared`` holds the refs that are made once for all
    cells, by the keys of `Lowering.shared`. ``checked`` says how the kernel's memory is checked,
    if it is. ``for_device``: the user asked for no interpreter.
    """

    indices: Sequence[Value]
    sizes: Sequence[Value]
    names: Mapping[Any, tuple[Value, Value]]
    shared: dict[Any, Value]
    checked: jax_compat.InterpretOptions | None
    for_device: bool


_NO_CHECKS = contextlib.nullcontext()

# The primitives that JAX's TPU interpreter doesn't hand to JAX.
_INTERPRETED = frozenset(
    {
        "cond", "delay", "dma_start", "dma_wait", "get", "get_barrier_semaphore", "jit",
        "masked_load", "masked_swap", "pjit", "prng_random_bits", "prng_seed", "run_scoped", "scan",
        "semaphore_signal", "semaphore_wait", "swap", "while",
    }
)  # fmt: skip


def _is_float(type: Type) -> bool:
    return isinstance(type, ArrayType) and is_float(type.dtype)


class Lowering(Builder):
    """The builder that lowering rules get. It reads jaxprs, too.

    ``kernels`` is a stack, the innermost last. ``axes`` and ``on_mesh``: see `lower`.
    ``machine`` describes the programs around this code. ``mesh_axes`` are all axes of the mesh,
    in the mesh's order. ``names`` gives the user's name of a ref. ``checker`` emits checks of
    accesses; None unless they are asked for. ``watch`` and ``tpu_cores``: see `lower`.
    """

    def __init__(
        self,
        axes: Mapping[Any, int],
        on_mesh: bool = False,
        checks: Checks | None = None,
        timed: bool = False,
        watch: Watch | None = None,
        tpu_cores: int = 1,
    ) -> None:
        super().__init__()
        self.checker = None if checks is None else Checker(self, checks)
        self.axes = axes
        self.on_mesh = on_mesh
        self.watch = watch
        self.tpu_cores = tpu_cores
        self._defining = False
        self.kernels: list[KernelScope] = []
        self.machine = Machine(timed)
        self.mesh_axes: tuple[Any, ...] = ()
        self.names: dict[Value, str] = {}
        self._types: dict[Any, Type] = {}
        self._unnoted = False
        self._computes_floats = False
        self._infinite: dict[Type, Value] = {}

    # -- jaxprs ---------------------------------------------------------------------------

    def inline(
        self, jaxpr: Any, args: Sequence[Value], consts: Sequence[Any] = ()
    ) -> list[Value]:
        """Emits a jaxpr's equations here, with ``args`` as its inputs. Returns its outputs."""
        jaxpr, own_consts = jax_compat.open_jaxpr(jaxpr)
        env: dict[Any, Value] = {}
        # Given consts come first, since the consts in a jaxpr of run_scoped may be tracers.
        for var, const in zip(jaxpr.constvars, consts or own_consts, strict=True):
            if not isinstance(const, Value):
                const = self.const(const, self.type(var.aval))
            env[var] = const
        skips = self._skips_floats
        env.update(zip(jaxpr.invars, args, strict=True))
        if skips:
            env = {var: self._skipped(value) for var, value in env.items()}
        outer, start = self.source, len(self.body)
        # All in one function: deep jaxprs need few frames for each level.
        with _NO_CHECKS if self.checker is None else self.checker.uses(jaxpr):
            for eqn in jaxpr.eqns:
                if not self._defining:
                    self.source = self._line_of(eqn) or outer
                ins = [self._read(env, atom) for atom in eqn.invars]
                try:
                    outs = self._eqn_without_floats(eqn, ins) if skips else self.eqn(eqn, ins)
                except Unsupported as unsupported:
                    if unsupported.source is None:
                        unsupported.source = jax_compat.user_source(self.source)
                    raise
                except Refusal as refused:
                    name = jax_compat.primitive_name(eqn.primitive)
                    place = jax_compat.user_source(self.source)
                    raise Unsupported(name, str(refused), place) from refused
                env.update(zip(eqn.outvars, outs, strict=True))
        if self.watch is not None and not self._defining:
            self.watch.bound(env, self.body[start:])
        self.source = outer
        return [self._read(env, atom) for atom in jaxpr.outvars]

    def inline_definition(self, jaxpr: Any, args: Sequence[Value]) -> list[Value]:
        """Like `inline`, for a jaxpr that JAX or this package made from one equation of the user's.

        The lines where its own equations come from mean nothing to the user.
        """
        outer, self._defining = self._defining, True
        try:
            return self.inline(jaxpr, args)
        finally:
            self._defining = outer

    @property
    def _skips_floats(self) -> bool:
        """Whether the user wants that floats aren't computed here."""
        checked = self.checked
        of_kernel = checked is not None and checked.skips_floats
        return of_kernel and not self._defining and not self._computes_floats

    def _skipped(self, value: Value) -> Value:
        """An infinite value in the place of a float."""
        type = value.type
        if not _is_float(type):
            return value
        if type not in self._infinite:
            self._infinite[type] = self.const(np.full(type.shape, np.inf, type.dtype), type)
        return self._infinite[type]

    def _eqn_without_floats(self, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
        """Emits an equation as JAX's interpreter does that skips floats. It reads the jaxprs of
        control flow and accesses memory. Of all else it skips what gives no other results."""
        interpreted = jax_compat.primitive_name(eqn.primitive) in _INTERPRETED
        types = [self.type(v.aval) for v in eqn.outvars]
        if not interpreted and all(map(_is_float, types)):
            return [self._skipped(Value(type)) for type in types]
        self._computes_floats = not interpreted
        try:
            return [self._skipped(value) for value in self.eqn(eqn, ins)]
        finally:
            self._computes_floats = False

    def _line_of(self, eqn: Any) -> Any:
        """Where an equation comes from. None if only those around it tell the user's line."""
        source = jax_compat.source_of(eqn)
        wanted = self.checker is not None or self.machine.timed
        if wanted or eqn.primitive.name.startswith(_NAMED_TO_THE_USER):
            return source if jax_compat.user_source(source) is not None else None
        return source

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

    def region(
        self, params: Sequence[Type], build: Callable[[Sequence[Value]], Sequence[Value]]
    ) -> Region:
        if self.checker is None:
            return super().region(params, build)
        with self.checker.path():
            return super().region(params, build)

    def touch(
        self, ref: Value, path: memory.Path, leaves: Sequence[Value], writes: bool
    ) -> None:
        """Notes an access to memory for those who watch for races, if somebody may."""
        if self.machine.timed and self.kernels and not self._unnoted:
            note_touch(self, ref, path, leaves, writes)

    @contextlib.contextmanager
    def touching(
        self, view: state.RefView, mask: Value | None, writes: bool
    ) -> Iterator[None]:
        """A context that emits one access to some elements. It is noted element by element, in the
        place of the loads and stores that it is composed of."""
        if not self.machine.timed or not self.kernels or self._unnoted or view.ref.ref.key_ndim:
            yield
            return
        try:
            place, leaves = located(view, mask)
        except UnknownPlace as unknown:
            note_unseen(self, f"an access to {self.names.get(view.ref, 'a ref')}: {unknown}")
        else:
            shape = view.ref.type.shape
            find = functools.partial(numbers, place, shape)
            note_elements(self, view.ref, leaves, find, place.text, writes)
        with self.unnoted():
            yield

    @contextlib.contextmanager
    def unnoted(self) -> Iterator[None]:
        """A context of accesses that aren't noted: they need no order, or are noted as one."""
        outer, self._unnoted = self._unnoted, True
        try:
            yield
        finally:
            self._unnoted = outer

    # -- kernels --------------------------------------------------------------------------

    def shared(self, key: Any, type: RefType, primitive: str) -> Value:
        """Memory of the innermost kernel: one ref for all its cells, made when the kernel starts.

        Raises:
          Unsupported: there is no kernel around ``primitive``.
        """
        if not self.kernels:
            raise Unsupported(primitive, "used outside a kernel")
        return self.kernels[-1].shared.setdefault(key, Value(type))

    @property
    def checked(self) -> jax_compat.InterpretOptions | None:
        """The way in which memory of the kernel being lowered is checked. None: it isn't."""
        return self.kernels[-1].checked if self.kernels else None

    @property
    def for_device(self) -> bool:
        """Whether this is inside a kernel for which the user asked for no interpreter."""
        return bool(self.kernels) and self.kernels[-1].for_device


def scalar(value: int) -> np.ndarray:
    """An int32 scalar, the type of JAX's indices and program ids."""
    return np.asarray(value, np.int32)
