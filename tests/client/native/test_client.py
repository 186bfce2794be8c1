"""The native client: the vectors, the update of the Python client, and what it refuses."""

from __future__ import annotations

import shutil
import subprocess
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.native.vectors import PATH
from shared.config import RunConfig
from shared.errors import PolicyRefused
from shared.privatefiles import replace_private
from simulations.cli import run as fedslm
from tests.client.device import EXAMPLE
from tests.client.native.build import (
    Native,
    binary,
    exported,
    make_native,
    question,
    run,
    sanitized,
    vector_in,
)
from tests.integration.device import HonestLedger, ask, code, make_round, vector_of
from tests.integration.edgestep import edge_scenario

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

REHEARSAL = edge_scenario("example", noise_source="seeded-simulation")


@pytest.fixture
def native(tmp_path: Path) -> Native:
    return make_native(tmp_path, REHEARSAL, seeded_noise=True)


def ledger(native: Native) -> list[str]:
    path = native.conf.parent / "state" / "ledger.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def test_it_reads_writes_and_computes_the_vectors() -> None:
    status, told, _ = run("vectors", str(PATH))
    assert status == 0, told
    assert int(told.split()[0]) > 100


def test_its_update_is_that_of_python_for_the_same_noise(native: Native) -> None:
    asked = make_round(config=REHEARSAL)
    truth = ask(native.device, asked, node=native.node())
    assert code(truth) == ""
    status, told, found = native.ask(asked)
    assert status == 0, told
    assert found is not None
    assert dict(found["fedslm"]) == dict(truth["fedslm"])
    far = np.linalg.norm(vector_in(found) - vector_of(truth))
    assert np.linalg.norm(vector_of(truth)) > 0
    assert far <= 1e-5 * np.linalg.norm(vector_of(truth))
    [line] = ledger(native)
    assert '"releases":2' in line
    assert '"sampling_probability":0.2' in line
    status, told, _ = native.ask(asked)
    assert (status, told.split(":")[0]) == (24, "policy-refused")
    assert len(ledger(native)) == 1


def test_noise_of_a_real_run_never_repeats(tmp_path: Path) -> None:
    config = edge_scenario("example")
    updates = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        status, told, found = make_native(tmp_path / name, config).ask(make_round(config=config))
        assert status == 0, told
        updates.append(vector_in(found))
    # Two steps of rate 0.5 with noise 1 * 0.5 on a sum that is divided by 2.
    expected = 0.5 * 0.5 / 2 * np.sqrt(2)
    apart = (updates[0] - updates[1]).std() / np.sqrt(2)
    assert apart == pytest.approx(expected, rel=0.2)


def test_a_clipped_update_keeps_its_bound(tmp_path: Path) -> None:
    config = edge_scenario("client-central", clipping_norm=1e-3)
    native = make_native(tmp_path, config)
    status, told, found = native.ask(make_round("client-central", config=config))
    assert status == 0, told
    assert found is not None
    assert found["fedslm"]["stage"] == "clipped"
    norm = np.linalg.norm(vector_in(found).astype(np.float64))
    assert 0.999e-3 <= norm <= 1e-3
    assert '"sampling_probability":1' in ledger(native)[0]


@pytest.mark.parametrize(
    ("limit", "value", "refusal"),
    [
        ("config_digest", "0" * 64, "policy-refused"),
        ("mode", "client-central", "config"),  # beside a limit of mode example
        ("max_rounds", 4, "policy-refused"),
        ("min_noise_multiplier", 1.1, "policy-refused"),
        ("max_sampling_probability", 0.1, "policy-refused"),
        ("max_epsilon", 0.5, "policy-refused"),
        ("rehearsal", "no", "policy-refused"),
        ("step_digest", "0" * 64, "base-model-mismatch"),
        ("factors_digest", "0" * 64, "base-model-mismatch"),
        ("max_epsilon", "nan", "config"),
        ("surprise", 1, "config"),
        ("server_key", "ab" * 32, "policy-refused"),
    ],
)
def test_the_owners_limits_hold(native: Native, limit: str, value: object, refusal: str) -> None:
    native.changed(**{limit: value})
    status, told, _ = native.ask(make_round(config=REHEARSAL))
    assert status != 0
    assert told.split(":")[0] == refusal, told
    assert ledger(native) == []


