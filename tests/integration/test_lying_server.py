"""A server that lies to a device: refused, with the reason on the device and a code on the wire.

The real ClientApp gets real messages. After each lie the device's own ledger holds what it held
before, or more, and never less.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.charges import CLIENT, UNPROTECTED
from client.state import DeviceState
from shared.privacy.accountant import epsilon_of
from shared.privacy.events import GaussianEvent, NeighboringRelation
from shared.privacy.noise import SEEDED
from shared.scenarioplan import plan_of
from tests.client.device import EXAMPLE, scenario
from tests.integration.device import (
    BASE,
    POPULATION,
    Device,
    HonestLedger,
    Round,
    ask,
    code,
    make_device,
    make_round,
    vector_of,
)

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
REFUSED = "policy-refused"
MISMATCH = "schema-mismatch"


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return make_device(tmp_path)


def lie(
    device: Device, asked: Round, expected: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Send a lie: its code comes back, its reason is logged, and nothing is forgotten."""
    before = device.releases()
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="fedslm.client"):
        assert code(ask(device, asked)) == expected
    assert reason in caplog.text
    assert device.releases() >= before


def honest_plan(**changes: Any) -> Round:
    """Return a round whose plan has changes that its scenario does not have."""
    return make_round(plan=replace(plan_of(scenario(), population=POPULATION), **changes))


def test_an_honest_round_is_answered_and_charged(device: Device) -> None:
    reply = ask(device, make_round())
    assert code(reply) == ""
    assert np.isfinite(vector_of(reply)).all()
    assert np.abs(vector_of(reply)).max() > 0
    assert device.releases() == 2.0
    with DeviceState(device.state) as state:
        report = state.verify()
        [spent] = state.spent()
    assert report.open_reservations == 0
    assert spent.delta == EXAMPLE["delta"]


def test_noise_below_the_floor(device: Device, caplog: pytest.LogCaptureFixture) -> None:
    weak = make_round(config=scenario(noise_multiplier=0.3))
    lie(device, weak, REFUSED, "example.noise_multiplier: found 0.3, allowed at least 0.7", caplog)
    assert device.releases() == 0


def test_less_noise_in_the_plan_than_in_the_scenario(
    device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    weaker = honest_plan(noise_multiplier=0.8)
    lie(device, weaker, MISMATCH, "noise_multiplier: the plan says 0.8, the scenario 1.0", caplog)


def test_a_sampling_rate_above_the_limit(device: Device, caplog: pytest.LogCaptureFixture) -> None:
    greedy = make_round(config=scenario(sampling_probability=0.9))
    lie(device, greedy, REFUSED, "example.sampling_probability: found 0.9", caplog)


@pytest.mark.parametrize("rate", [0.1, 0.25])
def test_a_plan_that_claims_another_sampling_rate(
    device: Device, caplog: pytest.LogCaptureFixture, rate: float
) -> None:
    reason = f"sampling_probability: the plan says {rate}, the scenario 0.2"
    lie(device, honest_plan(sampling_probability=rate), MISMATCH, reason, caplog)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"delta": 1e-2}, "delta: the plan says 0.01"),
        ({"max_grad_norm": 50.0}, "max_grad_norm: the plan says 50.0"),
        ({"releases_per_round": 1}, "releases_per_round: the plan says 1"),
        ({"rounds": 4}, "rounds: the plan says 4"),
        ({"max_participations": 1}, "max_participations: the plan says 1"),
    ],
    ids=str,
)
def test_plan_and_scenario_disagree(
    device: Device, caplog: pytest.LogCaptureFixture, changes: dict[str, Any], reason: str
) -> None:
    lie(device, honest_plan(**changes), MISMATCH, reason, caplog)
    assert device.releases() == 0


def test_plan_and_scenario_of_different_modes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    device = make_device(tmp_path, "client-central")
    plan = plan_of(scenario("client-central"), population=POPULATION)
    asked = make_round(config=scenario("none", noise_source=SEEDED), plan=plan)
    lie(device, asked, REFUSED, "aggregation: found 'fedavg'", caplog)
    device = make_device(tmp_path, "client-central", aggregation=["ffa", "fedavg"])
    lie(device, asked, MISMATCH, "mode: the plan says 'client-central'", caplog)


