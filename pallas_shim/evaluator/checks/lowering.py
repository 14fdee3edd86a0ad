"""The instructions that check accesses. Lowering rules call this beside each access they emit."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pallas_shim.evaluator import refs
from pallas_shim.evaluator.checks import blocks, copies, global_memory, races, undefined
from pallas_shim.evaluator.checks import place as places
from pallas_shim.evaluator.checks.place import AnyPlace, UnknownPlace
from pallas_shim.evaluator.checks.run import AccessSite, Activation, current
from pallas_shim.evaluator.checks.shadow import NEVER, Shadow
from pallas_shim.evaluator.program import Array, ArrayType, Effects, RefType, Value
from pallas_shim.jax_compat import state

if TYPE_CHECKING:  # lower is in a higher layer
    from pallas_shim.evaluator.lower import Lowering

OBJECT = ArrayType((), np.dtype(object))  # of what only checks look at
_IO = Effects(io=True)


class Checks(NamedTuple):
    """The checks that are asked of a program.

    ``kinds``: of findings. ``skipped(kernel, reason)`` is told what is not checked.
    ``disturbing``: it can replace undefined elements, to see whether they matter.
    """

    kinds: frozenset[str]
    skipped: Callable[[str, str], None]
    disturbing: bool = False


class Aspect:
    """Something that checks follow of a piece of memory. ``value`` is it when it runs. ``needed``:
    some check looks at it, so the instructions that keep it stay."""

    __slots__ = ("value", "depth", "_needed", "_of")

    def __init__(self, of: Aspect | None = None) -> None:
        """``of``: it is a part of another, which is needed if this is."""
        self.value = Value(OBJECT)
        self.depth = 0  # how many levels of programs are around it
        self._needed = False
        self._of = of

    @property
    def needed(self) -> bool:
        return self._needed if self._of is None else self._of.needed

    @needed.setter
    def needed(self, needed: bool) -> None:
        if self._of is None:
            self._needed = needed
        else:
            self._of.needed = needed


class Memory:
    """A piece of memory in a kernel. An aspect is None if it isn't followed.

    ``codes``: its `shadow.Shadow`; None if all of it is defined. ``flights``: see
    `copies.Flights`. ``history``: see `races.History`. ``semaphores``: see `copies.Semaphores`.
    ``decides``: index maps read it. ``sticks_out``: it is a block on a GPU that may stick out of
    its array. ``reached``: other programs write to it.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.codes: Aspect | None = None
        self.flights: Aspect | None = None
        self.history: Aspect | None = None
        self.semaphores: Aspect | None = None
        self.decides = False
        self.sticks_out = False
        self.reached = False


