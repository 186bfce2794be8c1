"""The same product in other factors: exact, charged nothing, and taken up again bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from flwr.app import RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from server.factoroptimizer import make_optimizer
from server.refactor import change_of_basis, refactored, turned
from server.releases import read_all_releases
from server.replay import replay_all
from shared.configfile import resolve
from shared.errors import ConflictingSettings, QuorumNotReached
from shared.lora import AdapterSpec, Factor
from shared.wire import Instruction, encode_failure
from tests.integration.scenario import TABLES
from tests.server.test_strategy import SPEC, run, update

EVERY = "aggregation.refactor_every=2"
PLAIN = ("privacy.mode=none", "run.rounds=4", "server.optimizer=momentum", "audit.canaries=0")
A, B = "m.lora_A.weight", "m.lora_B.weight"


def dense(vector: np.ndarray) -> np.ndarray:
    found = SPEC.unflatten(vector)
    product: np.ndarray = found[B].astype(np.float64) @ found[A].astype(np.float64)
    return product


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    r=st.integers(1, 5),
    d_out=st.integers(1, 9),
    wider=st.integers(0, 6),
    rank=st.integers(0, 5),
)
def test_the_product_is_unchanged_and_a_orthonormal(
    seed: int, r: int, d_out: int, wider: int, rank: int
) -> None:
    """The oracle is the dense product and its own decomposition."""
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((r, r + wider))
    b = rng.standard_normal((d_out, min(rank, r))) @ rng.standard_normal((min(rank, r), r))
    new_b, new_a, turn = change_of_basis(b, a)
    scale = 1 + np.abs(b @ a).max()
    np.testing.assert_allclose(new_b @ new_a, b @ a, atol=1e-9 * scale)
    np.testing.assert_allclose(new_a @ new_a.T, np.eye(r), atol=1e-9)
    lengths = np.zeros(r)
    values = np.linalg.svd(b @ a, compute_uv=False)[:r]
    lengths[: values.size] = values
    np.testing.assert_allclose(np.linalg.norm(new_b, axis=0), lengths, atol=1e-7 * scale)
    # A gradient G of the product is G A^T for B, in either basis.
    g = rng.standard_normal((d_out, r + wider))
    np.testing.assert_allclose(g @ new_a.T, g @ a.T @ turn, atol=1e-6 * (1 + np.abs(turn).max()))


def test_a_head_is_left_alone() -> None:
    spec = AdapterSpec(
        factors=(
            Factor(name="h.weight", kind="B", shape=(2, 6)),
            *SPEC.factors,
        ),
        r=2,
        lora_alpha=4.0,
        target_modules=("m",),
        head="h",
    )
    rng = np.random.default_rng(0)
    factors = spec.unflatten(rng.standard_normal(spec.size()))
    found, turns = refactored(spec, factors)
    np.testing.assert_array_equal(found["h.weight"], factors["h.weight"])
    assert list(turns) == [B]
    first = rng.standard_normal(spec.size("B"))
    state = turned(spec, {"B.first": first}, turns)
    np.testing.assert_array_equal(state["B.first"][:12], first[:12])
    assert not np.allclose(state["B.first"][12:], first[12:])


def test_turned_moments() -> None:
    rng = np.random.default_rng(1)
    angle = 0.3
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    second = rng.uniform(size=100)
    state = turned(SPEC, {"B.second": second}, {B: turn})["B.second"].reshape(50, 2)
    assert (state > 0).all()
    np.testing.assert_allclose(state.sum(axis=1), second.reshape(50, 2).sum(axis=1))


def answer(client: int, instruction: Instruction) -> RecordDict:
    """Answer with the gradient of a quadratic in the product: the basis cannot matter to it."""
    assert instruction.vector.shape == (112,)
    target = np.random.default_rng(client).standard_normal((50, 6))
    found = SPEC.unflatten(instruction.vector)
    gradient = (target - dense(instruction.vector)) @ found[A].astype(np.float64).T
    return update(instruction, 0.1 * gradient.reshape(-1), stage="plain")


def whole(client: int, instruction: Instruction) -> RecordDict:
    """Answer as without a new basis: there the server sends B alone, beside the seed's A."""
    from shared.lora import initial_factors

    a = initial_factors(SPEC, 5)[A].astype(np.float64)
    b = instruction.vector.reshape(50, 2).astype(np.float64)
    target = np.random.default_rng(client).standard_normal((50, 6))
    return update(instruction, (0.1 * (target - b @ a) @ a.T).reshape(-1), stage="plain")


