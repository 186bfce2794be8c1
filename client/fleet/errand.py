"""One message from its arrival to its answer.

The device decides first: its policy file must be there and its conditions must hold before a byte
of the message is fetched, and while the worker is at it. Whatever goes wrong, the server learns a
code and nothing else.
"""

from __future__ import annotations

import threading
import time
import tomllib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from client.fleet.child import Child, WorkerLost
from client.fleet.identity import ServerClock
from client.fleet.messages import Question, RunInfo, answer, content_of, failure
from client.fleet.objects import MESSAGE, Tree, collect, under
from client.fleet.pacing import Backoff, jittered
from client.fleet.protocol import LOST_UPLOAD, FleetClient, NotYet, RunOver, Upload
from client.fleet.settings import NodeSettings
from client.fleet.status import Board
from shared.errors import (
    CertificateInvalid,
    FedSLMError,
    PolicyRefused,
    SchemaMismatch,
    ServerUnreachable,
)
from shared.redact import scrub_exception

_T = TypeVar("_T")

_REMEMBERED: Final = 4096
_RUNS: Final = 8
_UPLOADS: Final = 5
_LARGEST_POLICY: Final = 1 << 20
_CONDITIONS_SECONDS: Final = 1.0
_LOOK_SECONDS: Final = 5.0
_NOT_YET_SECONDS: Final = 0.2
# How long a worker that was just started may take over its first answer, too late or not.
_COLD_SECONDS: Final = 600.0
# Flower asks how long the work took. That follows the sample that was drawn and the length of its
# texts, which no event pays for.
UNTOLD: Final = 0.0


class Owner:
    """What the owner of the device allows now.

    Args:
        policy: the owner's file.
        conditions: reasons not to work now, in plain words; none means that work may go on.
    """

    def __init__(self, policy: Path, conditions: Callable[[], Sequence[str]]) -> None:
        self._policy = policy
        self._conditions = conditions
        self._asked = -_CONDITIONS_SECONDS
        self._reasons: tuple[str, ...] = ()

    def reasons(self) -> tuple[str, ...]:
        """Return why not to work now; asked at most once a second."""
        now = time.monotonic()
        if now - self._asked >= _CONDITIONS_SECONDS:
            self._reasons = self._found()
            self._asked = time.monotonic()
        return self._reasons

    def wait(self, stop: threading.Event, seconds: float) -> bool:
        """Wait and keep looking, so that whoever watches the node sees it live.

        Returns:
            Whether the node was told to stop.
        """
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and not stop.wait(min(left, _LOOK_SECONDS)):
            self.reasons()
        return stop.is_set()

    def _found(self) -> tuple[str, ...]:
        """Look at the policy file and the conditions."""
        problem = policy_problem(self._policy)
        if problem is not None:
            return (problem,)
        try:
            return tuple(self._conditions())
        except FedSLMError as error:
            return (f"the conditions cannot be read ({error.code})",)


def policy_problem(path: Path) -> str | None:
    """Return why a policy file cannot be used, without reading what it allows; None if it can."""
    try:
        with path.open("rb") as stream:
            data = stream.read(_LARGEST_POLICY + 1)
    except OSError as error:
        return f"the policy file cannot be read ({error.strerror})"
    if len(data) > _LARGEST_POLICY:
        return "the policy file is too long"
    try:
        tomllib.loads(data.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError):
        return "the policy file is no TOML"
    return None


