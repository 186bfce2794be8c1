"""What the control service takes from the server's settings, and its own limits."""

from __future__ import annotations

from dataclasses import dataclass

from server.settings import ServerConfig

# Where the settings do not name them: so far after the control port, 9096 and 9097 by default.
_ENROL_AFTER = 3
_METRICS_AFTER = 4
_LAST_PORT = 65_535

MAX_VALID_SECONDS = 30 * 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlSettings:
    """Addresses and limits of the control service.

    Attributes:
        bind: address that both gRPC ports listen on.
        control_port: port for holders of certificates; 0 takes a free one.
        enrol_port: port for holders of tokens; 0 takes a free one.
        metrics_port: HTTP port on loopback for Prometheus; None serves no metrics, 0 takes a free
            one.
        control_address: host:port that devices dial.
        enrol_address: host:port that goes into tokens.
        fleet_address: host:port of the fleet front.
        requests_per_minute: calls that one key may make.
        enrolments_per_minute: calls that one address may make on the enrolment port.
        calls_per_key: calls of one key at the same time.
        workers: threads that do the work of the control port.
        call_seconds: how long a call may take.
        stream_seconds: how long a download may take before it has to be resumed.
        token_seconds: how long a new token is good unless asked otherwise.
        certificate_days: how long an issued certificate is good.
    """

    bind: str
    control_port: int
    enrol_port: int
    metrics_port: int | None
    control_address: str
    enrol_address: str
    fleet_address: str
    requests_per_minute: int
    token_seconds: int
    certificate_days: int
    enrolments_per_minute: int = 10
    calls_per_key: int = 4
    workers: int = 8
    call_seconds: float = 20.0
    stream_seconds: float = 120.0

    @classmethod
    def of(cls, config: ServerConfig) -> ControlSettings:
        """Read the settings of a server."""
        return cls(
            bind=config.bind,
            control_port=config.control_port,
            enrol_port=enrol_port(config),
            metrics_port=int(getattr(config, "metrics_port", _after(config, _METRICS_AFTER))),
            control_address=config.control_address,
            enrol_address=enrol_address(config),
            fleet_address=config.fleet_address,
            requests_per_minute=config.requests_per_minute,
            token_seconds=round(config.token_hours * 3600),
            certificate_days=config.certificate_days,
        )


def enrol_address(config: ServerConfig) -> str:
    """Return where devices without a certificate dial, ``host:port``: what a token has to name."""
    host = config.control_address.rsplit(":", 1)[0]
    return f"{host}:{enrol_port(config)}"


def enrol_port(config: ServerConfig) -> int:
    """Return the port for holders of tokens."""
    return int(getattr(config, "enrol_port", _after(config, _ENROL_AFTER)))


def _after(config: ServerConfig, places: int) -> int:
    """Return a port some places after the control port, or before it at the end of the range."""
    port = config.control_port + places
    return port if port <= _LAST_PORT else config.control_port - places


def listen_on(bind: str, port: int) -> str:
    """Return what gRPC listens on; IPv6 addresses get brackets."""
    return f"[{bind}]:{port}" if ":" in bind else f"{bind}:{port}"
