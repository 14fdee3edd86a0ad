"""Files that hold bytes under a key: private to the user, checked, bounded in size."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import stat
import sys
import tempfile
import time
from collections.abc import Mapping

# With the checksum and the seconds of a program it takes 64 bytes, so that arrays stay aligned.
_MAGIC = b"pallas_shim program  3\n\n"
_SUFFIX = ".program"

# The size of the directory in bytes. Beyond it, the least recently used files are removed.
_LARGEST = 256 << 20
# Larger files aren't kept, because they would drive out too many others.
_LARGEST_FILE = 32 << 20
# The files are counted once in this many writes.
_CLEANING = 16

# Reading a file sets its time, unless that was set in so many seconds before.
_JUST_NOW = 3600.0

_READING = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class Refused(Exception):
    """Programs can't be kept in the directory; the message says why."""


def default_directory(environ: Mapping[str, str] = os.environ) -> str:
    """The directory for programs if the user names none.

    Raises:
      Refused: the user has no home directory.
    """
    home = environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(home):
        home = os.path.join(os.path.expanduser("~"), ".cache")
    if not os.path.isabs(home):
        raise Refused("there is no home directory; PALLAS_NUMPY_CACHE names another one")
    return os.path.join(home, "pallas_shim", "programs")


@functools.cache
def say_once(message: str) -> None:
    """Prints a message to stderr, the first time only."""
    if sys.stderr is not None:
        print(f"pallas_shim: {message}", file=sys.stderr)


class Store:
    """A directory of files. It is created if it doesn't exist.

    Raises:
      Refused: other users could write to it, or it can't be created.
    """

    def __init__(self, directory: str):
        self.directory = os.path.abspath(os.path.expanduser(directory))
        self._written = 0
        try:
            try:
                status = os.stat(self.directory)
            except FileNotFoundError:
                os.makedirs(self.directory, mode=0o700, exist_ok=True)
                status = os.stat(self.directory)
        except OSError as error:
            raise Refused(f"{self.directory} can't be used: {error.strerror}") from error
        if not stat.S_ISDIR(status.st_mode):
            raise Refused(f"{self.directory} isn't a directory")
        if status.st_uid != os.getuid():
            raise Refused(f"{self.directory} belongs to another user")
        if status.st_mode & 0o022:
            raise Refused(f"others may write to {self.directory}: chmod go-w it")

    def read(self, key: str) -> memoryview | None:
        """The bytes under a key. None: nothing was written, or the file was damaged."""
        path = self._path(key)
        try:
            handle = os.open(path, _READING)
            try:  # without a file object, which takes as long as the rest
                status = os.fstat(handle)
                if not stat.S_ISREG(status.st_mode) or status.st_uid != os.getuid():
                    return None
                if status.st_mode & 0o022:  # another user may have written to it
                    return None
                content = os.read(handle, status.st_size)
            finally:
                os.close(handle)
        except OSError:
            return None
        start = len(_MAGIC) + _CHECKSUM
        data = memoryview(content)[start:]
        if content[:start] != _MAGIC + _checksum(key, data):
            return None
        if time.time() - status.st_mtime > _JUST_NOW:
            with contextlib.suppress(OSError):  # the directory may be read-only
                os.utime(path)
        return data

    def write(self, key: str, data: bytes) -> str | None:
        """Writes bytes under a key, in place of older ones. Returns why that failed, else None."""
        if len(data) > _LARGEST_FILE:
            return f"its file would be larger than {_LARGEST_FILE >> 20} MB"
        temporary = None
        try:
            handle, temporary = tempfile.mkstemp(suffix=".new", dir=self.directory)
            with os.fdopen(handle, "wb") as file:
                file.write(_MAGIC + _checksum(key, data) + data)
            os.replace(temporary, self._path(key))
        except OSError as error:
            if temporary is not None:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
            return f"{self.directory} can't be written to: {error.strerror}"
        if self._written % _CLEANING == 0:
            self._clean()
        self._written += 1
        return None

    def remove(self, key: str) -> None:
        """Removes the bytes under a key."""
        with contextlib.suppress(OSError):
            os.unlink(self._path(key))

    def _path(self, key: str) -> str:
        return os.path.join(self.directory, key + _SUFFIX)

    def _clean(self) -> None:
        found = []
        with contextlib.suppress(OSError), os.scandir(self.directory) as entries:
            for entry in entries:
                if entry.name.endswith((_SUFFIX, ".new")):
                    with contextlib.suppress(OSError):  # another process removed it
                        status = entry.stat(follow_symlinks=False)
                        found.append((status.st_mtime, status.st_size, entry.path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= _LARGEST:
                break
            with contextlib.suppress(OSError):
                os.unlink(path)
            total -= size


_CHECKSUM = 32


def _checksum(key: str, data: bytes | memoryview) -> bytes:
    # Processors have instructions for this one, which takes half the time of BLAKE2.
    found = hashlib.sha256(hashlib.sha256(key.encode()).digest())
    found.update(data)
    return found.digest()


_store = functools.cache(Store)


def store(setting: str) -> Store:
    """The store for a value of PALLAS_NUMPY_CACHE: ``trace`` or ``function``, or a directory.

    If a directory that the user named can't be used, a message on stderr says so, once. For the
    default directory only the exception says so.

    Raises:
      Refused: see `Store`.
    """
    if setting in ("trace", "function"):
        return _store(default_directory())
    try:
        return _store(setting)
    except Refused as error:
        say_once(f"no program is kept: {error}")
        raise
