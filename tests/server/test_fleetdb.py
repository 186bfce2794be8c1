"""The fleet's database: who may, who may no more, and nobody twice."""

from __future__ import annotations

import base64
import multiprocessing
import os
import resource
import signal
import sqlite3
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.fleetdb import FleetDatabase
from server.fleetrecords import MAX_FLAG_CODES
from shared.canonical import sha256_hex
from shared.errors import AccessDenied, EnrolmentRefused, FleetError, InvalidValue, OutOfDisk

CONTEXT = multiprocessing.get_context("spawn")
HOUR = 3600.0
T = 1_800_000_000.0


def key(number: int) -> bytes:
    return bytes([number]) * 120


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[FleetDatabase]:
    with FleetDatabase(tmp_path / "fleet.sqlite") as opened:
        yield opened


def enrolled(fleet: FleetDatabase, name: str, number: int, *, now: float = T) -> None:
    fleet.redeem(fleet.new_token(name, valid_seconds=HOUR, now=now), key(number), now=now)


def test_the_files_are_private(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with FleetDatabase(tmp_path / "fleet.sqlite") as fleet:
            enrolled(fleet, "clinic-7", 1)
            modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()}
    finally:
        os.umask(before)
    assert "fleet.sqlite" in modes
    assert set(modes.values()) == {0o600}


def test_a_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "fleet.sqlite"
    FleetDatabase(path).close()
    path.chmod(0o640)
    with pytest.raises(FleetError, match="mode 640"):
        FleetDatabase(path)


def test_a_token_enrolls_one_key_once(fleet: FleetDatabase) -> None:
    token = fleet.new_token("clinic-7", valid_seconds=HOUR, now=T)
    first = fleet.redeem(token, key(1), now=T + 1)
    assert (first.name, first.role, first.client_index) == ("clinic-7", "node", 0)
    assert fleet.redeem(token, key(1), now=T + 2) == first
    with pytest.raises(EnrolmentRefused, match="used already, with another key"):
        fleet.redeem(token, key(2), now=T + 3)
    assert fleet.allowed(key(1))
    assert not fleet.allowed(key(2))
    flag = fleet.flags("clinic-7")[0]
    assert (flag.code, flag.count, flag.first_at) == ("token-replayed", 1, T + 3)


def test_the_secret_is_nowhere_in_the_files(fleet: FleetDatabase, tmp_path: Path) -> None:
    token = fleet.new_token("clinic-7", valid_seconds=HOUR, now=T)
    fleet.redeem(token, key(1), now=T)
    raw = base64.urlsafe_b64decode(token + "=")
    assert len(raw) == 32
    for file in tmp_path.iterdir():
        data = file.read_bytes()
        assert token.encode() not in data
        assert raw not in data


def test_tokens_expire_by_the_servers_clock(fleet: FleetDatabase) -> None:
    token = fleet.new_token("clinic-7", valid_seconds=60, now=T)
    with pytest.raises(EnrolmentRefused, match="expired"):
        fleet.redeem(token, key(1), now=T + 60)
    fleet.redeem(token, key(1), now=T + 59.9)
    with pytest.raises(EnrolmentRefused, match="expired"):
        fleet.redeem(token, key(1), now=T + 60)
    assert fleet.allowed(key(1))


def test_a_new_token_voids_the_one_before(fleet: FleetDatabase) -> None:
    lost = fleet.new_token("clinic-7", valid_seconds=HOUR, now=T)
    found = fleet.new_token("clinic-7", valid_seconds=HOUR, now=T)
    assert lost != found
    with pytest.raises(EnrolmentRefused, match="unknown"):
        fleet.redeem(lost, key(1), now=T)
    fleet.redeem(found, key(1), now=T)


@pytest.mark.parametrize("guess", ["", "A" * 43, "x", "A" * 100_000, "é" * 43, "' OR 1=1 --"])
def test_a_guess_is_refused_and_leaves_nothing(fleet: FleetDatabase, guess: str) -> None:
    fleet.new_token("clinic-7", valid_seconds=HOUR, now=T)
    before = fleet.events()
    with pytest.raises(EnrolmentRefused, match="unknown here"):
        fleet.redeem(guess, key(1), now=T)
    assert fleet.events() == before
    assert fleet.nodes() == ()


