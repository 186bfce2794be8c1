"""The owner's policy: read whole or not at all, and never more generous than it says."""

from __future__ import annotations

import hashlib
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.adapterrules import AdapterPolicy
from client.policy import ClientPolicy, SecureAggregationLimits
from client.policyfile import TEMPLATE
from shared.configclock import BufferSection
from shared.errors import ConfigError, InvalidValue, PolicyRefused, UnknownKey
from shared.privacy.accountant import epsilon_of
from shared.privacy.events import GaussianEvent, NeighboringRelation, SkellamEvent
from shared.privacy.noise import SEEDED
from shared.privacy.noiseschedule import NoiseSchedule
from shared.privacy.plan import PrivacyPlan
from tests.client.device import (
    BASE,
    CLIENT,
    EXAMPLE,
    SECURE,
    plan,
    policy_tables,
    scenario,
    toml,
    write_policy,
)

SAID = {
    "client-distributed": {"honest_fraction": 0.8, "survivor_fraction": 0.9, "min_cohort": 4},
}
NEIGHBOURS = NeighboringRelation.ADD_OR_REMOVE_ONE


def distributed(**changes: Any) -> PrivacyPlan:
    values = {
        "noise_multiplier": 4.0,
        "honest_fraction": 0.8,
        "survivor_fraction": 0.9,
        "min_cohort": 4,
    }
    return plan("client-distributed", **{**values, **changes})


def load(folder: Path, mode: str = "example", **changes: Any) -> ClientPolicy:
    return ClientPolicy.load(write_policy(folder, mode, **changes))


def reasons(
    policy: ClientPolicy, asked: PrivacyPlan, *, mode: str = "example", base: str | None = BASE
) -> dict[str, str]:
    found = policy.refusals(asked, scenario(mode, **SAID.get(mode, {})), base_digest=base)
    return {reason.limit: reason.found for reason in found}


def test_a_device_without_a_policy_takes_part_in_nothing(tmp_path: Path) -> None:
    with pytest.raises(PolicyRefused, match=r"policy\.toml cannot be read"):
        ClientPolicy.load(tmp_path / "policy.toml")


def test_an_allowed_plan_passes(tmp_path: Path) -> None:
    load(tmp_path).check(plan(), scenario(), base_digest=BASE)
    central = load(tmp_path, "client-central")
    central.check(plan("client-central"), scenario("client-central"), base_digest=BASE)


def test_an_unknown_base_is_no_reason_before_it_is_known(tmp_path: Path) -> None:
    assert reasons(load(tmp_path), plan(), base=None) == {}


@pytest.mark.parametrize(
    ("asked", "limit", "found"),
    [
        ({"noise_multiplier": 0.69}, "example.noise_multiplier", "0.69"),
        ({"sampling_probability": 0.26}, "example.sampling_probability", "0.26"),
        (
            {"neighboring_relation": "replace-one"},
            "example.neighboring_relation",
            "'replace-one'",
        ),
        ({"rounds": 6}, "rounds", "6"),
        ({"noise_source": SEEDED}, "noise_source", "'seeded-simulation', which the server knows"),
    ],
)
def test_each_limit_is_named_with_what_was_found(
    tmp_path: Path, asked: dict[str, Any], limit: str, found: str
) -> None:
    policy = load(tmp_path)
    assert reasons(policy, plan(**asked)) == {limit: found}
    with pytest.raises(PolicyRefused, match=f"{limit}: found {found}, allowed"):
        policy.check(plan(**asked), scenario(), base_digest=BASE)


def test_modes_base_and_aggregation_are_lists(tmp_path: Path) -> None:
    policy = load(tmp_path, aggregation=["fedavg"])
    assert reasons(policy, plan("client-central"), mode="client-central", base="cd" * 32) == {
        "mode": "'client-central'",
        "base model": "cdcdcdcdcdcd",
        "aggregation": "'ffa'",
    }


def test_all_reasons_come_at_once(tmp_path: Path) -> None:
    asked = plan(noise_multiplier=0.5, rounds=9, sampling_probability=0.5)
    with pytest.raises(PolicyRefused) as caught:
        load(tmp_path).check(asked, scenario(), base_digest="00" * 32)
    for word in ("noise_multiplier", "rounds", "sampling_probability", "base model"):
        assert word in caught.value.message


