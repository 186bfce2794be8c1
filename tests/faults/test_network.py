"""The network of a node is cut below TCP, in a namespace of its own, and comes back."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from client.home import DeviceHome
from tests.faults.fleet import ADDRESS, Fleet, RealNode
from tests.server.fleetkit import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.fleet, pytest.mark.timeout(240)]

CUT_SECONDS = 60.0
SPACE = "fedslm-fault"
HOST_LINK = "fedslmf0"
NODE_LINK = "fedslmf1"


def ip(*words: str) -> bool:
    """Run ``ip``; returns whether it worked."""
    program = shutil.which("ip")
    if program is None:
        return False
    done = subprocess.run([program, *words], capture_output=True, check=False, timeout=20)
    return done.returncode == 0


@pytest.fixture
def space() -> Iterator[str]:
    """A network namespace with one link to this machine; skips where that is not allowed."""
    ip("netns", "del", SPACE)
    ip("link", "del", HOST_LINK)
    made = ip("netns", "add", SPACE) and ip(
        "link", "add", HOST_LINK, "type", "veth", "peer", "name", NODE_LINK, "netns", SPACE
    )
    try:
        if not made:
            pytest.skip("a network namespace needs root and veth")
        assert ip("addr", "add", f"{ADDRESS}/24", "dev", HOST_LINK)
        assert ip("link", "set", HOST_LINK, "up")
        peer = ADDRESS.rpartition(".")[0] + ".2/24"
        assert ip("-n", SPACE, "addr", "add", peer, "dev", NODE_LINK)
        assert ip("-n", SPACE, "link", "set", NODE_LINK, "up")
        yield SPACE
    finally:
        ip("netns", "del", SPACE)
        ip("link", "del", HOST_LINK)


@contextmanager
def relay(port: int) -> Iterator[int]:
    """Pass connections on from the link to the server's front on loopback; yields the port."""
    listening = socket.create_server((ADDRESS, 0))
    listening.settimeout(0.5)
    over = threading.Event()

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for one in (source, sink):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        source.close()

    def accept() -> None:
        while not over.is_set():
            with suppress(OSError):
                there, _ = listening.accept()
                here = socket.create_connection(("127.0.0.1", port))
                for pair in ((there, here), (here, there)):
                    threading.Thread(target=pump, args=pair, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield int(listening.getsockname()[1])
    finally:
        over.set()
        listening.close()


def test_a_cut_network_costs_time_and_no_round(fleet: Fleet, space: str) -> None:
    """Cut while the node trains or answers: it goes on with the same message afterwards."""
    node = fleet.nodes[1]
    node.stop()
    settings = node.device.config
    with relay(fleet.home.config.fleet_port) as port:
        changed = settings.model_copy(update={"fleet": f"{ADDRESS}:{port}"})
        node.device.node_file.write_text(changed.to_toml(), encoding="utf-8")
        far = RealNode(fleet.home, DeviceHome.open(node.device.path))
        far.start("ip", "netns", "exec", space)
        try:
            cut_and_mend(fleet, far)
        finally:
            far.stop()
            node.device.node_file.write_text(settings.to_toml(), encoding="utf-8")
            node.start()


def cut_and_mend(fleet: Fleet, node: RealNode) -> None:
    """Order a run of which each round needs every client, and cut the link in the middle."""
    before = node.count("answered")
    fleet.order("cut", "run.rounds=30", "clients.population=3", "server.quorum=1.0")
    wait_until("an answer", lambda: node.count("answered") > before, seconds=120)
    assert ip("link", "set", HOST_LINK, "down")
    number = fleet.runs.view("cut").round
    time.sleep(CUT_SECONDS)
    # One round may have been past the node already, and one have waited for it in vain.
    assert fleet.runs.view("cut").round <= number + 2
    assert ip("link", "set", HOST_LINK, "up")
    fleet.wait_round("cut", number + 3, seconds=120)
    fleet.runs.want("cut", "stopped")
    wait_until("a stop", lambda: fleet.runs.view("cut").state == "stopped", seconds=30)
    records = fleet.rounds("cut")
    assert {record["answered"] for record in records if not record["aborted"]} == {3}
    assert sum(bool(record["aborted"]) for record in records) <= 2
    assert [record["round"] for record in records] == list(range(1, len(records) + 1))
    assert len(fleet.charges("cut")) <= len(records) + 1
