"""Runs: everyone sees their state, viewers and operators also their rounds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server.control.budgets import finite
from server.control.identity import Caller
from server.control.requests import page_after, page_size
from server.control.runstates import RunState, RunStates
from shared.control.fedslm.control.v1 import control_pb2 as pb

_MAX_RUNS = 100
_MAX_ROUNDS = 1000


class RunsService:
    """The service ``Runs``.

    Args:
        runs: the run folders.
    """

    def __init__(self, runs: RunStates) -> None:
        self._runs = runs

    def list_runs(self, request: pb.ListRunsRequest, caller: Caller) -> pb.ListRunsResponse:
        """Return a page of runs by name."""
        del caller
        size = page_size(request.page_size, _MAX_RUNS)
        names, more = page_after(self._runs.names(), request.after, size)
        return pb.ListRunsResponse(runs=[_run(self._runs.state(n)) for n in names], more=more)

    def get_run(self, request: pb.GetRunRequest, caller: Caller) -> pb.GetRunResponse:
        """Return a run; with its rounds for those who run the fleet.

        Raises:
            NotThere: if there is none of this name.
        """
        state = self._runs.state(request.name)
        if caller.role == "node":
            return pb.GetRunResponse(run=_run(state))
        size = page_size(request.page_size, _MAX_ROUNDS)
        rounds = [_round(record, state) for record in state.rounds]
        wanted = [found for found in rounds if found.round >= request.first_round]
        return pb.GetRunResponse(run=_run(state), rounds=wanted[:size], more=len(wanted) > size)

    def get_audit(self, request: pb.GetAuditRequest, caller: Caller) -> pb.GetAuditResponse:
        """Return the audit report of a run, byte for byte as it was signed.

        Raises:
            NotThere: if there is no such run or no report.
        """
        del caller
        report, signature = self._runs.audit(request.name)
        return pb.GetAuditResponse(report=report, signature=signature)


def _run(state: RunState) -> pb.Run:
    """Return the state of a run; epsilon only together with what it means."""
    known = state.delta is not None
    return pb.Run(
        name=state.name,
        state=state.state,
        mode=state.mode,
        rounds_done=state.rounds_done,
        rounds_planned=state.rounds_planned,
        epsilon=state.epsilon if known else None,
        delta=state.delta,
        unit=state.unit,
        neighboring_relation=state.relation,
        releases=state.releases,
        cap=state.cap,
        audit_verdict=state.verdict,
        config_digest=state.config_digest,
    )


def _round(record: Mapping[str, Any], state: RunState) -> pb.Round:
    """Return the public numbers of one round; a number that is damaged is left out."""
    delta = state.delta
    return pb.Round(
        round=_count(record, "round"),
        cohort=_count(record, "cohort"),
        answered=_count(record, "answered"),
        seconds=_number(record, "seconds"),
        bytes_up_per_client=_count(record, "bytes_up_per_client"),
        bytes_down_per_client=_count(record, "bytes_down_per_client"),
        epsilon=None if delta is None else _number(record, "epsilon"),
        delta=delta,
        releases=_count(record, "releases"),
    )


def _number(record: Mapping[str, Any], key: str) -> float | None:
    """Return a finite number of a record."""
    value = record.get(key)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return finite(float(value))
    return None


def _count(record: Mapping[str, Any], key: str) -> int | None:
    """Return a number of things of a record."""
    value = record.get(key)
    good = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**32
    return int(str(value)) if good else None
