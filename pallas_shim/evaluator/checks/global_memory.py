"""Blocks on a GPU: parts of one memory that all cells see, of which nothing is copied."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pallas_shim.evaluator.checks.cuts import Cut
from pallas_shim.evaluator.checks.place import AnyPlace
from pallas_shim.evaluator.checks.races import History
from pallas_shim.evaluator.checks.run import AccessSite, Activation
from pallas_shim.evaluator.checks.shadow import PADDING, Shadow
from pallas_shim.evaluator.program import Array


def padded(cut: Cut, rest: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the array in whole blocks. ``rest``: dimensions that aren't cut."""
    return tuple(
        -(-(dim + before + after) // size) * size if size else dim
        for dim, before, after, size in zip(
            cut.shape, cut.before, cut.after, cut.sizes, strict=True
        )
    ) + rest


def shadow(cut: Cut, rest: tuple[int, ...], code: int) -> Shadow:
    """The shadow of an array in whole blocks."""
    result = Shadow(padded(cut, rest), code)
    inner = tuple(
        slice(before, before + dim) for dim, before in zip(cut.shape, cut.before, strict=True)
    )
    if result.shape != cut.shape + rest:
        result.reset(PADDING)
        result.entries()[inner] = code
    return result


class BlockShadow:
    """A block's part of the shadow of its array. It stands for a `Shadow`."""

    __slots__ = ("_array", "_key", "_outside")

    def __init__(self, array: Shadow, key: tuple[Any, ...], outside: Shadow | None) -> None:
        self._array = array
        self._key = key
        self._outside = outside

    @property
    def defined(self) -> bool:
        return self._outside is None and self._array.defined

    def entries(self) -> np.ndarray:
        return (self._outside or self._array).entries()[self._key]

    def reset(self, code: int) -> None:
        if not self.defined:
            self.entries()[...] = code

    def settle(self) -> None:
        """The array is looked at as a whole nowhere."""


def _key(cut: Cut, numbers: tuple[Array, ...]) -> tuple[tuple[Any, ...], bool]:
    """The index of a block in its array in whole blocks, and whether it is wholly outside."""
    starts = cut.starts(numbers)
    outside = cut.axis_outside(starts) is not None
    key = tuple(
        0 if outside and squeezed else start if squeezed else slice(start, start + size)
        for start, size, squeezed in zip(
            (0,) * len(starts) if outside else starts, cut.sizes, cut.squeezed, strict=True
        )
    )
    return key, outside


def block_shadow(cut: Cut) -> Callable[..., BlockShadow]:
    """The block's part of a shadow. An access to a block outside its array is one to padding."""

    def make(array: Shadow, *numbers: Array) -> BlockShadow:
        key, outside = _key(cut, numbers)
        return BlockShadow(array, key, Shadow(array.shape, PADDING) if outside else None)

    return make


def block_history(cut: Cut) -> Callable[..., History]:
    """The block's part of a history."""

    def make(history: History, *numbers: Array) -> History:
        key, outside = _key(cut, numbers)
        return history.at(key) if not outside else History(history.writer[key].shape)

    return make


def check(site: AccessSite, place: AnyPlace, writes: bool) -> Callable[..., tuple[()]]:
    """The check that an access stays inside the array, of which its block may stick out. A load of
    which only a part is outside does no harm if that part isn't used."""

    def run(activation: Activation, shadow: Shadow, *leaves: Array) -> tuple[()]:
        if shadow.defined:
            return ()
        outside = place.read(shadow.entries(), leaves) == PADDING
        if outside.any() if writes else outside.size and outside.all():
            activation.found(
                "bounds", "outside-array",
                f"{site.what} {site.ref} outside its array, where its block sticks out",
                "Mask the access: on a GPU nothing is masked but by the kernel", site,
                place.text(leaves),
            )  # fmt: skip
        return ()

    return run

