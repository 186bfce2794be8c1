"""The folder of an enrolled device: who it is, whom it talks to, and where its things are.

``node.toml`` is written last when a device is enrolled, so a folder that has one is complete. The
policy and the state folder belong to the device's owner and outlive every enrolment.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from shared.configtypes import NonNegativeInt, PositiveInt, PositiveReal, Section
from shared.enrolment import Address, HexDigest, NodeName, Role
from shared.errors import FleetError, InvalidValue, Problem, UnknownKey
from shared.privatefiles import (
    create_private,
    held,
    make_private_folder,
    read_private,
    remove_file,
    replace_private,
)
from shared.problems import expected
from shared.registry import suggestion

NODE_FILE = "node.toml"
_LEFT = "left"
_HEADER = """\
# Who this device is and whom it talks to. Written by fedslm client enroll.
# What the device allows is in policy.toml, which its owner writes.
"""

FileText = Annotated[str, Field(min_length=1, max_length=4096)]


class NodeConfig(Section):
    """The file ``node.toml``."""

    # `schema` is taken by pydantic.
    version: Literal[1] = Field(default=1, alias="schema", description="version of this form")
    name: NodeName = Field(description="what the operator called this device")
    role: Role = Field(default="node", description="what its certificate allows")
    client_index: NonNegativeInt | None = Field(
        default=None, description="which client of a run it speaks for; people speak for none"
    )
    fleet: Address = Field(description="host:port of the server's front, for training")
    control: Address = Field(description="host:port of its control service")
    data: FileText | None = Field(default=None, description="the records, a file; absolute path")
    base: FileText = Field(default="demo", description='"demo", or the folder of the base model')
    runtime: Literal["torch", "onnx", "executorch"] = Field(
        default="torch", description='what trains; all but "torch" take base for an exported step'
    )
    answers: FileText | None = Field(
        default=None, description="folder that answers in place of base: of fedslm export"
    )
    step: HexDigest | None = Field(default=None, description="digest of that step")
    ledger_key: HexDigest | None = Field(default=None, description="signs the server's ledger")
    adapter_key: HexDigest | None = Field(default=None, description="signs the server's adapters")
    poll_seconds: PositiveReal = Field(default=3.0, description="between two questions for work")
    heartbeat_seconds: PositiveReal = Field(
        default=60.0, ge=10, le=1800, description="between two signs of life"
    )
    idle_seconds: PositiveReal = Field(
        default=600.0, description="without work, until the worker is let go"
    )
    max_message_mb: PositiveInt = Field(default=256, le=2048, description="of one message")

    def to_toml(self) -> str:
        """Write the file, each setting with what it means."""
        lines = [_HEADER]
        for name, field in type(self).model_fields.items():
            value, key = getattr(self, name), field.alias or name
            if value is None:
                lines.append(f"# {key} is not set: {field.description}")
            else:
                lines.append(f"{key} = {_toml(value)}  # {field.description}")
        return "\n".join(lines) + "\n"

    @classmethod
    def from_toml(cls, text: str) -> NodeConfig:
        """Read the file's text.

        Raises:
            InvalidValue: if it is not valid TOML or a setting is wrong, with every problem.
            UnknownKey: if a key is not known, with every problem.
        """
        try:
            tables = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            msg = f"{NODE_FILE} is not valid TOML: {error}."
            raise InvalidValue(msg, hint="Fix the line it names.") from error
        return cls.of(tables)

    @classmethod
    def of(cls, fields: Mapping[str, object]) -> NodeConfig:
        """Check settings.

        Raises:
            InvalidValue: with every problem; UnknownKey if a key is not known.
        """
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            raise _error(error) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceHome:
    """One device's folder; every path in it.

    Attributes:
        path: the folder, mode 700.
        config: what ``node.toml`` says.
    """

    path: Path
    config: NodeConfig

    @classmethod
    def create(cls, path: Path, config: NodeConfig) -> DeviceHome:
        """Write ``node.toml`` and the folders; the device is enrolled from then on.

        Keys and certificates are put there before (see :mod:`client.enrolling`).

        Raises:
            FleetError: if the folder is enrolled already or cannot be made private.
            InvalidValue: if a path cannot be written as UTF-8.
            OutOfDisk: if no space is left; the device is not enrolled then.
        """
        home = cls(path=path.absolute(), config=config)
        make_private_folder(home.path)
        for folder in (home.state, home.adapters):
            make_private_folder(folder)
        try:
            text = config.to_toml().encode("utf-8")
        except UnicodeEncodeError as error:
            msg = "A path for node.toml is not valid UTF-8."
            raise InvalidValue(msg, hint="Rename the file or folder.") from error
        create_private(home.node_file, text)
        return home

    @classmethod
    def open(cls, path: Path) -> DeviceHome:
        """Read the folder of an enrolled device.

        Raises:
            FleetError: if the device is not enrolled, or others may read its file.
            InvalidValue: if ``node.toml`` is wrong; UnknownKey for a key that is not known.
        """
        node_file = path / NODE_FILE
        if not node_file.exists():
            msg = f"There is no enrolled device in {path.name!r}."
            raise FleetError(msg, hint="Enroll it: fedslm client enroll TOKEN --data FILE")
        try:
            text = read_private(node_file).decode("utf-8")
        except UnicodeDecodeError as error:
            msg = f"{NODE_FILE} is not valid UTF-8."
            raise InvalidValue(msg, hint="Restore it from a copy, or enroll again.") from error
        return cls(path=path.absolute(), config=NodeConfig.from_toml(text))

    @property
    def node_file(self) -> Path:
        """Return where the settings are."""
        return self.path / NODE_FILE

    @property
    def key(self) -> Path:
        """Return the device's private key: PKCS 8 first, then the same key for OpenSSH."""
        return self.path / "node.key"

    @property
    def certificate(self) -> Path:
        """Return the device's certificate."""
        return self.path / "node.crt"

    @property
    def ca(self) -> Path:
        """Return the certificate of the server's authority."""
        return self.path / "ca.crt"

    @property
    def policy(self) -> Path:
        """Return the owner's policy."""
        return self.path / "policy.toml"

    @property
    def state(self) -> Path:
        """Return the folder of the device's own ledger."""
        return self.path / "state"

    @property
    def adapters(self) -> Path:
        """Return the folder of verified adapters."""
        return self.path / "adapters"

    @property
    def personal(self) -> Path:
        """Return the folder of the owner's own adapter, which never leaves the device."""
        return self.path / "personal"

    @property
    def log(self) -> Path:
        """Return the log, one JSON object a line."""
        return self.path / "node.log.jsonl"

    @property
    def lock_file(self) -> Path:
        """Return the file that a running node holds."""
        return self.path / "node.lock"

    @property
    def left_file(self) -> Path:
        """Return the mark of a device that left."""
        return self.path / _LEFT

    @property
    def left(self) -> bool:
        """Tell whether the owner took the device out of the fleet; cheap, asked in every loop."""
        return self.left_file.exists()

    def mark_left(self) -> None:
        """Take part in nothing from now on.

        Raises:
            FleetError: if the folder cannot be written.
            OutOfDisk: if no space is left.
        """
        replace_private(self.left_file, b"")

    def unmark_left(self) -> None:
        """Take part again; only a new enrolment does this.

        Raises:
            FleetError: if the mark cannot be removed.
        """
        remove_file(self.left_file)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Hold the folder: one node at a time runs from it, and none while it is changed.

        Raises:
            AlreadyRunning: if another process holds it.
            FleetError: if the lock cannot be opened.
        """
        with held(self.lock_file):
            yield


def default_home() -> Path:
    """Return where a device keeps its folder: ``$FEDSLM_HOME``, or the user's data folder."""
    named = os.environ.get("FEDSLM_HOME")
    if named:
        return Path(named)
    base = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(base) / "fedslm"


def _toml(value: object) -> str:
    """Write one value; a JSON string is a TOML string but for the character DEL."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)


def _error(error: ValidationError) -> InvalidValue | UnknownKey:
    """Write one error about all problems of the file."""
    problems: dict[str, Problem] = {}
    known = [field.alias or name for name, field in NodeConfig.model_fields.items()]
    for item in error.errors(include_url=False):
        key = str(item["loc"][0]) if item["loc"] else NODE_FILE
        if key in problems:
            continue
        if item["type"] == "extra_forbidden":
            hint = suggestion(key, known)
            problem = Problem(key=key, message="unknown key.", hint=hint, code=UnknownKey.code)
        elif item["type"] == "missing":
            problem = Problem(key=key, message="is missing; it has no default.")
        else:
            problem = Problem(key=key, message=f"expected: {expected(item)}.")
        problems[key] = problem
    found = list(problems.values())
    cls = UnknownKey if any(p.code == UnknownKey.code for p in found) else InvalidValue
    count = f"{len(found)} problem{'' if len(found) == 1 else 's'}"
    body = "\n".join(f"  {problem}" for problem in found)
    return cls(f"{NODE_FILE} has {count}:\n{body}", problems=found)
