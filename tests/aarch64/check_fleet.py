"""Nodes of the board in a fleet of here: a real server, a device with torch, and two of the board.

One of the board's is the Python node without torch, on ONNX Runtime; the other is the native
client, on ExecuTorch. All deadlines are those of a processor that is imitated.
"""

from __future__ import annotations

import json
import signal
import subprocess
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from client.state import DeviceState
from server.registry import AdapterRegistry
from server.registry.export import export_version
from shared.configfile import resolve
from shared.crypto import SigningKey
from simulations.fleetprepare import start_run
from tests.aarch64.board import PYTHON, ROOT, inside, native_on_board
from tests.client.native import build
from tests.client.native.test_client import REHEARSAL
from tests.faults.fleet import Fleet, RealNode, leashed
from tests.integration.device import ask, code, make_round, vector_of
from tests.integration.edgefleet import edge_node
from tests.integration.edgestep import exported
from tests.integration.test_native_fleet import SCENARIO, allow, enroll, prepared
from tests.server.fleetkit import process, wait_until

pytestmark = [pytest.mark.timeout(3000)]
ROUNDS = 2


class BoardNode(RealNode):
    """``fedslm client run`` of the board."""

    def start(self, *before: str, **variables: str) -> None:
        """Start it."""
        command = [PYTHON, "-m", "simulations.cli", "client", "run"]
        command += ["--home", str(self.device.path), "--json"]
        words = [*before, *inside(ROOT, *command, **variables)]
        folder = self.device.path.parent
        log = folder / f"{self.device.path.name}.out"
        started = process(self.server, leashed(words), log=log, cwd=folder)
        self.process = self.running.enter_context(started)


def test_the_native_client_of_the_board_sends_the_update_of_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    native = build.make_native(tmp_path, REHEARSAL, seeded_noise=True)
    asked = make_round(config=REHEARSAL)
    truth = ask(native.device, asked, node=native.node())
    assert code(truth) == ""
    client = native_on_board(tmp_path)
    monkeypatch.setattr(build, "binary", lambda: client)
    status, told, found = native.ask(asked)
    assert status == 0, told
    here = vector_of(truth)
    apart = np.linalg.norm(build.vector_in(found) - here) / np.linalg.norm(here)
    print(f"native update: {apart:.1e}")  # noqa: T201
    assert apart < 1e-5


def test_it_trains_in_a_fleet(tmp_path: Path) -> None:
    slow = ("clients.population=3", "server.deadline_seconds=900.0")
    resolved = resolve(SCENARIO, slow, source="test")
    with ExitStack() as opened:
        fleet = Fleet(tmp_path, opened)
        fleet.start_server()
        fleet.add_real(1)
        policy = allow(fleet.nodes[0].device.path)
        edge = edge_node(fleet.home, tmp_path / "edge", exported())
        allow(edge.device.path)
        board = BoardNode(edge.server, edge.device)
        opened.callback(board.stop)
        board.start()
        phone = tmp_path / "phone"
        index = enroll(fleet.home, phone.name, phone)
        conf = prepared(phone, index, policy, resolved.config)
        log = tmp_path / "native.log"
        command = [str(native_on_board(tmp_path)), "run", str(conf)]
        native = opened.enter_context(process(fleet.home, command, log=log))
        wait_until("joining", lambda: board.status().get("state") == "idle", seconds=300)
        start_run(fleet.home, resolved, name="one")
        records = fleet.finish("one", seconds=2000.0)
        assert [record["answered"] for record in records] == [3] * ROUNDS
        assert [board.count(name) for name in ("refused", "failed", "worker-lost")] == [0, 0, 0]
        _whole_books(fleet, board, "one")
        native.send_signal(signal.SIGTERM)
        assert native.wait(60) == 0, log.read_text()
        assert log.read_text().splitlines().count("train answered") == ROUNDS
        told = subprocess.run([command[0], "check", str(conf)], capture_output=True, check=True)
        assert told.stdout.startswith(b"answers 2,")


def _whole_books(fleet: Fleet, board: RealNode, name: str) -> None:
    """Hold what the board's own ledger counted against the server's, and look at the adapter."""
    with DeviceState(board.device.state) as state:
        state.verify()
        spent = {one.subject: one.releases for one in state.spent()}
    print(json.dumps(spent))  # noqa: T201
    assert spent["device/example"] == ROUNDS
    assert {charge.state for charge in fleet.charges(name)} == {"committed"}
    signer = SigningKey.load_or_create(fleet.home.adapter_key)
    registry = AdapterRegistry(fleet.home.adapters, signer=signer)
    digest = fleet.runs.view(name).adapter
    assert digest is not None
    export_version(registry, digest, fleet.home.path / "released")
    assert [*(fleet.home.path / "released").rglob("adapter_model.safetensors")]
