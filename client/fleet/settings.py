"""What a node needs to know, taken from a device's folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from client.fleet.child import COMMAND
from client.fleet.limits import DEFAULT_LIMITS, MIB, Limits
from client.fleet.status import STATUS_FILE
from client.fleet.transport import Endpoint, parse_address
from shared.bundle import BUNDLE_DIGEST
from shared.errors import FleetError

if TYPE_CHECKING:
    from client.home import DeviceHome, NodeConfig

# As in client.node, which reads them; importing it would load the whole client.
PARTITION: Final = "partition-id"
DATA: Final = "data-path"
BASE: Final = "base-path"
POLICY: Final = "policy-path"
STATE: Final = "state-path"
RUNTIME: Final = "runtime"
STEP: Final = "step-digest"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSettings:
    """Everything a node is told from outside.

    Attributes:
        endpoint: the server.
        key: the device's private key, mode 600.
        policy: the owner's policy file.
        status: where the status goes.
        node_config: the device's own paths and number, for the client; nothing of it is sent.
        poll_seconds: longest pause between two questions for work while no run goes on.
        heartbeat_seconds: between two signs of life; the server allows 10 to 1800.
        idle_seconds: without work, until the worker is let go.
        limits: bounds on one message.
        bundles: SHA-256 of the app bundles whose runs are answered; None for any. The node runs no
            bundle, only the installed client; this refuses runs that another version submitted.
        left: whether the owner took the device out of the fleet.
        command: starts the worker.
    """

    endpoint: Endpoint
    key: Path
    policy: Path
    status: Path
    node_config: Mapping[str, str | int] = field(repr=False)
    poll_seconds: float = 3.0
    heartbeat_seconds: float = 60.0
    idle_seconds: float = 600.0
    limits: Limits = DEFAULT_LIMITS
    bundles: frozenset[str] | None = None
    left: Callable[[], bool] = lambda: False
    command: Sequence[str] = COMMAND


def settings_of(
    home: DeviceHome,
    *,
    base: str | None = None,
    bundles: frozenset[str] | None = frozenset({BUNDLE_DIGEST}),
) -> NodeSettings:
    """Read the settings of an enrolled device.

    Args:
        home: the device's folder.
        base: folder of the base model, in place of what ``node.toml`` says.
        bundles: see :class:`NodeSettings`.

    Raises:
        FleetError: if the device speaks for no client or has no data.
        InvalidValue: if the server's address is no address.
    """
    config = home.config
    if config.client_index is None or config.data is None:
        msg = f"{config.name!r} speaks for no client or has no data."
        raise FleetError(msg, hint="Enroll it as a node: fedslm client enroll TOKEN --data FILE")
    host, port = parse_address(config.fleet)
    return NodeSettings(
        endpoint=Endpoint(host=host, port=port, ca=home.ca),
        key=home.key,
        policy=home.policy,
        status=home.path / STATUS_FILE,
        node_config={
            PARTITION: config.client_index,
            DATA: config.data,
            BASE: config.base if base is None else base,
            POLICY: str(home.policy),
            STATE: str(home.state),
            **_edge(home.config),
        },
        poll_seconds=config.poll_seconds,
        heartbeat_seconds=config.heartbeat_seconds,
        idle_seconds=config.idle_seconds,
        limits=Limits(message_bytes=config.max_message_mb * MIB),
        bundles=bundles,
        left=lambda: home.left,
    )


def _edge(config: NodeConfig) -> dict[str, str | int]:
    """Return what a device without torch is told besides.

    Raises:
        FleetError: if the step is not named by its digest.
    """
    if config.runtime == "torch":
        return {}
    if config.step is None:
        msg = f'{config.name!r} has runtime = "{config.runtime}" and no step.'
        raise FleetError(msg, hint="Name its digest in node.toml: step = ...")
    return {RUNTIME: config.runtime, STEP: config.step}
