"""TLS settings of the server's processes, which take up a renewed certificate without a restart."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING

from server.home import ServerHome

if TYPE_CHECKING:
    from uvicorn import Config

logger = logging.getLogger("fedslm.tls")

Stamp = tuple[tuple[int, int], ...]


def context_factory(
    home: ServerHome,
) -> Callable[[Config, Callable[[], ssl.SSLContext]], ssl.SSLContext]:
    """Return what makes uvicorn's TLS settings: 1.2 or later, and always the newest certificate.

    Guarantee:
        A connection that is opened after certificate and key were replaced is served with them.
        While the two on disk do not fit each other, or cannot be read, the ones before are served.

    Args:
        home: the folder that holds certificate and key.
    """

    def make(config: Config, default: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
        del config
        context = _hardened(default())
        context.sni_callback = _Newest(home, default)
        return context

    return make


class _Newest:
    """Called by OpenSSL at the start of each handshake, whether a name was sent or not.

    To give a connection another context here is the way that Python's documentation of ``ssl``
    shows; a context is never changed while connections use it.
    """

    def __init__(self, home: ServerHome, default: Callable[[], ssl.SSLContext]) -> None:
        self._files = (home.server_certificate, home.server_key)
        self._default = default
        self._stamp = self._look()
        self._context: ssl.SSLContext | None = None
        self._failed = False

    def __call__(
        self,
        connection: ssl.SSLSocket | ssl.SSLObject,
        name: str | None,
        context: ssl.SSLContext,
    ) -> None:
        """Hand a connection the newest certificate."""
        del name, context
        stamp = self._look()
        if stamp != self._stamp:
            self._take(stamp)
        if self._context is not None:
            connection.context = self._context

    def _take(self, stamp: Stamp) -> None:
        """Read certificate and key anew; keep what there was if they cannot be used."""
        try:
            self._context = _hardened(self._default())
        except (OSError, ssl.SSLError):
            # The second of the two files may be written just now: it is tried again next time.
            if not self._failed:
                logger.warning("the new certificate cannot be used yet; serving the one before")
            self._failed = True
            return
        self._stamp, self._failed = stamp, False
        logger.info("serving a new certificate")

    def _look(self) -> Stamp:
        """Return which files there are."""
        found = []
        for path in self._files:
            try:
                facts = path.stat()
            except OSError:
                found.append((0, 0))
            else:
                found.append((facts.st_mtime_ns, facts.st_ino))
        return tuple(found)


def _hardened(context: ssl.SSLContext) -> ssl.SSLContext:
    """Return settings without what is older than TLS 1.2."""
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    return context
