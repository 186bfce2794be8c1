"""``fedslm server rotate``: new certificates and secrets for a server that has some."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Annotated

import typer

from simulations.budget_common import AsJson, print_json

HOME_DEFAULT = Path("server-home")
CERTIFICATE, SECRETS = "certificate", "secrets"
_BYTES = 32


def rotate(
    what: Annotated[
        str,
        typer.Argument(
            help='"certificate": a new one for the hosts of server.toml; "secrets": of sessions, '
            "of the executor and of Control calls."
        ),
    ],
    folder: Annotated[
        Path,
        typer.Option("--dir", envvar="FEDSLM_SERVER", help="Folder of the server.", metavar="DIR"),
    ] = HOME_DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Make a new server certificate, which is served at once, or new secrets."""
    from server.fleetdb import FleetDatabase
    from server.home import ServerHome, write_secret
    from shared.errors import UsageError

    home = ServerHome.open(folder)
    if what == CERTIFICATE:
        home.issue_server_certificate()
    elif what == SECRETS:
        for path in (home.session_key, home.superexec_secret):
            write_secret(path, secrets.token_bytes(_BYTES))
        write_secret(home.control_secret, secrets.token_hex(_BYTES).encode())
    else:
        msg = f"{what!r} cannot be rotated, expected {CERTIFICATE!r} or {SECRETS!r}."
        raise UsageError(msg, hint="Other keys: docs/deploy/operations.md.")
    with FleetDatabase(home.fleet_database) as database:
        database.event("rotated", what=what)
    if as_json:
        print_json({"rotated": what, "folder": str(home.path)})
        return
    follows = "Connections from now on are served with it."
    if what == SECRETS:
        follows = "Restart the server: all of its processes have to know."
    typer.echo(f"New {what}. {follows}")
