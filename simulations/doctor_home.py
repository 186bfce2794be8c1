"""What ``fedslm doctor --home DIR`` finds out about the folder of a server or of a device.

Certificates and who may read what, the clock beside the server's, ports, data and policy. The
folders are read file by file, so that a folder that cannot be opened as a whole is still examined.
"""

from __future__ import annotations

import errno
import socket
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from shared.errors import CertificateInvalid, FedSLMError
from simulations.doctor_machine import Check, Status

if TYPE_CHECKING:
    from client.home import DeviceHome
    from server.settings import ServerConfig

_SOON_DAYS = 30
_DAY_SECONDS = 86_400
# How far a device's clock may be from the server's before Flower refuses what it signs.
_AHEAD_SECONDS = 5.0
_BEHIND_SECONDS = 300.0
_TIMEOUT = 5.0


def check_home(home: Path) -> Iterator[Check]:
    """Look at the folder of a server or a device, whichever it is.

    Args:
        home: the folder.

    Returns:
        One result per check; a single failed one for a folder that is neither.
    """
    if (home / "server.toml").is_file():
        yield from check_server(home)
    elif (home / "node.toml").is_file():
        yield from check_device(home)
    else:
        yield Check(
            "home",
            "failed",
            "neither server.toml nor node.toml",
            "the folder of a server or of a device",
            "Make one: fedslm server init DIR, or fedslm client enroll TOKEN --data FILE",
        )


def check_server(home: Path) -> Iterator[Check]:
    """Look at the folder of a server."""
    pki = home / "pki"
    secrets = [*_files(home / "keys"), *sorted(pki.glob("*.key"))]
    yield private("keys", home, [home, home / "keys", pki], secrets)
    yield certificate("authority-certificate", pki / "ca.crt", "Every device must enroll again.")
    yield certificate("server-certificate", pki / "server.crt", "Issue it again: docs/deploy.")
    config = _server_config(home)
    if isinstance(config, Check):
        yield config
        return
    yield Check("settings", "ok", "server.toml is valid", "valid settings")
    yield from ports(config)


def check_device(home: Path) -> Iterator[Check]:
    """Look at the folder of a device, and ask its server for the time."""
    yield private("keys", home, [home, home / "state"], [home / "node.key", home / "node.toml"])
    yield certificate("authority-certificate", home / "ca.crt", "Enroll the device again.")
    yield certificate("device-certificate", home / "node.crt", "Enroll the device again.")
    device = _device(home)
    if isinstance(device, Check):
        yield device
        return
    yield Check("settings", "ok", "node.toml is valid", "valid settings")
    yield policy(device)
    yield records(device)
    yield from server_of(device)


def private(name: str, home: Path, folders: list[Path], files: list[Path]) -> Check:
    """Check that only their owner may read keys, and look into their folders.

    Args:
        name: of the check.
        home: folder that the others are named below.
        folders: which must have mode 700; one that is absent is passed over.
        files: which must be there and have mode 600.
    """
    wrong = []
    for path in [*folders, *files]:
        where = path.relative_to(home).as_posix() if path != home else "the folder itself"
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
        except OSError as error:
            if path in files:
                wrong.append(f"{where}: {error.strerror}")
            continue
        if mode & 0o077:
            wrong.append(f"{where} has mode {mode:03o}")
    hint = "chmod 600 the files and 700 the folders; a key that others could read must be replaced."
    return Check(
        name,
        "failed" if wrong else "ok",
        "; ".join(wrong) or f"{len(files)} files, none of them open to others",
        "files of mode 600 in folders of mode 700",
        hint if wrong else "",
    )


def certificate(name: str, path: Path, hint: str, *, now: datetime | None = None) -> Check:
    """Check that a certificate is good today, and for another month.

    Args:
        name: of the check.
        path: a PEM file.
        hint: what to do when it is not.
        now: the present, for tests.
    """
    from shared.pki import read_certificate

    expected = f"valid for more than {_SOON_DAYS} days"
    try:
        facts = read_certificate(path.read_bytes())
    except OSError as error:
        return Check(name, "failed", f"{path.name}: {error.strerror}", expected, hint)
    except CertificateInvalid as error:
        return Check(name, "failed", error.message, expected, hint)
    present = datetime.now(UTC) if now is None else now
    days = (facts.not_after - present).total_seconds() / _DAY_SECONDS
    found = f"until {facts.not_after:%Y-%m-%d}, {days:.0f} days"
    if present < facts.not_before:
        found = f"not valid before {facts.not_before:%Y-%m-%dT%H:%MZ}; or the clock is wrong"
        return Check(name, "failed", found, expected, f"Compare the clock. {hint}")
    if days <= 0:
        found = f"expired on {facts.not_after:%Y-%m-%d}; or the clock is wrong"
        return Check(name, "failed", found, expected, f"Compare the clock. {hint}")
    status: Status = "ok" if days > _SOON_DAYS else "warning"
    return Check(name, status, found, expected, "" if status == "ok" else hint)


