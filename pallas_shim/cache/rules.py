"""Checks what code may do if its function is to be kept. Looks at the code's instructions.

The check runs when a program is written. The key covers what code reads by name. This module
refuses what no key can cover: names read from unknown values, sets whose order differs, strings
that hold addresses, modules that are passed on. If the origin of a value isn't known, nothing may
depend on it.
"""

from __future__ import annotations

import builtins
import dis
import re
import types
from typing import Any, NamedTuple

# The origin of a value on the stack: a kind, and more about it.
Origin = tuple[Any, ...]
_UNKNOWN: Origin = ("unknown",)

# Built-ins that return equal results for equal arguments, and never reveal an address.
_BUILTINS = frozenset(
    """abs all any bin bool bytearray bytes callable chr classmethod complex dict divmod enumerate
    filter float hex int isinstance issubclass iter len list map max min next object oct ord pow
    property range reversed round slice sorted staticmethod sum super tuple type zip
    Ellipsis NotImplemented NoneType ellipsis __debug__ __name__ __build_class__""".split()
)
# These may be pure, depending on how their results are used: see `_Looking`.
_WATCHED = frozenset("ascii format frozenset getattr hasattr repr set str".split())
_TEXT_MAKERS = frozenset({"ascii", "format", "repr", "str"})
_SET_MAKERS = frozenset({"set", "frozenset"})
# Functions whose result doesn't depend on the order of a set.
_ORDERLESS = frozenset({"len", "sorted", "set", "frozenset", "bool"})
_VIEW_TAKERS = frozenset(
    """all any dict enumerate iter len list map max min reversed set sorted sum tuple zip""".split()
)
# Code that catches these learns how deep the stack was, or how much memory there is.
_OF_THE_MACHINE = frozenset({"MemoryError", "RecursionError", "KeyboardInterrupt"})
_PLAINLY_SHOWN = frozenset({"shape", "ndim", "size", "dtype", "itemsize", "bits"})
_PLAIN_CALLS = frozenset({"len", "int", "float", "bool", "abs", "round", "ord"})
_CONSTANTS = (None, True, False, ..., NotImplemented)

_SHOWS_A_VALUE = re.compile(r"%[-#0 +*.\d]*(\(\w+\)[-#0 +*.\d]*)?[sra]")

