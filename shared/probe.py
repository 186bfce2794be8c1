"""Whether a server answers at an address, over TLS, with a certificate of a given authority.

``python -m shared.probe CA HOST:PORT`` exits with 0 if it does; container engines use it.
"""

from __future__ import annotations

import http.client
import ssl
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path

from shared.errors import CertificateInvalid, InvalidValue, ServerUnreachable

# OpenSSL's X509_V_FLAG_NO_CHECK_TIME, which Python does not name.
_NO_CHECK_TIME = 0x200000
_ARGUMENTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What answered.

    Attributes:
        status: of a request for nothing in particular; any number means that somebody is there.
        ahead: seconds that this device's clock is ahead of the server's, to about a second;
            ``None`` where the server did not say its time.
    """

    status: int
    ahead: float | None


def probe(address: str, ca: Path, *, timeout: float = 10.0, check_time: bool = True) -> Answer:
    """Ask a server for nothing, to see whether it is there.

    Args:
        address: ``host:port``; an IPv6 address in brackets.
        ca: the authority that must have issued its certificate, a PEM file.
        timeout: seconds for each step.
        check_time: ``False`` takes a certificate that this device's clock finds expired or not
            valid yet, which is how a wrong clock is found; the authority is checked all the same.

    Raises:
        InvalidValue: if the address is none.
        CertificateInvalid: if the authority's file cannot be used, or the server's certificate is
            of another authority, for another name, or out of date.
        ServerUnreachable: if nothing answers, or something that speaks no HTTPS.
    """
    host, port = _split(address)
    try:
        context = ssl.create_default_context(cafile=str(ca))
    except (OSError, ssl.SSLError) as error:
        msg = f"The authority's certificate {ca.name} cannot be used ({type(error).__name__})."
        raise CertificateInvalid(msg, hint="Restore it from a copy, or enroll again.") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if not check_time:
        context.verify_flags |= ssl.VerifyFlags(_NO_CHECK_TIME)
    connection = http.client.HTTPSConnection(host, port, timeout=timeout, context=context)
    try:
        connection.request("GET", "/")
        response = connection.getresponse()
        here = time.time()
        return Answer(status=response.status, ahead=_ahead(response.getheader("Date"), here))
    except ssl.SSLCertVerificationError as error:
        msg = f"The certificate of {address} was refused: {error.verify_message}."
        hint = "Compare the clocks, and the authority that this device was enrolled with."
        raise CertificateInvalid(msg, hint=hint) from error
    except (OSError, http.client.HTTPException) as error:
        msg = f"{address} does not answer ({type(error).__name__})."
        raise ServerUnreachable(
            msg, hint="Check the address, the network and the server."
        ) from None
    finally:
        connection.close()


def _split(address: str) -> tuple[str, int]:
    """Return host and port."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        msg = f"address={address!r}, expected host:port."
        raise InvalidValue(msg)
    return host.removeprefix("[").removesuffix("]"), int(port)


def _ahead(date: str | None, here: float) -> float | None:
    """Return the seconds by which a clock is ahead of a Date header."""
    if date is None:
        return None
    try:
        # The header is cut to whole seconds, so half a second is its best guess.
        return here - (parsedate_to_datetime(date).timestamp() + 0.5)
    except (TypeError, ValueError):
        return None


def main(arguments: Sequence[str]) -> int:
    """Return 0 if a server answers, 1 if not, 2 for a wrong command line."""
    if len(arguments) != _ARGUMENTS:
        sys.stderr.write("usage: python -m shared.probe CA HOST:PORT\n")
        return 2
    try:
        probe(arguments[2], Path(arguments[1]))
    except (CertificateInvalid, InvalidValue, ServerUnreachable) as error:
        sys.stderr.write(f"{error.message}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