def test_mode_none_must_be_named(tmp_path: Path) -> None:
    assert "mode" in reasons(load(tmp_path), plan("none"), mode="none")
    unprotected = load(tmp_path, "none", aggregation=["fedavg"])
    assert reasons(unprotected, plan("none"), mode="none") == {}
    assert "mode" in reasons(unprotected, plan())


def test_seeded_noise_passes_only_where_the_owner_says_so(tmp_path: Path) -> None:
    asked = plan(noise_source=SEEDED)
    assert reasons(load(tmp_path, seeded_noise=True), asked) == {}


def test_epsilon_is_counted_at_the_devices_own_delta(tmp_path: Path) -> None:
    asked = plan()
    releases = GaussianEvent(noise_multiplier=1.0, sampling_probability=0.2, count=10)
    own = epsilon_of(releases, delta=1e-5, relation=NEIGHBOURS)
    assert own > 1.05 * asked.epsilon()
    tight = {**EXAMPLE, "max_epsilon": (own + asked.epsilon()) / 2}
    assert list(reasons(load(tmp_path, example=tight), asked)) == ["example.epsilon"]
    assert reasons(load(tmp_path, example={**EXAMPLE, "max_epsilon": own}), asked) == {}


def test_a_cap_that_the_server_raised_changes_nothing(tmp_path: Path) -> None:
    tight = load(tmp_path, example={**EXAMPLE, "max_epsilon": 1.0})
    assert "example.epsilon" in reasons(tight, plan(cap=1000.0))
    [charge] = tight.charges(plan(cap=1000.0))
    assert (charge.plan.cap, charge.plan.delta) == (1.0, 1e-5)


def test_clients_are_counted_without_amplification(tmp_path: Path) -> None:
    policy = load(tmp_path, "client-central")
    [charge] = policy.charges(plan("client-central", sampling_probability=0.01))
    assert charge.event == GaussianEvent(noise_multiplier=1.0)
    whole = epsilon_of(
        GaussianEvent(noise_multiplier=1.0, count=5), delta=1e-5, relation=NEIGHBOURS
    )
    assert charge.plan.epsilon() == pytest.approx(whole)


def test_examples_are_counted_with_the_devices_own_sampling(tmp_path: Path) -> None:
    [charge] = load(tmp_path).charges(plan())
    assert charge.event == GaussianEvent(noise_multiplier=1.0, sampling_probability=0.2, count=2)


def test_a_named_budget_must_be_protected_by_every_plan(tmp_path: Path) -> None:
    both = load(tmp_path, "client-central", example=EXAMPLE)
    asked = plan("client-central")
    assert list(reasons(both, asked, mode="client-central")) == ["privacy_unit"]
    with pytest.raises(PolicyRefused, match="other budgets"):
        both.charges(asked)


def test_dp_sgd_beside_a_client_mode_is_charged_twice(tmp_path: Path) -> None:
    both = load(tmp_path, "client-central", example=EXAMPLE)
    asked = replace(plan("client-central"), example=plan())
    assert reasons(both, asked, mode="client-central") == {}
    charges = {charge.subject: charge.event for charge in both.charges(asked)}
    assert charges == {
        "device/client": GaussianEvent(noise_multiplier=1.0),
        "device/example": GaussianEvent(noise_multiplier=1.0, sampling_probability=0.2, count=2),
    }
    weak = replace(asked, example=plan(noise_multiplier=0.1))
    assert list(reasons(both, weak, mode="client-central")) == ["example.noise_multiplier"]
    greedy = replace(asked, example=plan(noise_multiplier=0.71, sampling_probability=0.25))
    tight = load(tmp_path, "client-central", example={**EXAMPLE, "max_epsilon": 1.0})
    assert list(reasons(tight, greedy, mode="client-central")) == ["example.epsilon"]


