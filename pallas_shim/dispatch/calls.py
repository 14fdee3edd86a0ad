"""Calls of jitted functions.

`call_jit` takes a call that JAX has traced and is about to run. `Answers` comes before that, and
takes a call that no longer needs JAX.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pallas_shim import settings
from pallas_shim.dispatch import compiling, donation, entering, special_values, stock
from pallas_shim.dispatch.plan import Plan, run
from pallas_shim.dispatch.planning import known_plan, plan_of
from pallas_shim.jax_compat import arrays, call_info, kernel_info
from pallas_shim.jax_compat.hooks import jit_calls

if TYPE_CHECKING:
    from pallas_shim.cache.keeping import CachedCall


def call_jit(call: Callable[..., Any], args: Sequence[Any], params: dict[str, Any]) -> Any:
    """Runs one call of a jitted function, in place of JAX's own ``call``.

    Returns what ``call`` returns: the results, and what jit's C++ cache keeps for the next call.
    That is nothing if the call ran here.
    """
    plan = None if stock.is_left_to_jax() else plan_of(params, args)
    if plan is None or call_info.execution_is_off():
        return call(*args, **params)
    reason = plan.reason
    if plan.executable is not None:
        try:
            out = run(plan, args)
        except arrays.Elsewhere as elsewhere:
            reason = str(elsewhere)
        else:
            assert plan.use is not None
            try:
                call_info.check_nans(plan.use.function, out)
            except call_info.SpecialValue as found:
                if plan.mesh is None and kernel_info.is_a_kernel(params["jaxpr"]):
                    special_values.raise_for_kernel(plan, params, args, found.ty)
                raise
            donation.delete(args, plan.deleted)
            return out, None, None, []
    return stock.call_stock(call, args, params, stock.Compilation(reason, plan.jax_uses))


class Answers:
    """Answers calls of jitted functions that have run here before, or whose program another process
    kept. See `jit_calls.CallHandler`."""

    def plan(self, params: dict[str, Any]) -> Plan | None:
        plan = None if stock.is_left_to_jax() else known_plan(params)
        return None if plan is None or plan.executable is None else plan

    def run(self, args: Sequence[Any], plan: Plan) -> Sequence[Any] | None:
        if plan.trial is not None and plan.trial.is_over():
            return None
        try:
            out = run(plan, args)
        except arrays.Elsewhere:
            return None
        if plan.deleted:
            donation.delete(args, plan.deleted)
        return out

    def executable(self, args: Sequence[Any], plan: Plan, out: Sequence[Any]) -> Any | None:
        way = plan.way
        if way is None or way.seconds is None:
            return None
        return entering.executable(way, args, plan, out)

    def load(self, call: jit_calls.Call) -> jit_calls.Known | CachedCall | None:
        asked = settings.current()
        setting = asked.cache
        repeated = asked.check or asked.schedules or asked.seed is not None
        if setting in (None, "trace") or repeated or stock.is_left_to_jax():
            return None
        if asked.compile:
            return None  # the TPU's compiler needs the jaxpr
        from pallas_shim.dispatch import kept_calls  # a slow import, so not at a process's start

        return kept_calls.load(call, setting)

    def tracing(self, cached: CachedCall) -> contextlib.AbstractContextManager[Any]:
        return cached.tracing()

    def ran(
        self, cached: CachedCall, params: dict[str, Any], out_tree: Any, consts: list[Any]
    ) -> None:
        plan = known_plan(params)
        if plan is None or plan.executable is None or plan.trial:
            return
        if plan.mesh is not None:
            assert plan.use is not None
            plan.use.cache = f"not kept: {compiling.NOT_KEPT_ON_MESH}"
        elif kernel_info.asks_for_prints(params["jaxpr"]):
            assert plan.use is not None
            plan.use.cache = "not kept: debug=True prints when it is traced"
        else:
            from pallas_shim.dispatch import kept_calls

            kept_calls.keep(cached, plan, params, out_tree, consts)
