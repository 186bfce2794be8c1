"""What the pages say, and that nothing in a file or a name becomes markup or a path."""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from server.dashboard.board import Board
from server.dashboard.controls import CommandControls
from server.dashboard.headers import FRAMED_POLICY
from server.dashboard.sessions import reference
from shared.enrolment import EnrolmentToken
from shared.errors import FleetError, InvalidValue
from shared.pki import fingerprint
from tests.server.dashboard.browsing import Form, Visitor, shown, visiting
from tests.server.dashboard.homes import (
    EVIL,
    OPERATOR,
    VIEWER,
    Recorder,
    add_run,
    board_of,
    empty_home,
    order,
    supervised,
    with_users,
    write_status,
)

PAGES = ("/", "/runs", "/nodes", "/budget", "/audits", "/adapters", "/activity")
API = ("overview", "runs", "nodes", "budget", "audits", "adapters", "activity")
BAD_NAMES = (
    "%2e%2e",
    "..%2f..%2fkeys",
    "%2fetc%2fpasswd",
    "clinics-night%00",
    "clinics-night%0a",
    ".hidden",
    "a" * 101,
    "%3Cscript%3E",
    "link",
    "CLINICS-NIGHT",
)


@pytest.fixture
def empty(tmp_path: Path) -> Board:
    return board_of(with_users(empty_home(tmp_path / "home")))[0]


def test_the_overview_says_what_runs_and_what_to_do(board: Board) -> None:
    with visiting(board, VIEWER) as visitor:
        text = shown(visitor.get("/").text)
        assert "The server's other processes are not running." in text
        assert "fedslm server run DIR" in text
        with supervised(board.home):
            text = shown(visitor.get("/").text)
    assert "other processes" not in text
    assert "all up" in text
    assert "Rounds of the running run 14 / 30" in text
    assert "Nodes online 3 / 6" in text
    assert "The audit of run trial-open found a violation." in text
    assert "Node clinic-3 was flagged: norm-clipped." in text
    assert "1 node not seen for a day or more: clinic-5." in text
    assert "✓ verifies" in text


def test_a_process_that_is_down_is_urgent(board: Board) -> None:
    write_status(
        board.home,
        time.time(),
        control={"running": False, "state": "down", "since": None, "last_exit": 1, "restarts": 7},
    )
    with supervised(board.home), visiting(board, VIEWER) as visitor:
        text = shown(visitor.get("/").text)
    assert "Process control is down." in text
    assert "logs/control.log" in text
    assert "1 not up" in text


@pytest.mark.parametrize("path", PAGES)
def test_an_empty_server_says_what_to_do_first(empty: Board, path: str) -> None:
    said = {
        "/": "start one on the page Runs",
        "/runs": "No run yet. Choose a scenario above.",
        "/nodes": "No node is enrolled. Make a token above",
        "/budget": "the first run begins it",
        "/audits": "No run has an audit report yet.",
        "/adapters": "No adapter is in the registry.",
        "/activity": "login",
    }
    with visiting(empty, OPERATOR) as visitor:
        answer = visitor.get(path)
    assert answer.status_code == 200
    assert said[path] in shown(answer.text)


def test_before_the_first_person_the_login_page_says_how(tmp_path: Path) -> None:
    board = board_of(empty_home(tmp_path / "home"))[0]
    with Visitor(board) as visitor:
        assert "fedslm server user add NAME --role operator" in visitor.get("/login").text


def test_epsilon_never_stands_alone(board: Board) -> None:
    with visiting(board, VIEWER) as visitor:
        for path in ("/", "/runs", "/runs/clinics-night", "/budget", "/nodes/clinic-1"):
            text = shown(visitor.get(path).text)
            assert "psilon" in text
            for word in ("elta", "add-or-remove-one", "elease", "client|example"):
                assert re.search(word, text), (path, word)


def test_a_run_says_what_is_promised(board: Board) -> None:
    with visiting(board, VIEWER) as visitor:
        text = shown(visitor.get("/runs/clinics-night").text)
        assert "Epsilon spent 5.397 at delta 5·10⁻⁴" in text
        assert "14, composed" in text
        assert "Simulation:" not in text
        open_ = shown(visitor.get("/runs/trial-open").text)
    assert "No privacy:" in open_
    assert "There is no epsilon." in open_


