"""Every policy with every mode, base and mechanism: what is refused, and that nothing else is."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest

from shared.config import RunConfig
from shared.configfile import resolve
from shared.errors import ConflictingSettings
from shared.policies import POLICIES
from shared.policyrules import policy_warnings
from tests.integration.scenario import TABLES

MODES = ("none", "example", "client-central", "client-distributed")
BASES = ("none", "int8", "int4", "nf4")
DISTRIBUTED = (
    "privacy.honest_fraction=0.9",
    "privacy.survivor_fraction=0.7",
    "privacy.min_cohort=4",
)
PRODUCTS = ["fedex", "flexlora"]
MEAN = "server.optimizer=mean"


def scenario(policy: str, *settings: str) -> RunConfig:
    said = [f"aggregation.policy={policy}", MEAN, *settings]
    return resolve(TABLES, said, source="test").config


def refused(policy: str, *settings: str) -> list[str]:
    """Return the keys that are refused."""
    try:
        scenario(policy, *settings)
    except ConflictingSettings as error:
        return [problem.key for problem in error.problems]
    return []


@pytest.mark.parametrize(
    ("policy", "mode", "base"), list(itertools.product(POLICIES, MODES, BASES))
)
def test_a_client_mode_takes_linear_policies_alone(policy: str, mode: str, base: str) -> None:
    settings = [f"privacy.mode={mode}", f"model.quantization={base}"]
    if mode == "client-distributed":
        settings += DISTRIBUTED
    wanted = ["aggregation.policy"] if policy in PRODUCTS and mode.startswith("client") else []
    wanted += ["model.quantization"] * (policy == "fedex" and base != "none")
    assert refused(policy, *settings) == wanted


@pytest.mark.parametrize(
    ("settings", "key", "policies"),
    [
        (["server.optimizer=adam"], "server.optimizer", PRODUCTS),
        (["server.learning_rate=0.5"], "server.optimizer", PRODUCTS),
        (["server.schedule=linear"], "server.optimizer", PRODUCTS),
        (["server.averaging=0.5"], "server.averaging", PRODUCTS),
        (["aggregation.norm_bound=1.0"], "aggregation.norm_bound", PRODUCTS),
        (["audit.client_canaries=2"], "audit.client_canaries", [*PRODUCTS, "rolora"]),
    ],
)
def test_what_a_policy_gives_no_meaning_to_is_refused(
    settings: Sequence[str], key: str, policies: Sequence[str]
) -> None:
    found = [p for p in POLICIES if key in refused(p, "privacy.mode=none", *settings)]
    assert sorted(found) == sorted(policies)


@pytest.mark.parametrize(
    ("setting", "key"),
    [
        ("privacy.mechanism=correlated", "privacy.mechanism"),
        ("privacy.clipping_quantile=0.5", "privacy.clipping_quantile"),
    ],
)
def test_mechanisms_that_tie_rounds_together_refuse_turns(setting: str, key: str) -> None:
    assert refused("rolora", setting) == [key]
    assert refused("rolora", setting, "privacy.mode=none") == []
    assert refused("ffa", setting) == []


def test_noise_that_is_multiplied_is_warned_about() -> None:
    (text,) = policy_warnings(scenario("flexlora", "privacy.mode=example"))
    assert "product of the noise" in text
    assert policy_warnings(scenario("flexlora", "privacy.mode=none")) == ()
    assert policy_warnings(scenario("fedavg", "privacy.mode=example")) == ()


def test_the_table_says_what_is_sent() -> None:
    """Linear and exact as the algebra of the products has it; all that is sent also moves."""
    assert {p for p, facts in POLICIES.items() if not facts.linear} == {*PRODUCTS}
    assert {p for p, facts in POLICIES.items() if not facts.exact} == {"fedavg"}
    for name, policy in POLICIES.items():
        assert policy.name == name
        assert {*"".join(policy.cycle)} == {*policy.moved}
        # Several factors at once are exact only under a decomposition of the product.
        assert policy.exact == (len(policy.cycle[0]) == 1 or not policy.linear)


SHARE = "aggregation.share=A"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("base", BASES)
def test_clients_may_keep_their_b_in_every_mode(mode: str, base: str) -> None:
    said = [SHARE, f"privacy.mode={mode}", f"model.quantization={base}", "audit.canaries=0"]
    if mode == "client-distributed":
        said += DISTRIBUTED
    config = scenario("fedavg", *said)
    facts = config.policy_facts
    assert (facts.moved, facts.sent(2), facts.trained(2), facts.local) == ("A", "A", "AB", "AB")
    assert (config.trained_kinds, config.sent_kinds(1)) == ("A", "A")
    assert any("B of zeros" in text for text in policy_warnings(config))


@pytest.mark.parametrize("policy", [name for name in POLICIES if name != "fedavg"])
def test_other_policies_share_all_that_they_train(policy: str) -> None:
    assert refused(policy, SHARE, "privacy.mode=none", "audit.canaries=0") == ["aggregation.share"]


@pytest.mark.parametrize(
    "setting",
    [
        "audit.canaries=32",
        "audit.profile=extended",
        "attack.kind=sign-flip",
        "personal.steps=2",
    ],
)
def test_what_would_read_an_adapter_without_b_is_refused(setting: str) -> None:
    plain = ["privacy.mode=none", "audit.canaries=0", setting]
    assert "aggregation.share" not in refused("fedavg", *plain)
    assert refused("fedavg", *plain, SHARE) == ["aggregation.share"]


@pytest.mark.parametrize(
    "setting",
    ["privacy.mechanism=correlated", "privacy.clipping_quantile=0.5", "audit.client_canaries=2"],
)
def test_what_reads_a_alone_is_allowed(setting: str) -> None:
    assert refused("fedavg", SHARE, "audit.canaries=0", setting) == []
