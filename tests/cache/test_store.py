"""Files under keys: what is read is what was written, or nothing."""

from __future__ import annotations

import errno
import multiprocessing
import os
import tempfile

import pytest

from pallas_shim.cache import store
from pallas_shim.cache.store import Refused, Store

DATA = bytes(range(256)) * 40


@pytest.fixture
def kept(tmp_path):
    directory = tmp_path / "programs"
    made = Store(str(directory))
    assert made.write("key", DATA) is None
    (path,) = directory.iterdir()
    return made, path


def test_what_is_written_is_read(kept):
    made, path = kept
    assert made.read("key") == DATA and made.read("other") is None
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-1],
        lambda content: content[:10],
        lambda content: content + b"x",
        lambda content: b"another program 1\n" + content,
        lambda content: content[:-100] + b"\x01" + content[-99:],
        lambda content: content.replace(b"program  3", b"program  2"),
    ],
)
def test_what_was_damaged_is_not_read_and_written_anew(kept, damage):
    made, path = kept
    content = path.read_bytes()
    path.write_bytes(damage(content))
    assert path.read_bytes() != content and made.read("key") is None
    assert made.write("key", DATA) is None and made.read("key") == DATA


def test_a_file_under_another_key_is_not_read(kept):
    made, path = kept
    path.rename(path.with_name("other" + path.suffix))
    assert made.read("other") is None


def test_a_directory_that_others_may_write_to_is_refused(tmp_path):
    tmp_path.chmod(0o777)
    with pytest.raises(Refused, match="chmod"):
        Store(str(tmp_path))


def test_a_directory_of_another_user_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(Refused, match="another user"):
        Store(str(tmp_path))


def test_a_file_in_the_place_of_the_directory_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Refused):
        Store(str(tmp_path / "file"))


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_file_is_not_read(kept, make):
    made, path = kept
    path.unlink()
    make(path)
    assert made.read("key") is None  # at once: a FIFO has no writer, a device no end
    if not path.is_dir() or path.is_symlink():
        assert made.write("key", DATA) is None and made.read("key") == DATA
    else:
        assert "can't be written to" in made.write("key", DATA)
    assert [p for p in path.parent.iterdir() if p.suffix == ".new"] == []


def test_a_link_is_not_followed(kept):
    made, path = kept
    path.rename(path.with_name("target"))
    path.symlink_to("target")
    assert made.read("key") is None


def test_a_directory_to_read_only_is_read(kept, monkeypatch):
    made, path = kept

    def refuse(*args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    for name in ("utime", "replace"):
        monkeypatch.setattr(os, name, refuse)
    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    assert Store(made.directory).read("key") == DATA
    assert "Read-only" in made.write("key", DATA) and made.read("key") == DATA


def test_a_full_disk_leaves_nothing(kept, monkeypatch):
    made, path = kept
    real = os.fdopen

    def full(handle, mode):
        file = real(handle, mode)
        real_write = file.write

        class Full:
            def __enter__(self):
                return self

            def __exit__(self, *error):
                file.close()

            def write(self, data):
                real_write(data[:100])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        return Full()

    monkeypatch.setattr(os, "fdopen", full)
    assert "No space" in made.write("key", DATA[::-1]) and made.read("key") == DATA
    assert list(path.parent.iterdir()) == [path]


def test_what_is_too_large_is_not_kept(kept, monkeypatch):
    made, path = kept
    monkeypatch.setattr(store, "_LARGEST_FILE", 100)
    assert "MB" in made.write("other", DATA) and made.read("other") is None


def test_the_default_directory():
    assert store.default_directory({"XDG_CACHE_HOME": "/x"}) == "/x/pallas_shim/programs"
    home = os.path.expanduser("~/.cache/pallas_shim/programs")
    assert store.default_directory({}) == home
    # The specification has relative ones ignored.
    assert store.default_directory({"XDG_CACHE_HOME": "x"}) == home


def test_without_a_home_there_is_no_directory(monkeypatch):
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(Refused, match="home"):
        store.default_directory({})


def test_a_directory_that_can_not_be_used_is_told_of_once(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for _ in range(2):
        with pytest.raises(Refused):
            store.store(str(tmp_path / "file"))
    assert capsys.readouterr().err.count("no program is kept") == 1


def test_a_directory_that_went_away_is_survived(kept):
    made, path = kept
    path.unlink()
    path.parent.rmdir()
    assert made.read("key") is None and "can't be written to" in made.write("key", DATA)


def test_what_was_not_used_for_longest_goes(kept, monkeypatch):
    made, path = kept
    for number in range(4):
        assert made.write(str(number), DATA) is None
        os.utime(path.with_name(f"{number}{path.suffix}"), (number, number))
    os.utime(path, (0, 0))
    monkeypatch.setattr(store, "_LARGEST", 3 * path.stat().st_size)
    monkeypatch.setattr(store, "_CLEANING", 1)
    assert made.read("0") == DATA  # so it was used just now
    assert made.write("last", DATA) is None
    assert {p.stem for p in path.parent.iterdir()} == {"0", "3", "last"}


def _write_and_read(directory, number):
    made = Store(directory)
    for _ in range(50):
        assert made.write("key", bytes([number]) * 10_000) is None
        data = made.read("key")
        assert data is not None and len(set(data)) == 1 and len(data) == 10_000


def test_processes_write_at_the_same_time(tmp_path):
    context = multiprocessing.get_context("spawn")
    several = [
        context.Process(target=_write_and_read, args=(str(tmp_path / "p"), i)) for i in range(3)
    ]
    for process in several:
        process.start()
    for process in several:
        process.join()
    assert [process.exitcode for process in several] == [0, 0, 0]
    assert len(list((tmp_path / "p").iterdir())) == 1
