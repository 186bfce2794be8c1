"""Flower's own simulation engine (Ray): the way to several processes and machines.

The same ServerApp and ClientApp; each Ray actor builds its runtime once from the scenario's JSON
and keeps it. Telemetry and update checks are off.
"""

from __future__ import annotations

import logging
import os
import warnings
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from client.app import make_client_app
from shared.errors import MissingDependency

if TYPE_CHECKING:
    from client.runtime import ClientRuntime

QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DISABLE_DOCKER_CPU_WARNING": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def run_on_flower(
    server: ServerApp, client: ClientApp, *, population: int, client_cpus: float
) -> None:
    """Run both apps on Flower's simulation engine.

    Args:
        server: the ServerApp.
        client: a picklable ClientApp, from :func:`actor_client_app`.
        population: number of virtual nodes.
        client_cpus: cores per client; the number of actors follows from it.

    Raises:
        MissingDependency: if Ray is not installed.
    """
    os.environ.update(QUIET)
    try:
        import ray  # noqa: F401
    except ImportError as error:
        msg = 'engine "flower" needs Ray, which is not installed.'
        raise MissingDependency(msg, hint="pip install 'fedslm[ray]'") from error
    from flwr.simulation import run_simulation

    logging.getLogger("flwr").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run_simulation(
            server_app=server,
            client_app=client,
            num_supernodes=population,
            backend_config={
                "client_resources": {"num_cpus": client_cpus, "num_gpus": 0.0},
                "init_args": {"log_to_driver": False, "logging_level": "error"},
            },
        )


def actor_client_app(config_json: str, plan_json: str, base_dir: str) -> ClientApp:
    """Build a ClientApp that Ray can pickle: it holds three strings.

    Args:
        config_json: the scenario.
        plan_json: the privacy plan.
        base_dir: what relative data paths are relative to.
    """

    def runtime_of(context: Context) -> ClientRuntime:
        del context
        return _actor_runtime(config_json, plan_json, base_dir)

    return make_client_app(runtime_of, simulated=True)


@lru_cache(maxsize=1)
def _actor_runtime(config_json: str, plan_json: str, base_dir: str) -> ClientRuntime:
    """Build the runtime of an actor process once."""
    from shared.configfile import parse_json
    from shared.privacy.plan import PrivacyPlan
    from simulations.assemble import assemble_runtime

    config = parse_json(config_json)
    plan = PrivacyPlan.from_json(plan_json)
    return assemble_runtime(config, plan, base_dir=Path(base_dir)).runtime
