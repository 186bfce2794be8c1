"""The native client in secure sums with Python's coordinator and clients, phase by phase."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from client.native.secvectors import unamplified_skellam_epsilon
from shared.config import RunConfig
from shared.errors import ConflictingSettings, PolicyRefused
from shared.privacy.distributed import to_signed
from shared.privacy.noise import NoiseSource
from shared.privacy.plan import PrivacyPlan
from shared.privacy.secagg import ClientSession, Coordinator, Identity, Roster, Upload
from shared.roster import read_roster
from shared.scenarioplan import plan_of
from shared.secureterms import round_terms
from shared.wire import Phase, PhaseCall, decode_phase_reply, encode_phase_call
from tests.client.device import CLIENT, SECURE
from tests.client.native.build import Native, binary, lines_of, make_native, records_of, run
from tests.integration.device import POPULATION, Round, make_round
from tests.integration.edgestep import edge_scenario

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SAID = {
    "noise_multiplier": 4.0,
    "honest_fraction": 0.8,
    "survivor_fraction": 0.8,
    "min_cohort": 4,
    "clipping_norm": 1e-3,
}
PEERS = {n: Identity.from_private_bytes(bytes([n]) * 32) for n in (1, 2, 3, 4)}
KINDS: dict[str, type[Any]] = {kind.__name__: kind for kind in get_args(Upload)}


def scenario(**said: object) -> RunConfig:
    return edge_scenario("client-distributed", **{**SAID, **said})


def native_of(folder: Path, config: RunConfig, **policy: object) -> Native:
    folder.mkdir(exist_ok=True)
    peers = {n: identity.public_key for n, identity in PEERS.items()}
    return make_native(folder, config, peers=peers, **policy)


def ledger(native: Native) -> list[dict[str, object]]:
    path = native.conf.parent / "state" / "ledger.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@dataclass
class Talk:
    """One process of the binary that is asked one phase after the other."""

    process: subprocess.Popen[str]
    asked: Round

    def call(self, phase: Phase, payload: bytes, *, number: int = 1) -> PhaseCall:
        said = self.asked.instruction
        return PhaseCall(
            phase=phase,
            payload=payload,
            run_id=said.run_id,
            server_round=number,
            config_digest=said.config_digest,
            plan_digest=said.plan_digest,
        )

    def ask(self, phase: Phase, payload: bytes, *, number: int = 1, empty: bool = False) -> bytes:
        """Return the answer's bytes; a refusal is a ValueError with its line."""
        told = self.asked.saying(server_round=number, empty=empty).instruction
        instruction = told if phase == "mask" else None
        records = encode_phase_call(self.call(phase, payload, number=number), instruction)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n".join([*lines_of(records), "", ""]))
        self.process.stdin.flush()
        lines: list[str] = []
        while (line := self.process.stdout.readline()) not in {"\n", ""}:
            lines.append(line.strip())
        if ":" in lines[0]:
            raise ValueError(lines[0])
        return decode_phase_reply(records_of(lines), phase=phase).payload


@contextmanager
def talking(native: Native, config: RunConfig) -> Iterator[Talk]:
    asked = make_round("client-distributed", config=config)
    folder = native.device.folder
    (folder / "scenario.json").write_text(asked.scenario, encoding="utf-8")
    (folder / "plan.json").write_text(asked.plan, encoding="utf-8")
    words = [
        "answer",
        str(native.conf),
        "train",
        *(str(folder / f"{n}.json") for n in ("scenario", "plan")),
    ]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [str(binary()), *words, "-"], stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True
    ) as process:
        yield Talk(process, asked)


@dataclass
class Sum:
    """A round of four Python clients that add nothing, and the native one."""

    talk: Talk
    plan: PrivacyPlan
    roster: Roster
    number: int = 1
    empty: bool = False
    sessions: dict[int, ClientSession] = field(default_factory=dict)

    def run(self, lost: tuple[int, ...] = ()) -> np.ndarray:
        """Return the sum; some clients are lost after they shared."""
        said = self.talk.asked.instruction
        nonce = bytes([self.number]) * 32
        call = self.talk.call("advertise", nonce, number=self.number)
        terms = round_terms(self.plan, call, session=nonce, dimension=said.vector.size)
        server = Coordinator(terms, self.roster)
        server.accept(0, self.ask("Advertisement", "advertise", nonce))
        for n, identity in PEERS.items():
            self.sessions[n], advert = ClientSession.start(terms, n, identity, self.roster)
            server.accept(n, advert)
        listed = server.key_list()
        server.accept(0, self.ask("Shares", "share", listed.to_bytes()))
        for n in PEERS:
            server.accept(n, self.sessions[n].share(listed))
        dealt = server.deal()
        server.accept(0, self.ask("MaskedInput", "mask", dealt[0].to_bytes()))
        left = [n for n in PEERS if n not in lost]
        nothing = np.zeros(said.vector.size, dtype=np.uint32)
        for n in left:
            server.accept(n, self.sessions[n].mask(dealt[n], nothing))
        alive = server.survivor_list()
        server.accept(0, self.ask("Confirmation", "confirm", alive.to_bytes()))
        for n in left:
            server.accept(n, self.sessions[n].confirm(alive))
        signed = server.confirmations()
        server.accept(0, self.ask("Reveals", "reveal", signed.to_bytes()))
        for n in left:
            server.accept(n, self.sessions[n].reveal(signed))
        return server.result().total

    def ask(self, kind: str, phase: Phase, payload: bytes) -> Upload:
        raw = self.talk.ask(phase, payload, number=self.number, empty=self.empty)
        answer: Upload = KINDS[kind].from_bytes(raw)
        return answer