def test_the_server_is_charged_with_the_noise_that_it_cannot_know(tmp_path: Path) -> None:
    """z sqrt(s + h - 1), un-amplified, with the owner's own belief about the other clients."""
    asked = distributed()
    assert asked.distributed is not None
    grid = asked.distributed.grid
    [charge] = load(tmp_path, "client-distributed").charges(asked)
    assert isinstance(charge.event, SkellamEvent)
    assert charge.event.noise_multiplier == pytest.approx(4.0 * math.sqrt(0.9 + 0.6 - 1))
    assert (charge.event.grid, charge.event.sampling_probability) == (grid, 1.0)
    trusting = {**SECURE, "honest_fraction": 1.0}
    [charge] = load(tmp_path, "client-distributed", secure_aggregation=trusting).charges(asked)
    assert isinstance(charge.event, SkellamEvent)
    assert charge.event.noise_multiplier == pytest.approx(4.0 * math.sqrt(0.9 + 0.8 - 1))
    assert charge.plan.epsilon() == pytest.approx(replace(asked, delta=1e-5).server_epsilon())


def test_the_floor_is_under_the_noise_that_counts(tmp_path: Path) -> None:
    policy = load(tmp_path, "client-distributed", client={**CLIENT, "min_noise_multiplier": 3.0})
    found = reasons(policy, distributed(), mode="client-distributed")
    assert found == {"client.noise_multiplier": "2.82843"}
    doubtful = {**SECURE, "honest_fraction": 0.1}
    policy = load(tmp_path, "client-distributed", secure_aggregation=doubtful)
    found = reasons(policy, distributed(), mode="client-distributed")
    assert found == {"client.noise_multiplier": "none that the server does not know"}


def test_small_cohorts_are_refused(tmp_path: Path) -> None:
    policy = load(tmp_path, "client-distributed")
    assert reasons(policy, distributed(), mode="client-distributed") == {}
    small = distributed(min_cohort=3)
    assert reasons(policy, small, mode="client-distributed") == {"min_cohort": "3"}


def test_correlated_noise_is_charged_once_a_run(tmp_path: Path) -> None:
    asked = plan("client-central", mechanism="correlated", min_separation=2)
    [charge] = load(tmp_path, "client-central").charges(asked)
    assert charge.event == GaussianEvent(noise_multiplier=1.0)
    assert (charge.once, charge.separation, charge.plan.participations) == (True, 2, 3)


def test_protection_that_the_owner_did_not_ask_for_is_not_charged(tmp_path: Path) -> None:
    asked = replace(plan("client-central"), example=plan())
    policy = load(tmp_path, "client-central")
    [charge] = policy.charges(asked)
    assert charge.subject == "device/client"
    with pytest.raises(PolicyRefused, match="other budgets"):
        policy.charges(plan())


def test_absurd_plans_are_refused_before_epsilon_is_computed(tmp_path: Path) -> None:
    asked = replace(plan(), noise_multiplier=1e-9, rounds=10**9, releases_per_round=10**9)
    assert list(reasons(load(tmp_path), asked)) == ["rounds", "example.noise_multiplier"]


@pytest.mark.parametrize("steps", [10**6, 10**12])
def test_absurd_numbers_of_steps_are_refused_quickly(tmp_path: Path, steps: int) -> None:
    policy, asked = load(tmp_path), replace(plan(), releases_per_round=steps)
    began = time.monotonic()
    assert list(reasons(policy, asked)) == ["example.epsilon"]
    assert time.monotonic() - began < 5.0


