"""The round loop: sample, charge, train, release, step, checkpoint, commit.

The order is the guarantee's: the ledger is charged durably before a message leaves; the checkpoint
is the release; the charge is committed after it. Killed anywhere, a run goes on from its last
finished round and has counted at least what was released.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from flwr.serverapp import Grid

from server.budget import RunBudget
from server.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from server.cohort import cohort_source, cyclic_cohort, sample_cohort, within_quota
from server.collect import Traffic
from server.factoroptimizer import make_optimizer
from server.lostrounds import LOST, Begun, begin_round, begun_round
from server.messenger import MEASURE, Messenger
from server.presence import Presence
from server.release import Release, Releaser
from server.releases import ReleaseRecorder
from server.settling import Settler
from server.setup import NodeDirectory, RoundObserver, RunSetup
from server.stopping import Judge, StoppingWatch
from server.timing import refuse_in_fleet
from shared.classtally import figures
from shared.errors import ProtocolError
from shared.lora import Vector, initial_factors
from shared.residual import Residual
from shared.seeding import data_rng
from shared.wire import Instruction, decode_measurement, encode_instruction

logger = logging.getLogger("fedslm.server")

Losses = dict[int, float]
Record = dict[str, Any]


class FederatedRun:
    """Runs the rounds of one scenario over a Flower grid.

    Args:
        setup: what the run is.
        budget: charges the ledger.
        observer: is told about progress.
        directory: of a fleet, where enrolment says which client a node speaks for; without one
            each node is asked.
        judge: the loss on public text, where the scenario stops by it.
    """

    def __init__(
        self,
        setup: RunSetup,
        *,
        budget: RunBudget,
        observer: RoundObserver,
        directory: NodeDirectory | None = None,
        judge: Judge | None = None,
    ) -> None:
        if directory is not None:
            refuse_in_fleet(setup.config)
        self._setup = setup
        self.presence = Presence(setup.population, directory=directory)
        self._config = setup.config
        self._budget = budget
        self._observer = observer
        self._kinds = setup.config.trained_kinds
        size = setup.spec.size(self._kinds)
        self._size = size
        self._optimizer = make_optimizer(setup.config, setup.spec)
        factors = initial_factors(setup.spec, setup.config.adapter_seed)
        own = setup.spec.flatten(factors, self._kinds)
        self.initial_vector: Vector = own if setup.start is None else setup.start
        self._watch = StoppingWatch(setup, start=self.initial_vector, judge=judge)
        self.vector: Vector = self.initial_vector
        self._average = np.zeros(size, dtype=np.float64)
        self._averaged = 0
        self.finished_rounds = 0
        self.last_record: Record = {}
        self.class_figures: dict[str, float] = {}
        self._settler = Settler(budget)
        self._releaser = Releaser(
            setup,
            start=own,
            observer=observer,
            nodes_of=self.presence.by_node,
            on_refused=self.presence.flag,
            keep=lambda: self._checkpoint(self.finished_rounds, self.last_record),
        )
        self._recorder = ReleaseRecorder(setup)
        self._config_digest, self._plan_digest = setup.config.digest(), setup.plan.digest()

    @property
    def setup(self) -> RunSetup:
        """What the run is."""
        return self._setup

    @property
    def ledger_head(self) -> str:
        """The hash at the end of the ledger's chain."""
        return self._budget.head()

    @property
    def released(self) -> Vector:
        """The adapter to release: the average of the last rounds where the scenario asks so."""
        if self._averaged == 0:
            return self.vector
        return (self._average / self._averaged).astype(np.float32)

    @property
    def residual(self) -> Residual | None:
        """What lies beneath the adapter to release; None but under policy ``fedex``."""
        return self._releaser.residual

    def restore(self) -> bool:
        """Take up the folder's checkpoint; return whether there was one.

        Raises:
            NotResumable: if it is damaged or belongs to another scenario.
        """
        found = read_checkpoint(self._setup.folder, config_digest=self._config_digest)
        if found is None:
            return False
        self.vector = np.array(found.vector, dtype=np.float32)
        self._average = np.array(found.average, dtype=np.float64)
        self._averaged = found.averaged
        self._optimizer.restore(found.optimizer, found.optimizer_steps)
        self.finished_rounds = found.server_round
        self.last_record = dict(found.record)
        self._releaser.resume_time(self.last_record)
        if self._releaser.asynchronous is not None:
            self._releaser.asynchronous.restore(found.asynchronous, found.waiting)
        self._watch.restore(found.reference)
        self._releaser.residual = found.residual
        if found.clip is not None:
            self._releaser.clip = found.clip
        return True

    def connect(self, grid: Grid) -> Messenger:
        """Learn which node speaks for which client; see :class:`server.presence.Presence`.

        Raises:
            QuorumNotReached: if no node introduces itself.
        """
        return self.presence.connect(grid, deadline_seconds=self._config.server.deadline_seconds)

    def train(self, messenger: Messenger) -> None:
        """Run all rounds that are not finished yet.

        Raises:
            PrivacyBudgetExhausted: before a round that would pass the cap; every finished round
                is intact.
            QuorumNotReached: if too few clients of a round answered.
        """
        self._recorder.begin(self.finished_rounds)
        if self.presence.in_fleet:
            self._count_lost_rounds()
        self._releaser.begin(self.finished_rounds)
        for server_round in range(self.finished_rounds + 1, self._config.run.rounds + 1):
            if self._watch.stops():
                logger.info("stopped after round %d", self.finished_rounds)
                break
            self._round(messenger, server_round)
        self._releaser.end()

    def measure(
        self, messenger: Messenger, clients: Sequence[int], vector: Vector, *, group: str
    ) -> Losses:
        """Return held-out losses of some clients under an adapter; a simulation's instrument."""
        content = encode_instruction(self._instruction(0, vector))
        by_node = self.presence.by_node(clients)
        losses: Losses = {}
        counts: list[tuple[int, ...]] = []
        contents = dict.fromkeys(by_node, content)
        for node, reply in messenger.exchange(MEASURE, contents, group=group):
            if reply is None:
                continue
            try:
                measurement = decode_measurement(reply)
            except ProtocolError as error:
                logger.warning("client %d was not measured: %s", by_node[node], error.message)
                continue
            if measurement.tokens > 0 and math.isfinite(measurement.loss):
                losses[by_node[node]] = measurement.loss
                counts.append(measurement.classes)
        self.class_figures = figures(counts, labels=len(self._config.task.labels))
        return dict(sorted(losses.items()))

    def measured_clients(self, count: int, *, stream: str) -> list[int]:
        """Choose which clients are measured; the same ones for a seed."""
        size = self._setup.population
        if count >= size:
            return list(range(size))
        rng = data_rng(self._config.run.seed, "measured", stream)
        return sorted(int(i) for i in rng.choice(size, size=count, replace=False))

    def _round(self, messenger: Messenger, server_round: int) -> None:
        """Run one round from the coins to the commit."""
        self.presence.await_share(self._config.server.quorum)
        began = time.monotonic()
        cohort = self._cohort(server_round)
        if self.presence.in_fleet:
            begun = Begun(server_round=server_round, cohort=len(cohort))
            begin_round(self._setup.folder, begun)
        charge = self._budget.reserve(server_round, cohort)
        self._observer.started(server_round, len(cohort))
        clip = self._releaser.clip
        instruction = self._instruction(server_round, self.vector)
        release = self._releaser.release(messenger, instruction, cohort)
        if release.aggregate is not None:
            step = release.aggregate.vector
            self._recorder.keep(server_round, step)
            self.vector = self._optimizer.step(self.vector, step, server_round)
        self._fold_average(server_round)
        record = self._record(server_round, len(cohort), release)
        record["clipping_norm"] = self._setup.plan.clipping_norm if clip is None else clip
        record |= self._watch.look(
            server_round, release, judged=instruction.vector, released=self.released
        )
        record["seconds"] = round(time.monotonic() - began, 3)
        # Before the new adapter is sent to anybody, measured clients included: a round that is
        # repeated under correlated noise gets the same noise, perhaps on another sum.
        self._checkpoint(server_round, record)
        self._recorder.publish(server_round)
        self._settler.settle(charge, release, server_round)
        self.measure_progress(messenger, record)
        record["seconds"] = round(time.monotonic() - began, 3)
        self.finished_rounds = server_round
        self.last_record = record
        self._observer.finished(record)

    def _count_lost_rounds(self) -> None:
        """Count what was begun and not finished as aborted; devices are not asked it again.

        A round that died before its charge is not lost but begins again: nobody was asked, and
        under correlated noise the charge of the first round is that of the run.
        """
        begun = begun_round(self._setup.folder)
        if begun is None:
            return
        lost = Release(aggregate=None, traffic=Traffic(), failure=LOST)
        for server_round in range(self.finished_rounds + 1, begun.server_round + 1):
            if not self._budget.may_have_left(server_round):
                return
            logger.warning("round %d was %s; it is not done again", server_round, LOST)
            self._fold_average(server_round)
            record = self._record(server_round, begun.cohort, lost)
            record |= {"clipping_norm": self._releaser.clip or self._setup.plan.clipping_norm}
            record["seconds"] = 0.0
            self._checkpoint(server_round, record)
            self.finished_rounds = server_round
            self.last_record = record
            self._observer.finished(record)

    def _cohort(self, server_round: int) -> list[int]:
        """Choose the round's clients as the plan says."""
        config, plan = self._config, self._setup.plan
        size = self._setup.population
        if self._releaser.asynchronous is not None:
            taken, there = self._budget.participations(), self.presence.clients
            return self._releaser.asynchronous.begin(server_round, taken, there)
        if plan.correlated is not None:
            groups = plan.correlated.min_separation
            return cyclic_cohort(size, groups, server_round, config.run.seed)
        cohort = config.asked_cohort
        probability = 1.0 if cohort is None else min(1.0, cohort / size)
        timer = self._releaser.timer if plan.mode in {"none", "example"} else None
        if timer is not None:
            # Nothing is claimed for sampling there: the cohort is drawn among who is there. Under
            # a client mode those who are away were sampled, and are dropouts.
            probability = min(1.0, probability / timer.available_share)
        kind = "seeded-simulation" if plan.mode == "none" else plan.noise_source
        source = cohort_source(seed=config.run.seed, server_round=server_round, kind=kind)
        chosen = sample_cohort(size, probability, source)
        if timer is not None:
            chosen = timer.present(chosen)
        if plan.mode != "example" or plan.max_participations is None:
            return chosen
        return within_quota(chosen, self._budget.participations(), plan.max_participations)

    def _fold_average(self, server_round: int) -> None:
        """Add the round's adapter to the average of the last rounds, if there is one."""
        rounds = self._config.run.rounds
        if server_round > rounds - math.floor(self._config.server.averaging * rounds):
            self._average += self.vector
            self._averaged += 1

    def measure_progress(self, messenger: Messenger, record: Record) -> None:
        """Write into a round's metrics line what the adapter comes to on a few clients.

        Only in the rounds in which the scenario asks so. The checkpoint does not wait for it: a
        run that goes on measures the round again that was killed while it was measured.

        Args:
            messenger: reaches the clients.
            record: of the last finished round; loss and perplexity stay None where nobody answers.
        """
        if self.presence.in_fleet:
            # Held-out losses do not leave a device, whoever asks.
            return
        evaluation, server_round = self._config.evaluation, int(record["round"])
        last = server_round == self._config.run.rounds
        if not last and server_round % evaluation.every != 0:
            return
        clients = self.measured_clients(evaluation.clients, stream="progress")
        losses = self.measure(messenger, clients, self.released, group=f"m{server_round}")
        if losses:
            loss = sum(losses.values()) / len(losses)
            said = self.class_figures or {"perplexity": math.exp(loss)}
            record |= {"loss": loss, **said}

    def _record(self, server_round: int, cohort: int, release: Release) -> Record:
        """Make the metrics line of a round, not measured yet."""
        spent = self._budget.spent()
        private = self._setup.plan.mode != "none"
        uneven = {"noise_multiplier": self._setup.plan.charged_noise_of(server_round)}
        return {
            **self._releaser.time_notes(),
            **(uneven if self._setup.plan.uneven else {}),
            "round": server_round,
            "loss": None,
            "perplexity": None,
            "epsilon": spent.epsilon if private else None,
            "epsilon_rdp": spent.epsilon_rdp if private else None,
            "delta": self._setup.plan.delta if private else None,
            "cap": self._setup.plan.cap if private else None,
            "releases": spent.releases,
            "cohort": cohort,
            "answered": 0 if release.aggregate is None else release.aggregate.count,
            "shortened": None if release.aggregate is None else release.aggregate.shortened,
            "aborted": release.failure,
            "learning_rate": self._optimizer.learning_rate(server_round),
            "bytes_up_per_client": release.traffic.up,
            "bytes_down_per_client": release.traffic.down,
            **release.traffic.notes(),
        }

    def _checkpoint(self, server_round: int, record: Record) -> None:
        """Write the release of a round."""
        rounds = self._releaser.asynchronous
        write_checkpoint(
            self._setup.folder,
            Checkpoint(
                server_round=server_round,
                config_digest=self._config_digest,
                vector=self.vector,
                average=self._average,
                averaged=self._averaged,
                optimizer=self._optimizer.state(),
                optimizer_steps=self._optimizer.steps,
                record=record,
                clip=self._releaser.clip,
                reference=self._watch.state,
                residual=self.residual,
                asynchronous={} if rounds is None else rounds.state(),
                waiting={} if rounds is None else rounds.tensors(),
            ),
        )

    def _instruction(self, server_round: int, vector: Vector) -> Instruction:
        """Make what clients are told; the adapter is coded where they train from it."""
        vector, coded = self._releaser.coded(server_round, vector)
        return Instruction(
            run_id=self._setup.run_id,
            server_round=server_round,
            config_digest=self._config_digest,
            plan_digest=self._plan_digest,
            vector=vector,
            clipping_norm=self._releaser.clip,
            anchor=self._budget.signed_head(),
            coded=coded,
            reference=self._watch.reference(server_round),
            residual=self.residual,
        )
