"""Keeps the programs of jitted calls for later processes: what beside the program, and where."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from pallas_shim.cache import encode
from pallas_shim.cache.fingerprint import Unkeyable
from pallas_shim.cache.key import Key
from pallas_shim.cache.store import Refused, Store
from pallas_shim.evaluator.program import Program
from pallas_shim.jax_compat import call_info, inputs
from pallas_shim.jax_compat.hooks import jit_calls
from pallas_shim.report import Use

log = logging.getLogger("pallas_shim")


class Facts(NamedTuple):
    """What is known of a call beside its program.

    ``kernels``: name, source and grid of each. ``results``: shape, dtype and weak type of each;
    ``out_tree``: the results' containers, with their positions in the place of the results.
    ``deleted``: the donated arguments. ``unused``: those that nothing depends on. Both count what
    the function captured first. ``consts``: the arrays that it captured.
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


_store = functools.cache(Store)


class Keep:
    """One call that JAX has not traced: its program is read if it is kept, else written.

    The steps are `read`, then `encode`, before the program first runs, and then `write`.
    """

    def __init__(self, call: jit_calls.Call, directory: str):
        self._program: bytes | None = None
        self._reason: str | None = None
        try:
            self._store = _store(directory)
            self._key = Key(call)
        except (Unkeyable, Refused) as error:
            self._reason = str(error)

    def read(self) -> Kept | None:
        """What an earlier process kept of this call."""
        if self._reason is not None:
            return None
        data = self._store.read(self._key.digest)
        if data is None:
            return None
        size = int.from_bytes(data[:8], "little")
        try:
            facts = Facts(*encode.decode_data(data[8 : 8 + size]))
            program = encode.decode(data[8 + size :])
        except Exception as error:  # it is intact, so this is a bug of ours: it is written anew
            log.warning("a kept program can't be read: %s: %s", type(error).__name__, error)
            return None
        return Kept(program, facts, jax.tree.structure(facts.out_tree), list(facts.consts))

    def tracing(self) -> contextlib.AbstractContextManager[Any]:
        """To be entered around the tracing of this call."""
        return contextlib.nullcontext() if self._reason is not None else self._key.watch

    def encode(self, program: Program) -> None:
        """Takes the program of this call as it is now."""
        if self._reason is None:
            try:
                self._program = encode.encode(program)
            except encode.NotData as error:
                self._reason = str(error)

    def write(
        self,
        use: Use,
        call: call_info.JitCall,
        deleted: tuple[int, ...],
        unused: tuple[int, ...],
        results: Sequence[Any],
        out_tree: Any,
        consts: Sequence[Any],
    ) -> str:
        """Keeps the program, with what is known of the call. What became of it, for the report."""
        try:
            if self._reason is not None:
                return self._not_kept(use)
            if self._program is None:
                raise encode.NotData("it was planned before this call")
            if sum(call.donated) != len(deleted):
                raise encode.NotData("donated arguments that can't be used")
            self._key.verify()
            facts = Facts(
                call.name,
                tuple((k.name, k.source, k.grid) for k in use.kernels),
                tuple(map(_result, results)),
                _out_tree(out_tree),
                deleted,
                unused,
                tuple(map(_const, consts)),
            )
            data = encode.encode_data(tuple(facts))
        except (encode.NotData, Unkeyable) as error:
            self._reason = str(error)
            return self._not_kept(use)
        data = len(data).to_bytes(8, "little") + data
        if self._store.write(self._key.digest, data + self._program):
            return "written"
        self._reason = f"{self._store.directory} can't be written to"
        return self._not_kept(use)

    def _not_kept(self, use: Use) -> str:
        log.info("the program of %s isn't kept: %s", use.function, self._reason)
        return f"not kept: {self._reason}"


def _result(aval: Any) -> tuple[tuple[int, ...], np.dtype, bool]:
    if not inputs.is_array_type(aval):
        raise encode.NotData(f"a result of the type {aval}")
    return tuple(aval.shape), aval.dtype, bool(aval.weak_type)


def _out_tree(tree: Any) -> Any:
    data = jax.tree.unflatten(tree, range(tree.num_leaves))
    if not _is_plain(data):
        raise encode.NotData("results in containers of the user's own")
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
        raise encode.NotData(f"a captured {type(const).__name__} that isn't an array of its own")
    return value
