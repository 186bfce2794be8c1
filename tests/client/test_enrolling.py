"""Enrolling a device: whole or not at all, private, and only with the server of the token."""

from __future__ import annotations

import os
import stat
import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization

from client.enrolling import PENDING, enroll, policy_text, renew, renewal_due
from client.home import DeviceHome
from client.policyfile import TEMPLATE, read_policy_file
from client.state import DeviceState
from shared.errors import (
    AlreadyRunning,
    CertificateInvalid,
    ConfigError,
    DataFileNotFound,
    EnrolmentRefused,
    FedSLMError,
    FleetError,
    InvalidValue,
    ServerUnreachable,
    UsageError,
)
from shared.pki import (
    Authority,
    certificate_request,
    new_key,
    public_bytes,
    read_certificate,
    verify_certificate,
)
from tests.client.fleetserver import AUTHORITY, BASE, LEDGER, Answers, token_text

NOW = datetime.now(UTC)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "my.jsonl"
    path.write_text('{"text": "nothing to see"}\n', encoding="utf-8")
    return path


def enrolled(path: Path, data: Path, answers: Answers, number: int = 0) -> DeviceHome:
    text = token_text(number)
    return enroll(text, path=path, data=data, base="/models/base", call=answers).home


def test_a_device_is_enrolled(tmp_path: Path, data: Path) -> None:
    answers = Answers()
    before = os.umask(0)
    try:
        done = enroll(
            token_text(), path=tmp_path / "home", data=data, base="/models/base", call=answers
        )
    finally:
        os.umask(before)
    home = DeviceHome.open(tmp_path / "home")
    assert done.home == home
    assert not done.policy_kept
    assert not done.ledger_kept
    assert home.config.name == "clinic-7"
    assert home.config.client_index == 3
    assert home.config.data == str(data)
    assert home.config.ledger_key == LEDGER
    assert (home.config.fleet, home.config.control) == ("localhost:9092", "localhost:9093")
    facts = verify_certificate(home.certificate.read_bytes(), home.ca.read_bytes(), usage="client")
    assert facts.public_key == public_bytes(home.key.read_bytes()) == answers.keys[0]
    for path in [home.path, *home.path.rglob("*")]:
        expected = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == expected, path.name
    assert not (home.path / PENDING).exists()


def test_the_key_file_serves_flowers_own_nodes_too(tmp_path: Path, data: Path) -> None:
    home = enrolled(tmp_path / "home", data, Answers())
    text = home.key.read_bytes()
    first = serialization.load_pem_private_key(text, None)
    second = serialization.load_ssh_private_key(text, None)
    numbers = [key.private_numbers() for key in (first, second)]  # type: ignore[union-attr]
    assert numbers[0] == numbers[1]


def test_the_policy_allows_nothing_and_knows_the_server(tmp_path: Path, data: Path) -> None:
    home = enrolled(tmp_path / "home", data, Answers())
    text = home.policy.read_text(encoding="utf-8")
    tables = tomllib.loads(text)
    assert tables["modes"] == []
    assert tables["base_models"] == [BASE]
    assert tables["server_key"] == LEDGER
    assert text.count("#") >= TEMPLATE.count("#") - 1
    with pytest.raises(ConfigError):
        read_policy_file(home.policy)


def test_a_server_that_names_nothing_gets_the_template() -> None:
    assert policy_text(base_digest=None, ledger_key=None) == TEMPLATE


