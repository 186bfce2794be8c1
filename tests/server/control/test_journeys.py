"""What nodes, viewers and operators may do, over real connections."""

from __future__ import annotations

import json
import stat
import time
import urllib.request
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from client.control import ControlClient, Identity, enroll, redeem
from shared.control.methods import METHODS, PACKAGE
from shared.crypto import SigningKey
from shared.errors import (
    AccessDenied,
    AdapterUntrusted,
    EnrolmentRefused,
    FleetError,
    InvalidValue,
    ProtocolError,
)
from shared.pki import certificate_request, fingerprint, new_key, read_certificate
from shared.privacy.ledger import Ledger
from shared.privacy.ledger_signing import SignedHead, verify_head
from tests.server.control.registries import BASE, registry_of
from tests.server.control.service import Service, code_of, make_home, serving
from tests.server.control.test_runstates import add_run

pytestmark = pytest.mark.slow  # starting the service takes some seconds

NODE_MAY = {
    "Certificates.Renew",
    "Certificates.Leave",
    "Registry.ListAdapters",
    "Registry.GetManifest",
    "Registry.GetOrder",
    "Registry.Download",
    "Budget.GetOwn",
    "Budget.GetNode",
    "Runs.ListRuns",
    "Runs.GetRun",
    "Runs.GetAudit",
}
VIEWER_MAY = NODE_MAY | {"Budget.ListBudgets", "Fleet.ListNodes"}
OPERATOR_MAY = VIEWER_MAY | {"Fleet.Revoke", "Fleet.NewToken"}


@pytest.fixture(scope="module", name="people")
def _people(service: Service) -> dict[str, Identity]:
    """Two nodes, a viewer and an operator; clients 0 and 1 are the nodes, in this order."""
    return {
        "clinic-1": service.identity("clinic-1"),
        "clinic-2": service.identity("clinic-2"),
        "vera": service.identity("vera", "viewer"),
        "olga": service.identity("olga", "operator"),
    }


Ask = Callable[[str], ControlClient]


@pytest.fixture(name="ask")
def _ask(people: dict[str, Identity], request: pytest.FixtureRequest) -> Ask:
    def ask(name: str) -> ControlClient:
        client = ControlClient(people[name])
        request.addfinalizer(client.close)
        return client

    return ask


def channel_of(who: Identity) -> grpc.Channel:
    credentials = grpc.ssl_channel_credentials(who.ca, who.key, who.certificate)
    return grpc.secure_channel(who.address, credentials)


def status_of(who: Identity, path: str, request: Message) -> grpc.StatusCode:
    with channel_of(who) as channel:
        call: grpc.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(path)
        try:
            list(call(request.SerializeToString(), timeout=20))
        except grpc.RpcError as found:
            return code_of(found)
    return grpc.StatusCode.OK


@pytest.mark.parametrize(
    ("name", "may"), [("clinic-1", NODE_MAY), ("vera", VIEWER_MAY), ("olga", OPERATOR_MAY)]
)
def test_each_role_may_do_its_own_and_nothing_else(
    name: str, may: set[str], people: dict[str, Identity]
) -> None:
    refused = set()
    for method in sorted(set(METHODS) - {"Certificates.Leave", "Enrolment.Enroll"}):
        found = METHODS[method]
        code = status_of(people[name], found.path, found.request())
        if code is grpc.StatusCode.PERMISSION_DENIED:
            refused.add(method)
    # An empty request to GetNode asks for somebody else.
    own = {"Budget.GetNode"} if name == "clinic-1" else set()
    assert refused == set(METHODS) - may - {"Enrolment.Enroll"} | own


def test_enrolment_is_not_on_the_control_port(people: dict[str, Identity]) -> None:
    method = METHODS["Enrolment.Enroll"]
    code = status_of(people["olga"], method.path, method.request())
    assert code is grpc.StatusCode.UNIMPLEMENTED