class Errands:
    """Handles messages, one at a time.

    Args:
        settings: of the node.
        client: the server's calls.
        clock: the server's time.
        owner: what is allowed now.
        board: where events go.
        stop: set when the node ends.
    """

    def __init__(
        self,
        settings: NodeSettings,
        *,
        client: FleetClient,
        clock: ServerClock,
        owner: Owner,
        board: Board,
        stop: threading.Event,
    ) -> None:
        self._settings = settings
        self._client = client
        self._clock = clock
        self._owner = owner
        self._board = board
        self._stop = stop
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._runs: OrderedDict[int, RunInfo] = OrderedDict()
        self.child = Child(command=settings.command, limits=settings.limits)

    @property
    def run_id(self) -> int | None:
        """Return the run that asked last, if it is not known to be over."""
        return next(reversed(self._runs), None)

    def forget(self, run_id: int) -> None:
        """Note that a run is over."""
        self._runs.pop(run_id, None)
        self._board.keep(run_id=None)
        self._board.note("run-over", run_id=str(run_id))

    def handle(self, node_id: int, question: Question) -> None:
        """Answer a message, once.

        Raises:
            AccessDenied: if the server does not know this node any more.
            ServerUnreachable: if the node stops, or nobody waits for the answer any more.
        """
        facts: dict[str, Any] = {
            "run_id": str(question.run_id),
            "kind": question.kind,
            "group": question.group,
        }
        if question.message_id in self._seen:
            self._board.note("duplicate", **facts)
            return
        self._seen[question.message_id] = None
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        if question.expires <= self._clock.now():
            self._board.note("late", **facts)
            return
        self._board.keep(run_id=facts["run_id"], message=facts)
        self._board.note("message", state="working", **facts)
        try:
            content, seconds, code = self._answer(node_id, question)
            sent = self._deliver(node_id, question, content)
        except RunOver:
            self.forget(question.run_id)
            return
        finally:
            self._board.keep(message=None)
        if not sent:
            self._board.note("late", state="idle", **facts)
        elif code is None:
            self._board.note("answered", state="idle", seconds=round(seconds, 3), **facts)
        else:
            event = "refused" if code == PolicyRefused.code else "failed"
            self._board.note(event, state="idle", code=code, **facts)

    def _answer(self, node_id: int, question: Question) -> tuple[Tree, float, str | None]:
        """Return the content of the answer, the seconds it took, and the code if it failed."""
        started = time.monotonic()
        try:
            found = self._work(node_id, question)
        except WorkerLost:
            self._board.note("worker-lost")
            if self._stop.is_set():
                msg = "The node is stopping."
                raise ServerUnreachable(msg) from None
            refused = bool(self._owner.reasons())
            found = PolicyRefused.code if refused else FedSLMError.code
        except (SchemaMismatch, PolicyRefused) as error:
            found = scrub_exception(error)
        if isinstance(found, str):
            return failure(found), time.monotonic() - started, found
        return *found, None

    def _work(self, node_id: int, question: Question) -> tuple[Tree, float] | str:
        """Check that the device wants to, fetch the message, and let the worker answer it."""
        self._require_allowed()
        run = self._run(node_id, question.run_id, question)
        if self._settings.bundles is not None and run.bundle not in self._settings.bundles:
            msg = "The run was submitted with a bundle that this device does not trust."
            raise PolicyRefused(msg)

        def fetch(name: str) -> bytes:
            return self._patiently(
                question, lambda: self._client.pull_object(node_id, question, name)
            )

        tree = collect(question.message_id, MESSAGE, fetch, limits=self._settings.limits)
        self._patiently(question, lambda: self._client.confirm(node_id, question))
        content = under(tree, content_of(question, tree))
        del tree
        # A worker killed while it loads its model would load it again for the next message, and be
        # killed again: a device whose start takes longer than a round would never take part.
        until = time.monotonic() - 1.0
        if self.child.pid is None:
            until = time.monotonic() + _COLD_SECONDS
            self._board.note("worker-started")
        return self.child.ask(
            question,
            content,
            node_id=node_id,
            node_config=self._settings.node_config,
            run=run,
            go_on=lambda: self._may_go_on(question, until),
        )

    def _require_allowed(self) -> None:
        """Refuse a message that comes while the device may not work."""
        reasons = self._owner.reasons()
        if reasons:
            raise PolicyRefused("; ".join(reasons))

    def _may_go_on(self, question: Question, until: float) -> bool:
        """Tell whether the worker may go on: the node runs, the owner allows, somebody waits.

        A worker that was started for the question may finish it until a time (monotonic) even if
        nobody waits: it is warm then for the next one.
        """
        waited_for = question.expires > self._clock.now() or time.monotonic() < until
        return waited_for and not (self._stop.is_set() or self._owner.reasons())

    def _run(self, node_id: int, run_id: int, question: Question) -> RunInfo:
        """Return a run; it is asked for once."""
        run = self._runs.pop(run_id, None)
        if run is None:
            run = self._patiently(question, lambda: self._client.run(node_id, run_id))
        self._runs[run_id] = run
        while len(self._runs) > _RUNS:
            self._runs.popitem(last=False)
        return run

    def _deliver(self, node_id: int, question: Question, content: Tree) -> bool:
        """Send an answer until the server has all of it; returns False if nobody waits for it."""
        now = self._clock.now()
        if now >= question.expires:
            return False
        answered = answer(question, content, node_id=node_id, now=now)
        contents = answered.tree.contents

        def send(upload: Upload, name: str) -> bool:
            return self._patiently(
                question,
                lambda: self._client.push_object(
                    node_id, question.run_id, upload, name, contents[name]
                ),
            )

        for _ in range(_UPLOADS):
            upload = self._patiently(
                question,
                lambda: self._client.push_message(node_id, answered, seconds=UNTOLD),
            )
            if not upload.wanted:
                # Announced before, and the server's word was lost on the way: it may wait still.
                for name in contents:
                    send(LOST_UPLOAD, name)
                return True
            if all(send(upload, name) for name in contents if name in upload.wanted):
                return True
        msg = "The server did not keep an answer."
        raise SchemaMismatch(msg)

    def _patiently(self, question: Question, call: Callable[[], _T]) -> _T:
        """Make a call again and again while the server is away and somebody waits for us."""
        backoff = Backoff(first=0.2, longest=10.0)
        away = False
        while True:
            try:
                found = call()
            except NotYet:
                error: Exception = ServerUnreachable("An object of a message never arrived.")
                pause = jittered(_NOT_YET_SECONDS)
            except (ServerUnreachable, CertificateInvalid) as caught:
                error, pause = caught, backoff.pause()
                if not away:
                    away = True
                    self._board.note("away", code=caught.code)
            else:
                if away:
                    self._board.note("back")
                return found
            if self._owner.wait(self._stop, pause) or question.expires <= self._clock.now():
                raise error
