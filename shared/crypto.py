"""Signing keys in files, and detached signatures that cannot be mistaken for one another.

Ed25519 (RFC 8032) by the ``cryptography`` package. What is signed is always a domain, a bar and a
SHA-256 digest, so that a signature made for one purpose is worth nothing for another.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from shared.errors import FedSLMError, InvalidValue, RunFolderError

KEY_BYTES = 32
ALGORITHM = "ed25519"


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """A detached signature of one document.

    Attributes:
        domain: what was signed, by purpose ("fedslm-audit-report-v1").
        sha256: digest of the document's bytes, 64 hexadecimal digits.
        public_key: 64 hexadecimal digits.
        signature: 128 hexadecimal digits.
    """

    domain: str
    sha256: str
    public_key: str
    signature: str

    def holds(self) -> bool:
        """Tell whether the named key made this signature."""
        return signature_holds(self.public_key, self.signature, _message(self.domain, self.sha256))

    def to_dict(self) -> dict[str, str]:
        """Return the JSON form."""
        return {
            "algorithm": ALGORITHM,
            "domain": self.domain,
            "sha256": self.sha256,
            "public_key": self.public_key,
            "signature": self.signature,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Signature:
        """Read the JSON form.

        Raises:
            InvalidValue: if a key is missing or the algorithm is another one.
        """
        found = {name: data.get(name) for name in ("domain", "sha256", "public_key", "signature")}
        if data.get("algorithm") != ALGORITHM or not all(
            isinstance(v, str) for v in found.values()
        ):
            msg = f"a signature has keys {sorted(data)}, expected those of {ALGORITHM}."
            raise InvalidValue(msg)
        return cls(**{name: str(value) for name, value in found.items()})


class SigningKey:
    """An Ed25519 key.

    Args:
        secret: the raw private key, 32 bytes.

    Raises:
        InvalidValue: if the key has another length.
    """

    def __init__(self, secret: bytes) -> None:
        if len(secret) != KEY_BYTES:
            msg = f"a signing key of {len(secret)} bytes, expected {KEY_BYTES}."
            raise InvalidValue(msg, hint="Restore the key file from a copy.")
        self._key = Ed25519PrivateKey.from_private_bytes(secret)

    @classmethod
    def load_or_create(cls, path: Path) -> SigningKey:
        """Read a key file, or make one that only its owner can read.

        Args:
            path: 32 raw bytes, mode 600; missing folders are made.

        Raises:
            RunFolderError: if the file cannot be read or created, or may be read by others.
            InvalidValue: if it is not a key.
        """
        secret = read_or_create_secret(
            path, error=RunFolderError, hint="Give another file with --key.", make_folder=True
        )
        return cls(secret)

    @property
    def public_key(self) -> str:
        """Return the public key, 64 hexadecimal digits."""
        return self._key.public_key().public_bytes_raw().hex()

    def sign(self, domain: str, sha256: str) -> Signature:
        """Sign a document's digest for one purpose."""
        signed = self._key.sign(_message(domain, sha256)).hex()
        return Signature(domain=domain, sha256=sha256, public_key=self.public_key, signature=signed)


def read_or_create_secret(
    path: Path, *, error: type[FedSLMError], hint: str, make_folder: bool = False
) -> bytes:
    """Read the secret of a key file, or make one that only its owner can read.

    Several processes may do this at once; all of them get the same secret.

    Args:
        path: mode 600.
        error: raised when the file cannot be read or created, or may be read by others.
        hint: what to do when it cannot be read or created.
        make_folder: whether a missing folder is made.

    Returns:
        The file's bytes, at most one more than :data:`KEY_BYTES`; a good key has exactly that many.
    """
    try:
        if not path.exists():
            if make_folder:
                path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            _create(path)
        with path.open("rb") as stream:
            mode = stat.S_IMODE(os.fstat(stream.fileno()).st_mode)
            secret = stream.read(KEY_BYTES + 1)
    except OSError as found:
        msg = f"the signing key {path.name} cannot be read or created: {found.strerror}."
        raise error(msg, hint=hint) from found
    if mode & 0o077:
        msg = f"the signing key {path.name} has mode {mode:03o}, expected 600."
        raise error(msg, hint="Others may have read it: make a new key, or run chmod 600.")
    return secret


def signature_holds(public_key: str, signature: str, message: bytes) -> bool:
    """Tell whether a key made an Ed25519 signature of a message.

    Args:
        public_key: 64 lower-case hexadecimal digits; anything else has signed nothing.
        signature: 128 such digits.
        message: what was signed, with the domain of its purpose in front.
    """
    try:
        key = Ed25519PublicKey.from_public_bytes(_unhex(public_key, 64))
        key.verify(_unhex(signature, 128), message)
    except (InvalidSignature, ValueError):
        return False
    return True


def user_key(name: str) -> Path:
    """Return where a person's own key of this name is kept: the user's configuration folder."""
    base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(base) / "fedslm" / f"{name}.key"


def _message(domain: str, sha256: str) -> bytes:
    """Return what is signed."""
    return f"{domain}|{sha256}".encode()


def _unhex(text: str, digits: int) -> bytes:
    """Read lower-case hexadecimal digits of one length, and nothing else.

    Raises:
        ValueError: for any other text.
    """
    if re.fullmatch(rf"[0-9a-f]{{{digits}}}", text) is None:
        msg = f"expected {digits} hexadecimal digits"
        raise ValueError(msg)
    return bytes.fromhex(text)


def _create(path: Path) -> None:
    """Write a new key durably, unless another process was first."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(secrets.token_bytes(KEY_BYTES))
            stream.flush()
            os.fsync(stream.fileno())
        with suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink()
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