def sum_of(native: Native, talk: Talk, config: RunConfig, **said: object) -> Sum:
    roster = read_roster((native.conf.parent / "roster.json").read_bytes())
    return Sum(talk, plan_of(config, population=POPULATION), roster, **said)  # type: ignore[arg-type]


def test_its_share_is_what_the_plan_says_and_it_is_charged_once(tmp_path: Path) -> None:
    """The unmasked sum less the rehearsal's noise is an update of the grid's norm; or nothing."""
    config = scenario(noise_source="seeded-simulation")
    native = native_of(tmp_path / "one", config, seeded_noise=True)
    plan = plan_of(config, population=POPULATION)
    mechanism, grid = plan.distributed_mechanism, plan.distributed_mechanism.grid
    with talking(native, config) as talk:
        for number, empty, lost in ((1, False, (4,)), (2, True, ())):
            total = sum_of(native, talk, config, number=number, empty=empty).run(lost)
            source = NoiseSource.seeded(config.run.seed, "share", 0, number)
            source.uniform(total.size)  # the coins of the rounding
            noise = source.skellam(mechanism.variance / 5, total.size)
            integers = to_signed((total.astype(np.int64) - noise).astype(np.uint32))
            norm = float(np.linalg.norm(integers.astype(np.float64)))
            assert norm == 0.0 if empty else 0.9 * grid < norm <= grid
        # A round is answered once, whatever the session is called.
        with pytest.raises(ValueError, match="policy-refused: round 1 was answered"):
            sum_of(native, talk, config, number=1).run()
        # What is out of order, or of another round, ends a session.
        with pytest.raises(ValueError, match="secure-aggregation"):
            talk.ask("confirm", b"")
        talk.ask("advertise", bytes(32), number=3)
        with pytest.raises(ValueError, match="another round"):
            talk.ask("share", b"", number=4)
        with pytest.raises(ValueError, match="no session is open"):
            talk.ask("share", b"", number=3)
        with pytest.raises(ValueError, match="not planned"):
            talk.ask("advertise", bytes(32), number=6)
    [line] = ledger(native)
    # Five clients of whom the owner trusts three: of the noise, 0.8 + 0.6 - 1 is hidden.
    assert line["noise_multiplier"] == pytest.approx(4.0 * np.sqrt(0.4))
    assert (line["round"], line["grid"], line["sampling_probability"]) == (1, grid, 1)


def test_noise_of_a_real_run_has_the_variance_of_a_share(tmp_path: Path) -> None:
    """Two-sided at five standard deviations: a false alarm in two million runs."""
    config = scenario()
    native = native_of(tmp_path / "one", config)
    with talking(native, config) as talk:
        one, other = (
            to_signed(sum_of(native, talk, config, number=n, empty=True).run()) for n in (1, 2)
        )
    expected = plan_of(config, population=POPULATION).distributed_mechanism.variance / 5
    found = np.concatenate([one, other]).astype(np.float64) ** 2 / expected
    assert abs(found.mean() - 1.0) < 5 * np.sqrt(2.0 / found.size)
    assert abs(np.corrcoef(one, other)[0, 1]) < 5 / np.sqrt(one.size)
    assert ledger(native) == []


@pytest.mark.parametrize(
    ("limit", "value", "refusal"),
    [
        ("min_cohort", 5, "policy-refused: min_cohort"),
        ("honest_fraction", 0.4, "policy-refused: honest_fraction"),
        ("min_noise_multiplier", 2.6, "policy-refused: min_noise"),
        ("max_epsilon", 1.0, "policy-refused: max_epsilon"),
    ],
)
def test_the_owners_limits_hold_in_secure_sums(
    device: tuple[Native, RunConfig], limit: str, value: object, refusal: str
) -> None:
    native, config = device
    before = native.conf.read_text()
    native.changed(**{limit: value})
    try:
        with talking(native, config) as talk, pytest.raises(ValueError, match=refusal):
            talk.ask("advertise", bytes(32))
    finally:
        native.changed(**dict(line.split(" = ", 1) for line in before.splitlines()))
    assert ledger(native) == []


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> tuple[Native, RunConfig]:
    config = scenario()
    return native_of(tmp_path_factory.mktemp("device"), config), config


def test_a_device_without_keys_for_it_is_not_prepared(tmp_path: Path) -> None:
    with pytest.raises(PolicyRefused):
        make_native(tmp_path, scenario(), secure_aggregation=SECURE)


def test_a_device_makes_its_identity_once_and_for_itself(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    status, told, _ = run("identity", str(tmp_path))
    assert status == 0, told
    key = tmp_path / "identity.key"
    assert key.stat().st_mode & 0o777 == 0o600
    assert told.strip() == Identity.from_private_bytes(key.read_bytes()).public_key.hex()
    assert run("identity", str(tmp_path))[1] == told


def test_its_figure_is_never_below_the_one_of_python() -> None:
    from client.charges import client_charge
    from client.policy import _budget
    from client.policyfile import BudgetSection
    from shared.privacy.events import PrivacyUnit

    budget = _budget(BudgetSection.model_validate(CLIENT), PrivacyUnit.CLIENT)
    assert budget is not None
    for noise in (1.0, 4.0, 30.0):
        plan = plan_of(scenario(noise_multiplier=noise), population=POPULATION)
        for honest in (0.6, 0.8, 1.0):
            charged = client_charge(plan, budget, honest_fraction=honest).plan
            assert charged.distributed is not None
            assert charged.noise_multiplier is not None
            ours = unamplified_skellam_epsilon(
                noise_multiplier=charged.noise_multiplier,
                grid=charged.distributed.grid,
                releases=plan.rounds,
                delta=budget.delta,
            )
            assert charged.epsilon() <= ours
    with pytest.raises(ConflictingSettings):
        client_charge(plan, budget, honest_fraction=0.4)
