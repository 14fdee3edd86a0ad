"""Keeps calls of jitted functions without dead code as they are when JAX removes dead code.

JAX before 0.12 builds each such call again, with an equal jaxpr. In an unrolled kernel, operations
on arrays are calls of jitted functions, so this is half of the elimination's time.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from typing import Any

from jax._src import pjit
from jax._src.interpreters import partial_eval


def leave_alone() -> Callable[[], None]:
    """Makes JAX leave such calls as they are; returns the undoing."""
    rules: Any = partial_eval.dce_rules
    stock = rules[pjit.jit_p]
    if len(inspect.signature(stock).parameters) != 2:
        return lambda: None
    live: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()

    def rule(used_outputs: list[bool], eqn: Any) -> tuple[list[bool], Any]:
        if not all(used_outputs):
            return stock(used_outputs, eqn)
        jaxpr = eqn.params["jaxpr"]
        is_live = live.get(jaxpr)
        if is_live is None:
            is_live = live[jaxpr] = _is_live(getattr(jaxpr, "jaxpr", jaxpr))
        return ([True] * len(eqn.invars), eqn) if is_live else stock(used_outputs, eqn)

    def undo() -> None:
        rules[pjit.jit_p] = stock

    rules[pjit.jit_p] = rule
    return undo


def _is_live(jaxpr: Any) -> bool:
    """Whether the elimination would find nothing to take from a jaxpr whose results are used."""
    after, used = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    eqns = after.eqns
    return (
        all(used)
        and len(eqns) == len(jaxpr.eqns)
        and all(one is other for one, other in zip(eqns, jaxpr.eqns, strict=True))
    )
