"""The pages that only show something."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.responses import FileResponse, HTMLResponse, Response

from server.dashboard.attention import matters
from server.dashboard.budget import Account
from server.dashboard.calls import Call, missing
from server.dashboard.headers import FRAMED_POLICY
from server.dashboard.pages import page
from server.dashboard.runcharts import charts_of
from server.dashboard.runs import HALTED, MOVING, PAGES, Run
from server.dashboard.sessions import Session

_SHOWN_ROUNDS = 200
_SHOWN_EVENTS = 200


def overview(call: Call) -> Response:
    """Show what runs, what was spent, and what needs attention."""
    return page(call, "overview", live=True, **overview_values(call))


def overview_values(call: Call) -> dict[str, Any]:
    """Collect what the overview shows."""
    board = call.board
    runs, nodes = board.runs.all(), board.nodes(call.now)
    accounts, chain, health = board.accounts(), board.chain(), board.health()
    active = [node for node in nodes if node.state != "revoked"]
    return {
        "runs": runs,
        "latest": runs[0] if runs else None,
        "audited": next((run for run in runs if run.verdict), None),
        "nodes": active,
        "online": [node for node in active if node.state == "online"],
        "worst": worst_of(accounts),
        "chain": chain,
        "health": health,
        "matters": matters(
            board,
            health=health,
            runs=runs,
            nodes=nodes,
            accounts=accounts,
            chain=chain,
            now=call.now,
        ),
    }


def worst_of(accounts: tuple[Account, ...]) -> Account | None:
    """Return the account nearest to its cap; one without privacy before all others."""
    if not accounts:
        return None
    return max(accounts, key=lambda one: (not one.private, one.share or 0.0, one.epsilon or 0.0))


def runs(call: Call) -> Response:
    """List all runs."""
    scenarios = call.board.controls.scenarios() if call.operator else ()
    return page(call, "runs", live=True, runs=call.board.runs.all(), scenarios=scenarios)


def run_of(call: Call) -> Run:
    """Return the run that a path names.

    Raises:
        HTTPException: if there is none.
    """
    found = call.board.runs.get(call.params["name"])
    if found is None:
        raise missing("run")
    return found


def run(call: Call) -> Response:
    """Show one run."""
    found = run_of(call)
    metrics = call.board.runs.metrics(found.name)
    return page(
        call,
        "run",
        live=found.state in {*MOVING, "stopping", "open"},
        run=found,
        can_stop=found.state in MOVING,
        can_resume=found.state in HALTED,
        charts=charts_of(metrics, found),
        rounds=list(reversed(metrics))[:_SHOWN_ROUNDS],
        hidden=max(0, len(metrics) - _SHOWN_ROUNDS),
        summary=call.board.runs.summary(found.name),
    )


def report(call: Call) -> Response:
    """Show the run's report inside a sandboxed frame."""
    return _framed(call, "report.html", "Run report")


def audit(call: Call) -> Response:
    """Show the run's audit report inside a sandboxed frame."""
    return _framed(call, "audit.html", "Audit report")


def _framed(call: Call, file: str, title: str) -> Response:
    """Show a report page inside a sandboxed frame."""
    found = run_of(call)
    if file not in found.pages:
        raise missing("report")
    source = f"/framed/{frame_key(call, found.name)}/{found.name}/{file}"
    return page(call, "framed", run=found, title=title, source=source)


def frame_key(call: Call, name: str) -> str:
    """Return the part of a path that opens a report page for one session.

    A sandboxed frame has no origin, so that the browser sends no cookie with a link inside it; the
    key stands for the session and dies with it.
    """
    ref = call.who.ref
    return f"{ref}.{call.board.seal.of('frame', f'{ref}|{name}')}"


def framed(call: Call) -> Response:
    """Serve one of a run's two report pages, without origin, script or request."""
    name, file = call.params["name"], call.params["file"]
    ref, _, token = call.params["key"].partition(".")
    session: Session | None = None
    if call.board.seal.fits(token, "frame", f"{ref}|{name}"):
        session = call.board.sessions.find(ref, now=call.now, touch=True)
    path = call.board.runs.page(name, file) if session is not None and file in PAGES else None
    headers = {"content-security-policy": FRAMED_POLICY, "x-frame-options": "SAMEORIGIN"}
    if path is None:
        text = "<!doctype html><title>Not here</title><p>Open this page from the run's own page."
        return HTMLResponse(text, 404, headers=headers)
    return FileResponse(path, media_type="text/html; charset=utf-8", headers=headers)


def nodes(call: Call) -> Response:
    """List all devices."""
    return page(
        call,
        "nodes",
        live=True,
        nodes=call.board.nodes(call.now),
        people=call.board.people(call.now),
        hours=call.board.home.config.token_hours,
    )


def node(call: Call) -> Response:
    """Show one device."""
    name = call.params["name"]
    board = call.board
    found = [one for one in (*board.nodes(call.now), *board.people(call.now)) if one.name == name]
    if not found:
        raise missing("node")
    accounts = [one for one in board.accounts() if one.node == name]
    return page(call, "node", live=True, node=found[0], earlier=found[1:], accounts=accounts)


def budget(call: Call) -> Response:
    """Show what was spent against the caps, and whether the ledger is whole."""
    accounts = call.board.accounts()
    clients = [one for one in accounts if one.subject.startswith("client-")]
    others = [one for one in accounts if not one.subject.startswith("client-")]
    chain = call.board.chain()
    return page(call, "budget", live=True, populations=others, clients=clients, chain=chain)


def audits(call: Call) -> Response:
    """List the verdicts and findings of all audits."""
    found = [(run, call.board.runs.audit(run.name)) for run in call.board.runs.all() if run.verdict]
    return page(call, "audits", found=found)


def adapters(call: Call) -> Response:
    """List the versions of the adapter."""
    return page(call, "adapters", **adapter_values(call))


def adapter_values(call: Call) -> dict[str, Any]:
    """Collect the versions of the adapter, newest first."""
    registry = call.board.registry
    current, versions = registry.current(), registry.versions()
    return {
        "versions": versions,
        "current": None if current is None else current.digest,
        "facts": {one.digest: manifest_facts(one.manifest) for one in versions},
    }


def manifest_facts(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return a manifest as rows of a table."""
    return [(key.replace("_", " "), _plain(value)) for key, value in manifest.items()]


def _plain(value: object) -> str:
    """Return a value of a manifest as text."""
    if value is None:
        return "\u2013"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_plain(item) for item in value)
    return str(value)


def activity(call: Call) -> Response:
    """List what operators have done."""
    events = call.board.fleet.events(_SHOWN_EVENTS)
    rows = [
        (event, _plain({k: v for k, v in event.facts.items() if k != "by"})) for event in events
    ]
    return page(call, "activity", rows=rows)
