"""Running a node from a command line: signals, log, watchdog, what a person sees."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from client.nodelog import NodeLog
from shared.sdnotify import Notifier
from simulations.node_fetch import fetching
from simulations.node_renew import renewing

if TYPE_CHECKING:
    from client.home import DeviceHome

Event = Mapping[str, Any]
_DONE = frozenset({"answered", "refused", "failed", "late"})
_PLAIN = {
    "starting": "starting",
    "joined": "joined; waiting for work",
    "resumed": "may work again; joining",
    "away": "the server does not answer; trying again",
    "denied": "the server refuses this device; asking again now and then",
    "back": "the server is there again",
    "worker-started": "loading the model",
    "worker-released": "no work for long: the model was let go",
    "worker-lost": "the work was stopped",
    "run-over": "a run is over; waiting for work",
    "stopped": "stopped",
    "duplicate": "a message came twice; answered once",
    "late": "an answer came too late",
    "certificate-renewed": "the certificate was renewed",
    "certificate-not-renewed": "the certificate is due, and was not renewed; trying again later",
    "adapter-not-fetched": "the adapter in use could not be fetched; trying again later",
    "malformed": "the server sent something that is no message",
}


class Voice:
    """Tells a person or a program what a node does, and systemd that it is alive.

    Args:
        log: where every event is kept.
        out: takes one line of JSON for each event; None where a person looks on.
        person: takes one plain line for each event; None where a program looks on.
        notifier: the way to systemd.
    """

    def __init__(
        self,
        *,
        log: NodeLog,
        out: Callable[[str], None] | None,
        person: Callable[[str], None] | None,
        notifier: Notifier,
    ) -> None:
        self._log = log
        self._out = out
        self._person = person
        self._notifier = notifier
        self._lock = threading.Lock()

    def event(self, event: Event) -> None:
        """Pass an event on."""
        with self._lock:
            self._log.write(event)
            words = in_words(event)
            if event.get("event") == "starting":
                self._notifier.ready(words)
            else:
                self._notifier.status(words)
            if self._out is not None:
                self._out(json.dumps(dict(event), sort_keys=True))
            if self._person is not None:
                self._person(f"{time.strftime('%H:%M:%S')}  {words}")

    def line(self, text: str) -> None:
        """Keep a line that the worker wrote; our own refusals come with their reason here."""
        self.event({"event": "log", "at": round(time.time(), 3), "text": text})


def in_words(event: Event) -> str:
    """Return what happened, in one plain line."""
    name = str(event.get("event", ""))
    if name == "paused":
        return "paused: " + "; ".join(map(str, event.get("reasons", ())))
    if name == "message":
        return f"working for run {event.get('run_id')} ({event.get('kind')})"
    if name == "answered":
        return f"answered run {event.get('run_id')} in {event.get('seconds')} s"
    if name in {"refused", "failed"}:
        return f"{name} for run {event.get('run_id')} [{event.get('code')}]"
    if name == "adapter-in-use":
        return f"adapter {str(event.get('adapter'))[:12]} was verified and is in use"
    if name == "adapter-refused":
        return f"an adapter was refused [{event.get('code')}]: {event.get('reason')}"
    if name == "log":
        return str(event.get("text", ""))
    return _PLAIN.get(name, name)


def run_device(
    home: DeviceHome, *, once: bool, out: Callable[[str], None], person: bool = False
) -> None:
    """Run the node of a device until it is told to stop.

    Args:
        home: the device's folder.
        once: stop after one message was answered, refused, or failed.
        out: takes lines.
        person: whether the lines are for a person; JSON otherwise.

    Raises:
        FedSLMError: as :func:`client.fleet.node.run_node`.
    """
    from client.conditions import Conditions
    from client.fleet.node import run_node

    stop = threading.Event()
    notifier = Notifier()
    voice = Voice(
        log=NodeLog(home.log),
        out=None if person else out,
        person=out if person else None,
        notifier=notifier,
    )
    judged = Conditions(home.policy)

    def conditions() -> Sequence[str]:
        # Asked in every turn of the loop: a loop that hangs feeds nobody.
        notifier.alive()
        return judged()

    paused = threading.Event()

    def on_event(event: Event) -> None:
        voice.event(event)
        if event.get("event") == "paused":
            paused.set()
        elif event.get("event") in {"resumed", "joined"}:
            paused.clear()
        if once and event.get("event") in _DONE:
            stop.set()

    def renewed(what: str) -> None:
        voice.event({"event": what, "at": round(time.time(), 3)})

    def fetched(event: Event) -> None:
        voice.event({**event, "at": round(time.time(), 3)})

    with (
        stopped_by_signals(stop, notifier),
        worker_lines(voice.line),
        renewing(home, renewed),
        fetching(home, fetched, allowed=lambda: not paused.is_set()) as look,
        woken_by_signal(look),
    ):
        run_node(home, stop=stop, conditions=conditions, on_event=on_event)


@contextmanager
def stopped_by_signals(stop: threading.Event, notifier: Notifier) -> Iterator[None]:
    """Set an event at SIGTERM, SIGINT or SIGHUP while the block runs."""

    def leave(number: int, frame: object) -> None:
        del number, frame
        notifier.stopping()
        stop.set()

    wanted = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    earlier = {number: signal.signal(number, leave) for number in wanted}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


@contextmanager
def woken_by_signal(look: Callable[[], None]) -> Iterator[None]:
    """Look for an adapter at SIGUSR1 while the block runs, so that nobody has to wait for one."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    earlier = signal.signal(signal.SIGUSR1, lambda *_: look())
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, earlier)


@contextmanager
def worker_lines(keep: Callable[[str], None]) -> Iterator[None]:
    """Pass on every line that this process's children write to standard error while it runs.

    The worker says there why it refused, which never travels. What this process itself writes to
    standard error goes the same way; it writes nothing while a node runs but tracebacks.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    reader, writer = os.pipe()
    os.dup2(writer, 2)
    os.close(writer)

    def read() -> None:
        with os.fdopen(reader, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if line.strip():
                    keep(line.rstrip())

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
        # A child that is still on its way out holds the other end for a moment.
        thread.join(2.0)