def test_noise_that_changes_and_votes_are_said_and_drawn(board: Board) -> None:
    """A run from z to z / 2 whose second round had a vote."""
    folder = add_run(board.home, "changing", rounds=2, planned=4)
    identity = json.loads((folder / "run.json").read_text())
    identity["plan"] |= {
        "schedule": {"form": "linear", "final": 0.5},
        "vote": {"every": 1, "noise_multiplier": 3.0},
    }
    (folder / "run.json").write_text(json.dumps(identity))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows[0] |= {"noise_multiplier": 0.62, "public_loss": 3.25}
    rows[1] |= {"noise_multiplier": 0.51, "vote": -0.25}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with visiting(board, VIEWER) as visitor:
        text = shown(visitor.get("/runs/changing").text)
        fixed = shown(visitor.get("/runs/clinics-night").text)
    assert "Noise multiplier 0.62 in the first rounds to 0.31 in the last" in text
    assert "after every 1 rounds, noised with 3 and charged" in text
    for title in ("Noise of a round", "Public loss", "Votes"):
        assert title in text
        assert title not in fixed


def test_seeded_noise_is_warned_of(board: Board) -> None:
    add_run(board.home, "seeded", rounds=2, planned=4, noise_source="seeded-simulation")
    with visiting(board, VIEWER) as visitor:
        assert "this adapter itself protects nobody" in visitor.get("/runs/seeded").text
        assert "seeded noise" in shown(visitor.get("/runs").text)


@pytest.mark.parametrize(
    ("state", "wanted", "shown_as", "can"),
    [
        ("ordered", "running", "ordered", "stop"),
        ("running", "running", "running", "stop"),
        ("waiting", "running", "waiting", "stop"),
        ("running", "stopped", "stopping", "resume"),
        ("stopped", "stopped", "stopped", "resume"),
        ("failed", "running", "failed", "resume"),
        ("completed", "running", "completed", None),
    ],
)
def test_the_state_of_a_run_says_what_can_be_done(
    board: Board, state: str, wanted: str, shown_as: str, can: str | None
) -> None:
    add_run(board.home, "other", rounds=2, planned=4)
    order(board.home, "other", state, wanted=wanted)
    with visiting(board, OPERATOR) as visitor:
        page = visitor.get("/runs/other")
        assert f" {shown_as} last change" in shown(page.text)
        assert ("/runs/other/stop" in page.text) == (can == "stop")
        assert ("/runs/other/resume" in page.text) == (can == "resume")
        if state in {"waiting", "failed"}:
            assert "No node is online." in shown(page.text)


def test_a_run_is_started_stopped_and_goes_on(both: tuple[Board, Recorder]) -> None:
    board, controls = both
    with visiting(board, OPERATOR) as visitor:
        assert visitor.submit("/runs/start", scenario="clinics").status_code == 303
        assert controls.asked == [("start", "clinics")]
        assert "Run clinics-1 was ordered" in visitor.get("/runs").text
        assert "Run clinics-1 was ordered" not in visitor.get("/runs").text
        assert "Stop run clinics-night?" in shown(visitor.get("/runs/clinics-night/stop").text)
        assert board.orders.read_order("clinics-night").wanted == "running"
        assert visitor.submit("/runs/clinics-night/stop").status_code == 303
        assert board.orders.read_order("clinics-night").wanted == "stopped"
        assert visitor.submit("/runs/clinics-night/resume").status_code == 303
        assert board.orders.read_order("clinics-night").wanted == "running"
        assert visitor.submit("/runs/clinics-first/stop").status_code == 400
    done = [(e.kind, e.facts.get("run"), e.facts["by"]) for e in board.fleet.events(4)][::-1]
    assert done[1:] == [
        ("run-started", "clinics-1", OPERATOR),
        ("run-stopped", "clinics-night", OPERATOR),
        ("run-resumed", "clinics-night", OPERATOR),
    ]