def test_a_clip_that_the_scenario_does_not_say(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    device = make_device(tmp_path, "client-central")
    plan = plan_of(scenario("client-central"), population=POPULATION)
    asked = make_round("client-central", plan=replace(plan, clipping_norm=9.0))
    lie(device, asked, MISMATCH, "clipping_norm: the plan says 9.0, the scenario 0.5", caplog)
    assert device.releases(CLIENT) == 0


@pytest.mark.parametrize("run", ["run", "again"])
def test_the_same_round_replayed(
    device: Device, caplog: pytest.LogCaptureFixture, run: str
) -> None:
    """Under the same name it is refused; under another it is another release, and counted."""
    assert code(ask(device, make_round())) == ""
    if run == "run":
        lie(device, make_round(), REFUSED, "was answered before", caplog)
        other = make_round().saying(vector=make_round().instruction.vector + 1)
        lie(device, other, REFUSED, "was answered before", caplog)
        assert device.releases() == 2.0
    else:
        assert code(ask(device, make_round(run=run))) == ""
        assert device.releases() == 4.0


def test_a_round_repeated_after_a_crash_of_the_server(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Only where the owner allows it, so often, and charged each time."""
    device = make_device(tmp_path, max_repeats=1)
    first, again = ask(device, make_round()), ask(device, make_round())
    assert device.releases() == 4.0
    assert not np.array_equal(vector_of(first), vector_of(again))
    lie(device, make_round(), REFUSED, "was answered before", caplog)
    assert device.releases() == 4.0


def test_a_seeded_round_replayed_with_another_adapter(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The same noise on two adapters would give it away, even in a rehearsal."""
    device = make_device(tmp_path, seeded_noise=True)
    asked = make_round(config=scenario(noise_source=SEEDED))
    first, again = ask(device, asked), ask(device, asked)
    assert np.array_equal(vector_of(first), vector_of(again))
    assert device.releases() == 2.0
    other = asked.saying(vector=asked.instruction.vector + 1)
    lie(device, other, REFUSED, "was answered before", caplog)


def test_noise_that_the_server_knows(device: Device, caplog: pytest.LogCaptureFixture) -> None:
    asked = make_round(config=scenario(noise_source=SEEDED))
    lie(device, asked, REFUSED, "noise_source: found 'seeded-simulation'", caplog)


def test_a_raised_cap(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What the server says about its cap does not matter; a plan beyond the device's is refused."""
    tight = make_device(tmp_path, example={**EXAMPLE, "max_epsilon": 2.0})
    raised = make_round(config=scenario(cap=1000.0))
    lie(tight, raised, REFUSED, "example.epsilon: found", caplog)
    assert tight.releases() == 0


def test_more_runs_than_agreed_on_the_same_data(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each run is within the policy; together they meet the device's cap."""
    plan = plan_of(scenario(), population=POPULATION)
    whole = epsilon_of(
        GaussianEvent(noise_multiplier=1.0, sampling_probability=0.2, count=10),
        delta=1e-5,
        relation=NeighboringRelation.ADD_OR_REMOVE_ONE,
    )
    assert plan.releases_after(5) == 10
    device = make_device(tmp_path, example={**EXAMPLE, "max_epsilon": whole + 1e-6})
    for number in range(5):
        assert code(ask(device, make_round(run=f"run-{number}"))) == ""
    lie(device, make_round(run="run-5"), "budget-exhausted", "cap=", caplog)
    assert device.releases() == 10.0


@pytest.mark.parametrize("number", [0, -1, 6])
def test_a_round_that_is_not_planned(
    device: Device, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    lie(device, make_round(number=number), MISMATCH, "the plan has rounds 1 to 5", caplog)


def test_more_rounds_than_the_owner_allows(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    device = make_device(tmp_path, max_rounds=4)
    lie(device, make_round(), REFUSED, "rounds: found 5, allowed at most 4", caplog)


def test_a_run_that_changes_its_plan(device: Device, caplog: pytest.LogCaptureFixture) -> None:
    assert code(ask(device, make_round())) == ""
    other = make_round(number=2, config=scenario(noise_multiplier=1.2))
    lie(device, other, REFUSED, "came with another plan than before", caplog)


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 99},
        {"noise": "laplace"},
        {"mode": "sometimes"},
        {"invented": 1},
        {"noise_multiplier": "much"},
        {"noise_multiplier": True},
        {"noise_multiplier": 0.0},
        {"rounds": 5.5},
    ],
    ids=str,
)
def test_a_plan_that_this_version_cannot_account_for(
    device: Device, change: dict[str, Any]
) -> None:
    asked = make_round()
    damaged = replace(asked, plan=json.dumps({**json.loads(asked.plan), **change}))
    assert code(ask(device, damaged)) in {MISMATCH, "invalid-value", "unsupported-event"}
    assert device.releases() == 0


def test_an_event_in_the_devices_ledger_that_nobody_knows(
    device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    """A device that cannot count what was spent answers nothing."""
    import sqlite3

    assert code(ask(device, make_round())) == ""
    with sqlite3.connect(device.state / "ledger.sqlite") as db:
        db.execute("DROP TRIGGER entries_keep")
        db.execute("UPDATE entries SET event = replace(event, 'gaussian', 'laplace')")
    db.close()
    caplog.clear()
    assert code(ask(device, make_round(number=2))) in {"ledger-tampered", "unsupported-event"}
    assert "refused [" in caplog.text


def test_another_base_model(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    other = tmp_path / "base"
    shutil.copytree(BASE, other)
    text = (other / "config.json").read_text(encoding="utf-8")
    (other / "config.json").write_text(text + "\n", encoding="utf-8")
    device = replace(make_device(tmp_path), base=other)
    lie(device, make_round(), REFUSED, "base model: found", caplog)


def test_no_privacy_at_all(device: Device, caplog: pytest.LogCaptureFixture) -> None:
    lie(device, make_round("none"), REFUSED, "mode: found 'none', allowed 'example'", caplog)
    assert device.releases(UNPROTECTED) == 0


def test_another_mode_than_agreed(device: Device, caplog: pytest.LogCaptureFixture) -> None:
    lie(device, make_round("client-central"), REFUSED, "mode: found 'client-central'", caplog)


def test_another_relation_than_agreed(device: Device, caplog: pytest.LogCaptureFixture) -> None:
    asked = make_round(config=scenario(neighboring_relation="replace-one"))
    lie(device, asked, REFUSED, "example.neighboring_relation: found 'replace-one'", caplog)


def test_another_aggregation_than_agreed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    device = make_device(tmp_path, aggregation=["fedavg"])
    lie(device, make_round(), REFUSED, "aggregation: found 'ffa', allowed 'fedavg'", caplog)


@pytest.mark.parametrize("field", ["config_digest", "plan_digest"])
def test_digests_of_another_run(
    device: Device, caplog: pytest.LogCaptureFixture, field: str
) -> None:
    word = {"config_digest": "scenario", "plan_digest": "plan"}[field]
    asked = make_round().saying(**{field: "0" * 64})
    lie(device, asked, MISMATCH, f"belongs to another {word} (digest '000000000000'", caplog)
    assert device.releases() == 0


@pytest.mark.parametrize("vector", [np.zeros(3), np.full(3, np.nan)], ids=["short", "nan"])
def test_an_adapter_of_another_shape(device: Device, vector: np.ndarray) -> None:
    asked = make_round().saying(vector=vector.astype(np.float32))
    assert code(ask(device, asked)) == MISMATCH
    assert device.releases() == 0


@pytest.mark.parametrize("run", ["", "x" * 201], ids=["none", "long"])
def test_a_run_without_a_proper_name(
    device: Device, caplog: pytest.LogCaptureFixture, run: str
) -> None:
    lie(device, make_round(run=run), MISMATCH, "names no run in 1 to 200 characters", caplog)


LEDGER = HonestLedger()
BROKEN: dict[str, tuple[Callable[[], Any], str, str]] = {
    "rolled back": (lambda: LEDGER.head(4), "ledger-tampered", "went back from entry 5 to 4"),
    "rewritten": (lambda: LEDGER.head(5, "b"), "ledger-tampered", "two histories at entry 5"),
    "unsigned": (lambda: None, REFUSED, "no signed head"),
    "of another key": (lambda: HonestLedger(b"x" * 32).head(9), REFUSED, "is signed by key"),
    "forged": (
        lambda: replace(LEDGER.head(9), hash="d" * 64),
        "ledger-tampered",
        "does not have a valid signature",
    ),
}


@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.parametrize("pinned", [False, True], ids=["first use", "pinned"])
def test_a_server_ledger_that_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str, pinned: bool
) -> None:
    make, expected, reason = BROKEN[how]
    device = make_device(tmp_path, server_key=LEDGER.key if pinned else None)
    assert code(ask(device, make_round(anchor=LEDGER.head(5)))) == ""
    lie(device, make_round(number=2, anchor=make()), expected, reason, caplog)
    assert device.releases() == 2.0
    assert code(ask(device, make_round(number=2, anchor=LEDGER.head(6)))) == ""


def test_a_pinned_server_must_sign_from_the_first_round(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    device = make_device(tmp_path, server_key=LEDGER.key)
    lie(device, make_round(), REFUSED, "no signed head", caplog)
    stranger = HonestLedger(b"x" * 32).head(1)
    lie(device, make_round(anchor=stranger), REFUSED, "is signed by key", caplog)
    assert device.releases() == 0


def test_the_owner_can_change_the_policy_between_rounds(
    device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    assert code(ask(device, make_round())) == ""
    stricter = make_device(device.folder, example={**EXAMPLE, "min_noise_multiplier": 1.5})
    lie(stricter, make_round(number=2), REFUSED, "allowed at least 1.5", caplog)
    device.policy.unlink()
    lie(device, make_round(number=2), REFUSED, "policy.toml cannot be read", caplog)


def test_clients_are_charged_in_full_whatever_the_server_says_about_sampling(
    tmp_path: Path,
) -> None:
    device = make_device(tmp_path, "client-central")
    assert code(ask(device, make_round("client-central"))) == ""
    with DeviceState(device.state) as state:
        [spent] = state.spent()
    alone = epsilon_of(
        GaussianEvent(noise_multiplier=1.0),
        delta=1e-5,
        relation=NeighboringRelation.ADD_OR_REMOVE_ONE,
    )
    assert (spent.subject, spent.releases) == (CLIENT, 1.0)
    assert spent.epsilon == pytest.approx(alone, rel=0.01)


def test_a_round_that_fails_after_the_charge_stays_charged(device: Device) -> None:
    (device.folder / "notes.jsonl").unlink()
    assert code(ask(device, make_round())) == "data-file-not-found"
    assert device.releases() == 2.0
    with DeviceState(device.state) as state:
        assert state.verify().open_reservations == 1


def test_nothing_of_the_records_is_logged(device: Device, caplog: pytest.LogCaptureFixture) -> None:
    records = (device.folder / "notes.jsonl").read_text(encoding="utf-8")
    words = {word for word in records.split() if len(word) > 9}
    with caplog.at_level(logging.DEBUG):
        ask(device, make_round())
        ask(device, make_round())
    assert "refused [policy-refused]" in caplog.text
    assert not [word for word in words if word in caplog.text]
    assert str(device.folder) not in caplog.text


KILLED = """
import os, signal, sys
from pathlib import Path
import client.runtime
from tests.integration.device import Device, ask, make_round

def killed(self, index):
    os.kill(os.getpid(), signal.SIGKILL)

client.runtime.ClientRuntime.examples = killed
folder = Path(sys.argv[1])
ask(Device(folder=folder, policy=folder / "policy.toml"), make_round())
"""


def test_killed_between_the_charge_and_the_reply(
    device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    """After a restart the charge is there and the round is not answered again."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(device.folder)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert device.releases() == 2.0
    lie(device, make_round(), REFUSED, "was answered before", caplog)
    assert code(ask(device, make_round(number=2))) == ""
    assert device.releases() == 4.0


LOOP = """
import sys
from pathlib import Path
from tests.integration.device import Device, ask, code, make_round

folder = Path(sys.argv[1])
device = Device(folder=folder, policy=folder / "policy.toml")
for run in range(10_000):
    for number in range(1, 6):
        if code(ask(device, make_round(number=number, run=f"{sys.argv[2]}-{run}"))) == "":
            with (folder / "answered").open("a") as stream:
                stream.write("x")
"""


@pytest.mark.timeout(300)
def test_killed_at_random_the_device_never_counts_too_little(tmp_path: Path) -> None:
    """Killed three times at moments drawn from a fixed seed; every answer seen is charged."""
    limits = {**EXAMPLE, "max_epsilon": 1e4}
    device = make_device(tmp_path, example=limits)
    rng = np.random.default_rng(11)
    for attempt in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", LOOP, str(device.folder), str(attempt)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        answered = device.folder / "answered"
        known = answered.stat().st_size if answered.exists() else 0
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if answered.exists() and answered.stat().st_size > known:
                break
            time.sleep(0.02)
        time.sleep(float(rng.uniform(0.0, 0.2)))
        process.kill()
        process.wait()
        seen = answered.stat().st_size
        assert seen > known
        assert device.releases() >= 2 * seen
