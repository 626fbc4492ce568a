"""A file is replaced whole, or is as it was; its mode, links to it, and what is no file stay what they are."""

import errno
import os
import stat

import pytest

from basedbench import atomic


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, monkeypatch, call):
    path = tmp_path / "page.md"
    path.write_bytes(b"before")
    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(OSError, match="No space"):
            atomic.write(path, b"after")
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_mode_and_links_are_kept(tmp_path):
    path, link = tmp_path / "real" / "page.md", tmp_path / "link.md"
    path.parent.mkdir()
    path.write_bytes(b"before")
    path.chmod(0o640)
    link.symlink_to(path)
    atomic.write(link, b"after")
    assert link.is_symlink()
    assert path.read_bytes() == b"after"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert list(path.parent.iterdir()) == [path]


def test_a_read_only_file_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "page.md"
    path.write_bytes(b"before")
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write it
    with pytest.raises(PermissionError):
        atomic.write(path, b"after")
    assert path.read_bytes() == b"before"


def test_a_pipe_is_written_to_and_stays_one(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    atomic.write(path, b"content")
    assert os.read(reader, 100) == b"content"
    os.close(reader)
    assert path.is_fifo()


def test_a_name_too_long_is_refused_and_the_longest_is_not(tmp_path):
    atomic.write(tmp_path / ("x" * 255), b"content")
    with pytest.raises(OSError, match="too long"):
        atomic.write(tmp_path / ("x" * 256), b"content")
    assert [len(path.name) for path in tmp_path.iterdir()] == [255]


def full(*_args, **_keywords):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
