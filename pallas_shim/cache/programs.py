"""Programs kept by their jaxprs. The key holds all that a program is made from.

A program is read after JAX has traced. That saves lowering, the passes and code generation.
Programs are written when the process ends. Until then, the process reads them from its memory: a
function that isn't jitted may make the same kernel anew in each call.
"""

from __future__ import annotations

import functools
import logging
import marshal
import operator
import os
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pallas_shim import settings
from pallas_shim.cache import encode, later, process, verify
from pallas_shim.cache.store import Refused, Store, store
from pallas_shim.evaluator.program import Program
from pallas_shim.evaluator.registry import IMPL_RULES, LOWERING_RULES
from pallas_shim.jax_compat import contents
from pallas_shim.reports.uses import Use

log = logging.getLogger("pallas_shim")

# A file holds these seconds, a program, the code of its loops, and the size of that code. The code
# runs in another process only if it is that of the source which the process writes for a loop.
_SECONDS, _SIZE = struct.Struct("<d"), struct.Struct("<q")


class _Unwritten:
    """A program that is to be written. ``seconds``: how long making it took. ``sources``: those of
    the equations that it is made of."""

    def __init__(self, program: Program, seconds: float, sources: Sequence[Any]):
        self._program, self._seconds, self._sources = program, seconds, sources

    @functools.cached_property
    def data(self) -> bytes:
        """The bytes to be written. Raises NotData if the program holds what can't be kept."""
        loops = marshal.dumps(self._program.loops)
        parts = _encoded(self._program, self._sources), loops, _SIZE.pack(len(loops))
        return _SECONDS.pack(self._seconds) + b"".join(parts)


def _encoded(program: Program, sources: Sequence[Any]) -> bytes:
    places: dict[int, int] = {}
    for place, source in enumerate(sources):
        places.setdefault(id(source), place)
    return encode.encode(program, places)


_unwritten: dict[tuple[Store, str], _Unwritten] = {}
os.register_at_fork(after_in_child=_unwritten.clear)  # a child drops the work of its parent


class CachedProgram:
    """The program of one jaxpr. `get` reads or makes it, and `tell` reports what happened."""

    def __init__(
        self, jaxpr: Any, name: str, axes: Mapping[Any, int], make: Callable[[], Program]
    ):
        """``make`` makes the program, from all that the other arguments describe."""
        self._name = name
        self._make: Callable[[], Program] | None = make
        self._key: str | None = None
        self._became: str | None = None
        self._program: Program | None = None
        self._seconds = 0.0
        setting = settings.current().cache
        if setting is None:
            return
        try:
            self._store: Store = store(setting)
            beside = (name, tuple(axes.items()), process.facts(), contents.configuration())
            read = contents.Contents(jaxpr, *beside)
            _require_own_rules(read)
        except (Refused, contents.Unreadable) as error:
            self._became = self._not_kept(str(error))
            return
        self._key = read.digest
        self._sources = list(map(operator.attrgetter("source_info"), read.equations))

    def get(self) -> Program:
        """Returns the program.

        Raises:
          verify.CacheError: under PALLAS_NUMPY_CACHE_VERIFY=1, the program on disk differs from the
            one that is made.
          Exception: any that ``make`` raises.
        """
        make = self._make
        assert make is not None
        kept = None if self._key is None else self._read(self._key, make)
        if kept is not None:
            self._became = "read after tracing"
            return kept
        start = time.perf_counter()
        program = make()
        self._seconds = time.perf_counter() - start
        if self._key is not None:
            self._became = "to be written when the process ends"
            self._program = program
        return program

    def tell(self, use: Use) -> None:
        """Records the outcome in the report, and has a new program written at exit."""
        use.traced_cache = self._became
        self._make = None  # it holds the jaxpr
        program, key = self._program, self._key
        if program is not None and key is not None:
            self._program = None
            unwritten = _Unwritten(program, self._seconds, self._sources)
            _unwritten[self._store, key] = unwritten
            later.at_exit(lambda seconds: self._write(key, unwritten, use))

    def _write(self, key: str, unwritten: _Unwritten, use: Use) -> None:
        last = _unwritten.get((self._store, key))
        failure = "it was found to be wrong" if last is None else None
        if last is unwritten:  # or the last one that was made is written soon
            try:
                failure = self._store.write(key, unwritten.data)
            except encode.NotData as error:
                failure = str(error)
            del _unwritten[self._store, key]
        use.traced_cache = "written after tracing" if failure is None else self._not_kept(failure)

    def _not_kept(self, reason: str) -> str:
        log.info("the program of %s isn't kept: %s", self._name, reason)
        return f"not kept: {reason}"

    def _read(self, key: str, make: Callable[[], Program]) -> Program | None:
        data = self._bytes(key)
        if data is None:
            return None
        try:
            (seconds,), (size,) = _SECONDS.unpack_from(data), _SIZE.unpack(data[-_SIZE.size :])
            end = len(data) - _SIZE.size - size
            kept = data[_SECONDS.size : end]
            program = encode.decode(kept, self._sources)
            program.loops.update(marshal.loads(data[end:]))
        except Exception as error:  # the bytes are intact, so the bug is ours: write anew
            log.warning("a kept program can't be read: %s: %s", type(error).__name__, error)
            return None

        def difference() -> str | None:
            made = _encoded(make(), self._sources)
            if made == kept:
                return None
            # Which equations share a source may differ. What is computed may not.
            back = [encode.decode(each, self._sources) for each in (kept, made)]
            one, other = (encode.encode(program, {}) for program in back)
            return None if one == other else verify.difference(*back)

        def remove() -> None:
            _unwritten.pop((self._store, key), None)
            self._store.remove(key)

        verify.CacheCheck(self._name, seconds, difference, remove).now_or_later()
        return program

    def _bytes(self, key: str) -> bytes | memoryview | None:
        unwritten = _unwritten.get((self._store, key))
        if unwritten is None:
            return self._store.read(key)
        try:
            return unwritten.data
        except encode.NotData:
            return None


def get_ready() -> None:
    """Reads what all keys hold. It runs with Pallas' import, so that no first call waits for it."""
    if settings.current().cache is not None:
        process.facts()
        contents.get_ready()


def _require_own_rules(read: contents.Contents) -> None:
    """Raises Unreadable if another package's rule lowers one of the primitives in the jaxpr."""
    for name in read.primitives.values():
        rule = IMPL_RULES.get(name)
        for maker in (LOWERING_RULES.get(name), None if rule is None else rule.make):
            if maker is not None and not maker.__module__.startswith("pallas_shim."):
                raise contents.Unreadable(f"its {name}, whose rule is of {maker.__module__}")