_KNOWN_OPERATIONS = frozenset(
    """BEFORE_WITH BINARY_OP BINARY_SLICE BINARY_SUBSCR BUILD_CONST_KEY_MAP BUILD_LIST BUILD_MAP
    BUILD_SET BUILD_SLICE BUILD_STRING BUILD_TUPLE CACHE CALL CALL_FUNCTION_EX CALL_INTRINSIC_1
    CALL_INTRINSIC_2 CALL_KW CHECK_EXC_MATCH COMPARE_OP CONTAINS_OP CONVERT_VALUE COPY
    COPY_FREE_VARS DELETE_ATTR DELETE_DEREF DELETE_FAST DELETE_NAME DELETE_SUBSCR DICT_MERGE
    DICT_UPDATE END_FOR END_SEND EXTENDED_ARG FORMAT_SIMPLE FORMAT_VALUE FORMAT_WITH_SPEC FOR_ITER
    GET_ITER GET_LEN GET_YIELD_FROM_ITER IMPORT_FROM IMPORT_NAME IS_OP JUMP_BACKWARD
    JUMP_BACKWARD_NO_INTERRUPT JUMP_FORWARD JUMP_IF_FALSE_OR_POP JUMP_IF_TRUE_OR_POP KW_NAMES
    LIST_APPEND LIST_EXTEND LIST_TO_TUPLE LOAD_ASSERTION_ERROR LOAD_ATTR LOAD_BUILD_CLASS
    LOAD_CLASSDEREF LOAD_CLOSURE LOAD_CONST LOAD_DEREF LOAD_FAST LOAD_FAST_AND_CLEAR
    LOAD_FAST_CHECK LOAD_FAST_LOAD_FAST LOAD_FROM_DICT_OR_DEREF LOAD_FROM_DICT_OR_GLOBALS
    LOAD_GLOBAL LOAD_LOCALS LOAD_METHOD LOAD_NAME LOAD_SUPER_ATTR MAKE_CELL MAKE_FUNCTION MAP_ADD
    MATCH_KEYS MATCH_MAPPING MATCH_SEQUENCE NOP POP_EXCEPT POP_JUMP_BACKWARD_IF_FALSE
    POP_JUMP_BACKWARD_IF_NONE POP_JUMP_BACKWARD_IF_NOT_NONE POP_JUMP_BACKWARD_IF_TRUE
    POP_JUMP_FORWARD_IF_FALSE POP_JUMP_FORWARD_IF_NONE POP_JUMP_FORWARD_IF_NOT_NONE
    POP_JUMP_FORWARD_IF_TRUE POP_JUMP_IF_FALSE POP_JUMP_IF_NONE POP_JUMP_IF_NOT_NONE
    POP_JUMP_IF_TRUE POP_TOP PRECALL PUSH_EXC_INFO PUSH_NULL RAISE_VARARGS RERAISE RESUME
    RETURN_CONST RETURN_GENERATOR RETURN_VALUE SEND SETUP_ANNOTATIONS SET_ADD
    SET_FUNCTION_ATTRIBUTE SET_UPDATE STORE_ATTR STORE_DEREF STORE_FAST STORE_FAST_LOAD_FAST
    STORE_FAST_STORE_FAST STORE_NAME STORE_SLICE STORE_SUBSCR SWAP TO_BOOL UNARY_INVERT
    UNARY_NEGATIVE UNARY_NOT UNARY_POSITIVE UNPACK_EX UNPACK_SEQUENCE WITH_EXCEPT_START
    YIELD_VALUE""".split()
)
# Instructions that only test or drop a value, so no order or address of it gets further.
_CONSUMERS_THAT_ONLY_TEST = frozenset(
    """POP_TOP TO_BOOL UNARY_NOT CONTAINS_OP GET_LEN POP_JUMP_IF_FALSE POP_JUMP_IF_TRUE
    POP_JUMP_FORWARD_IF_FALSE POP_JUMP_FORWARD_IF_TRUE POP_JUMP_BACKWARD_IF_FALSE
    POP_JUMP_BACKWARD_IF_TRUE""".split()
)


class Look(NamedTuple):
    """The effects of one code object, without the code objects inside it.

    ``problems``: the forbidden things that it does, in words. ``attributes``: the names that it
    reads from values other than modules. ``stored``: the names that it sets on values.
    ``imports``: what it takes from the modules that it imports, each as a module and attributes.
    ``shown``: strings that may be formats that show a value. ``percent``: whether such a string may
    be the left side of a ``%``.
    """

    problems: list[str]
    attributes: set[str]
    stored: set[str]
    imports: set[tuple[str, ...]]
    shown: list[str]
    percent: bool


def shows_a_value(text: str) -> bool:
    """Whether ``%`` with this format may turn an address into text."""
    return _SHOWS_A_VALUE.search(text) is not None


def is_pure_builtin(name: str, passed_on: bool = False) -> bool:
    """Whether a built-in's results depend on its arguments only, or `look` can watch its uses.

    `look` can't watch the uses of a built-in that is passed on.
    """
    value = getattr(builtins, name, None)
    if isinstance(value, type) and issubclass(value, BaseException):
        return name not in _OF_THE_MACHINE
    return name in _BUILTINS or (name in _WATCHED and not passed_on)


def look(
    code: types.CodeType, namespace: dict[str, Any], modules: frozenset[str] = frozenset()
) -> Look:
    """Looks at the instructions of code.

    ``namespace``: the code's globals. ``modules``: the variables of its closure that hold a module.
    """
    looking = _Looking(code, namespace, modules)
    looking.run()
    return looking.found


