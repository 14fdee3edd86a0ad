"""The entry by which XLA calls native code: a handler of its FFI, which counts its calls.

It runs on threads that Python doesn't know, so it looks for no signals.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from pallas_shim.evaluator.codegen.native import host

# xla/ffi/api/c_api.h: of XLA_FFI_CallFrame the extensions, and the arrays of arguments and results;
# of an extension its type and the metadata; of the metadata the version; of a buffer its memory.
_EXTENSION, _ARGUMENTS, _RESULTS = 8, 72, 112
_TYPE, _METADATA, _MAJOR, _MINOR = 8, 24, 24, 28
_MEMORY = 24
_IS_METADATA = 1
VERSION = (0, 1)
# The counters: calls, nanoseconds.
COUNTS = "@counts"
# Asking for the time twice takes 0.1 microseconds, a fortieth of a short call from Python. After so
# many calls, one in so many is timed, and counts for all of these.
_ALL_TIMED, _EACH = 64, 16


def handler(used: Sequence[bool], results: int, workspace: bool) -> str:
    """The text of the handler of a module's program."""
    lines = [
        f"{COUNTS} = global [2 x i64] zeroinitializer",
        "define ptr @handler(ptr %frame) {",
        *_load("extension", "%frame", _EXTENSION),
        "  %none = icmp eq ptr %extension, null",
        "  br i1 %none, label %run, label %extended",
        "extended:",
        f"  %at_type = getelementptr i8, ptr %extension, i64 {_TYPE}",
        "  %type = load i32, ptr %at_type",
        f"  %asked = icmp eq i32 %type, {_IS_METADATA}",
        "  br i1 %asked, label %answer, label %run",
        "answer:",
        *_load("metadata", "%extension", _METADATA),
        f"  %at_major = getelementptr i8, ptr %metadata, i64 {_MAJOR}",
        f"  store i32 {VERSION[0]}, ptr %at_major",
        f"  %at_minor = getelementptr i8, ptr %metadata, i64 {_MINOR}",
        f"  store i32 {VERSION[1]}, ptr %at_minor",
        "  ret ptr null",
        "run:",
        *_load("arguments", "%frame", _ARGUMENTS),
        *_load("results", "%frame", _RESULTS),
    ]
    passed, at = [], 0
    for number, is_used in enumerate(used):
        if is_used:
            lines += _buffer(f"p{number}", "%arguments", at)
            at += 1
        passed.append(f"ptr %p{number}" if is_used else "ptr null")
    for number in range(results):
        lines += _buffer(f"r{number}", "%results", number)
        passed.append(f"ptr %r{number}")
    if workspace:
        lines += _buffer("workspace", "%results", results)
    passed += ["ptr %workspace" if workspace else "ptr null", "ptr null"]
    run = f"call i32 @program({', '.join(passed)})"
    lines += [
        f"  %calls = atomicrmw add ptr {COUNTS}, i64 1 monotonic",
        f"  %early = icmp ult i64 %calls, {_ALL_TIMED}",
        f"  %place = and i64 %calls, {_EACH - 1}",
        "  %chosen = icmp eq i64 %place, 0",
        "  %timed = or i1 %early, %chosen",
        "  br i1 %timed, label %by_the_clock, label %only",
        "only:",
        f"  %done = {run}",
        "  ret ptr null",
        "by_the_clock:",
        *_clock("start"),
        f"  %status = {run}",
        *_clock("end"),
        "  %took = sub i64 %end, %start",
        f"  %weight = select i1 %early, i64 1, i64 {_EACH}",
        "  %counted = mul i64 %took, %weight",
        f"  %at_time = getelementptr i64, ptr {COUNTS}, i64 1",
        "  %total = atomicrmw add ptr %at_time, i64 %counted monotonic",
        "  ret ptr null",
        "}",
    ]
    return "\n".join(lines)


def _load(name: str, base: str, offset: int) -> list[str]:
    return [
        f"  %at_{name} = getelementptr i8, ptr {base}, i64 {offset}",
        f"  %{name} = load ptr, ptr %at_{name}",
    ]


def _buffer(name: str, array: str, number: int) -> list[str]:
    return [*_load(f"b_{name}", array, 8 * number), *_load(name, f"%b_{name}", _MEMORY)]


def _clock(name: str) -> list[str]:
    """The time in nanoseconds."""
    return [
        f"  %s_{name} = alloca [2 x i64]",
        f"  %f_{name} = {host.load('clock_gettime')}",
        f"  %c_{name} = call i32 %f_{name}(i32 {time.CLOCK_MONOTONIC}, ptr %s_{name})",
        f"  %seconds_{name} = load i64, ptr %s_{name}",
        f"  %n_{name} = getelementptr i64, ptr %s_{name}, i64 1",
        f"  %rest_{name} = load i64, ptr %n_{name}",
        f"  %whole_{name} = mul i64 %seconds_{name}, 1000000000",
        f"  %{name} = add i64 %whole_{name}, %rest_{name}",
    ]
