"""Whether a server answers: real sockets, real certificates."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from shared.errors import CertificateInvalid, InvalidValue, ServerUnreachable
from shared.pki import Authority
from shared.probe import main, probe
from tests.shared.tlsserver import serving


def test_a_server_answers_with_its_time(tmp_path: Path) -> None:
    with serving(tmp_path / "site") as site:
        answer = probe(site.address, site.ca)
        assert main(["probe", str(site.ca), site.address]) == 0
    assert answer.status == 404
    assert answer.ahead is not None
    assert abs(answer.ahead) < 2.0


@pytest.mark.parametrize(
    ("date", "ahead"),
    [
        ("Thu, 01 Jan 2015 00:00:00 GMT", True),
        ("Fri, 01 Jan 2100 00:00:00 GMT", False),
        ("soon", None),
        ("", None),
    ],
)
def test_a_clock_is_compared(tmp_path: Path, date: str, ahead: bool | None) -> None:
    with serving(tmp_path / "site", date=date) as site:
        found = probe(site.address, site.ca).ahead
    assert (None if found is None else found > 0) is ahead


def test_another_authority_is_refused(tmp_path: Path) -> None:
    other = Authority.create("another", days=30)
    other.save(tmp_path / "other.crt", tmp_path / "other.key")
    with serving(tmp_path / "site") as site:
        for check_time in (True, False):
            with pytest.raises(CertificateInvalid, match="was refused"):
                probe(site.address, tmp_path / "other.crt", check_time=check_time)
        assert main(["probe", str(tmp_path / "other.crt"), site.address]) == 1


def test_another_name_is_refused(tmp_path: Path) -> None:
    with (
        serving(tmp_path / "site", host="elsewhere.example") as site,
        pytest.raises(CertificateInvalid, match="was refused"),
    ):
        probe(site.address, site.ca)


def test_an_expired_certificate_is_looked_past_only_where_asked(tmp_path: Path) -> None:
    with serving(tmp_path / "site", expired=True) as site:
        with pytest.raises(CertificateInvalid, match="was refused"):
            probe(site.address, site.ca)
        assert probe(site.address, site.ca, check_time=False).status == 404


def test_nobody_is_there(tmp_path: Path) -> None:
    Authority.create("a test", days=30).save(tmp_path / "ca.crt", tmp_path / "ca.key")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(ServerUnreachable, match="does not answer"):
            probe(address, tmp_path / "ca.crt", timeout=2.0)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        with pytest.raises(ServerUnreachable, match="does not answer"):
            probe(address, tmp_path / "ca.crt", timeout=0.3)


@pytest.mark.parametrize("address", ["", "localhost", "localhost:", ":9092", "h:0", "h:65536"])
def test_an_address_that_is_none(tmp_path: Path, address: str) -> None:
    with pytest.raises(InvalidValue, match="expected host:port"):
        probe(address, tmp_path / "ca.crt")


def test_an_authority_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_text("no certificate", encoding="ascii")
    for name in ("ca.crt", "absent.crt"):
        with pytest.raises(CertificateInvalid, match="cannot be used"):
            probe("127.0.0.1:1", tmp_path / name)
    assert main(["probe"]) == 2
