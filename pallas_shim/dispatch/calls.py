"""Calls of jitted functions: one that JAX has traced and is about to run, and, above that, one that
needs no JAX any more."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax

from pallas_shim import settings
from pallas_shim.dispatch import compiling, donation, function, stock
from pallas_shim.dispatch.plan import IN_NUMPY, Plan, event, run
from pallas_shim.dispatch.planning import known_plan, plan_of
from pallas_shim.evaluator.program import Program
from pallas_shim.gc_pause import gc_paused
from pallas_shim.jax_compat import arrays, call_info, kernel_info
from pallas_shim.jax_compat.hooks import jit_calls
from pallas_shim.report import REPORT

if TYPE_CHECKING:
    from pallas_shim.cache.keeping import CachedCall


def call_jit(call: Callable[..., Any], args: Sequence[Any], params: dict[str, Any]) -> Any:
    """Runs one call of a jitted function, in the place of JAX's own ``call``.

    Returns what ``call`` does: the results, and what jit's C++ cache is to keep for the next
    call, which is nothing if the call ran here.
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
            call_info.check_nans(plan.use.function, out)
            donation.delete(args, plan.deleted)
            return out, None, None, []
    return stock.call_stock(call, args, params, stock.Compilation(reason, plan.jax_uses))


class Answers:
    """Answers calls of jitted functions that have run here before, or in another process that
    kept the program: see `jit_calls.CallHandler`."""

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
        donation.delete(args, plan.deleted)
        return out

    def load(self, call: jit_calls.Call) -> jit_calls.Known | CachedCall | None:
        setting = settings.current().cache
        if setting in (None, "trace") or stock.is_left_to_jax():
            return None
        from pallas_shim.cache.keeping import CachedCall
        from pallas_shim.jax_compat.inputs import is_jaxs_own

        if is_jaxs_own(call.function):
            return None
        start = time.perf_counter()
        cached = CachedCall(call, setting)
        known = gc_paused(_known, call, cached)
        if known is None:
            return cached
        known.plan.use.prepared(time.perf_counter() - start)
        return known

    def tracing(self, cached: CachedCall) -> contextlib.AbstractContextManager[Any]:
        return cached.tracing()

    def ran(
        self, cached: CachedCall, params: dict[str, Any], out_tree: Any, consts: list[Any]
    ) -> None:
        plan = known_plan(params)
        if plan is None or plan.executable is None or plan.trial:
            return
        assert plan.use is not None
        if plan.mesh is not None:
            plan.use.cache = f"not kept: {compiling.NOT_KEPT_ON_MESH}"
            return
        jit_call = call_info.describe_call(params)
        results = call_info.out_avals(params["jaxpr"])
        program = plan.executable.program
        unused = arrays.unused(plan.in_dtypes)
        cached.traced(
            plan.use, program, jit_call, plan.deleted, unused, results, out_tree, consts
        )


def _known(call: jit_calls.Call, cached: CachedCall) -> jit_calls.Known | None:
    kept = cached.read(_traced_program)
    return None if kept is None else jit_calls.Known(_kept_plan(call, *kept[:2]), *kept[2:])


def _traced_program(params: dict[str, Any]) -> tuple[Program, tuple[int, ...], tuple[int, ...]]:
    """The program of a call that JAX has traced, made anew; the arguments that it deletes, and
    those that it doesn't use."""
    jaxpr, call = params["jaxpr"], call_info.describe_call(params)
    used = call_info.used_arguments(jaxpr, keep_unused=call.keep_unused)
    unused = arrays.unused(arrays.argument_dtypes(call_info.in_avals(jaxpr), used))
    program = compiling.program(function.of_call(jaxpr, call))
    return program, donation.deleted(jaxpr, call, used), unused


def _kept_plan(call: jit_calls.Call, program: Program, facts: Any) -> Plan:
    """The plan of a call whose program an earlier process kept."""
    kernels = tuple(kernel_info.KernelInfo(*kernel) for kernel in facts.kernels)
    use = REPORT.use(facts.function, kernels, "numpy", IN_NUMPY)
    use.cache = "read"
    avals = [arrays.result_aval(*result) for result in facts.results]
    arguments = [*map(jax.typeof, facts.consts), *call.avals]
    used = [position not in facts.unused for position in range(len(arguments))]
    return Plan(
        (),
        use.reason,
        compiling.kept(facts.function, program),
        use,
        event(facts.function),
        arrays.argument_dtypes(arguments, used),
        arrays.result_types(avals),
        facts.deleted,
    )