class _Looking:
    """Follows the origins of the values on the stack, from one jump target to the next."""

    def __init__(
        self, code: types.CodeType, namespace: dict[str, Any], closed: frozenset[str]
    ) -> None:
        self.closed = closed
        self.code = code
        self.namespace = namespace
        self.found = Look([], set(), set(), set(), [], False)
        self.stack: list[Origin] = []
        self.keywords: tuple[str, ...] = ()
        self.percent = False
        self.dead = False  # the instruction before never continues here
        self.arriving: dict[int, list[Origin]] = {}  # the stack at each jump target
        self.operands: set[int] = set()
        self.modules: dict[str, Origin] = {}  # local variables that hold imported names
        self.stores = self._stores()

    def run(self) -> None:
        for instruction in dis.get_instructions(self.code):
            name = instruction.opname
            if instruction.is_jump_target:
                self.join(instruction.offset)
            if self.dead:
                self.dead = False
                self.stack = []
            if name not in _KNOWN_OPERATIONS:
                self.problem(f"it does {name}")
                self.stack.clear()
                continue
            step = getattr(self, f"do_{name}", None)
            if step is not None:
                step(instruction)
            else:
                self.other(instruction)
            self.jump(instruction)
        doc = self.code.co_consts[:1] if self.code.co_flags & 2 else ()
        shown = [
            const
            for const in self.code.co_consts
            if isinstance(const, str) and id(const) not in self.operands
            and shows_a_value(const) and not any(const is each for each in doc)
        ]  # fmt: skip
        self.found = self.found._replace(shown=shown, percent=self.percent)

    def _stores(self) -> dict[str, int]:
        """Counts the assignments to each local variable."""
        stores: dict[str, int] = {}
        for instruction in dis.get_instructions(self.code):
            if instruction.opname.startswith("STORE_FAST"):
                names = instruction.argval
                for each in names if isinstance(names, tuple) else (names,):
                    stores[each] = stores.get(each, 0) + 1
        return stores

    def problem(self, what: str) -> None:
        if what not in self.found.problems:
            self.found.problems.append(what)

    # -- the stack --------------------------------------------------------------------------

    def push(self, origin: Origin = _UNKNOWN) -> None:
        self.stack.append(origin)

    def pop(self) -> Origin:
        return self.stack.pop() if self.stack else _UNKNOWN

    def pops(self, n: int) -> list[Origin]:
        return [self.pop() for _ in range(n)][::-1]

    def use(self, origin: Origin, by: str) -> None:
        """Checks a value whose further way isn't followed."""
        kind = origin[0]
        if kind == "set" and by not in _CONSUMERS_THAT_ONLY_TEST:
            self.problem("it uses a set otherwise than to sort, to count or to look into it")
        elif kind == "constant set" and by != "CONTAINS_OP":
            self.problem("it uses a constant set otherwise than to look into it")
        elif kind == "text" and by not in _CONSUMERS_THAT_ONLY_TEST:
            self.problem("it turns a value into text, which may hold the address of an object")
        elif kind == "view" and by in ("BINARY_OP", "STORE_FAST", "STORE_DEREF", "RETURN_VALUE"):
            self.problem("it uses the keys or items of a mapping as a set")
        elif kind == "import" and by not in ("POP_TOP", "IMPORT_FROM"):
            self.found.imports.add(origin[1:])
        elif kind == "builtin" and by != "POP_TOP" and origin[1] in _WATCHED:
            self.problem(f"it passes {origin[1]} on")
        elif kind == "attribute" and origin[1] in ("keys", "items") and by != "POP_TOP":
            self.problem(f"it passes {origin[1]} on")

    def jump(self, instruction: dis.Instruction) -> None:
        name = instruction.opname
        if instruction.opcode in _JUMPS and instruction.argval > instruction.offset:
            stack = list(self.stack)
            if name == "FOR_ITER":
                stack = stack[:-2] if _OLD else stack
            elif name.endswith("_OR_POP"):
                stack.append(_UNKNOWN)
            self.merge(self.arriving.setdefault(instruction.argval, stack), stack)
        self.dead = name in _LEAVING

    def join(self, offset: int) -> None:
        """Joins the stacks of all ways that lead here."""
        other = self.arriving.pop(offset, None)
        if self.dead:
            self.stack, self.dead = other or [], False
        elif other is None:  # the start of a loop
            self.merge(self.stack, [])
        else:
            self.merge(self.stack, other)

    def merge(self, stack: list[Origin], other: list[Origin]) -> None:
        if len(stack) != len(other):
            for origin in (*stack, *other):
                self.use(origin, "a jump")
            stack.clear()
            return
        for at, (one, two) in enumerate(zip(stack, other, strict=True)):
            if one != two:
                self.use(one, "a jump")
                self.use(two, "a jump")
                stack[at] = _UNKNOWN

    def other(self, instruction: dis.Instruction) -> None:
        """Handles an instruction that does nothing special with origins."""
        effect = dis.stack_effect(instruction.opcode, instruction.arg, jump=False)
        taken = max(_TAKES.get(instruction.opname, 0), -effect)
        if instruction.opname not in _TAKES:
            taken = len(self.stack)
        for origin in self.pops(taken):
            self.use(origin, instruction.opname)
        for _ in range(taken + effect):
            self.push()

    # -- loads and stores ---------------------------------------------------------------------

    def do_RESUME(self, _: Any) -> None: ...
    do_CACHE = do_NOP = do_PRECALL = do_EXTENDED_ARG = do_RESUME
    do_MAKE_CELL = do_COPY_FREE_VARS = do_DELETE_FAST = do_DELETE_DEREF = do_RESUME

    def do_KW_NAMES(self, instruction: dis.Instruction) -> None:
        self.keywords = self.code.co_consts[instruction.arg or 0]

    def do_PUSH_NULL(self, _: Any) -> None:
        self.push(("null",))

    def do_LOAD_CONST(self, instruction: dis.Instruction) -> None:
        value = instruction.argval
        if isinstance(value, frozenset):
            self.push(("constant set",))
        else:
            self.push(("const", value))

    def do_RETURN_CONST(self, instruction: dis.Instruction) -> None:
        if isinstance(instruction.argval, frozenset):
            self.use(("constant set",), "RETURN_VALUE")

    def do_LOAD_GLOBAL(self, instruction: dis.Instruction) -> None:
        null = bool(instruction.arg is not None and instruction.arg & 1)
        if null:
            self.push(("null",))
        self.name(instruction.argval)

    def do_LOAD_DEREF(self, instruction: dis.Instruction) -> None:
        known = instruction.argval in self.closed
        self.push(("global", instruction.argval) if known else _UNKNOWN)

    def do_LOAD_NAME(self, instruction: dis.Instruction) -> None:
        self.name(instruction.argval)

    def name(self, name: str) -> None:
        known = name not in self.namespace and hasattr(builtins, name)
        if known and not is_pure_builtin(name):
            self.problem(f"it reaches {name}")
        if type(self.namespace.get(name)) in (set, frozenset):
            self.push(("set",))
        else:
            self.push(("builtin" if known else "global", name))

    def do_LOAD_ASSERTION_ERROR(self, _: Any) -> None:
        self.push(("builtin", "AssertionError"))

    def do_LOAD_FAST(self, instruction: dis.Instruction) -> None:
        names = instruction.argval
        for name in names if isinstance(names, tuple) else (names,):
            self.push(self.modules.get(name, _UNKNOWN))

    do_LOAD_FAST_CHECK = do_LOAD_FAST_LOAD_FAST = do_LOAD_FAST

    def do_STORE_FAST(self, instruction: dis.Instruction) -> None:
        origin, name = self.pop(), instruction.argval
        if origin[0] == "import" and self.stores.get(name) == 1:
            self.modules[name] = origin
        else:
            self.use(origin, "STORE_FAST")

    def do_STORE_FAST_STORE_FAST(self, _: Any) -> None:
        for origin in self.pops(2):
            self.use(origin, "STORE_FAST")

    def do_STORE_FAST_LOAD_FAST(self, instruction: dis.Instruction) -> None:
        self.use(self.pop(), "STORE_FAST")
        self.push(self.modules.get(instruction.argval[1], _UNKNOWN))

    def do_IMPORT_NAME(self, instruction: dis.Instruction) -> None:
        wanted = self.pops(2)[1]
        name = instruction.argval
        whole = wanted[0] == "const" and wanted[1]
        self.push(("import", name if whole else name.partition(".")[0]))

    def do_IMPORT_FROM(self, instruction: dis.Instruction) -> None:
        origin = self.stack[-1] if self.stack else _UNKNOWN
        if origin[0] == "import":
            self.push((*origin, instruction.argval))
        else:
            self.push()

    def do_LOAD_ATTR(self, instruction: dis.Instruction) -> None:
        method = instruction.opname == "LOAD_METHOD" or (
            not _OLD and bool((instruction.arg or 0) & 1)
        )
        origin, name = self.pop(), instruction.argval
        if method:
            self.push(("null",))
        self.push(self.attribute(origin, name))

    do_LOAD_METHOD = do_LOAD_ATTR

    def attribute(self, origin: Origin, name: str) -> Origin:
        kind = origin[0]
        if kind == "import":
            return (*origin, name)
        if kind not in ("global", "builtin"):
            self.use(origin, "LOAD_ATTR")
        if (kind == "global" or kind == "chain") and name not in ("keys", "items"):
            return ("chain", name)  # the key follows it, or lists its attributes
        self.found.attributes.add(name)
        return ("attribute", name)

    def do_LOAD_SUPER_ATTR(self, instruction: dis.Instruction) -> None:
        self.pops(3)
        self.found.attributes.add(instruction.argval)
        if (instruction.arg or 0) & 1:
            self.push(("null",))
        self.push()

    def do_STORE_ATTR(self, instruction: dis.Instruction) -> None:
        self.found.stored.add(instruction.argval)
        for origin in self.pops(2):
            self.use(origin, "STORE_ATTR")

    def do_COPY(self, instruction: dis.Instruction) -> None:
        n = instruction.arg or 1
        self.push(self.stack[-n] if len(self.stack) >= n else _UNKNOWN)

    def do_SWAP(self, instruction: dis.Instruction) -> None:
        n = instruction.arg or 2
        while len(self.stack) < n:
            self.stack.insert(0, _UNKNOWN)
        self.stack[-1], self.stack[-n] = self.stack[-n], self.stack[-1]

    def do_MAKE_FUNCTION(self, instruction: dis.Instruction) -> None:
        flags = 0 if _NEW_FUNCTIONS else instruction.arg or 0
        for origin in self.pops(1 + bin(flags).count("1")):
            self.use(origin, "MAKE_FUNCTION")
        self.push()

    # -- calls --------------------------------------------------------------------------------

    def do_CALL(self, instruction: dis.Instruction) -> None:
        keywords, self.keywords = self.keywords, ()
        if instruction.opname == "CALL_KW":
            names = self.pop()
            keywords = names[1] if names[0] == "const" else ()
        given = self.pops(instruction.arg or 0)
        callees = self.pops(2)
        if all(each[0] != "null" for each in callees):  # one may be a decorator's argument
            given = [callees[1], *given]
            callees = callees[:1]
        callee = next((each for each in callees if each[0] != "null"), _UNKNOWN)
        self.push(self.call(callee, given, keywords))

    do_CALL_KW = do_CALL

    def call(self, callee: Origin, given: list[Origin], keywords: tuple[str, ...]) -> Origin:
        kind = callee[0]
        name = callee[1] if kind == "builtin" else None
        result = _UNKNOWN
        if name in ("getattr", "hasattr"):
            asked = given[1] if len(given) > 1 else _UNKNOWN
            if asked[0] == "const" and isinstance(asked[1], str):
                self.found.attributes.add(asked[1])
                if asked[1] in ("keys", "items"):
                    self.problem(f"it asks for {asked[1]} by getattr")
            else:
                self.problem(f"it calls {name} with a name that is computed")
        elif name in _TEXT_MAKERS:
            plain = len(given) == 1 and self.is_plain(given[0])
            result = ("plain",) if plain or not given else ("text",)
        elif name in _SET_MAKERS:
            result = ("set",)
        elif name in _PLAIN_CALLS:
            result = ("plain",)
        elif kind == "attribute" and callee[1] in ("keys", "items") and not given:
            result = ("view",)
        elif kind == "import":
            self.use(callee, "CALL")
        elif kind not in ("builtin", "global", "chain", "attribute"):
            self.use(callee, "CALL")
        messages = self.takes_messages(callee)
        named = dict(zip(reversed(keywords), reversed(given), strict=False)) if keywords else {}
        for origin in given:
            if origin[0] == "text" and (messages or origin is named.get("name")):
                continue
            if origin[0] in ("set", "constant set") and name in _ORDERLESS:
                continue
            if origin[0] == "view" and name in _VIEW_TAKERS:
                continue
            if origin[0] == "builtin" and origin[1] in ("set", "frozenset", "str") and (
                name in ("isinstance", "issubclass")
            ):
                continue
            if origin[0] == "view":
                self.problem("it passes the keys or items of a mapping on")
            self.use(origin, "CALL")
        return result

    def takes_messages(self, callee: Origin) -> bool:
        """Whether a call takes a text only as a message: the callee is an exception's class."""
        if callee[0] == "builtin":
            value = getattr(builtins, callee[1], None)
        elif callee[0] == "global":
            value = self.namespace.get(callee[1])
        else:
            return callee == ("chain", "warn") or callee == ("chain", "named_scope")
        return isinstance(value, type) and issubclass(value, BaseException)

    def do_CALL_FUNCTION_EX(self, instruction: dis.Instruction) -> None:
        for origin in self.pops(2 + ((instruction.arg or 0) & 1)):
            self.use(origin, "CALL")
        if self.stack and self.stack[-1][0] == "null":
            self.pop()
        self.push()

    # -- texts, sets, comparisons -------------------------------------------------------------

    def is_plain(self, origin: Origin) -> bool:
        return (
            origin[0] in ("const", "plain")
            or (origin[0] in ("attribute", "chain") and origin[1] in _PLAINLY_SHOWN)
        )

    def do_FORMAT_VALUE(self, instruction: dis.Instruction) -> None:
        if instruction.opname == "FORMAT_WITH_SPEC" or (
            instruction.opname == "FORMAT_VALUE" and (instruction.arg or 0) & 4
        ):
            self.pop()
        self.push(("plain",) if self.is_plain(self.pop()) else ("text",))

    do_FORMAT_SIMPLE = do_FORMAT_WITH_SPEC = do_FORMAT_VALUE

    def do_CONVERT_VALUE(self, _: Any) -> None: ...

    def do_BUILD_STRING(self, instruction: dis.Instruction) -> None:
        parts = self.pops(instruction.arg or 0)
        self.push(("text",) if any(p[0] == "text" for p in parts) else ("plain",))

    def do_BUILD_SET(self, instruction: dis.Instruction) -> None:
        for origin in self.pops(instruction.arg or 0):
            self.use(origin, "BUILD_SET")
        self.push(("set",))

    def do_SET_UPDATE(self, _: Any) -> None:
        self.pop()

    def do_CONTAINS_OP(self, _: Any) -> None:
        self.pops(2)
        self.push()

    def do_BINARY_OP(self, instruction: dis.Instruction) -> None:
        left, right = self.pops(2)
        if instruction.argrepr in ("%", "%="):
            if left[0] == "const" and isinstance(left[1], str):
                self.operands.add(id(left[1]))
                shows = shows_a_value(left[1]) and not self.is_plain(right)
                self.push(("text",) if shows else ("plain",))
                return
            self.percent = self.percent or left[0] not in ("const", "plain")
        if left[0] == right[0] == "plain":
            self.push(("plain",))
            return
        self.use(left, "BINARY_OP")
        self.use(right, "BINARY_OP")
        self.push()

    def do_GET_ITER(self, _: Any) -> None:
        self.use(self.pop(), "GET_ITER")
        self.push()

    def do_RETURN_VALUE(self, _: Any) -> None:
        self.use(self.pop(), "RETURN_VALUE")

    def do_FOR_ITER(self, _: Any) -> None:
        self.push()

    def do_BUILD(self, instruction: dis.Instruction) -> None:
        for origin in self.pops(instruction.arg or 0):
            self.use(origin, "BUILD")
        self.push()

    do_BUILD_LIST = do_BUILD_TUPLE = do_BUILD_SLICE = do_BUILD


