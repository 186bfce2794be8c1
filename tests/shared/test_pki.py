"""Certificates, judged by OpenSSL, by Python's ssl, by gRPC and by another library's verifier."""

from __future__ import annotations

import base64
import hashlib
import socket
import ssl
import stat
import threading
from concurrent import futures
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import PolicyBuilder, Store
from hypothesis import given
from hypothesis import strategies as st

from shared.enrolment import Role
from shared.errors import CertificateInvalid, FleetError, InvalidValue
from shared.pki import (
    Authority,
    certificate_request,
    fingerprint,
    new_key,
    openssh_form,
    public_bytes,
    read_certificate,
    request_key,
    require_clock,
    verify_certificate,
)
from tests.shared.certificates import (
    greedy_request,
    loaded_key,
    openssl_verify,
    pem_key,
    signed_with,
    small_authority,
)

AUTHORITY = small_authority()
OTHER = small_authority()
KEY = new_key()
NODE = AUTHORITY.sign_request(
    certificate_request(KEY, "clinic-7"), name="clinic-7", role="node", days=90
)
SERVER = AUTHORITY.issue_server(["localhost", "fleet.example.org", "127.0.0.1", "::1"], days=90)
NOW = datetime.now(UTC)


def extension(pem: bytes, kind: type[Any]) -> Any:
    return x509.load_pem_x509_certificate(pem).extensions.get_extension_for_class(kind)


def test_openssl_accepts_each_for_its_purpose_alone(tmp_path: Path) -> None:
    ca = AUTHORITY.certificate
    assert openssl_verify(tmp_path, ca, NODE, "-purpose", "sslclient") == "OK"
    server = SERVER.certificate
    assert openssl_verify(tmp_path, ca, server, "-purpose", "sslserver") == "OK"
    host = ("-verify_hostname", "fleet.example.org")
    assert openssl_verify(tmp_path, ca, server, *host) == "OK"
    assert openssl_verify(tmp_path, ca, server, "-verify_ip", "::1") == "OK"
    assert "purpose" in openssl_verify(tmp_path, ca, NODE, "-purpose", "sslserver")
    assert "purpose" in openssl_verify(tmp_path, ca, server, "-purpose", "sslclient")
    assert "error" in openssl_verify(tmp_path, OTHER.certificate, NODE)
    assert "error" in openssl_verify(tmp_path, ca, server, "-verify_hostname", "example.org")


def test_another_librarys_verifier_agrees() -> None:
    store = Store([x509.load_pem_x509_certificate(AUTHORITY.certificate)])
    builder = PolicyBuilder().store(store).time(datetime.now(UTC))
    builder.build_client_verifier().verify(x509.load_pem_x509_certificate(NODE), [])
    server = x509.load_pem_x509_certificate(SERVER.certificate)
    builder.build_server_verifier(x509.DNSName("localhost")).verify(server, [])


@pytest.mark.parametrize("pem", [NODE, SERVER.certificate])
def test_a_leaf_signs_nothing(pem: bytes) -> None:
    basic = extension(pem, x509.BasicConstraints)
    assert basic.critical
    assert not basic.value.ca
    usage = extension(pem, x509.KeyUsage)
    assert usage.critical
    assert usage.value.digital_signature
    assert not usage.value.key_cert_sign
    assert not usage.value.crl_sign
    ca = x509.load_pem_x509_certificate(AUTHORITY.certificate)
    known = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    authority_id = extension(pem, x509.AuthorityKeyIdentifier).value
    assert authority_id.key_identifier == known.digest


def test_an_authority_has_none_below_it() -> None:
    basic = extension(AUTHORITY.certificate, x509.BasicConstraints)
    assert basic.critical
    assert (basic.value.ca, basic.value.path_length) == (True, 0)
    usage = extension(AUTHORITY.certificate, x509.KeyUsage).value
    assert usage.key_cert_sign
    assert usage.crl_sign
    assert not usage.digital_signature


