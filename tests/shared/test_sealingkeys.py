"""Key files of mode 600, keys from the environment, and rotation by several processes."""

from __future__ import annotations

import multiprocessing
import stat
from pathlib import Path

import pytest

from shared.errors import FleetError, InvalidValue
from shared.sealingkeys import (
    MOST_KEYS,
    VARIABLE,
    find_sealer,
    rotate_key_file,
    sealer_from_environment,
    sealer_from_file,
)

FIRST, SECOND = "1a" * 32, "2b" * 32


def key_file(folder: Path, text: str, mode: int = 0o600) -> Path:
    path = folder / "sealing.keys"
    path.write_text(text)
    path.chmod(mode)
    return path


def test_rotation_makes_a_file_that_only_its_owner_reads(tmp_path: Path) -> None:
    path = tmp_path / "sealing.keys"
    first = rotate_key_file(path)
    second = rotate_key_file(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sealer_from_file(path).key_ids == (second.key_id, first.key_id)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".sealing.keys.lock", "sealing.keys"]


def test_comments_and_empty_lines_are_skipped(tmp_path: Path) -> None:
    path = key_file(tmp_path, f"# newest\n{FIRST}\n\n  {SECOND}  \n")
    assert len(sealer_from_file(path).key_ids) == 2


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_file_that_others_read_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(FleetError, match="expected 600"):
        sealer_from_file(key_file(tmp_path, FIRST, mode))


@pytest.mark.parametrize(
    "text", ["", "# nothing\n", "ab", FIRST.upper(), f"{FIRST} {SECOND}", "g" * 64]
)
def test_what_is_no_key_is_refused_and_not_shown(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidValue) as found:
        sealer_from_file(key_file(tmp_path, text))
    assert not text or text not in str(found.value)


def test_a_file_that_is_too_large_is_not_read_to_its_end(tmp_path: Path) -> None:
    with pytest.raises(InvalidValue, match="65536 bytes"):
        sealer_from_file(key_file(tmp_path, f"{FIRST}\n" * 2000))


def test_a_link_or_a_missing_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(key_file(tmp_path, FIRST))
    for name in ("link", "nothing"):
        with pytest.raises(FleetError, match="cannot be read"):
            sealer_from_file(tmp_path / name)


def test_the_environment_comes_before_the_file(tmp_path: Path) -> None:
    path = key_file(tmp_path, FIRST)
    assert sealer_from_environment({}) is None
    assert find_sealer(None, {}) is None
    assert find_sealer(tmp_path / "nothing", {}) is None
    from_file = find_sealer(path, {})
    both = find_sealer(path, {VARIABLE: f"{SECOND}, {FIRST}"})
    assert from_file is not None
    assert both is not None
    assert both.key_ids[1:] == from_file.key_ids
    with pytest.raises(InvalidValue, match=VARIABLE):
        sealer_from_environment({VARIABLE: "secret"})


def test_a_file_does_not_grow_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "sealing.keys"
    for _ in range(MOST_KEYS):
        rotate_key_file(path)
    with pytest.raises(InvalidValue, match="fewer than"):
        rotate_key_file(path)


def _rotate(path: Path, times: int) -> None:
    for _ in range(times):
        rotate_key_file(path)


@pytest.mark.slow
def test_processes_that_rotate_at_once_lose_no_key(tmp_path: Path) -> None:
    path = tmp_path / "sealing.keys"
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_rotate, args=(path, 5)) for _ in range(3)]
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.join(60)
            assert process.exitcode == 0
    finally:
        for process in processes:
            process.kill()
    assert len(sealer_from_file(path).key_ids) == 15
