"""The native client at a real control service: enrolled, renewed, and refused, under sanitizers."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from server.enrolling import enroll, issue_token
from server.fleetdb import FleetDatabase
from shared.enrolment import EnrolmentToken, Role
from shared.pki import (
    Authority,
    certificate_request,
    new_key,
    public_bytes,
    read_certificate,
    verify_certificate,
)
from tests.client.native.build import run, sanitized
from tests.server.control.service import Service, make_home, serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module", name="service")
def _service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving(make_home(tmp_path_factory.mktemp("native") / "server")) as running:
        yield running


def token(
    service: Service, name: str, role: Role = "node", fingerprint: str = ""
) -> EnrolmentToken:
    with FleetDatabase(service.home.fleet_database) as fleet:
        made = issue_token(
            fleet,
            name=name,
            role=role,
            address=service.enrol,
            fingerprint=service.home.authority().fingerprint,
            valid_seconds=600,
        )
    return replace(made, fingerprint=fingerprint) if fingerprint else made


def native(*words: str) -> tuple[int, str]:
    status, told, _ = run(*words, client=sanitized())
    return status, told


def test_a_device_is_enrolled_and_renews(service: Service, tmp_path: Path) -> None:
    folder, made = tmp_path / "phone", token(service, "phone-1")
    before = os.umask(0)
    try:
        status, told = native("enroll", made.to_text(), str(folder))
    finally:
        os.umask(before)
    assert status == 0, told
    with FleetDatabase(service.home.fleet_database) as fleet:
        entry = fleet.node_by_name("phone-1")
    assert entry is not None
    assert told == f"enrolled as client {entry.client_index}\n"
    for path in [folder, *folder.rglob("*")]:
        expected = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == expected, path.name
    names = {path.name for path in folder.iterdir()}
    assert names == {"node.key", "node.crt", "ca.crt", "device.conf", "node.lock"}
    said = dict(line.split(" = ") for line in (folder / "device.conf").read_text().splitlines()[1:])
    assert said["client_index"] == str(entry.client_index)
    assert said["control"] == service.address
    key = (folder / "node.key").read_bytes()
    assert key.startswith(b"-----BEGIN PRIVATE KEY-----")
    old = (folder / "node.crt").read_bytes()
    facts = verify_certificate(old, service.home.authority().certificate, usage="client")
    assert facts.public_key == public_bytes(key) == entry.public_key
    assert native("renew", str(folder), "--if-due") == (0, "not due yet\n")
    assert native("renew", str(folder)) == (0, "renewed\n")
    fresh = (folder / "node.crt").read_bytes()
    assert fresh != old
    assert read_certificate(fresh).public_key == facts.public_key
    status, told = native("enroll", made.to_text(), str(folder))
    assert (status, told.split(":")[0]) == (90, "fleet")
    assert native("leave", str(folder)) == (0, "left; the server knows\n")
    assert native("renew", str(folder))[0] == 92
    again = token(service, "phone-1b").to_text()
    assert native("enroll", again, str(folder))[0] == 0
    assert (folder / "node.key").read_bytes() != key
    assert not (folder / "left").exists()


def test_an_attempt_that_was_cut_off_goes_on_with_the_same_key(
    service: Service, tmp_path: Path
) -> None:
    folder, made = tmp_path / "phone", token(service, "phone-3")
    away = replace(made, address="127.0.0.1:1")
    status, told = native("enroll", away.to_text(), str(folder))
    assert (status, told.split(":")[0]) == (94, "server-unreachable")
    key = (folder / "node.key").read_bytes()
    assert not (folder / "device.conf").exists()
    assert native("enroll", made.to_text(), str(folder))[0] == 0
    assert (folder / "node.key").read_bytes() == key
    # The token is used up: another key does not get in with it.
    status, told = native("enroll", made.to_text(), str(tmp_path / "thief"))
    assert (status, told.split(":")[0]) == (91, "enrolment-refused")


def test_it_talks_to_the_server_of_the_token_alone(service: Service, tmp_path: Path) -> None:
    other = Authority.create("another", days=2).fingerprint
    made = token(service, "phone-4", fingerprint=other)
    status, told = native("enroll", made.to_text(), str(tmp_path / "phone"))
    assert (status, told.split(":")[0]) == (91, "enrolment-refused")
    with FleetDatabase(service.home.fleet_database) as fleet:
        assert fleet.node_by_name("phone-4") is None


def test_what_is_no_token_of_a_device_is_refused(service: Service, tmp_path: Path) -> None:
    whole = token(service, "phone-5").to_text()
    for text in ("", "fedslm1.", whole[:-1], whole + "A", "x" + whole, "fedslm1.e30", "a" * 5000):
        status, told = native("enroll", text, str(tmp_path / "none"))
        assert (status, told.split(":")[0]) == (91, "enrolment-refused"), text
        assert whole not in told
    assert not (tmp_path / "none").exists()
    person = token(service, "ward", role="viewer").to_text()
    assert native("enroll", person, str(tmp_path / "person"))[0] == 91
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o755)
    assert native("enroll", whole, str(shared))[0] == 90


def test_a_certificate_that_is_not_ours_is_not_kept(service: Service, tmp_path: Path) -> None:
    folder = tmp_path / "phone"
    assert native("enroll", token(service, "phone-6").to_text(), str(folder))[0] == 0
    whole = (folder / "node.crt").read_bytes()
    key, authority = new_key(), service.home.authority()
    with FleetDatabase(service.home.fleet_database) as fleet:
        secret = token(service, "phone-7").secret
        other = enroll(
            fleet, authority, secret=secret, csr=certificate_request(key, "phone-7"), days=9
        ).certificate
    for wrong in (other, b"", whole[:200]):
        (folder / "node.crt").write_bytes(wrong)
        status, told = native("renew", str(folder))
        assert (status, told.split(":")[0]) == (93, "certificate-invalid")
    (folder / "node.crt").write_bytes(whole)
    with FleetDatabase(service.home.fleet_database) as fleet:
        fleet.revoke("phone-6", "lost")
    status, told = native("renew", str(folder))
    assert (status, told.split(":")[0]) == (92, "access-denied")
    assert (folder / "node.crt").read_bytes() == whole
