"""Profiles of what a process reached: of its kernels, and of the functions that called them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pallas_shim.chip import noting, profile, session, whole
from pallas_shim.chip.jobs import ACCEPTED, NO_VERDICT, Answer
from pallas_shim.chip.scalar_unit import Executed
from pallas_shim.chip.tpus import Target
from pallas_shim.chip.verdicts import Verdict
from pallas_shim.jax_compat import export_tpu

# What a run in NumPy decided in a kernel, by its key.
Counted = Callable[[Any], Executed]


def of_kernels(found: Sequence[Verdict], counted: Counted) -> list[profile.Profile]:
    """The profile of each kernel, by its verdict."""
    return [profile.profile(verdict, counted(verdict.key)) for verdict in found]


def of_functions(
    functions: Sequence[export_tpu.JittedFunction],
    targets: Sequence[Target],
    found: Sequence[Verdict],
    counted: Counted,
    executor: str | None,
) -> list[whole.Whole]:
    """The profile of each function, for each TPU.

    Args:
      found: the verdicts on the kernels. A function isn't compiled if one of its kernels isn't
        accepted.
      executor: where to compile, see `driver.executor`.

    Raises:
      KeyboardInterrupt: the user doesn't want to wait.
    """
    by_key = {(each.key, each.target): each for each in found}
    kernels: list[dict[Any, tuple[str, ...]]] = [{} for _ in functions]
    for number, function in enumerate(functions):
        for site in export_tpu.sites(function.jaxpr):
            kernels[number][noting.key(site)] = _types(site)
    pairs = [(n, function, target) for n, function in enumerate(functions) for target in targets]
    answers: dict[int, Answer] = {}
    asked = []
    for place, (number, function, target) in enumerate(pairs):
        verdicts = [by_key.get((key, target.name)) for key in kernels[number]]
        stopped = [v for v in verdicts if v is not None and v.answer.outcome != ACCEPTED]
        if stopped:
            said = f"{stopped[0].kernel} is {stopped[0].answer.outcome}"
            if stopped[0].answer.outcome == NO_VERDICT:
                said = f"of {stopped[0].kernel} there is no verdict"
            answers[place] = Answer(NO_VERDICT, message=said)
        else:
            asked.append((function, target))
    with session.Session(targets, executor=executor) as compiler:
        given = iter(compiler.compile_functions(asked))
        return [
            whole.whole(
                function.name, target, answers.get(place) or next(given),
                _known(kernels[number], by_key, target, counted),
            )
            for place, (number, function, target) in enumerate(pairs)
        ]  # fmt: skip


def _types(site: export_tpu.Site) -> tuple[str, ...]:
    """The types of a kernel's operands and results, as XLA writes them."""
    equation = site.equation
    texts = [v.aval.str_short(short_dtypes=True) for v in (*equation.invars, *equation.outvars)]
    return tuple(re.sub(r"^i(?=\d)", "s", text).replace("bool", "pred") for text in texts)


def _known(
    kernels: Mapping[Any, tuple[str, ...]],
    by_key: Mapping[tuple[Any, str], Verdict],
    target: Target,
    counted: Counted,
) -> whole.Lookup:
    """Finds what is known of a kernel of a function, if only one has its types."""

    def known(types: tuple[str, ...]) -> whole.KnownKernel:
        keys = [key for key, each in kernels.items() if each == types]
        verdict = by_key.get((keys[0], target.name)) if len(keys) == 1 else None
        if verdict is None:
            return whole.KnownKernel()
        return whole.KnownKernel(verdict.kernel, verdict.names, counted(verdict.key))

    return known
