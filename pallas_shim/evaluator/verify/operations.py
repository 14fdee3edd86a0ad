"""Checks an operation against its row in `ops`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from pallas_shim.evaluator import ops
from pallas_shim.evaluator.program import ArrayType, Effects, Operation, RefType, Type
from pallas_shim.evaluator.registry import IMPL_RULES

_KINDS: Mapping[str, Callable[[Type], bool]] = {
    "ref": lambda t: isinstance(t, RefType),
    "array": lambda t: not isinstance(t, RefType),
    "scalar": lambda t: isinstance(t, ArrayType) and not t.shape,
    "index": lambda t: isinstance(t, ArrayType) and not t.shape and t.dtype.kind in "iub",
    "any": lambda t: True,
}


def wrong_with(operation: Operation) -> str | None:
    """The first error in an operation: something that its row doesn't allow. None if there is
    none."""
    row = ops.row_of(operation)
    for what, types, operands in (
        ("operand", operation.ins, row.operands), ("result", operation.outs, row.results),
    ):  # fmt: skip
        wrong = _arity(what, types, operands)
        if wrong is not None:
            return wrong
    return (
        _params_error(operation, row) or _effects_error(operation, row) or row.types(operation)
    )


def _arity(what: str, types: Sequence[Type], operands: Sequence[ops.Operand]) -> str | None:
    at = 0
    for number, operand in enumerate(operands):
        is_kind = _KINDS[operand.kind]
        if operand.number == "one" and at == len(types):
            return f"it has no {what} {operand.name!r}"
        most = {"one": 1, "optional": 1, "any": len(types)}[operand.number]
        for type in types[at : at + most]:
            if not is_kind(type):
                if operand.number == "any" and number + 1 < len(operands):
                    break
                return f"its {what} {at} ({operand.name}) is {type}, which isn't {operand.kind}"
            at += 1
    return None if at == len(types) else f"it has {len(types)} {what}s, more than it takes"


def _params_error(operation: Operation, row: ops.Op) -> str | None:
    for param in row.params:
        if param.required and param.name not in operation.params:
            return f"it has no parameter {param.name!r}: {param.meaning}"
    if row.name != operation.name or operation.name in IMPL_RULES:
        return None  # it also has the parameters of the primitive
    unknown = operation.params.keys() - {param.name for param in row.params}
    return f"it has an unknown parameter {min(unknown)!r}" if unknown else None


def _effects_error(operation: Operation, row: ops.Op) -> str | None:
    effects, allowed = operation.effects, row.effects
    if row.sees:
        allowed = tuple([_seeing(each, operation, row) for each in allowed])
    if effects not in allowed:
        return f"its effects are {effects}, where {' or '.join(map(str, allowed))} are allowed"
    for position in (*effects.reads, *effects.writes):
        if position >= len(operation.ins) or not isinstance(operation.ins[position], RefType):
            return f"it says that it reads or writes operand {position}, which is no ref"
    if operation.view and not (row.view and operation.ins):
        return "it says that its result is a view of its first operand"
    if (operation.fn is None) != (row.regions is not None):
        return "it has no callable" if operation.fn is None else "it has a callable"
    return None


def _seeing(effects: Effects, operation: Operation, row: ops.Op) -> Effects:
    """The effects of an operation that also reads, and maybe writes, the refs at the end of its
    operands."""
    first = len(operation.ins)
    while first and isinstance(operation.ins[first - 1], RefType):
        first -= 1
    seen = tuple(range(first, len(operation.ins)))
    written = seen if row.sees == "written" else ()
    return effects._replace(
        reads=(*effects.reads, *seen), writes=(*effects.writes, *written)
    )
