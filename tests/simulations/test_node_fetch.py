"""A running node looks for adapters, tells what is new, and starts nothing while it is paused."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from client.home import DeviceHome
from simulations.node_fetch import fetching
from tests.simulations.devices import device

SAY = "import pathlib, sys; pathlib.Path(sys.argv[2], 'asked').touch(); print(%r)"
NEW = {"adapter": "ab" * 32, "before": None, "changed": True}
SAME = {"adapter": "ab" * 32, "before": "ab" * 32, "changed": False}
AWAY = {"error": "server-unreachable", "message": "no"}
WRONG = {"error": "adapter-untrusted", "message": "no audit of it was made"}


@pytest.fixture
def home(tmp_path: Path) -> DeviceHome:
    return device(tmp_path / "node")


def told(
    home: DeviceHome, command: list[str], *, seconds: float, allowed: bool = True
) -> list[dict[str, Any]]:
    """Return what was told until something was, or for some seconds."""
    found: list[dict[str, Any]] = []
    heard = threading.Event()

    def hear(event: Mapping[str, Any]) -> None:
        found.append(dict(event))
        heard.set()

    with fetching(home, hear, allowed=lambda: allowed, command=command, first=0.01, every=30.0):
        heard.wait(seconds)
    return found


def saying(answer: Mapping[str, Any]) -> list[str]:
    """Return a program that says this."""
    return [sys.executable, "-c", SAY % json.dumps(answer)]


def test_another_adapter_is_told(home: DeviceHome) -> None:
    expected = {"event": "adapter-in-use", "adapter": "ab" * 32}
    assert told(home, saying(NEW), seconds=20.0) == [expected]


def test_a_refusal_is_told_with_its_reason(home: DeviceHome) -> None:
    [event] = told(home, saying(WRONG), seconds=20.0)
    assert event == {
        "event": "adapter-refused",
        "code": "adapter-untrusted",
        "reason": "no audit of it was made",
    }


@pytest.mark.parametrize("answer", [SAME, AWAY])
def test_what_is_not_news_is_not_told(home: DeviceHome, answer: Mapping[str, Any]) -> None:
    assert told(home, saying(answer), seconds=1.0) == []
    assert (home.path / "asked").exists()


def test_a_paused_device_fetches_nothing(home: DeviceHome) -> None:
    assert told(home, saying(NEW), seconds=0.5, allowed=False) == []
    assert not (home.path / "asked").exists()


def test_a_program_that_does_not_start_or_says_nothing(home: DeviceHome, tmp_path: Path) -> None:
    [event] = told(home, [str(tmp_path / "absent")], seconds=20.0)
    assert event["event"] == "adapter-not-fetched"
    [event] = told(home, [sys.executable, "-c", "print('no')"], seconds=20.0)
    assert event == {"event": "adapter-not-fetched", "code": "no-answer"}


def test_a_look_may_be_asked_for(home: DeviceHome) -> None:
    found: list[Mapping[str, Any]] = []
    heard = threading.Event()

    def hear(event: Mapping[str, Any]) -> None:
        found.append(event)
        heard.set()

    with fetching(home, hear, command=saying(NEW), first=60.0, every=60.0) as look:
        look()
        assert heard.wait(20.0)
    assert len(found) == 1


def test_a_fetch_that_hangs_ends_with_the_node(home: DeviceHome) -> None:
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    with fetching(home, lambda _: None, command=command, first=0.01, every=60.0):
        threading.Event().wait(0.5)
    assert not [t for t in threading.enumerate() if t.name == "adapters"]
