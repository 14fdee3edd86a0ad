"""One normal form of pallas_call (grid, blocks, scratch, aliases) and of kernels on cores."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import tree_util
from jax._src import core
from jax._src.pallas import core as pallas_core
from jax._src.pallas import hlo_interpreter
from jax._src.state import indexing
from jax._src.state.types import AccumEffect, WriteEffect

from pallas_shim.jax_compat import meshes
from pallas_shim.jax_compat.checked import (
    GridOrder,
    InterpretOptions,
    compiler_params,
    dimension_semantics,
    grid_order,
    in_hbm,
    interpret_options,
    memory_space,
    order_on_cores,
)
from pallas_shim.jax_compat.jaxprs import equations, open_jaxpr, primitives, user_source
from pallas_shim.refusal import Refusal

# Whether JAX's interpreters take pltpu.repeat for a repetition of each element. A TPU, and later
# versions of JAX, repeat the whole array.
REPEATS_ELEMENTS = jax.__version_info__ < (0, 8, 1)


class BlockDim(NamedTuple):
    """One dimension of a block.

    ``kind``: "blocked" (the index map gives block numbers), "element" (it gives element offsets
    into the array padded by ``padding``), or "squeezed" (size 1, and not in the ref).
    """

    kind: str
    size: int
    padding: tuple[int, int] = (0, 0)


class Block(NamedTuple):
    """The cut of one operand or result into blocks. ``index_map``: a jaxpr that takes the grid
    indices and the scalar-prefetch refs, and returns one index per dimension. ``in_hbm``: on a TPU
    the kernel sees the array itself. ``buffers``: into how many buffers a TPU fetches the block; 1:
    not before its cell runs. ``is_reloaded``: a TPU loads an output's block when it comes back."""

    dims: tuple[BlockDim, ...]
    index_map: Any
    array_aval: Any
    origin: str
    in_hbm: bool
    buffers: int
    is_reloaded: bool


class PallasCall(NamedTuple):
    """Operands: refs that the kernel closes over (its jaxpr's constvars), dynamic grid sizes,
    scalar prefetch, inputs. The jaxpr's inputs, all refs: scalar prefetch, inputs, outputs,
    scratch.

    ``grid``: the sizes. None stands for a size that is an operand. ``axis_names``: one per axis of
    the grid, or none at all. ``aliases``: pairs of a position among (scalar prefetch, inputs) and a
    position among the outputs. ``synchronised_aliases``: a cell sees the writes of earlier cells
    through either of two aliased refs, as on a TPU. ``for_device``: the user asked for no
    interpreter, so aliased refs in a TPU's HBM are one memory.
    ``keeps_scalars``: a cell sees the writes of earlier cells to scalar prefetch, as on a TPU.
    Otherwise it sees the operands themselves, as under ``interpret=True``.
    ``cores``: the kind of cores, if the cells are the cores of a mesh. ``checked``: None if memory
    isn't checked. ``on_gpu``: it is Triton's, so its cells run at the same time, and its refs are
    global memory. ``parallel``: for each axis of the grid, whether its cells may run at the same
    time, as the user declared, or as the compiler takes an axis that vmap added. ``order``: that of
    the cells, None for the usual one.
    """

    name: str
    source: str | None
    jaxpr: Any
    grid: tuple[int | None, ...]
    vmapped_dims: tuple[int, ...]
    axis_names: tuple[Any, ...]
    blocks: tuple[Block, ...]
    num_prefetch: int
    num_inputs: int
    num_outputs: int
    aliases: tuple[tuple[int, int], ...]
    synchronised_aliases: bool
    keeps_scalars: bool
    for_device: bool
    cores: CoreFunction | None
    checked: InterpretOptions | None
    on_gpu: bool
    parallel: tuple[bool, ...]
    order: GridOrder | None


class UnsupportedCall(Refusal):
    """A part of a pallas_call has no normal form. The message names it."""


# Since JAX 0.11.2 the interpreter shows these writes. Its variables tell which version it is.
# Before, kernels that add to values left by earlier cells give wrong sums in the interpreter, and
# right ones on a TPU.
_SYNCHRONISED_ALIASES = (
    "alias_output_written" in hlo_interpreter.pallas_call_hlo_interpret.__code__.co_varnames
    or "alias_output_written" in hlo_interpreter.pallas_call_hlo_interpret.__code__.co_cellvars
)