def test_a_node_sees_its_own_budget_as_the_ledger_has_it(service: Service, ask: Ask) -> None:
    answer = ask("clinic-2").own_budget()
    assert (answer.name, answer.client_index) == ("clinic-2", 1)
    with Ledger(service.home.ledger, read_only=True) as ledger:
        for statement in answer.statements:
            (scope,) = [s for _, s in ledger.subjects(statement.subject)]
            spent = ledger.spent(statement.subject, scope)
            assert statement.epsilon == pytest.approx(spent.epsilon)
            assert statement.releases == spent.releases
            assert (statement.delta, statement.unit) == (spent.delta, str(spent.unit))
            assert statement.neighboring_relation == "add-or-remove-one"
            assert statement.epsilon <= statement.cap
            assert "/" not in statement.scope
        end = ledger.head()
    assert [s.subject for s in answer.statements] == ["client-1", "population"]
    assert [(c.run, c.server_round, c.state) for c in answer.charges] == [("local", 2, "committed")]
    assert not answer.more_charges
    head = answer.head
    assert (head.seq, head.hash) == (end.seq, end.hash)
    signed = SignedHead(
        seq=head.seq, hash=head.hash, public_key=head.public_key, signature=head.signature
    )
    verify_head(signed)


def test_a_node_may_ask_about_itself_by_name(ask: Ask) -> None:
    client = ask("clinic-1")
    found = client.budget_of("clinic-1")
    assert list(found.statements) == list(client.own_budget().statements)


@pytest.mark.parametrize("name", ["clinic-2", "nobody", "", "../clinic-2", "CLINIC-1"])
def test_a_node_learns_nothing_about_others(name: str, ask: Ask) -> None:
    with pytest.raises(AccessDenied, match="its own budget only"):
        ask("clinic-1").budget_of(name)


def test_viewers_see_every_budget(ask: Ask) -> None:
    client = ask("vera")
    assert client.budget_of("clinic-2").client_index == 1
    subjects = [s.subject for s in client.budgets()]
    assert subjects == ["client-0", "client-1", "population"]
    with pytest.raises(FleetError, match="nobody"):
        client.budget_of("nobody")
    with pytest.raises(InvalidValue):
        client.budget_of("../x")


def test_people_have_no_client_and_see_the_population(ask: Ask) -> None:
    answer = ask("olga").own_budget()
    assert not answer.HasField("client_index")
    assert [s.subject for s in answer.statements] == ["population"]


def test_runs_and_their_rounds(ask: Ask) -> None:
    runs = {run.name: run for run in ask("clinic-1").runs()}
    assert list(runs) == ["clinics-1", "clinics-2"]
    first = runs["clinics-1"]
    assert (first.state, first.rounds_done, first.rounds_planned) == ("running", 3, 6)
    assert (first.epsilon, first.delta, first.unit, first.cap) == (1.5, 1e-4, "client", 8.0)
    assert runs["clinics-2"].state == "completed"
    assert runs["clinics-2"].audit_verdict == "consistent"
    assert not ask("clinic-1").run("clinics-1").rounds
    rounds = ask("vera").run("clinics-2", first_round=5).rounds
    assert [(r.round, r.answered, r.epsilon) for r in rounds] == [(5, 19, 2.5), (6, 19, 3.0)]
    # Held-out losses were measured on private text, if at all.
    assert "loss" not in {field.name for field in rounds[0].DESCRIPTOR.fields}
    found = ask("clinic-1").audit("clinics-2")
    assert (found.report, found.signature) == (b'{"verdict": "consistent"}', b"{}")
    with pytest.raises(FleetError, match="no audit report"):
        ask("clinic-1").audit("clinics-1")


@pytest.mark.parametrize("name", ["../clinics-1", "/etc/passwd", "a\x00", "..", "", "x" * 5000])
def test_no_name_leads_out_of_the_folder(name: str, ask: Ask) -> None:
    with pytest.raises(FleetError, match="no run"):
        ask("olga").run(name)
    with pytest.raises(FleetError, match="no run"):
        ask("olga").audit(name)


def test_pages(service: Service, ask: Ask) -> None:
    for n in range(120):
        add_run(service.home, f"many-{n:03d}")
    assert len([run for run in ask("vera").runs() if run.name.startswith("many-")]) == 120


def test_adapters(service: Service, ask: Ask) -> None:
    registry = registry_of(service.home)
    known = {version.digest: version for version in registry.versions()}
    shown = list(ask("clinic-1").adapters())
    assert [a.state for a in shown] == ["current", "released"]
    assert [a.state for a in ask("vera").adapters()] == ["withheld", "current", "released"]
    current = known[shown[0].digest]
    found = ask("clinic-1").manifest()
    assert found.digest == current.digest
    assert found.manifest == current.manifest_bytes
    order = ask("clinic-1").order()
    assert json.loads(order.order)["digest"] == current.digest


