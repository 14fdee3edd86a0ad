"""Random kernels that load and store through views of refs: slices, reshapes, transposes, bitcasts.

JAX's interpreter doesn't store through most of them, so what it runs loads whole refs, and does
the same to their values.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from tests.fuzz.operations import USUAL, Choices, Pool

_INTEGERS = tuple(map(np.dtype, ("int32", "uint32", "int16", "uint16", "int8", "uint8")))
Step = tuple[str, Any]


class Views(Choices):
    """``function(*args)`` runs in the evaluator, ``reference(*args)`` in JAX."""

    rtol = None

    def __init__(self, source: random.Random, pool: Pool = USUAL):
        super().__init__(source, pool)
        self._dtype = self.one(_INTEGERS)
        self._shape = (*self.shape((0, 1)), self.one([4, 8]), self.one([2, 4, 6]))
        self._cells, self._seed = self.number(1, 2), self.number(0, 1 << 16)
        rng = np.random.default_rng(self.number(0, 1 << 16))
        self.args = [rng.integers(0, 100, self._shape).astype(self._dtype) for _ in range(2)]
        self.function = lambda *args: self._call(_load, _store, *args)
        self.reference = lambda *args: self._call(_load_whole, _store_whole, *args)

    def _call(self, load: Callable[..., Any], store: Callable[..., None], *args: Any) -> Any:
        def kernel(x, _, out, scratch):
            draw = _Steps(random.Random(self._seed), self.pool)
            scratch[...] = x[...]
            for _ in range(draw.number(2, 5)):
                source, target = draw.one([x, out, scratch]), draw.one([out, scratch])
                value = load(source, draw.steps(self._shape, self._dtype))
                steps = draw.steps(self._shape, self._dtype)
                struct = jax.eval_shape(lambda t=target, s=steps: _apply_to_value(t[...], s))
                store(target, steps, _fit(value, struct))

        # Aliased, so that all of the result is known.
        spec = pl.BlockSpec(self._shape, lambda i: (0,) * len(self._shape))
        return pl.pallas_call(
            kernel, jax.ShapeDtypeStruct(self._shape, self._dtype), grid=(self._cells,),
            in_specs=[spec, spec], out_specs=spec, interpret=True, input_output_aliases={1: 0},
            scratch_shapes=[pltpu.VMEM(self._shape, self._dtype)],
        )(*args)  # fmt: skip


class _Steps(Choices):
    def steps(self, shape: tuple[int, ...], dtype: np.dtype) -> list[Step]:
        steps: list[Step] = []
        for _ in range(self.number(0, 3)):
            kind = self.one(["index", "index", "reshape", "transpose", "bitcast"])
            if kind == "index" and shape:
                step = self._index(shape)
            elif kind == "reshape":
                step = ("reshape", self._factors(math.prod(shape)))
            elif kind == "transpose" and len(shape) == 2 and _HAVE_TRANSPOSE:
                step = ("transpose", None)
            elif kind == "bitcast" and not steps:
                rows = shape[-2] * dtype.itemsize
                fitting = [d for d in _INTEGERS if rows % d.itemsize == 0]
                step = ("bitcast", self.one(fitting))
                dtype = step[1]
            else:
                continue
            steps.append(step)
            whole = jax.ShapeDtypeStruct(shape, dtype)
            if step[0] == "bitcast":
                shape = (*shape[:-2], rows // dtype.itemsize, shape[-1])
            else:
                shape = jax.eval_shape(lambda x, s=step: _apply_to_value(x, [s]), whole).shape
        return steps

    def _index(self, shape: tuple[int, ...]) -> Step:
        index: list[Any] = []
        for size in shape:
            kind = self.one(["all", "int", "range", "strided"])
            length = self.number(1, size)
            start = self.number(0, size - length)
            if kind == "int":
                index.append(start)
            elif kind == "range":
                index.append(slice(start, start + length))
            elif kind == "strided":
                index.append(slice(start, start + length, self.number(1, 2)))
            else:
                index.append(slice(None))
        return "index", tuple(index)

    def _factors(self, size: int) -> tuple[int, ...]:
        columns = self.one([c for c in (1, 2, 3, 4, 6, 8, size) if size % c == 0])
        return self.one([(size,), (size // columns, columns), (1, size // columns, columns)])


_HAVE_TRANSPOSE = hasattr(pl, "Element") and jax.__version_info__ >= (0, 9)


def _view(ref: Any, steps: list[Step]) -> Any:
    for kind, how in steps:
        if kind == "index":
            ref = ref.at[how]
        elif kind == "reshape":
            ref = ref.reshape(how)
        elif kind == "transpose":
            ref = ref.T
        else:
            ref = ref.bitcast(how)
    return ref


def _apply_to_value(x: Any, steps: list[Step]) -> Any:
    for kind, how in steps:
        if kind == "index":
            x = x[how]
        elif kind == "reshape":
            x = x.reshape(how)
        elif kind == "transpose":
            x = x.T
        else:
            x = pltpu.bitcast(x, how)
    return x


def _fit(value: Any, struct: Any) -> Any:
    size = math.prod(struct.shape)
    flat = jnp.resize(value.reshape(-1), (size,)) + jnp.ones((), value.dtype)
    return flat.astype(struct.dtype).reshape(struct.shape)


def _load(ref: Any, steps: list[Step]) -> Any:
    return _view(ref, steps)[...]


def _store(ref: Any, steps: list[Step], value: Any) -> None:
    _view(ref, steps)[...] = value


def _load_whole(ref: Any, steps: list[Step]) -> Any:
    return _apply_to_value(ref[...], steps)


def _store_whole(ref: Any, steps: list[Step], value: Any) -> None:
    whole, rest = ref[...], steps
    if steps and steps[0][0] == "bitcast":
        whole, rest = pltpu.bitcast(whole, steps[0][1]), steps[1:]
    places = jnp.arange(whole.size, dtype=jnp.int32).reshape(whole.shape)
    at = _apply_to_value(places, rest).reshape(-1)
    changed = whole.reshape(-1).at[at].set(value.reshape(-1)).reshape(whole.shape)
    ref[...] = changed if whole.dtype == ref.dtype and rest is steps else (
        pltpu.bitcast(changed, np.dtype(ref.dtype))
    )
