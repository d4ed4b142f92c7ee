"""A file is there whole or not at all."""

import os

import pytest

from recjax.errors import CheckpointError
from recjax.files import write_file


@pytest.mark.parametrize(("content", "written"), [("é\n", b"\xc3\xa9\n"), (b"\x00", b"\x00")])
def test_a_file_is_written_and_its_folder_made(tmp_path, content, written):
    write_file(tmp_path / "new" / "file", content)
    assert (tmp_path / "new" / "file").read_bytes() == written
    assert os.listdir(tmp_path / "new") == ["file"]


def test_a_file_that_cannot_be_written_is_one_error_and_the_old_one_stays(tmp_path, monkeypatch):
    write_file(tmp_path / "file", "old")

    def no_space(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(CheckpointError, match=r"file cannot be written: No space left on device"):
        write_file(tmp_path / "file", "new")
    assert os.listdir(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "old"


def test_a_folder_that_is_a_file_is_one_error(tmp_path):
    write_file(tmp_path / "file", "old")
    with pytest.raises(CheckpointError, match="file/inside cannot be written"):
        write_file(tmp_path / "file" / "inside", "new")
