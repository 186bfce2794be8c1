"""The audit section of a scenario: its defaults and the rules between its settings."""

from __future__ import annotations

import pytest

from shared.config import AuditSection
from shared.configfile import ResolvedConfig, parse_override, resolve
from shared.errors import ConfigError, ConflictingSettings

TABLES = {
    "run": {"name": "t", "rounds": 3},
    "data": {"path": "builtin:clinics"},
    "clients": {"population": 10, "local_steps": 1},
    "privacy": {
        "mode": "client-central",
        "neighboring_relation": "add-or-remove-one",
        "epsilon": 4.0,
        "delta": 1e-3,
        "clipping_norm": 1.0,
    },
}
EXAMPLE = ["privacy.mode=example", "privacy.max_grad_norm=1.0", "privacy.sampling_probability=0.5"]


def scenario(*overrides: str) -> ResolvedConfig:
    return resolve(TABLES, overrides, source="test")


def test_nothing_is_planted_by_default() -> None:
    audit = scenario().config.audit
    assert (audit.canaries, audit.client_canaries, audit.repeats) == (0, 0, 1)
    assert audit.kinds == ("secret", "rare-token")
    assert audit.releases
    assert audit.profile == "smoke"


def test_every_setting_is_part_of_the_digest() -> None:
    changes = [
        "audit.canaries=3",
        'audit.kinds=["secret"]',
        "audit.repeats=2",
        "audit.references=7",
        "audit.client_canaries=2",
        "audit.releases=false",
        "audit.profile=release",
    ]
    assert {parse_override(change)[0].split(".")[1] for change in changes} == set(
        AuditSection.model_fields
    )
    digests = {scenario(change).config.digest() for change in changes}
    assert len(digests | {scenario().config.digest()}) == 8


@pytest.mark.parametrize(
    "wrong",
    [
        "audit.canaries=-1",
        'audit.kinds=["bigram"]',
        'audit.kinds="secret"',
        'audit.kinds=["secret", "secret"]',
        "audit.repeats=0",
        "audit.references=0",
        "audit.client_canaries=1.5",
        "audit.releases=1",
        "audit.profile=quick",
    ],
)
def test_settings_that_mean_nothing(wrong: str) -> None:
    with pytest.raises(ConfigError, match=wrong.partition("=")[0]):
        scenario(wrong)


def test_canaries_of_no_kind() -> None:
    with pytest.raises(ConflictingSettings, match="names no kind"):
        scenario("audit.kinds=[]", "audit.canaries=4")
    assert scenario("audit.kinds=[]").config.audit.kinds == ()


def test_client_canaries_need_a_mode_that_clips_clients_or_none() -> None:
    with pytest.raises(ConflictingSettings, match=r"audit\.client_canaries"):
        scenario(*EXAMPLE, "audit.client_canaries=4")
    for overrides in ((), ("privacy.mode=none",)):
        assert scenario("audit.client_canaries=4", *overrides).config.audit.client_canaries == 4
