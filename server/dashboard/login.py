"""Logging in and out."""

from __future__ import annotations

import math
import secrets

from starlette.responses import RedirectResponse, Response

from server.dashboard.calls import COOKIE, VISIT, Call
from server.dashboard.forms import inside
from server.dashboard.pages import page
from server.dashboard.users import User
from server.dashboard.words import duration

_PATIENCE = 20.0
_WRONG = "Name or password is wrong."


def ask(call: Call) -> Response:
    """Show the login form; whoever is logged in goes on."""
    if call.session is not None:
        return RedirectResponse(inside(call.query.get("next", "/")), 303)
    return _form(call, after=call.query.get("next", "/"))


def enter(call: Call) -> Response:
    """Check name and password and open a new session."""
    after = inside(call.form.get("next", "/"))
    name, password = call.form.get("name", "").strip().lower(), call.form.get("password", "")
    board = call.board
    wait = board.brake.take(name, call.address, now=call.now)
    if wait > 0:
        said = f"Too many tries. Try again in {duration(math.ceil(wait))}."
        answer = _form(call, after=after, problem=said, name=name, status=429)
        answer.headers["retry-after"] = str(math.ceil(wait))
        return answer
    if not board.hashing.acquire(timeout=_PATIENCE):
        said = "The server is busy checking other logins. Try again in a moment."
        return _form(call, after=after, problem=said, name=name, status=503)
    try:
        user = board.users.check(name, password, now=call.now)
    finally:
        board.hashing.release()
    if user is None:
        board.fleet.event("login-refused", address=call.address, through="dashboard")
        return _form(call, after=after, problem=_WRONG, name=name, status=403)
    return _welcome(call, user, after)


def _welcome(call: Call, user: User, after: str) -> Response:
    """Open a session under a new id; whatever the browser held before is void."""
    board = call.board
    board.brake.clear(user.name, call.address)
    if call.session is not None:
        board.sessions.end(call.session.ref)
    secret = board.sessions.begin(user.name, now=call.now)
    board.fleet.event("login", by=user.name, role=user.role, through="dashboard")
    answer = RedirectResponse(after, 303)
    answer.set_cookie(COOKIE, secret, secure=True, httponly=True, samesite="strict", path="/")
    answer.delete_cookie(VISIT, secure=True, httponly=True, samesite="strict", path="/")
    return answer


def leave(call: Call) -> Response:
    """End the session."""
    call.board.sessions.end(call.who.ref)
    call.board.fleet.event("logout", by=call.who.name, through="dashboard")
    answer = RedirectResponse("/login", 303)
    answer.delete_cookie(COOKIE, secure=True, httponly=True, samesite="strict", path="/")
    answer.headers["clear-site-data"] = '"cache", "cookies", "storage"'
    return answer


def _form(
    call: Call, *, after: str, problem: str = "", name: str = "", status: int = 200
) -> Response:
    """Show the login form with a token for this visit."""
    visit = call.cookies.get(VISIT) or secrets.token_urlsafe(32)
    answer = page(
        call,
        "login",
        status=status,
        problem=problem,
        name=name[:32],
        after=inside(after),
        token=call.board.seal.of("login", visit),
        empty=not call.board.users.users(),
    )
    answer.set_cookie(VISIT, visit, secure=True, httponly=True, samesite="strict", path="/")
    return answer
