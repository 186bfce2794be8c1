"""``fedslm up``: a whole fleet on one machine, as separate processes with TLS and authentication.

::

    DIR/server/              the server's folder
    DIR/nodes/node-1/        a device's folder, with its records.jsonl
    DIR/runs/NAME/           the finished run, as a simulation leaves it
    DIR/operator-password    of the dashboard's user "operator", mode 600
    DIR/up.json              what was brought up; the same again goes on with it

Every process is on a leash: the kernel ends it when this one is gone, however it went.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from client.home import DeviceHome
from server.control.settings import enrol_address
from server.enrolling import issue_token
from server.fleetdb import FleetDatabase
from server.fleetruns import FINAL, FleetRuns, RunView
from server.home import ServerHome
from server.locks import held_within
from server.settings import ServerConfig
from server.supervisor import read_status
from shared.config import RunConfig
from shared.configfile import ResolvedConfig
from shared.errors import (
    AdapterIncompatible,
    FleetError,
    ReleaseRefused,
    RunFolderExists,
    ServerUnreachable,
)
from shared.privatefiles import make_private_folder, replace_private
from shared.scenarioplan import plan_of
from simulations.assemble import open_clients
from simulations.basepath import base_path
from simulations.updeal import RECORDS, DealtDataset, deal, policy_for
from simulations.upports import free_block, require_free
from simulations.upprocesses import NODES, SERVER, Processes
from simulations.upsignals import interrupted_by_signals, not_interrupted

RUNS = "runs"
STATE, PASSWORD, LOCK = "up.json", "operator-password", ".up.lock"
OPERATOR = "operator"
TICK = 0.25
START_SECONDS = 180.0
_HOPELESS_ATTEMPTS = 4
_TOKEN_SECONDS = 3600.0
_PORTS = ("fleet_port", "control_port", "dashboard_port", "superlink_port")


class UpView(Protocol):
    """Is told what happens."""

    def event(self, event: str, **facts: Any) -> None:  # noqa: ANN401 - JSON values
        """Something happened, worth a line."""

    def look(self, fleet: Mapping[str, Any]) -> None:
        """How the fleet stands; several times a second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What was asked for.

    Attributes:
        resolved: the scenario, for real nodes.
        nodes: how many.
        folder: where everything goes.
        base_dir: what relative paths of the scenario are relative to.
        exit_when_done: whether to stop once the run is over.
    """

    resolved: ResolvedConfig
    nodes: int
    folder: Path
    base_dir: Path
    exit_when_done: bool

    @property
    def config(self) -> RunConfig:
        """The scenario's settings."""
        return self.resolved.config

    @property
    def run(self) -> str:
        """The name of the run's folder."""
        return self.config.run.name


