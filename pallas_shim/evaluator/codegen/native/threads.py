"""Loops whose rounds several threads share.

The loop becomes a function of its own, of a piece of the rounds. A call starts threads, takes
pieces itself, as they do, and waits for those at work. On a busy machine, a thread may start when
all is done. It finds that nobody waits for it, and ends without touching anything but its own slot;
only the code must still be there. So no thread works after the call, and a fork, an interrupt, or
the end of the process finds none at work. There are never more threads than the caller may use
cores, nor more than a limit that is set when the code is loaded. Each element is computed as by one
thread, so results don't depend on how many there are.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence

LIMIT = "@limit"
# How many threads came late, or may still come.
LATE = "@late"
# What a thread's slot says: nobody is there, the thread is, or it needn't come.
_EMPTY, _ENTERED, _CLOSED = 0, 1, 2
DECLARED = {
    "declare <16 x i64> @llvm.ctpop.v16i64(<16 x i64>)",
    "declare i64 @llvm.vector.reduce.add.v16i64(<16 x i64>)",
    "declare i64 @llvm.smin.i64(i64, i64)",
}
# A piece is so much smaller than a thread's share that no thread waits long for another.
PIECES_EACH = 4
MOST = 64
# What one thread computes at least: starting another one takes a fraction of it.
_SHARE = 3e-5
# About how long things take for each element: an access, an operation, a function.
_ACCESS, _OPERATION, _FUNCTION = 6e-11, 4e-11, 2.5e-10
_REGISTER = re.compile(r"%[\w.]+")
_DEFINED = re.compile(r"^\s*(%[\w.]+) = ")
_LABEL = re.compile(r"label (%[\w.]+)")
_BASE = re.compile(r"%([pr]\d+|workspace)$")


def worthwhile(elements: int, accesses: int, operations: int, functions: int) -> int:
    """How many threads pay for a loop: 1 if it is too short for a second one."""
    each = accesses * _ACCESS + operations * _OPERATION + functions * _FUNCTION
    return max(1, min(int(elements * each / _SHARE), MOST))


def outlined(
    name: str, entry: Sequence[str], lines: Sequence[str], types: Mapping[str, str]
) -> tuple[str, dict[str, str]]:
    """The text of a function that runs lines taken from another one, and that one's registers
    which it takes, with their types. ``types``: those of registers that aren't parameters. The
    lines use the piece's number, %piece."""
    text = "\n".join([*entry, *lines])
    defined = {found[1] for line in (*entry, *lines) if (found := _DEFINED.match(line))}
    defined |= {"%piece", *_LABEL.findall(text)}
    given = [r for r in dict.fromkeys(_REGISTER.findall(text)) if r not in defined]
    kinds = {r: "ptr" if _BASE.match(r) else types[r] for r in given}
    params, loads = [], []
    for number, (register, kind) in enumerate(kinds.items()):
        # Others may point to what these do.
        noalias = " noalias" if _BASE.match(register) else ""
        params.append(f"{kind}{noalias} {register}")
        loads += [
            f"  %at{number} = getelementptr i64, ptr %given, i64 {number}",
            f"  %x{number} = load {kind}, ptr %at{number}",
        ]
    passed = ", ".join(f"{kind} %x{number}" for number, kind in enumerate(kinds.values()))
    return "\n".join([
        f"define internal void {name}_piece({', '.join([*params, 'i64 %piece'])}) #0 {{",
        "entry:", *entry, *lines, "  ret void", "}",
        f"define internal void {name}(ptr %given, i64 %piece) #0 {{",
        *loads,
        f"  call void {name}_piece({', '.join(filter(None, [passed, 'i64 %piece']))})",
        "  ret void", "}",
    ]), kinds  # fmt: skip