def test_a_name_is_enrolled_once_at_a_time(fleet: FleetDatabase) -> None:
    enrolled(fleet, "clinic-7", 1)
    with pytest.raises(EnrolmentRefused, match="enrolled already"):
        fleet.new_token("clinic-7", valid_seconds=HOUR, now=T)


def test_a_key_is_enrolled_once_for_ever(fleet: FleetDatabase) -> None:
    enrolled(fleet, "clinic-7", 1)
    token = fleet.new_token("clinic-8", valid_seconds=HOUR, now=T)
    with pytest.raises(EnrolmentRefused, match="another enrolment"):
        fleet.redeem(token, key(1), now=T)
    fleet.revoke("clinic-7", "lost", now=T)
    with pytest.raises(EnrolmentRefused, match="another enrolment"):
        fleet.redeem(token, key(1), now=T)
    # The token was not used up by the wrong key.
    assert fleet.redeem(token, key(2), now=T).name == "clinic-8"


def test_a_revoked_node_does_not_come_back_by_its_old_token(fleet: FleetDatabase) -> None:
    token = fleet.new_token("clinic-7", valid_seconds=HOUR, now=T)
    fleet.redeem(token, key(1), now=T)
    fleet.activated(key(1), 77, now=T)
    entry = fleet.revoke("clinic-7", "stolen", now=T + 1)
    assert entry is not None
    assert (entry.revoked_at, entry.revoked_reason) == (T + 1, "stolen")
    assert not fleet.allowed(key(1))
    assert fleet.client_of(77) is None
    with pytest.raises(EnrolmentRefused, match="revoked"):
        fleet.redeem(token, key(1), now=T + 2)
    with pytest.raises(EnrolmentRefused, match="used already"):
        fleet.redeem(token, key(2), now=T + 2)
    with pytest.raises(AccessDenied):
        fleet.activated(key(1), 78, now=T + 2)
    with pytest.raises(AccessDenied):
        fleet.renewed("clinic-7", 5, now=T + 2)
    with pytest.raises(AccessDenied, match="not enrolled"):
        fleet.revoke("clinic-7", "again", now=T + 2)


def test_an_old_token_is_not_good_for_the_key_that_came_after(fleet: FleetDatabase) -> None:
    old = fleet.new_token("clinic-7", valid_seconds=HOUR, now=T)
    fleet.redeem(old, key(1), now=T)
    fleet.revoke("clinic-7", "broken", now=T)
    enrolled(fleet, "clinic-7", 2)
    with pytest.raises(EnrolmentRefused, match="used already"):
        fleet.redeem(old, key(2), now=T)


def test_a_name_keeps_its_client_when_it_gets_another_key(fleet: FleetDatabase) -> None:
    enrolled(fleet, "a", 1)
    enrolled(fleet, "b", 2)
    fleet.revoke("a", "broken", now=T)
    enrolled(fleet, "c", 3)
    enrolled(fleet, "a", 4, now=T + 5)
    indices = {entry.name: entry.client_index for entry in fleet.nodes()}
    assert indices == {"a": 0, "b": 1, "c": 2}
    found = fleet.node_by_name("a")
    assert found is not None
    assert (found.public_key, found.revoked_at) == (key(4), None)
    assert [entry.public_key for entry in fleet.nodes() if entry.name == "a"] == [key(1), key(4)]
    fleet.revoke("a", "again", now=T + 6)
    last = fleet.node_by_name("a")
    assert last is not None
    assert last.public_key == key(4)
    assert fleet.node_by_name("nobody") is None


def test_a_name_keeps_its_role(fleet: FleetDatabase) -> None:
    token = fleet.new_token("dr-who", valid_seconds=HOUR, role="viewer", now=T)
    assert fleet.redeem(token, key(1), now=T).client_index is None
    fleet.revoke("dr-who", "left", now=T)
    with pytest.raises(EnrolmentRefused, match="role='viewer', which it keeps"):
        fleet.new_token("dr-who", valid_seconds=HOUR, role="operator", now=T)


def test_people_are_no_nodes(fleet: FleetDatabase) -> None:
    token = fleet.new_token("dr-who", valid_seconds=HOUR, role="operator", now=T)
    fleet.redeem(token, key(1), now=T)
    assert not fleet.allowed(key(1))
    assert fleet.allowed(key(1), role="operator")
    with pytest.raises(AccessDenied):
        fleet.activated(key(1), 5, now=T)


