"""Plans: how the calls of a function run, and the runs themselves."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from pallas_shim import settings
from pallas_shim.dispatch import donation, fallback, native, observing
from pallas_shim.dispatch.compiling import MeshPlan
from pallas_shim.dispatch.trial import Trial
from pallas_shim.evaluator.execute import Executable
from pallas_shim.jax_compat import arrays, sharded
from pallas_shim.refusal import Inexact
from pallas_shim.reports.uses import Use

IN_NUMPY = "the evaluator has a rule for all of it"


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """How calls of one jaxpr with one set of jit's parameters run.

    ``executable`` is None if JAX runs the function. Then ``reason`` says why, and ``jax_uses``
    collects the kernels in it that JAX interprets. Otherwise ``runs`` runs it, in NumPy or
    natively. ``trial`` is set for a function without kernels.
    """

    key: tuple[Any, ...]
    reason: str
    executable: Executable | None = None
    runs: native.Run | None = None
    use: Use | None = None
    event: str = ""
    in_dtypes: tuple[np.dtype | np.ndarray, ...] = ()
    out_types: Sequence[arrays.ResultType] = ()
    deleted: tuple[int, ...] = ()
    ordered: bool = False
    trial: Trial | None = None
    mesh: MeshPlan | None = None
    jax_uses: list[Use] = dataclasses.field(default_factory=list)


def event(function: str) -> str:
    """The profiler's name for calls of a function, the same as under jit."""
    return "jit_" + "".join([c if c.isalnum() or c == "_" else "_" for c in function])


def run(plan: Plan, args: Sequence[Any]) -> list[Any]:
    """Runs a plan that has an executable. The caller deletes the donated arguments.

    Raises:
      arrays.Elsewhere: these arguments don't belong in the evaluator.
    """
    if not _is_profiled():  # an annotation that nobody sees costs a twentieth of a small call
        return _run(plan, args)
    with jax.profiler.TraceAnnotation(plan.event):
        return _run(plan, args)


_is_profiled: Callable[[], bool] = jax.profiler.TraceAnnotation.is_enabled
_now = time.perf_counter


def _run(plan: Plan, args: Sequence[Any]) -> list[Any]:
    use, runs, mesh = plan.use, plan.runs, plan.mesh
    assert use is not None and runs is not None and plan.executable is not None
    if observing.current is not None:
        runs = plan.executable.run  # what it compares
    if mesh is None:
        values, place = arrays.read(args, plan.in_dtypes, settings.current().force)
    else:
        values, place = read(args, plan)
    if plan.deleted:
        donation.check(values, plan.deleted)
    if plan.ordered:
        jax.effects_barrier()
    start = _now()
    try:
        results = runs(values)
    except Inexact as inexact:
        assert plan.trial is not None
        plan.trial.end()
        raise arrays.Elsewhere(str(inexact)) from inexact
    except BaseException as error:
        use.ran(_now() - start, error)
        if observing.current is not None and isinstance(error, Exception):
            observing.current.ran(plan.executable, values, error, inside_xla=False)
        fallback.blame(error, use)
        raise
    took = _now() - start
    use.ran(took)
    if observing.current is not None:
        observing.current.ran(plan.executable, values, results, inside_xla=False)
    if plan.trial is not None:
        plan.trial.ran(took, args)
    if mesh is None:
        return arrays.write(results, plan.out_types, place)
    return sharded.write(results, mesh.results, mesh.on)


def read(args: Sequence[Any], plan: Plan) -> tuple[list[Any], Any]:
    """Reads the arguments as NumPy arrays, and waits for what XLA still computes.

    Also returns the place for the results, if that is one device.

    Raises:
      arrays.Elsewhere: these arguments don't belong in the evaluator.
    """
    force = settings.current().force
    if plan.mesh is not None:
        on, cut = plan.mesh.on, plan.mesh.cut
        return sharded.read(args, plan.in_dtypes, on, cut, any_platform=force), None
    return arrays.read(args, plan.in_dtypes, force)
