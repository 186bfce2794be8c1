"""What ``fedslm up`` shows: lines of JSON, plain lines, or a live table with lines above it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from simulations.progress import describe
from simulations.up import UpView

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live


class JsonView:
    """One line of JSON for each event."""

    def __init__(self, out: Callable[[str], None]) -> None:
        self._out = out

    def event(self, event: str, **facts: Any) -> None:  # noqa: ANN401 - JSON values
        """Print the event."""
        found = {"event": event, "at": round(time.time(), 3), **facts}
        self._out(json.dumps(found, sort_keys=True))

    def look(self, fleet: Mapping[str, Any]) -> None:
        """Print nothing; events say what changes."""


class PlainView:
    """One line of words for each event."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def event(self, event: str, **facts: Any) -> None:  # noqa: ANN401 - JSON values
        """Print the event."""
        for line in in_words(event, facts):
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def look(self, fleet: Mapping[str, Any]) -> None:
        """Print nothing; events say what changes."""


class LiveView(PlainView):
    """Lines, and under them a table of nodes and the run."""

    def __init__(self, console: Console, live: Live) -> None:
        super().__init__(console)
        self._live = live

    def look(self, fleet: Mapping[str, Any]) -> None:
        """Draw the table anew."""
        self._live.update(screen(fleet))


@contextmanager
def open_view(*, as_json: bool, out: Callable[[str], None]) -> Iterator[UpView]:
    """Return the view that fits where it is shown.

    Args:
        as_json: a line of JSON for each event, on stdout.
        out: prints a line on stdout.
    """
    if as_json:
        yield JsonView(out)
        return
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True)
    if not console.is_terminal:
        yield PlainView(console)
        return
    with Live(console=console, refresh_per_second=4, transient=True) as live:
        yield LiveView(console, live)


def in_words(event: str, facts: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a person reads about an event."""
    if event == "server-ready":
        yield f"server     devices dial {facts['fleet']} and {facts['control']}"
        yield f"dashboard  {facts['dashboard']}"
        yield f"           user operator, password in {facts['password_file']}"
        yield f"           the browser has to trust {facts['ca']}"
    elif event == "run-ordered":
        yield f"run        {facts['run']} was ordered"
        yield from (f"note       {warning}" for warning in facts["warnings"])
    elif event == "round":
        record = facts["record"]
        yield f"round      {record['round']}/{facts['rounds']}  {describe(record)}"
    elif event == "staying":
        yield from _how_to_look(facts)
    elif event in _WORDS:
        yield _WORDS[event].format(**facts)


_WORDS = {
    "dealing": "dealing    records of scenario {scenario} to {nodes} nodes",
    "taken-up": "going on   with {nodes} nodes and run {run}",
    "enrolled": "enrolled   {node} as client {client}",
    "nodes-started": "nodes      {nodes} started; each loads the model when work comes",
    "run-over": "run        {run}: {state} after round {rounds}",
    "note": "           {text}",
    "finished": "run folder {run_folder}",
    "adapter-in-use": "adapter    {digest:.12} is in use; the nodes fetch and verify it",
    "adapter-not-in-use": "adapter    is not put in use [{code}]: {reason}",
    "adapter-fetched": "adapter    verified by {devices} of {of} devices",
    "stopping": "stopping   everything",
    "stopped": "stopped",
}


def _how_to_look(facts: Mapping[str, Any]) -> Iterator[str]:
    """Say what may be tried while the fleet is up."""
    server, folder = facts["server"], facts["folder"]
    yield "The fleet stays up. In another terminal:"
    yield f"  fedslm server status --dir {server}"
    yield f"  fedslm server nodes --dir {server}"
    yield f"  fedslm client status --home {folder}/nodes/node-1"
    yield f'  fedslm client infer "The patient" --home {folder}/nodes/node-1'
    yield "Ctrl-C stops all of it."


def screen(fleet: Mapping[str, Any]) -> RenderableType:
    """Draw the run and the nodes."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    run = fleet["run"]
    head = f"server {fleet['server']}   run {run['name']} {run['state']}   "
    head += f"round {run['round']} of {run['rounds']}"
    if run["epsilon"] is not None:
        head += f"   epsilon {run['epsilon']:.3f} at delta {run['delta']:g}"
    if run["reason"]:
        head += f"   ({run['reason']})"
    table = Table("node", "state", "answered", "refused", "failed", box=None, pad_edge=False)
    for node in fleet["nodes"]:
        counts = (str(node.get(key, "")) for key in ("answered", "refused", "failed"))
        table.add_row(str(node["name"]), str(node["state"]), *counts)
    return Group(Text(head, style="bold"), table)