@given(
    floor=st.floats(0.6, 2.0),
    noise=st.floats(0.6, 2.0),
    most=st.floats(0.05, 0.5),
    chance=st.floats(0.05, 0.5),
)
def test_floor_and_ceiling_decide_exactly(
    floor: float, noise: float, most: float, chance: float
) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        limits = {
            **EXAMPLE,
            "max_epsilon": 1e6,
            "min_noise_multiplier": floor,
            "max_sampling_probability": most,
        }
        policy = load(Path(folder), example=limits)
    draft = replace(plan(), noise_multiplier=noise, sampling_probability=chance, cap=1e6)
    found = [r.limit for r in policy._noise_refusals(draft)]
    assert ("example.noise_multiplier" in found) == (noise < floor)
    assert ("example.sampling_probability" in found) == (chance > most)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"modes": []}, "modes"),
        ({"modes": ["example", "sometimes"]}, "modes"),
        ({"modes": None}, "modes"),
        ({"base_models": []}, "base_models"),
        ({"base_models": ["abc"]}, "base_models"),
        ({"aggregation": None}, "aggregation"),
        ({"max_rounds": 0}, "max_rounds"),
        ({"max_rounds": True}, "max_rounds"),
        ({"max_repeats": -1}, "max_repeats"),
        ({"schema": 2}, "schema"),
        ({"schema": None}, "schema"),
        ({"server_key": "xyz"}, "server_key"),
        ({"seeded_noise": "yes"}, "seeded_noise"),
        ({"example": None}, "example"),
        ({"example": {**EXAMPLE, "max_epsilon": float("nan")}}, "example.max_epsilon"),
        ({"example": {**EXAMPLE, "max_epsilon": float("inf")}}, "example.max_epsilon"),
        ({"example": {**EXAMPLE, "max_epsilon": -1.0}}, "example.max_epsilon"),
        ({"example": {**EXAMPLE, "delta": 0.0}}, "example.delta"),
        ({"example": {**EXAMPLE, "delta": 1.0}}, "example.delta"),
        ({"example": {**EXAMPLE, "neighboring_relation": "both"}}, "example.neighboring_relation"),
        ({"client": CLIENT}, "client"),
        ({"modes": ["example", "none"]}, "modes"),
        ({"modes": ["example", "client-central"], "client": CLIENT}, "modes"),
    ],
    ids=str,
)
def test_a_policy_with_a_problem_allows_nothing(
    tmp_path: Path, changes: dict[str, Any], key: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, **changes)
    assert key in [problem.key for problem in caught.value.problems]


@pytest.mark.parametrize("missing", list(EXAMPLE))
def test_no_limit_of_a_budget_has_a_default(tmp_path: Path, missing: str) -> None:
    limits = {key: value for key, value in EXAMPLE.items() if key != missing}
    with pytest.raises(InvalidValue, match=f"example.{missing}: is missing; it has no default"):
        load(tmp_path, example=limits)


@pytest.mark.parametrize("missing", ["roster", "min_cohort", "honest_fraction"])
def test_distributed_mode_needs_the_roster_and_its_limits(tmp_path: Path, missing: str) -> None:
    with pytest.raises(InvalidValue, match="secure_aggregation: is missing"):
        load(tmp_path, "client-distributed", secure_aggregation=None)
    limits = {key: value for key, value in SECURE.items() if key != missing}
    with pytest.raises(InvalidValue, match=f"secure_aggregation.{missing}: is missing"):
        load(tmp_path, "client-distributed", secure_aggregation=limits)


def test_unknown_keys_get_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(UnknownKey, match="Did you mean 'max_epsilon'"):
        load(tmp_path, example={**EXAMPLE, "max_epsilom": 3.0})
    with pytest.raises(UnknownKey, match="Did you mean 'server_key'"):
        load(tmp_path, server_kei="ab" * 32)


def test_all_problems_of_a_file_come_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has 3 problems") as caught:
        load(tmp_path, modes=[], max_rounds=-1, example={**EXAMPLE, "delta": 2.0})
    keys = {problem.key for problem in caught.value.problems}
    assert keys == {"modes", "max_rounds", "example.delta"}


@pytest.mark.parametrize("contents", [b"modes = [", b"\xff\xfe"])
def test_a_file_that_is_no_toml_is_refused(tmp_path: Path, contents: bytes) -> None:
    path = tmp_path / "policy.toml"
    path.write_bytes(contents)
    with pytest.raises(InvalidValue, match="not valid TOML"):
        ClientPolicy.load(path)


