"""The same facts as JSON, under ``/api/v1``, for a session that is logged in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import Any

from starlette.responses import JSONResponse, Response

from server.dashboard.calls import Call
from server.dashboard.look import adapter_values, overview_values, run_of

_MOST_EVENTS = 1000


def overview(call: Call) -> Response:
    """Return what the overview shows."""
    return _json(overview_values(call))


def runs(call: Call) -> Response:
    """Return all runs."""
    return _json({"runs": call.board.runs.all()})


def run(call: Call) -> Response:
    """Return one run with its rounds."""
    found = run_of(call)
    return _json({"run": found, "rounds": call.board.runs.metrics(found.name)})


def nodes(call: Call) -> Response:
    """Return every enrolment."""
    return _json({"nodes": [*call.board.nodes(call.now), *call.board.people(call.now)]})


def budget(call: Call) -> Response:
    """Return every account and the state of the ledger."""
    return _json({"accounts": call.board.accounts(), "ledger": call.board.chain()})


def audits(call: Call) -> Response:
    """Return verdicts and findings by run."""
    board = call.board
    return _json({run.name: board.runs.audit(run.name) for run in board.runs.all() if run.verdict})


def adapters(call: Call) -> Response:
    """Return the versions of the adapter."""
    found = adapter_values(call)
    versions = [
        {
            "digest": one.digest,
            "state": str(one.state),
            "created_at": one.created_at,
            "current": one.digest == found["current"],
            "manifest": one.manifest,
        }
        for one in found["versions"]
    ]
    return _json({"versions": versions})


def activity(call: Call) -> Response:
    """Return what operators have done, newest first."""
    return _json({"events": call.board.fleet.events(_MOST_EVENTS)})


def _json(value: object) -> JSONResponse:
    """Return facts as JSON."""
    return JSONResponse(plain(value))


def plain(value: object) -> Any:  # noqa: ANN401 JSON
    """Return a value in JSON's terms: dataclasses as objects, no infinity."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int | bool):
        return value
    return str(value)
