"""The operator's folder: where keys, databases, runs and logs of one server are, and its settings.

``server.toml`` holds the settings; everything secret lies in ``keys/`` and ``pki/`` with mode 600
in folders of mode 700. Nothing heavy is imported here, so that every process may start with it.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from server.settings import CONFIG
from server.settings import ServerConfig as ServerConfig
from shared.errors import CertificateInvalid, FleetError, InvalidValue, RunFolderExists
from shared.files import disk_errors, write_bytes

if TYPE_CHECKING:
    from datetime import datetime

    from shared.pki import Authority

SIGNING_KEYS = ("ledger", "adapter", "audit")

_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_SECRET_BYTES = 32
_FOLDERS = ("pki", "keys", "adapters", "runs", "logs", "flwr", "run")


class ServerHome:
    """The folder of one server.

    Args:
        path: an existing folder; use :meth:`create` or :meth:`open`.
        config: its settings.
    """

    def __init__(self, path: Path, config: ServerConfig) -> None:
        self.path = path
        self.config = config

    @classmethod
    def create(cls, path: Path, config: ServerConfig) -> ServerHome:
        """Make the folder with its authority, the server's certificate, keys and settings.

        Settings come last: a folder that was not finished is refused by :meth:`open`, and may be
        given to this method again.

        Raises:
            RunFolderExists: if a server is there already.
            RunFolderError: if the folder cannot be written.
        """
        home = cls(path.absolute(), config)
        if home.config_path.exists():
            msg = f"{path.name} already holds a server."
            raise RunFolderExists(msg, hint="Run it, or choose another folder.")
        with disk_errors(path):
            for folder in (home.path, *(home.path / name for name in _FOLDERS)):
                folder.mkdir(parents=True, exist_ok=True)
                folder.chmod(0o700)
        home._make_keys()
        home._make_certificates()
        write_bytes(home.config_path, config.to_toml().encode())
        return home

    @classmethod
    def open(cls, path: Path) -> ServerHome:
        """Read an existing folder.

        Raises:
            FleetError: if there is no server, or others may read its keys.
            InvalidValue: if its settings are wrong.
        """
        try:
            text = (path / CONFIG).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            msg = f"{path.name or path} holds no server: {CONFIG} cannot be read."
            raise FleetError(msg, hint="Make one with: fedslm server init DIR") from error
        home = cls(path.absolute(), ServerConfig.from_toml(text))
        home.check_modes()
        return home

    def check_modes(self) -> None:
        """Refuse keys that others may read.

        Raises:
            FleetError: naming the first such file.
        """
        found = [*self.keys.glob("*"), *self.pki.glob("*.key")]
        for path in sorted(found):
            mode = stat.S_IMODE(path.stat().st_mode)
            if mode & 0o077:
                msg = f"{path.relative_to(self.path)} has mode {mode:03o}, expected 600."
                raise FleetError(msg, hint="Others may have read it: replace it, or chmod 600 it.")

    def authority(self) -> Authority:
        """Return the authority that issues certificates.

        Raises:
            CertificateInvalid: if its files are damaged.
        """
        from shared.pki import Authority

        return Authority.load(self.ca_certificate, self.ca_key)

    def issue_server_certificate(self) -> None:
        """Write a new certificate and key of the server, for the hosts of the settings.

        Raises:
            CertificateInvalid: if the authority's files are damaged.
            RunFolderError: if they cannot be written.
        """
        days = self.config.certificate_days
        issued = self.authority().issue_server(self.config.certificate_hosts, days=days)
        write_secret(self.server_key, issued.key)
        write_bytes(self.server_certificate, issued.certificate)

    def renew_server_certificate(self, *, now: datetime | None = None) -> bool:
        """Write a new certificate and key if less than a third of the time of the old one is left.

        Returns:
            Whether it was time.

        Raises:
            CertificateInvalid: if the authority's files or the old certificate are damaged.
            RunFolderError: if they cannot be written.
        """
        from shared.pki import read_certificate, renewal_is_due

        try:
            present = self.server_certificate.read_bytes()
        except OSError as error:
            msg = f"pki/{self.server_certificate.name} cannot be read."
            raise CertificateInvalid(msg, hint="Run: fedslm server rotate certificate") from error
        if not renewal_is_due(read_certificate(present), now=now):
            return False
        self.issue_server_certificate()
        return True

    def run_folder(self, name: str) -> Path:
        """Return the folder of a run of this name, which need not exist.

        Raises:
            InvalidValue: for a name that could leave the folder.
        """
        if _RUN.fullmatch(name) is None or ".." in name:
            msg = f"run name {name!r}, expected letters, digits, '.', '_' and '-', at most 100."
            raise InvalidValue(msg, hint="Choose another name.")
        return self.runs / name

    def read_secret(self, path: Path) -> bytes:
        """Read one of the folder's secrets.

        Raises:
            FleetError: if it is missing.
        """
        try:
            return path.read_bytes()
        except OSError as error:
            msg = f"{path.relative_to(self.path)} cannot be read ({error.strerror})."
            raise FleetError(msg, hint="Restore it from a copy of the folder.") from error

    def _make_keys(self) -> None:
        """Make the keys that are missing."""
        from shared.crypto import SigningKey

        for name in SIGNING_KEYS:
            SigningKey.load_or_create(self.keys / f"{name}.key")
        for path in (self.superexec_secret, self.session_key):
            if not path.exists():
                write_secret(path, secrets.token_bytes(_SECRET_BYTES))
        if not self.control_secret.exists():
            write_secret(self.control_secret, secrets.token_hex(_SECRET_BYTES).encode())

    def _make_certificates(self) -> None:
        """Make the authority, if missing, and the server's certificate."""
        from shared.pki import Authority

        if not (self.ca_certificate.exists() and self.ca_key.exists()):
            days = max(3650, self.config.certificate_days)
            authority = Authority.create(f"{self.config.name} authority", days=days)
            authority.save(self.ca_certificate, self.ca_key)
        self.issue_server_certificate()

    @property
    def config_path(self) -> Path:
        """Return the settings."""
        return self.path / CONFIG

    @property
    def pki(self) -> Path:
        """Return the folder of certificates."""
        return self.path / "pki"

    @property
    def ca_certificate(self) -> Path:
        """Return the authority's certificate (PEM)."""
        return self.pki / "ca.crt"

    @property
    def ca_key(self) -> Path:
        """Return the authority's key (PEM, mode 600)."""
        return self.pki / "ca.key"

    @property
    def server_certificate(self) -> Path:
        """Return the server's certificate (PEM)."""
        return self.pki / "server.crt"

    @property
    def server_key(self) -> Path:
        """Return the server's key (PEM, mode 600)."""
        return self.pki / "server.key"

    @property
    def keys(self) -> Path:
        """Return the folder of keys."""
        return self.path / "keys"

    @property
    def ledger_key(self) -> Path:
        """Return the Ed25519 key that signs the ledger (32 raw bytes)."""
        return self.keys / "ledger.key"

    @property
    def adapter_key(self) -> Path:
        """Return the Ed25519 key that signs adapters (32 raw bytes)."""
        return self.keys / "adapter.key"

    @property
    def audit_key(self) -> Path:
        """Return the Ed25519 key that signs audit reports (32 raw bytes)."""
        return self.keys / "audit.key"

    @property
    def superexec_secret(self) -> Path:
        """Return the secret that Flower's executor shows to the SuperLink (32 bytes)."""
        return self.keys / "superexec.secret"

    @property
    def control_secret(self) -> Path:
        """Return the secret that Control calls show to the SuperLink (hexadecimal)."""
        return self.keys / "control.secret"

    @property
    def session_key(self) -> Path:
        """Return the key of dashboard sessions (32 raw bytes)."""
        return self.keys / "session.key"

    @property
    def ledger(self) -> Path:
        """Return the ledger that all runs share."""
        return self.path / "ledger.sqlite"

    @property
    def fleet_database(self) -> Path:
        """Return the database of enrolled nodes."""
        return self.path / "fleet.sqlite"

    @property
    def superlink_database(self) -> Path:
        """Return Flower's own database."""
        return self.path / "superlink.sqlite"

    @property
    def adapters(self) -> Path:
        """Return the adapter registry."""
        return self.path / "adapters"

    @property
    def runs(self) -> Path:
        """Return the folder of run folders."""
        return self.path / "runs"

    @property
    def logs(self) -> Path:
        """Return the folder of logs."""
        return self.path / "logs"

    @property
    def flower_home(self) -> Path:
        """Return what Flower's processes get as ``FLWR_HOME``."""
        return self.path / "flwr"

    @property
    def run(self) -> Path:
        """Return the folder of lock, pid files and health of the running server."""
        return self.path / "run"

    @property
    def status(self) -> Path:
        """Return the supervisor's health file."""
        return self.run / "status.json"


def write_secret(path: Path, data: bytes) -> None:
    """Write a file of mode 600 atomically, never readable by others in between.

    Raises:
        RunFolderError: if it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    flags = os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW
    with disk_errors(path):
        try:
            with os.fdopen(os.open(temporary, flags, 0o600), "wb") as stream:
                os.fchmod(stream.fileno(), 0o600)
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
