"""Starts Flower's SuperLink behind a door of ours, and the executor of ServerApps.

Flower 1.41 has no public way to do either (docs/adr/0016).
``tests/contract/test_superlink_surface.py`` pins every private name used here. Flower is imported
inside functions: the supervisor needs only the names.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path
from typing import cast

from server.freshtls import context_factory
from server.home import ServerHome
from server.superlinkdoor import AsgiApp, ControlDoor


def serve(home: ServerHome) -> None:
    """Run the SuperLink of a folder in this process until it is told to stop.

    It listens on loopback alone, with the server's certificate, so that nothing else on the
    machine can pose as it. Bundles install nothing, and nothing is reported to anybody.
    """
    os.environ.update(environment(home))
    import uvicorn
    from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
    from flwr.superlink.config_loader import SuperLinkLifespanConfig, load_control_authn_plugin
    from flwr.superlink.main import create_app

    key, certificate, ca = (
        str(path) for path in (home.server_key, home.server_certificate, home.ca_certificate)
    )
    config = SuperLinkLifespanConfig(
        control_address=home.config.superlink_address,
        health_server_address=None,
        host="127.0.0.1",
        port=home.config.superlink_port,
        insecure=False,
        certificates=(
            home.ca_certificate.read_bytes(),
            home.server_certificate.read_bytes(),
            home.server_key.read_bytes(),
        ),
        superexec_auth_secret=home.read_secret(home.superexec_secret),
        authn_plugin=load_control_authn_plugin(),
        event_log_plugin=None,
        fleet_event_log_plugin=None,
        enable_event_log=False,
        artifact_provider=None,
        enable_supernode_auth=True,
        fleet_api_type="grpc-rere",
        fleet_api_address=None,
        simulation=False,
        ssl_ca_certfile=ca,
        ssl_certfile=certificate,
        ssl_keyfile=key,
        database=str(home.superlink_database),
        isolation="process",
        runtime_dependency_install=False,
    )
    app = cast("AsgiApp", create_app(config, SuperLinkLifespan))
    uvicorn.run(
        ControlDoor(app, home.read_secret(home.control_secret)),
        host=config.host,
        port=config.port,
        log_config=None,
        access_log=False,
        server_header=False,
        ssl_keyfile=key,
        ssl_certfile=certificate,
        ssl_context_factory=context_factory(home),
        timeout_graceful_shutdown=2,
    )


def environment(home: ServerHome) -> dict[str, str]:
    """Return what Flower's processes need in their environment.

    The command of a ServerApp is looked up in ``PATH``; from a source tree the packages are found
    by ``PYTHONPATH``, because these processes run in the server's folder.
    """
    scripts = str(Path(sys.executable).parent)
    found = {
        "FLWR_HOME": str(home.flower_home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_LOG_LEVEL": "WARNING",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "PATH": os.pathsep.join([scripts, os.environ.get("PATH", os.defpath)]),
    }
    source = str(Path(__file__).resolve().parents[1])
    if source not in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        found["PYTHONPATH"] = source
    return found


def superlink_command(home: ServerHome) -> list[str]:
    """Return the command line of the SuperLink."""
    return [sys.executable, "-m", "server.superlink", str(home.path)]


def superexec_command(home: ServerHome) -> list[str]:
    """Return the command line of the executor of ServerApps."""
    return [
        str(Path(sys.executable).parent / "flower-superexec"),
        "--runtime-api-address",
        home.config.superlink_address,
        "--root-certificates",
        str(home.ca_certificate),
        "--superexec-auth-secret-file",
        str(home.superexec_secret),
    ]


if __name__ == "__main__":
    serve(ServerHome.open(Path(sys.argv[1])))
