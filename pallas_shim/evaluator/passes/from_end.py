"""Indices from the end: lets gathers count negative indices from the end themselves.

jnp corrects each index before it gathers, by three operations: where(i < 0, i + n, i). Most arrays
of indices have no negative ones. A gather looks at them anyway, since they may lie outside.
"""

from __future__ import annotations

from pallas_shim.evaluator.passes.identities import uniform
from pallas_shim.evaluator.passes.peephole import Peephole
from pallas_shim.evaluator.program import ArrayType, Instruction, Value, array_type


class FromEnd(Peephole):
    def __init__(self) -> None:
        super().__init__()
        self.made: dict[Value, Instruction] = {}

    def remember(self, instruction: Instruction) -> None:
        self.made[instruction.outs[0]] = instruction

    def gather(self, instruction: Instruction) -> Value | None:
        operation, (array, indices), (out,), _, _ = instruction
        if type(array.type) is not ArrayType:
            return None
        dims, type_of = operation.params["dimension_numbers"].start_index_map, indices.type
        shape = array_type(type_of).shape
        if len(dims) != 1 or array_type(type_of).size < 2 or shape[-1] != 1:
            return None
        before = self.corrected(self.source(indices), array.type.shape[dims[0]])
        if before is None:
            return None
        if before.type != type_of:
            before = self.builder.apply_one("reshape", (before,), type_of, dimensions=None)
        operands, params = (array, before), dict(operation.params)
        return self.builder.apply_one("gather_from_end", operands, out.type, **params)

    def source(self, indices: Value) -> Value:
        """The value that has the same elements in the same order, without further axes of one."""
        made = self.made.get(indices)
        if made is None or made.operation.params.get("dimensions") is not None:
            return indices
        source = made.ins[0]
        if made.name == "reshape":
            return source
        sizes = [array_type(value.type).size for value in (source, indices)]
        return source if made.name == "broadcast_in_dim" and sizes[0] == sizes[1] else indices

    def corrected(self, indices: Value, size: int) -> Value | None:
        """The indices before negative ones were made to count from the end of ``size`` elements."""
        select = self.made.get(indices)
        if select is None or select.name != "select_n" or len(select.ins) != 3:
            return None
        which, plain, moved = select.ins
        negative, added = self.made.get(which), self.made.get(moved)
        if negative is None or negative.name != "lt" or added is None or added.name != "add":
            return None
        if plain.type != indices.type or plain.type.dtype.kind != "i":
            return None
        if negative.ins[0] is not plain or uniform(negative.ins[1]) != 0:
            return None
        return plain if added.ins[0] is plain and uniform(added.ins[1]) == size else None

    methods = {
        **dict.fromkeys(("lt", "add", "select_n", "reshape", "broadcast_in_dim"), remember),
        "gather": gather,
    }