class Located(NamedTuple):
    """The place of an access, and the operands that it depends on."""

    place: AnyPlace
    leaves: list[Value]


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

    @property
    def follows_codes(self) -> bool:
        """Whether undefined elements are looked for."""
        return self.checks("uninitialized", "blocks", "races")

    def skip(self, reason: str) -> None:
        """Notes that something in this kernel is not checked."""
        self.asked.skipped(self.kernel, reason)

    def next_number(self) -> int:
        """The number of the next site."""
        return next(self._numbers)

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

    def site(self, ref: Value, what: str) -> AccessSite:
        known = self.memory.get(ref)
        name = known.name if known is not None else self.lowering.names.get(ref)
        return AccessSite(self.next_number(), name, what, self.lowering.source)

    def emit(
        self,
        checks: str,
        ins: Sequence[Value],
        fn: Callable[..., tuple[()]],
        of: Aspect | None = None,
        place: AnyPlace | None = None,
    ) -> None:
        """Emits a check. It goes again if ``of`` turns out not to be needed."""
        params = {"checks": checks, "of": of, "place": place}
        failed = functools.partial(self.asked.skipped, self.kernel)
        self.lowering.memory("check", ins, [], _guarded(fn, failed), _IO, params=params)

    def define(
        self,
        value: Value,
        checks: str,
        make: Callable[..., Any],
        of: Aspect | None,
        ins: Sequence[Value] = (),
    ) -> None:
        """Emits what makes an object that checks look at."""
        levels = self.lowering.machine.levels
        if checks == "state" and of is not None and levels:
            of.depth = len(levels)
            make, ins = _shared(make, of), [*ins, levels[-1].number]
        params = {"checks": checks, "of": of, "place": None}
        self.lowering.define("check_state", value, ins, make, _IO, params=params)

    def activate(self, name: str, source: str | None) -> Value:
        """Emits the activation of a kernel."""
        activation = Value(OBJECT)
        self.define_activation(activation, name, source)
        return activation

    def define_activation(self, activation: Value, name: str, source: str | None) -> None:
        where = (source or "").partition(" ")[0] or None
        levels = self.lowering.machine.levels
        if not levels:
            self.define(activation, "kernel", lambda: Activation(name, where), None)
            return
        names = levels[-1].names

        def make(number: Array) -> Activation:
            return Activation(name, where, names[int(number)])

        self.define(activation, "kernel", make, None, [levels[-1].number])

    # -- memory ---------------------------------------------------------------------------------

    def allocated(self, ref: Value, name: str | None) -> None:
        """Emits the state of memory that was allocated just now."""
        if self.activation is None or ref.ref.key_ndim:
            return
        memory = self.memory[ref] = Memory(name or "a ref")
        for aspect, make in self.aspects(memory, ref.ref):
            self.define(aspect.value, "state", make, aspect)

    def aspects(
        self, memory: Memory, type: RefType, code: int = NEVER
    ) -> list[tuple[Aspect, Callable[[], Any]]]:
        """Makes the aspects of memory of a type. Returns them and what makes them when it runs."""
        shape = type.shape
        made: list[tuple[Aspect, Callable[[], Any]]] = []
        if type.space.startswith("semaphore"):
            if self.checks("sync"):
                memory.semaphores = Aspect()
                made.append((memory.semaphores, lambda: copies.Semaphores(shape)))
            return made
        if self.follows_codes and is_undefined(type):
            memory.codes = Aspect()
            made.append((memory.codes, lambda: Shadow(shape, code)))
        if self.checks("sync"):
            memory.flights = Aspect()
            made.append((memory.flights, lambda: copies.Flights(shape)))
        return made

    def left(self, refs: Sequence[Value]) -> None:
        """Emits, where their scope ends, the checks that nothing is left on semaphores."""
        for ref in refs:
            memory = self.memory.get(ref)
            if memory is not None and memory.semaphores is not None:
                assert self.activation is not None
                site = self.site(ref, "leaves")
                ins = [self.activation, memory.semaphores.value]
                self.emit("left", ins, copies.leave(site), memory.semaphores)

    # -- accesses -------------------------------------------------------------------------------

    def read(
        self,
        view: state.RefView,
        value: Value,
        mask: Value | None = None,
        what: str = "reads",
        atomic: bool = False,
    ) -> Value:
        """Emits the checks of a load, and returns the loaded ``value`` as the program uses it."""
        site = self.site(view.ref, what)
        if self.activation is None:
            return value
        located = self._located(view, mask)
        if located is None:
            return value
        place, leaves = located
        self._bounds(site, located)
        memory = self.memory.get(view.ref)
        if memory is None:
            return value
        self._flights(memory, located, copies.read(site, place))
        self._note(memory, located, site, writes=False, atomic=atomic)
        self._array(memory, located, site, writes=False)
        if memory.codes is None or self._is_defined(view.ref) or not self.follows_codes:
            return value
        memory.codes.needed = True
        ins = [self.activation, memory.codes.value, *leaves]
        self.emit("read", ins, undefined.check(site, place), memory.codes, place)
        if not self.asked.disturbing or not isinstance(value.type, ArrayType):
            return value
        disturb = undefined.disturb(site, place, value.type.dtype)
        (value,) = self.lowering.memory(
            "disturb", [value, *ins], [value.type], disturb, _IO, view=True
        )
        return value

    def write(
        self,
        view: state.RefView,
        mask: Value | None = None,
        what: str = "writes",
        atomic: bool = False,
        change: tuple[Value, Value] | None = None,
    ) -> None:
        """Emits the checks of a store. ``change``: what is stored, and what was there before, if
        that is known."""
        site = self.site(view.ref, what)
        if self.activation is None:
            return
        located = self._located(view, mask)
        if located is not None:
            self._bounds(site, located)
        memory = self.memory.get(view.ref)
        if memory is None:
            return
        if located is not None:
            self._flights(memory, located, copies.write(site, located.place))
            self._note(memory, located, site, writes=True, atomic=atomic, change=change)
            self._array(memory, located, site, writes=True)
        self._defines(view.ref, memory, located)

    def _is_defined(self, ref: Value) -> bool:
        """Whether all elements are known to be defined here."""
        return ref in self.defined and not self.memory[ref].reached

    def _defines(self, ref: Value, memory: Memory, located: Located | None) -> None:
        """Emits that elements become defined. If they aren't known, all may have become so."""
        if memory.codes is None or self._is_defined(ref):
            return
        if located is None or located.place.whole:
            self.emit("written", [memory.codes.value], undefined.write_all, memory.codes)
            if located is not None:
                self.defined.add(ref)
            return
        fn = undefined.write(located.place)
        self.emit("written", [memory.codes.value, *located.leaves], fn, memory.codes, located.place)

    def decides(self, view: state.RefView, before: Value, after: Value) -> None:
        """Emits the check of a store to a ref that may decide where blocks are."""
        memory = self.memory.get(view.ref)
        if memory is None or not memory.decides or not self.checks("blocks"):
            return
        assert self.activation is not None
        site = self.site(view.ref, "writes")
        fn = blocks.changes_decision(site)
        self.emit("decides", [self.activation, before, after], fn)

    def copy(
        self,
        source: state.RefView,
        target: state.RefView,
        masks: tuple[Value | None, Value | None] = (None, None),
        semaphore: state.RefView | None = None,
        change: Callable[[], tuple[Value, Value]] | None = None,
    ) -> Callable[[], None]:
        """Emits the checks of a copy, before it. It also copies what is undefined. Returns what
        emits those that come after it. ``change`` emits loads of what is copied, and of what was
        there before.

        ``masks``: the elements of each side that are copied. ``semaphore``: the one that says when
        it is done.
        """
        reads, writes = self.site(source.ref, "copies from"), self.site(target.ref, "copies to")
        after = _nothing
        if self.activation is None:
            return after
        from_, to = self._located(source, masks[0]), self._located(target, masks[1])
        for site, located in ((reads, from_), (writes, to)):
            if located is not None:
                self._bounds(site, located)
        given, memory = self.memory.get(source.ref), self.memory.get(target.ref)
        if semaphore is not None and self.checks("sync"):
            self._starts(semaphore, (reads, given, from_), (writes, memory, to), target)
        if given is not None and from_ is not None:
            self._note(given, from_, reads, writes=False)
        if memory is None:
            return after
        if to is not None and memory.history is not None:
            if change is not None:
                self._note(memory, to, writes, writes=True, change=change())
            else:
                after = self._note_after(memory, target.ref, to, writes)
        if (
            given is None or given.codes is None or self._is_defined(source.ref)
            or memory.codes is None or from_ is None or to is None
        ):  # fmt: skip
            self._defines(target.ref, memory, to)
            return after
        self.defined.discard(target.ref)
        given.codes.needed = memory.codes.needed = True
        fn = undefined.copy(from_.place, to.place, len(from_.leaves))
        ins = [given.codes.value, memory.codes.value, *from_.leaves, *to.leaves]
        self.emit("copied", ins, fn, memory.codes, to.place)
        return after

    def _note_after(
        self, memory: Memory, ref: Value, located: Located, site: AccessSite
    ) -> Callable[[], None]:
        """Emits a load of memory, and returns what notes a write to it when it has happened."""

        def whole() -> Value:
            return refs.load_inside(self.lowering, ref, (), (), ref.ref.contents)

        before = whole()
        return lambda: self._note(
            memory, located, site, writes=True, change=(whole(), before), compares="memory"
        )

    def _flights(
        self, memory: Memory, located: Located, fn: Callable[..., tuple[()]]
    ) -> None:
        if memory.flights is not None:
            assert self.activation is not None
            ins = [self.activation, memory.flights.value, *located.leaves]
            self.emit("in flight", ins, fn, memory.flights, located.place)

    def _array(self, memory: Memory, located: Located, site: AccessSite, writes: bool) -> None:
        if memory.sticks_out and memory.codes is not None and self.checks("bounds"):
            assert self.activation is not None
            memory.codes.needed = True
            check = global_memory.check(site, located.place, writes)
            self.emit("bounds", [self.activation, memory.codes.value, *located.leaves], check)

    def _note(
        self,
        memory: Memory,
        located: Located,
        site: AccessSite,
        writes: bool,
        atomic: bool = False,
        change: tuple[Value, Value] | None = None,
        compares: str = "elements",
    ) -> None:
        """``change`` and ``compares``: see `races.note`."""
        if memory.history is None:
            return
        assert self.activation is not None
        memory.history.needed = memory.history.needed or writes
        compares = compares if change is not None and not located.place.packed else ""
        fn = races.note(site, located.place, writes, atomic, compares)
        ins = [self.activation, memory.history.value, *located.leaves]
        if change is not None and compares:
            ins += change
        self.emit("note", ins, fn, memory.history, located.place)

    def reaches(self, ref: Value, remote: Value, numbers: Sequence[Value]) -> None:
        """Follows the same memory of another program, ``remote``, as this program's ``ref``.
        ``numbers``: that program's, at each level."""
        memory = self.memory.get(ref)
        if memory is None or memory.codes is None or not self.follows_codes:
            return
        memory.reached = True
        other = self.memory[remote] = Memory(memory.name)
        other.codes, of = Aspect(memory.codes), memory.codes
        shape = remote.type.shape

        def find(own: Shadow, *numbers: Array) -> Shadow:
            if of.depth == 0:  # it is outside of all programs, which have the same
                return own
            return current().shadow_of(of, int(numbers[of.depth - 1]), shape)

        ins = [of.value, *numbers]
        self.define(other.codes.value, "other program", find, other.codes, ins)

    # -- semaphores -----------------------------------------------------------------------------

    def _semaphore(self, view: state.RefView) -> tuple[Aspect, Located] | None:
        memory = self.memory.get(view.ref)
        if memory is None or memory.semaphores is None:
            return None
        located = self._located(view, None)
        if located is None:
            return None
        memory.semaphores.needed = True
        return memory.semaphores, located

    def _starts(
        self,
        semaphore: state.RefView,
        source: tuple[AccessSite, Memory | None, Located | None],
        target: tuple[AccessSite, Memory | None, Located | None],
        view: state.RefView,
    ) -> None:
        found = self._semaphore(semaphore)
        if found is None:
            return
        assert self.activation is not None
        state_of, at = found
        ins = [self.activation, state_of.value, *at.leaves]
        sides: list[copies.Side | None] = []
        for site, memory, located in (source, target):
            if memory is None or memory.flights is None or located is None:
                sides.append(None)
                continue
            memory.flights.needed = True
            ins += [memory.flights.value, *located.leaves]
            sides.append(copies.Side(site, located.place, len(located.leaves)))
        size = self._size(semaphore.ref, view, target[2])
        fn = copies.start(target[0], sides[0], sides[1], (at.place, len(at.leaves)), size)
        self.emit("start", ins, fn, state_of)

    def _size(
        self, semaphore: Value, view: state.RefView, located: Located | None
    ) -> Callable[[Sequence[Any]], int]:
        """What a copy to a view adds to a semaphore, of the view's leaves: bytes, or 1 if the
        semaphore isn't a DMA's."""
        if semaphore.ref.space != "semaphore_dma" or located is None:
            return lambda leaves: 1
        place, itemsize = located.place, view.ref.ref.dtype.itemsize
        return lambda leaves: place.count(leaves) * itemsize

    def wait_for_copy(
        self, semaphore: state.RefView, target: state.RefView, mask: Value | None = None
    ) -> None:
        """Emits the check of a wait for a copy to ``target``, and what it says of copies."""
        site = self.site(semaphore.ref, "waits for")
        found = None if self.activation is None else self._semaphore(semaphore)
        if found is None:
            return
        assert self.activation is not None
        state_of, at = found
        located = self._located(target, mask)
        leaves = [] if located is None else located.leaves
        size = self._size(semaphore.ref, target, located)
        fn = copies.wait_for_copy(site, at.place, len(at.leaves), size)
        self.emit("wait", [self.activation, state_of.value, *at.leaves, *leaves], fn, state_of)

    def signal(self, semaphore: state.RefView, value: Value) -> None:
        site = self.site(semaphore.ref, "signals")
        self._count(semaphore, value, lambda at: copies.signal(site, at))

    def wait(self, semaphore: state.RefView, value: Value, decrement: bool) -> None:
        site = self.site(semaphore.ref, "waits for")
        self._count(semaphore, value, lambda at: copies.wait(site, at, decrement))

    def _count(
        self,
        semaphore: state.RefView,
        value: Value,
        make: Callable[[AnyPlace], Callable[..., tuple[()]]],
    ) -> None:
        found = None if self.activation is None else self._semaphore(semaphore)
        if found is None:
            return
        assert self.activation is not None
        state_of, at = found
        ins = [self.activation, state_of.value, value, *at.leaves]
        self.emit("count", ins, make(at.place), state_of)

    # -- places ---------------------------------------------------------------------------------

    def _located(self, view: state.RefView, mask: Value | None) -> Located | None:
        """The place of an access. None, and a note for the user, if it can't be told."""
        if view.ref.ref.key_ndim:
            return None
        try:
            return Located(*places.located(view, mask))
        except UnknownPlace as unknown:
            name = self.lowering.names.get(view.ref, "a ref")
            self.skip(f"an access to {name}: {unknown}")
            return None

    def _bounds(self, site: AccessSite, located: Located) -> None:
        if located.place.proven or not self.checks("bounds"):
            return
        assert self.activation is not None
        fn = bounds(site, located.place)
        self.emit("bounds", [self.activation, *located.leaves], fn, place=located.place)


