"""``fedslm server enroll | nodes | revoke`` and ``fedslm client enroll | renew | leave | forget``.

The functions are commands; ``simulations.server_cli`` names those of the server. Nothing heavy is
imported: enrolling a device needs neither torch nor Flower.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simulations.budget_common import AsJson, print_json

if TYPE_CHECKING:
    from client.enrolling import Enrolment
    from client.home import DeviceHome
    from client.leaving import Forgettable
    from server.fleetdb import FleetDatabase, NodeEntry

ASSETS = Path(__file__).parent / "assets"
DEMO = "demo"
MAX_STDIN = 4096

ServerFolder = Annotated[
    Path,
    typer.Option("--dir", envvar="FEDSLM_SERVER", help="Folder of the server.", metavar="DIR"),
]
DeviceFolder = Annotated[
    Path | None,
    typer.Option(
        "--home", help="Folder of the device; default $FEDSLM_HOME, or the user's data folder."
    ),
]
Name = Annotated[str, typer.Argument(help="What the device or person was enrolled as.")]
SERVER_DEFAULT = Path("server-home")


def add_commands(client_app: typer.Typer) -> None:
    """Add the device's commands to ``fedslm client``."""
    client_app.command("enroll")(client_enroll)
    client_app.command("renew")(client_renew)
    client_app.command("leave")(client_leave)
    client_app.command("forget")(client_forget)