def test_a_policy_that_is_there_stays(tmp_path: Path, data: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    (home / "policy.toml").write_text("# mine\n", encoding="utf-8")
    done = enroll(token_text(), path=home, data=data, base="b", call=Answers())
    assert done.policy_kept
    assert done.home.policy.read_text(encoding="utf-8") == "# mine\n"


def test_an_exported_step_is_pinned_when_the_device_is_enrolled(tmp_path: Path, data: Path) -> None:
    step = "c" * 64
    for runtime in ("onnx", "executorch"):
        enroll(
            token_text(),
            path=tmp_path / runtime,
            data=data,
            base="/step",
            step=step,
            runtime=runtime,
            call=Answers(),
        )
        config = DeviceHome.open(tmp_path / runtime).config
        assert (config.runtime, config.base, config.step) == (runtime, "/step", step)


def test_people_need_no_data_and_get_no_policy(tmp_path: Path) -> None:
    done = enroll(
        token_text(), path=tmp_path / "home", data=None, base="b", call=Answers(role="operator")
    )
    assert done.home.config.role == "operator"
    assert done.home.config.client_index is None
    assert not done.home.policy.exists()


def test_a_device_that_trains_needs_data(tmp_path: Path, data: Path) -> None:
    answers = Answers()
    with pytest.raises(UsageError, match="no data was named"):
        enroll(token_text(), path=tmp_path / "home", data=None, base="b", call=answers)
    # The token is used up by now, by this very key; with the data it goes through.
    enrolled(tmp_path / "home", data, answers)
    assert answers.keys[0] == answers.keys[1]


def test_data_must_be_a_file_that_forgetting_leaves_alone(tmp_path: Path) -> None:
    answers = Answers()
    home = tmp_path / "home"
    (home / "state").mkdir(parents=True)
    home.chmod(0o700)
    inside = home / "state" / "my.jsonl"
    inside.touch()
    link = tmp_path / "link.jsonl"
    link.symlink_to(inside)
    for found, error in (
        (tmp_path / "none.jsonl", DataFileNotFound),
        (tmp_path, DataFileNotFound),
        (inside, UsageError),
        (link, UsageError),
    ):
        with pytest.raises(error):
            enrolled(home, found, answers)
    assert answers.keys == []


def test_a_lost_reply_is_made_good_with_the_same_key(tmp_path: Path, data: Path) -> None:
    answers = Answers(lose=2)
    for _ in range(2):
        with pytest.raises(ServerUnreachable):
            enrolled(tmp_path / "home", data, answers)
        with pytest.raises(FleetError, match="no enrolled device"):
            DeviceHome.open(tmp_path / "home")
    enrolled(tmp_path / "home", data, answers)
    assert len(set(answers.keys)) == 1


def test_another_token_gets_another_key(tmp_path: Path, data: Path) -> None:
    answers = Answers(lose=1)
    with pytest.raises(ServerUnreachable):
        enrolled(tmp_path / "home", data, answers)
    home = enrolled(tmp_path / "home", data, answers, number=1)
    assert len(set(answers.keys)) == 2
    assert public_bytes(home.key.read_bytes()) == answers.keys[1]


def test_an_enrolled_folder_is_not_enrolled_again(tmp_path: Path, data: Path) -> None:
    answers = Answers()
    home = enrolled(tmp_path / "home", data, answers)
    before = {file: file.read_bytes() for file in home.path.rglob("*") if file.is_file()}
    for number in (0, 1):
        with pytest.raises(FleetError, match="enrolled already"):
            enrolled(tmp_path / "home", data, answers, number=number)
    assert {f: f.read_bytes() for f in home.path.rglob("*") if f.is_file()} == before
    assert len(answers.keys) == 1


def test_a_device_that_left_comes_back_with_a_new_key(tmp_path: Path, data: Path) -> None:
    answers = Answers()
    home = enrolled(tmp_path / "home", data, answers)
    home.policy.write_text("# mine\n", encoding="utf-8")
    DeviceState(home.state).close()
    home.mark_left()
    answers.lose = 1
    with pytest.raises(ServerUnreachable):
        enrolled(tmp_path / "home", data, answers, number=1)
    done = enroll(token_text(1), path=tmp_path / "home", data=data, base="b", call=answers)
    assert len({*answers.keys}) == 2
    assert answers.keys[1] == answers.keys[2]
    assert done.ledger_kept
    assert done.policy_kept
    assert not done.home.left
    with DeviceState(done.home.state, create=False) as state:
        assert state.verify().entries == 0


def test_nothing_is_enrolled_while_a_node_runs(tmp_path: Path, data: Path) -> None:
    home = enrolled(tmp_path / "home", data, Answers())
    home.mark_left()
    with home.running(), pytest.raises(AlreadyRunning):
        enrolled(tmp_path / "home", data, Answers(), number=1)


OTHER = Authority.create("test fleet", days=3650)


@pytest.mark.parametrize(
    ("answers", "error", "match"),
    [
        (Answers(authority=OTHER), EnrolmentRefused, "not the one that the token names"),
        (Answers(change={"ca": OTHER.certificate}), EnrolmentRefused, "not the one"),
        (Answers(change={"ca": b"rubbish"}), CertificateInvalid, "damaged"),
        (Answers(change={"certificate": b""}), CertificateInvalid, "damaged"),
        (Answers(certified_name="clinic-8"), CertificateInvalid, "another device"),
        (Answers(change={"name": "clinic-8"}), CertificateInvalid, "another device"),
        (Answers(change={"role": "operator"}), CertificateInvalid, "another device"),
        (Answers(change={"fleet_address": "x"}), InvalidValue, "fleet"),
        (Answers(change={"control_address": "a:b"}), InvalidValue, "control"),
        (Answers(change={"client_index": -1}), InvalidValue, "client_index"),
        (Answers(change={"client_index": None}), EnrolmentRefused, "client_index=None"),
        (Answers(role="viewer", change={"client_index": 1}), EnrolmentRefused, "client_index=1"),
        (Answers(change={"ledger_key": '"\nmodes=["none"]'}), InvalidValue, "ledger_key"),
        (Answers(change={"base_digest": '"]\nmodes=["none"]#'}), InvalidValue, "base_digest"),
    ],
)
def test_an_answer_that_is_wrong_enrolls_nobody(
    tmp_path: Path, data: Path, answers: Answers, error: type[FedSLMError], match: str
) -> None:
    with pytest.raises(error, match=match):
        enrolled(tmp_path / "home", data, answers)
    assert {file.name for file in (tmp_path / "home").iterdir()} <= {
        "node.key",
        "node.lock",
        PENDING,
    }


def test_a_certificate_for_another_key_is_refused(tmp_path: Path, data: Path) -> None:
    csr = certificate_request(new_key(), "clinic-7")
    certificate = AUTHORITY.sign_request(csr, name="clinic-7", role="node", days=30)
    with pytest.raises(CertificateInvalid, match="another device, role or key"):
        enrolled(tmp_path / "home", data, Answers(change={"certificate": certificate}))


@pytest.mark.parametrize("days", [-40, 35])
def test_a_clock_that_is_days_off_is_told(tmp_path: Path, data: Path, days: int) -> None:
    now = NOW - timedelta(days=days) if days > 0 else NOW + timedelta(days=-days)
    with pytest.raises(CertificateInvalid, match="the clock of this machine says") as caught:
        enroll(token_text(), path=tmp_path / "home", data=data, base="b", call=Answers(), now=now)
    assert now.strftime("%Y-%m-%d %H:%M:%S UTC") in str(caught.value)
    assert "Set the clock" in str(caught.value)


@pytest.mark.parametrize("text", ["", "fedslm1.", "fedslm1.AAAA", "x" * 5000])
def test_what_is_no_token_makes_no_folder(tmp_path: Path, data: Path, text: str) -> None:
    with pytest.raises(EnrolmentRefused):
        enroll(text, path=tmp_path / "home", data=data, base="b", call=Answers())
    assert not (tmp_path / "home").exists()


def test_a_folder_that_others_may_see_is_refused(tmp_path: Path, data: Path) -> None:
    answers = Answers()
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "file").touch()
    (tmp_path / "home").chmod(0o755)
    with pytest.raises(FleetError, match="mode 755"):
        enrolled(tmp_path / "home", data, answers)
    assert answers.keys == []