@pytest.mark.parametrize("optimizer", ["mean", "momentum"])
def test_sgd_and_momentum_do_not_see_the_basis(optimizer: str, tmp_path: Path) -> None:
    """FedSVD is FFA with an orthonormal A where steps are linear in gradients."""
    said = f"server.optimizer={optimizer}"
    (tmp_path / "plain").mkdir()
    turned_run, observer, _, _ = run(tmp_path, answer, *PLAIN, said, EVERY)
    plain, _, _, _ = run(tmp_path / "plain", whole, *PLAIN, said)
    from shared.lora import initial_factors

    expected = plain.vector.reshape(50, 2) @ initial_factors(SPEC, 5)[A]
    np.testing.assert_allclose(dense(turned_run.vector), expected, atol=1e-5)
    found = SPEC.unflatten(turned_run.vector)
    assert not np.allclose(found[A], initial_factors(SPEC, 5)[A], atol=0.01)
    np.testing.assert_allclose(found[A] @ found[A].T, np.eye(2), atol=1e-6)
    assert all(record["bytes_up_per_client"] < 1000 for record in observer.records)


@pytest.mark.parametrize("optimizer", ["mean", "momentum", "adam"])
def test_a_killed_run_ends_at_the_same_adapter(optimizer: str, tmp_path: Path) -> None:
    failing = True

    def break_once(client: int, instruction: Instruction) -> RecordDict:
        if failing and instruction.server_round == 3:
            return encode_failure("unexpected")
        return answer(client, instruction)

    said = (*PLAIN, f"server.optimizer={optimizer}", EVERY)
    with pytest.raises(QuorumNotReached):
        run(tmp_path, break_once, *said)
    failing = False
    resumed, _, _, _ = run(tmp_path, break_once, *said)
    (tmp_path / "whole").mkdir()
    once, _, _, config = run(tmp_path / "whole", answer, *said)
    np.testing.assert_array_equal(resumed.vector, once.vector)
    found = read_all_releases(tmp_path, config)
    again = replay_all(found, config, once.initial_vector, SPEC, finished=4)
    assert again is not None
    np.testing.assert_allclose(again, once.released, atol=1e-5)


def test_the_ledger_is_charged_as_without_it(tmp_path: Path) -> None:
    def clipped(client: int, instruction: Instruction) -> RecordDict:
        del client
        return update(instruction, np.zeros(100))

    spent = []
    for name, extra in (("plain", ()), ("turned", (EVERY,))):
        (tmp_path / name).mkdir()
        _, observer, _, _ = run(tmp_path / name, clipped, "run.rounds=4", *extra)
        spent.append([record["epsilon"] for record in observer.records])
    assert spent[0] == spent[1]


def test_state_names_are_those_of_b() -> None:
    config = resolve(TABLES, [EVERY, "server.optimizer=adam"], source="test").config
    assert sorted(make_optimizer(config, SPEC).state()) == ["B.first", "B.second", "B.steps"]


CLOCK = (
    "buffer.size=2",
    "buffer.concurrency=4",
    "clock.shares=[1.0]",
    "clock.step_seconds=[1.0]",
    "clock.upload=[1e6]",
    "clock.download=[1e6]",
)


@pytest.mark.parametrize(
    "said",
    [
        ("privacy.mechanism=correlated",),
        ("server.averaging=0.5",),
        (*CLOCK, "privacy.mode=example"),
        ("link.up=topk", "privacy.mode=none"),
        ("audit.client_canaries=2",),
        ("devices.mix={pi5 = 0.5, laptop = 0.5}", "devices.ranks={pi5 = 1}"),
        ("aggregation.policy=rolora",),
        ("aggregation.policy=fedavg",),
    ],
)
def test_what_has_no_meaning_in_a_basis_that_changes_is_refused(said: tuple[str, ...]) -> None:
    resolve(TABLES, said, source="test")
    with pytest.raises(ConflictingSettings) as caught:
        resolve(TABLES, [*said, EVERY], source="test")
    assert [p.key for p in caught.value.problems] == ["aggregation.refactor_every"]


@pytest.mark.parametrize(
    "said",
    [
        ("privacy.mode=example",),
        ("privacy.clipping_quantile=0.5",),
        ("link.up=int8", "link.down=delta"),
        ("model.quantization=nf4",),
    ],
)
def test_what_the_basis_does_not_touch_is_allowed(said: tuple[str, ...]) -> None:
    config = resolve(TABLES, [*said, EVERY], source="test").config
    assert (config.trained_kinds, config.sent_kinds(1)) == ("AB", "B")
