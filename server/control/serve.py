"""Two gRPC ports and one for Prometheus, started and stopped together.

gRPC's server asks for a client's certificate always or never, and whoever enrolls has none yet; so
enrolment has a port of its own, with limits of its own (docs/adr/0017). The server's certificate is
read again when its file changed: a renewed one needs no restart.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Final

import grpc
from grpc import aio

from server.control import logs
from server.control.budgets import Budgets
from server.control.endpoints import Holdings, for_certificates, for_tokens
from server.control.guard import Endpoint, Guard
from server.control.identity import AddressDoor, CertificateDoor
from server.control.limits import Slots, TokenBuckets
from server.control.runstates import RunStates
from server.control.services.enrolment import Announced
from server.control.services.registry import Adapters
from server.control.settings import ControlSettings, listen_on
from server.control.telemetry import Telemetry
from server.fleetdb import FleetDatabase
from server.home import ServerHome
from shared.control.methods import MAX_METADATA_BYTES, MAX_REQUEST_BYTES, MAX_RESPONSE_BYTES
from shared.crypto import SigningKey
from shared.errors import AlreadyRunning, CertificateInvalid
from shared.files import write_json
from shared.pki import public_bytes
from shared.privacy.ledger_signing import LedgerSigner

PORTS: Final = "control.json"

_GRACE_SECONDS = 3.0
_ENROL_WORKERS = 2
_ENROL_REQUEST_BYTES = 20_480
# Calls of a whole port that may be under way; more are refused at once. A call that hangs holds no
# thread, and ends with its connection.
_CALLS = 2000
_ENROL_CALLS = 500
_ENROL_CALLS_EACH = 4
_CONTROL_AGE = 600_000
_ENROL_AGE = 30_000


def _options(*, request_bytes: int, streams: int, age: int) -> list[tuple[str, int]]:
    """Return gRPC's own limits.

    Args:
        request_bytes: the longest request.
        streams: calls on one connection at the same time.
        age: milliseconds until a connection has to be made anew; what hangs ends with it.
    """
    return [
        ("grpc.max_receive_message_length", request_bytes),
        ("grpc.max_send_message_length", MAX_RESPONSE_BYTES + 1024),
        ("grpc.max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", 2 * MAX_METADATA_BYTES),
        ("grpc.max_concurrent_streams", streams),
        ("grpc.max_connection_age_ms", age),
        ("grpc.max_connection_age_grace_ms", 30_000),
        ("grpc.max_connection_idle_ms", min(age, 300_000)),
        ("grpc.server_handshake_timeout_ms", 10_000),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 60_000),
        ("grpc.http2.max_ping_strikes", 2),
        # Nothing we are sent is worth compressing, and a bomb is one less thing to unpack.
        ("grpc.compression_enabled_algorithms_bitset", 1),
        # A second server on the same port is an error, not a competitor.
        ("grpc.so_reuseport", 0),
    ]


_CONTROL_OPTIONS = _options(request_bytes=MAX_REQUEST_BYTES, streams=16, age=_CONTROL_AGE)
_ENROL_OPTIONS = _options(request_bytes=_ENROL_REQUEST_BYTES, streams=4, age=_ENROL_AGE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listening:
    """The ports that are open.

    Attributes:
        control: for holders of certificates.
        enrol: for holders of tokens.
        metrics: for Prometheus, on loopback; None without metrics, or if its port is taken.
    """

    control: int
    enrol: int
    metrics: int | None


async def serve(
    home: ServerHome,
    settings: ControlSettings,
    *,
    ready: Callable[[Listening], None],
    stop: asyncio.Event,
) -> None:
    """Serve until told to stop; calls that are under way get a few seconds to end.

    Args:
        home: the server's folder.
        settings: addresses and limits.
        ready: told the ports once they are open.
        stop: set it to end.

    Raises:
        AlreadyRunning: if a port is taken.
        FleetError: if the folder's keys or databases cannot be used.
    """
    with ExitStack() as stack:
        stack.callback(logs.stop, logs.write_to(home.logs))
        fleet = stack.enter_context(FleetDatabase(home.fleet_database))
        held, telemetry = hold(home, fleet), Telemetry()
        telemetry.observe(fleet, held.runs)
        control, enrol = _servers(home, settings, held, telemetry, stack)
        opened = _open(home, settings, telemetry, (control, enrol), stack)
        await control.start()
        await enrol.start()
        logs.event("started", {"control": opened.control, "enrol": opened.enrol})
        ready(opened)
        try:
            await stop.wait()
        finally:
            await asyncio.gather(control.stop(_GRACE_SECONDS), enrol.stop(_GRACE_SECONDS))
            logs.event("stopped", {})


def run(home: ServerHome, settings: ControlSettings | None = None) -> None:
    """Serve in this process until SIGTERM or SIGINT.

    Args:
        home: the server's folder.
        settings: addresses and limits; by default those of the folder.

    Raises:
        AlreadyRunning: if a port is taken.
        FleetError: if the folder's keys or databases cannot be used.
    """
    asyncio.run(_until_signal(home, settings or ControlSettings.of(home.config)))


async def _until_signal(home: ServerHome, settings: ControlSettings) -> None:
    """Serve until a signal; the ports are written where whoever started this may look."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    path = home.run / PORTS

    def ready(opened: Listening) -> None:
        write_json(path, {**asdict(opened), "pid": os.getpid()})

    try:
        await serve(home, settings, ready=ready, stop=stop)
    finally:
        path.unlink(missing_ok=True)


