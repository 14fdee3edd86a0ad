"""The key of a jitted call's program: a digest of all that tracing the call depends on."""

from __future__ import annotations

import locale
import sys
import warnings
from typing import Any

import jax
import numpy as np

from pallas_shim.cache import classes, functions, pristine, process, values  # noqa: F401 (they read)
from pallas_shim.cache.audit import audit
from pallas_shim.cache.fingerprint import Fingerprint, Unkeyable
from pallas_shim.cache.watch import ThreadWatch
from pallas_shim.jax_compat import inputs
from pallas_shim.jax_compat.hooks import jit_calls


class Key:
    """Identifies the program of a call.

    ``digest`` is its name in the store. Before a program is written, `watch` must have watched
    the tracing, and `verify` must have passed.
    """

    def __init__(self, call: jit_calls.Call) -> None:
        """Reads all that the call depends on.

        Raises:
          Unkeyable: some part can't be read.
        """
        self._call = call
        fingerprint = _fingerprint(call, after=False)
        self.digest = fingerprint.digest()
        self._found = fingerprint.found
        self.watch = ThreadWatch(self._found)

    def verify(self) -> None:
        """Verifies that this key covers all that the traced program depends on.

        Raises:
          Unkeyable: tracing did something that may depend on more than what was read, or it changed
            what was read.
        """
        audit(self._found)
        if self.watch.problem is not None:
            raise Unkeyable(self.watch.problem)
        if _fingerprint(self._call, after=True).digest() != self.digest:
            raise Unkeyable("tracing it changes what it reaches")


def _fingerprint(call: jit_calls.Call, after: bool) -> Fingerprint:
    try:
        return _read(call, after)
    except Unkeyable:
        raise
    except Exception as error:  # raised by methods of the user's classes
        raise Unkeyable(f"reading it failed with {type(error).__name__}: {error}") from None


def _read(call: jit_calls.Call, after: bool) -> Fingerprint:
    change = pristine.changed()
    if change is not None:
        raise Unkeyable(change)
    fingerprint = Fingerprint(after)
    fingerprint.add(_process(), "the process")
    fingerprint.add(list(inputs.configuration()), "JAX's configuration")
    fingerprint.add_jitted(call.function, call.jit_info, called=True)
    static, dynamic = inputs.split_arguments(call.jit_info, call.args, call.kwargs)
    fingerprint.add(static, "a static argument")
    fingerprint.add(inputs.tree_parts(jax.tree.structure(dynamic)), "an argument's container")
    for aval in call.avals:
        if not inputs.is_array_type(aval):
            raise Unkeyable(f"an argument is of the type {aval}")
        fingerprint.emit(str(aval.shape), repr(aval.dtype), str(aval.weak_type), str(aval))
    return fingerprint


def _process() -> list[Any]:
    """What every traced function may depend on."""
    return [
        *process.facts(),
        repr(sys.flags),
        sys.getrecursionlimit(),
        sys.get_int_max_str_digits(),
        np.geterr(),
        repr(np.get_printoptions()),
        repr(warnings.filters),
        locale.setlocale(locale.LC_ALL),
    ]