def helpers(load: Callable[[str], str]) -> str:
    """The text of `@share`, of (function, what it is given, pieces, how many threads pay, the
    thread's state for `@poll`). About once a second, it looks for signals. ``load``: what loads the
    address of a function of the C library."""
    return f"""
{LIMIT} = global i64 1
{LATE} = global i64 0
define internal i64 @threads(i64 %most) {{
  %mask = alloca [16 x i64], align 128
  store <16 x i64> zeroinitializer, ptr %mask
  %limit = load i64, ptr {LIMIT}
  %allowed = call i64 @llvm.smin.i64(i64 %most, i64 %limit)
  %get = {load("sched_getaffinity")}
  %unknown = icmp eq ptr %get, null
  br i1 %unknown, label %one, label %ask
ask:
  %status = call i32 %get(i32 0, i64 128, ptr %mask)
  %failed = icmp ne i32 %status, 0
  br i1 %failed, label %one, label %count
count:
  %bits = load <16 x i64>, ptr %mask
  %counts = call <16 x i64> @llvm.ctpop.v16i64(<16 x i64> %bits)
  %cores = call i64 @llvm.vector.reduce.add.v16i64(<16 x i64> %counts)
  %threads = call i64 @llvm.smin.i64(i64 %cores, i64 %allowed)
  ret i64 %threads
one:
  ret i64 1
}}
define internal i64 @clock() {{
  %seconds = alloca [2 x i64]
  %get = {load("clock_gettime")}
  %status = call i32 %get(i32 {time.CLOCK_MONOTONIC}, ptr %seconds)
  %now = load i64, ptr %seconds
  ret i64 %now
}}
define internal i32 @work(ptr %job, ptr %thread) {{
entry:
  %start = call i64 @clock()
  %at_given = getelementptr i64, ptr %job, i64 1
  %at_pieces = getelementptr i64, ptr %job, i64 2
  %at_next = getelementptr i64, ptr %job, i64 3
  %function = load ptr, ptr %job
  %given = load ptr, ptr %at_given
  %pieces = load i64, ptr %at_pieces
  br label %take
take:
  %before = phi i64 [%start, %entry], [%before, %do], [%now, %look], [%now, %go_on]
  %piece = atomicrmw add ptr %at_next, i64 1 monotonic
  %is_left = icmp slt i64 %piece, %pieces
  br i1 %is_left, label %do, label %end
do:
  call void %function(ptr %given, i64 %piece)
  %is_helper = icmp eq ptr %thread, null
  br i1 %is_helper, label %take, label %look
look:
  %now = call i64 @clock()
  %same = icmp eq i64 %now, %before
  br i1 %same, label %take, label %ask
ask:
  %status = call i32 @poll(ptr %thread)
  %is_interrupted = icmp ne i32 %status, 0
  br i1 %is_interrupted, label %stop, label %go_on
go_on:
  br label %take
stop:
  store atomic i64 %pieces, ptr %at_next monotonic, align 8
  ret i32 1
end:
  ret i32 0
}}
define internal ptr @thread(ptr %slot) {{
  %found = cmpxchg ptr %slot, i64 {_EMPTY}, i64 {_ENTERED} acq_rel acquire
  %is_in_time = extractvalue {{ i64, i1 }} %found, 1
  br i1 %is_in_time, label %help, label %late
help:
  %at_job = getelementptr i64, ptr %slot, i64 1
  %job = load ptr, ptr %at_job
  %status = call i32 @work(ptr %job, ptr null)
  ret ptr null
late:
  %free = {load("free")}
  call void %free(ptr %slot)
  ret ptr null
}}
define internal i32 @share(
  ptr %function, ptr %given, i64 %pieces, i64 %most, ptr %thread
) {{
entry:
  %job = alloca [4 x i64]
  %ids = alloca [{MOST} x i64]
  %slots = alloca [{MOST} x ptr]
  %at_given = getelementptr i64, ptr %job, i64 1
  %at_pieces = getelementptr i64, ptr %job, i64 2
  %at_next = getelementptr i64, ptr %job, i64 3
  store ptr %function, ptr %job
  store ptr %given, ptr %at_given
  store i64 %pieces, ptr %at_pieces
  store i64 0, ptr %at_next
  %threads = call i64 @threads(i64 %most)
  %create = {load("pthread_create")}
  %join = {load("pthread_join")}
  %detach = {load("pthread_detach")}
  %allocate = {load("malloc")}
  %free = {load("free")}
  br label %more
more:
  %made = phi i64 [0, %entry], [%others, %created]
  %others = add i64 %made, 1
  %is_short = icmp slt i64 %others, %threads
  br i1 %is_short, label %start, label %work
start:
  %slot = call ptr %allocate(i64 16)
  %nothing = icmp eq ptr %slot, null
  br i1 %nothing, label %work, label %fill
fill:
  %slot_job = getelementptr i64, ptr %slot, i64 1
  store i64 {_EMPTY}, ptr %slot
  store ptr %job, ptr %slot_job
  %at_id = getelementptr i64, ptr %ids, i64 %made
  %at_slot = getelementptr ptr, ptr %slots, i64 %made
  store ptr %slot, ptr %at_slot
  %status = call i32 %create(ptr %at_id, ptr null, ptr @thread, ptr %slot)
  %failed = icmp ne i32 %status, 0
  br i1 %failed, label %drop, label %created
drop:
  call void %free(ptr %slot)
  br label %work
created:
  br label %more
work:
  %result = call i32 @work(ptr %job, ptr %thread)
  br label %wait
wait:
  %left = phi i64 [%made, %work], [%last, %left_behind], [%last, %joined]
  %none = icmp eq i64 %left, 0
  br i1 %none, label %end, label %close
close:
  %last = sub i64 %left, 1
  %at_its_id = getelementptr i64, ptr %ids, i64 %last
  %at_its_slot = getelementptr ptr, ptr %slots, i64 %last
  %id = load i64, ptr %at_its_id
  %its_slot = load ptr, ptr %at_its_slot
  %found = cmpxchg ptr %its_slot, i64 {_EMPTY}, i64 {_CLOSED} acq_rel acquire
  %is_late = extractvalue {{ i64, i1 }} %found, 1
  br i1 %is_late, label %leave, label %join_it
leave:
  %before = atomicrmw add ptr {LATE}, i64 1 monotonic
  %detached = call i32 %detach(i64 %id)
  br label %left_behind
left_behind:
  br label %wait
join_it:
  %ended = call i32 %join(i64 %id, ptr null)
  call void %free(ptr %its_slot)
  br label %joined
joined:
  br label %wait
end:
  ret i32 %result
}}
"""
