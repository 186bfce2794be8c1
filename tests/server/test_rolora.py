"""Factors that take turns: what is asked for, moved, kept and taken up again, round by round."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from flwr.app import RecordDict

from server.factoroptimizer import FactorOptimizer, make_optimizer
from server.optimizer import ServerOptimizer
from server.releases import read_all_releases, read_releases
from server.replay import replay_all
from shared.config import RunConfig
from shared.configfile import resolve
from shared.errors import InvalidValue, QuorumNotReached
from shared.lora import coordinates
from shared.policies import POLICIES
from shared.wire import Instruction, encode_failure
from tests.integration.scenario import TABLES
from tests.server.test_strategy import SPEC, run, update

ROLORA = ("aggregation.policy=rolora", "privacy.mode=none", "run.rounds=4")
SIZES = {"B": 100, "A": 12}


def change(client: int, server_round: int) -> np.ndarray:
    kinds = "B" if server_round % 2 else "A"
    rng = np.random.default_rng([client, server_round])
    return rng.standard_normal(SIZES[kinds]) / 10


def answer(client: int, instruction: Instruction) -> RecordDict:
    assert instruction.vector.shape == (112,)
    return update(instruction, change(client, instruction.server_round), stage="plain")


def mean_of(server_round: int) -> np.ndarray:
    sent = np.stack([change(client, server_round) for client in range(12)])
    return np.asarray(sent.astype(np.float32).mean(axis=0), dtype=np.float64)


def test_b_moves_in_odd_rounds_and_a_in_even_ones(tmp_path: Path) -> None:
    """The oracle cuts the vector by names, as PEFT would."""
    federated, observer, _, _ = run(tmp_path, answer, *ROLORA)
    start, end = SPEC.unflatten(federated.initial_vector), SPEC.unflatten(federated.vector)
    for kind, rounds in (("B", (1, 3)), ("A", (2, 4))):
        name = f"m.lora_{kind}.weight"
        moved = np.stack([mean_of(number) for number in rounds]).sum(axis=0)
        np.testing.assert_allclose(
            end[name], start[name] + moved.reshape(start[name].shape), atol=1e-6
        )
    up = [record["bytes_up_per_client"] for record in observer.records]
    assert up[0] == up[2]
    assert up[0] - up[1] == 4 * (SIZES["B"] - SIZES["A"])


@pytest.mark.parametrize("wrong", [100, 112, 11])
def test_an_update_of_another_size_than_the_rounds_factor_is_refused(
    wrong: int, tmp_path: Path
) -> None:
    def lie(client: int, instruction: Instruction) -> RecordDict:
        if client == 0 and instruction.server_round == 2:
            return update(instruction, np.ones(wrong), stage="plain")
        return answer(client, instruction)

    _, observer, _, _ = run(tmp_path, lie, *ROLORA)
    assert [record["answered"] for record in observer.records] == [12, 11, 12, 12]


@pytest.mark.parametrize("optimizer", ["mean", "momentum", "adam"])
def test_a_killed_run_ends_at_the_same_adapter(optimizer: str, tmp_path: Path) -> None:
    failing = True

    def break_once(client: int, instruction: Instruction) -> RecordDict:
        if failing and instruction.server_round == 3:
            return encode_failure("unexpected")
        return answer(client, instruction)

    settings = (*ROLORA, f"server.optimizer={optimizer}", "server.averaging=0.5")
    with pytest.raises(QuorumNotReached):
        run(tmp_path, break_once, *settings)
    failing = False
    resumed, observer, _, _ = run(tmp_path, break_once, *settings)
    assert [record["round"] for record in observer.records] == [3, 4]
    (tmp_path / "whole").mkdir()
    whole, _, _, config = run(tmp_path / "whole", answer, *settings)
    np.testing.assert_array_equal(resumed.vector, whole.vector)
    np.testing.assert_array_equal(resumed.released, whole.released)
    found = read_all_releases(tmp_path, config)
    assert (found["B"].rounds, found["A"].rounds) == ((1, 3), (2, 4))
    again = replay_all(found, config, whole.initial_vector, SPEC, finished=4)
    assert again is not None
    np.testing.assert_allclose(again, whole.released, atol=1e-6)


def test_releases_of_both_factors_are_kept_apart(tmp_path: Path) -> None:
    run(tmp_path, answer, *ROLORA)
    for kinds, mine, others in (("B", (1, 3), (2, 4)), ("A", (2, 4), (1, 3))):
        found = read_releases(tmp_path, kinds=kinds)
        assert found is not None
        assert (found.rounds, found.others) == (mine, others)
        expected = np.stack([mean_of(number) for number in mine])
        np.testing.assert_allclose(found.values, expected, atol=1e-6)


def test_the_ledger_is_charged_alike_in_every_round(tmp_path: Path) -> None:
    """Epsilon after each round is that of the same mechanism under ffa."""

    def clipped(client: int, instruction: Instruction) -> RecordDict:
        del client
        sent = config_of(policy).sent_kinds(instruction.server_round)
        return update(instruction, np.zeros(SIZES[sent]))

    spent = {}
    for policy in ("ffa", "rolora"):
        folder = tmp_path / policy
        folder.mkdir()
        overrides = (f"aggregation.policy={policy}", "run.rounds=4")
        _, observer, _, _ = run(folder, clipped, *overrides)
        spent[policy] = [record["epsilon"] for record in observer.records]
    assert spent["rolora"] == spent["ffa"]
    assert len(set(spent["ffa"])) == 4


def config_of(policy: str) -> RunConfig:
    return resolve(TABLES, [f"aggregation.policy={policy}"], source="test").config


def test_moments_of_one_factor_do_not_see_rounds_of_the_other() -> None:
    settings = ["aggregation.policy=rolora", "server.optimizer=adam", "run.rounds=4"]
    config = resolve(TABLES, settings, source="test").config
    both = make_optimizer(config, SPEC)
    assert isinstance(both, FactorOptimizer)
    alone = {k: ServerOptimizer(config.server, rounds=4, size=n) for k, n in SIZES.items()}
    vector = np.zeros(112, dtype=np.float32)
    parts = {kind: np.zeros(size, dtype=np.float32) for kind, size in SIZES.items()}
    for number in range(1, 5):
        kind = "B" if number % 2 else "A"
        vector = both.step(vector, mean_of(number), number)
        parts[kind] = alone[kind].step(parts[kind], mean_of(number), number)
    for kind, part in parts.items():
        np.testing.assert_array_equal(vector[coordinates(SPEC, kind, within="AB")], part)
    with pytest.raises(InvalidValue, match="steps"):
        make_optimizer(config, SPEC).restore(both.state(), 3)
    with pytest.raises(InvalidValue, match="optimizer state"):
        make_optimizer(config, SPEC).restore({}, 0)


def test_rounds_count_from_one() -> None:
    assert [POLICIES["rolora"].sent(number) for number in (1, 2, 3)] == ["B", "A", "B"]
    with pytest.raises(InvalidValue, match="server_round=0"):
        POLICIES["rolora"].sent(0)
