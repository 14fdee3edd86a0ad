"""Whether the bits of a function's results are defined. Then NumPy gives the same ones as XLA.

`guarded` reads a jaxpr without kernels. Integers, booleans, random bits, comparisons and movement
are exact. So is one operation on floats, since IEEE 754 defines its result. Several aren't always,
because XLA may change what is computed:

- A product and a sum become one operation, which rounds once.
- Constants are combined: ``(x + 1) + 2`` becomes ``x + 3``, and ``x + 0`` becomes ``x``.
- A division by a constant, or by one number for many, becomes a product with its reciprocal.
  ``(x / y) / z`` becomes ``x / (y * z)``.
- A number that was rounded to a narrower type and widened again may keep its digits.
- A comparison and a selection become a maximum or minimum, which makes a subnormal number zero.
  So does an operation that first widens a narrow number.

So each float carries marks of where it comes from. An operation that these marks make doubtful is
refused or guarded. A guard (`evaluator/rules/guarded.py`) looks at the numbers when the program
runs, and raises `Inexact` unless every way to compute the result has the same bits.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive

from pallas_shim.jax_compat import jaxprs


class Mark(enum.Flag):
    """Where a float comes from."""

    NONE = 0
    KNOWN = enum.auto()  # XLA may know its value when it compiles; of integers, too
    ARGUMENT = enum.auto()  # it is an argument of the function, as it came
    SUM = enum.auto()  # a sum in which one term is known
    PRODUCT = enum.auto()  # a product in which one factor is known
    QUOTIENT = enum.auto()
    NARROWED = enum.auto()  # it was rounded to a narrower type, and XLA may forget that


_NONE, _KNOWN = Mark.NONE, Mark.KNOWN
_OF_PLACE = Mark.KNOWN | Mark.ARGUMENT  # what a result doesn't have because its operands do


class _Doubtful(Exception):
    """The bits of some result aren't defined."""


# Each element of a result is one of an operand's, or a position.
_MOVEMENT = frozenset({
    "broadcast_in_dim", "concatenate", "copy", "dynamic_slice", "dynamic_update_slice",
    "gather", "iota", "iota_2x32_shape", "optimization_barrier", "pad", "reshape",
    "rev", "select_n", "slice", "split", "squeeze", "stack", "tile", "transpose", "unstack",
})  # fmt: skip
_KEYS = frozenset({
    "random_bits", "random_clone", "random_fold_in", "random_seed", "random_split", "random_unwrap",
    "random_wrap",
})  # fmt: skip
_COMPARISONS = frozenset({
    "eq", "eq_to", "ge", "gt", "is_finite", "le", "le_to", "lt", "lt_to", "ne",
})  # fmt: skip
# Their results are those of one number, or one of the operands' numbers, but for its sign.
_UNROUNDED = frozenset({
    "abs", "argmax", "argmin", "ceil", "clamp", "floor", "max", "min", "neg", "reduce_max",
    "reduce_min", "round", "sign",
})  # fmt: skip
_OF_WHOLE_NUMBERS = _COMPARISONS | _UNROUNDED | frozenset({
    "add", "and", "bitcast_convert_type", "clz", "cummax", "cummin", "cumprod", "cumsum", "div",
    "dot_general", "integer_pow", "mul", "mulhi", "not", "or", "population_count", "reduce_and",
    "reduce_or", "reduce_prod", "reduce_sum", "reduce_xor", "rem", "scatter-add", "scatter-max",
    "scatter-min", "shift_left",
    "shift_right_arithmetic", "shift_right_logical", "square", "sub", "threefry2x32", "xor",
})  # fmt: skip
_ORDERS = frozenset({"ge", "gt", "le", "le_to", "lt", "lt_to"})
_EXTREMA = frozenset({"clamp", "max", "min", "reduce_max", "reduce_min"})
_READING = _COMPARISONS | _UNROUNDED | {"convert_element_type", "sort", "top_k"}
_SUMS = frozenset({"add", "add_any", "sub"})
_PRODUCTS = frozenset({"mul", "square"})
_COMPUTED = frozenset(map(np.dtype, ("f4", "f8")))  # floats that XLA computes in their own type
_FLOATS = _COMPUTED | frozenset(map(np.dtype, ("f2", jnp.bfloat16)))
_WHOLE = frozenset(map(np.dtype, "?bhilBHIL"))