def test_the_template_allows_nothing_until_it_is_edited(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(TEMPLATE, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        ClientPolicy.load(path)
    assert {p.key for p in caught.value.problems} == {"modes", "base_models", "aggregation"}


def test_the_template_with_its_comments_taken_out_is_whole(tmp_path: Path) -> None:
    """What the template shows in comments is what the loader reads."""
    text = TEMPLATE.replace("modes = []", 'modes = ["client-distributed"]')
    text = text.replace("base_models = []", f'base_models = ["{BASE}"]')
    text = text.replace("aggregation = []", 'aggregation = ["ffa"]')
    lines = [line.removeprefix("# ") for line in text.splitlines() if not line.startswith("#  ")]
    prose = ("What", "As it", "Mode", "#", "must")
    kept = [line for line in lines if not line.startswith(prose)]
    whole = "\n".join(kept)
    for name in ("server_key", "audit_key"):
        whole = whole.replace(f'{name} = ""', f'{name} = "{BASE}"')
    path = tmp_path / "policy.toml"
    path.write_text(whole, encoding="utf-8")
    policy = ClientPolicy.load(path)
    assert policy.example is not None
    assert policy.client is not None
    assert policy.secure_aggregation is not None
    assert policy.server_key == BASE
    assert AdapterPolicy.of_owner(path) == AdapterPolicy(
        verdicts=frozenset({"consistent"}), unaudited=True, audit_key=BASE, max_bytes=100_000_000
    )


def test_the_roster_is_the_one_that_the_policy_names(tmp_path: Path) -> None:
    roster = tmp_path / "roster.json"
    policy = load(tmp_path, "client-distributed")
    limits = policy.secure_aggregation
    assert isinstance(limits, SecureAggregationLimits)
    with pytest.raises(PolicyRefused, match="cannot be read"):
        limits.read_roster()
    roster.write_bytes(b"{}")
    assert limits.read_roster() == b"{}"
    digest = hashlib.sha256(b"{}").hexdigest()
    assert replace(limits, roster_digest=digest).read_roster() == b"{}"
    with pytest.raises(PolicyRefused, match="not the one"):
        replace(limits, roster_digest="00" * 32).read_roster()


def test_policies_with_the_same_text_are_equal(tmp_path: Path) -> None:
    """The device keeps its runtime as long as the policy stays what it is."""
    assert load(tmp_path) == load(tmp_path)
    assert hash(load(tmp_path)) == hash(load(tmp_path))
    assert toml(policy_tables()) == toml(policy_tables())


def test_the_floor_holds_for_the_round_with_the_least_noise(tmp_path: Path) -> None:
    """Floor 0.7: noise from 1.0 to 0.8 is enough, from 1.0 to 0.6 is not, from 0.6 up is not."""
    policy = load(tmp_path, max_rounds=5)
    assert not reasons(policy, plan(schedule=NoiseSchedule(final=0.8)))
    found = reasons(policy, plan(schedule=NoiseSchedule(final=0.6)))
    assert found == {"example.noise_multiplier": "0.6"}
    rising = plan(noise_multiplier=0.6, schedule=NoiseSchedule(final=4.0))
    assert reasons(policy, rising) == {"example.noise_multiplier": "0.6"}


@pytest.mark.parametrize("mode", ["example", "client-central"])
def test_a_device_charges_the_noise_of_the_round(mode: str, tmp_path: Path) -> None:
    asked = plan(mode, schedule=NoiseSchedule(final=0.8))
    [charge] = load(tmp_path, mode).charges(asked)
    q, steps = (0.2, 2) if mode == "example" else (1.0, 1)

    def event(noise: float) -> GaussianEvent:
        return GaussianEvent(noise_multiplier=noise, sampling_probability=q, count=steps)

    assert charge.event == event(0.8)
    assert charge.at(1).event == event(1.0)
    assert charge.at(3).event == event(0.9)


def test_rounds_that_wait_for_nobody_are_the_owners_to_allow(tmp_path: Path) -> None:
    late = scenario().model_copy(update={"buffer": BufferSection(size=3, concurrency=4)})
    refused = load(tmp_path).refusals(plan(), late, base_digest=BASE)
    assert [(reason.limit, reason.found) for reason in refused] == [("buffer.size", "3")]
    assert "asynchronous = true" in refused[0].allowed
    assert not load(tmp_path, asynchronous=True).refusals(plan(), late, base_digest=BASE)
    assert not load(tmp_path, asynchronous=True).refusals(plan(), scenario(), base_digest=BASE)
