"""The key of a run's noise: the same rows from the same key, and nobody else reads it."""

from __future__ import annotations

import stat
from pathlib import Path

import numpy as np
import pytest

from shared.errors import InvalidValue, NotResumable, PrivacyError, RunFolderError
from shared.privacy.noiserows import KEY_NAME, NoiseRows, forget_rows


def drawn(rows: NoiseRows, row: int) -> np.ndarray:
    return rows.source(row).normal(32)


def test_seeds_and_rows_are_apart() -> None:
    rows = NoiseRows.seeded(5)
    assert rows.kind == rows.source(1).kind == "seeded-simulation"
    np.testing.assert_array_equal(drawn(rows, 1), drawn(NoiseRows.seeded(5), 1))
    others = [drawn(rows, 2), drawn(NoiseRows.seeded(6), 1), drawn(NoiseRows.seeded(5 + 2**32), 1)]
    for other in others:
        assert not np.isin(drawn(rows, 1), other).any()


def test_a_run_keeps_its_key_to_itself(tmp_path: Path) -> None:
    first = NoiseRows.of_run(tmp_path, begun=False)
    path = tmp_path / KEY_NAME
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(path.read_bytes()) == 32
    assert [entry.name for entry in tmp_path.iterdir()] == [KEY_NAME]
    assert first.kind == first.source(1).kind == "os-entropy"
    assert path.read_bytes().hex() not in repr(first)
    for begun in (False, True):
        again = NoiseRows.of_run(tmp_path, begun=begun)
        np.testing.assert_array_equal(drawn(first, 3), drawn(again, 3))


def test_two_runs_have_two_keys(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
    first, second = (NoiseRows.of_run(folder, begun=False) for folder in folders)
    assert not np.isin(drawn(first, 1), drawn(second, 1)).any()


def test_a_begun_run_without_its_key_is_refused(tmp_path: Path) -> None:
    NoiseRows.of_run(tmp_path, begun=False)
    forget_rows(tmp_path)
    forget_rows(tmp_path)
    with pytest.raises(NotResumable, match="missing"):
        NoiseRows.of_run(tmp_path, begun=True)
    assert not (tmp_path / KEY_NAME).exists()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
def test_a_key_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    NoiseRows.of_run(tmp_path, begun=False)
    (tmp_path / KEY_NAME).chmod(mode)
    with pytest.raises(PrivacyError, match="expected 600"):
        NoiseRows.of_run(tmp_path, begun=True)


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_damaged_key_is_refused(tmp_path: Path, size: int) -> None:
    NoiseRows.of_run(tmp_path, begun=False)
    (tmp_path / KEY_NAME).write_bytes(bytes(size))
    with pytest.raises(PrivacyError, match="another length"):
        NoiseRows.of_run(tmp_path, begun=True)
    with pytest.raises(InvalidValue):
        NoiseRows(bytes(size), kind="os-entropy")


def test_a_folder_that_is_not_there_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError):
        NoiseRows.of_run(tmp_path / "missing", begun=False)


@pytest.mark.parametrize("row", [0, -1, True])
def test_rows_count_from_one(row: int) -> None:
    with pytest.raises(InvalidValue):
        NoiseRows.seeded(1).source(row)
