"""``fedslm simulate``: from a scenario to a run folder with everything in it.

Everything that can be wrong with a scenario, its data, its base model or its budget is found before
the run folder exists. Then, in this order: config, measurement before, rounds, measurement after,
adapter, audit, summary, report. Each file is whole or not there, so that ``--resume`` may trust it.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flwr.app import Context
from flwr.serverapp import Grid

from client.app import make_client_app
from client.ownfactors import forget_rounds_after
from server.app import make_server_app
from server.budget import RunBudget
from server.messenger import Messenger
from server.prepared import (
    IDENTITY,
    WARM_START,
    describe_run,
    key_of_ledger,
    open_ledger,
    run_name,
)
from server.setup import RunSetup
from server.stopping import Judge
from server.strategy import FederatedRun
from server.timing import refuse_without_clock
from server.warmstart import WarmStart, keep_start, open_warm_start, read_start
from shared.canonical import canonical_json
from shared.configfile import ResolvedConfig
from shared.errors import BaseModelMismatch, NotResumable, PrivacyBudgetExhausted
from shared.files import write_text
from shared.lora import Vector
from shared.privacy.ledger import Ledger
from shared.privacy.ledger_notes import CANARY_COINS, FIRST_ROUND
from shared.privacy.plan import PrivacyPlan
from shared.scenarioplan import plan_of
from simulations.afterwards import measure_afterwards
from simulations.assemble import Assembly, assemble_runtime, open_clients
from simulations.engine import run_in_process
from simulations.finish import Outcome, finish_run
from simulations.progress import RunProgress
from simulations.publicjudge import public_judge
from simulations.runfolder import CONFIG, EVALUATION, SUMMARY, RunFolder, open_folder
from simulations.scope import shared_scope
from simulations.taskfigures import AFTER, BEFORE
from simulations.workers import working_together

if TYPE_CHECKING:
    from shared.config import RunConfig

logger = logging.getLogger("fedslm.simulate")


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a simulation leaves behind.

    Attributes:
        folder: the run folder.
        summary: the contents of ``summary.json``.
    """

    folder: Path
    summary: dict[str, Any]


def simulate(
    resolved: ResolvedConfig,
    *,
    folder: Path,
    resume: bool,
    progress: RunProgress,
    base_dir: Path | None = None,
    ledger: str | None = None,
    ledger_key: Path | None = None,
) -> Result:
    """Run a scenario, or go on with one, and write its run folder.

    Args:
        resolved: the scenario.
        folder: where to write; created if missing.
        resume: whether ``folder`` may hold an unfinished run of the same scenario.
        progress: is told what happens.
        base_dir: what relative paths of the scenario are relative to; default the working
            directory.
        ledger: a ledger that several runs share (a file, or the URL of a PostgreSQL database), so
            that runs on the same people compose; the run folder's own if not given.
        ledger_key: the file of the key that signs its end.

    Returns:
        The run folder and its summary.

    Raises:
        FedSLMError: any error of the tree; see docs/errors.md.
    """
    began = time.monotonic()
    config = resolved.config
    home = base_dir or Path.cwd()
    _quiet_environment()
    signed_with = key_of_ledger(ledger, ledger_key)
    refuse_without_clock(config)
    done = _finished(folder, config) if resume else None
    if done is not None:
        return Result(folder=folder, summary=done)
    clients = open_clients(config, base_dir=home)
    dataset, _ = clients
    plan = plan_of(config, population=dataset.population)
    progress.note(f"loading {config.model.base} ({config.model.quantization})")
    assembly = assemble_runtime(config, plan, base_dir=home, opened=clients)
    dataset.client(0)
    judge = public_judge(config, assembly.model, base_dir=home)
    started = _warm_start(config, assembly, folder, home)
    with ExitStack() as crew:
        # Forked before anything is open: a worker holds no file, lock or connection of the run.
        crew.enter_context(working_together(assembly.runtime))
        with open_folder(folder, resume=resume) as run_folder:
            start = _identify(run_folder, resolved, assembly, plan, started)
            with open_ledger(run_folder.path, where=ledger, key=signed_with) as opened:
                scope = config.data.path if ledger is None else shared_scope(config.data.path, home)
                inputs = (run_folder, opened, scope, progress, home, start, judge)
                outcome = _Session(assembly, plan, *inputs).run()
                crew.close()
                progress.note("auditing")
                summary = finish_run(outcome, began=began)
    return Result(folder=folder, summary=summary)