def test_revoking_voids_an_open_token(fleet: FleetDatabase) -> None:
    token = fleet.new_token("clinic-7", valid_seconds=HOUR, now=T)
    assert fleet.revoke("clinic-7", "mistake", now=T) is None
    with pytest.raises(EnrolmentRefused, match="unknown"):
        fleet.redeem(token, key(1), now=T)


NASTY = ["../x", "a/b", "'; DROP TABLE nodes; --", "a\x00", "a\n", "", "A", "x" * 41, "ä", " a"]


@pytest.mark.parametrize("name", NASTY)
def test_nasty_names_reach_no_table(fleet: FleetDatabase, name: str) -> None:
    for attempt in (
        lambda: fleet.new_token(name, valid_seconds=HOUR, now=T),
        lambda: fleet.revoke(name, "x", now=T),
        lambda: fleet.flag(name, "late", now=T),
        lambda: fleet.flag("clinic-7", name, now=T),
        lambda: fleet.event(name, now=T),
    ):
        with pytest.raises(InvalidValue):
            attempt()
    assert fleet.node_by_name(name) is None
    assert fleet.flags(name) == ()


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), 366 * 86400.0, True, "60"])
def test_a_bad_validity_is_refused(fleet: FleetDatabase, seconds: Any) -> None:
    with pytest.raises(InvalidValue, match="valid_seconds="):
        fleet.new_token("clinic-7", valid_seconds=seconds, now=T)


@pytest.mark.parametrize("now", [float("nan"), float("inf"), -1.0, "x"])
def test_a_bad_time_is_refused(fleet: FleetDatabase, now: Any) -> None:
    with pytest.raises(InvalidValue, match="now="):
        fleet.new_token("clinic-7", valid_seconds=60, now=now)


@pytest.mark.parametrize("bad", [b"", b"x" * 1025, "text", None])
def test_a_key_out_of_bounds_is_refused(fleet: FleetDatabase, bad: Any) -> None:
    token = fleet.new_token("clinic-7", valid_seconds=HOUR, now=T)
    with pytest.raises(InvalidValue, match="public key"):
        fleet.redeem(token, bad, now=T)


def test_flower_ids_are_whole_and_belong_to_one_key(fleet: FleetDatabase) -> None:
    enrolled(fleet, "a", 1)
    enrolled(fleet, "b", 2)
    top = (1 << 64) - 1
    fleet.activated(key(1), top, now=T)
    assert fleet.client_of(top) == 0
    entry = fleet.node_by_key(key(1))
    assert entry is not None
    assert entry.flower_node_id == top
    with pytest.raises(AccessDenied, match="belongs to a"):
        fleet.activated(key(2), top, now=T)
    fleet.activated(key(1), 5, now=T)
    assert fleet.client_of(top) is None
    fleet.activated(key(2), top, now=T)
    assert fleet.client_of(top) == 1
    for bad in (0, -1, 1 << 64, True, "5"):
        wrong: Any = bad
        with pytest.raises(InvalidValue, match="flower_node_id"):
            fleet.activated(key(1), wrong, now=T)
    with pytest.raises(AccessDenied):
        fleet.activated(key(9), 9, now=T)


def test_signs_of_life_are_written_seldom(fleet: FleetDatabase, tmp_path: Path) -> None:
    enrolled(fleet, "a", 1)
    watch = sqlite3.connect(tmp_path / "fleet.sqlite")
    try:
        fleet.seen(key(1), now=T)
        version = watch.execute("PRAGMA data_version").fetchone()
        for step in range(10):
            fleet.seen(key(1), now=T + step)
        fleet.seen(key(9), now=T)
        assert watch.execute("PRAGMA data_version").fetchone() == version
        fleet.seen(key(1), now=T + 10)
        assert watch.execute("PRAGMA data_version").fetchone() != version
    finally:
        watch.close()
    entry = fleet.node_by_key(key(1))
    assert entry is not None
    assert entry.last_seen == T + 10
    # A clock that was put right does not freeze the time.
    fleet.seen(key(1), now=T - 86400)
    again = fleet.node_by_key(key(1))
    assert again is not None
    assert again.last_seen == T - 86400