_guard = Primitive("guarded")


def guarded(jaxpr: Any) -> Any | None:
    """A jaxpr, with guards where its bits depend on the numbers. None: they aren't defined."""
    opened, _ = jaxprs.open_jaxpr(jaxpr)
    if opened.effects:
        return None
    try:
        reader = _Reader(_on_floats(jaxpr, _SUMS), _on_floats(jaxpr, _ORDERS))
        changed, _ = reader.jaxpr(jaxpr, [Mark.ARGUMENT] * len(opened.invars))
    except _Doubtful:
        return None
    return changed


def _on_floats(jaxpr: Any, names: frozenset[str]) -> bool:
    """Whether a jaxpr, or one in it, has one of these operations, and its operands are floats."""
    return not names.isdisjoint(jaxprs.primitives(jaxpr)) and any(
        eqn.primitive.name in names and eqn.invars[0].aval.dtype in _FLOATS
        for eqn in jaxprs.equations(jaxpr)
    )


class _Reader:
    """Reads a function. ``adds``: it adds floats somewhere, and they may be products. ``compares``:
    it compares floats somewhere, and may then select one of them."""

    def __init__(self, adds: bool, compares: bool):
        self._adds = adds
        self._compares = compares

    def jaxpr(self, jaxpr: Any, ins: Sequence[Mark]) -> tuple[Any, list[Mark]]:
        """A jaxpr with guards, and the marks of its results.

        Raises:
          _Doubtful
        """
        opened, _ = jaxprs.open_jaxpr(jaxpr)
        marks = dict.fromkeys(opened.constvars, _KNOWN) | dict(zip(opened.invars, ins, strict=True))

        def of(atom: Any) -> Mark:
            return _KNOWN if jaxprs.is_literal(atom) else marks[atom]

        changed: list[Any] = []
        for eqn in opened.eqns:
            new, outs = self._equation(eqn, list(map(of, eqn.invars)))
            if self._may_flush(eqn):
                new = _without_subnormals(new, changed)
            changed.append(new)
            marks.update(zip(eqn.outvars, outs, strict=True))
        return jaxprs.with_equations(jaxpr, changed), list(map(of, opened.outvars))

    def _may_flush(self, eqn: Any) -> bool:
        """Whether XLA may take a subnormal operand for zero, and may not."""
        name = eqn.primitive.name
        if name in _EXTREMA or (name == "select_n" and self._compares):
            return eqn.outvars[0].aval.dtype in _FLOATS
        # It widens narrow numbers first, or doesn't: that depends on the operations around.
        return name in _READING and eqn.invars[0].aval.dtype in _FLOATS - _COMPUTED

    def _equation(self, eqn: Any, ins: list[Mark]) -> tuple[Any, list[Mark]]:
        name = eqn.primitive.name
        read: Callable[[Any, list[Mark]], tuple[Any, list[Mark]]] | None = {
            "cond": self._cond, "scan": self._scan, "while": self._while
        }.get(name)  # fmt: skip
        if name in jaxprs.CALL_PRIMITIVES:
            read = self._call
        if read is not None:
            return read(eqn, ins)
        if eqn.effects:
            raise _Doubtful
        changed, out = self._operation(eqn, name, ins)
        if all(_KNOWN in mark for mark in ins):
            out |= _KNOWN
        return changed, [out] * len(eqn.outvars)

    def _operation(self, eqn: Any, name: str, ins: list[Mark]) -> tuple[Any, Mark]:
        """An equation without jaxprs, and the marks of its results that it doesn't get from being
        known."""
        origin = _together(ins) & ~_OF_PLACE
        dtypes: list[Any] = [
            getattr(atom.aval, "dtype", None) for atom in (*eqn.invars, *eqn.outvars)
        ]
        if name in _KEYS or name in _MOVEMENT:
            if all(map(_is_moved, dtypes)):
                return eqn, origin
            raise _Doubtful
        if not all(dtype in _WHOLE or dtype in _FLOATS for dtype in dtypes):
            raise _Doubtful
        if name == "scatter" and eqn.params["unique_indices"]:
            return eqn, origin
        if name in _OF_WHOLE_NUMBERS and all(dtype in _WHOLE for dtype in dtypes):
            return eqn, _NONE
        if Mark.NARROWED in origin:
            raise _Doubtful
        if name in _COMPARISONS or name in _UNROUNDED or name == "bitcast_convert_type":
            return eqn, origin
        if name == "top_k" or (name == "sort" and eqn.params["is_stable"]):
            return eqn, origin
        if name == "convert_element_type":
            return eqn, origin | _converted(dtypes[0], dtypes[-1], known=_KNOWN in ins[0])
        if all(dtype in _COMPUTED for dtype in dtypes):
            if name in _SUMS:
                return self._sum(eqn, ins, origin)
            if name in _PRODUCTS:
                return self._product(eqn, ins, origin)
            if name == "div":
                return self._quotient(eqn, ins, origin)
        raise _Doubtful

    def _sum(self, eqn: Any, ins: list[Mark], origin: Mark) -> tuple[Any, Mark]:
        known = [i for i, mark in enumerate(ins) if _KNOWN in mark]
        if not known and _count(ins, Mark.SUM) < 2:
            return eqn, origin & ~(Mark.PRODUCT | Mark.QUOTIENT)
        if not known:
            raise _Doubtful
        return _guarded(eqn, known=known, chain=Mark.SUM in origin), origin | Mark.SUM

    def _product(self, eqn: Any, ins: list[Mark], origin: Mark) -> tuple[Any, Mark]:
        known = [i for i, mark in enumerate(ins) if _KNOWN in mark]
        if not known and _count(ins, Mark.PRODUCT) > 1:
            raise _Doubtful
        if known:
            changed = _guarded(eqn, known=known, chain=Mark.PRODUCT in origin, fused=self._adds)
            return changed, origin | Mark.PRODUCT
        return (_guarded(eqn, fused=True) if self._adds else eqn), origin & ~Mark.SUM

    def _quotient(self, eqn: Any, ins: list[Mark], origin: Mark) -> tuple[Any, Mark]:
        if Mark.QUOTIENT in origin:
            raise _Doubtful
        known = [i for i, mark in enumerate(ins) if _KNOWN in mark]
        # A scalar may be one that an array is divided by, after it was broadcast inside XLA.
        plain = all(Mark.ARGUMENT in mark for mark in ins) and eqn.invars[1].aval.shape
        changed = eqn if plain else _guarded(eqn, known=known)
        return changed, origin | Mark.QUOTIENT | Mark.PRODUCT

    # -- equations that hold jaxprs ----------------------------------------------------------

    def _call(self, eqn: Any, ins: list[Mark]) -> tuple[Any, list[Mark]]:
        called = jaxprs.called_jaxpr(eqn)
        changed, outs = self.jaxpr(called, ins)
        return jaxprs.with_jaxprs(eqn, {id(called): changed}), outs

    def _cond(self, eqn: Any, ins: list[Mark]) -> tuple[Any, list[Mark]]:
        changed, outs = {}, [_NONE] * len(eqn.outvars)
        for branch in jaxprs.branches(eqn):
            changed[id(branch)], results = self.jaxpr(branch, ins[1:])
            outs = [a | b for a, b in zip(outs, results, strict=True)]
        return jaxprs.with_jaxprs(eqn, changed), outs

    def _scan(self, eqn: Any, ins: list[Mark]) -> tuple[Any, list[Mark]]:
        scan = jaxprs.scan(eqn)
        consts, rest = ins[: scan.num_consts], ins[scan.num_consts :]
        carry, xs = rest[: scan.num_carry], rest[scan.num_carry :]
        xs = [mark & ~Mark.ARGUMENT for mark in xs]
        while True:
            changed, outs = self.jaxpr(scan.jaxpr, [*consts, *carry, *xs])
            wider = _wider(carry, outs[: scan.num_carry])
            if wider == carry:
                return jaxprs.with_jaxprs(eqn, {id(scan.jaxpr): changed}), outs
            carry = wider

    def _while(self, eqn: Any, ins: list[Mark]) -> tuple[Any, list[Mark]]:
        loop = jaxprs.while_loop(eqn)
        of_condition = ins[: loop.num_condition_consts]
        rest = ins[loop.num_condition_consts :]
        of_body, carry = rest[: loop.num_body_consts], rest[loop.num_body_consts :]
        while True:
            body, outs = self.jaxpr(loop.body, [*of_body, *carry])
            wider = _wider(carry, outs)
            if wider == carry:
                break
            carry = wider
        condition, _ = self.jaxpr(loop.condition, [*of_condition, *carry])
        changed = {id(loop.body): body, id(loop.condition): condition}
        return jaxprs.with_jaxprs(eqn, changed), carry