def test_a_token_is_shown_once_and_good(board: Board) -> None:
    with visiting(board, OPERATOR) as visitor:
        answer = visitor.submit("/nodes/enrol", name="clinic-9", hours="2")
        assert answer.status_code == 200
        assert answer.headers["cache-control"] == "no-store"
        text = answer.text[answer.text.index("fedslm1.") :].partition("<")[0]
        token = EnrolmentToken.from_text(text)
        assert token.name == "clinic-9"
        assert token.fingerprint == fingerprint(board.home.ca_certificate.read_bytes())
        assert abs(token.expires_at - time.time() - 7200) < 60
        for path in (*PAGES, *(f"/api/v1/{name}" for name in API)):
            assert token.secret not in visitor.get(path).text
    redeemed = board.fleet.redeem(token.secret, b"key of clinic 9")
    assert (redeemed.name, redeemed.role) == ("clinic-9", "node")
    made = next(event for event in board.fleet.events(9) if event.kind == "token")
    assert (made.facts["by"], made.facts["name"]) == (OPERATOR, "clinic-9")


@pytest.mark.parametrize(
    ("name", "hours", "status"),
    [
        ("Clinic 9", "2", 400),
        (EVIL, "2", 400),
        ("clinic-9", "0", 400),
        ("clinic-9", "nan", 400),
        ("clinic-9", "inf", 400),
        ("clinic-9", "soon", 400),
        ("clinic-1", "2", 409),
    ],
)
def test_a_poor_token_is_refused_with_a_reason(
    board: Board, name: str, hours: str, status: int
) -> None:
    with visiting(board, OPERATOR) as visitor:
        answer = visitor.submit("/nodes/enrol", name=name, hours=hours)
    assert answer.status_code == status
    assert "fedslm1." not in answer.text
    assert "<script>alert" not in answer.text


def test_a_node_is_revoked_only_with_its_name(board: Board) -> None:
    with visiting(board, OPERATOR) as visitor:
        question = visitor.get("/nodes/clinic-1/revoke")
        assert "Type clinic-1 to confirm" in shown(question.text)
        assert visitor.submit("/nodes/clinic-1/revoke", confirm="clinic-2").status_code == 400
        assert board.fleet.allowed(b"key of clinic 1")
        sent = {"confirm": "clinic-1", "reason": EVIL}
        assert visitor.submit("/nodes/clinic-1/revoke", **sent).status_code == 303
        assert not board.fleet.allowed(b"key of clinic 1")
        listed = visitor.get("/nodes")
        assert "Node clinic-1 was revoked" in listed.text
        assert visitor.submit("/nodes/clinic-1/revoke", confirm="clinic-1").status_code == 404
        for path in ("/nodes/clinic-1", "/activity", "/nodes"):
            assert "<script>alert" not in visitor.get(path).text
        assert "&lt;script&gt;" in visitor.get("/nodes/clinic-1").text
    newest = board.fleet.events(1)[0]
    assert (newest.kind, newest.facts["by"]) == ("revoke", OPERATOR)


def test_adapters_are_promoted_and_rolled_back(board: Board) -> None:
    newest, second, first = (one.digest for one in board.registry.versions())
    with visiting(board, OPERATOR) as visitor:
        assert "Promote version" in shown(visitor.get(f"/adapters/{newest}/promote").text)
        assert visitor.submit(f"/adapters/{newest}/promote").status_code == 303
        assert _current(board) == newest
        assert visitor.submit("/adapters/rollback").status_code == 303
        assert _current(board) == second
        assert visitor.submit("/adapters/rollback").status_code == 303
        assert _current(board) == first
        refused = visitor.submit("/adapters/rollback")
        assert refused.status_code == 409
        assert "expected one before the current" in refused.text
        assert visitor.submit(f"/adapters/{'0' * 64}/promote").status_code == 404
    kinds = [event.kind for event in board.fleet.events(3)]
    assert kinds == ["adapter-rolled-back", "adapter-rolled-back", "adapter-promoted"]


def _current(board: Board) -> str:
    current = board.registry.current()
    assert current is not None
    return current.digest


