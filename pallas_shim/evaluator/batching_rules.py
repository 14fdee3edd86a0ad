"""Applies batching rules. They turn an operation on members into one on stacks of members."""

from __future__ import annotations

from collections.abc import Sequence

from pallas_shim.evaluator.program import ArrayType, Operation, Type, array_type
from pallas_shim.evaluator.registry import BATCHING_RULES, IMPL_RULES, Stack, Unsupported
from pallas_shim.evaluator.specialise import specialise

# The sizes of the axes in front of a stack. An axis has size 1 if the members don't differ along
# it. None means that the value is the same for all members.
LeadingAxes = tuple[int, ...] | None


def stacked(type: Type, size: int) -> ArrayType:
    return ArrayType((size, *type.shape), type.dtype)


def over_stack(operation: Operation, stack: Stack) -> Operation | None:
    """The operation on stacks that has the effect of the given one on each member. None if there is
    none."""
    form = BATCHING_RULES.get(operation.name)
    if form is None:
        return None
    params = form.params(stack, **operation.params)
    if params is None:
        return None
    # The rule gets full types, even for operands that will broadcast.
    ins = tuple(
        t if is_shared and position in form.unstacked else stacked(t, stack.size)
        for position, (t, is_shared) in enumerate(zip(stack.ins, stack.shared, strict=True))
    )
    outs = tuple([stacked(t, stack.size) for t in operation.outs])
    try:
        return specialise(operation.name, ins, outs, params, operation.multiple)
    except Unsupported:
        return None


def common(leads: Sequence[LeadingAxes]) -> LeadingAxes:
    """The axes in front of a result. ``leads`` are the axes in front of its operands."""
    some = [lead for lead in leads if lead is not None]
    return tuple(map(max, *some)) if len(some) > 1 else some[0] if some else None


def over_leads(operation: Operation, leads: Sequence[LeadingAxes]) -> Operation | None:
    """The operation on stacks with several axes in front. ``leads`` has the axes of each operand.
    None if there is no such operation."""
    form = BATCHING_RULES.get(operation.name)
    lead = common(leads)
    if form is None or lead is None:
        return None
    params = operation.params
    ins = tuple(map(array_type, operation.ins))
    outs = tuple(map(array_type, operation.outs))
    shared = tuple([one is None for one in leads])

    def grown(position: int, type: ArrayType, level: int) -> ArrayType:
        own = leads[position]
        if form.ones:
            return stacked(type, 1 if own is None else own[level])
        return type if own is None and position in form.unstacked else stacked(type, lead[level])

    for level in reversed(range(len(lead))):
        changed = form.params(Stack(lead[level], ins, shared), **params)
        if changed is None:
            return None
        params = changed
        ins = tuple([grown(i, t, level) for i, t in enumerate(ins)])
        outs = tuple([stacked(t, lead[level]) for t in outs])
    try:
        return specialise(operation.name, ins, outs, params, operation.multiple)
    except Unsupported:
        return None


def each(operation: Operation, leads: Sequence[LeadingAxes]) -> Operation | None:
    """The operation that runs the given one for one member after the other. None if there is
    none."""
    lead = common(leads)
    if lead is None or operation.name not in IMPL_RULES:
        return None
    ins = tuple(
        [
            array_type(t) if one is None else ArrayType((*one, *t.shape), t.dtype)
            for t, one in zip(operation.ins, leads, strict=True)
        ]
    )
    outs = tuple([ArrayType((*lead, *t.shape), t.dtype) for t in operation.outs])
    params = {
        "primitive": operation.name,
        "of": dict(operation.params),
        "members": tuple(map(array_type, operation.ins)),
        "leads": tuple(leads),
        "multiple": operation.multiple,
    }
    return specialise("each", ins, outs, params, operation.multiple)