# The numbers of values that instructions take off the stack, besides those in `_Looking`.
_TAKES = {
    "POP_TOP": 1, "BINARY_SUBSCR": 2, "BINARY_SLICE": 3, "COMPARE_OP": 2, "IS_OP": 2,
    "STORE_SUBSCR": 3, "STORE_SLICE": 4, "STORE_DEREF": 1, "STORE_NAME": 1,
    "LOAD_CLOSURE": 0, "LOAD_BUILD_CLASS": 0, "UNARY_NEGATIVE": 1, "UNARY_NOT": 1,
    "UNARY_INVERT": 1, "UNARY_POSITIVE": 1, "TO_BOOL": 1, "POP_JUMP_IF_FALSE": 1,
    "POP_JUMP_IF_TRUE": 1, "POP_JUMP_IF_NONE": 1, "POP_JUMP_IF_NOT_NONE": 1,
    "POP_JUMP_FORWARD_IF_FALSE": 1, "POP_JUMP_FORWARD_IF_TRUE": 1, "POP_JUMP_FORWARD_IF_NONE": 1,
    "POP_JUMP_FORWARD_IF_NOT_NONE": 1, "POP_JUMP_BACKWARD_IF_FALSE": 1,
    "POP_JUMP_BACKWARD_IF_TRUE": 1, "POP_JUMP_BACKWARD_IF_NONE": 1,
    "POP_JUMP_BACKWARD_IF_NOT_NONE": 1, "JUMP_FORWARD": 0, "JUMP_BACKWARD": 0,
    "JUMP_BACKWARD_NO_INTERRUPT": 0, "LIST_APPEND": 1, "LIST_EXTEND": 1, "MAP_ADD": 2,
    "DICT_MERGE": 1, "DICT_UPDATE": 1, "GET_LEN": 0, "LIST_TO_TUPLE": 1,
    "SET_FUNCTION_ATTRIBUTE": 2,
}  # fmt: skip
_OLD = "PRECALL" in dis.opmap  # Python 3.11
_NEW_FUNCTIONS = "SET_FUNCTION_ATTRIBUTE" in dis.opmap
_JUMPS = frozenset(dis.hasjrel) | frozenset(dis.hasjabs)
_LEAVING = frozenset(
    """JUMP_FORWARD JUMP_BACKWARD JUMP_BACKWARD_NO_INTERRUPT RAISE_VARARGS RERAISE RETURN_CONST
    RETURN_VALUE""".split()
)
