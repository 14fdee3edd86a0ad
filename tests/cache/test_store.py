"""Files under keys: what is read is what was written, or nothing."""

from __future__ import annotations

import multiprocessing
import os

import pytest

from pallas_shim.cache import store
from pallas_shim.cache.store import Refused, Store

DATA = bytes(range(256)) * 40


@pytest.fixture
def kept(tmp_path):
    directory = tmp_path / "programs"
    made = Store(str(directory))
    assert made.write("key", DATA)
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
        lambda content: content.replace(b"program 1", b"program 0"),
    ],
)
def test_what_was_damaged_is_not_read_and_written_anew(kept, damage):
    made, path = kept
    content = path.read_bytes()
    path.write_bytes(damage(content))
    assert path.read_bytes() != content and made.read("key") is None
    assert made.write("key", DATA) and made.read("key") == DATA


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


def test_a_directory_that_went_away_is_survived(kept):
    made, path = kept
    path.unlink()
    path.parent.rmdir()
    assert made.read("key") is None and not made.write("key", DATA)


def test_what_was_not_used_for_longest_goes(kept, monkeypatch):
    made, path = kept
    for number in range(4):
        assert made.write(str(number), DATA)
        os.utime(path.with_name(f"{number}{path.suffix}"), (number, number))
    os.utime(path, (0, 0))
    monkeypatch.setattr(store, "_LARGEST", 3 * path.stat().st_size)
    monkeypatch.setattr(store, "_CLEANING", 1)
    assert made.read("0") == DATA  # so it was used just now
    assert made.write("last", DATA)
    assert {p.stem for p in path.parent.iterdir()} == {"0", "3", "last"}


def _write_and_read(directory, number):
    made = Store(directory)
    for _ in range(50):
        assert made.write("key", bytes([number]) * 10_000)
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
