"""Where objects of JAX's classes keep their state, and what of it is left out of keys."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple


class Unreadable(Exception):
    """A jaxpr holds something that can't be read completely; the message says what."""


# The primitives and classes whose parameters or fields are left out, because lowering never looks
# at them. (Effects are left out, too: JAX derives them from what is read. So are the names of
# arguments and the lines of source: the caller has them from the equations at hand.)
UNSEEN: dict[str, frozenset[str]] = {
    # These say how to differentiate, transpose, batch or partition the function. Here it is only
    # called.
    "custom_jvp_call": frozenset({"jvp_jaxpr_fun"}),
    "custom_vjp_call": frozenset({"fwd_jaxpr_thunk", "bwd", "out_trees"}),
    "custom_vmap_call": frozenset({"rule"}),
    "linear_call": frozenset({"transpose_thunk"}),
    "remat2": frozenset({"policy"}),
    "remat_opt": frozenset({"fwd_jaxpr_thunk", "policy"}),
    # These say how vmap finds its place in the grid. The place is in vmapped_dims.
    "GridMapping": frozenset({"get_grid_indices", "local_grid_env"}),
    # A cache of its other fields.
    "ShapedArray": frozenset({"_stripped_weak_type"}),
}


class State(NamedTuple):
    """Where the objects of a class keep their state.

    ``is_tuple``: in items. ``plain``: in their value as this type. ``slots``: in these, which
    ``get_slots`` gets. ``has_variables``: in their dictionary.
    """

    is_tuple: bool
    plain: Callable[[Any], Any] | None
    slots: tuple[str, ...]
    get_slots: Callable[[Any], Sequence[Any]]
    has_variables: bool


@functools.cache
def state(kind: type) -> State:
    """Where the objects of one of JAX's classes keep their state."""
    unseen = UNSEEN.get(kind.__name__, ())
    names = tuple(name for name in slots(kind) if name not in unseen)
    plains: tuple[Any, ...] = (int, float, complex, str)
    plain = next((each for each in plains if issubclass(kind, each)), None)
    get = getter(names)
    return State(issubclass(kind, tuple), plain, names, get, kind.__dictoffset__ != 0)


def getter(names: tuple[str, ...]) -> Callable[[Any], Sequence[Any]]:
    """A function that gets these attributes of an object."""
    if len(names) == 1:
        return lambda value: (getattr(value, names[0]),)
    return operator.attrgetter(*names) if names else lambda value: ()


@functools.cache
def seen(kind: type, names: tuple[Any, ...]) -> tuple[str, ...]:
    """The names of the variables of an object that are read."""
    if not all(type(name) is str for name in names):
        raise Unreadable(f"a {kind.__qualname__} with variables whose names aren't texts")
    unseen = UNSEEN.get(kind.__name__, ())
    # Cached attributes follow from the others, and exist only once they have been used.
    return tuple([
        name for name in names
        if name not in unseen and not isinstance(getattr(kind, name, None), cached_property)
    ])  # fmt: skip


@functools.cache
def slots(kind: type) -> tuple[str, ...]:
    """The slots of a class and of those that it is derived from."""
    names = []
    for base in kind.__mro__:
        slots = vars(base).get("__slots__", ())
        names += [slots] if isinstance(slots, str) else list(slots)
    hidden = {"__weakref__", "__dict__"}
    return tuple(dict.fromkeys(name for name in names if name not in hidden))
