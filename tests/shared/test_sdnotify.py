"""What a service tells systemd, heard at the other end of a real socket."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.sdnotify import Notifier


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[tuple[socket.socket, dict[str, str]]]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(str(tmp_path / "notify"))
        heard.settimeout(5.0)
        yield heard, {"NOTIFY_SOCKET": str(tmp_path / "notify")}


def test_ready_status_and_stopping(manager: tuple[socket.socket, dict[str, str]]) -> None:
    heard, environment = manager
    notifier = Notifier(environment)
    assert notifier.ready("waiting\nREADY=0")
    assert heard.recv(200) == b"READY=1\nSTATUS=waiting READY=0"
    assert notifier.status("training")
    assert heard.recv(200) == b"STATUS=training"
    assert notifier.stopping()
    assert heard.recv(200) == b"STOPPING=1"


def test_the_watchdog_is_fed_four_times_in_its_period(
    manager: tuple[socket.socket, dict[str, str]],
) -> None:
    heard, environment = manager
    notifier = Notifier({**environment, "WATCHDOG_USEC": "120000000"})
    assert notifier.watchdog_seconds == 120.0
    fed = [second for second in range(100) if notifier.alive(now=float(second))]
    assert fed == [0, 30, 60, 90]
    assert heard.recv(200) == b"WATCHDOG=1"


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": str(os.getpid() + 1)},
    ],
)
def test_a_watchdog_that_is_not_ours_is_not_fed(
    manager: tuple[socket.socket, dict[str, str]], variables: dict[str, str]
) -> None:
    notifier = Notifier({**manager[1], **variables})
    assert notifier.watchdog_seconds is None
    assert not notifier.alive()


def test_the_watchdog_of_this_process_is_ours(
    manager: tuple[socket.socket, dict[str, str]],
) -> None:
    variables = {"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": str(os.getpid())}
    assert Notifier({**manager[1], **variables}).alive()


@pytest.mark.parametrize("address", ["", "relative", "/absent/notify"])
def test_nobody_listens(address: str) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1000000"})
    assert not notifier.ready("waiting")
    assert not notifier.alive()
    assert not notifier.stopping()


def test_an_abstract_socket() -> None:
    name = f"fedslm-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(f"\0{name}")
        heard.settimeout(5.0)
        assert Notifier({"NOTIFY_SOCKET": f"@{name}"}).status("ok")
        assert heard.recv(200) == b"STATUS=ok"