def hold(home: ServerHome, fleet: FleetDatabase) -> Holdings:
    """Open what the service reads and writes."""
    adapter_key = SigningKey.load_or_create(home.adapter_key).public_key
    adapters = Adapters(home.adapters, keys=home.keys, trusted=adapter_key)
    announced = Announced(
        adapter_key=adapter_key,
        ledger_key=LedgerSigner.load_or_create(home.ledger_key).public_key,
        base_digest=adapters.base_digest,
    )
    return Holdings(
        fleet=fleet,
        authority=home.authority(),
        adapters=adapters,
        budgets=Budgets(home.ledger),
        runs=RunStates(home),
        announced=announced,
    )


def _servers(
    home: ServerHome,
    settings: ControlSettings,
    held: Holdings,
    telemetry: Telemetry,
    stack: ExitStack,
) -> tuple[aio.Server, aio.Server]:
    """Return both servers with their methods, limits and checks; no port is open yet."""
    clock = time.monotonic
    by_certificate = Guard(
        door=CertificateDoor(held.fleet),
        buckets=TokenBuckets(
            per_minute=settings.requests_per_minute,
            burst=max(20.0, settings.requests_per_minute / 10),
            clock=clock,
        ),
        slots=Slots(settings.calls_per_key),
        pool=stack.enter_context(ThreadPoolExecutor(settings.workers, "control")),
        telemetry=telemetry,
    )
    by_address = Guard(
        door=AddressDoor(),
        buckets=TokenBuckets(
            per_minute=settings.enrolments_per_minute,
            burst=settings.enrolments_per_minute,
            clock=clock,
        ),
        slots=Slots(_ENROL_CALLS_EACH),
        pool=stack.enter_context(ThreadPoolExecutor(_ENROL_WORKERS, "enrol")),
        telemetry=telemetry,
    )
    control = aio.server(options=_CONTROL_OPTIONS, maximum_concurrent_rpcs=_CALLS)
    enrol = aio.server(options=_ENROL_OPTIONS, maximum_concurrent_rpcs=_ENROL_CALLS)
    _add(control, by_certificate, for_certificates(held, settings))
    _add(enrol, by_address, for_tokens(held, settings))
    return control, enrol


def _add(server: aio.Server, guard: Guard, endpoints: Sequence[Endpoint]) -> None:
    """Register methods under their services."""
    services: dict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]] = defaultdict(dict)
    for endpoint in endpoints:
        services[endpoint.method.service][endpoint.method.name] = guard.handler(endpoint)
    server.add_generic_rpc_handlers(
        tuple(grpc.method_handlers_generic_handler(name, found) for name, found in services.items())
    )


def _open(
    home: ServerHome,
    settings: ControlSettings,
    telemetry: Telemetry,
    servers: tuple[aio.Server, aio.Server],
    stack: ExitStack,
) -> Listening:
    """Open the ports.

    Raises:
        AlreadyRunning: if one is taken.
    """
    control, enrol = servers
    ports = []
    for server, port, mutual in (
        (control, settings.control_port, True),
        (enrol, settings.enrol_port, False),
    ):
        with _taken(port):
            credentials = _credentials(home, mutual=mutual)
            ports.append(server.add_secure_port(listen_on(settings.bind, port), credentials))
    metrics = None
    if settings.metrics_port is not None:
        try:
            metrics, stop = telemetry.serve(settings.metrics_port)
            stack.callback(stop)
        except OSError as error:
            # Devices are worth more than numbers: the service goes on without them.
            logs.failure("metrics", error)
    return Listening(control=ports[0], enrol=ports[1], metrics=metrics)


def _credentials(home: ServerHome, *, mutual: bool) -> grpc.ServerCredentials:
    """Return the server's certificate and key, read again when the files changed.

    Args:
        home: the server's folder.
        mutual: whether a client has to show a certificate of our authority.
    """
    root = home.ca_certificate.read_bytes()
    seen: list[tuple[float, float]] = []

    def read() -> grpc.ServerCertificateConfiguration | None:
        """Return the files' content; None if it is the same as last time."""
        now = (home.server_certificate.stat().st_mtime, home.server_key.stat().st_mtime)
        if seen == [now]:
            return None
        key, certificate = home.server_key.read_bytes(), home.server_certificate.read_bytes()
        if public_bytes(key) != public_bytes(certificate):
            # One of the two files is newer than the other: it is just being replaced.
            return None
        seen[:] = [now]
        # The authority's certificate goes along, for devices that know only its fingerprint.
        pair = (key, certificate.rstrip() + b"\n" + root)
        return grpc.ssl_server_certificate_configuration([pair], root if mutual else None)

    def read_again() -> Any:  # noqa: ANN401 - None is an answer that the stubs leave out
        """Return what gRPC takes for "another one", or for "the same"."""
        try:
            return read()
        except (OSError, CertificateInvalid) as error:
            logs.failure("certificate", error)
            return None

    first = read()
    if first is None:
        msg = "the server's certificate is not that of its key."
        raise CertificateInvalid(msg, hint="Restore both files from the same copy.")
    return grpc.dynamic_ssl_server_credentials(first, read_again, mutual)


@contextmanager
def _taken(port: int) -> Iterator[None]:
    """Say which port could not be opened.

    Raises:
        AlreadyRunning: in place of what gRPC or the system raises.
    """
    try:
        yield
    except (RuntimeError, OSError) as error:
        msg = f"port={port} cannot be opened."
        hint = "Is another server running? Choose another port in server.toml."
        raise AlreadyRunning(msg, hint=hint) from error
