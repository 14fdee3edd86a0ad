"""What the user types in the debugger, and the session that the kernels of a script share."""

from __future__ import annotations

import cmd
import dataclasses
import inspect
import itertools
import linecache
import os
import pdb
import reprlib
import sys
import threading
import traceback
from types import FrameType
from typing import IO, Any

import jax
import numpy as np

from pallas_shim import dispatch, settings
from pallas_shim.debugger.names import Snapshots, names_of
from pallas_shim.debugger.stepping import NoValue, Position, Stepper
from pallas_shim.evaluator import compiler
from pallas_shim.evaluator.execute import Executable
from pallas_shim.jax_compat.jaxprs import Frame


class Quit(BaseException):
    """The user has had enough."""


@dataclasses.dataclass
class _Breakpoint:
    """``condition`` is an expression, or "". ``hits`` counts the stops."""

    file: str
    line: int
    condition: str = ""
    hits: int = 0


class DebugSession:
    """One debugging of a script. It is an observer of `dispatch`.

    ``kernel`` and ``cell`` say where to stop first: in kernels of this name only, at the start of
    this cell only. None: anywhere. ``kernels`` counts the cells of each kernel that ran.
    """

    def __init__(
        self,
        kernel: str | None = None,
        cell: tuple[int, ...] | None = None,
        stdin: IO[str] | None = None,
        stdout: IO[str] | None = None,
    ) -> None:
        self.kernel, self.cell = kernel, cell
        self.snapshots = Snapshots()
        self.kernels: dict[str, int] = {}
        self.quitting = False
        self.breakpoints: dict[int, _Breakpoint] = {}
        self.numbers = itertools.count(1)
        self.mode = "first"
        self._depth = 0
        self._at_cell: tuple[int, ...] | None = None
        self._steppers: list[Stepper] = []
        self._prompt = _Prompt(self, stdin or sys.stdin, stdout or sys.stdout)
        self._lock = threading.RLock()
        self._stock_breakpoint: Any = None

    # -- from dispatch ------------------------------------------------------------------------

    def planned(self, executable: Executable, function: dispatch.Function) -> Executable:
        stepper = Stepper(self.snapshots, self._reached, self._changed)
        try:
            made = compiler.compile_watched(
                function.jaxpr, stepper, name=function.name, axes=function.axes,
                on_mesh=function.on is not None, tpu_cores=settings.current().tpu_cores,
            )  # fmt: skip
        except Exception as error:
            self._prompt.say(f"{function.name} can't be stepped through: {error}")
            return executable
        self._steppers.append(stepper)
        return made

    def ran(self, *_: Any, **__: Any) -> None:
        """What a run gives isn't looked at."""

    # -- breakpoints in the user's code -------------------------------------------------------

    def start(self) -> None:
        """Notes the user's names from now on, and takes over ``breakpoint`` in kernels."""
        self.snapshots.start()
        self._stock_breakpoint = sys.breakpointhook, pdb.set_trace
        sys.breakpointhook = self._breakpoint
        pdb.set_trace = self._set_trace

    def end(self) -> None:
        self.snapshots.stop()
        sys.breakpointhook, pdb.set_trace = self._stock_breakpoint

    def _breakpoint(self, *args: Any, **kwargs: Any) -> Any:
        if not self._mark(sys._getframe(1)):
            return self._stock_breakpoint[0](*args, **kwargs)

    def _set_trace(self, *args: Any, **kwargs: Any) -> Any:
        if not self._mark(sys._getframe(1)):
            debugger = pdb.Pdb()
            debugger.set_trace(sys._getframe(1))

    def _mark(self, frame: FrameType) -> bool:
        """Puts a breakpoint into the program, if JAX traces here."""
        if not names_of(frame)[1]:
            return False
        jax.debug.callback(self._arrived)
        return True

    def _arrived(self) -> None:
        for stepper in self._steppers:
            stepper.asked = True

    # -- from the run -------------------------------------------------------------------------

    def _reached(self, stepper: Stepper, place: Position, starts: bool) -> None:
        name = place.cell.kernel.call.name
        if starts:
            self.kernels[name] = self.kernels.get(name, 0) + 1
        why = self._why(stepper, place, starts)
        if why is not None:
            self._talk(stepper, place, why)

    def _why(self, stepper: Stepper, place: Position, starts: bool) -> str | None:
        """Why a run stops here; None: it goes on."""
        if stepper.asked:
            stepper.asked = False
            return "breakpoint() before this line"
        frame, depth = place.frame, len(place.frames)
        for number, point in self.breakpoints.items():
            if (point.line, point.file) == (frame.line, os.path.abspath(frame.file)):
                if self._holds(stepper, place, point):
                    point.hits += 1
                    return f"breakpoint {number}"
        match self.mode:
            case "first" if self._is_asked_for(place, starts):
                return "the first line"
            case "step":
                return ""
            case "next" if depth <= self._depth or starts:
                return ""
            case "return" if depth < self._depth or starts:
                return ""
            case "cell" if starts and self._at_cell in (None, place.cell.indices):
                return "a cell begins"
        return None

    def _is_asked_for(self, place: Position, starts: bool) -> bool:
        if self.kernel not in (None, place.cell.kernel.call.name):
            return False
        return self.cell is None or (starts and self.cell == place.cell.indices)

    def _holds(self, stepper: Stepper, place: Position, point: _Breakpoint) -> bool:
        if not point.condition:
            return True
        try:
            return bool(np.all(self._prompt.evaluate(point.condition, stepper, place)))
        except Exception as error:
            self._prompt.say(f"the condition {point.condition} fails: {error}")
            return True

    def _changed(self, stepper: Stepper, place: Position, text: str) -> None:
        self._talk(stepper, place, text)

    def _talk(self, stepper: Stepper, place: Position, why: str) -> None:
        with self._lock:
            self._prompt.talk(stepper, place, why)
            if self.quitting:
                raise Quit

    def go(self, mode: str, place: Position | None = None, cell: Any = None) -> None:
        """Says where the run is to stop next."""
        self.mode, self._at_cell = mode, cell
        self._depth = 0 if place is None else len(place.frames)


