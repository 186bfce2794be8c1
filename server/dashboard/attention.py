"""What a person should look at, most urgent first, each with what to do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from server.dashboard.board import Board
from server.dashboard.budget import NEARLY, Account, Chain
from server.dashboard.fleetview import Node
from server.dashboard.health import Health
from server.dashboard.runs import Run
from server.dashboard.words import figure, plural, size

_LEAST_DISK = 2_000_000_000
_CERTIFICATE_DAYS = 30
_FLAG_SECONDS = 7 * 24 * 3600.0
_MOST = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Matter:
    """One thing to look at.

    Attributes:
        urgent: whether something is broken, refused or at risk now.
        text: what is the matter.
        advice: what to do.
        link: where to see more.
    """

    urgent: bool
    text: str
    advice: str
    link: str


def matters(
    board: Board,
    *,
    health: Health,
    runs: Sequence[Run],
    nodes: Sequence[Node],
    accounts: Sequence[Account],
    chain: Chain,
    now: float,
) -> list[Matter]:
    """Return what needs attention, urgent things first."""
    found = [
        *_of_health(health),
        *_of_certificate(board, now),
        *_of_budget(accounts, chain),
        *_of_runs(runs),
        *_of_nodes(nodes, now),
    ]
    return sorted(found, key=lambda matter: not matter.urgent)[:_MOST]


def _of_health(health: Health) -> Iterator[Matter]:
    """Look at processes and disk."""
    if not health.running:
        yield Matter(
            urgent=True,
            text="The server's other processes are not running.",
            advice="Start them with: fedslm server run DIR",
            link="/#processes",
        )
    for process in health.processes:
        if process.state != "up":
            yield Matter(
                urgent=process.state == "down",
                text=f"Process {process.name} is {process.state}.",
                advice=f"Look at logs/{process.name}.log in the server's folder.",
                link="/#processes",
            )
    if health.disk_free < _LEAST_DISK:
        yield Matter(
            urgent=True,
            text=f"Only {size(health.disk_free)} are free on the server's disk.",
            advice="Remove old run folders or give the disk more space.",
            link="/#processes",
        )


def _of_certificate(board: Board, now: float) -> Iterator[Matter]:
    """Look at how long the server's certificate is good."""
    from shared.errors import FedSLMError
    from shared.pki import read_certificate

    try:
        facts = read_certificate(board.home.server_certificate.read_bytes())
    except (OSError, FedSLMError):
        yield Matter(
            urgent=True,
            text="The server's certificate cannot be read.",
            advice="Restore pki/server.crt from a copy, or issue it anew.",
            link="/#processes",
        )
        return
    left = (facts.not_after - datetime.fromtimestamp(now, tz=UTC)).days
    if left < _CERTIFICATE_DAYS:
        yield Matter(
            urgent=left < 3,
            text=f"The server's certificate is good for {plural(max(left, 0), 'more day')}.",
            advice="Issue a new one before it expires.",
            link="/#processes",
        )


def _of_budget(accounts: Sequence[Account], chain: Chain) -> Iterator[Matter]:
    """Look at the ledger and at caps."""
    if chain.whole is False:
        yield Matter(
            urgent=True,
            text=f"The ledger does not verify: {chain.problem}",
            advice="Stop all runs, keep the file as it is, and restore it from a copy.",
            link="/budget",
        )
    for account in accounts:
        who = account.node or account.subject
        if not account.private:
            yield Matter(
                urgent=True,
                text=f"Data of {who} ({account.scope}) were used without privacy.",
                advice="No epsilon holds for them any more.",
                link="/budget",
            )
        elif account.share is not None and account.share >= NEARLY:
            spent, cap = figure(account.epsilon), figure(account.cap)
            yield Matter(
                urgent=False,
                text=f"{who} has spent epsilon {spent} of {cap} at delta {figure(account.delta)}.",
                advice="Rounds that would pass the cap are refused before they train.",
                link="/budget",
            )


def _of_runs(runs: Sequence[Run]) -> Iterator[Matter]:
    """Look at runs."""
    for run in runs:
        link = f"/runs/{run.name}"
        if run.verdict == "violation":
            yield Matter(
                urgent=True,
                text=f"The audit of run {run.name} found a violation.",
                advice="Do not give its adapter to devices; roll back if they have it.",
                link=f"{link}/audit",
            )
        if run.state in {"failed", "waiting"}:
            yield Matter(
                urgent=run.state == "failed",
                text=f"Run {run.name} {'has failed' if run.state == 'failed' else 'waits'}: "
                f"{run.reason or 'no reason was given'}",
                advice="Look at logs/ in the server's folder; a failed run can go on from its "
                "last finished round.",
                link=link,
            )
        if run.state == "damaged":
            yield Matter(
                urgent=False,
                text=f"The folder of run {run.name} is damaged.",
                advice="Restore it from a copy, or remove it.",
                link=link,
            )
        if run.state == "budget-exhausted":
            yield Matter(
                urgent=False,
                text=f"Run {run.name} stopped early: the next round would have passed the cap.",
                advice="Its adapter is that of the last round within the cap.",
                link=link,
            )


def _of_nodes(nodes: Sequence[Node], now: float) -> Iterator[Matter]:
    """Look at devices."""
    for node in nodes:
        if node.state == "revoked":
            continue
        recent = [flag for flag in node.flags if now - flag.last_at < _FLAG_SECONDS]
        if recent:
            codes = ", ".join(flag.code for flag in recent[:3])
            yield Matter(
                urgent=False,
                text=f"Node {node.name} was flagged: {codes}.",
                advice="Revoke it if you do not trust the device any more.",
                link=f"/nodes/{node.name}",
            )
    silent = [node.name for node in nodes if node.state == "silent"]
    if silent:
        names = ", ".join(silent[:5]) + (" and others" if len(silent) > 5 else "")
        yield Matter(
            urgent=False,
            text=f"{plural(len(silent), 'node')} not seen for a day or more: {names}.",
            advice="Ask their owners, or leave them out of the quorum.",
            link="/nodes",
        )
