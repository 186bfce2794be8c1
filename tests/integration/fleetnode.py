"""Devices of a real fleet for tests: enrolled, with data and policy, run by our own node."""

from __future__ import annotations

import sys
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from client.home import DeviceHome, NodeConfig
from server.fleetdb import FleetDatabase
from server.home import ServerHome
from shared.privatefiles import make_private_folder, replace_private
from simulations.basepath import ASSETS
from tests.integration.device import make_device
from tests.server.fleetkit import Identity, enrolled

NODE = """
import signal, sys, threading
from pathlib import Path
from client.fleet.node import run_node
from client.home import DeviceHome

stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
home = DeviceHome.open(Path(sys.argv[1]))
run_node(home, stop=stop, conditions=lambda: [], on_event=lambda event: print(event, flush=True))
"""

TABLES: dict[str, dict[str, object]] = {
    "run": {"name": "fleet", "rounds": 3, "seed": 5},
    "model": {"base": "demo"},
    "lora": {"r": 2},
    "data": {"path": "notes.jsonl", "text": "note", "max_length": 32, "partitioner": "iid"},
    "clients": {"population": 2, "local_steps": 1, "batch_size": 2, "learning_rate": 0.5},
    "server": {"deadline_seconds": 60.0, "quorum": 1.0},
    "privacy": {"mode": "none"},
    "aggregation": {"policy": "ffa"},
    "evaluation": {"clients": 2},
    "audit": {"canaries": 0, "profile": "none"},
    "performance": {"threads": 1},
}


def make_fleet_device(home: ServerHome, folder: Path, name: str) -> DeviceHome:
    """Enroll a device that allows runs without privacy; its folder is as enrolment leaves it."""
    identity = enrolled(home, name)
    make_private_folder(folder)
    make_device(folder, "none", max_rounds=1000)
    replace_private(folder / "node.key", _pem(identity))
    replace_private(folder / "ca.crt", home.ca_certificate.read_bytes())
    with FleetDatabase(home.fleet_database) as database:
        entry = database.node_by_name(name)
    assert entry is not None
    config = NodeConfig(
        name=name,
        client_index=entry.client_index,
        fleet=home.config.fleet_address,
        control=home.config.control_address,
        data=str(folder / "notes.jsonl"),
        base=str(ASSETS / "demo"),
        poll_seconds=0.5,
        heartbeat_seconds=10.0,
    )
    return DeviceHome.create(folder, config)


def node_command(device: DeviceHome) -> list[str]:
    """Return the command line of a device's node."""
    return [sys.executable, "-c", NODE, str(device.path)]


def _pem(identity: Identity) -> bytes:
    """Return a private key as a device keeps it."""
    return identity.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
