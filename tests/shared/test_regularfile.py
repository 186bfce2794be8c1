"""Only regular files are opened, and nothing is waited for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shared.errors import AdapterCorrupt
from shared.regularfile import open_regular


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"text")
    with open_regular(tmp_path / "file") as stream:
        assert stream.read() == b"text"


@pytest.mark.parametrize("kind", ["link", "loop", "folder", "pipe", "nothing", "a\x00b", "a" * 300])
def test_anything_else_is_refused_and_no_descriptor_is_left(tmp_path: Path, kind: str) -> None:
    (tmp_path / "file").write_bytes(b"text")
    if kind == "link":
        (tmp_path / kind).symlink_to(tmp_path / "file")
    elif kind == "loop":
        (tmp_path / kind).symlink_to(tmp_path / kind)
    elif kind == "folder":
        (tmp_path / kind).mkdir()
    elif kind == "pipe":
        os.mkfifo(tmp_path / kind)
    before = descriptors()
    for _ in range(5):
        with pytest.raises(AdapterCorrupt), open_regular(tmp_path / kind):
            pass
    assert descriptors() == before
