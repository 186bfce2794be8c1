"""The folder of an enrolled device, made without a server."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from client.home import DeviceHome, NodeConfig
from shared.pki import Authority, certificate_request, new_key
from tests.client.device import write_policy


def device(
    path: Path, *, fleet: str = "127.0.0.1:1", days: int = 365, age_days: float = 0.0
) -> DeviceHome:
    """Return the folder of an enrolled device, with a file of records beside it.

    Args:
        path: the folder; an authority's certificate that is there already stays.
        fleet: address of its server.
        days: how long its certificate is good.
        age_days: how long ago it was issued.
    """
    path.mkdir(mode=0o700, exist_ok=True)
    issued = datetime.now(UTC) - timedelta(days=age_days)
    authority = Authority.create("a test", days=730, now=issued)
    key = new_key()
    made = {
        "node.key": key,
        "node.crt": authority.sign_request(
            certificate_request(key, "clinic-7"),
            name="clinic-7",
            role="node",
            days=days,
            now=issued,
        ),
    }
    if not (path / "ca.crt").exists():
        made["ca.crt"] = authority.certificate
    for name, content in made.items():
        (path / name).touch(mode=0o600)
        (path / name).write_bytes(content)
    data = path.parent / "notes.jsonl"
    data.write_text('{"note": "one"}\n', encoding="utf-8")
    config = NodeConfig(
        name="clinic-7", client_index=7, fleet=fleet, control="127.0.0.1:2", data=str(data)
    )
    home = DeviceHome.create(path, config)
    write_policy(path)
    return home
