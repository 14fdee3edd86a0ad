"""Kinds of random kernels that are others with something changed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from jax.experimental.pallas import tpu as pltpu

from tests.fuzz.kernels import Body, Call, Scope
from tests.fuzz.operations import USUAL, Operations


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


class Checked(Call):
    """A kernel under pltpu.InterpretParams, against JAX's TPU interpreter."""

    body_type = _NearBody
    interpret = pltpu.InterpretParams()
    always_inside = True
    writes_first = True  # what was left in a block is undefined


class _ScalarBody(Body):
    """Numbers, elements of memory, and loops and branches around them."""

    arrays = False

    def shape(self, ranks: Sequence[int] = ()) -> tuple[int, ...]:
        return super().shape(ranks) if ranks else ()

    def block(self, scope: Scope, least: int, most: int) -> None:
        for _ in range(self.number(least, most)):
            kind = self.number(0, 9)
            if kind < 4:
                scope.values.append(getattr(self, self.one(_OF_NUMBERS))(scope.values))
            elif kind < 8 or scope.depth == _DEEPEST:
                getattr(self, self.one(["do_load", "do_load", "do_store", "do_update"]))(scope)
            else:
                getattr(self, self.one(["do_loop", "do_loop", "do_repeat", "do_branch"]))(scope)

    def _index(self, scope: Scope, shape: Sequence[int]) -> tuple[Any, ...]:
        if self.rarely(6):
            return super()._index(scope, shape)
        return tuple(
            self.index(scope.values, size - 1)
            if self.moving and self.number(0, 2)
            else self.number(0, size - 1)
            for size in shape
        )


_OF_NUMBERS = ("elementwise", "elementwise", "elementwise", "compare", "select", "cast", "clamp")
_DEEPEST = 3


class Scalars(Call):
    """A kernel that computes numbers one by one, as those that count or search do."""

    body_type = _ScalarBody


class Prefetched(Call):
    """A kernel with scalar prefetch under vmap."""

    def __init__(self, source: random.Random):
        super().__init__(source, USUAL, batched=True)
