"""Random kernels that copy: DMAs between memory spaces, semaphores, the cores of a mesh.

JAX's interpreter doesn't run kernels on a mesh, so what it runs is the same body on a grid: the
cores of a mesh run one after the other here.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from tests.fuzz.kernels import Body, Memory, Scope, data
from tests.fuzz.operations import USUAL, Choices, Pool, Value

_ROWS, _COLUMNS = 6, 8
# JAX moved these from Pallas TPU to Pallas.
_signal = getattr(pl, "semaphore_signal", None) or pltpu.semaphore_signal
_wait = getattr(pl, "semaphore_wait", None) or pltpu.semaphore_wait
_read = getattr(pl, "semaphore_read", None) or pltpu.semaphore_read


class Refs(NamedTuple):
    inputs: Sequence[Any]
    outputs: Sequence[Any]
    buffers: Sequence[Any]
    dma_sems: Any
    sem: Any


class Copying(Choices):
    """A random kernel whose arrays are all of one type. ``function(*args)`` runs it in the
    evaluator, ``reference(*args)`` in JAX."""

    rtol = None

    def __init__(self, source: random.Random, pool: Pool = USUAL):
        super().__init__(source, pool)
        self._dtype = self.one(pool.stored)
        self._cells = self.number(1, 3)
        self._counts = (self.number(1, 2), self.number(1, 2))
        self._scratch = [(self.number(1, _ROWS), _COLUMNS) for _ in range(self.number(1, 3))]
        self._in_vmem = bool(self.number(0, 1))
        self._seed, rng = self.number(0, 1 << 16), np.random.default_rng(self.number(0, 1 << 16))
        self.args = [
            data(self, rng, (_ROWS, _COLUMNS), self._dtype) for _ in range(sum(self._counts))
        ]
        self.reference = self._on_grid
        # Cores that wait for one another are refused.
        self._waits = self._cells == 1 or not self.rarely(3)
        self.function = self._on_grid if self._waits and self._cells > 1 else self._on_cores

    def _types(self) -> list[Any]:
        return [
            *(pltpu.VMEM(shape, self._dtype) for shape in self._scratch),
            pltpu.SemaphoreType.DMA((2,)),
            pltpu.SemaphoreType.REGULAR,
        ]

    def _body(self, cell: Any, refs: Refs) -> None:
        # Drawn anew for each way to run it, so always from the same seed.
        _Statements(random.Random(self._seed), self.pool).run(cell, refs, self._waits)

    def _on_grid(self, *args: Any) -> Any:
        ins, outs = self._counts

        def kernel(*refs):
            outputs, buffers = refs[ins + outs : ins + 2 * outs], refs[ins + 2 * outs :]
            self._body(pl.program_id(0), Refs(refs[:ins], outputs, buffers[:-2], *buffers[-2:]))

        space = pltpu.VMEM if self._in_vmem else pl.ANY
        spec = pl.BlockSpec(memory_space=space)
        return pl.pallas_call(
            kernel,
            [jax.ShapeDtypeStruct((_ROWS, _COLUMNS), self._dtype)] * outs,
            grid=(self._cells,), in_specs=[spec] * (ins + outs), out_specs=[spec] * outs,
            input_output_aliases={ins + i: i for i in range(outs)},
            scratch_shapes=self._types(), interpret=True,
        )(*args)  # fmt: skip

    def _on_cores(self, *args: Any) -> Any:
        ins, _ = self._counts

        def on_cores(refs):
            mesh = pltpu.create_tensorcore_mesh("core", num_cores=self._cells)

            @pl.core_map(mesh)
            def _():
                def scoped(*buffers):
                    cell = jax.lax.axis_index("core")
                    self._body(cell, Refs(refs[:ins], refs[ins:], buffers[:-2], *buffers[-2:]))

                pl.run_scoped(scoped, *self._types())

        return list(pl.run_state(on_cores)(tuple(map(jnp.asarray, args)))[ins:])


class _Statements(Body):
    """The body of a cell."""

    def run(self, cell: Any, refs: Refs, waits: bool) -> None:
        scope = Scope([Value(jnp.int32(cell))], [Memory(ref, False) for ref in refs.inputs])
        scope.refs.extend(Memory(ref, True) for ref in (*refs.outputs, *refs.buffers))
        pending: list[Callable[[], None]] = []
        # Scratch of a core is its own, of a cell it is what the cell before left.
        for buffer in refs.buffers:
            buffer[...] = self.canonical(scope, buffer).x
        for _ in range(self.number(3, 9)):
            kind = self.one(["copy", "copy", "copy", "load", "store", "value", "semaphore"])
            if kind == "copy":
                pending.append(self._copy(scope, refs))
            elif kind == "semaphore" and waits:
                self._count(scope, refs.sem)
            elif kind == "value":
                self.block_of_values(scope)
            elif kind in ("load", "store"):
                self._access(scope, refs.buffers, kind)
            if pending and self.number(0, 1):
                pending.pop(0)()
        for wait in pending:
            wait()

    def _access(self, scope: Scope, buffers: Sequence[Any], kind: str) -> None:
        ref = self.one(buffers)
        rows = self._rows(scope, ref, self.number(1, ref.shape[0]))
        if kind == "load":
            scope.values.append(self.loaded(ref[rows]))
        else:
            ref[rows] = self._stored(scope, ref, rows)

    def _rows(self, scope: Scope, ref: Any, count: int) -> Any:
        last = ref.shape[0] - count
        if self.number(0, 1):
            return pl.ds(self.number(0, last), count)
        start = self.scalar(scope.values)
        return pl.ds(jax.lax.rem(jax.lax.abs(start), np.int32(last + 1)), count)

    def _copy(self, scope: Scope, refs: Refs) -> Callable[[], None]:
        """Starts a DMA and returns what waits for it."""
        source = self.one(scope.refs).ref
        target = self.one([m.ref for m in scope.refs if m.writable and m.ref is not source])
        count = self.number(1, min(source.shape[0], target.shape[0]))
        source = source.at[self._rows(scope, source, count)]
        target = target.at[self._rows(scope, target, count)]
        if self.rarely():
            left = pl.ds(self.number(0, 4), 4)
            source, target = source.at[:, left], target.at[:, left]
        elif count == 1 and self.number(0, 1):
            source, target = source.at[0], target.at[0]
        copy = pltpu.make_async_copy(source, target, refs.dma_sems.at[self.number(0, 1)])
        copy.start()
        return copy.wait

    def _count(self, scope: Scope, sem: Any) -> None:
        """The count is zero again afterwards."""
        parts = [self.number(1, 3) for _ in range(self.number(1, 2))]
        for part in parts:
            _signal(sem, part)
        if self.number(0, 1):
            scope.values.append(Value(jnp.int32(_read(sem))))
        _wait(sem, sum(parts))
