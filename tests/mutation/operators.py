"""Ways to break a kernel that is right: each is one rewriting of its jaxpr."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.experimental.pallas import tpu as pltpu
from jax.extend import core

from pallas_shim.jax_compat.jaxprs import source_of, user_source
from tests.mutation import jaxprs
from tests.mutation.jaxprs import (
    Kernel,
    Ref,
    Site,
    at,
    block_size,
    change,
    emit,
    opened,
    put,
    with_params,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A kernel with one thing broken.

    ``operator`` is the name of what was done, ``place`` says where, ``line`` the user's file and
    line of it, if known. ``jaxpr`` is the whole function.
    """

    operator: str
    place: str
    line: str | None
    jaxpr: Any


@dataclasses.dataclass(frozen=True)
class Operator:
    """``mutants`` gives all that the operator makes of a function and one of its kernels.
    ``kinds``: what a checker may call the fault, if it is one."""

    name: str
    kinds: frozenset[str]
    mutants: Callable[[Any, Kernel], Iterator[tuple[str, Any, Any]]]


OPERATORS: dict[str, Operator] = {}


def operator(name: str, *kinds: str) -> Callable[[Any], Any]:
    """Registers a generator of (place, equation whose line it is, the new function)."""

    def register(function: Any) -> Any:
        OPERATORS[name] = Operator(name, frozenset(kinds), function)
        return function

    return register


def mutants(jaxpr: Any, per_operator: int) -> Iterator[Mutant]:
    """The mutants of a function, of each operator at most so many, from all over the function."""
    for each in OPERATORS.values():
        made = [m for kernel in jaxprs.kernels(jaxpr) for m in each.mutants(jaxpr, kernel)]
        chosen = np.unique(np.linspace(0, len(made) - 1, per_operator).round().astype(int))
        for index in chosen if made else ():
            place, eqn, new = made[index]
            line = None if eqn is None else user_source(source_of(eqn))
            yield Mutant(each.name, place, line, new() if callable(new) else new)


def _all(jaxpr: Any, kernel: Kernel, *primitives: str) -> Iterator[Site]:
    for site in jaxprs.sites(jaxpr, kernel):
        if site.eqn.primitive.name in primitives:
            yield site


def _where(site: Site) -> str:
    steps = "/".join(f"{i}.{name}{'' if n is None else n}" for i, name, n in site.path)
    return f"{site.eqn.primitive.name} {steps}/{site.index}"


def _unused(site: Site, jaxpr: Any) -> bool:
    """Whether nothing uses what the equation returns."""
    body = opened(at(jaxpr, site.path))
    used = {v for eqn in body.eqns for v in eqn.invars if not isinstance(v, core.Literal)}
    used |= {v for v in body.outvars if not isinstance(v, core.Literal)}
    return not used.intersection(site.eqn.outvars)


def _removed(*primitives: str) -> Any:
    def make(jaxpr: Any, kernel: Kernel) -> Any:
        for site in _all(jaxpr, kernel, *primitives):
            if _unused(site, jaxpr):
                yield _where(site), site.eqn, change(jaxpr, site, [])

    return make


# -- copies, semaphores, devices ----------------------------------------------------------------

operator("copy's wait removed", "races", "sync", "uninitialized")(_removed("dma_wait"))
operator("semaphore's wait removed", "races", "sync", "uninitialized")(_removed("semaphore_wait"))
operator("signal removed", "sync")(_removed("semaphore_signal"))
operator("copy removed", "sync", "uninitialized")(_removed("dma_start"))


@operator("copy's wait after the next use", "races", "sync", "uninitialized")
def _late(jaxpr: Any, kernel: Kernel) -> Any:
    for site in _all(jaxpr, kernel, "dma_wait"):
        body = at(jaxpr, site.path)
        eqns = list(opened(body).eqns)
        mine = {site.ref(v) for v in site.eqn.invars} - {None}
        semaphores = {site.ref(v) for v in site.eqn.invars if _is_semaphore(v)}
        for later in range(site.index + 1, len(eqns)):
            uses = {site.ref(v) for v in eqns[later].invars} & (mine - semaphores)
            if uses and eqns[later].primitive.name != "dma_wait":
                moved = [*eqns[: site.index], *eqns[site.index + 1 : later + 1], site.eqn]
                new = jaxprs.with_eqns(body, [*moved, *eqns[later + 1 :]])
                yield _where(site), site.eqn, put(jaxpr, site.path, new)
                break


