"""A renewed certificate is served without a restart, and a bad one is not."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import pytest
from uvicorn import Config

from server.freshtls import context_factory
from server.home import ServerHome
from shared.pki import read_certificate
from tests.server.fleetkit import make_home


@pytest.fixture(name="home")
def _home(tmp_path: Path) -> ServerHome:
    return make_home(tmp_path)


@pytest.fixture(name="port")
def _port(home: ServerHome) -> Iterator[int]:
    """A server that echoes five bytes and outlives a handshake that fails."""

    def default() -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(home.server_certificate, home.server_key)
        return context

    context = context_factory(home)(cast(Config, None), default)
    stop = threading.Event()

    def run() -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError):
                plain, _ = listener.accept()
                plain.settimeout(10)
                with plain, context.wrap_socket(plain, server_side=True) as secure:
                    secure.sendall(secure.recv(5))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.1)
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        yield int(listener.getsockname()[1])
        stop.set()
        thread.join(20)
        assert not thread.is_alive()


@pytest.mark.parametrize("named", [True, False], ids=["name", "no name"])
def test_an_event_loops_connections_get_the_new_certificate(home: ServerHome, named: bool) -> None:
    """Uvicorn hands the context to asyncio, which wraps no socket."""

    def default() -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(home.server_certificate, home.server_key)
        return context

    context = context_factory(home)(cast(Config, None), default)
    first = home.server_certificate.read_bytes()
    home.issue_server_certificate()
    trusted = ssl.create_default_context(cafile=str(home.ca_certificate))
    trusted.check_hostname = named
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = context.wrap_bio(to_server, to_client, server_side=True)
    client = trusted.wrap_bio(to_client, to_server, server_hostname="localhost" if named else None)
    for _ in range(4):
        for side in (client, server):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
    shown = client.getpeercert(binary_form=True)
    assert shown is not None
    found = read_certificate(ssl.DER_cert_to_PEM_cert(shown).encode())
    assert found == read_certificate(home.server_certificate.read_bytes())
    assert found != read_certificate(first)


def served(home: ServerHome, port: int, *, named: bool = True) -> bytes:
    """Return the certificate that a new connection is shown, and require that it works."""
    trusted = ssl.create_default_context(cafile=str(home.ca_certificate))
    trusted.check_hostname = named
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
        trusted.wrap_socket(plain, server_hostname="localhost" if named else None) as secure,
    ):
        secure.sendall(b"hello")
        assert secure.recv(5) == b"hello"
        shown = secure.getpeercert(binary_form=True)
    assert shown is not None
    return ssl.DER_cert_to_PEM_cert(shown).encode()


@pytest.mark.parametrize("named", [True, False], ids=["name", "no name"])
def test_new_connections_get_the_new_certificate(home: ServerHome, port: int, named: bool) -> None:
    first = home.server_certificate.read_bytes()
    assert read_certificate(served(home, port, named=named)) == read_certificate(first)
    home.issue_server_certificate()
    second = home.server_certificate.read_bytes()
    assert read_certificate(first).serial != read_certificate(second).serial
    assert read_certificate(served(home, port, named=named)) == read_certificate(second)
    assert read_certificate(served(home, port, named=named)) == read_certificate(second)


def test_what_cannot_be_used_is_not_served(home: ServerHome, port: int) -> None:
    first = read_certificate(home.server_certificate.read_bytes())
    key = home.server_key.read_bytes()
    home.issue_server_certificate()
    second = home.server_key.read_bytes()
    # A new certificate beside the old key, nothing at all, then both.
    home.server_key.write_bytes(key)
    assert read_certificate(served(home, port)) == first
    home.server_key.unlink()
    assert read_certificate(served(home, port)) == first
    home.server_key.write_bytes(second)
    expected = read_certificate(home.server_certificate.read_bytes())
    assert read_certificate(served(home, port)) == expected


def test_nothing_older_than_tls_1_2(home: ServerHome, port: int) -> None:
    home.issue_server_certificate()
    served(home, port)
    old = ssl.create_default_context(cafile=str(home.ca_certificate))
    with pytest.warns(DeprecationWarning, match="TLSv1_1 is deprecated"):
        old.maximum_version = ssl.TLSVersion.TLSv1_1

    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
        pytest.raises(ssl.SSLError),
    ):
        old.wrap_socket(plain, server_hostname="localhost")


def test_the_certificate_is_renewed_in_the_last_third_of_its_time(home: ServerHome) -> None:
    issued = datetime.now(UTC)
    before = home.server_certificate.read_bytes()
    days = home.config.certificate_days
    assert not home.renew_server_certificate(now=issued + timedelta(days=days * 0.66))
    assert home.server_certificate.read_bytes() == before
    assert home.renew_server_certificate(now=issued + timedelta(days=days * 0.67))
    assert home.server_certificate.read_bytes() != before
