"""Donated arguments: which of them jit deletes, and which calls jit refuses because of them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from pallas_shim.jax_compat import arrays, call_info


def deleted(jaxpr: Any, call: call_info.JitCall, used: Sequence[bool]) -> tuple[int, ...]:
    """The donated arguments that jit deletes: those whose memory a result can reuse.

    Warns of the arguments that match no result in their number of elements. ``used``: whether the
    results depend on each argument. An unused argument counts as not donated.
    """
    avals = call_info.in_avals(jaxpr)
    given = [i for i, donated in enumerate(call.donated) if donated and used[i]]
    results = list(call_info.out_avals(jaxpr))
    same_type = _matches(given, avals, results, lambda a: (a.shape, a.dtype))
    others = [i for i in given if i not in same_type]
    same_size = _matches(others, avals, list(results), lambda a: a.size)
    same_bytes = _matches(same_size, avals, results, lambda a: a.size * a.dtype.itemsize)
    unusable = [str(avals[i]) for i in others if i not in same_size]
    if unusable:
        warnings.warn(
            f"Some donated buffers were not usable: {', '.join(unusable)}.\n"
            f"{call_info.on_donation()}",
            stacklevel=2,
        )
    return tuple(sorted(same_type + same_bytes))


def _matches(
    positions: Sequence[int], avals: Sequence[Any], results: list[Any], property_of: Any
) -> list[int]:
    """The positions whose type shares a property with a result.

    Each position takes a result of its own, which is removed from ``results``.
    """
    matched = []
    for position in positions:
        wanted = property_of(avals[position])
        match = next((i for i, r in enumerate(results) if property_of(r) == wanted), None)
        if match is not None:
            del results[match]
            matched.append(position)
    return matched


def check(values: Sequence[np.ndarray | list[np.ndarray]], positions: Sequence[int]) -> None:
    """Checks the arguments of a call that deletes those at ``positions``.

    A list in ``values`` holds the parts of one argument.

    Raises:
      arrays.Elsewhere: a deleted argument is passed twice, which XLA refuses.
    """
    addresses = [_address(value[0] if isinstance(value, list) else value) for value in values]
    for position in positions:
        if addresses[position] and addresses.count(addresses[position]) > 1:
            raise arrays.Elsewhere("an argument that is donated is passed twice")


def _address(value: np.ndarray) -> int:
    return value.__array_interface__["data"][0] if value.nbytes else 0


def delete(args: Sequence[Any], positions: Sequence[int]) -> None:
    for position in positions:
        if isinstance(args[position], jax.Array):
            args[position].delete()
