"""Ranks configurations of a function, such as block sizes, by what the TPU's compiler says."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pallas_shim import agreement
from pallas_shim.chip import api, profile, session, tpus
from pallas_shim.chip.jobs import ACCEPTED, Limits
from pallas_shim.chip.verdicts import LOWERED, Verdict, overflow


class Ranked(NamedTuple):
    """One configuration.

    ``seconds``: the estimated time of its kernels, each called once, with the ``error`` of such
    estimates; None: no estimate is honest, and ``unknown`` says why. ``bound``: the seconds that
    they take at least, by the clock and the published bandwidth; None: unknown. ``why``: the reason
    why the configuration was dropped. ``agrees``: whether its results in NumPy are the right ones;
    None: it didn't run. ``failure``: the error of its run.
    """

    config: dict[str, Any]
    verdicts: tuple[Verdict, ...] = ()
    profiles: tuple[profile.Profile, ...] = ()
    seconds: float | None = None
    error: str | None = None
    bound: float | None = None
    unknown: str | None = None
    why: str | None = None
    agrees: bool | None = None
    failure: str | None = None

    @property
    def vmem(self) -> int | None:
        """The bytes of VMEM of the kernel that takes most: by the compiler, or without it those of
        its blocks and scratch. None: unknown."""
        held = []
        for verdict in self.verdicts:
            memory = verdict.memory()
            held.append(memory["vmem"]["used"] if memory else verdict.estimate)
        return None if None in held else max((n for n in held if n is not None), default=None)

    def row(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "config": self.config,
            "seconds": self.seconds,
            "error": self.error,
            "lower_bound_s": self.bound,
            "unknown": self.unknown,
            "why": self.why,
            "agrees": self.agrees,
            "failure": self.failure,
            "vmem": self.vmem,
            "kernels": [verdict.row() for verdict in self.verdicts],
        }


ESTIMATE, BOUND = "estimate", "lower bound"


def ranked_by(ranked: Sequence[Ranked]) -> str | None:
    """What configurations are ranked by: the estimates, if all have one; else the lower bounds, if
    all have one; else nothing."""
    if not ranked:
        return None
    for name, times in (
        (ESTIMATE, [each.seconds for each in ranked]),
        (BOUND, [each.bound for each in ranked]),
    ):
        if None not in times:
            return name
    return None


def rank(
    function: Callable[..., Any],
    configs: Sequence[Mapping[str, Any]],
    args: Sequence[Any],
    *,
    tpu: str,
    run: int = 0,
    reference: Callable[..., Any] | None = None,
    executor: str | None = None,
    limits: Limits | None = None,
) -> tuple[list[Ranked], list[Ranked]]:
    """Ranks configurations of a function by the time of its kernels on a TPU.

    Args:
      function: takes ``args`` and, by name, what a configuration says.
      configs: the configurations.
      args: the arguments, or `jax.ShapeDtypeStruct`s in their places if ``run`` is 0.
      tpu: the generation, as "v6e".
      run: how many of the best are run, under the shim.
      reference: takes ``args`` and returns the right results. None: those of the first
        configuration that can be traced count as right.
      executor, limits: as in `api.verdicts`.

    Returns:
      Those that the compiler accepts, the fastest first, see `ranked_by`; without libtpu, those
      that JAX lowers and whose blocks and scratch fit, as they came. And those that were dropped:
      refused, without a verdict, or not traceable.

    Raises: if no configuration can be traced, what the first one raises. What ``reference``
      raises, or what counts as right without one.
    """
    target = tpus.target(tpu)
    calls = [functools.partial(function, **config) for config in configs]
    traced = [_kernels(call, args) for call in calls]
    failures = [each for each in traced if isinstance(each, Exception)]
    if failures and len(failures) == len(calls):
        raise failures[0]
    sites = [site for each in traced if not isinstance(each, Exception) for site in each]
    answers = iter(
        session.compile_kernels(sites, [target], executor=executor, limits=limits, schedule=True)
    )
    ranked: list[Ranked] = []
    dropped: list[Ranked] = []
    for config, each in zip(configs, traced, strict=True):
        if isinstance(each, Exception):
            dropped.append(Ranked(dict(config), why=f"tracing it failed: {_said(each)}"))
            continue
        made = _with_times(Ranked(dict(config), tuple(next(answers) for _ in each)))
        (ranked if made.why is None else dropped).append(made)
    by = ranked_by(ranked)
    if by is not None:
        ranked.sort(key=lambda each: _time(each.seconds if by == ESTIMATE else each.bound))
    if run and ranked:
        first = next(c for c, t in zip(calls, traced, strict=True) if not isinstance(t, Exception))
        right = list(map(np.asarray, jax.tree.leaves((reference or first)(*args))))
        for place in range(min(run, len(ranked))):
            ranked[place] = _ran(ranked[place], function, args, right)
    return ranked, dropped


def _kernels(call: Callable[..., Any], args: Sequence[Any]) -> Any:
    try:
        return api.kernels(call, *args)
    except Exception as error:  # a size that the function itself refuses
        return error


def _with_times(made: Ranked) -> Ranked:
    """A configuration with its times, or why it is dropped."""
    why = next((why for verdict in made.verdicts if (why := _obstacle(verdict))), None)
    if why is None and not made.verdicts:
        why = "it has no kernel"
    if why is not None:
        return made._replace(why=why)
    if any(verdict.answer.outcome == LOWERED for verdict in made.verdicts):
        return made._replace(unknown="libtpu isn't installed")
    profiles = tuple(map(profile.profile, made.verdicts))
    return made._replace(
        profiles=profiles,
        seconds=_sum(each.seconds for each in profiles),
        error=next((each.error for each in profiles if each.error), None),
        bound=_sum(profile.lower_bound(each) for each in profiles),
        unknown=next((each.unknown for each in profiles if each.seconds is None), None),
    )


def _sum(times: Any) -> float | None:
    found = list(times)
    return None if None in found else math.fsum(found)


def _obstacle(verdict: Verdict) -> str | None:
    """Why a kernel can't be used, or None."""
    answer = verdict.answer
    if answer.outcome == ACCEPTED:
        return None
    if answer.outcome == LOWERED:
        return overflow(verdict.row())
    said = (answer.message or "").strip() or "no reason is known"
    if answer.stage is None:
        return f"{answer.outcome}: {said}"
    return f"{answer.outcome} ({answer.stage}): {said}"


def _time(seconds: float | None) -> float:
    return math.inf if seconds is None else seconds


def _ran(
    made: Ranked, function: Callable[..., Any], args: Sequence[Any], right: Sequence[Any]
) -> Ranked:
    """A configuration after its run in NumPy."""
    try:
        results = jax.tree.leaves(jax.jit(functools.partial(function, **made.config))(*args))
        agrees = len(results) == len(right) and all(map(_agrees, results, right))
    except Exception as error:
        return made._replace(agrees=False, failure=_said(error))
    return made._replace(agrees=agrees)


def _agrees(got: Any, right: Any) -> bool:
    """Whether results are the same but for rounding. A reference may be of a wider type."""
    if all(jnp.issubdtype(x.dtype, jnp.inexact) for x in (got, right)):
        right = right.astype(got.dtype)
    return agreement.agree(got, right)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
