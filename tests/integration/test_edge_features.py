"""What a scenario may ask of a device without torch, held against the client with torch.

One step is exported, of rank 4 and of both factors without a clip; it serves scenarios that train a
part of that.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest

from client.edge.engine import OnnxStep
from client.edge.export import export_step
from client.edge.program import TOKENIZER, StepManifest
from client.edge.runtime import EdgeRuntime
from client.edge.tokens import StepTokenizer
from client.node import LocalSource
from client.participant import Participant
from client.runtime import ClientRuntime
from shared.config import RunConfig
from shared.configfile import resolve
from shared.errors import ConflictingSettings
from shared.link import uplink
from shared.lora import Vector
from shared.scenarioplan import plan_of
from shared.wire import Instruction
from simulations.assemble import load_model
from tests.client.device import scenario
from tests.integration.device import BASE, POPULATION, make_device

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

CENTRAL = "client-central"
RANKS = ("devices.mix={pi5 = 0.5, laptop = 0.5}", "devices.ranks={pi5 = 2}")
ROLORA = ("aggregation.policy=rolora",)
SHARED_A = ("aggregation.policy=fedavg", "aggregation.share=A", "audit.profile=none")
VOTES = ("stopping.on=vote", "stopping.patience=1", "stopping.vote_noise_multiplier=3.0")


def settings(mode: str, *said: str, **privacy: float) -> RunConfig:
    """Return a scenario of one mode whose noise is seeded."""
    tables = scenario(mode, **privacy).model_dump(mode="json", exclude_none=True)
    tables["lora"] |= {"r": 4, "alpha": 8.0, "target_modules": ["q_proj"]}
    source = () if mode == "none" else ("privacy.noise_source=seeded-simulation",)
    return resolve(tables, [*source, "audit.canaries=0", *said], source="test").config


@lru_cache(maxsize=1)
def exported() -> tuple[Path, StepManifest]:
    config = settings(CENTRAL)
    model = load_model(config, base_dir=BASE)
    model.set_trainable("AB")
    folder = Path(mkdtemp(prefix="fedslm-step-")) / "step"
    length = config.data.max_length
    return folder, export_step(model, folder, length=length, max_grad_norm=None).manifest


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_device(tmp_path).folder / "notes.jsonl"


def both(config: RunConfig, path: Path) -> tuple[ClientRuntime, EdgeRuntime]:
    """Return the client with torch and the one without."""
    plan, source = plan_of(config, population=POPULATION), LocalSource(path=path, config=config)
    model = load_model(config, base_dir=path.parent)
    folder, manifest = exported()
    edge = EdgeRuntime(
        config=config,
        plan=plan,
        engine=OnnxStep(folder, manifest),
        tokenizer=StepTokenizer(folder / TOKENIZER, manifest),
        source=source,
    )
    return ClientRuntime(config=config, plan=plan, model=model, source=source), edge


def asked(
    runtime: Participant, number: int, vector: Vector, reference: Vector | None = None
) -> Instruction:
    return Instruction(
        run_id="run",
        server_round=number,
        config_digest=runtime.digests[0],
        plan_digest=runtime.digests[1],
        vector=vector,
        reference=reference,
    )


def random(size: int, seed: int = 3) -> Vector:
    return (0.05 * np.random.default_rng(seed).standard_normal(size)).astype(np.float32)


def close(found: Vector, truth: Vector) -> None:
    assert found.shape == truth.shape
    assert np.linalg.norm(truth) > 0
    assert np.linalg.norm(found - truth) <= 1e-4 * np.linalg.norm(truth)


def updates(pair: Sequence[Participant], client: int, number: int, start: Vector) -> list[Vector]:
    return [one.train(client, asked(one, number, start)).vector for one in pair]


@pytest.mark.parametrize("mode", [CENTRAL, "example"])
def test_devices_of_different_ranks_train_by_one_step(source: Path, mode: str) -> None:
    config = settings(mode, *RANKS)
    pair = both(config, source)
    ranks = pair[0].ranks
    assert ranks is not None
    everybody = random(pair[0].dimension)
    seen = {}
    for client in range(POPULATION):
        r = ranks.of(client)
        if r not in seen:
            truth, found = updates(pair, client, 1, ranks.narrow(everybody, r, "B"))
            close(found, truth)
            seen[r] = truth.size
    assert seen[4] == 2 * seen[2]


def test_a_secure_sum_is_of_the_largest_rank(source: Path) -> None:
    terms = {"honest_fraction": 0.8, "survivor_fraction": 0.9, "min_cohort": 4}
    config = settings("client-distributed", *RANKS, noise_multiplier=4.0, **terms)
    pair = both(config, source)
    assert pair[0].ranks is not None
    client = next(n for n in range(POPULATION) if pair[0].ranks.of(n) == 2)
    start = random(pair[0].ranks.size(2, "B"))
    shares = [one.train_share(client, asked(one, 1, start), cohort=5) for one in pair]
    words = [share.words.astype(np.int64) for share in shares]
    assert words[0].size == words[1].size
    assert np.abs(words[0] - words[1]).max() <= 1
    assert np.mean(words[0] != words[1]) < 0.01


@pytest.mark.parametrize("mode", [CENTRAL, "example"])
def test_rounds_may_train_one_factor_after_the_other(source: Path, mode: str) -> None:
    """The norm that is clipped is that of the factor of the round alone."""
    pair = both(settings(mode, *ROLORA), source)
    start = random(pair[0].dimension)
    sizes = []
    for number in (1, 2, 3):
        truth, found = updates(pair, 0, number, start)
        close(found, truth)
        sizes.append(truth.size)
    assert sizes[0] == sizes[2] == pair[0].spec.size("B")
    assert sizes[1] == pair[0].spec.size("A")


@pytest.mark.parametrize("mode", [CENTRAL, "example"])
def test_a_device_keeps_its_own_b(source: Path, tmp_path: Path, mode: str) -> None:
    """Its B grows from round to round, and outlives the process."""
    config = settings(mode, *SHARED_A)
    pair = both(config, source)
    pair[1].remember_in(tmp_path / "state")
    start = pair[0].spec.flatten(pair[0]._start, "A")
    for number in (1, 2):
        truth, found = updates(pair, 0, number, start)
        assert truth.size == pair[0].spec.size("A")
        close(found, truth)
    again = both(config, source)[1]
    again.remember_in(tmp_path / "state")
    truth, found = updates((pair[0], again), 0, 3, start)
    close(found, truth)
    forgetful = both(config, source)[1]
    [other] = updates((forgetful,), 0, 3, start)
    assert np.linalg.norm(other - truth) > 0.01 * np.linalg.norm(truth)


def test_a_device_votes_as_one_with_torch(source: Path) -> None:
    config = settings(CENTRAL, *VOTES)
    pair = both(config, source)
    zero = np.zeros(pair[0].dimension, dtype=np.float32)
    spoilt = np.full_like(zero, 3.0)
    _, held_out = pair[0].examples(0)
    assert held_out
    losses = []
    for vector in (zero, spoilt):
        truth, found = (one._held_out_loss(0, held_out, vector) for one in pair)
        assert found == pytest.approx(truth, rel=1e-5)
        losses.append(truth)
    better, worse = (zero, spoilt) if losses[0] < losses[1] else (spoilt, zero)
    for newest, best, vote in ((better, worse, 1), (worse, better, -1), (zero, zero, -1)):
        assert [one.train(0, asked(one, 2, newest, best)).vote for one in pair] == [vote, vote]
    assert np.isnan(pair[1]._held_out_loss(0, [], zero))
    assert pair[1].train(0, asked(pair[1], 1, zero)).vote is None


def test_what_a_link_left_out_is_sent_later(source: Path, tmp_path: Path) -> None:
    """The second update holds what the first did not send, also after a restart."""
    config = settings(CENTRAL, "link.up=topk", "link.keep=0.25")
    code = uplink(config.link)
    pair = both(config, source)
    pair[1].remember_in(tmp_path / "state")
    again = both(config, source)[1]
    again.remember_in(tmp_path / "state")
    start = random(pair[0].dimension)
    assert code is not None
    for number, edge in ((1, pair[1]), (2, again)):
        coded = [one.train(0, asked(one, number, start)).coded for one in (pair[0], edge)]
        sent = [code.decode(found, start.size) for found in coded if found is not None]
        assert np.count_nonzero(sent[0]) <= 0.3 * start.size
        assert np.linalg.norm(sent[1] - sent[0]) <= 1e-3 * np.linalg.norm(sent[0])


def test_a_step_of_a_smaller_rank_serves_devices_of_that_rank_alone(source: Path) -> None:
    """The run is of rank 8, the step and one kind of device of rank 4."""
    config = settings(CENTRAL, "lora.r=8", "lora.alpha=16", RANKS[0], "devices.ranks={pi5 = 4}")
    pair = both(config, source)
    ranks = pair[0].ranks
    assert ranks is not None
    small, large = (next(n for n in range(POPULATION) if ranks.of(n) == r) for r in (4, 8))
    truth, found = updates(pair, small, 1, random(ranks.size(4, "B")))
    close(found, truth)
    with pytest.raises(ConflictingSettings, match="rank 8, its exported step has 4"):
        pair[1].train(large, asked(pair[1], 1, random(ranks.size(8, "B"))))


@pytest.mark.parametrize(
    "said", [("lora.r=8", "lora.alpha=16"), ("lora.alpha=9",), ("data.max_length=16",)]
)
def test_a_step_of_another_rank_scale_or_length_is_refused(
    source: Path, said: tuple[str, ...]
) -> None:
    with pytest.raises(ConflictingSettings, match="exported step"):
        both(settings(CENTRAL, *said), source)
