"""What the owner of a device can see of its node."""

from __future__ import annotations

import json
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from client.fleet.status import STATUS_FILE, Board, read_status


def test_the_file_follows_the_events(tmp_path: Path) -> None:
    events: list[Mapping[str, Any]] = []
    board = Board(tmp_path / STATUS_FILE, events.append)
    board.note("joined", state="idle", node_id="7")
    board.keep(run_id="5", gone="x")
    board.note("answered", seconds=0.5)
    board.note("refused", code="policy-refused")
    board.keep(gone=None)
    board.enter("paused")
    found = read_status(tmp_path)
    assert found is not None
    assert (found["state"], found["run_id"]) == ("paused", "5")
    assert (found["answered"], found["refused"], found["failed"]) == (1, 1, 0)
    assert "gone" not in found
    assert [event["event"] for event in events] == ["joined", "answered", "refused"]
    assert events[0]["node_id"] == "7"
    assert found["last_event"]["event"] == "refused"


def test_the_file_is_the_owners_alone_and_whole(tmp_path: Path) -> None:
    path = tmp_path / STATUS_FILE
    board = Board(path, lambda _: None)
    for number in range(3):
        board.note("message", run_id=str(number))
        json.loads(path.read_text(encoding="utf-8"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in tmp_path.iterdir()] == [STATUS_FILE]


def test_a_disk_that_is_full_costs_only_the_file(tmp_path: Path) -> None:
    events: list[Mapping[str, Any]] = []
    board = Board(tmp_path / "missing" / STATUS_FILE, events.append)
    board.note("joined", state="idle")
    assert board.state == "idle"
    assert len(events) == 1


def test_a_device_that_never_ran_has_no_status(tmp_path: Path) -> None:
    assert read_status(tmp_path) is None
    for text in ("", "[]", "{", "\x00"):
        (tmp_path / STATUS_FILE).write_text(text, encoding="utf-8")
        assert read_status(tmp_path) is None
