"""Writes code of elements as code of vectors: each register holds several elements.

LLVM makes vectors of a loop over neighbours by itself, but not of one that exchanges neighbours, as
sorting networks do. There the vectors are written here, and exchanges are shuffles.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from pallas_shim.evaluator.codegen.native.source import Source, is_constant, memory_type, type_of

_TYPE = re.compile(r"^(i1|i8|i16|i32|i64|float|double)$")
_LITERAL = re.compile(r"^(-?\d+|true|false|-?\d+\.\d+)$")
_BITS = re.compile(r"bitcast \((i\d+) (-?\d+) to (\w+)\)")


class Vectors(Source):
    """As the source that it writes to, but with vectors of ``lanes`` elements."""

    def __init__(self, to: Source, lanes: int):
        super().__init__()
        self.outer, self.lanes = to, lanes
        self.declared = to.declared

    def line(self, text: str) -> None:
        self.outer.line(text)

    def fresh(self, prefix: str = "%t") -> str:
        return self.outer.fresh(prefix)

    def let(self, text: str) -> str:
        return self.outer.let(self._of_vectors(text))

    def call(self, kind: str, name: str, *operands: str) -> str:
        wide = f"v{self.lanes}"
        name = re.sub(r"\.([if])(\d+)", rf".{wide}\1\2", name)
        # A flag stays one bit.
        given = [x if x in ("i1 false", "i1 true") else self._of_vectors(x) for x in operands]
        types = ", ".join(x.split(" ")[0] if x.startswith("i1 ") else self._first(x) for x in given)
        vector = self._vector(kind)
        self.declared.add(f"declare {vector} @{name}({types})")
        return self.outer.let(f"call {vector} @{name}({', '.join(given)})")

    def splat(self, register: str, dtype: np.dtype) -> str:
        """A vector of one element's copies."""
        kind = type_of(dtype)
        if is_constant(register):
            return register
        vector = self._vector(kind)
        one = self.outer.let(f"insertelement {vector} poison, {kind} {register}, i64 0")
        return self._shuffled(one, vector, [0] * self.lanes)

    def load_lanes(
        self, dtype: np.dtype, base: str, offset: str, order: Sequence[int] | None
    ) -> str:
        """Neighbours in memory, in an order. None: one element for all lanes."""
        kind = memory_type(dtype)
        if order is None:
            return self.splat(self.outer.load(dtype, base, offset), dtype)
        at = self.outer.let(f"getelementptr inbounds i8, ptr {base}, i64 {offset}")
        vector = self._vector(kind)
        value = self.outer.let(f"load {vector}, ptr {at}, align {dtype.itemsize}")
        value = self._shuffled(value, vector, order)
        if dtype.kind == "b":
            return self.outer.let(f"trunc {vector} {value} to {self._vector('i1')}")
        return value

    def store_lanes(
        self, dtype: np.dtype, value: str, base: str, offset: str, order: Sequence[int]
    ) -> None:
        """The reverse of `load_lanes`."""
        vector = self._vector(memory_type(dtype))
        if is_constant(value):
            value = f"splat ({type_of(dtype)} {value})"
        if dtype.kind == "b":
            value = self.outer.let(f"zext {self._vector('i1')} {value} to {vector}")
        value = self._shuffled(value, vector, np.argsort(order).tolist())
        at = self.outer.let(f"getelementptr inbounds i8, ptr {base}, i64 {offset}")
        self.line(f"store {vector} {value}, ptr {at}, align {dtype.itemsize}")

    def _shuffled(self, value: str, vector: str, order: Sequence[int]) -> str:
        if list(order) == list(range(self.lanes)):
            return value
        mask = ", ".join(f"i32 {lane}" for lane in order)
        return self.outer.let(
            f"shufflevector {vector} {value}, {vector} poison, <{self.lanes} x i32> <{mask}>"
        )

    def _vector(self, kind: str) -> str:
        return f"<{self.lanes} x {kind}>"

    def _first(self, operand: str) -> str:
        return operand[: operand.index(">") + 1]

    def _of_vectors(self, text: str) -> str:
        """An instruction on elements as one on vectors."""
        words, kind = [], ""
        for word in _BITS.sub(r"@\1_\2@\3", text).split(" "):
            bare = word.rstrip(",")
            comma = word[len(bare) :]
            if _TYPE.match(bare):
                kind = bare
                bare = self._vector(bare)
            elif bare.startswith("@i"):
                source, target = bare[1:].rsplit("@", 1)
                bare = f"splat ({target} bitcast ({source.replace('_', ' ')} to {target}))"
            elif _LITERAL.match(bare):
                bare = f"splat ({kind} {bare})"
            words.append(bare + comma)
        return " ".join(words)