def _is_moved(dtype: Any) -> bool:
    if dtype is None:  # a token
        return False
    if isinstance(dtype, np.dtype):
        return dtype in _WHOLE or dtype in _FLOATS
    return jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key) and str(dtype) == "key<fry>"


def _together(marks: Sequence[Mark]) -> Mark:
    together = _NONE
    for mark in marks:
        together |= mark
    return together


def _count(marks: Sequence[Mark], wanted: Mark) -> int:
    return sum(wanted in mark for mark in marks)


def _wider(before: Sequence[Mark], after: Sequence[Mark]) -> list[Mark]:
    """The marks that a loop carries: those of the first round and those of later ones."""
    kept = [a | b for a, b in zip(before, after, strict=True)]
    return [
        both if Mark.ARGUMENT in a and Mark.ARGUMENT in b else both & ~Mark.ARGUMENT
        for both, a, b in zip(kept, before, after, strict=True)
    ]


def _converted(source: np.dtype, target: np.dtype, known: bool) -> Mark:
    """The mark of a number of one type that becomes one of another."""
    if target in _WHOLE:
        if source in _FLOATS and known:  # XLA computes that itself, and may do it otherwise
            raise _Doubtful
        return _NONE
    if source in _WHOLE:
        if target not in _COMPUTED and source != np.bool_:
            raise _Doubtful  # by way of a wider type, which rounds too
        return _NONE
    widens = target in _COMPUTED and target.itemsize >= source.itemsize
    return _NONE if widens or source == target else Mark.NARROWED


def _without_subnormals(eqn: Any, before: list[Any]) -> Any:
    """The equation, of guarded operands that aren't subnormal. ``before`` gets the guards.

    Raises:
      _Doubtful: a constant is subnormal.
    """
    operands = []
    for atom in eqn.invars:
        if atom.aval.dtype in _FLOATS and jaxprs.is_literal(atom):
            if 0 < abs(float(atom.val)) < float(jnp.finfo(atom.aval.dtype).smallest_normal):
                raise _Doubtful
        elif atom.aval.dtype in _FLOATS:
            checked = jaxprs.new_variable(atom.aval)
            before.append(_guarded(eqn, "normal").replace(invars=[atom], outvars=[checked]))
            atom = checked
        operands.append(atom)
    return eqn.replace(invars=operands)


def _guarded(
    eqn: Any,
    operation: str | None = None,
    known: Sequence[int] = (),
    chain: bool = False,
    fused: bool = False,
) -> Any:
    """The guarded form of an equation. The parameters are those of its rule."""
    operation = operation or eqn.primitive.name
    params = {"operation": operation, "known": tuple(known), "chain": chain, "fused": fused}
    return eqn.replace(primitive=_guard, params=params)
