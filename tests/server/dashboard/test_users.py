from __future__ import annotations

import hashlib
import itertools
import sqlite3
import statistics
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from server.dashboard.sessions import Brake, Sessions, reference
from server.dashboard.store import UserFile
from server.dashboard.users import STRONG, Cost, UserStore
from shared.errors import AccessDenied, FleetError, InvalidValue, UsageError
from tests.server.dashboard.homes import CHEAP, PASSWORD


@pytest.fixture
def file(tmp_path: Path) -> UserFile:
    return UserFile(tmp_path / "users.sqlite")


@pytest.fixture
def users(file: UserFile) -> UserStore:
    return UserStore(file, cost=CHEAP)


def test_a_password_opens_and_another_does_not(users: UserStore) -> None:
    users.add("ada", PASSWORD, "operator", now=5.0)
    found = users.check("ada", PASSWORD, now=9.0)
    assert found is not None
    assert (found.name, found.role, found.created) == ("ada", "operator", 5.0)
    assert users.check("ada", f"{PASSWORD} ") is None
    assert users.check("ada", "") is None
    assert users.check("nobody", PASSWORD) is None
    assert [user.last_login for user in users.users()] == [9.0]


def test_only_salt_and_hash_are_kept(users: UserStore, tmp_path: Path) -> None:
    users.add("ada", PASSWORD, "operator")
    users.add("eve", PASSWORD, "viewer")
    raw = (tmp_path / "users.sqlite").read_bytes()
    assert PASSWORD.encode() not in raw
    with sqlite3.connect(tmp_path / "users.sqlite") as db:
        rows = db.execute("SELECT n, r, p, salt, hash FROM users").fetchall()
    db.close()
    assert rows[0][3] != rows[1][3]
    for n, r, p, salt, stored in rows:
        known = hashlib.scrypt(PASSWORD.encode(), salt=salt, n=n, r=r, p=p, dklen=32)
        assert stored == known


def test_the_file_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "users.sqlite"
    UserFile(path)
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o640)
    with pytest.raises(FleetError, match="mode 640"):
        UserFile(path)


def test_a_damaged_file_is_said(tmp_path: Path) -> None:
    path = tmp_path / "users.sqlite"
    path.write_bytes(b"no database at all" * 100)
    path.chmod(0o600)
    with pytest.raises(FleetError, match="SQLITE_NOTADB"):
        UserFile(path)


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "other")
    with pytest.raises(FleetError):
        UserFile(tmp_path / "link")


@pytest.mark.parametrize(
    "password",
    ["", "eleven chrs", "a" * 257, "ababababababab", "ada1234567890", "Password12345"],
)
def test_poor_passwords_are_refused_and_not_repeated(users: UserStore, password: str) -> None:
    with pytest.raises(InvalidValue) as refused:
        users.add("ada", password, "operator")
    assert not password or password not in str(refused.value)
    assert users.users() == ()


@pytest.mark.parametrize("name", ["", "Ada", "a b", "-a", "../x", "a" * 33, "<b>", "ada\n"])
def test_poor_names_are_refused(users: UserStore, name: str) -> None:
    with pytest.raises(InvalidValue):
        users.add(name, PASSWORD, "operator")


def test_roles_are_two(users: UserStore) -> None:
    with pytest.raises(InvalidValue, match="root"):
        users.add("ada", PASSWORD, "root")


def test_a_name_is_taken_once(users: UserStore) -> None:
    users.add("ada", PASSWORD, "operator")
    with pytest.raises(UsageError):
        users.add("ada", PASSWORD, "viewer")
    assert [user.role for user in users.users()] == ["operator"]


def test_nobody_cannot_be_changed(users: UserStore) -> None:
    with pytest.raises(AccessDenied):
        users.remove("ada")
    with pytest.raises(AccessDenied):
        users.set_password("ada", PASSWORD)


def test_equal_ways_to_type_are_the_same_password(users: UserStore) -> None:
    users.add("ada", "caf\u00e9 au lait noir", "operator")
    assert users.check("ada", "cafe\u0301 au lait noir") is not None


def test_a_hash_of_another_cost_is_renewed(file: UserFile, tmp_path: Path) -> None:
    UserStore(file, cost=CHEAP).add("ada", PASSWORD, "operator")
    dearer = UserStore(file, cost=Cost(n=2**6, r=8, p=1))
    for _ in range(2):
        assert dearer.check("ada", PASSWORD) is not None
    with sqlite3.connect(tmp_path / "users.sqlite") as db:
        assert db.execute("SELECT n FROM users").fetchall() == [(2**6,)]
    db.close()


def test_the_cost_in_use_is_that_of_the_recommendation() -> None:
    """OWASP Password Storage Cheat Sheet: scrypt with N = 2^17, r = 8, p = 1."""
    assert (STRONG.n, STRONG.r, STRONG.p) == (131072, 8, 1)
    assert STRONG.memory == 128 * 1024 * 1024


def test_an_unknown_name_takes_as_long_as_a_wrong_password(file: UserFile) -> None:
    """Medians of nine; a missing hash would be a thousand times faster."""
    users = UserStore(file, cost=Cost(n=2**12, r=8, p=1))
    users.add("ada", PASSWORD, "operator")

    def seconds(name: str) -> float:
        began = time.perf_counter()
        assert users.check(name, "wrong but long enough") is None
        return time.perf_counter() - began

    known, unknown = (
        statistics.median(seconds(name) for _ in range(9)) for name in ("ada", "nobody")
    )
    assert 0.3 < unknown / known < 3.0


