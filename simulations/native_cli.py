"""``fedslm client native``: builds the client in C++, and prepares a device for it.

The functions are commands; see docs/native.md. Whatever needs Python for a device that has none is
done here, on any machine of its owner's.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simulations.budget_common import AsJson, print_json
from simulations.enrol_cli import DeviceFolder

if TYPE_CHECKING:
    from shared.config import RunConfig

native_app = typer.Typer(
    help="Build the client in C++, and prepare a device for it.", no_args_is_help=True
)


def add_commands(client_app: typer.Typer) -> None:
    """Add the commands to ``fedslm client``."""
    client_app.add_typer(native_app, name="native")
    native_app.command("build")(build)
    native_app.command("prepare")(prepare)


def build(
    out: Annotated[
        Path, typer.Argument(help="Folder of the program and of what is compiled on the way.")
    ] = Path("fedslm-native"),
    as_json: AsJson = False,
) -> None:
    """Compile the client; needs a C++17 compiler, make, OpenSSL's headers and executorch."""
    from client.native.building import build_client

    program = build_client(out)
    print_json({"program": str(program)}) if as_json else typer.echo(program)


def prepare(
    scenario: Annotated[
        str, typer.Argument(help="A built-in scenario, a TOML file, or the JSON of a server.")
    ],
    out: Annotated[
        Path, typer.Argument(help="A new folder, or that of an enrolled native device.")
    ],
    home: DeviceFolder = None,
    data: Annotated[
        Path | None, typer.Option(help="The records; for a device that enrolls by itself.")
    ] = None,
    step: Annotated[
        Path | None, typer.Option(help="The exported step; for a device that enrolls by itself.")
    ] = None,
    policy: Annotated[
        Path | None, typer.Option(help="The owner's policy; for a device that enrolls by itself.")
    ] = None,
    client_index: Annotated[
        int | None, typer.Option(help="What fedslm-native enroll printed.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write what a native device needs: records as tokens, first factors, the owner's limits.

    Either from the folder of a device that fedslm client enroll made (--home), or for one that
    fedslm-native enroll made: then --data, --step, --policy and --client-index.
    """
    from client.native.prepare import Owner, prepare_home, prepare_owner
    from shared.errors import UsageError
    from simulations.enrol_cli import device_folder

    config = _scenario(scenario)
    own = (data, step, policy, client_index)
    if data is not None and step is not None and policy is not None and client_index is not None:
        owner = Owner(data=data, step=step, policy=policy, client_index=client_index)
        written = prepare_owner(owner, config, out)
    elif any(value is not None for value in own):
        msg = "A device that enrolls by itself needs all of --data, --step, --policy and "
        msg += "--client-index."
        raise UsageError(msg, hint="Or give the folder of a device with --home alone.")
    else:
        from client.home import DeviceHome

        written = prepare_home(DeviceHome.open(device_folder(home)), config, out)
    print_json({"config": str(written)}) if as_json else typer.echo(written)


def _scenario(name: str) -> RunConfig:
    """Read a scenario: by name, from TOML, or from the JSON that lies in a run's folder."""
    from shared.configfile import parse_json
    from shared.errors import UsageError
    from simulations.catalog import open_scenario

    if not name.endswith(".json"):
        return open_scenario(name).config
    try:
        text = Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        msg = f"The scenario {Path(name).name} cannot be read."
        raise UsageError(msg, hint="Give a file of JSON or TOML.") from error
    return parse_json(text)
