"""Walks jaxprs, and makes new ones with one thing changed. Nothing here knows what a fault is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

# The way to an inner jaxpr: equation, parameter, and place in the parameter's tuple, again and
# again.
Path = tuple[tuple[int, str, int | None], ...]


def inner(eqn: Any) -> Iterator[tuple[str, int | None, Any]]:
    """The jaxprs of an equation, open or closed: parameter, place in its tuple, jaxpr."""
    for name, value in eqn.params.items():
        if _is_jaxpr(value):
            yield name, None, value
        elif isinstance(value, (tuple, list)):
            yield from ((name, i, part) for i, part in enumerate(value) if _is_jaxpr(part))


def _is_jaxpr(value: Any) -> bool:
    return isinstance(value, (core.Jaxpr, core.ClosedJaxpr))


def opened(jaxpr: Any) -> Any:
    return jaxpr.jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else jaxpr


def with_eqns(jaxpr: Any, eqns: list[Any]) -> Any:
    """The jaxpr, open or closed as it was, with other equations."""
    new = opened(jaxpr).replace(eqns=eqns)
    return jaxpr.replace(jaxpr=new) if isinstance(jaxpr, core.ClosedJaxpr) else new


def with_params(eqn: Any, **params: Any) -> Any:
    return eqn.replace(params={**eqn.params, **params})


def at(jaxpr: Any, path: Path) -> Any:
    """The inner jaxpr at the end of a path."""
    for index, name, place in path:
        value = opened(jaxpr).eqns[index].params[name]
        jaxpr = value if place is None else value[place]
    return jaxpr


def put(jaxpr: Any, path: Path, new: Any) -> Any:
    """The jaxpr with the inner one at the end of the path replaced."""
    if not path:
        return new
    (index, name, place), *rest = path
    eqns = list(opened(jaxpr).eqns)
    value = eqns[index].params[name]
    if place is None:
        value = put(value, tuple(rest), new)
    else:
        parts = list(value)
        parts[place] = put(parts[place], tuple(rest), new)
        value = type(value)(parts)
    eqns[index] = with_params(eqns[index], **{name: value})
    return with_eqns(jaxpr, eqns)


def every(jaxpr: Any, change: Callable[[Any], Any]) -> Any:
    """The jaxpr with each equation changed, those of inner jaxprs first."""
    eqns = []
    for eqn in opened(jaxpr).eqns:
        for name, place, part in list(inner(eqn)):
            new = every(part, change)
            if place is not None:
                parts = list(eqn.params[name])
                parts[place] = new
                new = type(eqn.params[name])(parts)
            eqn = with_params(eqn, **{name: new})
        changed = change(eqn)
        eqns += changed if isinstance(changed, list) else [changed]
    return with_eqns(jaxpr, eqns)


def emit(source: Any, f: Callable[..., Any], *atoms: Any, axes: Any = ()) -> tuple[list[Any], Any]:
    """The equations that compute ``f`` of scalars (variables, literals, numbers), and its result.

    ``source`` is the equation whose line they get; ``axes`` the names and sizes that ``f`` may ask
    about.
    """
    avals = [getattr(atom, "aval", jnp.int32(0)) for atom in atoms]
    closed = jax.make_jaxpr(lambda *args: f(*args), axis_env=list(axes))(
        *(jnp.zeros(aval.shape, aval.dtype) for aval in avals)
    )
    names = dict(zip(closed.jaxpr.invars, map(_atom, atoms, avals), strict=True))

    def known(atom: Any) -> Any:
        return atom if isinstance(atom, core.Literal) else names.get(atom, atom)

    eqns = [
        eqn.replace(invars=[known(v) for v in eqn.invars], source_info=source.source_info)
        for eqn in closed.jaxpr.eqns
    ]
    return eqns, known(closed.jaxpr.outvars[0])


def _atom(value: Any, aval: Any) -> Any:
    if isinstance(value, (core.Var, core.Literal)):
        return value
    return core.Literal(jnp.dtype(aval.dtype).type(value), jax.core.ShapedArray((), aval.dtype))


@dataclasses.dataclass(frozen=True)
class Ref:
    """What a ref of a kernel is: ``role`` is prefetch, input, output, scratch or other."""

    role: str
    key: Any


@dataclasses.dataclass(frozen=True)
class Site:
    """An equation inside a kernel.

    ``path`` leads from the outermost jaxpr to the one that holds it, ``kernel`` to the equation of
    the kernel's call. ``refs`` says what the refs in that jaxpr are.
    """

    path: Path
    index: int
    eqn: Any
    kernel: Path
    refs: dict[Any, Ref]

    def ref(self, atom: Any) -> Ref | None:
        return self.refs.get(atom) if isinstance(atom, core.Var) else None


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A call of a kernel: the path to its jaxpr, and the equation of the call."""

    path: Path
    eqn: Any


