"""``fedslm client run`` and ``status``: take part in a fleet, and see what came of it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simulations.budget_common import AsJson, print_json

if TYPE_CHECKING:
    from client.home import DeviceHome

Home = Annotated[
    Path | None,
    typer.Option(
        "--home", metavar="DIR", help="Folder of the device; default $FEDSLM_HOME, or your data's."
    ),
]
_DAY = 86_400


def add_commands(client_app: typer.Typer) -> None:
    """Add these commands to ``fedslm client``."""
    client_app.command("run")(run)
    client_app.command("status")(status)


def run(
    home: Home = None,
    once: Annotated[
        bool, typer.Option("--once", help="Stop after one message was answered or refused.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print each event as a line of JSON on stdout.")
    ] = False,
) -> None:
    """Join the fleet and keep taking part, when your policy's conditions hold; Ctrl-C stops it."""
    from simulations.node_run import run_device

    device = _open(home)
    person = sys.stdout.isatty() and not as_json
    if person:
        typer.echo(
            f"{device.config.name}: taking part, on the terms of policy.toml. Ctrl-C stops it; "
            "what was charged stays charged."
        )
    run_device(device, once=once, out=_echo, person=person)


def status(
    home: Home = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Print nothing; exit 0 if a node runs here, 1 if not."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say what this device spent, did and refused, and whether it would work now."""
    from simulations.node_status import running, status_of

    device = _open(home)
    if check:
        raise typer.Exit(0 if running(device) else 1)
    found = status_of(device)
    if as_json:
        print_json(found)
        return
    for line in in_words(found):
        typer.echo(line)


def in_words(found: dict[str, Any]) -> Iterator[str]:
    """Yield the lines that a person reads.

    Args:
        found: of :func:`simulations.node_status.status_of`.
    """
    index = found["client_index"]
    speaks = "" if index is None else f", client {index} of its runs"
    yield f"{found['name']}{speaks}; server {found['server']['fleet']}"
    if found["left"]:
        yield "This device left the fleet: it takes part in nothing."
    yield from _node_lines(found["node"])
    yield from _certificate_lines(found["certificate"])
    yield from _condition_lines(found["conditions"])
    yield from _budget_lines(found["policy"])
    yield from _work_lines(found["work"])
    yield from _adapter_lines(found["adapter"])
    yield from _personal_lines(found["personal"])


def _node_lines(node: dict[str, Any]) -> Iterator[str]:
    """Say whether the node runs and what it does."""
    if node["running"]:
        since = f" since {_when(node['since'])}" if node["since"] else ""
        yield f"Node: running, {node['state']}{since}."
        if node["worker"]:
            yield f"  the model is loaded: {node['worker'].get('resident_mb')} MiB"
        if node["error"]:
            yield f"  {node['error'].get('message')} [{node['error'].get('code')}]"
    else:
        yield "Node: not running. Start it: fedslm client run"
    yield f"Last contact with the server: {_when(node['last_contact'])}."
    if node["clock_offset"]:
        yield f"  this device's clock is off by {node['clock_offset']} s"


def _certificate_lines(found: dict[str, Any]) -> Iterator[str]:
    """Say until when the certificate is good."""
    if "error" in found:
        yield f"Certificate: {found['error']['message']} [{found['error']['code']}]"
        return
    state = "EXPIRED" if found["days_left"] <= 0 else f"{found['days_left']:.0f} days left"
    yield f"Certificate: until {found['not_after'][:10]} ({state})."


def _condition_lines(found: list[dict[str, Any]]) -> Iterator[str]:
    """Say which conditions hold."""
    if not found:
        yield "Conditions: none; it works whenever there is work."
        return
    unmet = [condition for condition in found if not condition["met"]]
    yield "Conditions: " + (f"{len(unmet)} NOT met; it does not work now." if unmet else "all met.")
    for condition in found:
        mark = "yes" if condition["met"] else "NO "
        yield f"  {mark} {condition['name']}: {condition['found']}; wanted: {condition['wanted']}"


def _budget_lines(policy: dict[str, Any]) -> Iterator[str]:
    """Say what was spent, by the device's own ledger."""
    if "error" in policy:
        yield f"Policy: {policy['error']['message']} [{policy['error']['code']}]"
        return
    if not policy["budgets"]:
        yield "Budget: none. What leaves this device is NOT PROTECTED."
    for budget in policy["budgets"]:
        of = f"at delta {budget['delta']:g}, {budget['neighboring_relation']}, per {budget['unit']}"
        if budget["spent"] is None:
            yield f"Budget: nothing spent of epsilon {budget['max_epsilon']:g} {of}."
        else:
            yield (
                f"Budget: epsilon {budget['spent']['epsilon']:.4f} of {budget['cap']:g} spent in "
                f"{budget['releases']} releases, {of}."
            )
    if policy["state"] is not None and policy["state"]["unprotected"]:
        yield "  Records left this device WITHOUT NOISE: no epsilon holds for them any more."


def _work_lines(work: dict[str, Any]) -> Iterator[str]:
    """Say what was done and what was refused."""
    counts = ", ".join(f"{work[kind]} {kind}" for kind in ("answered", "refused", "failed", "late"))
    yield f"Messages, as far as the log goes: {counts}."
    for event in work["recent"]:
        code = f" [{event['code']}]" if event.get("code") else ""
        took = f" in {event['seconds']} s" if event.get("seconds") is not None else ""
        kind = event.get("kind", "")
        yield (
            f"  {_when(event.get('at'))}  {event['event']} {kind} of run "
            f"{event.get('run_id')}{took}{code}"
        )
    if work["reasons"]:
        yield "Why it refused:"
    for reason in work["reasons"]:
        yield f"  {_when(reason['at'])}  {reason['text']}"


def _adapter_lines(found: dict[str, Any] | None) -> Iterator[str]:
    """Say which adapter is in use."""
    if found is not None and "error" in found:
        yield f"Adapter: {found['error']['message']} [{found['error']['code']}]"
    elif found is None or found["current"] is None:
        yield "Adapter: none yet."
    else:
        yield f"Adapter: {found['name']}, {found['current'][:12]}."
    for refused in (found or {}).get("refused", ()):
        yield f"  refused {refused['digest'][:12]} [{refused['code']}] at {refused['at']}"


def _personal_lines(found: dict[str, Any] | None) -> Iterator[str]:
    """Say whether there is a personal adapter, and what to do with a stale one."""
    if found is None:
        return
    if "error" in found:
        yield f"Personal adapter: {found['error']['message']} [{found['error']['code']}]"
        return
    yield f"Personal adapter: of {found['created'][:10]}, on top of {found['adapter'][:12]}."
    if found["stale"]:
        yield "  stale: another adapter is in use. Make it again: fedslm client personalise"


def _when(seconds: float | None) -> str:
    """Return a time in this device's own zone, and how long ago it was."""
    if not isinstance(seconds, int | float):
        return "never"
    ago = max(0.0, time.time() - seconds)
    units = ((_DAY, "days"), (3600, "h"), (60, "min"), (1, "s"))
    size, unit = next(((s, u) for s, u in units if ago >= s), (1, "s"))
    return (
        f"{time.strftime('%Y-%m-%d %H:%M', time.localtime(seconds))} ({ago // size:.0f} {unit} ago)"
    )


def _open(home: Path | None) -> DeviceHome:
    """Open the device's folder."""
    from client.home import DeviceHome, default_home

    return DeviceHome.open(default_home() if home is None else home)


def _echo(line: str) -> None:
    """Print a line at once."""
    typer.echo(line)