def test_a_tampered_ledger_is_said(board: Board) -> None:
    with visiting(board, VIEWER) as visitor:
        assert "The chain verifies:" in visitor.get("/budget").text
        with sqlite3.connect(board.home.ledger) as db:
            triggers = db.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'")
            for (name,) in triggers.fetchall():
                db.execute(f'DROP TRIGGER "{name}"')
            db.execute("UPDATE entries SET scope = 'others' WHERE seq = 1")
        db.close()
        page = visitor.get("/budget")
        assert "The chain does not verify." in page.text
        assert "restore it from a copy" in page.text
        assert "The ledger does not verify" in visitor.get("/").text
        assert visitor.get("/api/v1/budget").json()["ledger"]["whole"] is False


def test_a_ledger_that_is_none_is_an_error_page(board: Board) -> None:
    for path in board.home.path.glob("ledger.sqlite*"):
        path.unlink()
    board.home.ledger.write_bytes(b"not a database at all" * 400)
    with visiting(board, VIEWER) as visitor:
        page = visitor.get("/budget")
        assert page.status_code == 503
        assert 'role="alert"' in page.text
        assert "Back to the overview" in page.text
        found = visitor.get("/api/v1/budget")
    assert found.status_code == 503
    assert found.json()["error"]["code"].startswith("ledger")


@pytest.mark.parametrize("name", BAD_NAMES)
def test_no_name_leads_out_of_the_runs(board: Board, name: str) -> None:
    secret = board.home.path / "secret"
    secret.mkdir()
    shutil.copytree(board.home.runs / "clinics-first", secret, dirs_exist_ok=True)
    (board.home.runs / "link").symlink_to(secret)
    with visiting(board, OPERATOR) as visitor:
        paths = [f"/runs/{name}{end}" for end in ("", "/report", "/audit", "/stop")]
        for path in (*paths, f"/api/v1/runs/{name}"):
            answer = visitor.get(path)
            assert answer.status_code in {404, 421}, path
            assert "<script>" not in answer.text
        assert visitor.submit(f"/runs/{name}/stop").status_code == 404


@pytest.mark.parametrize("file", ["run.json", "ledger.key", "..", "%2e%2e%2frun.json", "x.html"])
def test_only_the_two_report_pages_are_served(board: Board, file: str) -> None:
    with visiting(board, VIEWER) as visitor:
        source = _source(visitor)
        base = source.rpartition("/")[0]
        assert visitor.get(f"{base}/{file}").status_code == 404
        (board.home.runs / "clinics-first" / "report.html").unlink()
        (board.home.runs / "clinics-first" / "report.html").symlink_to(board.home.session_key)
        assert visitor.get(source).status_code == 404


def _source(visitor: Visitor) -> str:
    tags = Form(visitor.get("/runs/clinics-first/report").text).tags
    frame = next(attributes for tag, attributes in tags if tag == "iframe")
    assert frame["sandbox"] == ""
    return frame["src"]


def test_a_report_is_framed_without_origin_or_script(board: Board) -> None:
    with visiting(board, VIEWER) as visitor:
        source = _source(visitor)
        answer = visitor.get(source)
        assert answer.status_code == 200
        assert "The report" in answer.text
        policy = answer.headers["content-security-policy"]
        assert policy == FRAMED_POLICY
        assert policy.startswith("sandbox; default-src 'none'")
        assert "script" not in policy
        assert answer.headers["x-frame-options"] == "SAMEORIGIN"
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        inner = visitor.get(source.replace("report.html", "audit.html"))
        assert "The audit" in inner.text


def test_the_key_of_a_frame_is_one_sessions_and_one_runs(board: Board) -> None:
    with visiting(board, VIEWER) as visitor:
        source = _source(visitor)
        with Visitor(board) as bare:
            assert bare.get(source).status_code == 200
            other = source.replace("clinics-first", "trial-open")
            assert bare.get(other).status_code == 404
            ref, _, token = source.split("/")[2].partition(".")
            made = board.sessions.begin(OPERATOR, now=time.time())
            forged = source.replace(ref, reference(made))
            assert bare.get(forged).status_code == 404
            assert bare.get(source.replace(token, "0" * 64)).status_code == 404
            visitor.submit("/logout")
            assert bare.get(source).status_code == 404


