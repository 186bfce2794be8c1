"""A lock holds between threads and goes with its holder."""

from __future__ import annotations

import stat
import threading
from pathlib import Path

import pytest

from shared.locks import exclusive


def test_one_thread_at_a_time_gets_in(tmp_path: Path) -> None:
    inside, most = [0], [0]

    def work() -> None:
        for _ in range(50):
            with exclusive(tmp_path / "lock"):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert most == [1]
    assert stat.S_IMODE((tmp_path / "lock").stat().st_mode) == 0o600


def test_an_error_inside_lets_go(tmp_path: Path) -> None:
    with pytest.raises(KeyError), exclusive(tmp_path / "lock"):
        raise KeyError
    with exclusive(tmp_path / "lock"):
        pass


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "other")
    with pytest.raises(OSError, match="symbolic"), exclusive(tmp_path / "lock"):
        pass
    assert not (tmp_path / "other").exists()