def test_withheld_adapters_do_not_reach_nodes(service: Service, ask: Ask) -> None:
    (withheld,) = [v for v in registry_of(service.home).versions() if v.state == "withheld"]
    with pytest.raises(AdapterUntrusted):
        ask("clinic-1").manifest(withheld.digest)
    assert ask("vera").manifest(withheld.digest).state == "withheld"


@pytest.mark.parametrize("digest", ["x", "A" * 64, "../" * 20, "0" * 63, "0" * 65])
def test_a_digest_that_is_none_is_refused(digest: str, ask: Ask) -> None:
    with pytest.raises(ProtocolError, match="64 lower-case"):
        ask("clinic-1").manifest(digest)


def test_an_unknown_digest_is_not_there(ask: Ask) -> None:
    with pytest.raises(FleetError, match="no such adapter"):
        ask("clinic-1").manifest("0" * 64)


def test_an_operator_makes_a_token_and_a_device_redeems_it(service: Service, ask: Ask) -> None:
    token = ask("olga").new_token("clinic-3", valid_seconds=600)
    assert token.address == service.enrol
    key = new_key()
    answer = redeem(token, certificate_request(key, "clinic-3"))
    assert (answer.name, answer.role, answer.client_index) == ("clinic-3", "node", 2)
    assert (answer.control_address, answer.base_digest) == (service.address, BASE)
    signer = SigningKey.load_or_create(service.home.adapter_key)
    assert answer.adapter_key == signer.public_key
    assert fingerprint(answer.ca) == token.fingerprint
    # A lost answer: the same key may come again and is told the same.
    assert redeem(token, certificate_request(key, "clinic-3")).client_index == 2
    with pytest.raises(EnrolmentRefused, match="used already"):
        redeem(token, certificate_request(new_key(), "clinic-3"))
    who = Identity(address=service.address, ca=answer.ca, certificate=answer.certificate, key=key)
    with ControlClient(who) as client:
        assert client.own_budget().client_index == 2
        renewed = client.renew(certificate_request(key, "somebody-else"))
        assert read_certificate(renewed).name == "clinic-3"
        with pytest.raises(AccessDenied, match="another key"):
            client.renew(certificate_request(new_key(), "clinic-3"))
        with pytest.raises(ProtocolError, match="request is damaged"):
            client.renew(b"nonsense")
        client.leave()
        with pytest.raises(AccessDenied, match="revoked"):
            client.own_budget()


def test_a_request_that_is_none_does_not_use_a_token_up(service: Service, ask: Ask) -> None:
    token = ask("olga").new_token("clinic-4")
    with pytest.raises(ProtocolError, match="request is damaged"):
        enroll(token.address, token.fingerprint, token.secret, b"nonsense")
    answer = redeem(token, certificate_request(new_key(), "clinic-4"))
    assert answer.name == "clinic-4"


def test_operators_are_not_made_over_the_network(ask: Ask) -> None:
    with pytest.raises(ProtocolError, match="not one of"):
        ask("olga").new_token("oscar", role="operator")
    assert ask("olga").new_token("vincent", role="viewer").name == "vincent"
    for wrong in ("", "../x", "A", "x" * 41):
        with pytest.raises(InvalidValue):
            ask("olga").new_token(wrong)
    with pytest.raises(ProtocolError, match="valid_seconds"):
        ask("olga").new_token("clinic-5", valid_seconds=10**9)


def test_revoked_is_refused_on_an_open_connection(service: Service, ask: Ask) -> None:
    with service.client("clinic-7") as node:
        node.own_budget()
        ask("olga").revoke("clinic-7", "lost")
        with pytest.raises(AccessDenied, match="revoked"):
            node.own_budget()
    (entry,) = [n for n in ask("vera").nodes() if n.name == "clinic-7"]
    assert entry.revoked_reason == "lost"
    with service.fleet() as fleet:
        actions = [e for e in fleet.events() if e.kind == "revoke"]
    assert actions[0].facts["by"] == "olga"
    with pytest.raises(AccessDenied, match="itself"):
        ask("olga").revoke("olga", "by mistake")
    with pytest.raises(FleetError, match="nobody"):
        ask("olga").revoke("nobody", "")