def pallas_call(eqn: Any, tpu_cores: int = 1) -> PallasCall:
    """The normal form of a pallas_call equation. ``tpu_cores``: of the TPU that the user has in
    mind.

    Raises:
      UnsupportedCall: some part has none.
    """
    p = eqn.params
    mapping = p["grid_mapping"]
    refs = len(p["jaxpr"].invars) - mapping.num_index_operands
    if refs < len(mapping.block_mappings):
        raise UnsupportedCall(
            f"JAX made a kernel of {refs} refs with {len(mapping.block_mappings)} block mappings, "
            "as its rule for jvp does where some operands have no tangent; differentiate by all "
            "of them, or give the kernel a rule with jax.custom_jvp or jax.custom_vjp"
        )
    mesh = p.get("mesh")
    cores = None if mesh is None else _core_function(eqn, mesh, p["jaxpr"])
    on_gpu, parallel, order = _is_on_gpu(eqn), _parallel(eqn), grid_order(eqn)
    if not p["interpret"] and not on_gpu and cores is None and _tells_cores(eqn):
        order = order_on_cores(eqn, parallel, tpu_cores)
    return PallasCall(
        name=kernel_name(eqn),
        source=kernel_source(eqn),
        jaxpr=p["jaxpr"],
        grid=tuple(None if _is_dynamic(size) else int(size) for size in mapping.grid),
        vmapped_dims=tuple(mapping.vmapped_dims),
        axis_names=tuple(mapping.grid_names or ()),
        blocks=tuple(map(_block, mapping.block_mappings)),
        num_prefetch=mapping.num_index_operands,
        num_inputs=mapping.num_inputs,
        num_outputs=mapping.num_outputs,
        aliases=tuple(p["input_output_aliases"]),
        # JAX made this of a core_map. It has two refs for each ref that the core_map writes to.
        synchronised_aliases=_SYNCHRONISED_ALIASES or cores is not None or not p["interpret"],
        for_device=not p["interpret"],
        keeps_scalars=p["interpret"] is not True,
        cores=cores,
        checked=interpret_options(eqn),
        on_gpu=on_gpu,
        parallel=parallel,
        order=order,
    )


def _tells_cores(eqn: Any) -> bool:
    """Whether a kernel can tell a TPU's cores from one: it signals others, or has scratch memory,
    of which each core has its own. (If it rewrites scalars, it stays on one.)"""
    mapping, kernel = eqn.params["grid_mapping"], eqn.params["jaxpr"]
    count = mapping.num_index_operands
    if written_refs(kernel) & set(range(count)):
        return False
    return len(kernel.invars) > count + len(mapping.block_mappings) or meshes.talks(kernel)


def _is_on_gpu(eqn: Any) -> bool:
    modules = [type(params).__module__ for params in compiler_params(eqn)]
    if modules:
        return any("triton" in module for module in modules)
    if eqn.params.get("backend") == "triton":  # JAX < 0.9 has it
        return True
    return not primitives(eqn.params["jaxpr"]).isdisjoint(_TRITON)


_TRITON = frozenset({"atomic_rmw", "atomic_cas", "debug_barrier", "debug_barrier_p"})


def _parallel(eqn: Any) -> tuple[bool, ...]:
    mapping = eqn.params["grid_mapping"]
    declared = iter(dimension_semantics(eqn))
    # The axes that vmap adds are parallel to the TPU's compiler.
    return tuple(
        axis in mapping.vmapped_dims or next(declared, "").endswith("parallel")
        for axis in range(len(mapping.grid))
    )


def kernel_name(eqn: Any) -> str:
    """The name of the function of a pallas_call, core_map or mpmd_map."""
    return kernel_jaxpr(eqn).debug_info.func_name


def kernel_source(eqn: Any) -> str | None:
    """The place where the kernel function is defined. For a core_map and a pipeline, JAX makes its
    own function. Then it is the place of the call, or else of the first equation in it that the
    user wrote."""
    kernel = kernel_jaxpr(eqn)
    _, at, where = kernel.debug_info.func_src_info.partition(" at ")
    if at and not where.startswith(_INSIDE):
        return where
    sources = (inner.source_info for inner in itertools.chain((eqn,), equations(kernel)))
    return next(filter(None, map(user_source, sources)), None)