_WITHOUT_ARGUMENTS = frozenset(
    {"a", "args", "bt", "c", "cont", "continue", "d", "down", "exit", "l", "list", "locals", "n",
     "next", "q", "quit", "r", "return", "s", "step", "u", "up", "w", "where"}
)  # fmt: skip


class _Prompt(cmd.Cmd):
    """Reads commands. Their names are pdb's where pdb has them."""

    prompt = "(kernel) "
    doc_header = "Commands (help COMMAND says more; anything else is an expression):"

    def __init__(self, session: DebugSession, stdin: IO[str], stdout: IO[str]) -> None:
        super().__init__(stdin=stdin, stdout=stdout)
        self.use_rawinput = stdin is sys.stdin and stdin.isatty()
        self.session = session
        self._listed: Frame | None = None

    def say(self, text: str) -> None:
        print(text, file=self.stdout, flush=True)

    def talk(self, stepper: Stepper, place: Position, why: str) -> None:
        self.stepper, self.place, self.level = stepper, place, 0
        self._listed = None
        if why:
            self.say(why)
        self._show()
        self.cmdloop()

    def onecmd(self, line: str) -> bool:
        # `a` lists the refs, but `a * 2` is an expression with the user's name.
        name, rest, _ = self.parseline(line)
        if name in _WITHOUT_ARGUMENTS and rest:
            self.default(line)
            return False
        return super().onecmd(line)

    # -- what is shown ------------------------------------------------------------------------

    @property
    def frame(self) -> Frame:
        return self.place.frames[self.level]

    def _show(self) -> None:
        cell, frame = self.place.cell, self.frame
        program = f", {self.place.program_name}" if self.place.program_name else ""
        at = f"cell {cell.indices}" if cell.sizes else "no grid"
        self.say(f"> {frame.file}({frame.line}){frame.function}()  {at}{program}")
        self.say(f"-> {linecache.getline(frame.file, frame.line).strip()}")

    def evaluate(self, text: str, stepper: Stepper, place: Position, level: int = 0) -> Any:
        names = {"np": np, **stepper.refs(place), **stepper.names(place, place.frames[level])}
        return eval(text, {"__builtins__": __builtins__}, names)

    def _value(self, text: str) -> Any:
        return self.evaluate(text, self.stepper, self.place, self.level)

    def _try(self, text: str) -> tuple[bool, Any]:
        """Whether an expression has a value, and the value; says what is wrong with it."""
        if not text.strip():
            self.say("*** give an expression")
            return False, None
        try:
            return True, self._value(text)
        except NameError as error:
            known = ", ".join(self.stepper.names(self.place, self.frame))
            self.say(f"*** {error}, or has no value yet; these have one: {known or 'none'}")
        except Exception as error:
            self.say("*** " + "".join(traceback.format_exception_only(error)).strip())
        return False, None

    def _memory(self, text: str) -> np.ndarray | None:
        """The part of a ref that an expression such as ``o_ref[0, 3]`` leads to, as a view."""
        name, bracket, index = text.strip().partition("[")
        done, ref = self._try(name)
        if not done:
            return None
        if not isinstance(ref, np.ndarray):
            self.say(f"*** {name} isn't a ref")
            return None
        if not bracket:
            return ref
        inside = index[: index.rindex("]")].strip().rstrip(",") if "]" in index else index
        # With an ellipsis, NumPy gives a view also of a single element.
        whole = f"{name}[{inside}]" if "..." in inside else f"{name}[{inside}, ...]"
        done, part = self._try(whole)
        return part if done else None

    # -- going on -----------------------------------------------------------------------------

    def do_step(self, _: str) -> bool:
        """s(tep): runs to the next line, also in a function that this line calls."""
        self.session.go("step")
        return True

    def do_next(self, _: str) -> bool:
        """n(ext): runs to the next line of this function, or of the next cell."""
        self.session.go("next", self.place)
        return True

    def do_return(self, _: str) -> bool:
        """r(eturn): runs until this function has returned, or a cell begins."""
        self.session.go("return", self.place)
        return True

    def do_continue(self, _: str) -> bool:
        """c(ont(inue)): runs to the next breakpoint, or change of watched memory."""
        self.session.go("continue")
        return True

    def do_cell(self, text: str) -> bool:
        """cell [I,J,...]: runs to the start of the next cell, or of the cell with these indices."""
        try:
            cell = cell_of(text) if text.strip() else None
        except ValueError as error:
            self.say(f"*** {error}")
            return False
        self.session.go("cell", cell=cell)
        return True

    def do_quit(self, _: str) -> bool:
        """q(uit): ends the script."""
        self.session.quitting = True
        return True

    def do_EOF(self, text: str) -> bool:
        """The end of the input quits."""
        self.say("")
        return self.do_quit(text)

    # -- breakpoints --------------------------------------------------------------------------

    def do_break(self, text: str) -> None:
        """b(reak) [LINE | FILE:LINE | FUNCTION] [if EXPRESSION]: stops before a line; without
        arguments, lists the breakpoints."""
        where, _, condition = map(str.strip, text.partition(" if "))
        if not where:
            for number, point in self.session.breakpoints.items():
                more = f" if {point.condition}" if point.condition else ""
                self.say(f"{number}: {point.file}:{point.line}{more}, {point.hits} hits")
            for number, watched in self.stepper.watched().items():
                self.say(f"{number}: watches {watched}")
            return
        file, _, line = where.rpartition(":")
        if not line.isdigit():
            found = self._first_line(where)
            if found is None:
                self.say(f"*** there is no line {where}, and no function of that name here")
                return
            file, line = found
        file = os.path.abspath(file or self.frame.file)
        # A line of Python that makes no instruction, such as a def, is never stopped at.
        later = [n for known, n in self.stepper.lines if known == file and n >= int(line)]
        if not later:
            self.say(f"*** nothing runs at {file}:{line} or after it")
            return
        number = next(self.session.numbers)
        self.session.breakpoints[number] = _Breakpoint(file, min(later), condition)
        self.say(f"breakpoint {number} at {file}:{min(later)}")

    def _first_line(self, function: str) -> tuple[str, str] | None:
        """The first line inside a function of this file that is defined by ``def``."""
        lines = linecache.getlines(self.frame.file)
        for number, text in enumerate(lines, 1):
            words = text.replace("(", " ").split()
            if words[:2] == ["def", function]:
                body = inspect.getblock(lines[number - 1 :])
                return self.frame.file, str(number + min(1, len(body) - 1))
        return None

    def do_clear(self, text: str) -> None:
        """cl(ear) NUMBER...: removes breakpoints and watchpoints."""
        for word in text.split():
            number = int(word) if word.isdigit() else 0
            known = self.session.breakpoints.pop(number, None) is not None
            if not known and not self.stepper.unwatch(number):
                self.say(f"*** there is no breakpoint {word}")

    def do_watch(self, text: str) -> None:
        """watch REF or watch REF[...]: stops after each write that changes this memory. It is the
        memory that the name leads to now, also when a later cell has another block."""
        part = self._memory(text)
        if part is None:
            return
        number = next(self.session.numbers)
        try:
            self.stepper.watch(number, text.strip(), part)
        except NoValue as error:
            self.say(f"*** {error}")
            return
        self.say(f"watchpoint {number}: {text.strip()}")

    def do_who(self, text: str) -> None:
        """who REF or who REF[...]: which line wrote these elements last, in which cell."""
        part = self._memory(text)
        if part is None:
            return
        try:
            for index, writer in self.stepper.writers(part):
                at = f"from {list(index)} on: " if part.size > 1 else ""
                self.say(f"{at}{writer or 'nothing in the kernel has written it'}")
        except NoValue as error:
            self.say(f"*** {error}")

    # -- looking ------------------------------------------------------------------------------

    def do_p(self, text: str) -> None:
        """p EXPRESSION: its value, with the kernel's names and np. Refs are NumPy arrays."""
        done, value = self._try(text)
        if done:
            self.say(repr(_copied(value)))

    def default(self, line: str) -> None:
        """Anything else is an expression."""
        self.do_p(line.removeprefix("!"))

    def do_whatis(self, text: str) -> None:
        """whatis EXPRESSION: its type and shape."""
        done, value = self._try(text)
        if done:
            self.say(_kind(value))

    def do_locals(self, _: str) -> None:
        """locals: the names that have a value here."""
        for name, value in self.stepper.names(self.place, self.frame).items():
            if name == "_":  # what decorators such as pl.when leave
                continue
            self.say(f"{name}: {_kind(value)} {_short(value)}")

    def do_args(self, _: str) -> None:
        """a(rgs): the kernel's refs, with their blocks in this cell."""
        kernel, cell = self.place.cell.kernel, self.place.cell
        for position, ref in enumerate(cell.refs):
            at = position - kernel.call.num_prefetch
            block = ""
            if 0 <= at < len(cell.starts):
                block = f", block {cell.starts[at]} of an array of {kernel.shapes[at]}"
            space = kernel.spaces[position] if position < len(kernel.spaces) else "?"
            self.say(f"{kernel.name(position)}: {_kind(ref)} in {space}{block}")

    def do_where(self, _: str) -> None:
        """w(here): the kernel, the cell, and the calls that lead here."""
        cell, call = self.place.cell, self.place.cell.kernel.call
        self.say(f"kernel {call.name} ({call.source}), cell {cell.indices} of {cell.sizes}")
        for level in reversed(range(len(self.place.frames))):
            frame = self.place.frames[level]
            mark = ">" if level == self.level else " "
            self.say(f"{mark} {frame.file}({frame.line}){frame.function}()")
            self.say(f"    {linecache.getline(frame.file, frame.line).strip()}")

    def do_up(self, _: str) -> None:
        """u(p): to the caller's names."""
        self._move(1)

    def do_down(self, _: str) -> None:
        """d(own): back to the callee's names."""
        self._move(-1)

    def _move(self, by: int) -> None:
        if not 0 <= self.level + by < len(self.place.frames):
            self.say("*** there is no more")
            return
        self.level += by
        self._show()

    def do_list(self, _: str) -> None:
        """l(ist): the source around this line."""
        here = self.frame
        lines = linecache.getlines(here.file)
        for number in range(max(1, here.line - 5), min(len(lines), here.line + 5) + 1):
            mark = "->" if number == here.line else "  "
            self.say(f"{number:4} {mark} {lines[number - 1].rstrip()}")

    def emptyline(self) -> bool:
        """An empty line repeats the last command that goes on, as pdb's does."""
        return self.onecmd(self.lastcmd) if self.lastcmd else False

    do_s, do_n, do_r, do_c, do_q = do_step, do_next, do_return, do_continue, do_quit
    do_cont, do_b, do_cl, do_a, do_w = do_continue, do_break, do_clear, do_args, do_where
    do_u, do_d, do_l, do_bt, do_exit = do_up, do_down, do_list, do_where, do_quit


def cell_of(text: str) -> tuple[int, ...]:
    """The indices of a cell in text such as ``3,0``.

    Raises:
      ValueError: the text isn't that.
    """
    try:
        return tuple(int(part) for part in text.strip("() ,").split(","))
    except ValueError:
        raise ValueError(f"a cell is given by its indices, as in 3,0, not as {text!r}") from None


def _short(value: Any) -> str:
    """A value in one line."""
    if not isinstance(value, (np.ndarray, jax.Array)):
        return reprlib.repr(value)
    text = np.array2string(np.asarray(value), precision=4, threshold=8, edgeitems=2)
    return " ".join(text.split())


def _copied(value: Any) -> Any:
    return np.array(value) if isinstance(value, (np.ndarray, jax.Array)) else value


def _kind(value: Any) -> str:
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        return f"{value.dtype}[{', '.join(map(str, value.shape))}]"
    return type(value).__name__