def _is_semaphore(atom: Any) -> bool:
    return "semaphore" in str(getattr(atom.aval, "memory_space", ""))


@operator("another semaphore", "races", "sync", "uninitialized")
def _swapped(jaxpr: Any, kernel: Kernel) -> Any:
    """The next semaphore of the array, or another one of the same type."""
    for site in _all(jaxpr, kernel, "dma_start", "dma_wait", "semaphore_wait", "semaphore_signal"):
        yield from _next_in_array(jaxpr, site)
        for place, atom in enumerate(site.eqn.invars):
            if not _is_semaphore(atom):
                continue
            others = [v for v, ref in site.refs.items() if v.aval == atom.aval and v is not atom
                      and ref != site.ref(atom)]  # fmt: skip
            if others:
                invars = list(site.eqn.invars)
                invars[place] = others[0]
                new = site.eqn.replace(invars=invars)
                yield _where(site), site.eqn, change(jaxpr, site, [new])
                break


def _next_in_array(jaxpr: Any, site: Site) -> Any:
    for access in indices(site.eqn):
        if access.of is not None and _is_semaphore(access.of):
            f = _next(access.shape[access.dimension])
            yield _where(site), site.eqn, change(jaxpr, site, reindex(site.eqn, access, f))
            return


def _next(size: int) -> Callable[[Any], Any]:
    return lambda i: lax.rem(i + 1, i.dtype.type(size))


@operator("waits for one more", "sync")
def _more(jaxpr: Any, kernel: Kernel) -> Any:
    for site in _all(jaxpr, kernel, "semaphore_wait"):
        eqns, more = emit(site.eqn, lambda n: n + 1, site.eqn.invars[1 + _leaves(site.eqn)])
        invars = list(site.eqn.invars)
        invars[1 + _leaves(site.eqn)] = more
        yield _where(site), site.eqn, change(jaxpr, site, [*eqns, site.eqn.replace(invars=invars)])


def _leaves(eqn: Any) -> int:
    """How many operands index the semaphore of a signal or a wait."""
    _, transforms, *_ = jax.tree.unflatten(eqn.params["args_tree"], eqn.invars)
    return len(jax.tree.leaves(transforms))


def axes(jaxpr: Any, site: Site) -> dict[str, int]:
    """The mesh's axes at an equation."""
    found: dict[str, int] = {}
    for end in range(1, len(site.path) + 1):
        *before, (index, _, _) = site.path[:end]
        eqn = opened(at(jaxpr, tuple(before))).eqns[index]
        mesh = eqn.params.get("mesh")
        if mesh is not None:
            found.update(dict(mesh.shape))
    return found


@operator("signal kept back by one program", "sync")
def _kept_back(jaxpr: Any, kernel: Kernel) -> Any:
    for site in _all(jaxpr, kernel, "semaphore_signal"):
        known = axes(jaxpr, site)
        if not known:
            continue
        name = list(known)[-1]
        place = 1 + _leaves(site.eqn)
        eqns, amount = emit(
            site.eqn,
            lambda n, name=name: lax.select(lax.axis_index(name) == 1, n * 0, n),
            site.eqn.invars[place],
            axes=known.items(),
        )
        invars = list(site.eqn.invars)
        invars[place] = amount
        new = [*eqns, site.eqn.replace(invars=invars)]
        yield _where(site), site.eqn, change(jaxpr, site, new)


@operator("another device", "bounds", "races", "sync", "uninitialized")
def _device(jaxpr: Any, kernel: Kernel) -> Any:
    for site in _all(jaxpr, kernel, "dma_start", "semaphore_signal"):
        key = "tree" if site.eqn.primitive.name == "dma_start" else "args_tree"
        operands = list(jax.tree.unflatten(site.eqn.params[key], site.eqn.invars))
        place = 8 if len(operands) > 8 else 4 if key == "tree" else 3
        device = operands[place]
        leaves = jax.tree.leaves(device)
        sizes = axes(jaxpr, site)
        if not leaves or not sizes:
            continue
        n = list(sizes.values())[-1]
        if site.eqn.params["device_id_type"].name == "LOGICAL":
            n = int(np.prod(list(sizes.values())))
        elif isinstance(device, dict):
            n = int(np.prod([sizes[name] for name in np.atleast_1d(list(device)[-1])]))
        eqns, other = emit(site.eqn, _next(n), leaves[-1])
        invars = list(site.eqn.invars)
        (at_,) = [i for i, v in enumerate(invars) if v is leaves[-1]][-1:]
        invars[at_] = other
        new = [*eqns, site.eqn.replace(invars=invars)]
        yield _where(site), site.eqn, change(jaxpr, site, new)


