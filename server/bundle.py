"""The bundle of a fleet's runs: a fixed archive whose modules import the installed apps.

Flower ships an app's code to every node. Ours ships none: five small files that say where the
installed apps are, so that nothing which reaches a device can do more than what its owner has
installed. The archive is stored, not compressed, so that its bytes depend on nothing but this file.
"""

from __future__ import annotations

import io
import zipfile
from typing import Final

from shared.bundle import BUNDLE_DIGEST, BUNDLE_VERSION
from shared.canonical import sha256_hex
from shared.errors import FleetError

RUN_KEYS: Final = ("run-folder", "ledger", "ledger-key", "scenario", "plan", "fleet")

_DATE = (1980, 1, 1, 0, 0, 0)
_CONTENT = ".info/CONTENT"
_PROJECT = "\n".join(
    [
        "[project]",
        'name = "fedslm-fleet"',
        f'version = "{BUNDLE_VERSION}"',
        'description = "Runs the fedslm that is installed."',
        'license = "Apache-2.0"',
        "dependencies = []",
        "",
        "[tool.flwr.app]",
        'publisher = "fedslm"',
        "",
        "[tool.flwr.app.components]",
        'serverapp = "fedslm_fleet.serverapp:app"',
        'clientapp = "fedslm_fleet.clientapp:app"',
        "",
        "[tool.flwr.app.config]",
        *(f'{key} = ""' for key in RUN_KEYS),
        "",
    ]
)
FILES: Final = {
    "fedslm_fleet/__init__.py": '"""The apps of the installed fedslm."""\n',
    "fedslm_fleet/clientapp.py": "from client.app import app as app\n",
    "fedslm_fleet/serverapp.py": "from server.app import app as app\n",
    "pyproject.toml": _PROJECT,
}
"""Everything that travels; a test holds the list."""


def build_bundle() -> bytes:
    """Return the bundle.

    Raises:
        FleetError: if it is not the one whose digest is pinned.
    """
    out = io.BytesIO()
    lines = []
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, text in sorted(FILES.items()):
            data = text.encode()
            _add(archive, name, data)
            lines.append(f"{name},{sha256_hex(data)},{len(data) * 8}")
        _add(archive, _CONTENT, "\n".join(lines).encode())
    bundle = out.getvalue()
    if sha256_hex(bundle) != BUNDLE_DIGEST:
        msg = f"The bundle has digest {sha256_hex(bundle)}, expected {BUNDLE_DIGEST}."
        raise FleetError(msg, hint="The installation was changed: install fedslm again.")
    return bundle


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    """Add a file with a fixed date and mode."""
    entry = zipfile.ZipInfo(name, date_time=_DATE)
    entry.create_system = 3
    entry.external_attr = 0o644 << 16
    archive.writestr(entry, data)