def test_certificates_are_remembered_with_their_key(fleet: FleetDatabase) -> None:
    enrolled(fleet, "a", 1)
    enrolled(fleet, "b", 2)
    fleet.renewed("a", 1 << 128, now=T)
    fleet.renewed("a", 17, now=T + 1)
    fleet.renewed("b", 18, now=T + 1)
    assert fleet.issued_to(17) == key(1)
    assert fleet.issued_to(18) == key(2)
    assert fleet.issued_to(99) is None
    entry = fleet.node_by_name("a")
    assert entry is not None
    assert entry.serial == 17
    assert fleet.revoked_serials() == ()
    fleet.revoke("a", "lost", now=T + 2)
    enrolled(fleet, "a", 3)
    fleet.renewed("a", 19, now=T + 3)
    assert fleet.revoked_serials() == ((1 << 128, T + 2), (17, T + 2))
    with pytest.raises(FleetError):
        fleet.renewed("b", 17, now=T)
    for bad in (0, -5, 1 << 159, "17"):
        wrong: Any = bad
        with pytest.raises(InvalidValue, match="serial"):
            fleet.renewed("b", wrong, now=T)


def test_flags_count_and_stay_few(fleet: FleetDatabase) -> None:
    for step in range(3):
        fleet.flag("a", "late", now=T + step)
    late = fleet.flags("a")[0]
    assert (late.count, late.first_at, late.last_at) == (3, T, T + 2)
    for number in range(80):
        fleet.flag("a", f"code-{number}", now=T + 10)
    found = fleet.flags("a")
    assert len(found) == MAX_FLAG_CODES + 1
    assert sum(flag.count for flag in found) == 83
    assert fleet.flags("b") == ()


def test_the_log_is_append_only(fleet: FleetDatabase, tmp_path: Path) -> None:
    enrolled(fleet, "a", 1)
    fleet.revoke("a", "lost", now=T + 1, actor="dr-who")
    fleet.event("promote", now=T + 2, digest="0f", ok=True, count=3, note=None)
    kinds = [event.kind for event in fleet.events()]
    assert kinds == ["promote", "revoke", "enrolled", "token"]
    newest = fleet.events(1)[0]
    assert newest.facts == {"digest": "0f", "ok": True, "count": 3, "note": None}
    assert fleet.events()[1].facts == {"name": "a", "reason": "lost", "by": "dr-who"}
    assert fleet.events()[2].facts["key"] == sha256_hex(key(1))
    raw = sqlite3.connect(tmp_path / "fleet.sqlite")
    try:
        for change in (
            "UPDATE events SET kind = 'x'",
            "DELETE FROM events",
            "UPDATE nodes SET revoked_at = NULL",
        ):
            with pytest.raises(sqlite3.IntegrityError):
                raw.execute(change)
    finally:
        raw.close()
    with pytest.raises(InvalidValue, match="characters"):
        fleet.event("long", now=T, text="x" * 5000)
    for limit in (0, -1, 10_001, True):
        with pytest.raises(InvalidValue, match="limit"):
            fleet.events(limit)


@pytest.mark.parametrize("reason", ["x" * 201, "a\nb", "\x1b[31m", None])
def test_a_bad_reason_is_refused(fleet: FleetDatabase, reason: Any) -> None:
    enrolled(fleet, "a", 1)
    with pytest.raises(InvalidValue, match="reason"):
        fleet.revoke("a", reason, now=T)
    assert fleet.allowed(key(1))


def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "fleet.sqlite"
    path.write_bytes(b"not a database, but longer than a header of one would be" * 100)
    path.chmod(0o600)
    with pytest.raises(FleetError, match="cannot be used"):
        FleetDatabase(path)
    with pytest.raises(FleetError, match="cannot be opened"):
        FleetDatabase(tmp_path / "none" / "fleet.sqlite")
    other = tmp_path / "other.sqlite"
    for statement in ("PRAGMA user_version = 9", "CREATE TABLE x (a)"):
        path = other if statement.startswith("PRAGMA") else tmp_path / "third.sqlite"
        db = sqlite3.connect(path)
        db.execute(statement)
        db.commit()
        db.close()
        path.chmod(0o600)
        with pytest.raises(FleetError, match="schema="):
            FleetDatabase(path)