@operator("slot dropped", "races", "sync", "uninitialized")
def _slot(jaxpr: Any, kernel: Kernel) -> Any:
    """A buffer of several slots is used as if it had one."""
    found: dict[Ref, Any] = {}
    for site in _all(jaxpr, kernel, "dma_start"):
        for access in indices(site.eqn):
            ref = None if access.of is None else site.ref(access.of)
            if ref is None or ref.role != "scratch" or _is_semaphore(access.of):
                continue
            if access.dimension == 0 and isinstance(access.index, core.Var) and not access.slice:
                found.setdefault(ref, site)
    for ref, first in found.items():
        new = jaxpr
        # From the last to the first, so that the places of those to come stay.
        for site in reversed(list(jaxprs.sites(jaxpr, kernel))):
            for access in indices(site.eqn):
                if access.of is None or site.ref(access.of) != ref or access.dimension != 0:
                    continue
                if not access.slice and isinstance(access.index, core.Var):
                    eqn = opened(at(new, site.path)).eqns[site.index]
                    (one,) = reindex(eqn, access, None)
                    new = change(new, site, [one])
        yield _where(first), first.eqn, new


# -- memory -------------------------------------------------------------------------------------

STORES = ("swap", "masked_swap", "addupdate")


@operator("store removed", "uninitialized")
def _store(jaxpr: Any, kernel: Kernel) -> Any:
    for site in _all(jaxpr, kernel, *STORES):
        if _unused(site, jaxpr):
            yield _where(site), site.eqn, change(jaxpr, site, [])


@operator("branch with a store removed", "uninitialized", "sync", "races")
def _first(jaxpr: Any, kernel: Kernel) -> Any:
    """Such as the one that initialises, under ``pl.when``."""
    for site in _all(jaxpr, kernel, "cond"):
        stores = any(
            eqn.primitive.name in STORES
            for branch in site.eqn.params["branches"]
            for eqn in branch.jaxpr.eqns
        )
        if stores and not site.eqn.outvars:
            yield _where(site), site.eqn, change(jaxpr, site, [])


@operator("mask dropped", "bounds", "uninitialized", "races")
def _mask(jaxpr: Any, kernel: Kernel) -> Any:
    for site in _all(jaxpr, kernel, "masked_load", "masked_swap"):
        operands = list(jax.tree.unflatten(site.eqn.params["args_tree"], site.eqn.invars))
        mask = 2 if site.eqn.primitive.name == "masked_load" else 3
        if operands[mask] is None:
            continue
        operands[mask] = None
        if mask == 2:
            operands[3] = None
        leaves, tree = jax.tree.flatten(tuple(operands))
        new = with_params(site.eqn.replace(invars=leaves), args_tree=tree)
        yield _where(site), site.eqn, change(jaxpr, site, [new])


@operator("slice +1", "bounds", "uninitialized", "races", "sync")
def _slice(jaxpr: Any, kernel: Kernel) -> Any:
    for site in _all(jaxpr, kernel, "get", "masked_load", *STORES, "dma_start"):
        for access in indices(site.eqn):
            if access.of is None or _is_semaphore(access.of):
                continue
            if _is_scalar(access.index):
                new = change(jaxpr, site, reindex(site.eqn, access, lambda i: i + 1))
                yield f"{_where(site)} {access.number}", site.eqn, new


def _is_scalar(index: Any) -> bool:
    """Whether an index is a number, and not an array or a list of indices."""
    if isinstance(index, (core.Var, core.Literal)):
        return index.aval.shape == ()
    return isinstance(index, (int, np.integer))


@dataclasses.dataclass(frozen=True)
class Index:
    """One index of an access: the ``number``-th of its equation, of dimension ``dimension`` of the
    ref ``of``, whose shape at that place is ``shape``. ``slice``: it is the start of one."""

    number: int
    of: Any
    dimension: int
    shape: tuple[int, ...]
    index: Any
    slice: bool


