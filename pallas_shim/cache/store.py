"""Files that hold bytes under a key: private to the user, checked, bounded in size."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tempfile

_MAGIC = b"pallas_shim program 1\n"
_SUFFIX = ".program"

# When the files take up more bytes than this, those that were not used for longest go.
_LARGEST = 256 << 20
# Files are counted once in so many that are written.
_CLEANING = 16


class Refused(Exception):
    """The directory isn't one to keep programs in; says why."""


class Store:
    """A directory of files, made if it isn't there.

    Raises:
      Refused: others could write to it, or it can't be made.
    """

    def __init__(self, directory: str):
        self.directory = os.path.abspath(os.path.expanduser(directory))
        self._written = 0
        try:
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

    def read(self, key: str) -> bytes | None:
        """What was written under a key; None if that is nothing, or not what was written."""
        path = self._path(key)
        try:
            with open(path, "rb") as file:
                if os.fstat(file.fileno()).st_uid != os.getuid():
                    return None
                content = file.read()
            os.utime(path)
        except OSError:
            return None
        start = len(_MAGIC) + hashlib.sha256().digest_size
        data = content[start:]
        if content[:start] != _MAGIC + _checksum(key, data):
            return None
        return data

    def write(self, key: str, data: bytes) -> bool:
        """Keeps bytes under a key, in the place of what was there. Whether that succeeded."""
        temporary = None
        try:
            handle, temporary = tempfile.mkstemp(suffix=".new", dir=self.directory)
            with os.fdopen(handle, "wb") as file:
                file.write(_MAGIC + _checksum(key, data) + data)
            os.replace(temporary, self._path(key))
        except OSError:
            if temporary is not None:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
            return False
        if self._written % _CLEANING == 0:
            self._clean()
        self._written += 1
        return True

    def _path(self, key: str) -> str:
        return os.path.join(self.directory, key + _SUFFIX)

    def _clean(self) -> None:
        found = []
        with os.scandir(self.directory) as entries:
            for entry in entries:
                if entry.name.endswith((_SUFFIX, ".new")):
                    with contextlib.suppress(OSError):  # another process removed it
                        status = entry.stat()
                        found.append((status.st_mtime, status.st_size, entry.path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= _LARGEST:
                break
            with contextlib.suppress(OSError):
                os.unlink(path)
            total -= size


def _checksum(key: str, data: bytes) -> bytes:
    return hashlib.sha256(key.encode() + b"\0" + data).digest()