def test_wrong_instructions_are_refused_before_the_ledger(native: Native) -> None:
    asked = make_round(config=REHEARSAL)
    size = asked.instruction.vector.size
    wrong = {
        "another scenario": asked.saying(config_digest="0" * 64),
        "another plan": asked.saying(plan_digest="0" * 64),
        "no such round": asked.saying(server_round=6),
        "round zero": asked.saying(server_round=0),
        "too short": asked.saying(vector=np.zeros(size - 1, dtype=np.float32)),
        "not finite": asked.saying(vector=np.full(size, np.nan, dtype=np.float32)),
        "empty": asked.saying(empty=True),
    }
    for name, one in wrong.items():
        status, told, _ = native.ask(one)
        assert (status, told.split(":")[0]) == (31, "schema-mismatch"), name
    status, told, _ = native.ask(asked.saying(clipping_norm=0.5))
    assert told.startswith("unsupported-model")
    status, told, _ = native.ask(asked, kind="evaluate")
    assert told.startswith("policy-refused")
    lines = question(asked)
    for broken in (lines[:-1], [lines[1][:64], *lines[1:]], [lines[0], lines[1][:-2], *lines[2:]]):
        status, told, _ = native.ask(asked, lines=broken)
        assert (status, told.split(":")[0]) == (31, "schema-mismatch")
    status, _, found = native.ask(asked, kind="query")
    assert found is not None
    assert dict(found["fedslm"]) == {"protocol": 1, "client": 0}
    assert ledger(native) == []


def test_the_ledger_is_charged_across_runs_and_cannot_be_edited(native: Native) -> None:
    native.changed(max_epsilon=12.0)
    answered = 0
    for number in range(40):
        status, told, _ = native.ask(make_round(config=REHEARSAL, run=f"run-{number}"))
        if status:
            break
        answered += 1
    assert (status, told.split(":")[0]) == (21, "budget-exhausted")
    assert 3 < answered == len(ledger(native))
    path = native.conf.parent / "state" / "ledger.jsonl"
    whole = path.read_text()
    path.write_text(whole.replace('"noise_multiplier":1', '"noise_multiplier":9', 1))
    assert run("check", str(native.conf))[0] == 27
    path.write_text(whole + '{"before"')  # cut off before anything was released for it
    status, told, _ = run("check", str(native.conf))
    assert status == 0
    assert told.startswith(f"answers {answered},")
    assert path.read_text() == whole


def test_a_ledger_that_got_shorter_is_noticed(native: Native) -> None:
    path = native.conf.parent / "state" / "ledger.jsonl"
    end = native.conf.parent / "state.end"
    notes = []
    for number in (1, 2):
        assert native.ask(make_round(config=REHEARSAL, number=number))[0] == 0
        notes.append(end.read_bytes())
    whole = path.read_text()

    def told() -> str:
        return run("check", str(native.conf))[1].split(":")[0].split(",")[0]

    for shorter in ("", whole.splitlines(keepends=True)[0], whole.splitlines(keepends=True)[1]):
        path.write_text(shorter)
        assert told() == "ledger-tampered"
    path.unlink()
    assert told() == "ledger-tampered"
    path.write_text(whole)
    end.unlink()
    assert told() == "ledger-tampered"
    # A crash between a charge and the note of it counts the charge.
    replace_private(end, notes[0])
    assert told() == "answers 2"
    assert end.read_bytes() == notes[1]


