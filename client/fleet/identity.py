"""Who a node is to the server: its key, and the server's time that it signs.

Flower's node authentication is three headers: the public key, the time, a signature of the time.
The time is the server's, learnt from the dates of its answers, so that a device whose clock is
wrong is not locked out.
"""

from __future__ import annotations

import time
from base64 import b64encode
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from shared.errors import CertificateInvalid
from shared.privatefiles import read_private

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

# A date has whole seconds, and Flower allows a request to be five seconds ahead.
_CLOCK_SLACK: Final = 3.0


class ServerClock:
    """The server's time, as far as the dates of its answers tell."""

    def __init__(self) -> None:
        self.offset = 0.0

    def now(self) -> float:
        """Return the server's time in seconds since 1970."""
        return time.time() + self.offset

    def learn(self, date: str | None) -> bool:
        """Take the date of an answer that came just now; tell whether the clock was set anew."""
        with suppress(TypeError, ValueError, OverflowError):
            found = parsedate_to_datetime(date or "").timestamp() - time.time()
            # Half a second is what the date leaves out, on average.
            offset = found + 0.5 if abs(found) > _CLOCK_SLACK else 0.0
            if abs(offset - self.offset) > _CLOCK_SLACK:
                self.offset = offset
                return True
        return False


class NodeIdentity:
    """The device's key: it names the node and signs its requests.

    Args:
        key: an ECDSA key of a NIST curve.
    """

    def __init__(self, key: EllipticCurvePrivateKey) -> None:
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        self._key = key
        self.public_key = key.public_key().public_bytes(
            Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
        )

    @classmethod
    def load(cls, path: Path) -> NodeIdentity:
        """Read the key of a device: PKCS 8 or OpenSSH, in PEM.

        Raises:
            FleetError: if it is missing, or others may read it.
            CertificateInvalid: if it is no such key.
        """
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
        from cryptography.hazmat.primitives.serialization import (
            load_pem_private_key,
            load_ssh_private_key,
        )

        data = read_private(path)
        ssh = data.lstrip().startswith(b"-----BEGIN OPENSSH")
        try:
            key = (load_ssh_private_key if ssh else load_pem_private_key)(data, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            msg = f"{path.name} holds no private key that can be read."
            raise CertificateInvalid(msg, hint="Enroll the device again.") from error
        if not isinstance(key, EllipticCurvePrivateKey):
            msg = f"{path.name} holds a key of another kind."
            raise CertificateInvalid(msg, hint="Expected ECDSA on a NIST curve.")
        return cls(key)

    def headers(self, now: float) -> dict[str, str]:
        """Return the headers that authenticate a request at a time (seconds since 1970)."""
        from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
        from cryptography.hazmat.primitives.hashes import SHA256

        timestamp = datetime.fromtimestamp(now, UTC).isoformat()
        signature = self._key.sign(timestamp.encode("ascii"), ECDSA(SHA256()))
        return {
            "flwr-public-key": b64encode(self.public_key).decode("ascii"),
            "flwr-timestamp": timestamp,
            "flwr-signature": b64encode(signature).decode("ascii"),
        }