def test_what_a_leaf_signs_is_refused(tmp_path: Path) -> None:
    below = new_key()
    forged = signed_with(NODE, loaded_key(KEY), loaded_key(below))
    with pytest.raises(CertificateInvalid):
        verify_certificate(forged, AUTHORITY.certificate, usage="client")
    chain = ("-untrusted", str(tmp_path / "chain.crt"))
    (tmp_path / "chain.crt").write_bytes(NODE)
    assert "error" in openssl_verify(tmp_path, AUTHORITY.certificate, forged, *chain)


def test_the_authority_decides_all_but_the_key() -> None:
    key = loaded_key(KEY)
    found = AUTHORITY.sign_request(greedy_request(key), name="clinic-7", role="viewer", days=1)
    facts = read_certificate(found)
    assert (facts.name, facts.role, facts.public_key) == ("clinic-7", "viewer", public_bytes(KEY))
    assert not extension(found, x509.BasicConstraints).value.ca
    names = extension(found, x509.SubjectAlternativeName).value
    assert [name.value for name in names] == ["urn:fedslm:viewer:clinic-7"]
    usage = extension(found, x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]


def test_a_request_needs_the_private_key() -> None:
    der = bytearray(
        x509.load_pem_x509_csr(certificate_request(KEY, "clinic-7")).public_bytes(
            serialization.Encoding.DER
        )
    )
    at = bytes(der).index(b"clinic-7")
    der[at] ^= 1
    pem = x509.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM)
    with pytest.raises(CertificateInvalid, match="not signed by its own key"):
        AUTHORITY.sign_request(pem, name="clinic-7", role="node", days=1)


def other_keys() -> list[Any]:
    return [
        ec.generate_private_key(ec.SECP256R1()),
        rsa.generate_private_key(public_exponent=65537, key_size=2048),
        ed25519.Ed25519PrivateKey.generate(),
    ]


@pytest.mark.parametrize("key", other_keys(), ids=["p256", "rsa", "ed25519"])
def test_keys_of_another_kind_are_refused(key: Any) -> None:
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    csr = request.sign(key, algorithm).public_bytes(serialization.Encoding.PEM)
    with pytest.raises(CertificateInvalid, match="P-384"):
        request_key(csr)
    with pytest.raises(CertificateInvalid, match="P-384"):
        public_bytes(pem_key(key))
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    with pytest.raises(CertificateInvalid, match="P-384"):
        public_bytes(public)


def test_a_key_has_one_identity_in_every_form() -> None:
    public = loaded_key(KEY).public_key()
    expected = public.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    pem = public.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    # The same point, written compressed: a key must not be enrolled a second time by that.
    point = public.public_bytes(
        serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint
    )
    header = bytes.fromhex("3046301006072a8648ce3d020106052b81040022033200")
    squeezed = header + point
    compressed = (
        b"-----BEGIN PUBLIC KEY-----\n"
        + base64.encodebytes(squeezed)
        + b"-----END PUBLIC KEY-----\n"
    )
    forms = [KEY, KEY + openssh_form(KEY), pem, NODE, compressed]
    assert [public_bytes(form) for form in forms] == [expected] * 5
    assert request_key(certificate_request(KEY, "x")) == expected


def test_serials_are_random_and_bounded() -> None:
    csr = certificate_request(KEY, "clinic-7")
    serials = {
        read_certificate(AUTHORITY.sign_request(csr, name="clinic-7", role="node", days=1)).serial
        for _ in range(20)
    }
    assert len(serials) == 20
    assert all(1 << 128 <= serial < 1 << 129 for serial in serials)


