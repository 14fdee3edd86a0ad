"""The text of one LLVM function: its blocks, loops and metadata."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Callable, Hashable, Iterator

import numpy as np

from pallas_shim.evaluator.codegen.native import threads


class NotNative(Exception):
    """There is no native code for part of a program. The message names the part."""


# dtype kind and size: (type in registers, type in memory)
_TYPES = {
    "b1": ("i1", "i8"),
    **{f"{kind}{size}": (f"i{8 * size}",) * 2 for kind in "iu" for size in (1, 2, 4, 8)},
    "f4": ("float", "float"),
    "f8": ("double", "double"),
    "f2": ("i16", "i16"),  # its bits
}
_BFLOAT16 = "bfloat16"
_POLL_EACH = 1 << 12
ALIGNMENT = 64  # of arrays
# The bytes that a cache keeps together.
_LINE = 64
# Of many rounds, so many neighbours stay together.
_TOGETHER = 64
_CONVERSIONS = (
    "bitcast", "fpext", "fptosi", "fptoui", "fptrunc", "inttoptr", "ptrtoint", "sext", "sitofp",
    "trunc", "uitofp", "zext",
)  # fmt: skip
_KIND = re.compile(r"(?<![\w%.@])(?:i\d+|float|double|ptr|<\d+ x \w+>)(?![\w.])")
# The list of a program's addresses, which is filled in when its code is loaded. So the text is the
# same in each process.
FIXED = "@fixed"


def type_of(dtype: np.dtype) -> str:
    """The type of an element in a register.

    Raises:
      NotNative: there is none.
    """
    return _types(dtype)[0]


def memory_type(dtype: np.dtype) -> str:
    return _types(dtype)[1]


def _types(dtype: np.dtype) -> tuple[str, str]:
    key = "f2" if dtype.name == _BFLOAT16 else f"{dtype.kind}{dtype.itemsize}"
    if key not in _TYPES or not dtype.isnative:
        raise NotNative(f"values of the type {dtype.name}")
    return _TYPES[key]


def literal(value: np.generic | np.ndarray) -> str:
    """A number as LLVM writes it."""
    array = np.asarray(value)
    if array.dtype.kind == "b":
        return "true" if array else "false"
    if array.dtype.kind in "iu":
        return str(int(array))
    bits = int(array.reshape(1).view(f"u{array.dtype.itemsize}")[0])
    kind = type_of(array.dtype)
    if kind.startswith("i"):
        return str(bits)
    return f"bitcast (i{8 * array.itemsize} {bits} to {kind})"


def _result(text: str) -> str:
    """The type of an instruction's result."""
    name = text.split(" ")[0]
    if name in _CONVERSIONS:
        return text.rsplit(" to ", 1)[1]
    if name in ("getelementptr", "icmp", "fcmp"):
        return "ptr" if name == "getelementptr" else "i1"
    kinds = _KIND.findall(text)
    return kinds[1] if name == "select" else kinds[0]


def is_literal(register: str) -> bool:
    """Whether a register is an integer's literal instead."""
    return register.lstrip("-").isdigit()


def is_constant(register: str) -> bool:
    """Whether a register is what `literal` gives instead."""
    return not register.startswith("%")


def address(addresses: str, number: int) -> str:
    """Loads an address from a list."""
    at = f"getelementptr (ptr, ptr {addresses}, i64 {number})"
    return f"load ptr, ptr {at}, !invariant.load !{{}}"


