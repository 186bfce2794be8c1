"""Who gets in, and what a request must carry to change something."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.routing import Route

from server.dashboard.app import routes
from server.dashboard.board import Board
from server.dashboard.calls import COOKIE, VISIT, Access, Door, network_of
from server.dashboard.forms import LARGEST, inside
from server.dashboard.headers import POLICY
from tests.server.dashboard.browsing import ORIGIN, Form, Visitor, visiting
from tests.server.dashboard.homes import (
    OPERATOR,
    PASSWORD,
    VIEWER,
    Recorder,
    board_of,
    empty_home,
    with_users,
)

NAMES = {"name": "clinics-night", "file": "report.html", "key": "x.y", "digest": "0" * 64}
PUBLIC = {"/login", "/framed/{key}/{name}/{file}", "/healthz"}


@pytest.fixture
def small(tmp_path: Path) -> Board:
    return board_of(with_users(empty_home(tmp_path / "home")))[0]


def every_route(board: Board) -> Iterator[tuple[Route, str, Access | None]]:
    """Every route with a path that could exist, and who may use it."""
    for route in routes(board):
        if isinstance(route, Route):
            path = re.sub(r"{(\w+)}", lambda match: NAMES[match[1]], route.path)
            if route.path.startswith("/nodes/{name}"):
                path = path.replace("clinics-night", "clinic-1")
            door = getattr(route.endpoint, "__self__", None)
            yield route, path, door.access if isinstance(door, Door) else None


def test_nobody_sees_anything_without_a_session(board: Board) -> None:
    checked = 0
    with Visitor(board) as visitor:
        for route, path, access in every_route(board):
            if route.path in PUBLIC:
                assert access in {Access.ANYBODY, None}
                continue
            assert access in {Access.VIEWER, Access.OPERATOR}
            if "GET" in (route.methods or ()):
                answer = visitor.get(path)
            else:
                answer = visitor.post(path, {"csrf": "0" * 64})
            if path.startswith("/api/"):
                assert answer.status_code == 401
                assert set(answer.json()) == {"error"}
            else:
                assert answer.status_code == 303
                assert answer.headers["location"].startswith("/login")
            checked += 1
    assert checked > 25


def test_every_route_that_changes_something_is_for_operators(both: tuple[Board, Recorder]) -> None:
    board, controls = both
    before = (len(board.fleet.nodes()), board.registry.current())
    with visiting(board, VIEWER) as viewer:
        token = viewer.token()
        refused = []
        for route, path, access in every_route(board):
            if route.path == "/login" or "POST" not in (route.methods or ()):
                continue
            if route.path == "/logout":
                assert access is Access.VIEWER
                continue
            assert access is Access.OPERATOR
            answer = viewer.post(path, {"csrf": token, "confirm": "clinic-1", "name": "new"})
            assert answer.status_code == 403
            assert "may look but not change" in answer.text
            refused.append(path)
        assert len(refused) >= 7
    assert controls.asked == []
    assert (len(board.fleet.nodes()), board.registry.current()) == before
    assert board.fleet.node_by_name("clinic-1").revoked_at is None  # type: ignore[union-attr]


def test_no_route_takes_another_method(board: Board) -> None:
    with visiting(board, OPERATOR) as visitor:
        for route, path, _ in every_route(board):
            assert route.methods in ({"GET", "HEAD"}, {"POST"})
            for method in ("PUT", "DELETE", "PATCH"):
                answer = visitor.http.request(method, path, headers={"origin": ORIGIN})
                assert answer.status_code == 405


def test_a_viewer_reads_every_page_and_is_offered_no_action(board: Board) -> None:
    with visiting(board, VIEWER) as viewer:
        for path in ("/", "/runs", "/runs/clinics-night", "/nodes", "/nodes/clinic-1", "/adapters"):
            page = viewer.get(path)
            assert page.status_code == 200
            actions = {a["action"] for tag, a in Form(page.text).tags if tag == "form"}
            assert actions == {"/logout"}
            links = {a.get("href", "") for tag, a in Form(page.text).tags if tag == "a"}
            assert not any(re.search(r"revoke|promote|rollback|stop$", link) for link in links)


def test_a_role_counts_as_it_is_now(small: Board) -> None:
    with visiting(small, OPERATOR) as visitor:
        small.users.remove(OPERATOR)
        assert visitor.get("/").status_code == 303


def test_login_sets_a_new_strict_cookie_and_logout_ends_it(small: Board) -> None:
    with Visitor(small) as visitor:
        visitor.get("/login")
        before = visitor.http.cookies.get(COOKIE)
        answer = visitor.login(OPERATOR)
        assert before is None
        assert answer.headers["location"] == "/"
        given = [c for c in answer.headers.get_list("set-cookie") if c.startswith(f"{COOKIE}=")]
        attributes = {part.strip().lower() for part in given[0].split(";")[1:]}
        assert attributes == {"httponly", "path=/", "samesite=strict", "secure"}
        kept = visitor.http.cookies[COOKIE]
        assert visitor.submit("/logout").status_code == 303
        visitor.http.cookies.set(COOKIE, kept, domain="localhost.local")
        assert visitor.get("/").status_code == 303


@pytest.mark.parametrize("planted", ["x" * 43, "", "known"])
def test_a_planted_session_is_never_the_one_that_is_opened(small: Board, planted: str) -> None:
    """Session fixation: the id after login is new, and the one before is void."""
    if planted == "known":
        planted = small.sessions.begin(VIEWER, now=0.0)
    with Visitor(small) as visitor:
        visitor.http.cookies.set(COOKIE, planted, domain="localhost.local")
        visitor.login(OPERATOR)
        kept = visitor.http.cookies.get(COOKIE, path="/", domain="localhost.local")
        assert kept is not None
        assert kept != planted
    with Visitor(small) as thief:
        thief.http.cookies.set(COOKIE, planted, domain="localhost.local")
        assert thief.get("/").status_code == 303


def test_login_needs_the_cookie_and_token_of_its_page(small: Board) -> None:
    fields = {"name": OPERATOR, "password": PASSWORD}
    with Visitor(small) as visitor:
        assert visitor.post("/login", fields).status_code == 403
        token = visitor.token("/login")
        assert visitor.post("/login", {**fields, "csrf": "0" * 64}).status_code == 403
        visitor.http.cookies.delete(VISIT)
        assert visitor.post("/login", {**fields, "csrf": token}).status_code == 403
        assert COOKIE not in visitor.http.cookies


@pytest.mark.parametrize(
    ("origin", "site"),
    [
        (None, None),
        ("null", None),
        ("https://evil.example", None),
        ("http://localhost:9094", None),
        ("https://localhost:9095", None),
        ("https://localhost:9094.evil.example", None),
        (ORIGIN, "cross-site"),
        (ORIGIN, "same-site"),
    ],
)
def test_a_form_of_another_page_is_refused(
    small: Board, origin: str | None, site: str | None
) -> None:
    with visiting(small, OPERATOR) as visitor:
        headers = {} if site is None else {"sec-fetch-site": site}
        token = visitor.token()
        answer = visitor.post(
            "/nodes/enrol", {"csrf": token, "name": "n"}, origin=origin, **headers
        )
        assert answer.status_code == 403
        assert small.fleet.events(5)[0].kind == "login"


@pytest.mark.parametrize("token", ["", "0" * 64, "\N{SNOWMAN}", "other"])
def test_a_form_needs_the_token_of_its_session(small: Board, token: str) -> None:
    with visiting(small, VIEWER) as other, visiting(small, OPERATOR) as visitor:
        sent = other.token() if token == "other" else token
        answer = visitor.post("/nodes/enrol", {"csrf": sent, "name": "n"})
        assert answer.status_code == 403
        assert "out of date" in answer.text
        assert visitor.submit("/nodes/enrol", name="n", hours="1").status_code == 200


def test_forms_are_bounded_and_plain(small: Board) -> None:
    with visiting(small, OPERATOR) as visitor:
        token = visitor.token()
        long = visitor.post("/nodes/enrol", {"csrf": token, "name": "n" * LARGEST})
        many = visitor.post("/nodes/enrol", {f"f{n}": "1" for n in range(40)})
        headers = {"origin": ORIGIN, "content-type": "application/x-www-form-urlencoded"}
        twice = visitor.http.request(
            "POST", "/nodes/enrol", content=f"csrf={token}&csrf={token}&name=n", headers=headers
        )
        bytes_ = visitor.http.request(
            "POST", "/nodes/enrol", content=b"name=\xff%ff", headers=headers
        )
        json = visitor.http.request(
            "POST", "/nodes/enrol", json={"csrf": token}, headers={"origin": ORIGIN}
        )
        for answer in (long, many, twice, bytes_, json):
            assert answer.status_code == 400
        assert small.fleet.nodes() == ()


def test_wrong_logins_look_alike_and_slow_down(small: Board) -> None:
    with Visitor(small) as visitor:
        texts = set()
        for n in range(5):
            answer = visitor.login(OPERATOR if n % 2 else "nobody", "wrong but long enough")
            assert answer.status_code == 403
            shown = re.sub(r'value="[^"]*"', "", answer.text)
            texts.add(re.sub(r" autofocus", "", shown))
        assert len(texts) == 1
        answer = visitor.login(OPERATOR)
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) >= 1
        assert "Too many tries" in answer.text
    with Visitor(small, address="198.51.100.1") as elsewhere:
        assert elsewhere.login(VIEWER).status_code == 303


def test_a_crowd_of_logins_waits_for_its_turn(
    small: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.dashboard.login._PATIENCE", 0.01)
    with small.hashing, Visitor(small) as visitor:
        answer = visitor.login(OPERATOR)
    assert answer.status_code == 503
    assert "busy" in answer.text


def test_passwords_are_in_no_page_and_no_log(
    small: Board, caplog: pytest.LogCaptureFixture
) -> None:
    with Visitor(small) as visitor:
        answer = visitor.login(OPERATOR, "secret wrong password")
        visitor.login(OPERATOR)
    assert "secret wrong" not in answer.text
    kept = str([event.facts for event in small.fleet.events(10)]) + caplog.text
    assert PASSWORD not in kept
    assert "secret wrong" not in kept


def test_logins_are_in_the_operators_log(small: Board) -> None:
    with Visitor(small) as visitor:
        visitor.login(OPERATOR, "secret wrong password")
        visitor.login(OPERATOR)
        visitor.submit("/logout")
    kinds = [event.kind for event in small.fleet.events(10)]
    assert kinds == ["logout", "login", "login-refused"]


@pytest.mark.parametrize(
    "after",
    [
        "//evil.example",
        "https://evil.example",
        "/\\evil.example",
        "javascript:alert(1)",
        "/a//b",
        "",
    ],
)
def test_login_leads_nowhere_else(small: Board, after: str) -> None:
    assert inside(after) == "/"
    with Visitor(small) as visitor:
        page = Form(visitor.http.request("GET", "/login", params={"next": after}).text)
        assert page.hidden["next"] == "/"
        fields = {"csrf": page.hidden["csrf"], "name": OPERATOR, "password": PASSWORD}
        answer = visitor.post("/login", {**fields, "next": after})
        assert answer.headers["location"] == "/"


def test_login_leads_back(small: Board) -> None:
    with Visitor(small) as visitor:
        where = visitor.get("/nodes/clinic-1").headers["location"]
        assert Form(visitor.get(where).text).hidden["next"] == "/nodes/clinic-1"


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "", "[::2]"])
def test_a_foreign_name_reads_nothing(small: Board, host: str) -> None:
    with visiting(small, OPERATOR) as visitor:
        answer = visitor.get("/", host=host)
        assert answer.status_code == 421
        assert answer.headers["content-security-policy"] == POLICY


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/login", 200),
        ("/healthz", 200),
        ("/nope", 404),
        ("/", 303),
        ("/api/v1/runs", 401),
        ("/static/dashboard.css", 200),
        ("/static/../app.py", 404),
        ("/static/%2e%2e/app.py", 404),
    ],
)
def test_every_answer_carries_the_headers(small: Board, path: str, status: int) -> None:
    with Visitor(small) as visitor:
        answer = visitor.get(path)
        assert answer.status_code == status
        headers = answer.headers
        assert "unsafe-inline" not in headers["content-security-policy"]
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "same-origin"
        assert headers["cross-origin-opener-policy"] == "same-origin"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert "camera=()" in headers["permissions-policy"]
        cached = "private, no-cache" if path.endswith(".css") else "no-store"
        assert headers["cache-control"] == cached
        assert "server" not in headers


def test_strict_transport_is_for_names_alone(tmp_path: Path) -> None:
    board = board_of(empty_home(tmp_path / "home", hosts=("fleet.example.org",)))[0]
    with Visitor(board) as visitor:
        named = visitor.get("/login", host="fleet.example.org:9094")
        assert named.headers["strict-transport-security"] == "max-age=31536000"
        for host in ("localhost:9094", "127.0.0.1:9094"):
            assert "strict-transport-security" not in visitor.get("/login", host=host).headers


def test_an_unexpected_error_says_little(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        msg = "a secret of the machine"
        raise RuntimeError(msg)

    with visiting(board, OPERATOR) as visitor:
        monkeypatch.setattr(board.runs, "all", broken)
        for path in ("/runs", "/api/v1/runs"):
            answer = visitor.get(path)
            assert answer.status_code == 500
            assert "secret of the machine" not in answer.text
            assert "logs/dashboard.log" in answer.text
            assert answer.headers["content-security-policy"] == POLICY


@pytest.mark.parametrize(
    ("host", "known"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8::ffff:1", "2001:db8::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", "unknown"),
        ("testclient", "unknown"),
    ],
)
def test_failures_are_counted_by_network(host: str, known: str) -> None:
    assert network_of(host) == known


def test_a_refresh_is_no_activity(small: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = {"now": 1_000_000.0}
    monkeypatch.setattr("server.dashboard.calls.time.time", lambda: clock["now"])
    with visiting(small, OPERATOR) as visitor:
        for _ in range(3):
            clock["now"] += 700
            quiet = visitor.http.request("GET", "/", headers={"x-fedslm-refresh": "1"})
        assert quiet.status_code == 303
    with visiting(small, OPERATOR) as visitor:
        for _ in range(3):
            clock["now"] += 700
            assert visitor.get("/").status_code == 200
