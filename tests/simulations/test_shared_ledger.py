"""Data that several runs share have one name in their ledger."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulations.scope import shared_scope


def test_a_file_has_one_name_however_its_path_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "notes.jsonl").write_text("{}\n")
    (tmp_path / "link.jsonl").symlink_to(folder / "notes.jsonl")
    written = ["data/notes.jsonl", "./data/../data/notes.jsonl", "link.jsonl"]
    names = {shared_scope(path, tmp_path) for path in written}
    names.add(shared_scope(str(folder / "notes.jsonl"), tmp_path))
    monkeypatch.chdir(folder)
    names.add(shared_scope("notes.jsonl", Path.cwd()))
    assert len(names) == 1


@pytest.mark.parametrize("path", ["builtin:clinics", "hf:owner/name"])
def test_data_that_are_no_file_keep_their_name(path: str, tmp_path: Path) -> None:
    assert shared_scope(path, tmp_path) == path