def ports(config: ServerConfig) -> Iterator[Check]:
    """Check that every port of a server is free, or answers already."""
    wanted = {
        "fleet": (config.bind, config.fleet_port),
        "control": (config.bind, config.control_port),
        "dashboard": (config.bind, config.dashboard_port),
        "superlink": ("127.0.0.1", config.superlink_port),
    }
    for name, (host, port) in wanted.items():
        yield port_state(f"port-{name}", host, port)


def port_state(name: str, host: str, port: int) -> Check:
    """Tell whether a port can be listened on; one in use is this server's, or another program's."""
    expected = "free, or in use by this server"
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        # As servers do it: connections that just ended do not keep a port.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                hint = "If the server does not run: stop the other program, or change server.toml."
                return Check(name, "warning", f"{port} is in use", expected, hint)
            hint = "Change bind or the port in server.toml."
            found = f"{host}:{port} cannot be used ({error.strerror})"
            return Check(name, "failed", found, expected, hint)
    return Check(name, "ok", f"{port} is free", expected)


def policy(device: DeviceHome) -> Check:
    """Check that the owner's policy can be used, and tell whether its conditions hold now."""
    from client.policyfile import read_policy_file

    expected = "a policy that allows something"
    try:
        asked = read_policy_file(device.policy)
    except FedSLMError as error:
        first = error.message.splitlines()[0]
        return Check("policy", "failed", first, expected, error.hint or "Edit the policy.")
    budgets = [name for name in ("example", "client") if getattr(asked, name) is not None]
    found = f"modes {', '.join(asked.modes)}; budgets: {', '.join(budgets) or 'NONE'}"
    return Check("policy", "ok", found, expected)


def records(device: DeviceHome) -> Check:
    """Check that the file of records is there and can be read."""
    expected = "a file of records that can be read"
    if device.config.data is None:
        hint = "Name it in node.toml: data = FILE"
        return Check("records", "failed", "no file is named", expected, hint)
    path = Path(device.config.data)
    try:
        with path.open("rb") as stream:
            stream.read(1)
    except OSError as error:
        hint = "Put the file back, or name another in node.toml."
        return Check("records", "failed", f"cannot be read ({error.strerror})", expected, hint)
    return Check("records", "ok", f"{path.stat().st_size} bytes", expected)


def server_of(device: DeviceHome) -> Iterator[Check]:
    """Ask the server of a device for its time; whether its certificate holds is another check."""
    from shared.probe import probe

    address = device.config.fleet
    expected = "answers, with a certificate of the authority that this device knows"
    try:
        answer = probe(address, device.ca, timeout=_TIMEOUT, check_time=False)
    except FedSLMError as error:
        yield Check("server", "failed", error.message, expected, error.hint or "Ask the operator.")
        return
    yield Check("server", "ok", f"{address} answers", expected)
    if answer.ahead is not None:
        yield clock_skew(answer.ahead)


def clock_skew(ahead: float) -> Check:
    """Judge how far this device's clock is from the server's.

    Args:
        ahead: seconds; negative for a clock that is behind.
    """
    expected = f"at most {_AHEAD_SECONDS:.0f} s ahead and {_BEHIND_SECONDS:.0f} s behind the server"
    way = "ahead of" if ahead >= 0 else "behind"
    found = f"{abs(ahead):.1f} s {way} the server"
    if -_BEHIND_SECONDS <= ahead <= _AHEAD_SECONDS:
        return Check("clock-skew", "ok", found, expected)
    # fedslm's node takes the server's time for what it signs.
    hint = "Set the clock (timedatectl set-ntp true): certificates may look expired, and a stock "
    hint += "SuperNode is refused."
    return Check("clock-skew", "warning", found, expected, hint)


def _server_config(home: Path) -> ServerConfig | Check:
    """Read a server's settings, or say what is wrong with them."""
    from server.settings import CONFIG, ServerConfig

    try:
        return ServerConfig.from_toml((home / CONFIG).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        found = f"{CONFIG} cannot be read ({type(error).__name__})"
        return Check("settings", "failed", found, "valid settings", "Restore it from a copy.")
    except FedSLMError as error:
        hint = error.hint or "Correct it."
        return Check("settings", "failed", error.message, "valid settings", hint)


def _device(home: Path) -> DeviceHome | Check:
    """Read a device's settings, or say what is wrong with them."""
    from client.home import DeviceHome

    try:
        return DeviceHome.open(home)
    except FedSLMError as error:
        hint = error.hint or "Enroll the device again."
        return Check("settings", "failed", error.message, "valid settings", hint)


def _files(folder: Path) -> list[Path]:
    """Return the files of a folder; nothing where there is none."""
    return sorted(path for path in folder.glob("*") if path.is_file())