_INSIDE = os.path.join(os.path.dirname(tree_util.__file__), "")


def kernel_jaxpr(eqn: Any) -> Any:
    """The jaxpr of a kernel. For an mpmd_map it is the first one."""
    return eqn.params["jaxpr"] if "jaxpr" in eqn.params else eqn.params["jaxprs"][0]


def _is_dynamic(size: Any) -> bool:
    return type(size).__name__ == "DynamicGridDim" or size is pallas_core.dynamic_grid_dim


def _block(mapping: Any) -> Block:
    if mapping.transforms:
        raise UnsupportedCall(f"a block of {mapping.origin} with transforms {mapping.transforms}")
    dims = tuple(_block_dim(dim, mapping) for dim in mapping.block_shape)
    seen = in_hbm(mapping.transformed_block_aval)
    revisit = getattr(mapping.pipeline_mode, "revisit", None)
    reloaded = getattr(revisit, "value", None) == "any"
    index_map, buffers = _index_map(mapping), _buffers(mapping)
    return Block(dims, index_map, mapping.array_aval, mapping.origin, seen, buffers, reloaded)


def _buffers(mapping: Any) -> int:
    """As many as JAX tells the TPU compiler. A block of the whole array is fetched once."""
    count = getattr(mapping.pipeline_mode, "buffer_count", 2)
    return 1 if mapping.has_trivial_window() else count


def buffers(eqn: Any) -> tuple[int, ...]:
    """For each block of a pallas_call, the number of buffers that a pipeline on a TPU has."""
    modes = (mapping.pipeline_mode for mapping in eqn.params["grid_mapping"].block_mappings)
    return tuple(2 if mode is None else int(mode.buffer_count) for mode in modes)


def memory(aval: Any) -> str | None:
    """The memory space of a kernel's ref: vmem, smem, semaphore_mem, any, hbm. None: the default,
    which is VMEM."""
    space = memory_space(aval)
    return None if space in ("none", "default", "device") else space


def _index_map(mapping: Any) -> Any:
    """The index map. For a bounded slice it returns the slice's start."""
    closed = mapping.index_map_jaxpr
    found = tree_util.tree_unflatten(mapping.index_map_out_tree, closed.jaxpr.outvars)
    if not any(isinstance(index, indexing.Slice) for index in found):
        return closed
    starts = []
    for index, dim in zip(found, mapping.block_shape, strict=True):
        if isinstance(index, indexing.Slice):
            if index.size != dim.block_size or index.stride != 1:
                raise UnsupportedCall(f"a slice of {mapping.origin} that may not fill its block")
            index = index.start
        starts.append(_literal(index) if isinstance(index, int) else index)
    return closed.replace(jaxpr=closed.jaxpr.replace(outvars=starts))


def _literal(value: int) -> core.Literal:
    return core.Literal(np.int32(value), core.ShapedArray((), np.dtype(np.int32)))


def _block_dim(dim: Any, mapping: Any) -> BlockDim:
    match type(dim).__name__:
        case "Squeezed":
            return BlockDim("squeezed", 1)
        case "Blocked":
            return BlockDim("blocked", int(dim.block_size))
        case "BoundedSlice":  # a slice as long as the block, see _index_map
            return BlockDim("element", int(dim.block_size))
        case "Element":
            return BlockDim("element", int(dim.block_size), tuple(dim.padding))
        case "int":
            return BlockDim("blocked", int(dim))
    raise UnsupportedCall(f"a block dimension {dim} of {mapping.origin}")


def written_refs(jaxpr: Any) -> frozenset[int]:
    """The positions of the refs, among a kernel's inputs, to which it may write."""
    opened, _ = open_jaxpr(jaxpr)
    positions = {var: at for at, var in enumerate(opened.invars)}
    writes: list[Any] = [e for e in opened.effects if isinstance(e, (WriteEffect, AccumEffect))]
    # Before JAX 0.10.2 an effect gives a position, counted from the captured refs.
    captured = len(opened.constvars)
    return frozenset(
        positions.get(e.input, -1) if hasattr(e, "input") else e.input_index - captured
        for e in writes
    )


