"""Taking a device out of its fleet, and removing what it holds.

Leaving needs nobody's consent: the device stops first and tells the server then. What left the
device in earlier rounds is in adapters that others have; nothing here calls it back.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from client.enrolling import PENDING
from client.fleet.status import STATUS_FILE
from client.home import DeviceHome, NodeConfig
from client.nodelog import before
from client.state import LEDGER, LEDGER_KEY, NOTES
from shared.errors import FedSLMError, FleetError
from shared.privatefiles import remove_file

_LEDGER_FILES = (LEDGER, NOTES)
_SQLITE_ENDINGS = ("", "-wal", "-shm", "-journal")

# Tells the server over the device's own certificate.
Tell = Callable[[DeviceHome], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """How leaving went.

    Attributes:
        name: what the server calls the device.
        refused: why the server could not be told; ``None`` if it was.
    """

    name: str
    refused: FedSLMError | None


def leave(home: DeviceHome, *, tell: Tell) -> Left:
    """Take part in nothing from now on, and tell the server.

    The mark is durable before the server is asked, and a node that runs sees it at its next turn.
    The device's ledger, its policy and its adapters stay.

    Args:
        home: the device.
        tell: tells the server, which then revokes the device's key.

    Raises:
        FleetError: if the mark cannot be written.
        OutOfDisk: if no space is left for it.
    """
    home.mark_left()
    try:
        tell(home)
    except FedSLMError as error:
        return Left(name=home.config.name, refused=error)
    return Left(name=home.config.name, refused=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Forgettable:
    """What is in a device's folder.

    Attributes:
        remove: what forgetting removes, most secret first.
        keep: what it leaves, as it belongs to the owner.
    """

    remove: tuple[Path, ...]
    keep: tuple[Path, ...]


def forgettable(path: Path, *, ledger_too: bool) -> Forgettable:
    """Sort what is in a device's folder; nothing that fedslm did not put there is touched.

    Args:
        path: the folder; also of an enrolment that was cut off.
        ledger_too: whether the device's own ledger is to go as well.

    Raises:
        FleetError: if nothing of a device is there.
    """
    home = _home(path)
    ledger = [home.state / f"{name}{end}" for name in _LEDGER_FILES for end in _SQLITE_ENDINGS]
    ledger.append(home.state / LEDGER_KEY)
    state = sorted(home.state.iterdir()) if home.state.is_dir() else []
    others = [file for file in state if file not in ledger]
    found = [
        home.key,
        *others,
        home.certificate,
        home.adapters,
        home.personal,
        home.log,
        before(home.log),
        home.path / STATUS_FILE,
        home.ca,
        path.absolute() / PENDING,
        *(ledger if ledger_too else ()),
        home.node_file,
        home.left_file,
    ]
    remove = tuple(file for file in found if file.exists() or file.is_symlink())
    kept = [home.policy, *(() if ledger_too else ledger)]
    keep = tuple(file for file in kept if file.exists())
    if not remove and not keep:
        msg = f"There is nothing of a device in {path.name!r}."
        raise FleetError(msg, hint="Give its folder with --home.")
    return Forgettable(remove=remove, keep=keep)


def forget(path: Path, *, ledger_too: bool) -> Forgettable:
    """Remove a device's keys, certificates, adapters and settings.

    Deleted files can often be read again from the storage under them until it is written over; only
    encrypted storage prevents that.

    Args:
        path: the folder; also of an enrolment that was cut off.
        ledger_too: remove the device's own ledger as well. Without it nobody can say any more what
            this data has spent, and a new enrolment starts to count from nothing.

    Returns:
        What was removed and what was kept.

    Raises:
        AlreadyRunning: if a node runs from the folder.
        FleetError: if nothing is there, or something cannot be removed.
    """
    found = forgettable(path, ledger_too=ledger_too)
    home = _home(path)
    with home.running():
        for item in found.remove:
            _remove(item)
        if ledger_too and home.state.is_dir() and not any(home.state.iterdir()):
            home.state.rmdir()
        remove_file(home.lock_file)
    return found


def _remove(item: Path) -> None:
    """Remove a file or a folder, but only the link where it is one."""
    if item.is_symlink() or not item.is_dir():
        remove_file(item)
        return
    try:
        shutil.rmtree(item)
    except OSError as error:
        msg = f"{item.name!r} cannot be removed ({error.strerror})."
        raise FleetError(msg, hint="Check the folder and its permissions.") from error


def _home(path: Path) -> DeviceHome:
    """Return a folder's paths, whether or not it is whole."""
    config = NodeConfig(name="unknown", fleet="unknown:1", control="unknown:1")
    return DeviceHome(path=path.absolute(), config=config)
