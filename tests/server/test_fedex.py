"""Means and what they leave over: exact against dense products, bounded, and taken up again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from flwr.app import RecordDict

from server.checkpoint import read_checkpoint
from server.fedex import ExactMean
from shared.configfile import resolve
from shared.errors import ConflictingSettings, QuorumNotReached, SchemaMismatch
from shared.lora import AdapterSpec, Factor
from shared.residual import Residual
from shared.scenarioplan import plan_of
from shared.wire import Instruction, encode_failure
from tests.integration.scenario import TABLES
from tests.server.test_strategy import SPEC, run, update

FEDEX = ("aggregation.policy=fedex", "server.optimizer=mean", "privacy.mode=none", "run.rounds=5")
A, B = "m.lora_A.weight", "m.lora_B.weight"


def effective(spec: AdapterSpec, vector: np.ndarray, residual: Residual | None) -> np.ndarray:
    """Return what an adapter and its residual come to, dense and in float64."""
    found = spec.unflatten(vector)
    (pair,) = spec.pairs()
    product = found[pair[1].name].astype(np.float64) @ found[pair[0].name].astype(np.float64)
    if residual is not None:
        ((left, right),) = residual.factors(spec)
        product = product + left.astype(np.float64) @ right.astype(np.float64)
    return np.asarray(product)


def change(client: int, server_round: int) -> np.ndarray:
    return np.random.default_rng([client, server_round]).standard_normal(112).astype(np.float32)


def answer(client: int, instruction: Instruction) -> RecordDict:
    return update(instruction, change(client, instruction.server_round), stage="plain")


def test_every_round_is_the_dense_mean_of_products(tmp_path: Path) -> None:
    """Within 1e-5 of the largest entry, over five rounds of large random changes."""
    seen: dict[int, Instruction] = {}

    def remember(client: int, instruction: Instruction) -> RecordDict:
        seen[instruction.server_round] = instruction
        return answer(client, instruction)

    federated, observer, _, _ = run(tmp_path, remember, *FEDEX)
    told = [(seen[n].vector, seen[n].residual) for n in range(1, 6)]
    told.append((federated.vector, federated.residual))
    assert told[0][1] is None
    expected = effective(SPEC, *told[0])
    for number, (vector, residual) in enumerate(told[:-1], start=1):
        beneath = effective(SPEC, np.zeros_like(vector), residual)
        own = [effective(SPEC, vector + change(c, number), None) for c in range(12)]
        expected = beneath + np.mean(own, axis=0)
        after = told[number]
        np.testing.assert_allclose(
            effective(SPEC, *after), expected, atol=1e-5 * np.abs(expected).max()
        )
        # A and B themselves are the means, as under fedavg.
        mean = np.mean([change(c, number) for c in range(12)], axis=0)
        np.testing.assert_allclose(after[0], vector + mean, atol=1e-5)
    down = [record["bytes_down_per_client"] for record in observer.records]
    assert down[1] > down[0]
    assert federated.residual is not None
    assert federated.residual.ranks == (6,)


def test_the_rank_is_bounded_by_the_layer_and_not_by_clients_or_rounds() -> None:
    plan = plan_of(resolve(TABLES, FEDEX, source="test").config, population=12)
    rng = np.random.default_rng(0)
    vector, residual = rng.standard_normal(112).astype(np.float32), None
    for _ in range(4):
        mean = ExactMean(SPEC, vector, plan=plan, residual=residual)
        for _ in range(40):
            mean.add(rng.standard_normal(112).astype(np.float32))
        found = mean.release()
        assert found is not None
        vector, residual = (vector + found.vector).astype(np.float32), found.residual
        assert residual is not None
        assert residual.ranks[0] <= 6


def test_nothing_is_left_over_where_one_factor_moves_or_one_client_answers() -> None:
    """One local step from B = 0 moves B alone: a centralised step along the mean gradient."""
    plan = plan_of(resolve(TABLES, FEDEX, source="test").config, population=12)
    rng = np.random.default_rng(1)
    start = rng.standard_normal(112).astype(np.float32)
    start[12:] = 0
    steps = rng.standard_normal((7, 112)).astype(np.float32)
    steps[:, :12] = 0
    for rows in (steps, rng.standard_normal((1, 112)).astype(np.float32)):
        mean = ExactMean(SPEC, start, plan=plan)
        for row in rows:
            mean.add(row)
        found = mean.release()
        assert found is not None
        np.testing.assert_allclose(found.vector, rows.astype(np.float64).mean(axis=0), atol=1e-12)
        assert found.residual is not None
        assert found.residual.ranks == (0,)
        np.testing.assert_array_equal(effective(SPEC, 0 * start, found.residual), np.zeros((50, 6)))


def test_bad_updates_count_as_none(tmp_path: Path) -> None:
    def wrong(client: int, instruction: Instruction) -> RecordDict:
        if client == 0:
            return update(instruction, np.full(112, np.nan), stage="plain")
        if client == 1:
            return update(instruction, np.ones(3), stage="plain")
        return update(instruction, np.zeros(112), stage="plain")

    federated, observer, _, _ = run(tmp_path, wrong, *FEDEX)
    assert observer.records[0]["answered"] == 11
    np.testing.assert_array_equal(federated.vector, federated.initial_vector)


def test_a_killed_run_ends_at_the_same_adapter(tmp_path: Path) -> None:
    failing = True

    def break_once(client: int, instruction: Instruction) -> RecordDict:
        if failing and instruction.server_round == 3:
            return encode_failure("unexpected")
        return answer(client, instruction)

    with pytest.raises(QuorumNotReached):
        run(tmp_path, break_once, *FEDEX)
    failing = False
    resumed, _, _, config = run(tmp_path, break_once, *FEDEX)
    (tmp_path / "whole").mkdir()
    whole, _, _, _ = run(tmp_path / "whole", answer, *FEDEX)
    np.testing.assert_array_equal(resumed.vector, whole.vector)
    assert resumed.residual is not None
    assert whole.residual is not None
    np.testing.assert_array_equal(resumed.residual.vector, whole.residual.vector)
    kept = read_checkpoint(tmp_path, config_digest=config.digest())
    assert kept is not None
    assert kept.residual is not None
    assert kept.residual.ranks == whole.residual.ranks
    assert not any("beneath" in name for name in kept.optimizer)


def test_a_client_mode_is_refused_by_the_aggregator_too() -> None:
    plan = plan_of(resolve(TABLES, [], source="test").config, population=12)
    with pytest.raises(ConflictingSettings):
        ExactMean(SPEC, np.zeros(112, dtype=np.float32), plan=plan)


@pytest.mark.parametrize(
    ("ranks", "size"),
    [((7,), 7 * 56), ((-1,), 0), ((1,), 55), ((1, 1), 112), ((), 0)],
)
def test_a_residual_of_another_adapter_is_refused(ranks: tuple[int, ...], size: int) -> None:
    with pytest.raises(SchemaMismatch):
        Residual(ranks, np.zeros(size, dtype=np.float32)).factors(SPEC)
    with pytest.raises(SchemaMismatch):
        Residual((1,), np.full(56, np.inf, dtype=np.float32)).factors(SPEC)


def test_two_layers_are_cut_in_order() -> None:
    spec = AdapterSpec(
        factors=tuple(
            Factor(name=f"{m}.lora_{k}.weight", kind=k, shape=(2, 4) if k == "A" else (3, 2))
            for m in ("a", "b")
            for k in ("A", "B")
        ),
        r=2,
        lora_alpha=4.0,
        target_modules=("a", "b"),
    )
    rng = np.random.default_rng(2)
    pairs = [(rng.standard_normal((3, k)), rng.standard_normal((k, 4))) for k in (0, 3)]
    found = Residual.of(pairs).factors(spec)
    for (left, right), (other_left, other_right) in zip(pairs, found, strict=True):
        np.testing.assert_allclose(left, other_left, rtol=1e-6)
        np.testing.assert_allclose(right, other_right, rtol=1e-6)
