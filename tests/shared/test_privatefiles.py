"""Files that only their owner may read: whole or not there, and never replaced by accident."""

from __future__ import annotations

import errno
import multiprocessing
import os
import resource
import stat
from pathlib import Path

import pytest

from shared.errors import AlreadyRunning, FleetError, OutOfDisk
from shared.privatefiles import (
    create_private,
    held,
    make_private_folder,
    read_private,
    remove_file,
    replace_private,
)

CONTEXT = multiprocessing.get_context("spawn")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_modes_do_not_depend_on_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        make_private_folder(tmp_path / "home")
        create_private(tmp_path / "home" / "key", b"secret")
        replace_private(tmp_path / "home" / "other", b"secret")
    finally:
        os.umask(before)
    assert mode(tmp_path / "home") == 0o700
    assert mode(tmp_path / "home" / "key") == 0o600
    assert mode(tmp_path / "home" / "other") == 0o600
    assert read_private(tmp_path / "home" / "key") == b"secret"


def test_a_file_is_never_overwritten_by_accident(tmp_path: Path) -> None:
    create_private(tmp_path / "key", b"first")
    with pytest.raises(FleetError, match="exists already"):
        create_private(tmp_path / "key", b"second")
    assert read_private(tmp_path / "key") == b"first"
    assert [file.name for file in tmp_path.iterdir()] == ["key"]


def test_a_dangling_link_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FleetError):
        create_private(tmp_path / "key", b"x")
    assert not (tmp_path / "elsewhere").exists()


def _create(path: Path, data: bytes, barrier: object, results: object) -> None:
    barrier.wait(30)  # type: ignore[attr-defined]
    try:
        create_private(path, data)
    except FleetError:
        results.put(None)  # type: ignore[attr-defined]
    else:
        results.put(data)  # type: ignore[attr-defined]


@pytest.mark.slow
def test_of_two_processes_one_creates_the_file(tmp_path: Path) -> None:
    barrier, results = CONTEXT.Barrier(3), CONTEXT.Queue()
    path = tmp_path / "key"
    processes = [
        CONTEXT.Process(target=_create, args=(path, bytes([i]) * 1000, barrier, results))
        for i in range(3)
    ]
    try:
        for process in processes:
            process.start()
        found = [results.get(timeout=60) for _ in processes]
    finally:
        for process in processes:
            process.join(30)
            process.kill()
    won = [data for data in found if data is not None]
    assert len(won) == 1
    assert read_private(path) == won[0]


def test_replacing_keeps_the_file_private(tmp_path: Path) -> None:
    path = tmp_path / "node.crt"
    path.write_bytes(b"old")
    path.chmod(0o644)
    replace_private(path, b"new")
    assert mode(path) == 0o600
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("bits", [0o644, 0o640, 0o604, 0o660])
def test_a_file_that_others_may_read_is_refused(tmp_path: Path, bits: int) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"x")
    path.chmod(bits)
    with pytest.raises(FleetError, match=f"mode {bits:03o}, expected 600"):
        read_private(path)


def test_what_is_no_file_or_too_long_is_refused(tmp_path: Path) -> None:
    create_private(tmp_path / "long", b"x" * 11)
    assert read_private(tmp_path / "long", max_bytes=11) == b"x" * 11
    with pytest.raises(FleetError, match="longer than 10"):
        read_private(tmp_path / "long", max_bytes=10)
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(FleetError, match="not a file"):
        read_private(tmp_path / "pipe")
    with pytest.raises(FleetError, match="cannot be read"):
        read_private(tmp_path)
    with pytest.raises(FleetError, match="cannot be read"):
        read_private(tmp_path / "none")


def test_errors_name_no_folders(tmp_path: Path) -> None:
    with pytest.raises(FleetError) as caught:
        read_private(tmp_path / "none")
    assert str(tmp_path) not in str(caught.value)


def test_a_folder_with_files_that_others_may_see_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "home"
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    make_private_folder(folder)
    assert mode(folder) == 0o700
    (folder / "file").touch()
    folder.chmod(0o750)
    with pytest.raises(FleetError, match="mode 750, expected 700"):
        make_private_folder(folder)
    folder.chmod(0o700)
    make_private_folder(folder)


def test_a_file_in_the_way_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "home").touch()
    with pytest.raises(FleetError, match="cannot be made"):
        make_private_folder(tmp_path / "home")


def _full_disk(folder: Path, results: object) -> None:
    """Write under a limit on file sizes, which fails a write as a full disk does."""
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    create_private(folder / "kept", b"old")
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    for step in (create_private, replace_private):
        name = "new" if step is create_private else "kept"
        try:
            step(folder / name, b"x" * 5000)
        except OutOfDisk as error:
            results.put(str(error))  # type: ignore[attr-defined]


@pytest.mark.slow
def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    results = CONTEXT.Queue()
    process = CONTEXT.Process(target=_full_disk, args=(tmp_path, results))
    process.start()
    try:
        found = [results.get(timeout=60) for _ in range(2)]
    finally:
        process.join(30)
        process.kill()
    assert all("No space" in text for text in found)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"kept": b"old"}


def test_removing_tells_whether_it_was_there(tmp_path: Path) -> None:
    create_private(tmp_path / "key", b"")
    assert remove_file(tmp_path / "key")
    assert not remove_file(tmp_path / "key")
    with pytest.raises(FleetError):
        remove_file(tmp_path)


def test_a_lock_is_held_by_one_and_given_back(tmp_path: Path) -> None:
    with held(tmp_path / "lock"):
        assert mode(tmp_path / "lock") == 0o600
        with pytest.raises(AlreadyRunning, match="lock"), held(tmp_path / "lock"):
            pass
    with held(tmp_path / "lock"):
        pass
    with pytest.raises(FleetError, match="cannot be opened"), held(tmp_path / "none" / "lock"):
        pass


def test_out_of_quota_is_a_full_disk_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutOfDisk):
        create_private(tmp_path / "key", b"x")
    assert list(tmp_path.iterdir()) == []
