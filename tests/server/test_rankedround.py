"""Rounds whose clients have different ranks: what each is told, sends, and what becomes of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pytest

from server.aggregation import UniformMean
from server.collect import Traffic, collect_updates
from server.factoroptimizer import make_optimizer
from server.flexlora import ProductMean
from server.messenger import Messenger
from server.rankedround import RankedRound
from server.truncation import truncated
from shared.config import RunConfig
from shared.configfile import resolve
from shared.lora import AdapterSpec, Vector, initial_factors
from shared.mixedranks import MixedRanks, mixed_ranks
from shared.privacy.planning import make_plan
from shared.ranklinks import first_links
from shared.wire import ClientUpdate, Instruction, Records, decode_instruction, encode_update
from tests.adapterkit import small_spec
from tests.integration.scenario import TABLES

R = 4
SPEC = small_spec(r=R)
PLAIN = make_plan(mode="none", rounds=3, population=12)
SETTINGS = (
    "lora.r=4",
    "devices.mix={pi5 = 0.5, laptop = 0.25, jetson = 0.25}",
    "devices.ranks={pi5 = 1, jetson = 2}",
    "privacy.mode=none",
    "server.optimizer=mean",
)


def scenario(policy: str, *settings: str) -> RunConfig:
    said = [*SETTINGS, f"aggregation.policy={policy}", *settings]
    return resolve(TABLES, said, source="test").config


def setting(config: RunConfig, seed: int = 2) -> tuple[MixedRanks, Vector, RankedRound]:
    ranks = mixed_ranks(config, SPEC)
    assert ranks is not None
    kinds = config.trained_kinds
    first = SPEC.flatten(initial_factors(SPEC, 1), kinds)
    noise = np.random.default_rng(seed).standard_normal(first.size).astype(np.float32)
    vector = first + np.float32(0.3) * noise
    told = Instruction(
        run_id="r", server_round=1, config_digest="c", plan_digest="p", vector=vector
    )
    return ranks, vector, RankedRound(config, ranks, first_links(config, first, ranks, r=R), told)


class Clients(Messenger):
    """Clients that add noise of their own to what they were told, or send another length."""

    def __init__(self, ranks: MixedRanks, config: RunConfig, lying: tuple[int, ...] = ()) -> None:
        self.ranks, self.config, self.lying = ranks, config, lying
        self.read: dict[int, Vector] = {}
        self.sent: dict[int, Vector] = {}

    def exchange(
        self, kind: str, contents: Mapping[int, Records], *, group: str
    ) -> Iterator[tuple[int, Records | None]]:
        """Answer every message."""
        first = SPEC.flatten(initial_factors(SPEC, 1), self.config.trained_kinds)
        links = first_links(self.config, first, self.ranks, r=R)
        for node, content in contents.items():
            client = node - 100
            r = self.ranks.of(client)
            self.read[client] = decode_instruction(content, links[r]).vector
            size = self.ranks.size(r, self.config.sent_kinds(1)) + (client in self.lying)
            change = np.random.default_rng(client).standard_normal(size).astype(np.float32)
            self.sent[client] = change
            yield (
                node,
                encode_update(
                    ClientUpdate(server_round=1, config_digest="c", stage="plain", vector=change)
                ),
            )


NODES = {client + 100: client for client in range(12)}


@pytest.mark.parametrize("down", ["fp32", "delta"])
def test_ffa_is_the_mean_of_products_and_narrow_clients_send_fewer_bytes(down: str) -> None:
    config = scenario("ffa", f"link.down={down}")
    ranks, vector, ranked = setting(config)
    clients, mean = Clients(ranks, config, lying=(3,)), UniformMean(SPEC.size("B"))
    refused: dict[int, str] = {}
    answered, traffic = collect_updates(
        clients,
        NODES,
        Instruction(run_id="r", server_round=1, config_digest="c", plan_digest="p", vector=vector),
        aggregator=mean,
        plan=PLAIN,
        on_answer=lambda answered: None,
        on_refused=lambda client, code: refused.update({client: code}),
        ranked=ranked,
    )
    assert answered == 11
    assert list(refused) == [3]
    for client, read in clients.read.items():
        tolerance = 0.0 if down == "fp32" else 0.02
        expected = ranks.narrow(vector, ranks.of(client), "B")
        np.testing.assert_allclose(read, expected, atol=tolerance)
    released = mean.release()
    assert released is not None
    frozen, found = initial_factors(SPEC, 1), SPEC.unflatten(released.vector, "B")
    for a, b in zip(SPEC.of_kind("A"), SPEC.of_kind("B"), strict=True):
        dense = np.zeros((b.shape[0], a.shape[1]))
        for client in set(range(12)) - {3}:
            r = ranks.of(client)
            own = ranks.spec_at(r).unflatten(clients.sent[client], "B")[b.name]
            dense += own @ frozen[a.name][:r] / 11
        np.testing.assert_allclose(found[b.name] @ frozen[a.name], dense, atol=1e-5)
    up = {r: sizes[0] for r, sizes in traffic.by_rank.items()}
    assert up[1] < up[2] < up[4] == traffic.up
    assert up[4] - up[2] == 4 * (ranks.size(4, "B") - ranks.size(2, "B"))
    assert traffic.notes()["bytes_by_rank"]["4"] == {"up": traffic.up, "down": traffic.down}


def test_flexlora_sends_best_truncations_and_takes_the_mean_of_products() -> None:
    config = scenario("flexlora")
    ranks, vector, ranked = setting(config)
    clients = Clients(ranks, config)
    products = ProductMean(SPEC, vector, plan=PLAIN, start_of=ranked.start)
    told = Instruction(
        run_id="r", server_round=1, config_digest="c", plan_digest="p", vector=vector
    )
    collect_updates(
        clients,
        NODES,
        told,
        aggregator=products,
        plan=PLAIN,
        on_answer=lambda answered: None,
        on_next=products.of,
        ranked=ranked,
    )
    released = products.release()
    assert released is not None
    after = SPEC.unflatten(vector + released.vector)
    for layer, (a, b) in enumerate(zip(SPEC.of_kind("A"), SPEC.of_kind("B"), strict=True)):
        mean = np.zeros((b.shape[0], a.shape[1]))
        for client, read in clients.read.items():
            spec = ranks.spec_at(ranks.of(client))
            told_factors = spec.unflatten(read)
            whole = SPEC.unflatten(vector)
            dense = whole[b.name].astype(np.float64) @ whole[a.name]
            _assert_best(told_factors[b.name] @ told_factors[a.name], dense, spec.r)
            own = spec.unflatten(read + clients.sent[client])
            mean += own[b.name].astype(np.float64) @ own[a.name] / 12
        assert np.linalg.matrix_rank(mean) > R, layer
        _assert_best(after[b.name] @ after[a.name], mean, R)


def _assert_best(found: np.ndarray, dense: np.ndarray, r: int) -> None:
    """Compare with the truncated singular value decomposition of the dense matrix."""
    u, values, vt = np.linalg.svd(dense)
    np.testing.assert_allclose(found, (u[:, :r] * values[:r]) @ vt[:r], atol=2e-5)


def test_a_product_of_few_directions_keeps_an_orthonormal_a() -> None:
    narrow: AdapterSpec = mixed_ranks_spec(3)
    start = SPEC.flatten(initial_factors(SPEC, 1))
    found = narrow.unflatten(truncated(SPEC, narrow, start))
    for factor in narrow.of_kind("A"):
        rows = found[factor.name]
        np.testing.assert_allclose(rows @ rows.T, np.eye(3), atol=1e-6)
        np.testing.assert_allclose(rows, SPEC.unflatten(start)[factor.name][:3], atol=1e-6)
    assert not any(found[f.name].any() for f in narrow.of_kind("B"))


def mixed_ranks_spec(r: int) -> AdapterSpec:
    return MixedRanks(SPEC, np.array([r, R])).spec_at(r)


@pytest.mark.parametrize("policy", ["ffa", "rolora"])
def test_holders_divide_a_released_mean_by_constants_of_the_scenario(policy: str) -> None:
    config = scenario(policy, "aggregation.columns=holders")
    ranks = mixed_ranks(config, SPEC)
    assert ranks is not None
    moved = SPEC.size(config.trained_kinds)
    plain, mine = (make_optimizer(c, SPEC) for c in (scenario(policy), config))
    vector = np.zeros(moved, dtype=np.float32)
    for server_round in (1, 2):
        kinds = config.sent_kinds(server_round)
        # All twelve move everything that they hold by one: each held column moves by one.
        ones = [np.ones(ranks.size(ranks.of(i), kinds), dtype=np.float32) for i in range(12)]
        mean = np.mean([ranks.widen(v, ranks.of(i), kinds) for i, v in enumerate(ones)], axis=0)
        found = mine.step(vector, mean, server_round)
        np.testing.assert_allclose(found[found != 0], 1.0, rtol=1e-6)
        assert np.count_nonzero(found) == SPEC.size(kinds)
        assert plain.step(vector, mean, server_round).min() <= 0.25
    assert mine.steps == 2
    assert mine.learning_rate(1) == 1.0
    mine.restore(mine.state(), 2)


def test_traffic_joins_rank_by_rank() -> None:
    one = Traffic(up=5, down=7, by_rank={2: (5, 7)})
    two = Traffic(up=9, down=3, by_rank={2: (1, 9), 4: (9, 3)})
    assert one.plus(two) == Traffic(up=14, down=10, by_rank={2: (6, 16), 4: (9, 3)})
    assert one.most(two) == Traffic(up=9, down=7, by_rank={2: (5, 9), 4: (9, 3)})
    assert Traffic(up=1).notes() == {}