def test_a_key_that_others_may_read_is_not_used(tmp_path: Path, data: Path) -> None:
    answers = Answers(lose=1)
    with pytest.raises(ServerUnreachable):
        enrolled(tmp_path / "home", data, answers)
    (tmp_path / "home" / "node.key").chmod(0o644)
    with pytest.raises(FleetError, match="mode 644"):
        enrolled(tmp_path / "home", data, answers)


def test_renewal_replaces_the_certificate_alone(tmp_path: Path, data: Path) -> None:
    home = enrolled(tmp_path / "home", data, Answers())
    old, key = read_certificate(home.certificate.read_bytes()), home.key.read_bytes()
    assert not renewal_due(home, now=NOW + timedelta(days=19))
    assert renewal_due(home, now=NOW + timedelta(days=21))
    later = NOW + timedelta(days=21)

    def sign(csr: bytes) -> bytes:
        return AUTHORITY.sign_request(csr, name="clinic-7", role="node", days=30, now=later)

    until = renew(home, call=sign, now=later)
    new = read_certificate(home.certificate.read_bytes())
    assert new.not_after == until > old.not_after
    assert new.public_key == old.public_key
    assert home.key.read_bytes() == key


@pytest.mark.parametrize(
    "change",
    [{"name": "clinic-8"}, {"role": "operator"}, {"authority": OTHER}, {"key": True}],
)
def test_a_wrong_renewal_is_not_kept(tmp_path: Path, data: Path, change: dict[str, Any]) -> None:
    home = enrolled(tmp_path / "home", data, Answers())
    before = home.certificate.read_bytes()

    def sign(csr: bytes) -> bytes:
        asked = certificate_request(new_key(), "a") if "key" in change else csr
        return change.get("authority", AUTHORITY).sign_request(  # type: ignore[no-any-return]
            asked, name=change.get("name", "clinic-7"), role=change.get("role", "node"), days=30
        )

    with pytest.raises(CertificateInvalid):
        renew(home, call=sign)
    assert home.certificate.read_bytes() == before