def test_markup_in_files_stays_text(board: Board) -> None:
    folder = add_run(board.home, "evil", rounds=2, planned=2, verdict="violation", finding=EVIL)
    run = json.loads((folder / "run.json").read_text())
    run["config"]["run"]["name"] = EVIL
    run["plan"] |= {"unit": EVIL, "neighboring_relation": EVIL, "noise_source": EVIL}
    (folder / "run.json").write_text(json.dumps(run))
    summary = json.loads((folder / "summary.json").read_text())
    summary["privacy"] |= {"unit": EVIL, "mode": EVIL, "neighboring_relation": EVIL}
    (folder / "summary.json").write_text(json.dumps(summary))
    audit = json.loads((folder / "audit.json").read_text())
    audit |= {"profile": EVIL, "unit": EVIL}
    audit["findings"][0] |= {"audit": EVIL, "metric": EVIL, "strength": EVIL, "verdict": EVIL}
    (folder / "audit.json").write_text(json.dumps(audit))
    order(board.home, "evil", "failed")
    state = board.home.runs / "evil" / "fleet.json"
    state.write_text(json.dumps({"schema": 1, "state": "failed", "reason": EVIL}))
    line = {"round": 3, "aborted": EVIL, "cohort": EVIL, "seconds": EVIL, "loss": EVIL}
    with (folder / "metrics.jsonl").open("a") as stream:
        stream.write(json.dumps(line) + "\n")
    board.fleet.event("odd-thing", by=EVIL, what=EVIL)
    escaped = 0
    with visiting(board, OPERATOR) as visitor:
        for path in (*PAGES, "/runs/evil", "/runs/evil/report"):
            answer = visitor.get(path)
            assert answer.status_code == 200, path
            tags = Form(answer.text).tags
            assert not any(tag == "img" for tag, _ in tags)
            assert [a.get("src") for tag, a in tags if tag == "script"] == ["/static/dashboard.js"]
            assert not any(key.startswith("on") for _, a in tags for key in a)
            escaped += answer.text.count("&lt;script&gt;alert(1)")
    assert escaped >= 10


JUNK: tuple[Any, ...] = (None, "x", -1, 1e308, [], {}, [None], {"a": 1}, True, 10**400, "<b>")


