"""``fedslm server user``: who may log in to the dashboard."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simulations.budget_common import AsJson, print_json

if TYPE_CHECKING:
    from server.dashboard.users import UserStore

user_app = typer.Typer(help="Say who may log in to the dashboard.", no_args_is_help=True)

HOME_DEFAULT = Path("server-home")
_LARGEST = 1024

Name = Annotated[str, typer.Argument(help="Lower-case letters, digits, '.', '_' and '-'.")]
Folder = Annotated[
    Path, typer.Option("--dir", envvar="FEDSLM_SERVER", help="Folder of the server.", metavar="DIR")
]
PasswordFile = Annotated[
    Path | None,
    typer.Option(help="A file whose first line is the password; asked for otherwise."),
]


@user_app.command("add")
def user_add(
    name: Name,
    role: Annotated[str, typer.Option(help='"operator" may change things, "viewer" may look.')],
    password_file: PasswordFile = None,
    folder: Folder = HOME_DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Let somebody log in; there is no default password."""
    store = _store(folder)
    made = store.add(name, _password(password_file), role)
    _note(folder, "user-added", name)
    if as_json:
        print_json({"name": made.name, "role": made.role})
    else:
        typer.echo(f"{made.name} may log in as {made.role}.")


@user_app.command("remove")
def user_remove(name: Name, folder: Folder = HOME_DEFAULT, as_json: AsJson = False) -> None:
    """Shut somebody out; open sessions end at once."""
    _store(folder).remove(name)
    _note(folder, "user-removed", name)
    if as_json:
        print_json({"name": name, "removed": True})
    else:
        typer.echo(f"{name} may not log in any more.")


@user_app.command("password")
def user_password(
    name: Name,
    password_file: PasswordFile = None,
    folder: Folder = HOME_DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Give somebody another password; open sessions end at once."""
    _store(folder).set_password(name, _password(password_file))
    _note(folder, "password-changed", name)
    if as_json:
        print_json({"name": name, "changed": True})
    else:
        typer.echo(f"{name} has another password; open sessions have ended.")


@user_app.command("list")
def user_list(folder: Folder = HOME_DEFAULT, as_json: AsJson = False) -> None:
    """List who may log in."""
    users = _store(folder).users()
    if as_json:
        rows = [
            {"name": u.name, "role": u.role, "created": u.created, "last_login": u.last_login}
            for u in users
        ]
        print_json({"users": rows})
        return
    from rich.console import Console
    from rich.table import Table

    from server.dashboard.words import moment

    table = Table("name", "role", "since", "last login", box=None, pad_edge=False)
    for user in users:
        table.add_row(user.name, user.role, moment(user.created), moment(user.last_login))
    Console().print(table)


def _store(folder: Path) -> UserStore:
    """Open the people of a server."""
    from server.dashboard.store import USERS, UserFile
    from server.dashboard.users import UserStore
    from server.home import ServerHome

    return UserStore(UserFile(ServerHome.open(folder).path / USERS))


def _note(folder: Path, kind: str, name: str) -> None:
    """Write an action into the operators' log."""
    from server.fleetdb import FleetDatabase
    from server.home import ServerHome

    with FleetDatabase(ServerHome.open(folder).fleet_database) as fleet:
        fleet.event(kind, name=name, by="command line")


def _password(file: Path | None) -> str:
    """Read a password from a file, or ask for it twice; it is never shown.

    Raises:
        UsageError: if the file cannot be read.
    """
    if file is None:
        asked: str = typer.prompt("Password", hide_input=True, confirmation_prompt=True)
        return asked
    from shared.errors import UsageError

    try:
        with file.open("rb") as stream:
            text = stream.read(_LARGEST).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        msg = f"the password file {file.name} cannot be read."
        raise UsageError(msg, hint="Give a text file whose first line is the password.") from error
    return text.partition("\n")[0].removesuffix("\r")
