"""What a run did, as data: kernels, their operands, cells, accesses and copies.

Everything here is plain numbers and text, and `Trace.to_dict` gives it as JSON. Elements are
counted from the start of an operand's array, bytes as NumPy stores them. *Steps* are the clock of
a recorded run: one for each access to memory, each operation on a semaphore, and each cell. They
give an order, not a time.
"""

from __future__ import annotations

import dataclasses
from typing import Any

SCHEMA = 1

Table = list[list[float | None]]


@dataclasses.dataclass
class SourceLine:
    """A line of the user's source. ``text`` is "" if the file can't be read."""

    file: str
    number: int
    text: str


@dataclasses.dataclass
class LineAccess:
    """What one line does to one operand in a cell, all its accesses together.

    ``line`` is a position in `Kernel.lines`, or None if it isn't known. ``kind`` is "reads" or
    "writes". The accesses lie in the elements from ``low`` up to and without ``high``, counted from
    the start of the cell's block.
    """

    line: int | None
    operand: int
    kind: str
    count: int
    nbytes: int
    low: tuple[int, ...]
    high: tuple[int, ...]


@dataclasses.dataclass
class Heat:
    """Numbers over an operand's elements, in bins. The array is shown as a table: its last
    dimension along ``x``, all others along ``y``, in order.

    ``rows`` and ``columns`` are the sizes of the table in elements. ``reads`` and ``writes`` are
    the accesses of an element, on average in its bin. ``values`` are averages of the finite
    contents, when the kernel ended; None: the operand was not recorded to its end.
    """

    rows: int
    columns: int
    reads: Table
    writes: Table
    values: Table | None = None
    not_finite: int = 0


@dataclasses.dataclass
class Coverage:
    """How the distinct blocks of all recorded cells cover an array.

    ``never`` and ``overlapped`` count its elements that lie in no block, and in several different
    ones. None: there are too many blocks to tell. ``partly`` and ``outside`` count the blocks that
    stick out of the array, and those with no element in it. ``revisited`` counts the blocks that
    several cells have, ``returning`` those that come back after another block.
    """

    never: int | None
    overlapped: int | None
    partly: int
    outside: int
    revisited: int
    returning: int


@dataclasses.dataclass
class RecordedOperand:
    """A ref of a kernel.

    ``role`` is "prefetch", "input", "output", "input and output", "scratch", "scoped", or "memory"
    that all cores of a mesh reach. ``shape`` is the whole array's, ``block`` the block's (None if
    it isn't cut). ``blocks`` lists the starts of the distinct blocks; a start is in elements, and
    isn't moved into the array if it lies outside. ``block_of_cell`` has the position in ``blocks``
    for each cell. ``piped``: the pipeline copies the blocks; otherwise the kernel does, or nobody.
    """

    name: str
    role: str
    shape: tuple[int, ...]
    dtype: str
    itemsize: int
    space: str
    block: tuple[int, ...] | None
    blocks: list[tuple[int, ...]]
    block_of_cell: list[int]
    piped: bool
    coverage: Coverage | None
    heat: Heat | None


@dataclasses.dataclass
class RecordedRun:
    """One run of a kernel by one program (a device or a core; "" if there is one).

    ``grid`` are the sizes, the last axis is the fastest. The cells are in this order, which is
    also that of their visits; ``recorded`` of them are recorded, the first ones. ``steps`` says
    when each began. ``patterns`` are the distinct lists of accesses, ``pattern_of_cell`` says which
    one a cell has; -1: its accesses were not recorded. ``fetched`` and ``written_back`` are the
    bytes that the pipeline moves for each cell, ``copied`` those of the kernel's own DMAs.
    """

    program: str
    grid: tuple[int, ...]
    cells: int
    recorded: int
    operands: list[RecordedOperand]
    patterns: list[list[LineAccess]]
    pattern_of_cell: list[int]
    fetched: list[int]
    written_back: list[int]
    copied: list[int]
    steps: list[int]
    end: int
    times: int = 1


@dataclasses.dataclass
class Event:
    """A copy in flight, a wait, or a signal.

    ``kind`` is "copy", "wait" or "signal". It lasts from step ``start`` to ``end``; a copy that
    nothing waited for ends with the run, and ``awaited`` is False. ``semaphore`` names its
    semaphore, ``owner`` the program whose semaphore that is; ``text`` says the rest. ``cell`` is a
    position among the cells of the run ``run``, which is a position in `Kernel.runs`.
    """

    kind: str
    run: int
    cell: int
    semaphore: str
    start: int
    end: int
    text: str
    nbytes: int = 0
    line: int | None = None
    awaited: bool = True
    owner: str = ""


@dataclasses.dataclass
class RecordedKernel:
    """A kernel at one place of a jitted function. ``source`` is the ``file:line`` of its
    definition. ``axes`` names the axes of its grid. ``notes`` say what is not shown, and why."""

    name: str
    function: str
    source: str | None
    axes: tuple[str, ...]
    lines: list[SourceLine]
    runs: list[RecordedRun]
    events: list[Event]
    notes: list[str]
    calls: int = 1


@dataclasses.dataclass
class Trace:
    """All kernels of a run of a script. ``versions`` names the packages that made it."""

    title: str
    made: str
    versions: dict[str, str]
    kernels: list[RecordedKernel]
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """The trace as JSON has it."""
        return {"schema": SCHEMA, **dataclasses.asdict(self)}

    def _repr_html_(self) -> str:
        from pallas_shim.view import page  # which needs packages that only the page needs

        return page.frame(self)