class Source:
    """Lines of the function being written. Registers and labels have numbers of their own.

    A variable is memory on the stack, which LLVM turns into registers.
    """

    def __init__(self, outside: Source | None = None) -> None:
        """``outside``: the source of the function that calls this one."""
        self._entry: list[str] = []
        self._lines: list[str] = []
        self._metadata: list[str] = []
        self._numbers: Iterator[int] = itertools.count(1) if outside is None else outside._numbers
        self._is_shared = False  # what is written is run by several threads
        self.access = ""  # the suffix of loads and stores in independent rounds
        self._polls: str | None = None
        self._types: dict[str, str] = {}  # of registers
        self.functions: list[str] = []  # the texts of others, which this one needs
        self.declared: set[str] = set() if outside is None else outside.declared
        self.addresses: list[int] = []
        self._functions: dict[Hashable, str] = {}
        self._texts: list[str] = []  # of these functions

    def fresh(self, prefix: str = "%t") -> str:
        return f"{prefix}{next(self._numbers)}"

    def line(self, text: str) -> None:
        self._lines.append("  " + text)

    def let(self, text: str) -> str:
        """A new register with the value of an instruction."""
        register = self.fresh()
        self.line(f"{register} = {text}")
        self._types[register] = _result(text)
        return register

    def call(self, kind: str, name: str, *operands: str) -> str:
        """The result of one of LLVM's own functions, whose operands have types in front."""
        types = ", ".join(operand.split(" ")[0] for operand in operands)
        self.declared.add(f"declare {kind} @{name}({types})")
        return self.let(f"call {kind} @{name}({', '.join(operands)})")

    def function(self, key: Hashable, params: str, write: Callable[[Source], None]) -> str:
        """The name of a function of its own, which is written once for each key."""
        if key not in self._functions:
            name, inner = f"part{len(self._functions)}", Source(self)
            write(inner)
            inner.line("ret i32 0")
            self._texts.append(inner.text(name, params, "noinline "))
            self._functions[key] = name
        return self._functions[key]

    def variable(self, kind: str, value: str | None = None) -> str:
        register = self.fresh()
        self._entry.append(f"  {register} = alloca {kind}")
        self._types[register] = "ptr"
        if value is not None:
            self.set(register, kind, value)
        return register

    def set(self, variable: str, kind: str, value: str) -> None:
        self.line(f"store {kind} {value}, ptr {variable}")

    def read(self, variable: str, kind: str) -> str:
        return self.let(f"load {kind}, ptr {variable}")

    def fixed(self, place: int) -> str:
        """A register with an address that stays."""
        register = self.fresh()
        self._entry.append(f"  {register} = {address(FIXED, len(self.addresses))}")
        self._types[register] = "ptr"
        self.addresses.append(place)
        return register

    def label(self) -> str:
        return self.fresh("L")

    def begin(self, label: str) -> None:
        self._lines.append(f"{label}:")

    def jump(self, label: str, metadata: str = "") -> None:
        self.line(f"br label %{label}{metadata}")

    def branch(self, condition: str, yes: str, no: str) -> None:
        self.line(f"br i1 {condition}, label %{yes}, label %{no}")

    # -- integers of 64 bits ------------------------------------------------------------------

    def plus(self, a: str, b: str) -> str:
        if a == "0" or b == "0":
            return b if a == "0" else a
        if is_literal(a) and is_literal(b):
            return str(int(a) + int(b))
        return self.let(f"add nsw i64 {a}, {b}")

    def times(self, a: str, factor: int) -> str:
        if is_literal(a):
            return str(int(a) * factor)
        if factor == 0:
            return "0"
        return a if factor == 1 else self.let(f"mul nsw i64 {a}, {factor}")

    # -- memory -------------------------------------------------------------------------------

    def load(self, dtype: np.dtype, base: str, offset: str) -> str:
        kind = memory_type(dtype)
        at = self.let(f"getelementptr inbounds i8, ptr {base}, i64 {offset}")
        value = self.let(f"load {kind}, ptr {at}, align {_align(dtype)}{self.access}")
        return self.let(f"trunc i8 {value} to i1") if dtype.kind == "b" else value

    def store(self, dtype: np.dtype, value: str, base: str, offset: str) -> None:
        kind = memory_type(dtype)
        if dtype.kind == "b":
            value = self.let(f"zext i1 {value} to i8")
        at = self.let(f"getelementptr inbounds i8, ptr {base}, i64 {offset}")
        self.line(f"store {kind} {value}, ptr {at}, align {_align(dtype)}{self.access}")

    def prefetch(self, base: str, offset: str, nbytes: int, writes: int) -> None:
        """Brings memory into the cache. It may lie outside of what there is."""
        self.declared.add("declare void @llvm.prefetch.p0(ptr, i32, i32, i32)")
        with self.loop(str(-(-nbytes // _LINE))) as number:
            here = self.plus(offset, self.times(number, _LINE))
            at = self.let(f"getelementptr i8, ptr {base}, i64 {here}")
            self.line(f"call void @llvm.prefetch.p0(ptr {at}, i32 {writes}, i32 3, i32 1)")

    def poll(self) -> None:
        """Once in many times, asks whether the user has interrupted the program, and ends it
        then. A loop that threads share does so by itself."""
        if self._is_shared:
            return
        if self._polls is None:
            self._polls = self.variable("i64")
            self._entry.append(f"  store i64 0, ptr {self._polls}")
        count = self.let(f"add i64 {self.read(self._polls, 'i64')}, 1")
        self.set(self._polls, "i64", count)
        ask, go_on = self.label(), self.label()
        is_time = self.let(f"icmp eq i64 {self.let(f'and i64 {count}, {_POLL_EACH - 1}')}, 0")
        self.branch(is_time, ask, go_on)
        self.begin(ask)
        self._leave_if(self.let("call i32 @poll(ptr %thread)"))
        self.jump(go_on)
        self.begin(go_on)

    def _leave_if(self, status: str) -> None:
        """Ends the program if a status isn't 0."""
        leave, go_on = self.label(), self.label()
        self.branch(self.let(f"icmp ne i32 {status}, 0"), leave, go_on)
        self.begin(leave)
        self.line("ret i32 1")
        self.begin(go_on)

    # -- loops --------------------------------------------------------------------------------

    @contextlib.contextmanager
    def loop(self, count: str, independent: str = "") -> Iterator[str]:
        """A loop of ``count`` rounds around what is written inside. Gives the round's number.

        ``independent``: the metadata of `independent_rounds`.
        """
        counter = self.variable("i64", "0")
        head, body, end = self.label(), self.label(), self.label()
        self.jump(head)
        self.begin(head)
        number = self.read(counter, "i64")
        self.branch(self.let(f"icmp slt i64 {number}, {count}"), body, end)
        self.begin(body)
        yield number
        self.set(counter, "i64", self.let(f"add nsw i64 {number}, 1"))
        mark = ""
        if independent:
            node, parallel = self._node(), self._node()
            accesses = f'!"llvm.loop.parallel_accesses", {independent}'
            self._metadata.append(f"{parallel} = !{{{accesses}}}")
            self._metadata.append(f"{node} = distinct !{{{node}, {parallel}}}")
            mark = f", !llvm.loop {node}"
        self.jump(head, mark)
        self.begin(end)

    @contextlib.contextmanager
    def shared_loop(self, size: int, most: int, independent: str = "") -> Iterator[str]:
        """As `loop`, of rounds which up to ``most`` threads share: none may access what another one
        writes. Within another shared loop, it is a plain one."""
        if most < 2 or self._is_shared:
            with self.loop(str(size), independent) as number:
                yield number
            return
        each = -(-size // (most * threads.PIECES_EACH))
        each += -each % _TOGETHER if size > _TOGETHER**2 else 0
        outside = self._lines, self._entry
        self._lines, self._entry, self._is_shared = [], [], True
        start = self.times("%piece", each)
        rest = self.let(f"sub nsw i64 {size}, {start}")
        count = self.call("i64", "llvm.smin.i64", f"i64 {rest}", f"i64 {each}")
        with self.loop(count, independent) as number:
            yield self.plus(start, number)
        own = [line for line in self._entry if " = alloca " in line]
        inherited = [line for line in self._entry if line not in own]
        name = self.fresh("@piece")
        text, given = threads.outlined(name, own, self._lines, self._types)
        self.functions.append(text)
        (self._lines, self._entry), self._is_shared = outside, False
        self._entry += inherited
        held = self.variable(f"[{max(len(given), 1)} x i64]")
        for place, (register, kind) in enumerate(given.items()):
            at = self.let(f"getelementptr i64, ptr {held}, i64 {place}")
            self.line(f"store {kind} {register}, ptr {at}")
        passed = f"ptr {name}, ptr {held}, i64 {-(-size // each)}, i64 {most}, ptr %thread"
        self._leave_if(self.let(f"call i32 @share({passed})"))

    def own(self, name: str, nbytes: int) -> None:
        """Gives each thread that runs a shared loop memory of its own, aligned as arrays are."""
        self._entry.append(f"  {name} = alloca [{max(nbytes, 1)} x i8], align {ALIGNMENT}")

    @contextlib.contextmanager
    def independent_rounds(self) -> Iterator[str]:
        """Around loops of which no round accesses what another one writes. LLVM then needs no
        checks to run several at once."""
        group = self._node()
        self._metadata.append(f"{group} = distinct !{{}}")
        self.access = f", !llvm.access.group {group}"
        yield group
        self.access = ""

    def _node(self) -> str:
        return self.fresh("!")

    def text(
        self, name: str, params: str, attributes: str = "", linkage: str = "internal"
    ) -> str:
        """The function and what it needs, without the declarations."""
        return "\n".join([
            *self._texts,
            f"define {linkage} i32 @{name}({params}) {attributes}#0 {{",
            "entry:",
            *self._entry,
            *self._lines,
            "}",
            *self.functions,
            *self._metadata,
        ])


def _align(dtype: np.dtype) -> int:
    return dtype.itemsize
