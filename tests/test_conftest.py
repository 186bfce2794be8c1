"""The guard that keeps tests on this host."""

from __future__ import annotations

import os
import socket

import pytest


@pytest.mark.parametrize("address", ["192.0.2.1", "2001:db8::1"])  # reserved for documentation
def test_other_hosts_are_refused(address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as client, pytest.raises(OSError, match="stay on this host"):
        client.connect((address, 80))


def test_names_of_other_hosts_are_not_looked_up() -> None:
    with pytest.raises(socket.gaierror, match="stay on this host"):
        socket.getaddrinfo("host.invalid", 80)


def test_this_host_can_be_reached() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as client,
    ):
        accepted, peer = server.accept()
        accepted.close()
        assert peer == client.getsockname()


def test_libraries_are_told_to_stay_offline() -> None:
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert os.environ["FLWR_TELEMETRY_ENABLED"] == "0"
