"""Keys of sandboxes, in their files."""

from __future__ import annotations

import pytest

from fastpath.errors import FastpathError
from fastpath.tsi import keys


def test_a_key_that_was_made_is_read_by_its_owner_alone(tmp_path):
    path = tmp_path / "key"
    key = keys.make(path)
    assert len(key) == 16
    assert keys.read(path) == key
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("text", ["", "00", "x" * 32, "0" * 34, "\N{DIGIT ONE}\xe9"])
def test_a_file_without_a_key_is_said(tmp_path, text):
    path = tmp_path / "key"
    path.write_text(text)
    with pytest.raises(FastpathError, match="not 32 hex digits"):
        keys.read(path)


def test_a_key_that_is_not_there_is_said(tmp_path):
    with pytest.raises(FastpathError, match="No such file"):
        keys.read(tmp_path / "none")