def _shared(make: Callable[..., Any], key: Aspect) -> Callable[..., Any]:
    """Makes a program's state, and lets other programs find it if they may write to its memory."""

    def run(*operands: Any) -> Any:
        *ins, number = operands
        made = make(*ins)
        return current().share(key, int(number), made) if isinstance(made, Shadow) else made

    return run


def _guarded(
    fn: Callable[..., tuple[()]], failed: Callable[[str], None]
) -> Callable[..., tuple[()]]:
    """The check, whose own errors aren't those of the user's program."""

    def run(*operands: Array) -> tuple[()]:
        try:
            return fn(*operands)
        except Exception as error:
            failed(
                f"an access: its check failed, which is a bug in pallas_shim: "
                f"{type(error).__name__}: {error}"
            )
            return ()

    return run


def _nothing() -> None:
    """There is nothing to emit."""


def enter_cell(sizes: Sequence[int], parallel: Sequence[int]) -> Callable[..., tuple[()]]:
    """Notes the grid cell that runs. ``parallel``: the axes whose cells may run at the same
    time."""

    def enter(activation: Activation, *cell: Array) -> tuple[()]:
        here = tuple(map(int, cell))
        activation.cell = here or None
        turn = 0
        for axis in parallel:
            turn = turn * sizes[axis] + here[axis]
        activation.turn = turn
        return ()

    return enter


def is_undefined(type: RefType) -> bool:
    """Whether new memory of this type is undefined. Semaphores start at zero, as do sums."""
    return not type.space.startswith(("semaphore", "acc")) and math.prod(type.shape) > 0


def bounds(site: AccessSite, place: AnyPlace) -> Callable[..., tuple[()]]:
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