def test_the_servers_ledger_must_not_go_back(native: Native) -> None:
    server = HonestLedger()
    native.changed(server_key=server.key)

    def told(number: int, seq: int, name: str = "a") -> str:
        head = server.head(seq, name)
        return native.ask(make_round(config=REHEARSAL, number=number, anchor=head))[1]

    assert told(1, 5) == ""
    assert told(2, 4).startswith("ledger-tampered")
    assert told(2, 5, "b").startswith("ledger-tampered")
    assert told(2, 6) == ""
    other = HonestLedger(b"o" * 32).head(7)
    refused = native.ask(make_round(config=REHEARSAL, number=3, anchor=other))[1]
    assert refused.startswith("policy-refused")


def test_a_device_that_may_not_work_or_left_does_not_join(native: Native) -> None:
    later = datetime.now().astimezone() + timedelta(hours=6)
    native.changed(hours=f"{later:%H:%M}-{later + timedelta(hours=1):%H:%M}")
    # Conditions that end while it works end the work, and what was charged stays charged.
    status, told, _ = native.ask(make_round(config=REHEARSAL))
    assert (status, told.split(": ")[:2]) == (24, ["policy-refused", "hours"])
    assert len(ledger(native)) == 1
    command = [str(binary()), "run", str(native.conf)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stdout.readline().startswith("paused hours: it is ")
        running.terminate()
        assert running.wait(30) == 0
        assert running.stdout.read() == ""
    (native.conf.parent / "left").touch()
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == ""


def test_a_policy_that_it_cannot_keep_is_not_prepared(tmp_path: Path) -> None:
    policies: dict[str, dict[str, Any]] = {
        "again": {"max_repeats": 1},
        "relation": {"example": {**EXAMPLE, "neighboring_relation": "replace-one"}},
    }
    for name, policy in policies.items():
        (tmp_path / name).mkdir()
        config: RunConfig = edge_scenario("example")
        with pytest.raises(PolicyRefused):
            make_native(tmp_path / name, config, **policy)


def test_a_device_that_enrolls_by_itself_is_prepared_without_its_key(
    tmp_path: Path, native: Native, capsys: pytest.CaptureFixture[str]
) -> None:
    scenario, out = tmp_path / "scenario.json", tmp_path / "phone"
    asked = make_round(config=REHEARSAL)
    scenario.write_text(asked.scenario, encoding="utf-8")
    words = {
        "--data": native.device.folder / "notes.jsonl",
        "--step": exported()[0],
        "--policy": native.device.policy,
    }
    given = [str(word) for pair in words.items() for word in pair]
    command = ["client", "native", "prepare", str(scenario), str(out)]
    assert fedslm([*command, *given]) == 2  # which client it speaks for is not said
    assert fedslm([*command, *given, "--client-index", "0"]) == 0
    assert capsys.readouterr().out == f"{out / 'client.conf'}\n"
    assert {path.name for path in out.iterdir()} == {
        "client.conf",
        "examples.tok",
        "factors.f32",
        "step",
    }
    for name in ("examples.tok", "factors.f32"):
        assert (out / name).read_bytes() == (native.conf.parent / name).read_bytes()
    # What fedslm-native enroll would have written beside it.
    for name in ("device.conf", "node.key", "ca.crt"):
        shutil.copy(native.conf.parent / name, out / name)
    status, told, found = Native(device=native.device, conf=out / "client.conf").ask(asked)
    assert status == 0, told
    assert found is not None
    (out / "device.conf").write_text("client_index = 1\n", encoding="utf-8")
    assert run("check", str(out / "client.conf"))[0] == 10


def test_a_build_names_all_that_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert fedslm(["client", "native", "build", str(tmp_path / "out")]) == 3
    told = capsys.readouterr().err
    assert "no-such-compiler, make missing" in told
    assert not (tmp_path / "out").exists()


def test_it_holds_under_the_sanitizers() -> None:
    """Addresses and undefined behaviour, over vectors and messages that are cut or flipped."""
    client = sanitized()
    assert run("vectors", str(PATH), client=client)[0] == 0
    status, told, _ = run("hostile", str(PATH), client=client)
    assert status == 0, told