class _Session:
    """One process's part of a run: connects the apps, measures, trains, measures again."""

    def __init__(
        self,
        assembly: Assembly,
        plan: PrivacyPlan,
        folder: RunFolder,
        ledger: Ledger,
        scope: str,
        progress: RunProgress,
        base_dir: Path,
        start: WarmStart | None,
        judge: Judge | None,
    ) -> None:
        self._assembly = assembly
        self._start = start
        self._plan = plan
        self._folder = folder
        self._ledger = ledger
        self._scope = scope
        self._progress = progress
        self._base_dir = base_dir
        config = assembly.runtime.config
        self._config = config
        run_id = run_name(config)
        self._budget = RunBudget(ledger, plan=plan, run_id=run_id, scope=scope)
        keyring = assembly.runtime.keyring
        setup = RunSetup(
            run_id=run_id,
            config=config,
            plan=plan,
            spec=assembly.model.spec,
            population=assembly.dataset.population,
            folder=folder.path,
            roster=None if keyring is None else keyring.roster,
            start=None if start is None else start.vector,
        )
        self._run = FederatedRun(setup, budget=self._budget, observer=self, judge=judge)
        self._losses: dict[str, dict[str, float]] = {}
        self._status = "completed"
        self._failure: BaseException | None = None

    def run(self) -> Outcome:
        """Run or resume all rounds on the scenario's engine."""
        from client.model import frozen_digest

        before = frozen_digest(self._assembly.model.peft_model)
        if self._run.restore():
            self._folder.settle_metrics(self._run.finished_rounds, self._run.last_record)
            self._progress.note(f"resuming after round {self._run.finished_rounds}")
        else:
            self._folder.settle_metrics(0, {})
        forget_rounds_after(self._folder.path, self._run.finished_rounds)
        self._start_engine()
        self._assembly.runtime.remember_in(None)
        if self._failure is not None:
            raise self._failure
        with self._assembly.model.beneath.removed():
            after = frozen_digest(self._assembly.model.peft_model)
        if after != before:
            msg = "The frozen base model changed during training."
            raise BaseModelMismatch(msg, hint="The adapter is not trustworthy; please report this.")
        return Outcome(
            assembly=self._assembly,
            plan=self._plan,
            folder=self._folder,
            budget=self._budget,
            released=self._run.released,
            rounds=self._run.finished_rounds,
            losses=self._losses,
            status=self._status,
            ledger=self._ledger,
            scope=self._scope,
            note=self._progress.note,
            start=None if self._start is None else self._start.note,
            residual=self._run.residual,
        )

    def started(self, server_round: int, cohort: int) -> None:
        """Pass on to the display."""
        self._progress.started(server_round, cohort)

    def client_done(self, server_round: int, answered: int, cohort: int) -> None:
        """Pass on to the display."""
        self._progress.client_done(server_round, answered, cohort)

    def finished(self, record: Mapping[str, Any]) -> None:
        """Write the metrics line and pass on to the display."""
        self._folder.add_metrics(record)
        self._progress.finished(record)

    def _commit_to_canaries(self) -> None:
        """Write into the ledger how the canaries' coins fell, before anything is trained."""
        run_id, digest = run_name(self._config), self._config.digest()
        canaries = self._assembly.canaries
        if canaries.canaries:
            self._ledger.note(run_id, self._scope, CANARY_COINS, canaries.digest())
        self._ledger.note(run_id, self._scope, FIRST_ROUND, digest)

    def _start_engine(self) -> None:
        """Hand both apps to the engine."""
        server = make_server_app(self._main)
        population = self._assembly.dataset.population
        if self._config.run.engine == "inprocess":
            runtime = self._assembly.runtime
            runtime.remember_in(self._folder.path)
            client_app = make_client_app(lambda _: runtime, simulated=True)
            run_in_process(server, client_app, population=population)
            return
        from simulations.flower_engine import actor_client_app, run_on_flower

        client = actor_client_app(
            self._config.to_json(),
            canonical_json(self._plan.to_json()),
            str(self._base_dir.resolve()),
            str(self._folder.path.resolve()),
        )
        performance = self._config.performance
        run_on_flower(
            server,
            client,
            population=population,
            client_cpus=performance.client_cpus,
            client_gpus=performance.client_gpus,
        )

    def _main(self, grid: Grid, context: Context) -> None:
        """Do what the ServerApp does; an exception is kept for the caller's thread."""
        del context
        try:
            self._federate(grid)
        except Exception as error:  # noqa: BLE001 - carried across the engine's thread, re-raised
            self._failure = error

    def _federate(self, grid: Grid) -> None:
        """Measure, train, measure."""
        run = self._run
        messenger = run.connect(grid)
        clients = run.measured_clients(self._config.evaluation.final_clients, stream="final")
        known = self._folder.read_json(EVALUATION) or {}
        if "before" in known:
            self._losses |= {k: known[k] for k in ("before", BEFORE) if k in known}
        else:
            self._progress.note(f"measuring the base on {len(clients)} clients")
            initial = run.initial_vector
            self._losses["before"] = _named(run.measure(messenger, clients, initial, group="b"))
            self._keep_figures(BEFORE)
            self._folder.write_json(EVALUATION, self._losses)
        self._commit_to_canaries()
        self._measure_last_round(messenger)
        try:
            run.train(messenger)
        except PrivacyBudgetExhausted as error:
            self._status = "budget-exhausted"
            self._progress.note(str(error))
        self._assembly.model.beneath.rest_on(run.residual)
        self._progress.note(f"measuring the adapter on {len(clients)} clients")
        released: Vector = run.released
        self._losses["after"] = _named(run.measure(messenger, clients, released, group="a"))
        self._keep_figures(AFTER)
        self._losses |= measure_afterwards(
            self._assembly.runtime,
            released,
            choose=lambda count, stream: run.measured_clients(count, stream=stream),
            note=self._progress.note,
        )
        self._folder.write_json(EVALUATION, self._losses)

    def _keep_figures(self, when: str) -> None:
        """Keep how well the clients' texts were classified, where they are."""
        if self._run.class_figures:
            self._losses[when] = self._run.class_figures

    def _measure_last_round(self, messenger: Messenger) -> None:
        """Measure the last finished round if the process that finished it died before."""
        *_, last = self._folder.metrics() or [{}]
        if not last or last["loss"] is not None:
            return
        self._run.measure_progress(messenger, last)
        if last["loss"] is not None:
            self._folder.settle_metrics(self._run.finished_rounds - 1, {})
            self._folder.add_metrics(last)