class Fleet:
    """Brings up one server and its nodes, and takes them down.

    Args:
        request: what was asked for.
        view: is told what happens.
    """

    def __init__(self, request: Request, view: UpView) -> None:
        self._request = request
        self._view = view
        self._folder = request.folder.absolute()
        self._homes = [
            self._folder / NODES / f"node-{number}" for number in range(1, request.nodes + 1)
        ]
        self._server: ServerHome | None = None
        self._processes = Processes(self._folder)
        self._seen = 0
        self.summary: dict[str, Any] | None = None

    def up(self) -> None:
        """Bring everything up, run the scenario, and stay or leave.

        Raises:
            AlreadyRunning: if the folder is up already.
            RunFolderExists: if it holds another fleet.
            FleetError: if a process or the run fails for good.
            ServerUnreachable: if the server does not come up.
            KeyboardInterrupt: when told to stop; everything has ended then.
        """
        os.umask(0o077)
        make_private_folder(self._folder)
        with ExitStack() as stack:
            stack.enter_context(held_within(self._folder / LOCK, 1.0))
            stack.enter_context(interrupted_by_signals())
            self._make()
            stack.callback(self._down)
            self._start_server()
            self._enroll()
            self._start_nodes()
            self._order()
            self._follow()
            self._finish()
            if not self._request.exit_when_done:
                self._stay()

    @property
    def home(self) -> ServerHome:
        """The server's folder.

        Raises:
            FleetError: before it was made.
        """
        if self._server is None:
            msg = "The server was not made yet."
            raise FleetError(msg)
        return self._server

    @property
    def dealt(self) -> DealtDataset:
        """The records of the nodes."""
        said = json.loads((self._folder / STATE).read_text(encoding="utf-8"))
        files = tuple(home / RECORDS for home in self._homes)
        return DealtDataset(files=files, config=self._request.config, facts=said["data"])

    def _make(self) -> None:
        """Make the folder, or take up the one that is there."""
        request, state = self._request, self._folder / STATE
        if state.exists():
            self._take_up(json.loads(state.read_text(encoding="utf-8")))
            return
        if any(entry.name != LOCK for entry in self._folder.iterdir()):
            msg = f"{self._folder.name} is not empty and holds no fleet of fedslm up."
            raise RunFolderExists(msg, hint="Choose another --dir.")
        self._view.event("dealing", nodes=request.nodes, scenario=request.run)
        dataset, _ = open_clients(request.config, base_dir=request.base_dir)
        for home in self._homes:
            make_private_folder(home)
        deal(dataset, request.config, self._homes)
        config = ServerConfig.model_validate({"name": "up", **free_block(_PORTS)})
        self._server = ServerHome.create(self._folder / SERVER, config)
        self._add_operator()
        said = {
            "schema": 1,
            "nodes": request.nodes,
            "run": request.run,
            "config_digest": request.config.digest(),
            "data": dict(dataset.describe()),
        }
        replace_private(state, json.dumps(said, indent=2, sort_keys=True).encode())

    def _take_up(self, said: Mapping[str, Any]) -> None:
        """Go on with a folder, if it is of the same fleet."""
        wanted = (self._request.nodes, self._request.config.digest())
        if (said["nodes"], said["config_digest"]) != wanted:
            msg = f"{self._folder.name} holds a fleet of {said['nodes']} nodes for run "
            msg += f"{said['run']!r}, and another number or scenario was asked for."
            raise RunFolderExists(msg, hint="Choose another --dir.")
        self._server = ServerHome.open(self._folder / SERVER)
        require_free(self._server.config)
        self._view.event("taken-up", nodes=said["nodes"], run=said["run"])

    def _add_operator(self) -> None:
        """Let one operator into the dashboard, with a password that nobody else knows."""
        from server.dashboard.store import USERS, UserFile
        from server.dashboard.users import UserStore

        password = secrets.token_urlsafe(18)
        UserStore(UserFile(self.home.path / USERS)).add(OPERATOR, password, OPERATOR)
        replace_private(self._folder / PASSWORD, f"{password}\n".encode())

    def _start_server(self) -> None:
        """Start the server and wait until all of it works."""
        self._processes.start("server", ["server", "run", str(self.home.path)], grace=15.0)
        end = time.monotonic() + START_SECONDS
        while read_status(self.home)["state"] != "healthy":
            self._processes.tend()
            if time.monotonic() > end:
                msg = f"The server did not come up within {START_SECONDS:.0f} s."
                raise ServerUnreachable(msg, hint=f"Look into {self.home.logs}.")
            time.sleep(TICK)
        config = self.home.config
        self._view.event(
            "server-ready",
            fleet=config.fleet_address,
            control=config.control_address,
            dashboard=f"https://localhost:{config.dashboard_port}",
            password_file=str(self._folder / PASSWORD),
            ca=str(self.home.ca_certificate),
        )

    def _enroll(self) -> None:
        """Enroll the nodes that are not, each with a token, over the enrolment port."""
        from client.basedigest import base_digest
        from client.control import redeem
        from client.enrolling import enroll

        request = self._request
        base = base_path(request.config.model.base, base_dir=request.base_dir)
        plan = plan_of(request.config, population=request.nodes)
        for home in self._homes:
            if (home / "node.toml").exists():
                continue
            with FleetDatabase(self.home.fleet_database) as database:
                token = issue_token(
                    database,
                    name=home.name,
                    role="node",
                    address=enrol_address(self.home.config),
                    fingerprint=self.home.authority().fingerprint,
                    valid_seconds=_TOKEN_SECONDS,
                )
            done = enroll(token.to_text(), path=home, data=home / RECORDS, base=base, call=redeem)
            policy = policy_for(
                plan,
                request.config,
                base_digest=base_digest(Path(base)),
                server_key=done.home.config.ledger_key,
            )
            replace_private(done.home.policy, policy.encode())
            self._view.event("enrolled", node=home.name, client=done.home.config.client_index)
            self._processes.tend()

    def _start_nodes(self) -> None:
        """Start every node."""
        for home in self._homes:
            words = ["client", "run", "--home", str(home), "--json"]
            self._processes.start(home.name, words, grace=6.0)
        self._view.event("nodes-started", nodes=len(self._homes))

    def _order(self) -> None:
        """Order the run, unless it was ordered before."""
        from simulations.fleetprepare import start_run

        request = self._request
        if request.run in FleetRuns(self.home).names():
            return
        started = start_run(
            self.home, request.resolved, name=request.run, base_dir=request.base_dir
        )
        self._view.event("run-ordered", run=request.run, warnings=list(started.warnings))

    def _follow(self) -> None:
        """Wait until the run is over; show its rounds."""
        runs, name = FleetRuns(self.home), self._request.run
        while True:
            self._processes.tend()
            self._show_rounds(runs)
            view = runs.view(name)
            if view.state in FINAL:
                break
            self._require_hope(runs, view)
            time.sleep(TICK)
        if view.state == "failed":
            msg = f"Run {name} failed: {view.reason}"
            raise FleetError(msg, hint=f"Look into {runs.folder(name)}.")
        self._view.event("run-over", run=name, state=view.state, rounds=view.round)

    def _show_rounds(self, runs: FleetRuns) -> None:
        """Tell of rounds that have finished, and how everything stands."""
        name = self._request.run
        records = runs.rounds(name)
        for record in records[self._seen :]:
            self._view.event("round", rounds=self._request.config.run.rounds, record=record)
        self._seen = len(records)
        self._view.look(self._standing(runs.view(name)))

    def _require_hope(self, runs: FleetRuns, view: RunView) -> None:
        """Refuse to wait for a run that has failed again and again without a round."""
        progress = runs.progress(view.name)
        if progress.state == "waiting" and progress.attempts >= _HOPELESS_ATTEMPTS:
            msg = f"Run {view.name} does not get on: {view.reason}"
            hint = f"See: fedslm client status --home {self._homes[0]}"
            raise FleetError(msg, hint=hint)

    def _finish(self) -> None:
        """Leave the run folder of a simulation, put the adapter in use, and let the nodes fetch."""
        from simulations.upfinish import devices_with, finish_fleet_run, put_in_use

        name, folder = self._request.run, self._folder / RUNS / self._request.run
        self.summary = finish_fleet_run(
            self.home,
            name,
            self.dealt,
            folder=folder,
            base_dir=self._request.base_dir,
            note=lambda text: self._view.event("note", text=text),
        )
        self._view.event("finished", run_folder=str(folder), status=self.summary["status"])
        if not (folder / "adapter").is_dir() or self.summary["rounds"] < 1:
            return
        try:
            version = put_in_use(self.home, folder, name=name)
        except (ReleaseRefused, AdapterIncompatible) as error:
            self._view.event("adapter-not-in-use", code=error.code, reason=str(error))
            return
        self._view.event("adapter-in-use", digest=version.digest)
        key = DeviceHome.open(self._homes[0]).config.adapter_key or ""
        self._processes.let_fetch()
        end = time.monotonic() + 20.0 + 10.0 * len(self._homes)
        while time.monotonic() < end:
            self._processes.tend()
            found = devices_with(self._homes, version.digest, adapter_key=key)
            if found == len(self._homes):
                break
            time.sleep(1.0)
        self._view.event("adapter-fetched", devices=found, of=len(self._homes))

    def _stay(self) -> None:
        """Stay until told to stop."""
        self._view.event("staying", folder=str(self._folder), server=str(self.home.path))
        runs = FleetRuns(self.home)
        while True:
            self._processes.tend()
            self._view.look(self._standing(runs.view(self._request.run)))
            time.sleep(1.0)

    def _standing(self, view: RunView) -> dict[str, Any]:
        """Return how the fleet stands."""
        return {
            "server": read_status(self.home)["state"],
            "run": view.to_dict(),
            "nodes": self._processes.nodes(),
        }

    def _down(self) -> None:
        """Stop everything; nodes first, so that they can say goodbye."""
        with not_interrupted():
            self._view.event("stopping")
            self._processes.end()
            self._view.event("stopped")