@pytest.mark.parametrize("junk", JUNK, ids=range(len(JUNK)))
def test_no_damage_breaks_a_page(board: Board, junk: object) -> None:
    """Every key of every file that the pages read, one kind of junk at a time."""
    folder = board.home.runs / "clinics-first"
    with visiting(board, VIEWER) as visitor:
        for name in ("run.json", "summary.json", "audit.json"):
            known = json.loads((folder / name).read_text())
            inner = [(key, None) for key in known] + [
                (key, below)
                for key, value in known.items()
                if isinstance(value, dict)
                for below in value
            ]
            for key, below in inner:
                broken = json.loads(json.dumps(known))
                if below is None:
                    broken[key] = junk
                else:
                    broken[key][below] = junk
                (folder / name).write_text(json.dumps(broken))
                for path in ("/runs/clinics-first", "/audits"):
                    assert visitor.get(path).status_code == 200, (name, key, below, path)
            (folder / name).write_text(json.dumps(known))
        line = {"round": 3} | dict.fromkeys(("cohort", "answered", "loss", "epsilon"), junk)
        (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n" + json.dumps(junk) + "\n")
        for path in ("/", "/runs", "/runs/clinics-first", "/api/v1/runs/clinics-first"):
            assert visitor.get(path).status_code == 200


def test_a_damaged_run_is_said_and_a_torn_line_left_out(board: Board) -> None:
    folder = board.home.runs / "clinics-night"
    with (folder / "metrics.jsonl").open("a") as stream:
        stream.write('{"round": 15, "coh')
    with visiting(board, VIEWER) as visitor:
        assert "14 / 30" in shown(visitor.get("/runs/clinics-night").text)
        (folder / "run.json").write_text("{")
        page = shown(visitor.get("/runs/clinics-night").text)
        assert "Damaged:" in page
        assert "The folder of run clinics-night is damaged." in shown(visitor.get("/").text)


def test_json_says_what_the_pages_say(board: Board) -> None:
    with visiting(board, VIEWER) as visitor:
        found = {name: visitor.get(f"/api/v1/{name}").json() for name in API}
        run = visitor.get("/api/v1/runs/clinics-night").json()
    assert found["runs"]["runs"][0]["name"] == "clinics-night"
    assert len(run["rounds"]) == 14
    assert {one["name"]: one["state"] for one in found["nodes"]["nodes"]} == {
        "clinic-1": "online",
        "clinic-2": "online",
        "clinic-3": "online",
        "clinic-4": "away",
        "clinic-5": "silent",
        "clinic-6": "revoked",
        "clinic-7": "new",
    }
    accounts = {one["subject"]: one for one in found["budget"]["accounts"]}
    assert accounts["population"]["cap"] == 8.0
    assert accounts["client-0"]["node"] == "clinic-1"
    assert found["budget"]["ledger"]["whole"] is True
    assert [one["current"] for one in found["adapters"]["versions"]] == [False, True, False]
    assert found["audits"]["trial-open"]["verdict"] == "violation"
    assert found["overview"]["chain"]["trusted"] is True


def test_an_audit_is_never_said_to_have_been_passed(board: Board) -> None:
    with visiting(board, VIEWER) as visitor:
        for path in ("/audits", "/runs", "/", "/adapters"):
            words = shown(visitor.get(path).text).lower().split()
            assert not {"pass", "passed", "passes", "safe", "secure"} & set(words)


def test_a_file_that_changes_is_read_again(board: Board) -> None:
    folder = board.home.runs / "clinics-night"
    with visiting(board, VIEWER) as visitor:
        assert "14 / 30" in shown(visitor.get("/runs/clinics-night").text)
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        (folder / "metrics.jsonl").write_text("\n".join(lines[:3]) + "\n")
        os.utime(folder / "metrics.jsonl", (1.0, 1.0))
        assert "3 / 30" in shown(visitor.get("/runs/clinics-night").text)


def _controls(tmp_path: Path, script: str) -> CommandControls:
    program = tmp_path / "fedslm"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o700)
    return CommandControls(tmp_path / "home", command=[str(program)])


LISTED = """if [ "$1" = simulate ]; then
  echo '{"scenarios": [{"name": "a-b", "about": "x"}]}'
  exit
fi
"""


def test_a_run_is_started_by_the_command(tmp_path: Path) -> None:
    told = tmp_path / "told"
    controls = _controls(tmp_path, LISTED + f'echo "$@" > {told}; echo \'{{"name": "a-b-1"}}\'')
    assert controls.start("a-b") == "a-b-1"
    assert told.read_text().split() == [
        "server",
        "start-run",
        "a-b",
        "--dir",
        str(tmp_path / "home"),
        "--json",
    ]


@pytest.mark.parametrize("scenario", ["", "other", "--help", "../a-b", "a-b.toml", "A-B", "a-b\n"])
def test_only_listed_scenarios_are_started(tmp_path: Path, scenario: str) -> None:
    with pytest.raises(InvalidValue):
        _controls(tmp_path, LISTED + "exit 0").start(scenario)


def test_what_a_failed_command_says_is_passed_on(tmp_path: Path) -> None:
    said = json.dumps({"error": "fleet", "message": "No node is enrolled.", "hint": "x"})
    controls = _controls(tmp_path, LISTED + f"echo '{said}'; exit 90")
    with pytest.raises(FleetError, match="No node is enrolled"):
        controls.start("a-b")
    with pytest.raises(FleetError, match="code 3"):
        _controls(tmp_path, LISTED + "echo secret traceback; exit 3").start("a-b")


def test_scenarios_that_cannot_be_listed_are_none(tmp_path: Path) -> None:
    assert _controls(tmp_path, "exit 1").scenarios() == ()
    assert _controls(tmp_path, "echo no json").scenarios() == ()
    assert CommandControls(tmp_path, command=["/nonexistent"]).scenarios() == ()


@pytest.mark.slow
def test_the_built_in_scenarios_are_listed(tmp_path: Path) -> None:
    names = [one.name for one in CommandControls(tmp_path).scenarios()]
    assert "quickstart" in names
