"""Flower's own simulation engine (Ray): the way to several processes and machines.

The same ServerApp and ClientApp; each Ray actor builds its runtime once from the scenario's JSON
and keeps it. Telemetry and update checks are off.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
import warnings
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from client.app import make_client_app
from shared.errors import MissingDependency, UsageError

if TYPE_CHECKING:
    from client.runtime import ClientRuntime

QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DISABLE_DOCKER_CPU_WARNING": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}

_RAY_OPTIONS: Mapping[str, Any] = {"log_to_driver": False, "logging_level": "error"}


def run_on_flower(
    server: ServerApp,
    client: ClientApp,
    *,
    population: int,
    client_cpus: float,
    client_gpus: float = 0.0,
) -> None:
    """Run both apps on Flower's simulation engine.

    Args:
        server: the ServerApp.
        client: a picklable ClientApp, from :func:`actor_client_app`.
        population: number of virtual nodes.
        client_cpus: cores per actor; the number of actors follows from it and from the next.
        client_gpus: GPUs per actor. Ray shows each actor its own alone; below 1, several actors
            share one. With 0 an actor sees every GPU that its node sees.

    Raises:
        MissingDependency: if Ray is not installed.
        UsageError: if no machine of the cluster has so many cores and GPUs.
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
        _require_room(client_cpus, client_gpus)
        _start_ray()
        run_simulation(
            server_app=server,
            client_app=client,
            num_supernodes=population,
            backend_config={
                "client_resources": {"num_cpus": client_cpus, "num_gpus": client_gpus},
            },
        )


def _start_ray() -> None:
    """Start Ray as Flower would, and once more where its first node did not come up.

    Ray gives a node thirty seconds, whatever else the machine does, and then leaves the processes
    that it started behind. Flower uses the Ray that it finds and shuts it down in the end.
    """
    import ray

    path = os.pathsep.join(filter(None, sys.path))
    variables = {"env_vars": {"PYTHONPATH": path}}
    for last in (False, True):
        try:
            ray.init(include_dashboard=False, runtime_env=variables, **_RAY_OPTIONS)
        except Exception as error:  # Ray raises no class of its own here
            _end_half_started(error)
            if last:
                raise
        else:
            return


def _end_half_started(error: BaseException) -> None:
    """End the processes of a Ray node whose start failed, wherever the failure holds it."""
    from ray._private.node import Node

    for frame, _ in traceback.walk_tb(error.__traceback__):
        node = frame.f_locals.get("self")
        if isinstance(node, Node):
            options = {"check_alive": False, "allow_graceful": False, "wait": True}
            node.kill_all_processes(**options)  # type: ignore[no-untyped-call]
            return


def _require_room(cpus: float, gpus: float) -> None:
    """Refuse actors that no machine has room for, before anything waits for them.

    Without a running cluster the machine's cores are counted, of which Ray may be given fewer by a
    container: it then ends the run itself, once its server has stopped waiting for clients.

    Raises:
        UsageError: if neither a node of the running cluster nor, without one, this machine has so
            many cores and GPUs.
    """
    if any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in _machines()):
        return
    msg = f"No machine has {cpus:g} cores and {gpus:g} GPUs for one actor."
    hint = "Lower performance.client_cpus or performance.client_gpus, or add a Ray node."
    raise UsageError(msg, hint=hint)


def _machines() -> list[dict[str, float]]:
    """Return what each machine that may hold actors has."""
    if not os.environ.get("RAY_ADDRESS"):
        import torch

        return [{"CPU": os.cpu_count() or 1, "GPU": torch.cuda.device_count()}]
    import ray

    ray.init(**_RAY_OPTIONS)
    try:
        nodes: list[Any] = ray.nodes()  # type: ignore[no-untyped-call]
        return [node["Resources"] for node in nodes if node["Alive"]]
    finally:
        ray.shutdown()


def actor_client_app(
    config_json: str, plan_json: str, base_dir: str, folder: str | None = None
) -> ClientApp:
    """Build a ClientApp that Ray can pickle: it holds strings.

    Args:
        config_json: the scenario.
        plan_json: the privacy plan.
        base_dir: what relative data paths are relative to.
        folder: where clients keep what they did not send; None keeps it in the actor.
    """

    def runtime_of(context: Context) -> ClientRuntime:
        del context
        return _actor_runtime(config_json, plan_json, base_dir, folder)

    return make_client_app(runtime_of, simulated=True)


@lru_cache(maxsize=1)
def _actor_runtime(
    config_json: str, plan_json: str, base_dir: str, folder: str | None
) -> ClientRuntime:
    """Build the runtime of an actor process once."""
    from shared.configfile import parse_json
    from shared.privacy.plan import PrivacyPlan
    from simulations.assemble import assemble_runtime

    config = parse_json(config_json)
    plan = PrivacyPlan.from_json(plan_json)
    runtime = assemble_runtime(config, plan, base_dir=Path(base_dir)).runtime
    if folder is not None:
        runtime.remember_in(Path(folder))
    return runtime
