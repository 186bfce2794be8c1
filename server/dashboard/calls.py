"""From a route to its function: who asks, may they, and what an error looks like.

Every route states who may use it. What changes something (any method but GET) asks for an operator
unless it says otherwise, and for a form with the session's token from a page of this server.
"""

from __future__ import annotations

import enum
import ipaddress
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING
from urllib.parse import quote

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from server.dashboard.forms import read_form, require_token
from server.dashboard.sessions import Session, reference
from shared.errors import (
    AccessDenied,
    AdapterError,
    AuditError,
    EnrolmentRefused,
    FedSLMError,
    InvalidValue,
    UsageError,
)

if TYPE_CHECKING:
    from server.dashboard.board import Board

COOKIE = "__Host-fedslm"
VISIT = "__Host-fedslm-visit"
QUIET = "x-fedslm-refresh"
"""Header of a request that a page makes by itself, which is no activity of a person."""

logger = logging.getLogger("fedslm.dashboard")


class Access(enum.Enum):
    """Who may use a route."""

    ANYBODY = "anybody"
    VIEWER = "viewer"
    OPERATOR = "operator"


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request, once it was let in.

    Attributes:
        board: the dashboard.
        session: whose; None on the few public routes.
        params: parts of the path.
        query: what follows the question mark.
        form: fields of a POST, token already checked.
        cookies: what the browser sent.
        path: of the request.
        address: of the browser, an IPv6 network rather than one address.
        now: seconds since 1970.
    """

    board: Board
    session: Session | None
    params: Mapping[str, str]
    query: Mapping[str, str]
    cookies: Mapping[str, str]
    path: str
    address: str
    now: float
    form: Mapping[str, str] = field(default_factory=dict)

    @property
    def who(self) -> Session:
        """Return the session.

        Raises:
            AccessDenied: on a public route without one.
        """
        if self.session is None:
            msg = "nobody is logged in."
            raise AccessDenied(msg, hint="Log in.")
        return self.session

    @property
    def operator(self) -> bool:
        """Tell whether the person may change things."""
        return self.session is not None and self.session.role == "operator"


Handler = Callable[[Call], Response]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """An error as a reader sees it."""

    status: int
    code: str
    message: str
    hint: str


Refusal = Callable[[Call, Trouble], Response]


class Door:
    """The endpoint of one route.

    Args:
        board: the dashboard.
        handler: runs in a thread, after all checks.
        access: who may.
        refusal: how an error looks to a person; None for JSON.
    """

    def __init__(
        self, board: Board, handler: Handler, *, access: Access, refusal: Refusal | None
    ) -> None:
        self._board = board
        self._handler = handler
        self._refusal = refusal
        self.access = access

    async def answer(self, request: Request) -> Response:
        """Check one request and answer it."""
        call = self._call(request)
        try:
            session = await run_in_threadpool(self._session, request, call.now)
            call = replace(call, session=session)
            if session is None and self.access is not Access.ANYBODY:
                return self._log_in(call)
            if request.method not in {"GET", "HEAD"}:
                form = await read_form(request)
                call = replace(call, session=session, form=form)
                self._require_token(call)
            if self.access is Access.OPERATOR and not call.operator:
                msg = f"role={call.who.role!r} may look but not change anything."
                raise AccessDenied(msg, hint="Ask an operator of this server.")
            return await run_in_threadpool(self._handler, call)
        except (FedSLMError, HTTPException) as error:
            return await run_in_threadpool(self._refused, call, error)

    def _session(self, request: Request, now: float) -> Session | None:
        """Look the browser's session up."""
        secret = request.cookies.get(COOKIE)
        if not secret:
            return None
        touch = QUIET not in request.headers
        return self._board.sessions.find(reference(secret), now=now, touch=touch)

    def _require_token(self, call: Call) -> None:
        """Check the form's token against the session, or against the visit before login."""
        if call.session is not None:
            require_token(call.form, self._board.seal, "form", call.session.ref)
            return
        visit = call.cookies.get(VISIT, "")
        if not visit:
            msg = "the browser did not send the cookie that the login page gave it."
            raise AccessDenied(msg, hint="Allow cookies for this server and log in again.")
        require_token(call.form, self._board.seal, "login", visit)

    def _log_in(self, call: Call) -> Response:
        """Send a person to the login page; tell a program."""
        if self._refusal is None:
            return problem(
                Trouble(
                    status=401, code="access-denied", message="Nobody is logged in.", hint="Log in."
                )
            )
        return RedirectResponse(f"/login?next={quote(call.path)}", 303)

    def _refused(self, call: Call, error: FedSLMError | HTTPException) -> Response:
        """Turn an error into an answer."""
        trouble = trouble_of(error)
        if trouble.status >= 500:
            logger.error("%s: %s", call.path, trouble.code)
        return problem(trouble) if self._refusal is None else self._refusal(call, trouble)

    def _call(self, request: Request) -> Call:
        """Collect what a request says."""
        return Call(
            board=self._board,
            session=None,
            params={key: str(value) for key, value in request.path_params.items()},
            query=dict(request.query_params),
            cookies=request.cookies,
            path=request.url.path,
            address=network_of(request.client.host if request.client else ""),
            now=time.time(),
        )


def route(
    board: Board,
    path: str,
    handler: Handler,
    *,
    post: bool = False,
    access: Access | None = None,
    refusal: Refusal | None,
) -> Route:
    """Return a route: GET for whoever is logged in, POST for operators, unless said otherwise."""
    default = Access.OPERATOR if post else Access.VIEWER
    door = Door(board, handler, access=access or default, refusal=refusal)
    made: Callable[[Request], Awaitable[Response]] = door.answer
    return Route(path, made, methods=["POST"] if post else ["GET"])


def problem(trouble: Trouble) -> JSONResponse:
    """Return an error as JSON."""
    found = {"code": trouble.code, "message": trouble.message, "hint": trouble.hint}
    return JSONResponse({"error": found}, trouble.status)


def trouble_of(error: FedSLMError | HTTPException) -> Trouble:
    """Return the HTTP status and the words of an error."""
    if isinstance(error, HTTPException):
        return Trouble(
            status=error.status_code,
            code="not-found" if error.status_code == 404 else "http",
            message=error.detail,
            hint="Go back to the overview." if error.status_code == 404 else "",
        )
    status = 503
    if isinstance(error, AccessDenied):
        status = 403
    elif isinstance(error, InvalidValue | UsageError):
        status = 400
    elif isinstance(error, EnrolmentRefused | AdapterError | AuditError):
        status = 409
    return Trouble(status=status, code=error.code, message=str(error.message), hint=error.hint)


def missing(what: str) -> HTTPException:
    """Return the error about something that is not there."""
    return HTTPException(404, f"There is no such {what} on this server.")


def network_of(host: str) -> str:
    """Return what failed logins are counted by: an IPv4 address, or an IPv6 network of 64 bits."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return "unknown"
    if address.version == 6:
        mapped = address.ipv4_mapped
        return (
            str(mapped) if mapped else str(ipaddress.ip_network((int(address), 64), strict=False))
        )
    return str(address)
