"""Planning: a plan is made at a function's first call, and found again at later calls."""

from __future__ import annotations

import dataclasses
import os
import threading
import time
import weakref
from collections.abc import Sequence
from typing import Any

from pallas_shim import cost_model, settings
from pallas_shim.dispatch import compiling, donation, function, native, observing, stock
from pallas_shim.dispatch.plan import IN_NUMPY, Plan, event, read
from pallas_shim.dispatch.tracing import last_tracing
from pallas_shim.dispatch.trial import Trial
from pallas_shim.evaluator.registry import Unsupported
from pallas_shim.gc_pause import gc_paused
from pallas_shim.jax_compat import arrays, call_info, jaxprs, kernel_info
from pallas_shim.reports.uses import REPORT

_plans: weakref.WeakKeyDictionary[Any, tuple[Plan, ...]] = weakref.WeakKeyDictionary()
_planning = threading.RLock()


def _start_over() -> None:
    """Makes a new lock in a forked process, where no thread is left to release the old one."""
    global _planning
    _planning = threading.RLock()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_start_over)


def known_plan(params: dict[str, Any]) -> Plan | None:
    """The plan of a call, if there is one already."""
    known = _plans.get(params["jaxpr"])
    if known is None:
        return None
    key = call_info.call_key(params)
    for plan in known:
        if plan.key == key:
            if plan.trial is not None and plan.trial.is_over():
                return Plan(key, "it has run for longer than XLA takes to compile it")
            return plan
    return None


def plan_of(params: dict[str, Any], args: Sequence[Any]) -> Plan | None:
    """Finds or makes the plan of a call.

    None: the function holds no kernel, and the settings send only kernels here.
    """
    known = known_plan(params)
    if known is not None:
        return known
    try:
        return compiling.with_depth_of(params["jaxpr"], params["name"], _new_plan, params, args)
    except Unsupported as unsupported:
        return Plan(call_info.call_key(params), str(unsupported))


def _new_plan(params: dict[str, Any], args: Sequence[Any]) -> Plan | None:
    jaxpr = params["jaxpr"]
    to_run = jaxpr
    if settings.current().profile is not None and kernel_info.kernel_equations(jaxpr):
        from pallas_shim.chip import gate

        gate.function(jaxpr, call_info.describe_call(params))
    if not kernel_info.kernel_equations(jaxpr):
        to_run = _without_kernels(jaxpr, args)
        if to_run is None:
            return None
    with _planning:
        known = known_plan(params)
        if known is not None:
            return known
        key = call_info.call_key(params)
        try:
            plan = gc_paused(_make_plan, to_run, key, params, args)
        except arrays.Elsewhere as elsewhere:
            return Plan(key, str(elsewhere))  # not stored: other arguments may run here
        if settings.current().compile and plan.executable is not None:
            # JAX hands over the kernels of the other functions one by one.
            from pallas_shim.chip import gate

            try:
                gate.in_function(jaxpr)
            except Exception as refused:
                assert plan.use is not None
                plan.use.ran(0.0, refused)
                raise
        _plans[jaxpr] = (*_plans.get(jaxpr, ()), plan)
        return plan


def _without_kernels(jaxpr: Any, args: Sequence[Any]) -> Any | None:
    """What is to run for a function that holds no kernel. None: JAX runs it."""
    scope = settings.current().scope
    if scope == "all":
        return jaxpr
    if scope == "kernels" or (scope == "library" and not jaxprs.is_of_jax(jaxpr)):
        return None
    if not all(map(arrays.is_there, args)):
        return None
    from pallas_shim.dispatch import exact

    return exact.guarded(jaxpr)


def _make_plan(
    to_run: Any, key: tuple[Any, ...], params: dict[str, Any], args: Sequence[Any]
) -> Plan:
    """Makes the plan of a call. JAX runs it if there is an obstacle or no program.

    Args:
      to_run: the jaxpr of the call, or one with the same kernels and results.

    Raises:
      arrays.Elsewhere: these arguments don't belong in the evaluator.
    """
    jaxpr, call = params["jaxpr"], call_info.describe_call(params)
    described = function.of_call(to_run, call)
    tracing = last_tracing(call.name)
    try:
        reason = _obstacle(described, call)
        if reason is not None:
            return Plan(key, reason)
        used = call_info.used_arguments(jaxpr, keep_unused=call.keep_unused)
        plan = Plan(
            key,
            IN_NUMPY,
            event=event(call.name),
            in_dtypes=arrays.argument_dtypes(call_info.in_avals(jaxpr), used),
            out_types=arrays.result_types(call_info.out_avals(jaxpr)),
            mesh=None if described.on is None else compiling.MeshPlan(described.on, {}, ()),
        )
        read(args, plan)  # waits for what XLA still computes
        start = time.perf_counter()
        if described.on is None:
            cached, executable = compiling.compiled(described, keep=bool(described.kernels))
            mesh = None
        else:
            cached = None
            executable, mesh = compiling.compiled_on_mesh(described, plan.out_types)
        if observing.current is not None:
            executable = observing.current.planned(executable, described)
    except Unsupported as unsupported:
        return Plan(key, str(unsupported))
    for eqn in kernel_info.kernel_equations(jaxpr):
        stock.print_debug(eqn)
    use = REPORT.use(call.name, described.kernels, "numpy", IN_NUMPY)
    if cached is not None:
        cached.tell(use)
    elif mesh is not None:
        use.traced_cache = f"not kept: {compiling.NOT_KEPT_ON_MESH}"
    use.prepared(time.perf_counter() - start, tracing)
    way = native.way(executable, use)
    return dataclasses.replace(
        plan,
        executable=executable,
        runs=native.runner(executable, way),
        way=way,
        use=use,
        mesh=mesh,
        deleted=donation.deleted(jaxpr, call, used),
        ordered=call_info.is_ordered(jaxpr),
        trial=None if described.kernels else _trial(params),
    )


def _trial(params: dict[str, Any]) -> Trial:
    outside = cost_model.outside_kernels(params["jaxpr"])
    return Trial(params, outside.compiling, outside.saved)


def _obstacle(described: function.Function, call: call_info.JitCall) -> str | None:
    """The reason why XLA has to run this function, or None.

    Raises:
      Unsupported: a kernel in it has to stay with JAX's interpreter.
    """
    if call.obstacle is not None:
        return call.obstacle
    if described.on is None and call.sharded is not None:
        return call.sharded
    jaxpr = described.jaxpr
    equations = kernel_info.kernel_equations(jaxpr)
    for eqn in equations:
        asked = kernel_info.unhonoured(eqn)
        if asked is not None:
            raise Unsupported(eqn.primitive.name, asked)
    for aval in (*call_info.in_avals(jaxpr), *call_info.out_avals(jaxpr)):
        if not arrays.is_plain(aval):
            return f"it takes or returns a {aval}"
    if not equations and call_info.calls_back(jaxpr):
        return "it calls Python functions, and only XLA raises their errors when jit would"
    outside = cost_model.outside_kernels(jaxpr)
    if outside.is_dear:
        if any(map(kernel_info.talks, equations)):
            return None  # a callback knows of one device only
        seconds = f"{outside.numpy:.2g} s"
        return f"XLA does the work outside its kernels faster (about {seconds} in NumPy)"
    return None
