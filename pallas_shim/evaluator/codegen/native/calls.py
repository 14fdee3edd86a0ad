"""Instructions without native code: the native function calls their NumPy functions.

The operands are arrays over the memory where the native code has them, laid out as NumPy would lay
them out, so that sums and products are done in the same order. The result is copied to where the
native code wants it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pallas_shim.evaluator import blas, scalars
from pallas_shim.evaluator.codegen.native import host
from pallas_shim.evaluator.codegen.native.layouts import Layouts, is_dense, significant
from pallas_shim.evaluator.codegen.native.places import BufferPlace, contiguous, reach
from pallas_shim.evaluator.codegen.native.source import NotNative, Source
from pallas_shim.evaluator.program import ArrayType, Instruction, RefType, Value

_WRITEABLE = 0x400


def can_call(instruction: Instruction) -> bool:
    """Whether an instruction only computes, from arrays, what is then copied; or writes to refs."""
    operation, _, outs, regions, _ = instruction
    effects = operation.effects
    if regions or operation.fn is None or effects.io or effects.allocates:
        return False
    if "into" in operation.params:
        return False  # it would write over memory that the native code still reads
    return all(isinstance(out.type, ArrayType) for out in outs)


def call(to: Any, layouts: Layouts, instruction: Instruction) -> None:
    """Writes the call of an instruction's function.

    Raises:
      NotNative: nothing is known of how NumPy lays out an operand.
    """
    operation, ins, outs, *_ = instruction
    copies: list[BufferPlace] = []
    given = [_operand(to, layouts, value, copies) for value in ins]
    for position, operand in enumerate(given):
        if isinstance(operand, BufferPlace):
            if position in operation.effects.writes:
                to.before_writing(operand.buffer)
            else:
                to.before_reading(operand.buffer)
    made: list[BufferPlace] = []
    for out in outs:
        made.append(_room(to, out, layouts.of(out) if out.type.shape else None))
    _write(to, operation.name, _function(operation, len(outs)), made, ins, given)
    for out, place in zip(outs, made, strict=True):
        if out.type.shape:
            to.set_place(out, place)
            if not to.left[out]:
                to.release(place.buffer)
        else:
            to.registers[out] = to.to.load(place.dtype, place.buffer.base, place.offset)
            to.workspace.give_back(place.buffer)
    for value in ins:
        to.used(value)
    for copy in copies:
        to.workspace.give_back(copy.buffer)
    to.called[operation.name] += 1


def _room(to: Any, out: Value, strides: tuple[int, ...] | None) -> BufferPlace:
    """New memory for a result, with strides if they are known."""
    shape, dtype = out.type.shape, out.type.dtype
    if strides is None:
        return contiguous(to.workspace.take(shape, dtype), shape, dtype)
    low, high = reach(shape, strides)
    buffer = to.workspace.take((high - low + dtype.itemsize,), np.dtype(np.uint8))
    return BufferPlace(buffer, str(buffer.start - low), strides, shape, dtype)


def _operand(to: Any, layouts: Layouts, value: Value, copies: list[BufferPlace]) -> Any:
    """A constant itself, or the place of a value. It is copied if NumPy would lay it out otherwise:
    then the copy is among ``copies``."""
    if value.const is not None:
        return value.const[()]
    place, shape = to.place(value), value.type.shape
    if not shape or isinstance(value.type, RefType):
        return place
    wanted = layouts.of(value)
    if wanted is None:
        raise NotNative("a call with an array that NumPy lays out in a way of its own")
    if significant(wanted, shape) == significant(place.strides, shape):
        return place
    if not is_dense(wanted, shape, place.dtype):
        raise NotNative("a call with an array that NumPy lays out in a way of its own")
    copies.append(_room(to, value, wanted))
    to.left[value] += 1
    to.store(copies[-1], value)
    return copies[-1]


def _function(operation: Any, results: int) -> Callable[..., Any]:
    """The function that is called: with the results' arrays first, then the operands."""
    fn = scalars.function(operation)
    assert fn is not None
    if results == 0:
        return fn
    if operation.multiple:

        def run_multiple(*arrays: Any) -> None:
            made = fn(*arrays[results:])
            for out, result in zip(arrays[:results], made, strict=True):
                out[...] = result

        return run_multiple

    def run(out: Any, *operands: Any) -> None:
        out[...] = fn(*operands)

    def run_into(out: Any, *operands: Any) -> None:
        fn(*operands, out=out)

    is_taken = blas.takes_out(fn, len(operation.ins)) and operation.outs[0].shape
    return run_into if is_taken else run


