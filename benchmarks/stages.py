"""Times each step of the shim's first call, by calling the steps one by one on stock JAX."""

from __future__ import annotations

import functools
import gc
import time
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

Result = TypeVar("Result")


def stages(f: Any, args: tuple[Any, ...]) -> dict[str, float]:
    """The processor time, in seconds, of each step of a jitted function's first call, in order.

    A pass that runs twice has one entry with the sum. The last two figures aren't seconds: they are
    the numbers of instructions that lowering made and that the passes left.
    """
    from pallas_shim.evaluator import passes, rules
    from pallas_shim.evaluator.execute import Executable
    from pallas_shim.evaluator.lower import lower

    seconds: dict[str, float] = {}

    def timed(stage: str, step: Callable[[], Result]) -> Result:
        start = time.process_time()
        result = step()
        seconds[stage] = seconds.get(stage, 0.0) + time.process_time() - start
        return result

    traced = timed("tracing", lambda: f.trace(*args))
    gc.disable()  # the shim does this too during these steps
    timed("loading rules", rules.load)
    program = timed("lowering", lambda: lower(traced.jaxpr, name="stages"))
    lowered = sum(1 for _ in program.top.walk())
    for name, run in passes.PIPELINE:
        program = timed(name, functools.partial(run, program))
    executable = timed("codegen", lambda: Executable(program))
    values = [np.asarray(x) for x in args]
    timed("run", lambda: executable(*values))
    gc.enable()
    left = sum(1 for _ in program.top.walk())
    return {**seconds, "instructions_lowered": lowered, "instructions_left": left}