def server_enroll(
    name: Annotated[str, typer.Option(help='What to call it, for example "clinic-7".')],
    hours: Annotated[
        float | None, typer.Option(help="How long the token is good; default as in server.toml.")
    ] = None,
    role: Annotated[
        str, typer.Option(help='"node" trains, "viewer" looks, "operator" acts.')
    ] = "node",
    folder: ServerFolder = SERVER_DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Make a token that enrolls one device or person, once; it is shown now and never again."""
    from server.control.settings import enrol_address
    from server.enrolling import issue_token
    from server.fleetdb import FleetDatabase
    from server.home import ServerHome
    from shared.enrolment import require_role

    home = ServerHome.open(folder)
    with FleetDatabase(home.fleet_database) as fleet:
        token = issue_token(
            fleet,
            name=name,
            role=require_role(role),
            address=enrol_address(home.config),
            fingerprint=home.authority().fingerprint,
            valid_seconds=(home.config.token_hours if hours is None else hours) * 3600,
        )
    expires = _shown(token.expires_at)
    if as_json:
        print_json(
            {
                "name": token.name,
                "role": role,
                "address": token.address,
                "fingerprint": token.fingerprint,
                "expires_at": expires,
                "token": token.to_text(),
            }
        )
        return
    typer.echo(token.to_text())
    data = " --data FILE" if role == "node" else ""
    typer.echo(f"Works once, for {name}, until {expires}. Hand it over in private.", err=True)
    typer.echo(f"Its holder runs: fedslm client enroll TOKEN{data}", err=True)


def server_nodes(folder: ServerFolder = SERVER_DEFAULT, as_json: AsJson = False) -> None:
    """List everyone who was enrolled, revoked ones too, and what was noticed about them."""
    from server.fleetdb import FleetDatabase
    from server.home import ServerHome

    with FleetDatabase(ServerHome.open(folder).fleet_database) as fleet:
        found = [_node(fleet, entry) for entry in fleet.nodes()]
    if as_json:
        print_json({"nodes": found})
        return
    from rich.console import Console
    from rich.table import Table

    columns = ("name", "role", "client", "state", "last seen", "key", "noticed")
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for node in found:
        state = "enrolled"
        if node["revoked_at"] is not None:
            state = f"revoked: {node['revoked_reason']}"
        noticed = ", ".join(f"{flag['code']} x{flag['count']}" for flag in node["flags"])
        client = "" if node["client_index"] is None else str(node["client_index"])
        seen = node["last_seen"] or "never"
        table.add_row(node["name"], node["role"], client, state, seen, node["key"][:12], noticed)
    # Of text that goes elsewhere than to a screen nothing is cut.
    width = None if sys.stdout.isatty() else 250
    Console(soft_wrap=True, markup=False, width=width).print(table)


def server_revoke(
    name: Name,
    reason: Annotated[str, typer.Option(help="Why; kept in the log and shown in the list.")],
    folder: ServerFolder = SERVER_DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Shut a device or person out for good; its key and its open tokens work nowhere any more."""
    from server.fleetdb import FleetDatabase
    from server.home import ServerHome

    with FleetDatabase(ServerHome.open(folder).fleet_database) as fleet:
        entry = fleet.revoke(name, reason)
        found = None if entry is None else _node(fleet, entry)
    if as_json:
        print_json({"name": name, "reason": reason, "revoked": found})
        return
    what = "its open token is void" if found is None else "its key is refused from now on"
    typer.echo(f"Revoked {name}: {what}.")


def client_enroll(
    token: Annotated[str, typer.Argument(help='From the operator; "-" reads it from stdin.')],
    data: Annotated[
        Path | None, typer.Option(help="File with this device's records; it stays here.")
    ] = None,
    base: Annotated[
        str,
        typer.Option(
            help='"demo", a transformers folder, or an exported step to run without torch.'
        ),
    ] = DEMO,
    home: DeviceFolder = None,
    as_json: AsJson = False,
) -> None:
    """Enroll this device: make its key here, get its certificate, write a policy to fill in."""
    from client.control import redeem
    from client.edge.program import step_of
    from client.enrolling import enroll

    text = sys.stdin.read(MAX_STDIN) if token == "-" else token  # noqa: S105 - not a secret
    folder = _base(base)
    step = step_of(Path(folder))
    done = enroll(
        text,
        path=device_folder(home),
        data=data,
        base=folder,
        step=None if step is None else step.digest,
        runtime="torch" if step is None else step.runtime,
        call=redeem,
    )
    print_json(_enrolled(done)) if as_json else _print_enrolled(done)


def client_renew(
    home: DeviceFolder = None,
    if_due: Annotated[
        bool, typer.Option("--if-due", help="Only in the last third of its time.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Fetch a new certificate for this device's key, before the old one expires."""
    from client.control import ControlClient
    from client.enrolling import renew, renewal_due
    from client.home import DeviceHome

    device = DeviceHome.open(device_folder(home))
    if if_due and not renewal_due(device):
        print_json({"renewed": False}) if as_json else typer.echo("It is not due yet.")
        return
    with ControlClient(device) as control:
        until = _shown(renew(device, call=control.renew).timestamp())
    if as_json:
        print_json({"renewed": True, "not_after": until})
        return
    typer.echo(f"The new certificate is good until {until}.")


def client_leave(home: DeviceFolder = None, as_json: AsJson = False) -> None:
    """Stop taking part and tell the server; ledger, policy and adapters stay on the device."""
    from client.home import DeviceHome
    from client.leaving import leave

    left = leave(DeviceHome.open(device_folder(home)), tell=_tell)
    if as_json:
        why = None if left.refused is None else left.refused.to_dict()
        print_json({"name": left.name, "left": True, "server_told": why is None, "why_not": why})
        return
    typer.echo("This device takes part in nothing any more. Its ledger stays and counts on.")
    if left.refused is None:
        typer.echo("The server knows, and refuses its key from now on.")
    else:
        typer.echo(f"The server could not be told: {left.refused}", err=True)
        typer.echo(f"Ask the operator to run: fedslm server revoke {left.name}", err=True)


def client_forget(
    home: DeviceFolder = None,
    ledger_too: Annotated[
        bool,
        typer.Option("--ledger-too", help="Also remove the record of what was spent."),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove this device's keys, certificates, adapters and state; its records are not touched.

    What left the device in earlier rounds cannot be called back. The device's own ledger stays
    unless --ledger-too is given: without it nobody can say any more what this data has spent, and
    a new enrolment would spend it again from nothing.
    """
    from client.home import NODE_FILE, DeviceHome
    from client.leaving import forget, forgettable, leave

    path = device_folder(home)
    _announce(forgettable(path, ledger_too=ledger_too), path, ledger_too=ledger_too)
    if not yes:
        typer.confirm("Remove them?", abort=True, err=True)
    refused = None
    if (path / NODE_FILE).exists():
        device = DeviceHome.open(path)
        if not device.left:
            refused = leave(device, tell=_tell).refused
            if refused is not None:
                typer.echo(f"The server could not be told: {refused}", err=True)
                name = device.config.name
                typer.echo(f"Ask the operator to run: fedslm server revoke {name}", err=True)
    done = forget(path, ledger_too=ledger_too)
    if as_json:
        print_json(
            {
                "removed": [str(item) for item in done.remove],
                "kept": [str(item) for item in done.keep],
                "why_server_not_told": None if refused is None else refused.to_dict(),
            }
        )
        return
    typer.echo(f"Removed {len(done.remove)} and kept {len(done.keep)} files of {path}.")


def _tell(home: DeviceHome) -> None:
    """Tell the server that the device leaves."""
    from client.control import ControlClient

    with ControlClient(home, attempts=2) as control:
        control.leave()


def _announce(found: Forgettable, path: Path, *, ledger_too: bool) -> None:
    """Say what is removed and what that does not undo."""
    typer.echo(f"To be removed from {path}:", err=True)
    for item in found.remove:
        typer.echo(f"  {item.relative_to(path.absolute())}", err=True)
    for item in found.keep:
        typer.echo(f"  {item.relative_to(path.absolute())} stays", err=True)
    typer.echo(
        "What left this device in earlier rounds is in models that others have; nothing calls it "
        "back. Deleted files can be read again until the storage under them is written over.",
        err=True,
    )
    if ledger_too:
        typer.echo(
            "WITHOUT ITS LEDGER nobody can say what this data has spent. If it is ever enrolled "
            "again, its budget starts from nothing and the true loss is the sum of both.",
            err=True,
        )


def device_folder(home: Path | None) -> Path:
    """Return the device's folder."""
    from client.home import default_home

    return default_home() if home is None else home


def _base(base: str) -> str:
    """Return the folder of a base model, absolute, so that the node finds it from anywhere.

    Raises:
        ModelNotFound: if it is none.
    """
    from shared.errors import ModelNotFound

    folder = ASSETS / DEMO if base == DEMO else Path(base)
    if not any((folder / name).is_file() for name in ("config.json", "step.json")):
        msg = f"base={folder.name!r} is not a folder with a model."
        raise ModelNotFound(msg, hint='Give a transformers folder, an exported step, or "demo".')
    return str(folder.absolute())


def _enrolled(done: Enrolment) -> dict[str, Any]:
    """Return what came of an enrolment, in JSON's terms."""
    config = done.home.config
    return {
        "home": str(done.home.path),
        "name": config.name,
        "role": config.role,
        "client_index": config.client_index,
        "fleet": config.fleet,
        "control": config.control,
        "policy": str(done.home.policy) if config.role == "node" else None,
        "policy_kept": done.policy_kept,
        "ledger_kept": done.ledger_kept,
        "base_digest": done.base_digest,
    }


def _print_enrolled(done: Enrolment) -> None:
    """Say what came of an enrolment and what the owner does next."""
    home, config = done.home, done.home.config
    typer.echo(f"Enrolled as {config.name} ({config.role}). Everything is in {home.path}.")
    if config.role != "node":
        return
    if done.ledger_kept:
        typer.echo("This device has a ledger already: what was spent before counts on.")
    if done.policy_kept:
        typer.echo(f"The policy {home.policy} was there already and is in force as it is.")
    else:
        typer.echo(f"The policy {home.policy} allows nothing yet: fill it in.")
    if done.base_digest is not None:
        typer.echo(f"The server trains the base model {done.base_digest[:12]}; compare yours:")
        typer.echo(f"  fedslm client policy base {config.base}")
    typer.echo(f"Then: fedslm client policy show {home.policy}, and: fedslm client run")


def _node(fleet: FleetDatabase, entry: NodeEntry) -> dict[str, Any]:
    """Return an enrolment in JSON's terms."""
    from shared.canonical import sha256_hex

    return {
        "name": entry.name,
        "role": entry.role,
        "client_index": entry.client_index,
        "key": sha256_hex(entry.public_key),
        "serial": None if entry.serial is None else f"{entry.serial:x}",
        "enrolled_at": _shown(entry.enrolled_at),
        "revoked_at": _shown(entry.revoked_at),
        "revoked_reason": entry.revoked_reason,
        "last_seen": _shown(entry.last_seen),
        # A JSON number of 64 bits would lose digits in many readers.
        "flower_node_id": None if entry.flower_node_id is None else str(entry.flower_node_id),
        "flags": [
            {"code": flag.code, "count": flag.count, "last_at": _shown(flag.last_at)}
            for flag in fleet.flags(entry.name)
        ],
    }


def _shown(moment: float | None) -> str | None:
    """Write a time in UTC."""
    if moment is None:
        return None
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
