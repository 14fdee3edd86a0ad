"""The IR: types, values, operations, instructions, regions, programs.

A Program is in SSA form over NumPy arrays. Each value is defined once, by an instruction or as a
parameter of a region. An instruction in a region may use any value defined before it in an
enclosing region, so a loop closes over values outside it without naming them. A program is
immutable: passes make new ones, and any number of threads may run one.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

# The parameter of a kernel's grid that says, for each index, of which axis it is, which cell is the
# first along it, and how many run together.
CELLS = "cells"


class ArrayType(NamedTuple):
    """The type of a value that is a NumPy array (or, at rank 0, a NumPy scalar)."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def key_ndim(self) -> int:
        return 0

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{self.dtype.name}[{','.join(map(str, self.shape))}]"


class KeyType(NamedTuple):
    """The type of an array of PRNG keys: an array of the integers that they are made of.

    The last ``key_ndim`` dimensions of ``shape`` are one key; JAX doesn't count them.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    key_ndim: int

    def __str__(self) -> str:
        return f"key[{','.join(map(str, self.shape[: len(self.shape) - self.key_ndim]))}]"


class RefType(NamedTuple):
    """The type of a value that is a mutable view of memory.

    ``space`` is the memory space's name ("vmem", "smem", "any", "hbm",
    "semaphore", ...). A semaphore array is an int32 array of counts. ``key_ndim`` as in
    `KeyType`.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    space: str
    key_ndim: int = 0

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def contents(self) -> ArrayType | KeyType:
        """The type of all that the ref leads to, as a value."""
        if self.key_ndim:
            return KeyType(self.shape, self.dtype, self.key_ndim)
        return ArrayType(self.shape, self.dtype)

    def __str__(self) -> str:
        return f"Ref<{self.space}>{{{self.dtype.name}[{','.join(map(str, self.shape))}]}}"


Type = ArrayType | KeyType | RefType
# What an impl rule gets of the operands and of the results.
Types = tuple[ArrayType, ...]
# What a value is when it runs: a NumPy array, at rank 0 a NumPy scalar.
Array = Any


def array_type(type: Type) -> ArrayType:
    """The type, which must be that of an array."""
    assert isinstance(type, ArrayType), type
    return type


def ref_type(type: Type) -> RefType:
    """The type of what only refs get to."""
    assert isinstance(type, RefType), type
    return type


def contents_type(type: Type) -> ArrayType | KeyType:
    """The type of what a load gives: arrays, of numbers or of keys."""
    assert not isinstance(type, RefType), type
    return type


class Value:
    """One SSA value. ``const`` holds its array if it is known when lowering (read-only)."""

    __slots__ = ("type", "const")

    def __init__(self, type: Type, const: np.ndarray | None = None):
        self.type = type
        self.const = const

    @property
    def ref(self) -> RefType:
        """The type of a value that is a ref."""
        return ref_type(self.type)

    def __repr__(self) -> str:
        kind = "const" if self.const is not None else "value"
        return f"<{kind} {id(self):x}: {self.type}>"


class Effects(NamedTuple):
    """The effects of an operation besides its results.

    ``reads`` and ``writes`` are the positions of operands that are refs. ``allocates``: each run
    yields new memory, so two such instructions are never merged. ``io``: the outside world sees it,
    so it is kept and stays in order.
    """

    reads: tuple[int, ...] = ()
    writes: tuple[int, ...] = ()
    allocates: bool = False
    io: bool = False


PURE = Effects()


class Operation:
    """A primitive specialised to its parameters and types; shared by equal instructions.

    Two instructions do the same thing to their operands exactly if their
    ``operation`` is the same object, which is what common subexpressions and
    batching go by.

    ``fn(*arrays)`` returns the array, or a tuple of them where ``multiple``.
    ``fn`` is None for the structured operations, which ``execute`` runs itself.
    ``view``: the result may share memory with the first operand.
    """

    __slots__ = ("name", "params", "ins", "outs", "fn", "effects", "view", "multiple")

    def __init__(
        self,
        name: str,
        params: Mapping[str, Any],
        ins: tuple[Type, ...],
        outs: tuple[Type, ...],
        fn: Callable[..., Any] | None,
        effects: Effects = PURE,
        view: bool = False,
        multiple: bool = False,
    ):
        self.name = name
        self.params = params
        self.ins = ins
        self.outs = outs
        self.fn = fn
        self.effects = effects
        self.view = view
        self.multiple = multiple

    def __repr__(self) -> str:
        return f"<operation {self.name}>"


class Instruction(NamedTuple):
    """One operation applied to values. ``source`` is where the user's code asked for it."""

    operation: Operation
    ins: tuple[Value, ...]
    outs: tuple[Value, ...]
    regions: tuple[Region, ...] = ()
    source: Any = None

    @property
    def name(self) -> str:
        return self.operation.name

    @property
    def pure(self) -> bool:
        """No effect of its own and none inside its regions."""
        return self.operation.effects == PURE and all(
            inner.pure for region in self.regions for inner in region.body
        )


# Its own constructor is a Python function and costs twice this.
make_instruction: Callable[[Sequence[Any]], Instruction] = functools.partial(
    tuple.__new__, Instruction
)


def branch_taken(index: int, branches: int) -> int:
    """The branch that a `switch` takes: its index is clamped to the branches."""
    return min(max(index, 0), branches - 1)


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Region:
    """Instructions that a structured operation runs, any number of times.

    ``params`` are set by the operation before each run of ``body``;
    ``results`` are what it reads after it.
    """

    params: tuple[Value, ...]
    body: tuple[Instruction, ...]
    results: tuple[Value, ...]

    def walk(self) -> Iterator[Instruction]:
        """Every instruction, inner ones after the one that holds them."""
        # Not by recursion, which would pass each instruction on through all that it is inside.
        bodies = [iter(self.body)]
        while bodies:
            for instruction in bodies[-1]:
                yield instruction
                if instruction.regions:
                    bodies += [iter(region.body) for region in reversed(instruction.regions)]
                    break
            else:
                bodies.pop()

    def uses(self) -> Iterator[Value]:
        """Every value that an instruction or an end of a region uses, as often as it does."""
        yield from self.results
        for instruction in self.walk():
            yield from instruction.ins
            for region in instruction.regions:
                yield from region.results


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Program:
    """A region that is run once: ``params`` are the arguments, ``results`` the outputs.

    ``loops``: the code of loops that became functions of Python when it was prepared, by their
    source. It spares others who prepare it the compilation, and is no part of the program.
    """

    name: str
    top: Region
    loops: dict[str, types.CodeType] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        from pallas_shim.evaluator import printer  # which needs all that a program is made of

        return printer.program(self)
