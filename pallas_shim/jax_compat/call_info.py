"""A jitted call as JAX describes it: its compilation options, and the needs of its jaxpr."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from jax._src import config, effects
from jax._src import dispatch as jax_dispatch
from jax._src.api_util import InternalFloatingPointError
from jax._src.interpreters import mlir, partial_eval
from jax._src.sharding_impls import UnspecifiedValue

from pallas_shim.jax_compat.callbacks import CALLBACK_PRIMITIVES
from pallas_shim.jax_compat.jaxprs import inner_jaxprs


class JitCall(NamedTuple):
    """The options for which a jitted call was compiled, apart from its jaxpr: a key, and obstacles.

    ``obstacle``: why the call needs XLA whatever its arguments, or None. ``sharded``: why it
    needs XLA unless it runs on a mesh; ``told_in`` and ``told_out`` are the shardings that the
    user gave, None where there is none, and ``mesh`` the one that it runs under, or None.
    """

    name: str
    donated: tuple[bool, ...]
    keep_unused: bool
    obstacle: str | None
    sharded: str | None = None
    told_in: tuple[Any, ...] = ()
    told_out: tuple[Any, ...] = ()
    mesh: Any = None


def describe_call(params: dict[str, Any]) -> JitCall:
    """Reads the parameters that `hooks.jit_entry.JIT_CALL` gets beside the arguments."""
    obstacle = sharded = None
    for key in ("in_shardings", "out_shardings"):
        if not all(isinstance(s, UnspecifiedValue) for s in params[key]):
            sharded = f"the user gave {key}"
    for key in ("in_layouts", "out_layouts"):
        if not all(layout is None for layout in params[key]):
            obstacle = f"the user gave {key}"
    if params["ctx_mesh"] is not None and not params["ctx_mesh"].empty:
        sharded = "it runs under a mesh"
    if params["compiler_options_kvs"]:
        obstacle = "the user gave compiler_options"
    told_in, told_out = (
        tuple(None if isinstance(s, UnspecifiedValue) else s for s in params[key])
        for key in ("in_shardings", "out_shardings")
    )
    return JitCall(
        params["name"], tuple(params["donated_invars"]), params["keep_unused"], obstacle, sharded,
        told_in, told_out, params["ctx_mesh"],
    )  # fmt: skip


def call_key(params: dict[str, Any]) -> tuple[Any, ...]:
    """A key that tells calls of one jaxpr apart. It is cheap to make and to compare."""
    return (
        params["donated_invars"],
        params["in_shardings"],
        params["out_shardings"],
        params["in_layouts"],
        params["out_layouts"],
        params["ctx_mesh"],
        params["keep_unused"],
        params["compiler_options_kvs"],
    )


def in_avals(jaxpr: Any) -> Sequence[Any]:
    return jaxpr.in_avals


def out_avals(jaxpr: Any) -> Sequence[Any]:
    return jaxpr.out_avals


def used_arguments(jaxpr: Any, *, keep_unused: bool) -> tuple[bool, ...]:
    """The inputs of a jaxpr that jit passes to XLA: those on which results or effects depend."""
    inner = getattr(jaxpr, "jaxpr", jaxpr)
    if keep_unused:
        return (True,) * len(inner.invars)
    if _surely_used(inner).issuperset(map(id, inner.invars)):
        return (True,) * len(inner.invars)
    _, used = partial_eval.dce_jaxpr(inner, [True] * len(inner.outvars))
    return tuple(used)


def _surely_used(jaxpr: Any) -> set[int]:
    """The ids of variables that results depend on. Those are left out that only JAX's rules for
    calls and loops find. JAX makes a new jaxpr, too, which takes many times as long."""
    used = set(map(id, jaxpr.outvars))
    rules = partial_eval.dce_rules
    for eqn in reversed(jaxpr.eqns):
        # Without a rule, an equation with a result that is used uses all its operands. So does a
        # kernel, whose rule only keeps it in any case.
        if eqn.primitive not in rules or eqn.primitive.name == "pallas_call":
            if not used.isdisjoint(map(id, eqn.outvars)):
                used.update(map(id, eqn.invars))
    return used


def calls_back(jaxpr: Any) -> bool:
    """Whether a jaxpr calls functions of the user's when it runs, or prints."""
    return any(
        eqn.primitive.name in CALLBACK_PRIMITIVES
        or any(map(calls_back, inner_jaxprs(eqn)))
        for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns
    )


def on_donation() -> str:
    """The place of JAX's documentation of donation, as JAX's warning gives it."""
    constants = mlir.lower_jaxpr_to_module.__code__.co_consts
    return next(c for c in constants if isinstance(c, str) and c.startswith("See an expl"))


def is_ordered(jaxpr: Any) -> bool:
    """Whether a jaxpr has effects that must wait for those of earlier calls."""
    return bool(effects.ordered_effects.filter_in(jaxpr.effects))


def execution_is_off() -> bool:
    return bool(config.no_execution.value)


# What `check_nans` raises. Its ``ty`` is "nan" or "inf".
SpecialValue = InternalFloatingPointError


def check_nans(name: str, results: Sequence[Any]) -> None:
    """Raises what jit does if jax_debug_nans or jax_debug_infs is set and there are some.

    Raises:
      SpecialValue: JAX catches it, and runs the function again, one primitive at a time.
    """
    jax_dispatch.check_special(name, results)
