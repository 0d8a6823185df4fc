"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import threading

import pytest

from fastpath import files


def test_a_file_is_replaced_and_keeps_its_mode(tmp_path):
    path = tmp_path / "f"
    path.write_text("old")
    path.chmod(0o640)
    files.replace(path, "new")
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("new", 0o640)
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_file_has_the_mode_that_open_gives(tmp_path):
    (tmp_path / "opened").touch()
    files.replace(tmp_path / "f", "new")
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1


def test_a_link_stays_one(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "f")
    files.replace(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "f").read_text() == "new"


def test_a_pipe_is_written_to(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=files.replace, args=(tmp_path / "pipe", "text"))
    writer.start()
    assert (tmp_path / "pipe").read_text() == "text"
    writer.join()
    assert (tmp_path / "pipe").is_fifo()


def test_a_text_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path = tmp_path / "f"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        files.replace(path, "\ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_check_leaves_nothing(tmp_path):
    files.check_replaceable(tmp_path / "f")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(IsADirectoryError):
        files.check_replaceable(tmp_path)
    with pytest.raises(FileNotFoundError):
        files.check_replaceable(tmp_path / "none" / "f")


def test_those_who_write_at_once_do_not_meet(tmp_path):
    failed = []

    def write():
        try:
            for _ in range(200):
                files.replace(tmp_path / "f", "x" * 1000)
        except OSError as error:
            failed.append(error)

    writers = [threading.Thread(target=write) for _ in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert failed == []
    assert (tmp_path / "f").read_text() == "x" * 1000
