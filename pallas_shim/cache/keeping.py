"""Kept programs for calls of jitted functions. A call with a kept program need not be traced."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from pallas_shim import settings
from pallas_shim.cache import encode, later, verify
from pallas_shim.cache.fingerprint import Unkeyable
from pallas_shim.cache.key import Key
from pallas_shim.cache.store import Refused, Store, store
from pallas_shim.evaluator.program import Program
from pallas_shim.jax_compat import call_info, inputs
from pallas_shim.jax_compat.hooks import jit_calls
from pallas_shim.jax_compat.kernel_info import KernelInfo
from pallas_shim.reports.uses import Use

log = logging.getLogger("pallas_shim")


class Facts(NamedTuple):
    """All that is known of a call, besides its program.

    ``kernels``: name, source and grid of each. ``results``: shape, dtype and weak type of each.
    ``out_tree``: the containers of the results, with a position in place of each result.
    ``deleted``: the donated arguments. ``unused``: the arguments that nothing depends on. Both
    count the captured arrays first. ``consts``: the captured arrays.
    """

    function: str
    kernels: tuple[tuple[str, str | None, str], ...]
    results: tuple[tuple[tuple[int, ...], np.dtype, bool], ...]
    out_tree: Any
    deleted: tuple[int, ...]
    unused: tuple[int, ...]
    consts: tuple[np.ndarray, ...]


class Kept(NamedTuple):
    program: Program
    facts: Facts
    out_tree: Any
    consts: list[np.ndarray]


class Traced(NamedTuple):
    """A call that JAX has traced, and the program made from the trace.

    ``deleted``, ``unused``: see `Facts`. ``results``: the types of the results.
    """

    call: call_info.JitCall
    program: Program
    deleted: tuple[int, ...]
    unused: tuple[int, ...]
    results: Sequence[Any]
    out_tree: Any
    consts: Sequence[Any]


# Makes a program from what `jit_calls.trace_anew` gives.
Make = Callable[[dict[str, Any], Any, list[Any]], Traced]


class CachedCall:
    """A call that JAX has not traced. Its program is read, or kept once JAX has traced the call."""

    def __init__(self, call: jit_calls.Call, setting: str):
        self._call = call
        self._reason: str | None = None
        self._expected: bytes | None = None  # tracing must make these bytes again
        try:
            self._store = store(setting)
            self._key = Key(call)
        except (Unkeyable, Refused) as error:
            self._reason = str(error)

    def read(self, make: Make) -> Kept | None:
        """Reads what an earlier process kept of this call.

        None: nothing was kept, or JAX has to trace the call to verify what was kept. ``make``
        makes the program of a call that was traced for such a check.
        """
        if self._reason is not None:
            return None
        found = self._store.read(self._key.digest)
        if found is None:
            return None
        data = bytes(found)
        try:
            kept = _decoded(data)
        except Exception as error:  # the bytes are intact, so the bug is ours: write anew
            log.warning("a kept program can't be read: %s: %s", type(error).__name__, error)
            return None
        if settings.current().cache_verify:
            self._expected = data
            return None
        if verify.is_sampled():
            self._verify_later(data, make)
        return kept

    def tracing(self) -> contextlib.AbstractContextManager[Any]:
        """A context for the tracing of this call: it watches what tracing does."""
        return contextlib.nullcontext() if self._reason is not None else self._key.watch

    def traced(self, use: Use, traced: Traced) -> None:
        """Keeps the program, with what is known of the call, and records the outcome in the report.

        Raises:
          verify.CacheError: the program differs from the one that was read.
        """
        try:
            if self._reason is not None:
                raise encode.NotData(self._reason)
            head = encode.encode_data(tuple(_facts(use.kernels, traced)))
            self._key.verify()
            if self._expected is None:
                use.cache = "to be written when the process ends"
                key = self._key.digest  # the key object and the call hold arrays; drop both
                write = functools.partial(_write, self._store, key, use, head, traced.program)
                later.at_exit(lambda seconds: write())
                return
        except (encode.NotData, Unkeyable) as error:
            if self._expected is None:
                _not_kept(use, str(error))
                return
            head = b""
        expected = self._expected
        find = functools.partial(_difference, expected, head, traced.program)
        remove = functools.partial(self._store.remove, self._key.digest)
        verify.CacheCheck(traced.call.name, 0.0, find, remove).check()
        use.cache = "read, and verified"

    def _verify_later(self, data: bytes, make: Make) -> None:
        call = jit_calls.without_arrays(self._call)

        def difference() -> str | None:
            traced = make(*jit_calls.trace_anew(call))
            try:
                head = encode.encode_data(tuple(_facts((), traced)))
            except encode.NotData:
                head = b""
            return _difference(data, head, traced.program)

        name = getattr(call.function, "__name__", "a function")
        remove = functools.partial(self._store.remove, self._key.digest)
        later.at_exit(verify.CacheCheck(name, 0.0, difference, remove).at_exit)


def _write(store: Store, key: str, use: Use, head: bytes, program: Program) -> None:
    try:
        data = len(head).to_bytes(8, "little") + head + encode.encode(program)
    except encode.NotData as error:
        _not_kept(use, str(error))
        return
    failure = store.write(key, data)
    if failure is None:
        use.cache = "written"
    else:
        _not_kept(use, failure)


def _not_kept(use: Use, reason: str) -> None:
    log.info("the program of %s isn't kept: %s", use.function, reason)
    use.cache = f"not kept: {reason}"


def _decoded(data: bytes) -> Kept:
    size = int.from_bytes(data[:8], "little")
    facts = Facts(*encode.decode_data(data[8 : 8 + size]))
    program = encode.decode(data[8 + size :])
    return Kept(program, facts, jax.tree.structure(facts.out_tree), list(facts.consts))


def _difference(data: bytes, head: bytes, program: Program) -> str | None:
    """The difference between the kept facts and program and those of the call as traced now."""
    kept = _decoded(data)
    now = Facts(*encode.decode_data(head)) if head else None
    if now is None:
        return "what it returns or captures can't be kept"
    for name, one, other in zip(Facts._fields, kept.facts, now, strict=True):
        # Lines may move without changing what is computed.
        if name != "kernels" and encode.encode_data(one) != encode.encode_data(other):
            return f"it has other {name.replace('_', ' ')}"
    made = encode.decode(encode.encode(program))
    if encode.encode(made, {}) == encode.encode(kept.program, {}):
        return None
    return verify.difference(kept.program, program)


def _facts(kernels: Sequence[KernelInfo], traced: Traced) -> Facts:
    if sum(traced.call.donated) != len(traced.deleted):
        raise encode.NotData("donated arguments that can't be used")
    return Facts(
        traced.call.name,
        tuple((k.name, k.source, k.grid) for k in kernels),
        tuple(map(_result, traced.results)),
        _out_tree(traced.out_tree),
        traced.deleted,
        traced.unused,
        tuple(map(_const, traced.consts)),
    )


def _result(aval: Any) -> tuple[tuple[int, ...], np.dtype, bool]:
    if not inputs.is_array_type(aval):
        raise encode.NotData(f"a result of the type {aval}")
    return tuple(aval.shape), aval.dtype, bool(aval.weak_type)


def _out_tree(tree: Any) -> Any:
    data = jax.tree.unflatten(tree, range(tree.num_leaves))
    if not _is_plain(data):
        raise encode.NotData("results in the user's own kind of container")
    return data


def _is_plain(data: Any) -> bool:
    if type(data) in (tuple, list):
        return all(map(_is_plain, data))
    if type(data) is dict:
        return all(type(k) in (str, int) for k in data) and _is_plain(list(data.values()))
    return data is None or type(data) is int


def _const(const: Any) -> np.ndarray:
    value = const if type(const) is np.ndarray else inputs.captured_value(const)
    if value is None:
        raise encode.NotData(f"a captured {type(const).__name__} that isn't a plain array")
    return value
