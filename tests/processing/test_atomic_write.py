"""A file is the old one or the whole new one, and nothing else stays in its folder."""

import errno
import os

import pytest

from contextseg.processing.atomic_write import atomic_write


def test_the_file_is_replaced_at_the_end_of_the_block(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with atomic_write(target) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
        assert temporary.parent == tmp_path
    assert target.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.txt"]


def write_half(target, error):
    with atomic_write(target) as temporary:
        temporary.write_text("half")
        raise error


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_exception_leaves_the_old_file_and_no_temporary_one(tmp_path, error):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(error):
        write_half(target, error)
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_an_error_of_the_disk_names_the_file(tmp_path):
    with pytest.raises(OSError, match="No space left on device: '.*a.txt'$"):
        write_half(tmp_path / "a.txt", OSError(errno.ENOSPC, "No space left on device"))


def test_an_error_of_the_temporary_file_names_the_file_and_one_of_another_file_keeps_its_name(tmp_path):
    with (
        pytest.raises(OSError, match="'.*missing/a.txt'$"),
        atomic_write(tmp_path / "missing/a.txt") as temporary,
    ):
        temporary.write_text("half")
    with pytest.raises(OSError, match="'.*b.txt'$"), atomic_write(tmp_path / "a.txt"):
        (tmp_path / "b.txt").read_text()


def test_the_content_is_on_disk_before_the_name(tmp_path, monkeypatch):
    target, seen = tmp_path / "a.txt", []
    monkeypatch.setattr(os, "fsync", lambda descriptor: seen.append((os.fstat(descriptor), target.exists())))
    with atomic_write(target) as temporary:
        temporary.write_text("new")
    ((flushed, existed),) = seen
    assert flushed.st_ino == target.stat().st_ino
    assert not existed
