"""One normal form of pallas_call: grid, blocks, scratch, aliases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from jax._src.pallas import core as pallas_core
from jax._src.pallas import hlo_interpreter

from pallas_shim.jax_compat.jaxprs import user_source


class BlockDim(NamedTuple):
    """One dimension of a block.

    ``kind``: "blocked" (the index map gives block numbers), "element" (it gives element
    offsets, into the array padded by ``padding``), "squeezed" (size 1, not in the ref).
    """

    kind: str
    size: int
    padding: tuple[int, int] = (0, 0)


class Block(NamedTuple):
    """How one operand or result is cut: ``index_map`` is a jaxpr from the grid indices and
    the scalar-prefetch refs to one index a dimension."""

    dims: tuple[BlockDim, ...]
    index_map: Any
    array_aval: Any
    origin: str


class PallasCall(NamedTuple):
    """Operands: dynamic grid sizes, scalar prefetch, inputs. The jaxpr's inputs, all refs:
    scalar prefetch, inputs, outputs, scratch.

    ``grid``: None stands for a size that is an operand. ``aliases``: pairs of the position
    among (scalar prefetch, inputs) and among the outputs. ``synchronised_aliases``: whether
    this JAX lets a cell see what earlier cells wrote through the other of two aliased refs.
    """

    name: str
    source: str | None
    jaxpr: Any
    grid: tuple[int | None, ...]
    vmapped_dims: tuple[int, ...]
    blocks: tuple[Block, ...]
    num_prefetch: int
    num_inputs: int
    num_outputs: int
    aliases: tuple[tuple[int, int], ...]
    synchronised_aliases: bool


class UnsupportedCall(Exception):
    """A pallas_call with something that has no normal form; the message names it."""


# JAX's interpreter gained this between two releases; it shows by its own variables.
_SYNCHRONISED_ALIASES = (
    "alias_output_written" in hlo_interpreter.pallas_call_hlo_interpret.__code__.co_varnames
    or "alias_output_written" in hlo_interpreter.pallas_call_hlo_interpret.__code__.co_cellvars
)


def pallas_call(eqn: Any) -> PallasCall:
    """The normal form of a pallas_call equation.

    Raises:
      UnsupportedCall: some part has none.
    """
    p = eqn.params
    mapping = p["grid_mapping"]
    return PallasCall(
        name=kernel_name(eqn),
        source=kernel_source(eqn),
        jaxpr=p["jaxpr"],
        grid=tuple(None if _is_dynamic(size) else int(size) for size in mapping.grid),
        vmapped_dims=tuple(mapping.vmapped_dims),
        blocks=tuple(map(_block, mapping.block_mappings)),
        num_prefetch=mapping.num_index_operands,
        num_inputs=mapping.num_inputs,
        num_outputs=mapping.num_outputs,
        aliases=tuple(p["input_output_aliases"]),
        synchronised_aliases=_SYNCHRONISED_ALIASES,
    )


def kernel_name(eqn: Any) -> str:
    """The name of a pallas_call's kernel function."""
    return eqn.params["jaxpr"].debug_info.func_name


def kernel_source(eqn: Any) -> str | None:
    """Where a pallas_call's kernel function is defined, or else where it is called."""
    _, at, where = eqn.params["jaxpr"].debug_info.func_src_info.partition(" at ")
    return where if at else user_source(eqn.source_info)


def _is_dynamic(size: Any) -> bool:
    return type(size).__name__ == "DynamicGridDim" or size is pallas_core.dynamic_grid_dim


def _block(mapping: Any) -> Block:
    if mapping.transforms:
        raise UnsupportedCall(f"a block of {mapping.origin} with transforms {mapping.transforms}")
    dims = tuple(_block_dim(dim, mapping) for dim in mapping.block_shape)
    return Block(dims, mapping.index_map_jaxpr, mapping.array_aval, mapping.origin)


def _block_dim(dim: Any, mapping: Any) -> BlockDim:
    match type(dim).__name__:
        case "Squeezed":
            return BlockDim("squeezed", 1)
        case "Blocked":
            return BlockDim("blocked", int(dim.block_size))
        case "Element":
            return BlockDim("element", int(dim.block_size), tuple(dim.padding))
        case "int":
            return BlockDim("blocked", int(dim))
    raise UnsupportedCall(f"a block dimension {dim} of {mapping.origin}")


def run_scoped(eqn: Any) -> tuple[Any, Sequence[Any]]:
    """The jaxpr of a run_scoped, and its collective axes (none but on several cores)."""
    return eqn.params["jaxpr"], eqn.params.get("collective_axes", ())