def test_validity_starts_30_days_back_and_ends_with_the_authority() -> None:
    ca = read_certificate(AUTHORITY.certificate)
    later = NOW + timedelta(days=10)
    csr = certificate_request(KEY, "a")
    found = read_certificate(AUTHORITY.sign_request(csr, name="a", role="node", days=7, now=later))
    assert found.not_before == later.replace(microsecond=0) - timedelta(days=30)
    assert found.not_after == later.replace(microsecond=0) + timedelta(days=7)
    long = read_certificate(AUTHORITY.sign_request(csr, name="a", role="node", days=20_000))
    assert long.not_after == ca.not_after
    assert long.not_before >= ca.not_before
    with pytest.raises(CertificateInvalid, match="valid until"):
        AUTHORITY.sign_request(
            csr, name="a", role="node", days=7, now=ca.not_after + timedelta(seconds=1)
        )


@pytest.mark.parametrize("days", [0, -1, 36_501, 1.5, True, "7"])
def test_a_bad_number_of_days_is_refused(days: Any) -> None:
    with pytest.raises(InvalidValue, match="days="):
        AUTHORITY.issue_server(["localhost"], days=days)
    with pytest.raises(InvalidValue, match="days="):
        Authority.create("a", days=days)


@pytest.mark.parametrize(
    "host",
    ["", "a b", "*.example.org", "-a", "a..b", "a/b", "a:1", "ä.de", "x" * 64, "a." * 130, "a\n"],
)
def test_a_bad_host_is_refused(host: str) -> None:
    with pytest.raises(InvalidValue, match="host="):
        AUTHORITY.issue_server([host], days=1)


def test_hosts_are_few_and_said_once() -> None:
    for hosts in ([], ["a"] * 65):
        with pytest.raises(InvalidValue, match="hosts"):
            AUTHORITY.issue_server(hosts, days=1)
    issued = AUTHORITY.issue_server(["a.example", "a.example", "10.0.0.1"], days=1)
    names = extension(issued.certificate, x509.SubjectAlternativeName).value
    assert [str(name.value) for name in names] == ["a.example", "10.0.0.1"]
    assert issued.key not in repr(issued).encode()
    assert public_bytes(issued.key) == read_certificate(issued.certificate).public_key


def test_bad_names_and_roles_are_refused() -> None:
    csr = certificate_request(KEY, "a")
    with pytest.raises(InvalidValue, match="name="):
        AUTHORITY.sign_request(csr, name="../a", role="node", days=1)
    role: Any = "root"
    with pytest.raises(InvalidValue, match="role="):
        AUTHORITY.sign_request(csr, name="a", role=role, days=1)
    for name in ("", "x" * 65, "a\nb"):
        with pytest.raises(InvalidValue, match="name"):
            Authority.create(name, days=1)


@pytest.mark.parametrize("role", ["node", "operator", "viewer"])
def test_facts_are_read(role: Role) -> None:
    pem = AUTHORITY.sign_request(certificate_request(KEY, "x"), name="dr-who", role=role, days=3)
    der = x509.load_pem_x509_certificate(pem).public_bytes(serialization.Encoding.DER)
    for data in (pem, der, b"words before\n" + pem + AUTHORITY.certificate):
        facts = read_certificate(data)
        assert (facts.name, facts.role, facts.public_key) == ("dr-who", role, public_bytes(KEY))
    assert fingerprint(pem) == hashlib.sha256(der).hexdigest()


def test_servers_and_authorities_have_no_role() -> None:
    assert read_certificate(SERVER.certificate).role is None
    assert read_certificate(AUTHORITY.certificate).role is None


@pytest.mark.parametrize(
    ("names", "units"),
    [(["clinic-7"], ["root"]), (["clinic-7"], ["node", "operator"]), (["../x"], ["node"])],
)
def test_a_strange_subject_has_no_role(names: list[str], units: list[str]) -> None:
    key = loaded_key(KEY)
    extensions = [
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]),
        x509.BasicConstraints(ca=False, path_length=None),
    ]
    made = signed_with(NODE, key, key, common_names=names, units=units, extensions=extensions)
    assert read_certificate(made).role is None
    good = signed_with(NODE, key, key, extensions=extensions)
    assert read_certificate(good).role == "node"


