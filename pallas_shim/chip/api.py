"""What the TPU's compiler says of a function's kernels, asked from Python."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pallas_shim.chip import profile, session, tpus
from pallas_shim.chip.jobs import ACCEPTED, Limits
from pallas_shim.chip.noting import Reached
from pallas_shim.chip.verdicts import Verdict
from pallas_shim.jax_compat import export_tpu


def kernels(function: Callable[..., Any], *args: Any) -> list[export_tpu.Site]:
    """The kernels of a function, each once. JAX traces the function; nothing runs.

    Args:
      function: any function of arrays, jitted or not.
      args: its arguments, or a `jax.ShapeDtypeStruct` in the place of each.
    """
    reached = Reached()
    reached.note(export_tpu.sites(jax.make_jaxpr(function)(*args)))
    return reached.take()


class Ranked(NamedTuple):
    """One configuration. ``seconds``: the estimated time of all its kernels in one call, with its
    ``error``; None: there is no estimate. ``bound``: a lower bound of that time, from the clock and
    the published bandwidth; None: unknown. ``agrees``: whether its results in NumPy are those of
    the best configuration; None: it didn't run."""

    config: dict[str, Any]
    verdicts: tuple[Verdict, ...]
    profiles: tuple[profile.Profile, ...]
    seconds: float | None
    error: str | None
    bound: float | None
    agrees: bool | None = None


def rank(
    function: Callable[..., Any],
    configs: Sequence[Mapping[str, Any]],
    args: Sequence[Any],
    *,
    tpu: str,
    run: int = 0,
    executor: str | None = None,
    limits: Limits | None = None,
) -> tuple[list[Ranked], list[Ranked]]:
    """Ranks configurations of a function, such as block sizes, by the time of its kernels on a TPU.

    Args:
      function: takes ``args`` and, by name, what a configuration says.
      configs: the configurations.
      args: the arguments, or a `jax.ShapeDtypeStruct` in the place of each if ``run`` is 0.
      tpu: the generation, as "v6e".
      run: how many of the best are run, under the shim. Their results should agree.
      executor, limits: as in `verdicts`.

    Returns:
      Those that the compiler accepts, the fastest first: by estimate, or if some have none, by
      bound; those of unknown time last. And those that it refuses or has no verdict on.

    Raises: what the function raises when it is traced or run.
    """
    target = tpus.target(tpu)
    calls = [functools.partial(function, **config) for config in configs]
    found = [kernels(call, *args) for call in calls]
    sites = [site for each in found for site in each]
    answers = iter(
        session.compile_kernels(sites, [target], executor=executor, limits=limits, schedule=True)
    )
    ranked: list[Ranked] = []
    refused: list[Ranked] = []
    for config, each in zip(configs, found, strict=True):
        said = tuple(next(answers) for _ in each)
        made = _ranked(dict(config), said)
        accepted = all(v.answer.outcome == ACCEPTED for v in said)
        (ranked if accepted else refused).append(made)
    estimated = all(each.seconds is not None for each in ranked)
    ranked.sort(key=lambda each: _time(each.seconds if estimated else each.bound))
    best: Any = None
    for place in range(min(run, len(ranked))):
        results = jax.jit(functools.partial(function, **ranked[place].config))(*args)
        best = results if place == 0 else best
        ranked[place] = ranked[place]._replace(agrees=_agree(results, best))
    return ranked, refused


def _ranked(config: dict[str, Any], said: tuple[Verdict, ...]) -> Ranked:
    profiles = tuple(map(profile.profile, said))
    times = [each.seconds for each in profiles]
    bounds = [profile.lower_bound(each) for each in profiles]
    seconds = None if None in times else sum(t for t in times if t is not None)
    bound = None if None in bounds else sum(b for b in bounds if b is not None)
    error = next((each.error for each in profiles if each.error), None)
    return Ranked(config, said, profiles, seconds, error if seconds is not None else None, bound)


def _time(seconds: float | None) -> float:
    return math.inf if seconds is None else seconds


def _agree(results: Any, best: Any) -> bool:
    """Whether results are the same but for the rounding of sums in another order."""
    pairs = zip(jax.tree.leaves(results), jax.tree.leaves(best), strict=True)
    return all(a.shape == b.shape and bool(jnp.allclose(a, b, 1e-2, 1e-2)) for a, b in pairs)


def verdicts(
    function: Callable[..., Any],
    *args: Any,
    tpu: str | Sequence[str],
    executor: str | None = None,
    limits: Limits | None = None,
) -> list[Verdict]:
    """Compiles the kernels of a function for TPUs.

    Args:
      function: any function of arrays, jitted or not. It is traced, and doesn't run.
      args: its arguments, or a `jax.ShapeDtypeStruct` in the place of each.
      tpu: one or more generations, as "v6e", or with a topology, as "v5e:4x4".
      executor: where to compile, as PALLAS_NUMPY_COMPILE_EXECUTOR.
      limits: what one kernel may take.

    Returns:
      For each kernel, a verdict for each TPU.

    Raises: what the function raises when it is traced.
    """
    names = [tpu] if isinstance(tpu, str) else list(tpu)
    targets = [tpus.target(name) for name in names]
    return session.compile_kernels(
        kernels(function, *args), targets, executor=executor, limits=limits
    )
