"""The pages that change something, each with its question first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from starlette.responses import RedirectResponse, Response

from server.control.settings import enrol_address
from server.dashboard.calls import Call, missing
from server.dashboard.look import run_of
from server.dashboard.pages import page
from server.dashboard.words import short
from server.enrolling import issue_token
from shared.errors import InvalidValue
from shared.pki import fingerprint

if TYPE_CHECKING:
    from server.registry import AdapterVersion


def done(call: Call, path: str, notice: str) -> Response:
    """Go on to a page that says what was done."""
    call.board.sessions.tell(call.who.ref, notice)
    return RedirectResponse(path, 303)


def log(call: Call, kind: str, facts: Mapping[str, str]) -> None:
    """Write an action into the operators' log."""
    board, by = call.board, call.who.name
    board.fleet.event(kind, now=call.now, **facts, by=by, through="dashboard")


def start_run(call: Call) -> Response:
    """Start a run of a built-in scenario."""
    scenario = call.form.get("scenario", "")
    name = call.board.controls.start(scenario)
    log(call, "run-started", {"scenario": scenario, "run": name})
    return done(
        call, "/runs", f"Run {name or scenario} was ordered; a running server takes it up at once."
    )


def ask_stop(call: Call) -> Response:
    """Ask whether a run is to be stopped."""
    return page(call, "stop", run=run_of(call))


def stop_run(call: Call) -> Response:
    """Stop a run."""
    found = run_of(call)
    call.board.orders.want(found.name, "stopped")
    log(call, "run-stopped", {"run": found.name})
    return done(call, f"/runs/{found.name}", f"Run {found.name} was told to stop.")


def resume_run(call: Call) -> Response:
    """Let a run go on from its last finished round."""
    found = run_of(call)
    call.board.orders.want(found.name, "running")
    log(call, "run-resumed", {"run": found.name})
    return done(call, f"/runs/{found.name}", f"Run {found.name} was told to go on.")


def new_token(call: Call) -> Response:
    """Make an enrolment token and show it, once: it is kept nowhere."""
    board, name = call.board, call.form.get("name", "").strip()
    hours = _hours(call.form.get("hours", ""), board.home.config.token_hours)
    token = issue_token(
        board.fleet,
        name=name,
        role="node",
        address=enrol_address(board.home.config),
        fingerprint=fingerprint(board.home.ca_certificate.read_bytes()),
        valid_seconds=hours * 3600,
        now=call.now,
        actor=call.who.name,
    )
    return page(call, "token", name=name, token=token.to_text(), expires=token.expires_at)


def _hours(text: str, default: float) -> float:
    """Read how long a token is good.

    Raises:
        InvalidValue: if it is no number of hours up to 90 days.
    """
    try:
        hours = float(text) if text.strip() else default
    except ValueError:
        hours = 0.0
    if not 0 < hours <= 90 * 24:
        msg = f"hours={text[:20]!r}, expected a number above 0, at most 2160."
        raise InvalidValue(msg, hint="A token for a device at hand needs no more than a day.")
    return hours


def ask_revoke(call: Call) -> Response:
    """Ask whether a node is to be shut out."""
    return page(call, "revoke", name=_in_force(call))


def revoke(call: Call) -> Response:
    """Shut a node out for good."""
    name = _in_force(call)
    if call.form.get("confirm", "").strip() != name:
        msg = "the name that was typed is not the node's."
        raise InvalidValue(msg, hint=f"Type {name} to confirm.")
    reason = call.form.get("reason", "").strip()
    call.board.fleet.revoke(name, reason, now=call.now, actor=call.who.name)
    return done(call, "/nodes", f"Node {name} was revoked: it is refused from now on.")


def _in_force(call: Call) -> str:
    """Return the name of a node that is enrolled and not revoked.

    Raises:
        HTTPException: if there is none.
    """
    entry = call.board.fleet.node_by_name(call.params["name"])
    if entry is None or entry.revoked_at is not None:
        raise missing("node")
    return entry.name


def ask_promote(call: Call) -> Response:
    """Ask whether a version is to be given to devices."""
    return page(call, "promote", version=_version(call), current=_current(call))


def promote(call: Call) -> Response:
    """Give a version of the adapter to devices."""
    version = _version(call)
    call.board.registry.promote(version.digest)
    log(call, "adapter-promoted", {"digest": version.digest})
    return done(call, "/adapters", f"Version {short(version.digest)} is what devices get now.")


def ask_rollback(call: Call) -> Response:
    """Ask whether devices are to get the version before the current one."""
    current = _current(call)
    if current is None:
        raise missing("version")
    return page(call, "rollback", current=current)


def rollback(call: Call) -> Response:
    """Give devices the version before the current one."""
    registry = call.board.registry
    before = registry.current()
    after = registry.rollback()
    facts = {"after": after.digest, "before": "" if before is None else before.digest}
    log(call, "adapter-rolled-back", facts)
    return done(call, "/adapters", f"Devices get version {short(after.digest)} now.")


def _current(call: Call) -> str | None:
    """Return the digest of the current version."""
    current = call.board.registry.current()
    return None if current is None else current.digest


def _version(call: Call) -> AdapterVersion:
    """Return the version that a path names.

    Raises:
        HTTPException: if there is none.
    """
    digest = call.params["digest"]
    found = next((one for one in call.board.registry.versions() if one.digest == digest), None)
    if found is None:
        raise missing("version")
    return found