def block_size(block: Any) -> int | None:
    """The size of a dimension of a block; None if its index map returns elements."""
    if block is None or type(block).__name__ == "Squeezed":
        return 1
    if type(block).__name__ == "Blocked":
        return block.block_size
    return block if isinstance(block, int) else None


CALLS = ("pallas_call", "core_map", "mpmd_map")


def kernels(jaxpr: Any, path: Path = ()) -> Iterator[Kernel]:
    """The calls of kernels in a jaxpr, with the paths to their own jaxprs."""
    for index, eqn in enumerate(opened(jaxpr).eqns):
        for name, place, part in inner(eqn):
            below = (*path, (index, name, place))
            if eqn.primitive.name in CALLS:
                yield Kernel(below, eqn)
            else:
                yield from kernels(part, below)


def sites(jaxpr: Any, kernel: Kernel) -> Iterator[Site]:
    """Every equation of a kernel, in the order in which they stand."""
    body = opened(at(jaxpr, kernel.path))
    yield from _sites(body, kernel.path, kernel.path, _roles(kernel.eqn, body))


def _roles(call: Any, body: Any) -> dict[Any, Ref]:
    refs = {v: Ref("other", id(v)) for v in (*body.constvars, *body.invars)}
    grid = call.params.get("grid_mapping")
    if grid is not None:
        counts = (
            ("prefetch", grid.num_index_operands),
            ("input", grid.num_inputs),
            ("output", grid.num_outputs),
            ("scratch", grid.num_scratch_operands),
        )
        roles = [role for role, count in counts for _ in range(count)]
        refs.update({v: Ref(r, i) for i, (v, r) in enumerate(zip(body.invars, roles, strict=True))})
    return refs


def _sites(body: Any, path: Path, kernel: Path, refs: dict[Any, Ref]) -> Iterator[Site]:
    for index, eqn in enumerate(body.eqns):
        yield Site(path, index, eqn, kernel, refs)
        for name, place, part in inner(eqn):
            below = opened(part)
            known = _bind(eqn, name, below, refs)
            yield from _sites(below, (*path, (index, name, place)), kernel, known)


def _bind(eqn: Any, name: str, body: Any, refs: dict[Any, Ref]) -> dict[Any, Ref]:
    """The refs that an inner jaxpr gets from the equation that holds it."""
    operands = list(eqn.invars)
    if eqn.primitive.name == "cond":
        operands = operands[1:]
    elif eqn.primitive.name == "while":
        conds, bodies = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
        carry = operands[conds + bodies :]
        operands = (operands[:conds] if name == "cond_jaxpr" else operands[conds:][:bodies]) + carry
    known = {}
    inputs = (*body.constvars, *body.invars)
    for var, atom in zip(inputs, operands, strict=False):  # run_scoped has more
        if not isinstance(atom, core.Literal) and atom in refs:
            known[var] = refs[atom]
    if eqn.primitive.name == "run_scoped":
        known.update({v: Ref("scratch", id(v)) for v in inputs if v not in known})
    return known


def change(jaxpr: Any, site: Site, new: list[Any]) -> Any:
    """The jaxpr with other equations in place of one."""
    holder = at(jaxpr, site.path)
    eqns = list(opened(holder).eqns)
    eqns[site.index : site.index + 1] = new
    return put(jaxpr, site.path, with_eqns(holder, eqns))