def indices(eqn: Any) -> list[Index]:
    """The indices of an access to memory, a copy, a wait or a signal."""
    found: list[Index] = []

    def note(of: Any, indexer: Any, dimension: int, index: Any, slice: bool) -> Any:
        found.append(Index(len(found), of, dimension, indexer.shape, index, slice))
        return index

    structure = _structure(eqn)
    if structure is not None:
        _map(structure[0], None, note)
    return found


def reindex(eqn: Any, access: Index, f: Callable[[Any], Any] | None) -> list[Any]:
    """The equations that do the same at another index: ``f`` of it, or 0."""
    structure, first, name = _structure(eqn)
    before: list[Any] = []
    count = iter(range(1_000_000))

    def replace(of: Any, indexer: Any, dimension: int, index: Any, slice: bool) -> Any:
        if next(count) != access.number:
            return index
        if f is None:
            return core.Literal(np.int32(0), jax.core.ShapedArray((), np.dtype(np.int32)))
        if not isinstance(index, (core.Var, core.Literal)):
            return int(f(np.int32(index)))
        eqns, new = emit(eqn, f, index)
        before.extend(eqns)
        return new

    leaves, tree = _flatten(_map(structure, None, replace))
    new = eqn.replace(invars=[*eqn.invars[:first], *leaves])
    return [*before, with_params(new, **{name: tree})]


def _flatten(structure: Any) -> tuple[list[Any], Any]:
    """As JAX flattens operands when it traces: references with their transforms, too."""
    try:
        from jax._src.tree_util import tracing_registry as registry
    except ImportError:  # before JAX 0.10
        return jax.tree.flatten(structure)
    return registry.flatten(structure)


# After how many operands JAX's structure of them begins.
_FIRST = {"get": 1, "swap": 2, "addupdate": 2, **dict.fromkeys(
    ("dma_start", "dma_wait", "masked_load", "masked_swap", "semaphore_wait", "semaphore_signal"), 0
)}  # fmt: skip


def _structure(eqn: Any) -> tuple[Any, int, str] | None:
    """The operands of an access as JAX structures them, from which on they are, and the parameter
    that holds the structure."""
    first = _FIRST.get(eqn.primitive.name)
    if first is None:
        return None
    name = "tree" if "tree" in eqn.params else "args_tree"
    operands = jax.tree.unflatten(eqn.params[name], eqn.invars[first:])
    if first:
        return (_Of(eqn.invars[0], operands), first, name)
    return (operands, first, name)


@dataclasses.dataclass(frozen=True)
class _Of:
    """Transforms of a ref that isn't among them."""

    ref: Any
    transforms: Any


def _map(structure: Any, of: Any, f: Callable[..., Any]) -> Any:
    """The structure with ``f`` of each index in it."""
    if isinstance(structure, _Of):
        return _map(structure.transforms, structure.ref, f)
    if isinstance(structure, (tuple, list)):
        if of is None and len(structure) > 1 and _is_ref(structure[0]) and isinstance(
            structure[1], tuple
        ):  # a ref and its transforms side by side
            rest = [_map(part, None, f) for part in structure[2:]]
            return type(structure)([structure[0], _map(structure[1], structure[0], f), *rest])
        return type(structure)(_map(part, of, f) for part in structure)
    if hasattr(structure, "transforms") and hasattr(structure, "ref"):
        transforms = _map(structure.transforms, structure.ref, f)
        return dataclasses.replace(structure, transforms=transforms)
    if hasattr(structure, "indices") and hasattr(structure, "shape"):
        new = tuple(_index(structure, of, d, i, f) for d, i in enumerate(structure.indices))
        return dataclasses.replace(structure, indices=new)
    return structure


def _is_ref(value: Any) -> bool:
    return isinstance(value, core.Var) and "Ref" in str(value.aval)


def _index(indexer: Any, of: Any, dimension: int, index: Any, f: Callable[..., Any]) -> Any:
    if hasattr(index, "start") and hasattr(index, "size"):
        start = f(of, indexer, dimension, index.start, True)
        return dataclasses.replace(index, start=start)
    return f(of, indexer, dimension, index, False)