def _named(losses: Mapping[int, float]) -> dict[str, float]:
    """Return losses under the clients' names in the run folder."""
    return {f"client-{client}": loss for client, loss in losses.items()}


def _warm_start(
    config: RunConfig, assembly: Assembly, folder: Path, home: Path
) -> WarmStart | None:
    """Read the earlier adapter of a new run, before its folder exists."""
    if config.run.warm_start is None or (folder / IDENTITY).exists():
        return None
    model = assembly.model
    return open_warm_start(
        home / config.run.warm_start, config=config, spec=model.spec, base_digest=model.base.digest
    )


def _identify(
    folder: RunFolder,
    resolved: ResolvedConfig,
    assembly: Assembly,
    plan: PrivacyPlan,
    started: WarmStart | None,
) -> WarmStart | None:
    """Write the identity of a new run, or check that a resumed one is the same.

    Returns:
        What the run goes on from, if anything: as the folder keeps it.

    Raises:
        NotResumable: if the folder belongs to another scenario.
    """
    config = resolved.config
    known = folder.read_json(IDENTITY)
    spec = assembly.model.spec
    if known is None:
        digest = None if started is None else keep_start(folder.path, started)
        identity = describe_run(
            config, plan, spec, assembly.dataset.population, start_digest=digest
        )
        folder.write_json(IDENTITY, identity)
    elif known.get("config_digest") != config.digest():
        msg = "The run folder belongs to another scenario than the one given."
        raise NotResumable(
            msg, hint="Give the same scenario and --set values, or choose another --out."
        )
    if not (folder.path / CONFIG).exists():
        write_text(folder.path / CONFIG, resolved.to_toml())
    if known is None or config.run.warm_start is None:
        return started
    size = spec.size(config.trained_kinds)
    return read_start(folder.path, size=size, digest=known.get(WARM_START))


def _finished(folder: Path, config: RunConfig) -> dict[str, Any] | None:
    """Return the summary of a run that is already complete, else None."""
    run_folder = RunFolder(folder)
    summary = run_folder.read_json(SUMMARY)
    identity = run_folder.read_json(IDENTITY)
    if summary is None or identity is None:
        return None
    if identity.get("config_digest") != config.digest():
        return None
    return summary if summary.get("status") == "completed" else None


def _quiet_environment() -> None:
    """Switch telemetry off before anything that has some is imported."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