def _full_disk(path: Path, token: str, results: Any) -> None:
    """Redeem under a limit on file sizes, which fails a write as a full disk does."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with FleetDatabase(path) as fleet:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            fleet.redeem(token, key(1), now=T)
        except OutOfDisk:
            results.put("refused")
        else:
            results.put("enrolled")


@pytest.mark.slow
def test_a_full_disk_enrolls_nobody(tmp_path: Path) -> None:
    path = tmp_path / "fleet.sqlite"
    with FleetDatabase(path) as fleet:
        token = fleet.new_token("clinic-7", valid_seconds=HOUR, now=T)
    results = CONTEXT.Queue()
    process = CONTEXT.Process(target=_full_disk, args=(path, token, results))
    process.start()
    try:
        assert results.get(timeout=60) == "refused"
    finally:
        process.join(30)
        process.kill()
    with FleetDatabase(path) as fleet:
        assert fleet.nodes() == ()
        assert fleet.redeem(token, key(2), now=T).name == "clinic-7"


def _race(path: Path, token: str, number: int, barrier: Any, results: Any) -> None:
    with FleetDatabase(path) as fleet:
        barrier.wait(60)
        try:
            fleet.redeem(token, key(number), now=T)
        except EnrolmentRefused:
            results.put((number, False))
        else:
            results.put((number, True))


@pytest.mark.slow
def test_of_processes_with_one_token_one_gets_in(tmp_path: Path) -> None:
    path = tmp_path / "fleet.sqlite"
    with FleetDatabase(path) as fleet:
        token = fleet.new_token("clinic-7", valid_seconds=HOUR, now=T)
    barrier, results = CONTEXT.Barrier(4), CONTEXT.Queue()
    # Two of them have the same key, as a device that tries twice would.
    processes = [
        CONTEXT.Process(target=_race, args=(path, token, number, barrier, results))
        for number in (1, 1, 2, 3)
    ]
    try:
        for process in processes:
            process.start()
        found = [results.get(timeout=90) for _ in processes]
    finally:
        for process in processes:
            process.join(30)
            process.kill()
    won = {number for number, good in found if good}
    assert len(won) == 1
    assert all(good == (number in won) for number, good in found)
    with FleetDatabase(path) as fleet:
        assert [entry.public_key for entry in fleet.nodes()] == [key(won.pop())]


def _open_new(path: Path, barrier: Any, results: Any) -> None:
    barrier.wait(60)
    with FleetDatabase(path) as fleet:
        results.put(fleet.nodes())


@pytest.mark.slow
def test_processes_make_the_file_together(tmp_path: Path) -> None:
    barrier, results = CONTEXT.Barrier(3), CONTEXT.Queue()
    path = tmp_path / "fleet.sqlite"
    processes = [CONTEXT.Process(target=_open_new, args=(path, barrier, results)) for _ in range(3)]
    try:
        for process in processes:
            process.start()
        assert [results.get(timeout=90) for _ in processes] == [()] * 3
    finally:
        for process in processes:
            process.join(30)
            process.kill()


def _enroll_many(path: Path, tokens: list[str], results: Any) -> None:
    with FleetDatabase(path) as fleet:
        for number, token in enumerate(tokens):
            fleet.redeem(token, key(number), now=T)
            results.put(number)


@pytest.mark.slow
def test_what_was_answered_survives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "fleet.sqlite"
    with FleetDatabase(path) as fleet:
        tokens = [fleet.new_token(f"n-{i}", valid_seconds=HOUR, now=T) for i in range(200)]
    results = CONTEXT.Queue()
    process = CONTEXT.Process(target=_enroll_many, args=(path, tokens, results))
    process.start()
    try:
        answered = [results.get(timeout=60) for _ in range(5)]
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
    finally:
        process.join(30)
        process.kill()
    with FleetDatabase(path) as fleet:
        keys = {entry.public_key for entry in fleet.nodes()}
        assert {key(number) for number in answered} <= keys
        assert len(keys) < 200
        # Nothing is half done: every key that is in has its token used, and may come again.
        for number, token in enumerate(tokens):
            fleet.redeem(token, key(number), now=T)
        indices = sorted(entry.client_index or 0 for entry in fleet.nodes())
        assert indices == list(range(200))


def test_asking_whether_a_key_may_is_cheap(fleet: FleetDatabase) -> None:
    for number in range(60):
        enrolled(fleet, f"n-{number}", number)
    start = time.perf_counter()
    for _ in range(1000):
        fleet.allowed(key(50))
    # A write at every call, which waits for the disk, would take longer.
    assert time.perf_counter() - start < 2.0