def prefetch_read(index_map: Any, num_prefetch: int) -> frozenset[int]:
    """The positions of the scalar-prefetch refs that an index map uses."""
    opened, _ = open_jaxpr(index_map)
    refs = opened.invars[len(opened.invars) - num_prefetch :]
    used = {v for eqn in opened.eqns for v in eqn.invars if not isinstance(v, core.Literal)}
    return frozenset(at for at, ref in enumerate(refs) if ref in used)


def run_scoped(eqn: Any) -> tuple[Any, Sequence[Any]]:
    """The jaxpr of a run_scoped, and its collective axes. It has these on several cores only."""
    return eqn.params["jaxpr"], eqn.params.get("collective_axes", ())


# -- kernels on the cores of a mesh -------------------------------------------------------------


class CoreFunction(NamedTuple):
    """The function that every core of a mesh runs.

    ``kind``: what messages call such a core. ``axes``: names and sizes of the mesh's axes.
    ``waits``: a primitive in it with which cores can wait for one another, or None. ``checked`` and
    ``for_device``: as in `PallasCall`.
    """

    kind: str
    axes: dict[Any, int]
    jaxpr: Any
    waits: str | None
    checked: InterpretOptions | None
    for_device: bool

    @property
    def of_sparse_core(self) -> bool:
        return self.kind.endswith("subcore")

    @property
    def waits_for_others(self) -> bool:
        """Whether there are several cores, and one may wait for another."""
        return self.waits is not None and math.prod(self.axes.values()) > 1


class MpmdMap(NamedTuple):
    """Operands: inputs, as arrays or refs. The functions' jaxprs all take, as refs where they
    aren't scalars: inputs, outputs, scratch. ``aliases``: pairs of positions among the inputs
    and the outputs. ``owners``: for each scratch ref the number of the function whose cores it
    belongs to, or None. ``other_axes``: the axes of cores that don't run a function here, though
    some operands or results are in their memory.
    """

    name: str
    functions: tuple[CoreFunction, ...]
    num_outputs: int
    aliases: tuple[tuple[int, int], ...]
    owners: tuple[int | None, ...]
    other_axes: dict[Any, int]


def core_map(eqn: Any) -> CoreFunction:
    """The function of a core_map. Its constvars are the operands. Its inputs are the scratch
    refs."""
    return _core_function(eqn, eqn.params["mesh"], eqn.params["jaxpr"])


def mpmd_map(eqn: Any) -> MpmdMap:
    p = eqn.params
    opened, _ = open_jaxpr(p["jaxprs"][0])
    scratch = opened.invars[len(eqn.invars) + len(p["out_avals"]) :]
    return MpmdMap(
        name=p["name"] or kernel_name(eqn),
        functions=tuple(
            _core_function(eqn, mesh, jaxpr)
            for mesh, jaxpr in zip(p["meshes"], p["jaxprs"], strict=True)
        ),
        num_outputs=len(p["out_avals"]),
        aliases=tuple(p["input_output_aliases"].items()),
        owners=tuple(_owner(v.aval, p["meshes"]) for v in scratch),
        other_axes={
            axis: size
            for mesh in p.get("external_meshes", ())  # JAX < 0.10.1 has none
            for axis, size in mesh.shape.items()
        },
    )


def _owner(aval: Any, meshes: Sequence[Any]) -> int | None:
    mesh = getattr(aval.memory_space, "mesh", None)
    return next((number for number, other in enumerate(meshes) if other == mesh), None)


_KINDS = {
    "TC": "TensorCore",
    "SC_SCALAR_SUBCORE": "scalar subcore",
    "SC_VECTOR_SUBCORE": "vector subcore",
}

_WAITING = frozenset(
    {"semaphore_signal", "semaphore_wait", "semaphore_read", "get_barrier_semaphore", "barrier",
     "sc_fetch_and_add"}
)


def _core_function(eqn: Any, mesh: Any, jaxpr: Any) -> CoreFunction:
    names = (inner.primitive.name for inner in equations(jaxpr))
    waits = next((name for name in names if name in _WAITING), None)
    for_device = not eqn.params.get("interpret", False)
    kind = _KINDS.get(getattr(getattr(mesh, "core_type", None), "name", ""), "core")
    return CoreFunction(kind, dict(mesh.shape), jaxpr, waits, interpret_options(eqn), for_device)