def _write(
    to: Any, name: str, fn: Callable[..., Any], made: Sequence[BufferPlace],
    ins: Sequence[Value], given: Sequence[Any],
) -> None:  # fmt: skip
    text: Source = to.to
    to.kept.append(fn)
    objects: list[str] = []
    count = len(made) + len(given)
    args = text.variable(f"[{max(count, 1)} x ptr]")
    created: list[str] = []
    types = [None] * len(made) + [value.type for value in ins]
    for position, (operand, type) in enumerate(zip([*made, *given], types, strict=True)):
        if isinstance(operand, BufferPlace):
            is_scalar = isinstance(type, ArrayType) and not type.shape
            register = _array(to, operand, is_scalar)
            created.append(register)
        else:
            to.kept.append(operand)
            register = text.fixed(id(operand))
        objects.append(register)
        slot = text.let(f"getelementptr ptr, ptr {args}, i64 {position}")
        text.line(f"store ptr {register}, ptr {slot}")
    result = text.let(
        f"call ptr @call_python(ptr {text.fixed(id(fn))}, ptr {args}, i64 {count})"
    )
    for register in created:
        text.line(f"call void @release(ptr {register})")
    failed, go_on = text.label(), text.label()
    text.branch(text.let(f"icmp eq ptr {result}, null"), failed, go_on)
    text.begin(failed)
    text.line("ret i32 1")
    text.begin(go_on)
    text.line(f"call void @release(ptr {result})")


def _array(to: Any, place: BufferPlace, is_scalar: bool) -> str:
    """A new array over a place, or its only element as a NumPy scalar."""
    text: Source = to.to
    numbers = np.array([*place.shape, *place.strides], np.int64)
    to.kept += [numbers, place.dtype]
    data = text.let(f"getelementptr i8, ptr {place.buffer.base}, i64 {place.offset}")
    name = "scalar" if is_scalar else "array"
    dims, rank = text.fixed(numbers.ctypes.data), len(place.shape)
    strides = text.let(f"getelementptr i64, ptr {dims}, i64 {rank}")
    return text.let(
        f"call ptr @new_{name}(ptr {text.fixed(id(place.dtype))}, i32 {rank},"
        f" ptr {dims}, ptr {strides}, ptr {data})"
    )


def helpers() -> str:
    """The text of the functions that such calls use."""
    return f"""
define internal ptr @new_array(ptr %type, i32 %rank, ptr %dims, ptr %strides, ptr %data) noinline {{
  %keep = {host.load("Py_IncRef")}
  call void %keep(ptr %type)
  %new = {host.load("PyArray_NewFromDescr")}
  %of = {host.load("PyArray_Type")}
  %array = call ptr %new(ptr %of, ptr %type, i32 %rank, ptr %dims, ptr %strides, ptr %data,
    i32 {_WRITEABLE}, ptr null)
  ret ptr %array
}}
define internal ptr @new_scalar(ptr %type, i32 %rank, ptr %dims, ptr %strides, ptr %data)
  noinline {{
  %array = call ptr @new_array(ptr %type, i32 %rank, ptr %dims, ptr %strides, ptr %data)
  %return = {host.load("PyArray_Return")}
  %scalar = call ptr %return(ptr %array)
  ret ptr %scalar
}}
define internal ptr @call_python(ptr %function, ptr %args, i64 %count) noinline {{
  %call = {host.load("PyObject_Vectorcall")}
  %result = call ptr %call(ptr %function, ptr %args, i64 %count, ptr null)
  ret ptr %result
}}
define internal void @release(ptr %object) noinline {{
  %drop = {host.load("Py_DecRef")}
  call void %drop(ptr %object)
  ret void
}}
"""
