"""Registers and finds rules.

There are two kinds. An *impl rule* turns a primitive with known parameters and types into the NumPy
callable for exactly that case. A *lowering rule* emits instructions itself: for primitives that
hold jaxprs, touch memory, or are composed of other primitives. If a primitive has both, the
lowering rule decides, and may apply the impl rule.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from pallas_shim.refusal import Refusal

if TYPE_CHECKING:  # the start of a process imports this module, and is to import no NumPy
    from pallas_shim.evaluator.program import ArrayType


class Unsupported(Refusal):
    """The evaluator can't do this. ``primitive`` and ``reason`` say what and why.

    ``source`` (the user's file and line) is filled in by the lowering.
    """

    def __init__(self, primitive: str, reason: str, source: Any = None) -> None:
        super().__init__(primitive, reason, source)
        self.primitive = primitive
        self.reason = reason
        self.source = source

    def __str__(self) -> str:
        where = f" at {self.source}" if self.source else ""
        return f"{self.primitive}: {self.reason}{where}"


class ImplRule(NamedTuple):
    """``make(ins, outs, **params)`` gets the ArrayTypes of operands and results (tuples). It
    returns ``fn(*arrays)``, which returns the array, or a tuple of arrays if the primitive has
    several results. It raises `Unsupported` for a case it can't do. ``view``: the result may share
    memory with the first operand. ``keys``: the rule leaves alone the trailing dimensions that an
    array of PRNG keys has beyond JAX's count.
    """

    make: Callable[..., Callable[..., Any]]
    view: bool = False
    keys: bool = False


class Stack(NamedTuple):
    """The instructions that are to run as one, for a batching rule.

    ``size`` is their number, ``ins`` the operand types of one instruction. ``shared`` says which
    operands are the same value for all.
    """

    size: int
    ins: tuple[ArrayType, ...]
    shared: tuple[bool, ...]


class BatchRule(NamedTuple):
    """The rule of a primitive for operands and results with one more axis in front.

    ``params(stack, **params)`` returns the parameters for that, or None if there are none.
    ``unstacked``: the operands that don't get the axis if all members share them. ``broadcasts``:
    all operands are of this kind, and the primitive takes operands of lower rank as NumPy does.
    ``ones``: a shared operand gets an axis of size 1. ``reorders``: the rounding of floats may
    depend on how they lie in memory.
    """

    params: Callable[..., Mapping[str, Any] | None]
    unstacked: tuple[int, ...] = ()
    broadcasts: bool = False
    ones: bool = False
    reorders: bool = False


# ``(lowering, eqn, ins) -> outs``: see `lowering_rule`.
LoweringRule = Callable[..., Any]
_Rule = TypeVar("_Rule", bound=Callable[..., Any])

IMPL_RULES: dict[str, ImplRule] = {}
BATCHING_RULES: dict[str, BatchRule] = {}
LOWERING_RULES: dict[str, LoweringRule] = {}


def _require_unclaimed(primitive: str, *tables: dict[str, Any]) -> None:
    if any(primitive in table for table in tables):
        raise ValueError(f"the primitive {primitive!r} has a rule already")


def impl_rule(
    *primitives: str, view: bool = False, keys: bool = False
) -> Callable[[_Rule], _Rule]:
    """Registers the decorated function as the rule of the named primitives."""

    def register(make: _Rule) -> _Rule:
        for name in primitives:
            _require_unclaimed(name, IMPL_RULES)
            IMPL_RULES[name] = ImplRule(make, view, keys)
        return make

    return register


def lowering_rule(*primitives: str) -> Callable[[_Rule], _Rule]:
    """Registers ``fn(lowering, eqn, ins) -> outs``, values in and values out."""

    def register(fn: _Rule) -> _Rule:
        for name in primitives:
            _require_unclaimed(name, LOWERING_RULES)
            LOWERING_RULES[name] = fn
        return fn

    return register


def batch_rule(*primitives: str, **traits: Any) -> Callable[[_Rule], _Rule]:
    """Registers ``params(stack, **params)`` as the named primitives' `BatchRule`, which has
    the given traits."""

    def register(params: _Rule) -> _Rule:
        for name in primitives:
            _require_unclaimed(name, BATCHING_RULES)
            BATCHING_RULES[name] = BatchRule(params, **traits)
        return params

    return register


def register_rule(
    primitive: str, make: Callable[..., Callable[..., Any]], *, view: bool = False
) -> None:
    """Adds a rule for a primitive of your own (public).

    Args:
      primitive: the primitive's name, as in a printed jaxpr.
      make: ``make(ins, outs, **params) -> fn``. ``ins`` and ``outs`` are tuples of
        `ArrayType` (``shape``, ``dtype``), ``params`` the equation's parameters;
        ``fn(*arrays)`` computes the result with NumPy and does not change its operands.
      view: whether ``fn`` may return a view of its first operand.

    Raises:
      ValueError: the primitive has a rule already.
    """
    _require_unclaimed(primitive, IMPL_RULES, LOWERING_RULES)
    IMPL_RULES[primitive] = ImplRule(make, view)


@functools.cache
def load() -> None:
    """Registers every rule: ours, and those that other packages offer under the entry-point group
    ``pallas_shim.rules``. Idempotent."""
    from pallas_shim.discovery import installed

    # By name: rules import what lowers, and that has them loaded.
    importlib.import_module("pallas_shim.evaluator.rules").load_own()
    for entry_point in installed("pallas_shim.rules"):
        entry_point.load()
