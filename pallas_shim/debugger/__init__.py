"""Steps through kernels, line by line, with the values of the user's own names.

    names      while JAX traces: which tracer each of the user's names stands for, at each line
    stepping   while a kernel runs: the values, who wrote what, and where to stop
    commands   what the user types

The kernel's program isn't optimised, so each line's instructions run where the line stands.
"""

from __future__ import annotations

from pallas_shim.debugger.commands import DebugSession

__all__ = ["DebugSession"]
