"""Whole kernels, and how one is checked: the evaluator's result against JAX's interpreter.

A kernel module holds cases: functions without arguments that return a function of arrays,
which calls one or more Pallas kernels with ``interpret=True``, and its arguments. A kernel
that JAX's interpreter refuses to run comes with the results expected of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import numpy as np
from jax.experimental import pallas as pl

from pallas_shim.evaluator.execute import Executable
from pallas_shim.evaluator.lower import lower
from pallas_shim.evaluator.passes import optimise
from tests.oracle import compare

# What every case calls: JAX's interpreter is the oracle, and the flag is part of the trace.
pallas_call = functools.partial(pl.pallas_call, interpret=True)


@dataclasses.dataclass(frozen=True)
class Case:
    """``build`` makes the function, its arguments, and what is expected if JAX can't say.

    ``ulp`` and ``rtol`` are how close is close enough. ``tpu``: the kernel asks, while it is
    traced, what TPU it is for.
    """

    build: Callable[[], tuple[Any, ...]]
    ulp: int = 0
    rtol: float | None = None
    tpu: bool = False


def case(ulp: int = 0, rtol: float | None = None, tpu: bool = False) -> Callable[[Any], Case]:
    """Marks a function as a case. By default results must be equal."""
    return lambda build: Case(build, ulp, rtol, tpu)


def cases(*modules: ModuleType) -> dict[str, Case]:
    """The cases of the modules, by name."""
    return {
        f"{module.__name__.rpartition('.')[2]}.{name}": value
        for module in modules
        for name, value in vars(module).items()
        if isinstance(value, Case)
    }


def evaluate(f: Callable[..., Any], *args: Any) -> list[list[np.ndarray]]:
    """The outputs of ``f``, flat, by the evaluator alone: as lowered, and optimised, the latter
    with none of its loops as functions, and with all."""
    program = lower(jax.make_jaxpr(f)(*args))
    arrays = [np.asarray(x) for x in jax.tree.leaves(args)]
    optimised = optimise(program)
    functions = [Executable(optimised, lambda loop, all=all: all) for all in (False, True)]
    return [run(*arrays) for run in (Executable(program), *functions)]


def check(case: Case) -> None:
    """Asserts that the evaluator gives what JAX gives, or what the case expects."""
    f, args, *expected = case.build()
    want = [np.asarray(x) for x in jax.tree.leaves(expected or jax.jit(f)(*args))]
    with abstract_tpu() if case.tpu else contextlib.nullcontext():
        results = evaluate(f, *args)
    for got in results:
        for one, other in zip(got, want, strict=True):
            compare(one, other, ulp=case.ulp, rtol=case.rtol)


def abstract_tpu(kind: str = "TPU v5 lite") -> contextlib.AbstractContextManager[Any]:
    """Inside, JAX traces as if for a TPU of that kind, by default a v5e."""
    said: dict[str, Any] = {"device_kind": kind, "num_cores": 1, "platform": "tpu"}
    known = {field.name for field in dataclasses.fields(jax.sharding.AbstractDevice)}
    device = jax.sharding.AbstractDevice(**{k: v for k, v in said.items() if k in known})
    mesh = jax.sharding.AbstractMesh((), (), abstract_device=device)
    return jax.sharding.use_abstract_mesh(mesh)


def floats(seed: int, *shape: int, dtype: Any = np.float32) -> np.ndarray:
    """Normal values of the given type."""
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def integers(seed: int, *shape: int, dtype: Any = np.int32, low: int = -8, high: int = 8) -> Any:
    """Small whole numbers: their sums and products are exact in every type."""
    return np.random.default_rng(seed).integers(low, high, shape).astype(dtype)


def struct(*shape: int, dtype: Any = np.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)
