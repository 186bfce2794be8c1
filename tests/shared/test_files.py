"""Files are whole or not there, and a full disk is one clear error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shared.errors import OutOfDisk, RunFolderError
from shared.files import append_line, write_bytes, write_json, write_text


def test_a_write_replaces_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"b": 1, "a": "ä"})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": "ä", "b": 1}
    write_text(path, "x")
    assert path.read_text() == "x"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_lines_are_appended(tmp_path: Path) -> None:
    path = tmp_path / "l"
    append_line(path, "1")
    append_line(path, "2")
    assert path.read_text() == "1\n2\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_is_out_of_disk() -> None:
    with pytest.raises(OutOfDisk, match="No space left"):
        append_line(Path("/dev/full"), "x")


def test_a_missing_folder_is_named_without_its_path(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "a"
    with pytest.raises(RunFolderError) as caught:
        write_bytes(path, b"x")
    assert str(tmp_path) not in str(caught.value)
    assert caught.value.exit_code == RunFolderError.exit_code
