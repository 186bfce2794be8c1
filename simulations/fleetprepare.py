"""From a scenario to a run that a fleet can take up: its folder, with what the rounds need.

The server has no data. The population is what the scenario says, or the devices that are enrolled;
the adapter's shapes come from the base model, which the server therefore needs once, here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from server.fleetdb import FleetDatabase
from server.fleetruns import FleetRuns, RunView
from server.home import ServerHome
from server.prepared import IDENTITY, ROSTER, describe_run, run_name
from server.stopping import refuse_public_in_fleet
from server.timing import refuse_in_fleet
from server.warmstart import keep_start, open_warm_start
from shared.attackrules import refuse_attack
from shared.errors import EmptyPopulation, RunFolderExists, SecureAggregationError
from shared.files import disk_errors, write_bytes, write_json, write_text
from shared.roster import read_roster
from shared.scenarioplan import plan_of

if TYPE_CHECKING:
    from shared.config import RunConfig
    from shared.configfile import ResolvedConfig

CONFIG = "config.toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A run that was ordered.

    Attributes:
        view: the run as it stands.
        enrolled: devices that are enrolled now.
        warnings: what the operator should know, in sentences.
    """

    view: RunView
    enrolled: int
    warnings: tuple[str, ...]


def start_run(
    home: ServerHome,
    resolved: ResolvedConfig,
    *,
    name: str | None = None,
    roster: Path | None = None,
    base_dir: Path | None = None,
) -> Started:
    """Prepare a scenario for the fleet of a server and order it.

    A server that runs takes it up within a second; another one when it is started.

    Args:
        home: the server's folder.
        resolved: the scenario.
        name: of the run folder; default the scenario's name and the time.
        roster: identity keys of all clients (mode client-distributed).
        base_dir: what a relative path of the base model is relative to; default the working
            directory.

    Raises:
        EmptyPopulation: if the scenario names no population and nobody is enrolled.
        RunFolderExists: if there is a run of this name.
        SecureAggregationError: if the mode needs a roster and none was given.
        FedSLMError: for a scenario, base model or plan that does not work.
    """
    config = resolved.config
    refuse_in_fleet(config)
    refuse_public_in_fleet(config)
    refuse_attack(config)
    folder = home.run_folder(name or default_name(config))
    if folder.exists():
        msg = f"runs/{folder.name} exists already."
        raise RunFolderExists(msg, hint="Give another --name.")
    with FleetDatabase(home.fleet_database) as database:
        enrolled = enrolled_clients(database)
    population = config.clients.population or enrolled
    if population < 1:
        msg = "Nobody is enrolled, and the scenario names no population."
        raise EmptyPopulation(msg, hint="Enroll devices, or: --set clients.population=N")
    keys = _roster(config, roster)
    plan = plan_of(config, population=population)
    from simulations.assemble import load_model

    model = load_model(config, base_dir=base_dir or Path.cwd())
    started = None
    if config.run.warm_start is not None:
        started = open_warm_start(
            (base_dir or Path.cwd()) / config.run.warm_start,
            config=config,
            spec=model.spec,
            base_digest=model.base.digest,
        )
    with disk_errors(folder):
        folder.mkdir(parents=True)
    digest = None if started is None else keep_start(folder, started)
    if keys is not None:
        write_bytes(folder / ROSTER, keys)
    write_text(folder / CONFIG, resolved.to_toml())
    identity = describe_run(config, plan, model.spec, population, start_digest=digest)
    write_json(folder / IDENTITY, identity)
    runs = FleetRuns(home)
    runs.order(folder.name, base_model=config.model.base, base_digest=model.base.digest)
    with FleetDatabase(home.fleet_database) as database:
        ledger_name = run_name(config)
        database.event(
            "run-ordered", run=folder.name, ledger_name=ledger_name, population=population
        )
    warnings = [*plan.warnings(), *_doubts(config, population, enrolled)]
    return Started(view=runs.view(folder.name), enrolled=enrolled, warnings=tuple(warnings))


def enrolled_clients(database: FleetDatabase) -> int:
    """Return how many clients the fleet has: one more than the highest index in force.

    A client index stays with its name for ever, so one that was revoked may leave a gap: a client
    that is sampled and never answers.
    """
    indices = [
        node.client_index
        for node in database.nodes()
        if node.client_index is not None and node.revoked_at is None
    ]
    return max(indices, default=-1) + 1


def default_name(config: RunConfig, *, now: datetime | None = None) -> str:
    """Return ``NAME-YYYYMMDD-HHMMSS``, in UTC."""
    moment = now or datetime.now(tz=UTC)
    return f"{config.run.name}-{moment:%Y%m%d-%H%M%S}"


def _roster(config: RunConfig, path: Path | None) -> bytes | None:
    """Read the roster of a run that needs one.

    Raises:
        SecureAggregationError: if it is missing.
        SchemaMismatch: if it is not a roster.
    """
    if config.privacy.mode != "client-distributed":
        return None
    if path is None:
        msg = "mode client-distributed needs the identity keys of all clients."
        raise SecureAggregationError(
            msg, hint="Collect them with: fedslm client identity; give the file with --roster."
        )
    with disk_errors(path):
        contents = path.read_bytes()
    read_roster(contents)
    return contents


def _doubts(config: RunConfig, population: int, enrolled: int) -> list[str]:
    """Return what will keep a run from going on, as far as it can be known now."""
    found = []
    if enrolled < population:
        needed = max(1, math.ceil(config.server.quorum * population))
        found.append(
            f"{enrolled} devices are enrolled for a population of {population}; rounds wait until "
            f"{needed} are there."
        )
    if config.stopping.used and config.stopping.on == "loss":
        found.append(
            "All rounds will run: held-out losses do not leave devices, so stopping.patience has "
            "nothing to go by."
        )
    if config.privacy.noise_source == "seeded-simulation":
        found.append(
            "The noise is seeded: whoever knows the seed can take it off. Devices refuse that "
            "unless their owners allow it."
        )
    return found
