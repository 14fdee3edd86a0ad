"""Messages between our own processes: pickled objects with their length, over pipes."""

from __future__ import annotations

import os
import pickle
import select
import struct
import threading
import time
from typing import Any

_LENGTH = struct.Struct("<Q")


class Closed(Exception):
    """The process at the other end has gone."""


class Channel:
    """Two pipes to another process. Threads may send at the same time, one may receive."""

    def __init__(self, reading: int, writing: int):
        self._reading, self._writing = reading, writing
        self._sending = threading.Lock()

    def send(self, value: Any) -> None:
        """Raises Closed if nobody reads."""
        data = pickle.dumps(value)
        with self._sending:
            try:
                self._write(_LENGTH.pack(len(data)) + data)
            except OSError as error:
                raise Closed from error

    def receive(self, seconds: float | None = None) -> Any:
        """The next message.

        Raises:
          Closed: there is none, and nobody writes.
          TimeoutError: none has begun within ``seconds``.
        """
        if seconds is not None and not select.select([self._reading], [], [], seconds)[0]:
            raise TimeoutError
        (length,) = _LENGTH.unpack(self._read(_LENGTH.size))
        return pickle.loads(self._read(length))

    def close(self) -> None:
        os.close(self._reading)
        os.close(self._writing)

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._writing, view) :]

    def _read(self, length: int) -> bytes:
        parts = []
        while length:
            try:
                part = os.read(self._reading, min(length, 1 << 20))
            except OSError as error:
                raise Closed from error
            if not part:
                raise Closed
            parts.append(part)
            length -= len(part)
        return b"".join(parts)


def remaining(until: float) -> float:
    """The seconds until a time of `time.monotonic`, not below 0."""
    return max(until - time.monotonic(), 0.0)
