"""The real ClientApp of a device in a round with a vote: what its owner allows, what it charges."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from client.charges import CLIENT
from shared.config import RunConfig
from shared.configfile import resolve
from shared.privacy.accountant import epsilon_of
from shared.privacy.events import GaussianEvent, NeighboringRelation
from shared.scenarioplan import plan_of
from shared.wire import ClientUpdate, decode_update
from tests.client.device import scenario
from tests.integration.device import POPULATION, Device, Round, ask, code, make_device, make_round

pytestmark = pytest.mark.slow

CENTRAL = "client-central"


def voting() -> RunConfig:
    """A scenario in which every round after the first has a vote."""
    tables = scenario(CENTRAL).model_dump(mode="json", exclude_none=True)
    said = ["stopping.on=vote", "stopping.patience=1", "stopping.vote_noise_multiplier=3.0"]
    return resolve(tables, said, source="test").config


def asked(number: int, *, compared: float | None) -> Round:
    """Return a round of it; ``compared`` fills the adapter that the vote compares with."""
    known = make_round(CENTRAL, number=number, config=voting())
    if compared is None:
        return known
    reference = np.full_like(known.instruction.vector, compared)
    return known.saying(reference=reference)


def answer(device: Device, said: Round, *, votes: bool) -> ClientUpdate:
    reply = ask(device, said)
    assert code(reply) == ""
    return decode_update(
        reply,
        server_round=said.instruction.server_round,
        config_digest=said.instruction.config_digest,
        stage="clipped",
        size=said.instruction.vector.size,
        votes=votes,
    )


def spent(device: Device) -> float:
    from client.state import DeviceState

    with DeviceState(device.state) as state:
        return next(s.epsilon for s in state.spent() if s.subject == CLIENT)


def test_a_device_votes_where_its_owner_allows_it_and_charges_update_and_vote(
    tmp_path: Path,
) -> None:
    """Zeros against a spoilt adapter are better, against themselves they are not."""
    device = make_device(tmp_path, CENTRAL, votes=True)
    assert answer(device, asked(1, compared=None), votes=False).vote is None
    assert answer(device, asked(2, compared=3.0), votes=True).vote == 1
    assert answer(device, asked(3, compared=0.0), votes=True).vote == -1
    plan = plan_of(voting(), population=POPULATION)
    events = [GaussianEvent(noise_multiplier=1.0, sampling_probability=1.0, count=1)]
    joint = (1.0 + 3.0**-2) ** -0.5
    events.append(GaussianEvent(noise_multiplier=joint, sampling_probability=1.0, count=2))
    expected = epsilon_of(*events, delta=1e-5, relation=NeighboringRelation.ADD_OR_REMOVE_ONE)
    assert spent(device) == pytest.approx(expected, rel=1e-2)
    assert plan.least_noise_multiplier == pytest.approx(joint)


def test_without_the_owners_word_nobody_votes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    device = make_device(tmp_path, CENTRAL)
    with caplog.at_level(logging.WARNING, logger="fedslm.client"):
        assert code(ask(device, asked(1, compared=None))) == "policy-refused"
    assert "votes: found one in 1 rounds, allowed none" in caplog.text
    assert device.releases(CLIENT) == 0.0


@pytest.mark.parametrize(("number", "compared"), [(1, 0.0), (2, None)])
def test_a_server_cannot_ask_for_other_votes_than_the_plans(
    tmp_path: Path, number: int, compared: float | None
) -> None:
    device = make_device(tmp_path, CENTRAL, votes=True)
    assert code(ask(device, asked(number, compared=compared))) == "schema-mismatch"
    assert device.releases(CLIENT) == 0.0


def test_the_joint_noise_must_be_above_the_owners_floor(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The update alone has noise 1; with the vote it is 0.9487."""
    limits = {
        "max_epsilon": 50.0,
        "delta": 1e-5,
        "neighboring_relation": "add-or-remove-one",
        "min_noise_multiplier": 0.95,
    }
    device = make_device(tmp_path, CENTRAL, votes=True, client=limits)
    with caplog.at_level(logging.WARNING, logger="fedslm.client"):
        assert code(ask(device, asked(1, compared=None))) == "policy-refused"
    assert "0.948683" in caplog.text
