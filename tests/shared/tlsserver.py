"""A small HTTPS server in this process, with a certificate of an authority of ours."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

from shared.pki import Authority


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where it answers, and the authority that its certificate is of."""

    address: str
    ca: Path


@contextmanager
def serving(
    folder: Path, *, date: str | None = None, expired: bool = False, host: str = "127.0.0.1"
) -> Iterator[Site]:
    """Answer every request with 404 until the end of the block.

    Args:
        folder: for keys and certificates.
        date: the Date header; the time of day for ``None``, none for an empty one.
        expired: whether the server's certificate ended a month ago.
        host: what the certificate is for.
    """

    class Handler(BaseHTTPRequestHandler):
        """Answers nothing in particular."""

        def do_GET(self) -> None:
            """Answer."""
            self.send_response_only(404)
            if date != "":
                self.send_header("Date", self.date_time_string() if date is None else date)
            self.send_header("Content-Length", "0")
            self.end_headers()

    start = datetime.now(UTC) - timedelta(days=40)
    authority = Authority.create("a test", days=80, now=start)
    folder.mkdir(mode=0o700, exist_ok=True)
    authority.save(folder / "ca.crt", folder / "ca.key")
    issued = authority.issue_server([host], days=10 if expired else 80, now=start)
    (folder / "chain.pem").write_bytes(issued.key + issued.certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "chain.pem")
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        server.handle_error = lambda request, client_address: None  # type: ignore[method-assign]
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield Site(address=f"127.0.0.1:{server.server_port}", ca=folder / "ca.crt")
        finally:
            server.shutdown()
            thread.join()
