"""What passes between an operator, a device and a server when a device is enrolled.

A token is one line of text that the operator gives to the device's owner. It names the server and
the fingerprint of its certificate authority, so that the first contact is authenticated without any
other file, and holds a secret that works once.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Final, Literal

from pydantic import StringConstraints

from shared.canonical import canonical_json
from shared.errors import EnrolmentRefused, InvalidValue

PREFIX: Final = "fedslm1."
SECRET_BYTES: Final = 32
MAX_TOKEN_CHARS: Final = 1024
MAX_NAME: Final = 40
NAME_PATTERN: Final = rf"^[a-z0-9](?:[a-z0-9-]{{0,{MAX_NAME - 2}}}[a-z0-9])?$"
HEX_DIGEST_PATTERN: Final = r"^[0-9a-f]{64}$"
# A DNS name or IPv4 address, or an IPv6 address in brackets; then a port.
ADDRESS_PATTERN: Final = (
    r"^(?:[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]{2,45}\]):[0-9]{1,5}$"
)
ROLES: Final = ("node", "operator", "viewer")
_LATEST = 253402300799  # the last second of the year 9999

Role = Literal["node", "operator", "viewer"]
NodeName = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
Address = Annotated[str, StringConstraints(pattern=ADDRESS_PATTERN)]
HexDigest = Annotated[str, StringConstraints(pattern=HEX_DIGEST_PATTERN)]


def require_name(name: str) -> str:
    """Return a name that can stand in certificates, file names and tables.

    Raises:
        InvalidValue: unless it is 1 to 40 lower-case letters, digits and inner hyphens.
    """
    if not (isinstance(name, str) and re.fullmatch(NAME_PATTERN, name)):
        shown = name[:MAX_NAME] if isinstance(name, str) else name
        msg = f"name={shown!r}, expected 1 to {MAX_NAME} lower-case letters, digits and inner "
        msg += "hyphens."
        raise InvalidValue(msg, hint='For example "clinic-7".')
    return name


def require_role(role: str) -> Role:
    """Return a known role.

    Raises:
        InvalidValue: for any other.
    """
    for known in ROLES:
        if role == known:
            return known
    msg = f"role={str(role)[:MAX_NAME]!r}, expected one of: {', '.join(ROLES)}."
    raise InvalidValue(msg)


def require_address(address: str) -> tuple[str, int]:
    """Split ``host:port``; an IPv6 host loses its brackets.

    Raises:
        InvalidValue: if it is anything else, or the port is not in 1..65535.
    """
    if isinstance(address, str) and re.fullmatch(ADDRESS_PATTERN, address):
        host, _, port = address.rpartition(":")
        if 1 <= int(port) <= 65535:
            return host.strip("[]"), int(port)
    shown = address[:80] if isinstance(address, str) else address
    msg = f"address={shown!r}, expected host:port."
    raise InvalidValue(msg, hint='For example "fleet.example.org:9093" or "[::1]:9093".')


def require_hex_digest(**values: str | None) -> None:
    """Require 64 lower-case hexadecimal digits, or nothing.

    Raises:
        InvalidValue: for the first named value that is anything else.
    """
    for name, value in values.items():
        if value is not None and not re.fullmatch(HEX_DIGEST_PATTERN, value):
            msg = f"{name}={value[:80]!r}, expected 64 lower-case hexadecimal digits."
            raise InvalidValue(msg)


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrolmentToken:
    """What a token says.

    Attributes:
        address: the server's control service, ``host:port``.
        fingerprint: SHA-256 of its authority's certificate (DER), 64 hexadecimal digits.
        secret: 32 bytes as base64url without padding; whoever has it may enroll once.
        name: what the operator called the device.
        expires_at: Unix seconds, by the server's clock, which decides.
    """

    address: str
    fingerprint: str
    secret: str
    name: str
    expires_at: int

    def __repr__(self) -> str:
        """Return everything but the secret."""
        return f"EnrolmentToken(name={self.name!r}, address={self.address!r})"

    def to_text(self) -> str:
        """Write the one line that the owner of the device is given."""
        fields = {
            "a": self.address,
            "f": self.fingerprint,
            "s": self.secret,
            "n": self.name,
            "e": self.expires_at,
        }
        return PREFIX + encode_bytes(canonical_json(fields).encode())

    @classmethod
    def from_text(cls, text: str) -> EnrolmentToken:
        """Read a token; white space around it and line breaks within (from a mail) do not count.

        Raises:
            EnrolmentRefused: if it is not a whole token; never repeats it.
        """
        found: object = None
        if len(text) <= 2 * MAX_TOKEN_CHARS:
            line = "".join(text.split())
            if line.startswith(PREFIX) and len(line) <= MAX_TOKEN_CHARS:
                with suppress(ValueError, RecursionError):
                    found = json.loads(decode_bytes(line.removeprefix(PREFIX)))
        token = cls._checked(found) if isinstance(found, dict) else None
        if token is None:
            msg = f"This is not a whole enrolment token of {len(text)} characters, expected "
            msg += f"{PREFIX!r} and what follows it."
            hint = "Copy all of it, or ask the operator for a new one."
            raise EnrolmentRefused(msg, hint=hint)
        return token

    @classmethod
    def _checked(cls, fields: Mapping[str, object]) -> EnrolmentToken | None:
        """Build a token from decoded fields; ``None`` unless each is as it must be."""
        address, fingerprint, secret, name, expires = (fields.get(key) for key in "afsne")
        good = (
            set(fields) == set("afsne")
            and isinstance(address, str)
            and isinstance(fingerprint, str)
            and isinstance(secret, str)
            and isinstance(name, str)
            and type(expires) is int
            and re.fullmatch(HEX_DIGEST_PATTERN, fingerprint)
            and 0 < expires <= _LATEST
        )
        if not good:
            return None
        token = cls(
            address=str(address),
            fingerprint=str(fingerprint),
            secret=str(secret),
            name=str(name),
            expires_at=int(str(expires)),
        )
        try:
            require_address(token.address)
            require_name(token.name)
            require_secret(token.secret)
        except InvalidValue:
            return None
        return token


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrolmentAnswer:
    """What the server gives to a device that it enrolled.

    Attributes:
        certificate: the device's certificate, PEM.
        ca: the authority's certificate, PEM; the device compares it with the token's fingerprint.
        name: what the device is called.
        role: what it may do.
        client_index: which client of a run it speaks for; ``None`` for people.
        control_address: of the control service, ``host:port``.
        fleet_address: of the front that nodes speak to, ``host:port``.
        ledger_key: public key that signs the server's ledger, 64 hexadecimal digits, if named.
        adapter_key: public key that signs adapters, 64 hexadecimal digits, if named.
        base_digest: digest of the base model that the server trains, if it names one.
    """

    certificate: bytes
    ca: bytes
    name: str
    role: Role
    client_index: int | None
    control_address: str
    fleet_address: str
    ledger_key: str | None = None
    adapter_key: str | None = None
    base_digest: str | None = None


def require_secret(secret: str) -> str:
    """Return a secret of the right form.

    Raises:
        InvalidValue: unless it is the base64url of exactly 32 bytes; never repeats it.
    """
    try:
        whole = isinstance(secret, str) and len(decode_bytes(secret)) == SECRET_BYTES
    except ValueError:
        whole = False
    if not whole:
        msg = f"The secret of a token is not {SECRET_BYTES} bytes in base64url."
        raise InvalidValue(msg)
    return secret


def secret_digest(secret: str) -> bytes:
    """Return what the server keeps of a secret: its SHA-256, which does not open anything."""
    return hashlib.sha256(b"fedslm-enrolment-v1|" + secret.encode("ascii")).digest()


def encode_bytes(data: bytes) -> str:
    """Write bytes as base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def decode_bytes(text: str) -> bytes:
    """Read base64url without padding, in its one canonical form.

    Raises:
        ValueError: for anything else.
    """
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except ValueError as error:
        msg = "not base64url"
        raise ValueError(msg) from error
    if encode_bytes(data) != text:
        msg = "not canonical base64url"
        raise ValueError(msg)
    return data
