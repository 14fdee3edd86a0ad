"""The instructions that check accesses. Lowering rules call this beside each access they emit."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pallas_shim.evaluator.checks import undefined
from pallas_shim.evaluator.checks.place import AnyPlace, Unknown, place_of, resolved
from pallas_shim.evaluator.checks.run import Activation, Site
from pallas_shim.evaluator.checks.shadow import DEFINED, NEVER, Shadow
from pallas_shim.evaluator.program import Array, ArrayType, Effects, RefType, Value
from pallas_shim.jax_compat import state

if TYPE_CHECKING:  # lower is in a higher layer
    from pallas_shim.evaluator.lower import Lowering

OBJECT = ArrayType((), np.dtype(object))  # of what only checks look at
_IO = Effects(io=True)


class Checks(NamedTuple):
    """What is asked of a checked program.

    ``kinds``: of findings. ``skipped(kernel, reason)`` is told what is not checked.
    ``disturbing``: it can replace undefined elements, to see whether they matter.
    """

    kinds: frozenset[str]
    skipped: Callable[[str, str], None]
    disturbing: bool = False


@dataclasses.dataclass(eq=False)
class Memory:
    """A piece of memory in a kernel.

    ``shadow`` is its shadow when it runs; None if all of it is defined. ``needed``: some check
    looks at the shadow, so the instructions that keep it stay.
    """

    name: str
    shadow: Value | None
    needed: bool = False


class Checker:
    """Emits checks for the kernel that is being lowered.

    ``memory`` are the refs that it knows. ``defined`` are those of which all elements are defined
    at this place of the program. ``activation``: see `run.Activation`; None outside kernels.
    """

    def __init__(self, lowering: Lowering, asked: Checks) -> None:
        self.lowering = lowering
        self.asked = asked
        self.memory: dict[Value, Memory] = {}
        self.defined: set[Value] = set()
        self.activation: Value | None = None
        self.kernel = ""
        self._numbers = itertools.count()
        self._used: list[set[Any]] = []

    def checks(self, *kinds: str) -> bool:
        """Whether one of these kinds is asked for."""
        return not self.asked.kinds.isdisjoint(kinds)

    def skip(self, reason: str) -> None:
        """Notes that something in this kernel is not checked."""
        self.asked.skipped(self.kernel, reason)

    # -- where lowering stands ------------------------------------------------------------------

    @contextmanager
    def path(self) -> Iterator[None]:
        """A part of the program that may not run: what it defines may be undefined after it."""
        outer = set(self.defined)
        try:
            yield
        finally:
            self.defined = outer

    @contextmanager
    def uses(self, jaxpr: Any) -> Iterator[None]:
        """A context in which the equations of a jaxpr are lowered."""
        used = {id(atom) for eqn in jaxpr.eqns for atom in eqn.invars}
        self._used.append(used | {id(atom) for atom in jaxpr.outvars})
        try:
            yield
        finally:
            self._used.pop()

    def is_used(self, var: Any) -> bool:
        """Whether anything uses the result of the equation that is being lowered."""
        return id(var) in self._used[-1]

    def site(self, ref: Value, what: str) -> Site:
        known = self.memory.get(ref)
        name = known.name if known is not None else self.lowering.names.get(ref)
        return Site(next(self._numbers), name, what, self.lowering.source)

    def emit(
        self,
        checks: str,
        ins: Sequence[Value],
        fn: Callable[..., tuple[()]],
        memory: Memory | None = None,
        place: AnyPlace | None = None,
    ) -> None:
        """Emits a check. It goes again if ``memory`` turns out not to need it."""
        params = {"checks": checks, "memory": memory, "place": place}
        self.lowering.memory("check", ins, [], fn, _IO, params=params)

    # -- memory ---------------------------------------------------------------------------------

    def allocated(self, ref: Value, name: str | None, code: int = NEVER) -> None:
        """Emits the shadow of memory that was allocated just now."""
        if self.activation is None or not _has_elements(ref.ref):
            return
        shape = ref.ref.shape
        memory = self.memory[ref] = Memory(name or "a ref", Value(OBJECT))
        assert memory.shadow is not None
        self.define(memory.shadow, "shadow", lambda: Shadow(shape, code), memory)
        if code == DEFINED:
            self.defined.add(ref)

    def define(
        self,
        value: Value,
        checks: str,
        make: Callable[..., Any],
        memory: Memory | None,
        ins: Sequence[Value] = (),
    ) -> None:
        """Emits what makes an object that checks look at."""
        params = {"checks": checks, "memory": memory, "place": None}
        self.lowering.define("check_state", value, ins, make, _IO, params=params)

    # -- accesses -------------------------------------------------------------------------------

    def read(
        self,
        view: state.RefView,
        value: Value,
        mask: Value | None = None,
        what: str = "reads",
    ) -> Value:
        """Emits the checks of a load, and returns the loaded ``value`` as the program uses it."""
        site = self.site(view.ref, what)
        if self.activation is None:
            return value
        found = self._place(view, mask)
        if found is None:
            return value
        place, leaves = found
        self._bounds(site, place, leaves)
        memory = self._watched(view.ref)
        if memory is None or view.ref in self.defined:
            return value
        memory.needed = True
        assert memory.shadow is not None
        ins = [self.activation, memory.shadow, *leaves]
        self.emit("read", ins, undefined.check(site, place), memory, place)
        if not self.asked.disturbing or not isinstance(value.type, ArrayType):
            return value
        disturb = undefined.disturb(site, place, value.type.dtype)
        (value,) = self.lowering.memory(
            "disturb", [value, *ins], [value.type], disturb, _IO, view=True
        )
        return value

    def write(
        self, view: state.RefView, mask: Value | None = None, what: str = "writes"
    ) -> None:
        """Emits the checks of a store."""
        site = self.site(view.ref, what)
        if self.activation is None:
            return
        found = self._place(view, mask)
        if found is not None:
            self._bounds(site, *found)
        memory = self._watched(view.ref)
        if memory is None or view.ref in self.defined:
            return
        assert memory.shadow is not None
        if found is None:  # it may have written all
            self.emit("written", [memory.shadow], undefined.write_all, memory)
            return
        place, leaves = found
        if place.whole:
            self.emit("written", [memory.shadow], undefined.write_all, memory)
            self.defined.add(view.ref)
        else:
            self.emit("written", [memory.shadow, *leaves], undefined.write(place), memory, place)

    def copy(
        self,
        source: state.RefView,
        target: state.RefView,
        masks: tuple[Value | None, Value | None] = (None, None),
    ) -> None:
        """Emits the checks of a copy. It also copies what is undefined. ``masks``: the elements
        of each side that are copied."""
        reads, writes = self.site(source.ref, "copies from"), self.site(target.ref, "copies to")
        if self.activation is None:
            return
        places = self._place(source, masks[0]), self._place(target, masks[1])
        for site, found in zip((reads, writes), places, strict=True):
            if found is not None:
                self._bounds(site, *found)
        memory = self._watched(target.ref)
        if memory is None:
            return
        assert memory.shadow is not None
        from_, to = places
        given = self._watched(source.ref)
        if source.ref in self.defined:
            given = None
        if to is None or from_ is None or given is None:
            if target.ref in self.defined:
                return
            if to is None or to[0].whole:
                self.emit("written", [memory.shadow], undefined.write_all, memory)
                if to is not None:
                    self.defined.add(target.ref)
            else:
                fn = undefined.write(to[0])
                self.emit("written", [memory.shadow, *to[1]], fn, memory, to[0])
            return
        assert given.shadow is not None
        self.defined.discard(target.ref)
        given.needed = memory.needed = True
        fn = undefined.copy(from_[0], to[0], len(from_[1]))
        ins = [given.shadow, memory.shadow, *from_[1], *to[1]]
        self.emit("copied", ins, fn, memory, to[0])

    def _watched(self, ref: Value) -> Memory | None:
        """The memory of a ref if its undefined elements are looked for."""
        memory = self.memory.get(ref)
        if memory is None or memory.shadow is None:
            return None
        return memory if self.checks("uninitialized", "blocks", "races") else None

    def _place(
        self, view: state.RefView, mask: Value | None
    ) -> tuple[AnyPlace, list[Value]] | None:
        """The place of an access, and the operands that it depends on. None, and a note for the
        user, if it can't be told."""
        type = view.ref.ref
        if type.key_ndim:
            return None
        try:
            path, leaves = resolved(view.steps)
            counts = [leaf.type.shape for leaf in leaves]
            place = place_of(type.shape, type.dtype, path, counts, mask is not None)
        except Unknown as unknown:
            name = self.lowering.names.get(view.ref, "a ref")
            self.skip(f"an access to {name}: {unknown}")
            return None
        return place, leaves if mask is None else [*leaves, mask]

    def _bounds(self, site: Site, place: AnyPlace, leaves: Sequence[Value]) -> None:
        if place.proven or not self.checks("bounds"):
            return
        assert self.activation is not None
        self.emit("bounds", [self.activation, *leaves], bounds(site, place), place=place)


def _has_elements(type: RefType) -> bool:
    return not type.space.startswith("semaphore") and not type.key_ndim


def bounds(site: Site, place: AnyPlace) -> Callable[..., tuple[()]]:
    """The check that an access stays inside its ref."""

    def check(activation: Activation, *leaves: Array) -> tuple[()]:
        wrong = place.outside(leaves)
        if wrong is not None:
            activation.found(
                "bounds", "outside-ref",
                f"{site.what} {site.ref or 'a ref'} outside: {wrong}",
                "Keep the indices inside the ref, or mask the elements that leave it",
                site, place.text(leaves),
            )  # fmt: skip
        return ()

    return check
