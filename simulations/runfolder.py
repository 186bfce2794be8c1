"""The folder of a run: what is in it, who may write to it, and what ``--resume`` may trust."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from server.prepared import IDENTITY, LEDGER, METRICS, read_metrics, settle_metrics
from shared.errors import NotResumable, RunFolderError, RunFolderExists
from shared.files import append_line, disk_errors, write_json

CONFIG = "config.toml"
ADAPTER = "adapter"
AUDIT = "audit.json"
SUMMARY = "summary.json"
EVALUATION = "evaluation.json"
REPORT = "report.html"
_LOCK = ".lock"


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The files of one run."""

    path: Path

    @property
    def ledger(self) -> Path:
        """The privacy ledger."""
        return self.path / LEDGER

    @property
    def adapter(self) -> Path:
        """The released adapter in PEFT's format."""
        return self.path / ADAPTER

    def read_json(self, name: str) -> dict[str, Any] | None:
        """Return a JSON file of the folder, or None if it does not exist.

        Raises:
            NotResumable: if it is damaged.
        """
        file = self.path / name
        if not file.exists():
            return None
        try:
            value = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            msg = f"{name} cannot be read."
            raise NotResumable(msg, hint="Start a new run in another folder.") from error
        if not isinstance(value, dict):
            msg = f"{name} is not a JSON object."
            raise NotResumable(msg, hint="Start a new run in another folder.")
        return value

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Write a JSON file of the folder, whole or not at all."""
        write_json(self.path / name, dict(value))

    def metrics(self) -> list[dict[str, Any]]:
        """Return the finished rounds; a torn last line is left out."""
        return read_metrics(self.path)

    def add_metrics(self, record: Mapping[str, Any]) -> None:
        """Append one finished round."""
        append_line(self.path / METRICS, json.dumps(record, sort_keys=True))

    def settle_metrics(self, finished_rounds: int, last_record: Mapping[str, Any]) -> None:
        """Make the metrics agree with the checkpoint after a crash."""
        settle_metrics(self.path, finished_rounds, last_record)


def default_folder(name: str, *, now: datetime | None = None) -> Path:
    """Return ``runs/NAME-YYYYMMDD-HHMMSS`` under the working directory."""
    moment = now or datetime.now(tz=UTC).astimezone()
    return Path("runs") / f"{name}-{moment:%Y%m%d-%H%M%S}"


def latest_folder(name: str) -> Path | None:
    """Return the newest default folder of a scenario, or None."""
    found = sorted(Path("runs").glob(f"{name}-????????-??????"))
    return found[-1] if found else None


@contextmanager
def open_folder(path: Path, *, resume: bool) -> Iterator[RunFolder]:
    """Create or reopen a run folder and hold it for this process.

    Args:
        path: the folder.
        resume: whether an existing run may be continued.

    Raises:
        RunFolderExists: if it holds a run and ``resume`` is False, or another process holds it.
        NotResumable: if it is not empty and not a run.
        RunFolderError: if it cannot be created.
    """
    if path.exists() and not path.is_dir():
        msg = f"{path.name} is a file, expected a folder."
        raise RunFolderError(msg, hint="Choose another --out.")
    entries = {p.name for p in path.iterdir()} - {_LOCK} if path.is_dir() else set()
    if entries and IDENTITY not in entries:
        msg = f"{path.name} is not empty and holds no run."
        raise NotResumable(msg, hint="Choose another --out.")
    if entries and not resume:
        msg = f"{path.name} already holds a run."
        raise RunFolderExists(msg, hint="Add --resume to go on with it, or choose another --out.")
    with disk_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        lock = (path / _LOCK).open("w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            msg = f"Another process is working in {path.name}."
            raise RunFolderExists(msg, hint="Wait for it, or choose another --out.") from error
        yield RunFolder(path)
