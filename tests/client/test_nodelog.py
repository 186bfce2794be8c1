"""The log of a node: bounded, private, and readable whatever happened to it."""

from __future__ import annotations

import stat
from pathlib import Path

from client.nodelog import NodeLog, before, read_log


def test_events_come_back_in_order(tmp_path: Path) -> None:
    log = NodeLog(tmp_path / "log")
    for number in range(3):
        log.write({"event": "answered", "number": number, "text": "Grüße\n"})
    assert [event["number"] for event in read_log(tmp_path / "log")] == [0, 1, 2]
    assert {event["text"] for event in read_log(tmp_path / "log")} == {"Grüße\n"}
    assert stat.S_IMODE((tmp_path / "log").stat().st_mode) == 0o600


def test_two_files_at_most(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = NodeLog(path, largest=2000)
    for number in range(500):
        log.write({"event": "x", "number": number})
    assert sorted(file.name for file in tmp_path.iterdir()) == ["log", "log.1"]
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 4100
    numbers = [event["number"] for event in read_log(path)]
    assert numbers == list(range(numbers[0], 500))
    assert stat.S_IMODE(before(path).stat().st_mode) == 0o600


def test_a_long_event_is_cut(tmp_path: Path) -> None:
    NodeLog(tmp_path / "log").write({"event": "log", "at": 1.0, "text": "x" * 100_000})
    [event] = read_log(tmp_path / "log")
    assert event["event"] == "log"
    assert event["cut"] > 100_000
    assert "text" not in event


def test_damage_costs_lines(tmp_path: Path) -> None:
    path = tmp_path / "log"
    NodeLog(path).write({"event": "a"})
    with path.open("ab") as stream:
        stream.write(b'{"event": "b\n\xff\xfe\n[1]\n')
    NodeLog(path).write({"event": "c"})
    assert [event["event"] for event in read_log(path)] == ["a", "c"]
    assert list(read_log(tmp_path / "absent")) == []


def test_what_cannot_be_written_is_lost_and_nothing_else(tmp_path: Path) -> None:
    NodeLog(tmp_path / "absent" / "log").write({"event": "a"})
    outside = tmp_path / "outside"
    outside.write_text("", encoding="ascii")
    (tmp_path / "log").symlink_to(outside)
    NodeLog(tmp_path / "log").write({"event": "a"})
    assert outside.read_text(encoding="ascii") == ""
