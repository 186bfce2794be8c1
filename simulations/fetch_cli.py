"""``fedslm client fetch``: take the adapter that the server's operator put in use."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simulations.budget_common import AsJson, print_json

if TYPE_CHECKING:
    from client.adapterstore import AdapterStore
    from client.control import ControlClient
    from client.home import DeviceHome


def add_commands(client_app: typer.Typer) -> None:
    """Add the command to ``fedslm client``."""
    client_app.command("fetch")(fetch)


def fetch(
    home: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Folder of the device; default $FEDSLM_HOME, or your data's."
        ),
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Also take a version that you rolled back from.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Fetch and verify the adapter in use, now; a running node does it every quarter of an hour."""
    from client.adapterrules import AdapterPolicy
    from client.adapterstore import AdapterStore
    from client.control import ControlClient
    from client.home import DeviceHome, default_home
    from shared.errors import AdapterUntrusted

    device = DeviceHome.open(default_home() if home is None else home)
    key = device.config.adapter_key
    if key is None:
        msg = "This device knows no key that signs adapters."
        raise AdapterUntrusted(msg, hint="Enroll again to get it.")
    policy = AdapterPolicy.of_owner(device.policy)
    store = AdapterStore(device.adapters, trusted_key=key, base_digest=None, policy=policy)
    before = store.memory().current
    with ControlClient(device) as control:
        now = _take(control, store, device, again=again)
    if as_json:
        print_json({"adapter": now, "before": before, "changed": now != before})
    elif now is None:
        typer.echo("The server has put no adapter in use yet.")
    elif now == before:
        typer.echo(f"Adapter {now[:12]} is the newest, and in use.")
    else:
        typer.echo(f"Adapter {now[:12]} was verified and is in use.")


def _take(
    control: ControlClient, store: AdapterStore, device: DeviceHome, *, again: bool
) -> str | None:
    """Take what the newest order names; return the digest of what is in use now.

    Where the order is the one that was followed last, nothing else is asked, and the base model is
    not read: torch, which that needs, is not imported on most days.
    """
    from client.adapterfetch import fetch_adapter, signature_of
    from shared.orders import read_order

    newest = control.order()
    memory = store.memory()
    if not newest.order:
        return memory.current
    order = read_order(newest.order, signature_of(newest.signature), trusted=store.trusted_key)
    if not again and order.hash == memory.order_hash:
        return memory.current
    from client.adapterstore import AdapterStore
    from client.inference import device_base_digest

    digest = device_base_digest(device)
    bound = AdapterStore(
        store.folder, trusted_key=store.trusted_key, base_digest=digest, policy=store.policy
    )
    installed = fetch_adapter(control, bound, again=again)
    return None if installed is None else installed.digest
