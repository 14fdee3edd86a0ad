"""Kinds of random kernels that are others with something changed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

from tests.fuzz.kernels import Body, Call, Scope
from tests.fuzz.operations import USUAL, Operations, Value


class _NearBody(Body):
    """Without what JAX's TPU interpreter hasn't: array indices, bitcast refs, addupdate, masked
    stores of whole refs, indices outside. Without divisions: XLA aborts where it knows both.
    Without scans from the end, which it runs from the start."""

    arrays = False
    reverses = False
    integer_binary = tuple(n for n in Operations.integer_binary if n not in ("div", "rem"))

    def view(self, scope: Scope, ref: Any, loaded: bool = False) -> tuple[Any, Any]:
        return super().view(scope, ref)

    def do_masked(self, scope: Scope) -> None:
        self.do_store(scope)

    def do_add_update(self, scope: Scope) -> None:
        self.do_update(scope)

    def index(self, values: Sequence[Value], last: int) -> Any:
        return jnp.clip(super().index(values, last), 0, last)


class Checked(Call):
    """A kernel under pltpu.InterpretParams, against JAX's TPU interpreter."""

    body_type = _NearBody
    interpret = pltpu.InterpretParams()
    always_inside = True
    writes_first = True  # what was left in a block is undefined


class Prefetched(Call):
    """A kernel with scalar prefetch under vmap."""

    def __init__(self, source: random.Random):
        super().__init__(source, USUAL, batched=True)
