"""The application: every route with its function and who may use it."""

from __future__ import annotations

import logging

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from server.dashboard import act, api, login, look
from server.dashboard.board import Board
from server.dashboard.calls import Access, Call, Handler, Trouble, network_of, route, trouble_of
from server.dashboard.headers import HeaderGuard
from server.dashboard.pages import STATIC, trouble_page

API = "/api/v1"
LOOPBACK = ("localhost", "127.0.0.1", "::1")

logger = logging.getLogger("fedslm.dashboard")

_PAGES: tuple[tuple[str, Handler], ...] = (
    ("/", look.overview),
    ("/runs", look.runs),
    ("/runs/{name}", look.run),
    ("/runs/{name}/report", look.report),
    ("/runs/{name}/audit", look.audit),
    ("/nodes", look.nodes),
    ("/nodes/{name}", look.node),
    ("/budget", look.budget),
    ("/audits", look.audits),
    ("/adapters", look.adapters),
    ("/activity", look.activity),
)
_QUESTIONS: tuple[tuple[str, Handler], ...] = (
    ("/runs/{name}/stop", act.ask_stop),
    ("/nodes/{name}/revoke", act.ask_revoke),
    ("/adapters/rollback", act.ask_rollback),
    ("/adapters/{digest}/promote", act.ask_promote),
)
_ACTIONS: tuple[tuple[str, Handler], ...] = (
    ("/runs/start", act.start_run),
    ("/runs/{name}/stop", act.stop_run),
    ("/runs/{name}/resume", act.resume_run),
    ("/nodes/enrol", act.new_token),
    ("/nodes/{name}/revoke", act.revoke),
    ("/adapters/rollback", act.rollback),
    ("/adapters/{digest}/promote", act.promote),
)
_DATA: tuple[tuple[str, Handler], ...] = (
    ("/overview", api.overview),
    ("/runs", api.runs),
    ("/runs/{name}", api.run),
    ("/nodes", api.nodes),
    ("/budget", api.budget),
    ("/audits", api.audits),
    ("/adapters", api.adapters),
    ("/activity", api.activity),
)


def routes(board: Board) -> list[BaseRoute]:
    """Return every route; what changes something is a POST and for operators only."""
    found: list[BaseRoute] = [
        Mount("/static", StaticFiles(directory=STATIC)),
        Route("/healthz", _alive, methods=["GET"]),
        route(board, "/login", login.ask, access=Access.ANYBODY, refusal=trouble_page),
        route(board, "/login", login.enter, post=True, access=Access.ANYBODY, refusal=trouble_page),
        route(board, "/logout", login.leave, post=True, access=Access.VIEWER, refusal=trouble_page),
        route(
            board,
            "/framed/{key}/{name}/{file}",
            look.framed,
            access=Access.ANYBODY,
            refusal=trouble_page,
        ),
    ]
    found += [
        route(board, path, handler, access=Access.OPERATOR, refusal=trouble_page)
        for path, handler in _QUESTIONS
    ]
    found += [
        route(board, path, handler, post=True, refusal=trouble_page) for path, handler in _ACTIONS
    ]
    found += [route(board, path, handler, refusal=trouble_page) for path, handler in _PAGES]
    found += [route(board, f"{API}{path}", handler, refusal=None) for path, handler in _DATA]
    return found


def build_app(board: Board) -> ASGIApp:
    """Return the application of one server.

    Args:
        board: what it shows.
    """

    async def refused(request: Request, error: Exception) -> Response:
        found = error if isinstance(error, HTTPException) else HTTPException(500)
        trouble = trouble_of(found)
        if found.status_code == 500:
            logger.error("%s: unexpected %s", request.url.path, type(error).__name__)
            trouble = Trouble(
                status=500,
                code="unexpected",
                message="The dashboard could not make this page.",
                hint="Look at logs/dashboard.log in the server's folder.",
            )
        if request.url.path.startswith(API):
            return _problem(trouble)
        return trouble_page(_nobody(board, request), trouble)

    inner = Starlette(
        routes=routes(board), exception_handlers={HTTPException: refused, Exception: refused}
    )
    config = board.home.config
    return HeaderGuard(inner, hosts=(*config.hosts, config.bind, *LOOPBACK))


async def _alive(_: Request) -> Response:
    """Tell the supervisor that the dashboard answers; says nothing about the server."""
    return PlainTextResponse("ok\n")


def _problem(trouble: Trouble) -> JSONResponse:
    """Return an error as JSON."""
    found = {"code": trouble.code, "message": trouble.message, "hint": trouble.hint}
    return JSONResponse({"error": found}, trouble.status)


def _nobody(board: Board, request: Request) -> Call:
    """Return the call of a request that reached no route: nobody is logged in for it."""
    return Call(
        board=board,
        session=None,
        params={},
        query={},
        cookies={},
        path=request.url.path,
        address=network_of(request.client.host if request.client else ""),
        now=0.0,
    )