def test_health_on_both_ports(service: Service, people: dict[str, Identity]) -> None:
    serving_now = health_pb2.HealthCheckResponse.SERVING
    with channel_of(people["clinic-1"]) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        for name in ("", f"{PACKAGE}.Budget"):
            asked = health_pb2.HealthCheckRequest(service=name)
            assert stub.Check(asked, timeout=10).status == serving_now
        with pytest.raises(grpc.RpcError) as found:
            stub.Check(health_pb2.HealthCheckRequest(service="x"), timeout=10)
        assert code_of(found.value) is grpc.StatusCode.NOT_FOUND
    credentials = grpc.ssl_channel_credentials(people["clinic-1"].ca)
    with grpc.secure_channel(service.enrol, credentials) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        asked = health_pb2.HealthCheckRequest(service=f"{PACKAGE}.Enrolment")
        assert stub.Check(asked, timeout=10).status == serving_now


def test_reflection_is_for_people(people: dict[str, Identity]) -> None:
    asked = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=f"{PACKAGE}.Budget"),
    ]
    with channel_of(people["vera"]) as channel:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        listed, described = stub.ServerReflectionInfo(iter(asked), timeout=10)
    names = {found.name for found in listed.list_services_response.service}
    assert {f"{PACKAGE}.Budget", f"{PACKAGE}.Fleet"} <= names
    assert f"{PACKAGE}.Enrolment" not in names
    assert described.file_descriptor_response.file_descriptor_proto
    with channel_of(people["clinic-1"]) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        with pytest.raises(grpc.RpcError) as found:
            list(stub.ServerReflectionInfo(iter(asked), timeout=10))
        assert code_of(found.value) is grpc.StatusCode.PERMISSION_DENIED


def test_metrics_count_and_name_nobody(service: Service, ask: Ask) -> None:
    ask("clinic-1").own_budget()
    (service.home.run_folder("clinics-1") / "metrics.jsonl").touch()
    with urllib.request.urlopen(f"http://127.0.0.1:{service.metrics}/metrics") as answer:
        text = answer.read().decode()
    assert 'fedslm_control_calls_total{code="OK",method="fedslm.control.v1.Budget/GetOwn"}' in text
    assert 'fedslm_nodes{state="enrolled"}' in text
    labels = 'delta="0.0001",relation="add-or-remove-one",run="clinics-1",unit="client"'
    assert f"fedslm_run_epsilon{{{labels}}} 1.5" in text
    for private in ('clinic-1"', 'clinic-2"', "client-", "127.0.0.1", "olga", "vera"):
        assert private not in text


def test_the_log_is_json_and_holds_nothing_private(service: Service, ask: Ask) -> None:
    token = ask("olga").new_token("clinic-6")
    redeem(token, certificate_request(new_key(), "clinic-6"))
    until = time.monotonic() + 5
    lines = service.log()
    while time.monotonic() < until and not lines[-1]["method"].endswith("Enroll"):
        time.sleep(0.05)
        lines = service.log()
    call = next(line for line in reversed(lines) if line["method"].endswith("/NewToken"))
    assert (call["event"], call["status"], call["caller"]) == ("call", "OK", "olga")
    assert call["milliseconds"] >= 0
    path = service.home.logs / "control.jsonl"
    text = path.read_text()
    for private in (token.secret, token.fingerprint, "127.0.0.1", "BEGIN"):
        assert private not in text
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_nothing_failed_on_the_way(service: Service) -> None:
    assert [line for line in service.log() if line["event"] == "failure"] == []
    assert "Traceback" not in (service.home.logs / "child.log").read_text()


def test_an_empty_server_answers(tmp_path_factory: pytest.TempPathFactory) -> None:
    home = make_home(tmp_path_factory.mktemp("empty") / "server")
    with serving(home, metrics_port=None) as running, running.client("vera", "viewer") as client:
        assert list(client.runs()) == []
        assert list(client.adapters()) == []
        assert list(client.budgets()) == []
        answer = client.own_budget()
        assert not answer.HasField("head")
        assert not client.order().order
        with pytest.raises(FleetError, match="no such adapter"):
            client.manifest()
        with pytest.raises(FleetError, match="nobody"):
            client.budget_of("nobody")
        assert [n.name for n in client.nodes()] == ["vera"]
        with pytest.raises(FleetError, match="no run"):
            client.audit("x")
