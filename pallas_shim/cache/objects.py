"""Object code of native programs, kept on disk by the text that LLVM compiled."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os

from pallas_shim.cache.store import Store

log = logging.getLogger("pallas_shim")

_KIND = "-object"
_ADDRESS = "inttoptr (i64"  # of a number, in LLVM's text


class Objects:
    """The object code in a directory. A file under another name than its own, or a damaged one, is
    removed when it is asked for."""

    def __init__(self, store: Store):
        self._store = store

    def are_there(self) -> bool:
        """Whether there is any."""
        with contextlib.suppress(OSError), os.scandir(self._store.directory) as entries:
            return any(_KIND in entry.name for entry in entries)
        return False

    def read(self, facts: tuple[str, ...], text: str) -> bytes | None:
        """The code of a text. ``facts``: all else that it depends on, which are LLVM and the
        processor."""
        key = _key(facts, text)
        code = self._store.read(key)
        if code is None:
            self._store.remove(key)
            return None
        return bytes(code)

    def write(self, facts: tuple[str, ...], text: str, code: bytes) -> None:
        """Keeps code, unless it can be of use to this process only."""
        if _ADDRESS in text:
            failure: str | None = "it holds an address, which means nothing elsewhere"
        else:
            failure = self._store.write(_key(facts, text), code)
        if failure is not None:
            log.info("native code isn't kept: %s", failure)


def _key(facts: tuple[str, ...], text: str) -> str:
    return hashlib.sha256(repr((facts, text)).encode()).hexdigest() + _KIND
