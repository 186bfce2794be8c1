"""A device's keys for secure aggregation: its own identity, and the roster of its owner."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from client.policy import SecureAggregationLimits
from shared.errors import LedgerError, PolicyRefused
from shared.privacy.secagg.keys import Identity, Roster
from shared.roster import read_roster

IDENTITY = "identity.key"


class DeviceKeyring:
    """The identity in a state folder, and the roster that the policy names.

    Both are read when they are needed, so a roster that the owner replaces counts from the next
    phase on.

    Args:
        folder: the state folder; the identity is made there when it is first needed.
        limits: where the roster is, and which one it must be.
    """

    def __init__(self, folder: Path, limits: SecureAggregationLimits) -> None:
        self._folder = folder
        self._limits = limits

    @property
    def roster(self) -> Roster:
        """Return the identity keys of all clients.

        Raises:
            PolicyRefused: if the file is missing, or not the one that the policy names.
            SchemaMismatch: if it is not a roster.
            SecureAggregationError: if a key in it is none, or stands there twice.
        """
        return read_roster(self._limits.read_roster())

    def identity(self, client: int) -> Identity:
        """Return this device's signing key.

        Raises:
            PolicyRefused: if the roster has another key for this client.
        """
        own = load_identity(self._folder)
        roster = self.roster
        if client not in roster or roster.public_key(client) != own.public_key:
            msg = f"The roster does not have this device as client {client}."
            raise PolicyRefused(msg, hint="Enroll its key: fedslm client identity STATE")
        return own


def load_identity(folder: Path) -> Identity:
    """Return the identity of a state folder; make one that only its owner can read.

    Raises:
        LedgerError: if the file cannot be read or written.
        SchemaMismatch: if it is damaged.
    """
    path = folder / IDENTITY
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            _create(path, Identity.generate().private_bytes())
        return Identity.from_private_bytes(path.read_bytes())
    except OSError as error:
        msg = f"{IDENTITY} cannot be used ({error.strerror})."
        raise LedgerError(msg, hint="Check the state folder and its permissions.") from error


def _create(path: Path, secret: bytes) -> None:
    """Write a key file as a whole, mode 600; of two processes that try, the first one wins."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        os.write(descriptor, secret)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    with suppress(FileExistsError):
        os.link(temporary, path)
    temporary.unlink()
