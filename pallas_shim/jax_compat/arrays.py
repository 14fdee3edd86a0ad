"""The boundary: converts JAX's values to NumPy arrays, and NumPy arrays to JAX's."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax._src import config, core
from jax._src import dtypes as jax_dtypes
from jax._src.array import ArrayImpl
from jax._src.interpreters.pxla import get_default_device
from jax._src.lib import _jax, xla_client
from jax._src.random import prng
from jax.sharding import SingleDeviceSharding


class Elsewhere(Exception):
    """The arguments or results of a call don't lie on one CPU device. The message says why."""


class Place(NamedTuple):
    """The place where jit would have put a call's results."""

    sharding: SingleDeviceSharding
    committed: bool
    devices: tuple[Any]
    platform: str


class ResultType(NamedTuple):
    """The type of one result of `write`: an array of the type ``aval``. If there is a
    ``key_type``, it is a key array of that type instead."""

    aval: Any
    key_type: Any


def on_key_data(function: Callable[..., Sequence[Any]], avals: Sequence[Any]) -> Any:
    """A function with arguments of these types, but that takes and returns the integers of keys."""

    def call(*args: Any) -> list[Any]:
        given = [
            prng.random_wrap(arg, impl=aval.dtype._impl) if _is_key(aval) else arg
            for arg, aval in zip(args, avals, strict=True)
        ]
        return [prng.random_unwrap(out) if _is_key(out) else out for out in function(*given)]

    return call


def _is_key(typed: Any) -> bool:
    return jax_dtypes.issubdtype(typed.dtype, jax_dtypes.prng_key)


def is_plain(aval: Any) -> bool:
    """Whether values of this type are arrays or keys in a device's default memory."""
    if not isinstance(aval, core.ShapedArray) or aval.dtype == jax_dtypes.float0:
        return False
    dtype_is_plain = not jax_dtypes.issubdtype(aval.dtype, jax_dtypes.extended)
    space = getattr(aval, "memory_space", None)
    return (
        (dtype_is_plain or _is_key(aval))
        and (space is None or getattr(space, "name", "Device") == "Device")
        and all(isinstance(size, int) for size in aval.shape)
    )


def is_there(arg: Any) -> bool:
    """Whether an argument of a jitted call has its value, and XLA doesn't still compute it."""
    if type(arg) is prng.PRNGKeyArray:
        arg = arg._base_array
    if type(arg) is not ArrayImpl:
        return True
    array: Any = arg  # whose type doesn't say all that it has
    return array.is_deleted() or array.is_ready()


def argument_dtypes(
    avals: Sequence[Any], used: Sequence[bool] | None = None
) -> tuple[np.dtype | np.ndarray, ...]:
    """The NumPy dtypes of the results of `read` for arguments of these types.

    Arguments that aren't ``used`` (None: all are) become zeros of their types.
    """
    physical = [core.physical_aval(aval) for aval in avals]
    return tuple(
        np.dtype(aval.dtype) if is_used else np.broadcast_to(np.zeros((), aval.dtype), aval.shape)
        for aval, is_used in zip(physical, used or (True,) * len(physical), strict=True)
    )


def unused(dtypes: Sequence[np.dtype | np.ndarray]) -> tuple[int, ...]:
    """The positions of the unused arguments in the result of `argument_dtypes`."""
    return tuple(i for i, dtype in enumerate(dtypes) if type(dtype) is np.ndarray)


def result_aval(shape: tuple[int, ...], dtype: np.dtype, weak_type: bool) -> Any:
    """The type of a result that is an array."""
    return core.ShapedArray(shape, dtype, weak_type=weak_type)


def result_types(avals: Sequence[Any]) -> tuple[ResultType, ...]:
    """The information that `write` needs about results of these types."""
    return tuple(
        ResultType(aval, None)
        if isinstance(aval.dtype, np.dtype)
        else ResultType(core.physical_aval(aval), aval.dtype)
        for aval in avals
    )