def test_two_names_are_none() -> None:
    key = loaded_key(KEY)
    for names in ((), ("a", "b")):
        with pytest.raises(CertificateInvalid):
            read_certificate(signed_with(NODE, key, key, common_names=names))


@given(st.binary(max_size=300))
def test_rubbish_is_refused_in_one_way(data: bytes) -> None:
    for read in (read_certificate, public_bytes, request_key, fingerprint):
        with pytest.raises(CertificateInvalid):
            read(data)


@given(st.integers(0, len(NODE) - 1), st.integers(1, 255))
def test_a_changed_certificate_is_refused_or_not_ours(at: int, flip: int) -> None:
    changed = bytearray(NODE)
    changed[at] ^= flip
    if fingerprints_alike(bytes(changed)):
        return  # white space and the lines around the text do not count
    with pytest.raises(CertificateInvalid):
        verify_certificate(bytes(changed), AUTHORITY.certificate, usage="client")


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
def test_a_negative_serial_is_refused_where_warnings_are_none() -> None:
    der = bytearray(x509.load_pem_x509_certificate(NODE).public_bytes(serialization.Encoding.DER))
    at = bytes(der).index(b"\x02\x11\x01")  # INTEGER, 17 bytes, the leading one
    der[at + 2] = 0x81
    with pytest.raises(CertificateInvalid):
        read_certificate(bytes(der))


@pytest.mark.parametrize("flip", [0x01, 0x80])
def test_no_byte_of_the_encoding_is_idle(flip: int) -> None:
    der = x509.load_pem_x509_certificate(NODE).public_bytes(serialization.Encoding.DER)
    for at in range(len(der)):
        changed = bytearray(der)
        changed[at] ^= flip
        with pytest.raises(CertificateInvalid):
            verify_certificate(bytes(changed), AUTHORITY.certificate, usage="client")


def test_a_second_encoding_of_a_signature_is_refused() -> None:
    """A signature that ends in a zero bit might leave that bit out."""
    ends: set[int] = set()
    while ends != {0, 1}:
        csr = certificate_request(KEY, "a")
        pem = AUTHORITY.sign_request(csr, name="a", role="node", days=1)
        found = x509.load_pem_x509_certificate(pem)
        der = bytearray(found.public_bytes(serialization.Encoding.DER))
        at = len(der) - len(found.signature) - 1
        assert der[at] == 0
        ends.add(der[-1] & 1)
        der[at] = 1
        with pytest.raises(CertificateInvalid):
            read_certificate(bytes(der))


def fingerprints_alike(data: bytes) -> bool:
    try:
        return fingerprint(data) == fingerprint(NODE)
    except CertificateInvalid:
        return False


def test_sizes_are_bounded() -> None:
    padding = b"x" * 70_000
    for data in (padding + NODE, NODE + padding, KEY + padding, padding):
        with pytest.raises(CertificateInvalid):
            public_bytes(data)
    with pytest.raises(CertificateInvalid):
        request_key(certificate_request(KEY, "a") + padding)


def test_files_are_private_and_not_overwritten(tmp_path: Path) -> None:
    cert, key = tmp_path / "ca.crt", tmp_path / "ca.key"
    AUTHORITY.save(cert, key)
    assert [stat.S_IMODE(file.stat().st_mode) for file in (cert, key)] == [0o600] * 2
    loaded = Authority.load(cert, key)
    assert loaded.fingerprint == AUTHORITY.fingerprint
    assert loaded.certificate == AUTHORITY.certificate
    with pytest.raises(FleetError, match="exists already"):
        OTHER.save(cert, key)
    key.chmod(0o644)
    with pytest.raises(FleetError, match="mode 644"):
        Authority.load(cert, key)


