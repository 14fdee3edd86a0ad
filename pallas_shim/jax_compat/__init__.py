"""All knowledge of JAX's internals. This is the only package that imports jax._src.

It gives the rest of the code one normal form of jaxprs, loops, refs, block mappings and hooks for
all versions of JAX.
"""

from pallas_shim.jax_compat import version  # fails, by name, if this JAX can't be worked with

# isort: split
from pallas_shim.jax_compat.checked import (
    InterpretOptions,
    in_hbm,
    in_whole_tiles,
    interpret_options,
)
from pallas_shim.jax_compat.jaxprs import (
    CALL_PRIMITIVES,
    AvalInfo,
    Scan,
    UnsupportedType,
    WhileLoop,
    branches,
    called_jaxpr,
    describe_aval,
    is_literal,
    is_users,
    open_jaxpr,
    primitive_name,
    scan,
    source_of,
    to_numpy,
    user_frames,
    user_source,
    while_loop,
)
from pallas_shim.jax_compat.meshes import argument_names
from pallas_shim.jax_compat.pallas import (
    REPEATS_ELEMENTS,
    CoreFunction,
    MpmdMap,
    PallasCall,
    UnsupportedCall,
    core_map,
    kernel_name,
    kernel_source,
    mpmd_map,
    pallas_call,
    prefetch_read,
    run_scoped,
    written_refs,
)

__all__ = [
    "CALL_PRIMITIVES",
    "REPEATS_ELEMENTS",
    "AvalInfo",
    "InterpretOptions",
    "CoreFunction",
    "MpmdMap",
    "PallasCall",
    "Scan",
    "UnsupportedCall",
    "UnsupportedType",
    "WhileLoop",
    "argument_names",
    "branches",
    "called_jaxpr",
    "interpret_options",
    "core_map",
    "describe_aval",
    "in_hbm",
    "in_whole_tiles",
    "is_literal",
    "kernel_name",
    "kernel_source",
    "mpmd_map",
    "open_jaxpr",
    "pallas_call",
    "prefetch_read",
    "primitive_name",
    "run_scoped",
    "scan",
    "source_of",
    "to_numpy",
    "is_users",
    "user_frames",
    "user_source",
    "version",
    "while_loop",
    "written_refs",
]
