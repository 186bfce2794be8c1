"""Ports for a server on loopback: found free together, and checked before it is started again."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Sequence

from server.control.settings import ControlSettings
from server.settings import ServerConfig
from shared.errors import FleetError

# Below the range from which systems take the ports of connections that go out.
_FIRST, _LAST = 20_000, 32_000
_ATTEMPTS = 200
# The control service takes two more, after its own.
_SPARE = 8


def free_block(names: Sequence[str]) -> dict[str, int]:
    """Return neighbouring free ports by name, with some free ones behind them.

    Raises:
        FleetError: if there are none.
    """
    size = len(names) + _SPARE
    for _ in range(_ATTEMPTS):
        first = _FIRST + secrets.randbelow(_LAST - _FIRST - size)
        if all(is_free(port) for port in range(first, first + size)):
            return {name: first + place for place, name in enumerate(names)}
    msg = f"No {size} neighbouring free ports from {_FIRST} to {_LAST}."
    raise FleetError(msg, hint="Stop what uses so many, or name ports in server.toml.")


def require_free(config: ServerConfig) -> None:
    """Refuse to start where somebody listens already.

    Raises:
        FleetError: naming the port.
    """
    control = ControlSettings.of(config)
    wanted = {
        "fleet_port": config.fleet_port,
        "control_port": config.control_port,
        "enrol_port": control.enrol_port,
        "metrics_port": control.metrics_port,
        "dashboard_port": config.dashboard_port,
        "superlink_port": config.superlink_port,
    }
    for name, port in wanted.items():
        if port is not None and not is_free(port):
            msg = f"{name}={port} is taken by another program."
            raise FleetError(msg, hint="Stop it, or give the server another port in server.toml.")


def is_free(port: int) -> bool:
    """Tell whether nobody listens on a port of loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
