"""Calls whose programs are kept by their functions. Their plans need no trace by JAX."""

from __future__ import annotations

import time
from typing import Any

import jax

from pallas_shim.cache.keeping import CachedCall, Facts, Traced
from pallas_shim.dispatch import compiling, donation, function, native
from pallas_shim.dispatch.plan import IN_NUMPY, Plan, event
from pallas_shim.evaluator.program import Program
from pallas_shim.gc_pause import gc_paused
from pallas_shim.jax_compat import arrays, call_info
from pallas_shim.jax_compat.hooks.jit_calls import Call, Known
from pallas_shim.jax_compat.inputs import is_jaxs_own
from pallas_shim.jax_compat.kernel_info import KernelInfo
from pallas_shim.reports.uses import REPORT


def load(call: Call, setting: str) -> Known | CachedCall | None:
    """Loads what an earlier process kept of a call that JAX has not traced.

    If nothing was kept, returns the object that will keep it. None: it isn't to be kept.
    """
    if is_jaxs_own(call.function):
        return None
    start = time.perf_counter()
    cached = CachedCall(call, setting)
    known = gc_paused(_known, call, cached)
    if known is None:
        return cached
    known.plan.use.prepared(time.perf_counter() - start)
    return known


def keep(
    cached: CachedCall, plan: Plan, params: dict[str, Any], out_tree: Any, consts: list[Any]
) -> None:
    """Keeps the program of a plan, after JAX has traced the call."""
    assert plan.use is not None and plan.executable is not None
    call = call_info.describe_call(params)
    results, unused = call_info.out_avals(params["jaxpr"]), arrays.unused(plan.in_dtypes)
    program = plan.executable.program
    cached.traced(plan.use, Traced(call, program, plan.deleted, unused, results, out_tree, consts))


def _known(call: Call, cached: CachedCall) -> Known | None:
    kept = cached.read(_traced_anew)
    if kept is None:
        return None
    return Known(_plan(call, kept.program, kept.facts), kept.out_tree, kept.consts)


def _plan(call: Call, program: Program, facts: Facts) -> Plan:
    """Makes the plan of a call whose program an earlier process kept."""
    kernels = tuple(KernelInfo(*kernel) for kernel in facts.kernels)
    use = REPORT.use(facts.function, kernels, "numpy", IN_NUMPY)
    use.cache = "read"
    avals = [arrays.result_aval(*result) for result in facts.results]
    arguments = [*map(jax.typeof, facts.consts), *call.avals]
    used = [position not in facts.unused for position in range(len(arguments))]
    executable = compiling.kept(facts.function, program)
    way = native.way(executable, use)
    return Plan(
        (),
        use.reason,
        executable,
        native.runner(executable, way),
        use,
        event(facts.function),
        arrays.argument_dtypes(arguments, used),
        arrays.result_types(avals),
        facts.deleted,
        way=way,
    )


def _traced_anew(params: dict[str, Any], out_tree: Any, consts: list[Any]) -> Traced:
    """Makes the program of a call that JAX traced to verify a kept program, ignoring the cache."""
    jaxpr, call = params["jaxpr"], call_info.describe_call(params)
    used = call_info.used_arguments(jaxpr, keep_unused=call.keep_unused)
    unused = arrays.unused(arrays.argument_dtypes(call_info.in_avals(jaxpr), used))
    program = compiling.program(function.of_call(jaxpr, call))
    deleted = donation.deleted(jaxpr, call, used)
    return Traced(call, program, deleted, unused, call_info.out_avals(jaxpr), out_tree, consts)