def test_what_does_not_belong_together_is_refused(tmp_path: Path) -> None:
    AUTHORITY.save(tmp_path / "a.crt", tmp_path / "a.key")
    OTHER.save(tmp_path / "b.crt", tmp_path / "b.key")
    with pytest.raises(CertificateInvalid, match="not that of its certificate"):
        Authority.load(tmp_path / "a.crt", tmp_path / "b.key")
    (tmp_path / "a.crt").write_bytes(NODE)
    (tmp_path / "a.key").write_bytes(KEY)
    with pytest.raises(CertificateInvalid, match="not that of an authority"):
        Authority.load(tmp_path / "a.crt", tmp_path / "a.key")
    key = loaded_key(KEY)
    (tmp_path / "a.crt").write_bytes(signed_with(NODE, key, key))
    with pytest.raises(CertificateInvalid, match="not that of an authority"):
        Authority.load(tmp_path / "a.crt", tmp_path / "a.key")


def test_a_wrong_clock_is_told_with_both_times() -> None:
    facts = read_certificate(NODE)
    early = facts.not_before - timedelta(days=3)
    with pytest.raises(CertificateInvalid, match="only valid from") as caught:
        verify_certificate(NODE, AUTHORITY.certificate, usage="client", now=early)
    for moment in (read_certificate(AUTHORITY.certificate).not_before, early):
        assert moment.strftime("%Y-%m-%d %H:%M:%S UTC") in str(caught.value)
    late = facts.not_after + timedelta(seconds=1)
    with pytest.raises(CertificateInvalid, match="valid until") as caught:
        require_clock(facts, now=late)
    for moment in (facts.not_after, late):
        assert moment.strftime("%Y-%m-%d %H:%M:%S UTC") in str(caught.value)
    require_clock(facts, now=facts.not_before)
    require_clock(facts, now=facts.not_after)


def test_verification_binds_issuer_use_and_host() -> None:
    ca = AUTHORITY.certificate
    assert verify_certificate(NODE, ca, usage="client") == read_certificate(NODE)
    for host in ("localhost", "fleet.example.org", "127.0.0.1", "::1"):
        verify_certificate(SERVER.certificate, ca, usage="server", host=host)
    for data, usage, host in (
        (NODE, "server", "localhost"),
        (SERVER.certificate, "client", ""),
        (SERVER.certificate, "server", "example.org"),
        (SERVER.certificate, "server", "127.0.0.2"),
        (SERVER.certificate, "server", ""),
        (SERVER.certificate, "server", "not a host"),
    ):
        chosen: Any = usage
        with pytest.raises(CertificateInvalid, match="not issued by this authority"):
            verify_certificate(data, ca, usage=chosen, host=host)
    with pytest.raises(CertificateInvalid, match="not issued by this authority"):
        verify_certificate(NODE, OTHER.certificate, usage="client")


def test_a_revocation_list_is_believed_by_openssl(tmp_path: Path) -> None:
    other = AUTHORITY.sign_request(
        certificate_request(KEY, "a"), name="clinic-8", role="node", days=1
    )
    serial = read_certificate(NODE).serial
    crl = AUTHORITY.revocation_list([(serial, NOW.timestamp() - 60)], days=7)
    (tmp_path / "crl.pem").write_bytes(crl)
    check = ("-crl_check", "-CRLfile", str(tmp_path / "crl.pem"))
    assert "certificate revoked" in openssl_verify(tmp_path, AUTHORITY.certificate, NODE, *check)
    assert openssl_verify(tmp_path, AUTHORITY.certificate, other, *check) == "OK"
    parsed = x509.load_pem_x509_crl(crl)
    key = loaded_key_of(AUTHORITY)
    assert parsed.is_signature_valid(key)
    assert [entry.serial_number for entry in parsed] == [serial]


def loaded_key_of(authority: Authority) -> ec.EllipticCurvePublicKey:
    key = x509.load_pem_x509_certificate(authority.certificate).public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return key


