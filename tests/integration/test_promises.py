"""What the README promises of the quickstart, measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.integration.promises import (
    NOISE_OF_ONE_RUN,
    QUICKSTART,
    SOME_CLIENTS,
    UNAUDITED,
    attack,
    processor_seconds,
    simulate,
)


def audits(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {finding["audit"]: finding for finding in report["findings"]}


def planted_secrets_are_found_without_privacy_and_not_with_it(
    private: dict[str, Any], twin: dict[str, Any]
) -> None:
    found, hidden = audits(twin), audits(private["audit"])
    rare = found["membership"]["evidence"]["derived"]["sets"]["rare-token"]["scores"]["loss"]
    assert found["exposure"]["value"] >= 6
    assert found["exposure"]["detected"]
    assert rare["auc"] >= 0.8
    assert found["membership"]["detected"]
    for name in ("one-run", "exposure", "membership", "extraction"):
        assert not hidden[name]["detected"]
        assert hidden[name]["positive_control"]
    for name in ("ledger", "mechanism", "client-canary"):
        assert hidden[name]["verdict"] == "consistent"
    assert hidden["exposure"]["value"] <= 3
    assert private["audit"]["verdict"] != "violation"


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_quickstart_keeps_its_promises(tmp_path: Path) -> None:
    before = processor_seconds()
    private = simulate(tmp_path / "private", "quickstart")
    used = processor_seconds() - before
    # Of the twin, what it learned and the two attacks that must succeed are all that is read.
    twin_of = ("quickstart", "--set", "privacy.mode=none")
    twin = simulate(tmp_path / "twin", *twin_of, *UNAUDITED, *SOME_CLIENTS)
    privacy = private["privacy"]
    assert private["population"] >= 1000
    assert private["rounds"] >= 20
    assert private["quantization"] != "none"
    assert privacy["mode"] == "client-central"
    assert privacy["epsilon"] <= 8.0
    assert privacy["delta"] <= private["population"] ** -1.1
    assert private["perplexity_after"] <= 0.6 * private["perplexity_before"]
    gained = private["loss_before"] - private["loss_after"]
    possible = twin["loss_before"] - twin["loss_after"]
    assert gained >= 0.75 * possible
    assert abs(private["loss_after"] - QUICKSTART) <= NOISE_OF_ONE_RUN
    assert used <= 300
    assert private["peak_rss_bytes"] <= 3 * 2**30
    attacked = attack(tmp_path / "twin", "exposure", "membership")
    planted_secrets_are_found_without_privacy_and_not_with_it(private, attacked)