def read(
    args: Sequence[Any], dtypes: Sequence[np.dtype | np.ndarray], any_platform: bool
) -> tuple[list[np.ndarray], Place]:
    """The arguments of a jitted call as NumPy arrays, and where its results belong.

    Arrays on a CPU are not copied; a key array becomes its integers. The arrays must not
    be written to. For an unused argument, the entry of the dtypes is an array, and that array is
    the result. jit looks neither at the value nor at the device of an unused argument.

    Raises:
      Elsewhere: an array lies on several devices, on another device than the rest, or (unless
        ``any_platform``) not on a CPU. Or jit must look at a value itself: it was deleted, its
        computation failed, it is of an unknown kind, or the user guards transfers.
      OverflowError: a Python integer doesn't fit the dtype.
    """
    # Most calls get arrays of the default device. A loop that asks less of each costs half.
    try:
        arrays = [np.asarray(arg) for arg in args if type(arg) is ArrayImpl and not arg._committed]
        if len(arrays) == len(dtypes):
            return arrays, _checked(_place(get_default_device()), any_platform)
    except RuntimeError:
        pass  # one has no value, which the loop below says unless it is unused
    arrays = []
    home: Any = None
    for arg, dtype in zip(args, dtypes, strict=True):
        if type(dtype) is np.ndarray:
            arrays.append(dtype)
            continue
        kind = type(arg)
        if kind is prng.PRNGKeyArray:
            arg = arg._base_array
            kind = type(arg)
        if kind is ArrayImpl:
            if arg._committed:
                sharding = arg.sharding
                if home is None:
                    home = sharding
                elif sharding is not home and sharding != home:
                    raise Elsewhere("its arguments are committed to different devices")
            try:
                arrays.append(np.asarray(arg))
            except RuntimeError as error:
                raise Elsewhere(f"an argument has no value: {error}") from error
        elif config.transfer_guard_host_to_device.value not in (None, "allow"):
            raise Elsewhere("transfers to the device are guarded")
        elif isinstance(arg, (np.ndarray, np.generic)):
            arrays.append(np.asarray(arg).astype(dtype, copy=False))
        elif isinstance(arg, (bool, int, float, complex)):
            arrays.append(np.asarray(arg, dtype))
        else:
            raise Elsewhere(f"an argument is of the type {type(arg).__name__}")
    if home is None:
        place = _place(get_default_device())
    elif type(home) is SingleDeviceSharding:
        device: Any = home._device
        place = Place(home, True, (device,), device.platform)
    else:
        raise Elsewhere(f"its arguments lie on {_devices(home)}")
    return arrays, _checked(place, any_platform)


def are_uncommitted(args: Sequence[Any], dtypes: Sequence[np.dtype | np.ndarray]) -> bool:
    """Whether all are arrays of these dtypes, and none is committed to a device."""
    return all([
        arg.dtype == dtype and not arg._committed
        if type(arg) is ArrayImpl
        else type(arg) is np.ndarray and arg.dtype == dtype
        for arg, dtype in zip(args, dtypes, strict=True)
    ])


def _checked(place: Place, any_platform: bool) -> Place:
    if place.platform != "cpu" and not any_platform:
        raise Elsewhere(f"it runs on a device of the platform {place.platform}")
    return place


@functools.cache
def _place(device: Any) -> Place:
    """The place of results that are committed to no device, if this one is the default."""
    return Place(SingleDeviceSharding(device), False, (device,), device.platform)


def _devices(sharding: Any) -> str:
    count = len(sharding.device_set)
    return f"{count} device{'s' * (count != 1)} by a {type(sharding).__name__}"


# The number of references to a result while `write` looks at it, if nobody else has one. They are
# the list (or the only view), the loop's variable and getrefcount's own argument.
_OWN_REFERENCES = 3


def write(results: list[Any], types: Sequence[ResultType], place: Place) -> list[Any]:
    """NumPy results as JAX arrays of the given types.

    A JAX array must not share memory with an array that could still be written to. So a result is
    copied unless ``results`` holds the only reference to it, and it owns its memory or is the only
    view of an array that does.
    """
    sharding, committed, devices, _ = place
    out = []
    any_shared = False
    for at, (aval, key_type) in enumerate(types):
        result = results[at]  # not from zip, whose tuple would be one more reference
        shared = False
        if type(result) is np.ndarray:
            base = result.base
            if sys.getrefcount(result) > _OWN_REFERENCES or base is not None and not (
                type(base) is np.ndarray
                and base.flags.owndata
                and sys.getrefcount(base) <= _OWN_REFERENCES
            ):
                shared = any_shared = True
            base = None  # else it would be held while the next result is looked at
        try:
            array = _put(aval, sharding, [result], devices, committed, shared)
        except RuntimeError:
            array = _put_despite_guard(aval, sharding, devices, result, committed, shared)
        out.append(array if key_type is None else prng.PRNGKeyArray(key_type._impl, array))
    if any_shared:
        # XLA would free a copied buffer at its next call only. This frees it now.
        _jax.collect_garbage()
    return out


def put(
    aval: Any, sharding: Any, devices: Sequence[Any], array: Any, committed: bool, copied: bool
) -> Any:
    """A NumPy array as a JAX array on one device. The JAX array uses the same memory if it can,
    unless ``copied`` asks for a copy."""
    try:
        return _put(aval, sharding, [array], devices, committed, copied)
    except RuntimeError:
        return _put_despite_guard(aval, sharding, devices, array, committed, copied)


_put = xla_client.batched_device_put


def _put_despite_guard(
    aval: Any, sharding: Any, devices: Sequence[Any], array: Any, committed: bool, copied: bool
) -> Any:
    """Does what `put` does. The user's guard isn't asked, since it is for the user's transfers."""
    with jax.transfer_guard_host_to_device("allow"):
        return _put(aval, sharding, [array], devices, committed, copied)