def contexts(
    folder: Path, client_pem: bytes, client_key: bytes, *, trusted: Authority
) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return both ends of mutual TLS."""
    files = {"s.crt": SERVER.certificate, "s.key": SERVER.key}
    files |= {"c.crt": client_pem, "c.key": client_key, "ca.crt": trusted.certificate}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "s.crt", folder / "s.key")
    server.load_verify_locations(cadata=AUTHORITY.certificate.decode())
    server.verify_mode = ssl.CERT_REQUIRED
    client = ssl.create_default_context(cafile=folder / "ca.crt")
    client.load_cert_chain(folder / "c.crt", folder / "c.key")
    return server, client


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, host: str) -> bytes | None:
    """Return the certificate that the server saw; errors of both ends are raised."""
    left, right = socket.socketpair()
    seen: list[bytes | None] = []

    def serve() -> None:
        with left, server.wrap_socket(left, server_side=True) as stream:
            seen.append(stream.getpeercert(binary_form=True))
            stream.sendall(b"x")

    with futures.ThreadPoolExecutor(1) as pool:
        done = pool.submit(serve)
        try:
            with right, client.wrap_socket(right, server_hostname=host) as stream:
                stream.recv(1)
        finally:
            right.close()
            error = done.exception(30)
    if error is not None:
        raise error
    return seen[0]


def test_a_real_handshake_with_both_certificates(tmp_path: Path) -> None:
    # The key file of a device holds the key twice; ssl reads the first block.
    twice = KEY + openssh_form(KEY)
    server, client = contexts(tmp_path, NODE, twice, trusted=AUTHORITY)
    for host in ("localhost", "127.0.0.1"):
        seen = handshake(server, client, host)
        assert seen is not None
        assert read_certificate(seen).name == "clinic-7"
    with pytest.raises(ssl.SSLError):
        handshake(server, client, "example.org")


def test_a_handshake_with_another_authority_fails(tmp_path: Path) -> None:
    foreign = OTHER.sign_request(
        certificate_request(KEY, "a"), name="clinic-7", role="node", days=1
    )
    server, client = contexts(tmp_path, foreign, KEY, trusted=AUTHORITY)
    with pytest.raises(ssl.SSLError):
        handshake(server, client, "localhost")
    server, client = contexts(tmp_path, NODE, KEY, trusted=OTHER)
    with pytest.raises(ssl.SSLError):
        handshake(server, client, "localhost")


def test_a_servers_certificate_does_not_call(tmp_path: Path) -> None:
    server, client = contexts(tmp_path, SERVER.certificate, SERVER.key, trusted=AUTHORITY)
    with pytest.raises(ssl.SSLError):
        handshake(server, client, "localhost")


def test_flowers_reader_of_node_keys_gets_the_same_key() -> None:
    # As flwr/supernode/cli/flower_supernode.py reads --auth-supernode-private-key.
    found = serialization.load_ssh_private_key(KEY + openssh_form(KEY), None)
    assert isinstance(found, ec.EllipticCurvePrivateKey)
    assert found.private_numbers() == loaded_key(KEY).private_numbers()


def test_grpc_reads_the_key_file_of_a_device() -> None:
    import grpc

    credentials = grpc.ssl_server_credentials(
        [(SERVER.key, SERVER.certificate)],
        root_certificates=AUTHORITY.certificate,
        require_client_auth=True,
    )
    seen: list[bytes] = []
    done = threading.Event()

    def answer(request: bytes, context: Any) -> bytes:
        seen.append(context.auth_context()["x509_pem_cert"][0])
        done.set()
        return request

    handler = grpc.method_handlers_generic_handler(
        "test.Echo", {"Call": grpc.unary_unary_rpc_method_handler(answer)}
    )
    server = grpc.server(futures.ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers((handler,))
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    try:
        own = grpc.ssl_channel_credentials(
            root_certificates=AUTHORITY.certificate,
            private_key=KEY + openssh_form(KEY),
            certificate_chain=NODE,
        )
        with grpc.secure_channel(f"127.0.0.1:{port}", own) as channel:
            call: Any = channel.unary_unary("/test.Echo/Call")
            assert call(b"hello", timeout=20) == b"hello"
    finally:
        server.stop(0).wait(10)
    assert done.is_set()
    assert read_certificate(seen[0]).public_key == public_bytes(KEY)
