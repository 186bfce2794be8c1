"""The settings of a server: ``server.toml``, validated once at the boundary."""

from __future__ import annotations

import ipaddress
import json
import re
import tomllib
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, Strict, ValidationError, field_validator

from shared.configtypes import Section
from shared.errors import InvalidValue

CONFIG = "server.toml"

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
_LOOPBACK = ("localhost", "127.0.0.1")

Port = Annotated[int, Strict(), Field(ge=1, le=65535)]


class ServerConfig(Section):
    """The settings of a server: ``server.toml``."""

    name: str = Field(description="short name of the server, in certificates and logs")
    hosts: tuple[str, ...] = Field(
        default=("localhost",), min_length=1, description="names and addresses that devices dial"
    )
    bind: str = Field(default="127.0.0.1", description="address that the services listen on")
    fleet_port: Port = Field(default=9092, description="TLS front of Flower's Fleet calls")
    control_port: Port = Field(default=9093, description="control service (gRPC, mutual TLS)")
    dashboard_port: Port = Field(default=9094, description="dashboard (HTTPS)")
    superlink_port: Port = Field(default=9095, description="Flower's SuperLink, loopback only")
    max_message_bytes: Annotated[int, Strict(), Field(ge=65_536, le=2_000_000_000)] = Field(
        default=33_554_432, description="largest request or answer that the front lets through"
    )
    requests_per_minute: Annotated[int, Strict(), Field(ge=10, le=1_000_000)] = Field(
        default=3000, description="calls one node may make in a minute"
    )
    token_hours: Annotated[float, Strict(), Field(gt=0, le=8760)] = Field(
        default=24.0, description="how long an enrolment token is good"
    )
    certificate_days: Annotated[int, Strict(), Field(ge=1, le=3650)] = Field(
        default=365, description="how long certificates of the server and of nodes are good"
    )

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        """Take a name that is safe in certificates, files and logs."""
        if _NAME.fullmatch(value) is None:
            msg = "use lower-case letters, digits and hyphens, at most 64"
            raise ValueError(msg)
        return value

    @field_validator("hosts")
    @classmethod
    def _hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        """Take names and addresses without ports."""
        for host in value:
            if not _is_address(host) and _HOST.fullmatch(host) is None:
                msg = f"{host!r} is neither a host name nor an address"
                raise ValueError(msg)
        return value

    @field_validator("bind")
    @classmethod
    def _bind(cls, value: str) -> str:
        """Take an address to listen on."""
        if not _is_address(value):
            msg = "expected an address, such as 127.0.0.1 or 0.0.0.0"
            raise ValueError(msg)
        return value

    @property
    def certificate_hosts(self) -> tuple[str, ...]:
        """Return what the server's certificate names: the hosts, and loopback for itself."""
        return tuple(dict.fromkeys((*self.hosts, *_LOOPBACK)))

    @property
    def fleet_address(self) -> str:
        """Return where devices reach the fleet front, ``host:port``."""
        return _address(self.hosts[0], self.fleet_port)

    @property
    def control_address(self) -> str:
        """Return where devices and operators reach the control service, ``host:port``."""
        return _address(self.hosts[0], self.control_port)

    @property
    def superlink_address(self) -> str:
        """Return where the SuperLink listens, always on loopback."""
        return f"127.0.0.1:{self.superlink_port}"

    @property
    def fleet_url(self) -> str:
        """Return the URL of the fleet front."""
        return f"https://{self.fleet_address}"

    def to_toml(self) -> str:
        """Write the settings as TOML, each with its description."""
        lines = ["# Settings of a fedslm server; restart it after a change."]
        for key, field in type(self).model_fields.items():
            lines += ["", f"# {field.description}", f"{key} = {_toml(getattr(self, key))}"]
        return "\n".join(lines) + "\n"

    @classmethod
    def from_toml(cls, text: str) -> ServerConfig:
        """Read the settings.

        Raises:
            InvalidValue: naming every key that is unknown, missing or out of range.
        """
        try:
            return cls.model_validate(tomllib.loads(text))
        except tomllib.TOMLDecodeError as error:
            msg = f"{CONFIG} is not valid TOML: {error}."
            raise InvalidValue(msg, hint="Fix the line it names.") from error
        except ValidationError as error:
            raise problems_of(error) from None


def _address(host: str, port: int) -> str:
    """Join host and port; IPv6 addresses get brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _is_address(host: str) -> bool:
    """Tell whether a host is an IP address."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _toml(value: object) -> str:
    """Write one value as TOML."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False)


def problems_of(error: ValidationError) -> InvalidValue:
    """Return one error that names every wrong setting."""
    found = [
        f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}"
        for item in error.errors(include_url=False)
    ]
    msg = f"The settings have {len(found)} problem(s): " + "; ".join(found) + "."
    return InvalidValue(msg, hint=f"Correct them ({CONFIG}).")