def test_a_session_is_found_by_what_the_browser_keeps(file: UserFile, users: UserStore) -> None:
    users.add("ada", PASSWORD, "viewer")
    sessions = Sessions(file)
    secret = sessions.begin("ada", now=0.0)
    found = sessions.find(reference(secret), now=1.0, touch=True)
    assert found is not None
    assert (found.name, found.role) == ("ada", "viewer")
    assert sessions.find(secret, now=1.0, touch=True) is None
    assert secret != sessions.begin("ada", now=0.0)
    assert len(secret) >= 43


def test_a_stolen_file_opens_no_session(file: UserFile, users: UserStore, tmp_path: Path) -> None:
    users.add("ada", PASSWORD, "operator")
    secret = Sessions(file).begin("ada", now=0.0)
    assert secret.encode() not in (tmp_path / "users.sqlite").read_bytes()


def test_an_idle_session_ends_and_a_refreshing_page_is_idle(
    file: UserFile, users: UserStore
) -> None:
    users.add("ada", PASSWORD, "operator")
    sessions = Sessions(file, idle=100.0, absolute=1000.0)
    used, left = (reference(sessions.begin("ada", now=0.0)) for _ in range(2))
    for now in (60.0, 120.0, 180.0):
        assert sessions.find(used, now=now, touch=True) is not None
        if now < 100:
            assert sessions.find(left, now=now, touch=False) is not None
    assert sessions.find(left, now=101.0, touch=False) is None


def test_a_session_ends_in_any_case(file: UserFile, users: UserStore) -> None:
    users.add("ada", PASSWORD, "operator")
    sessions = Sessions(file, idle=100.0, absolute=1000.0)
    ref = reference(sessions.begin("ada", now=0.0))
    for now in range(50, 1001, 50):
        assert sessions.find(ref, now=float(now), touch=True) is not None
    assert sessions.find(ref, now=1000.5, touch=True) is None


@pytest.mark.parametrize("how", ["password", "remove", "end"])
def test_sessions_end_with_what_opened_them(file: UserFile, users: UserStore, how: str) -> None:
    users.add("ada", PASSWORD, "operator")
    sessions = Sessions(file)
    ref = reference(sessions.begin("ada", now=0.0))
    if how == "password":
        users.set_password("ada", "another eleven otters")
    elif how == "remove":
        users.remove("ada")
    else:
        sessions.end(ref)
    assert sessions.find(ref, now=1.0, touch=True) is None


def test_a_person_has_at_most_ten_sessions(file: UserFile, users: UserStore) -> None:
    users.add("ada", PASSWORD, "operator")
    sessions = Sessions(file)
    refs = [reference(sessions.begin("ada", now=float(n))) for n in range(12)]
    alive = [sessions.find(ref, now=12.0, touch=False) is not None for ref in refs]
    assert alive == [False] * 2 + [True] * 10


def test_a_notice_is_told_once(file: UserFile, users: UserStore) -> None:
    users.add("ada", PASSWORD, "operator")
    sessions = Sessions(file)
    ref = reference(sessions.begin("ada", now=0.0))
    sessions.tell(ref, "done")
    assert sessions.told(ref) == "done"
    assert sessions.told(ref) is None


def _waits(brake: Brake, names: Iterable[str], addresses: Iterable[str]) -> list[float]:
    """Try as often as it is allowed, and note each wait."""
    now, waits = 0.0, []
    for name, address in zip(names, addresses, strict=False):
        wait = brake.take(name, address, now=now)
        waits.append(wait)
        if wait > 0:
            now += wait
            assert brake.take(name, address, now=now) == 0.0
    return waits


def test_failures_make_a_name_wait_longer_each_time(file: UserFile) -> None:
    addresses = (f"192.0.2.{n}" for n in range(13))
    found = _waits(Brake(file), itertools.repeat("ada"), addresses)
    assert found == [0.0] * 5 + [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]


def test_an_address_waits_whatever_names_it_tries(file: UserFile) -> None:
    brake = Brake(file)
    taken = [brake.take(f"name{n}", "192.0.2.7", now=0.0) for n in range(8)]
    assert taken[:5] == [0.0] * 5
    assert all(wait > 0 for wait in taken[5:])
    assert brake.take("name9", "192.0.2.8", now=0.0) == 0.0


def test_the_wait_of_an_address_grows_to_a_quarter_of_an_hour(file: UserFile) -> None:
    names = (f"name{n}" for n in range(17))
    found = _waits(Brake(file), names, itertools.repeat("192.0.2.7"))
    assert found == [0.0] * 5 + [2.0**n for n in range(10)] + [900.0] * 2


def test_a_login_clears_its_name(file: UserFile) -> None:
    brake = Brake(file)
    for n in range(5):
        brake.take("ada", f"192.0.2.{n}", now=0.0)
    brake.clear("ada", "192.0.2.1")
    assert brake.take("ada", "192.0.2.9", now=0.0) == 0.0


def test_failures_survive_a_restart_and_are_forgotten_after_a_day(
    file: UserFile, tmp_path: Path
) -> None:
    for n in range(5):
        Brake(file).take("ada", f"192.0.2.{n}", now=0.0)
    again = Brake(UserFile(tmp_path / "users.sqlite"))
    assert again.take("ada", "192.0.2.9", now=0.5) > 0
    assert again.take("ada", "192.0.2.9", now=86_402.0) == 0.0