# -- blocks -------------------------------------------------------------------------------------


def _maps(kernel: Kernel, output: bool) -> Iterator[tuple[int, Any]]:
    """The block mappings that cut an array, by number."""
    grid = kernel.eqn.params.get("grid_mapping")
    if grid is None:
        return
    for number, mapping in enumerate(grid.block_mappings):
        whole = tuple(map(block_size, mapping.block_shape)) == tuple(mapping.array_aval.shape)
        if output == (number >= grid.num_inputs) and not whole:
            yield number, mapping


def _remapped(jaxpr: Any, kernel: Kernel, number: int, dimension: int, f: Any) -> Any:
    """The function with ``f`` of one result of one index map."""
    grid = kernel.eqn.params["grid_mapping"]
    mapping = grid.block_mappings[number]
    body = mapping.index_map_jaxpr.jaxpr
    source = body.eqns[0] if body.eqns else kernel.eqn
    eqns, result = emit(source, f, body.outvars[dimension])
    outvars = list(body.outvars)
    outvars[dimension] = result
    new = body.replace(eqns=[*body.eqns, *eqns], outvars=outvars)
    mappings = list(grid.block_mappings)
    mappings[number] = mapping.replace(
        index_map_jaxpr=mapping.index_map_jaxpr.replace(jaxpr=new)
    )
    return _called(jaxpr, kernel, grid_mapping=grid.replace(block_mappings=tuple(mappings)))


def _called(jaxpr: Any, kernel: Kernel, **params: Any) -> Any:
    """The function with other parameters of the kernel's call."""
    *outer, (index, _, _) = kernel.path
    holder = at(jaxpr, tuple(outer))
    eqns = list(opened(holder).eqns)
    eqns[index] = with_params(eqns[index], **params)
    return put(jaxpr, tuple(outer), jaxprs.with_eqns(holder, eqns))


def _every_map(output: bool, f: Callable[[Any, int], Any], large: bool = False) -> Any:
    """A generator of mutants: ``f`` of each result of an index map and of its block's size, if
    there are several blocks along that dimension. ``large``: only of blocks of several elements."""

    def make(jaxpr: Any, kernel: Kernel) -> Any:
        for number, mapping in _maps(kernel, output):
            for dimension, block in enumerate(mapping.block_shape):
                size = block_size(block)
                if size is None or size == mapping.array_aval.shape[dimension]:
                    continue
                if size > 1 or not large:
                    g = lambda i, size=size: f(i, size)  # noqa: E731
                    new = _remapped(jaxpr, kernel, number, dimension, g)
                    yield f"map {number} dimension {dimension}", kernel.eqn, new

    return make


for _name, _output, _kinds in (
    ("input", False, ("bounds", "uninitialized", "races")),
    ("output", True, ("bounds", "blocks", "uninitialized", "races")),
):
    operator(f"{_name}'s index map +1", *_kinds)(_every_map(_output, lambda i, n: i + 1))
    operator(f"{_name}'s index map -1", *_kinds)(_every_map(_output, lambda i, n: i - 1))
    operator(f"{_name}'s index map returns elements", *_kinds)(
        _every_map(_output, lambda i, n: i * n, large=True)
    )

operator("output's block comes back", "blocks", "uninitialized", "races")(
    _every_map(True, lambda i, n: lax.rem(i, np.int32(2)))
)


@operator("parallel", "races", "blocks", "uninitialized")
def _parallel(jaxpr: Any, kernel: Kernel) -> Any:
    """The first axes of the grid up to one that isn't parallel are declared to be."""
    grid = kernel.eqn.params.get("grid_mapping")
    params = kernel.eqn.params.get("compiler_params")
    if grid is None or not isinstance(params, (pltpu.CompilerParams, type(None))):
        return
    params = params or pltpu.CompilerParams()
    old = tuple(params.dimension_semantics or ("arbitrary",) * len(grid.grid))
    for axis in range(len(grid.grid)):
        if not _is_parallel(old[axis]):
            new = dataclasses.replace(
                params, dimension_semantics=("parallel",) * (axis + 1) + old[axis + 1 :]
            )
            yield f"axis {axis}", kernel.eqn, _called(jaxpr, kernel, compiler_params=new)


def _is_parallel(semantics: Any) -> bool:
    return "parallel" in str(semantics).lower()
