"""What four modules of the server take from Flower without a promise (docs/adr/0016)."""

from __future__ import annotations

import dataclasses
import inspect
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_HEADER, TIMESTAMP_TOLERANCE
from flwr.supercore import constant
from flwr.supercore.error import ApiErrorCode
from flwr.supercore.inflatable import inflatable_utils
from flwr.supercore.inflatable.inflatable_utils import ObjectUnavailableError
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
from flwr.superlink.config_loader import SuperLinkLifespanConfig, load_control_authn_plugin
from flwr.superlink.grid import http_grid
from flwr.superlink.main import create_app

from server import flowermessages, superlink, superlinkdoor
from server.bundle import RUN_KEYS, build_bundle
from server.home import ServerHome
from server.superlink import superlink_command
from server.superlinkclient import SuperLinkClient
from shared.errors import AccessDenied, ServerUnreachable
from tests.server.fleetkit import client_of, enrolled, make_home, process, wait_until

pytestmark = pytest.mark.slow

TYPE = {"content-type": PROTOBUF_MEDIA_TYPE}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerHome]:
    made = make_home(tmp_path_factory.mktemp("superlink"))
    with process(made, superlink_command(made)):
        with SuperLinkClient.of(made) as client:
            wait_until("health", client.healthy, seconds=40)
        yield made


@pytest.fixture(scope="module")
def routes(home: ServerHome) -> list[tuple[str, str]]:
    secret = {superlinkdoor.SECRET_HEADER: home.control_secret.read_text()}
    with client_of(home, port=home.config.superlink_port) as http:
        paths = http.get("/openapi.json", headers=secret).json()["paths"]
    return [(method.upper(), path) for path, methods in paths.items() for method in methods]


def test_constants_are_flowers() -> None:
    assert superlinkdoor.PUBLIC_KEY_HEADER == constant.FLEET_HTTP_PUBLIC_KEY_HEADER
    assert superlinkdoor.SIGNATURE_HEADER == constant.FLEET_HTTP_SIGNATURE_HEADER
    assert superlinkdoor.TIMESTAMP_HEADER == TIMESTAMP_HEADER
    assert superlinkdoor.CLOCK_AHEAD_SECONDS == SYSTEM_TIME_TOLERANCE
    assert superlinkdoor.CLOCK_BEHIND_SECONDS == TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE
    assert superlinkdoor.MEDIA_TYPE == PROTOBUF_MEDIA_TYPE
    codes = (
        ApiErrorCode.RUN_ID_NOT_FOUND,
        ApiErrorCode.RUN_ALREADY_FINISHED,
        ApiErrorCode.PUBLIC_KEY_ALREADY_IN_USE,
        ApiErrorCode.NODE_NOT_FOUND,
    )
    assert [int(code) for code in codes] == [16, 18, 23, 24]


def test_the_grid_asks_again_soon_for_a_piece_that_is_not_there_yet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = vars(http_grid)
    assert names["pull_objects"] is inflatable_utils.pull_objects
    monkeypatch.setitem(names, "pull_objects", names["pull_objects"])
    flowermessages.pull_without_delay()
    asked: list[str] = []

    def pull(identifier: str) -> bytes:
        asked.append(identifier)
        if len(asked) < 3:
            raise ObjectUnavailableError(identifier)
        return b"piece"

    began = time.monotonic()
    found = names["pull_objects"](object_ids=["a"], pull_object_fn=pull)
    assert found == {"a": b"piece"}
    # Flower's own pauses would be one and two seconds, less a fifth.
    assert time.monotonic() - began < 1


def test_the_start_takes_what_we_give() -> None:
    assert list(inspect.signature(create_app).parameters) == ["config", "superlink_lifespan_class"]
    assert list(inspect.signature(SuperLinkLifespan).parameters) == ["config", "state_factory"]
    assert not inspect.signature(load_control_authn_plugin).parameters
    assert {field.name for field in dataclasses.fields(SuperLinkLifespanConfig)} == {
        "control_address",
        "health_server_address",
        "host",
        "port",
        "insecure",
        "certificates",
        "superexec_auth_secret",
        "authn_plugin",
        "event_log_plugin",
        "fleet_event_log_plugin",
        "enable_event_log",
        "artifact_provider",
        "enable_supernode_auth",
        "fleet_api_type",
        "fleet_api_address",
        "simulation",
        "ssl_ca_certfile",
        "ssl_certfile",
        "ssl_keyfile",
        "database",
        "isolation",
        "runtime_dependency_install",
    }


def test_the_executor_is_a_script_beside_the_interpreter(home: ServerHome) -> None:
    command = superlink.superexec_command(home)
    assert Path(command[0]).is_file()
    assert Path(command[0]).parent == Path(sys.executable).parent


def test_every_call_is_one_we_know_or_behind_the_door(
    home: ServerHome, routes: list[tuple[str, str]]
) -> None:
    """Of all routes, only the listed calls answer without the secret; they ask for their own."""
    assert len(routes) > 60
    with client_of(home, port=home.config.superlink_port) as http:
        found = {
            path
            for method, path in routes
            if http.request(method, path, headers=TYPE).status_code != httpx.codes.NOT_FOUND
        }
    assert found == superlinkdoor.FLEET_CALLS | superlinkdoor.RUNTIME_CALLS | {superlinkdoor.HEALTH}
    assert {"/v1/control/list-runs", "/v1/control/start-run"} <= {path for _, path in routes}


def test_the_open_calls_want_credentials_of_their_own(home: ServerHome) -> None:
    with client_of(home, port=home.config.superlink_port) as http:
        answers = {
            path: http.post(path, headers=TYPE).status_code
            for path in superlinkdoor.FLEET_CALLS | superlinkdoor.RUNTIME_CALLS
        }
    assert set(answers.values()) == {httpx.codes.UNAUTHORIZED}


@pytest.mark.parametrize("path", ["/docs", "/openapi.json", "/v1/control/list-runs"])
@pytest.mark.parametrize(
    "shown", [[], [("fedslm-control", "")], [("fedslm-control", "0" * 64)], "twice"], ids=str
)
def test_the_door_opens_for_the_secret_alone(
    home: ServerHome, path: str, shown: list[tuple[str, str]] | str
) -> None:
    right = [("fedslm-control", home.control_secret.read_text())]
    headers = right * 2 if isinstance(shown, str) else shown
    method = "POST" if path.startswith("/v1") else "GET"
    with client_of(home, port=home.config.superlink_port) as http:
        refused = http.request(method, path, headers=[*headers, *TYPE.items()])
        assert (refused.status_code, refused.content) == (404, b"")
        opened = http.request(method, path, headers=[*right, *TYPE.items()])
    assert opened.status_code == httpx.codes.OK


def test_list_runs_without_the_secret_is_refused(home: ServerHome) -> None:
    wrong = SuperLinkClient(home.config.superlink_address, home.ca_certificate, b"0" * 64)
    with wrong, pytest.raises(AccessDenied, match="control secret"):
        wrong.runs()


def test_nodes_come_and_go(home: ServerHome) -> None:
    identity = enrolled(home, "coming")
    with SuperLinkClient.of(home) as client:
        number = client.register_node(identity.public)
        assert number is not None
        assert client.register_node(identity.public) is None
        [node] = [n for n in client.nodes() if n.public_key == identity.public]
        assert (node.node_id, node.status) == (number, "registered")
        client.unregister_node(number)
        client.unregister_node(number)
        assert identity.public not in {n.public_key for n in client.nodes()}


def test_runs_start_and_stop(home: ServerHome) -> None:
    with SuperLinkClient.of(home) as client:
        number = client.start_run(build_bundle(), dict.fromkeys(RUN_KEYS, "x"))
        [run] = [r for r in client.runs() if r.run_id == number]
        assert run.status == "pending"
        client.stop_run(number)
        client.stop_run(number)
        client.stop_run(1)
        [run] = [r for r in client.runs() if r.run_id == number]
        assert (run.status, run.outcome) == ("finished", "stopped")


def test_nobody_there_is_said(tmp_path: Path) -> None:
    with SuperLinkClient.of(make_home(tmp_path)) as client:
        assert not client.healthy()
        with pytest.raises(ServerUnreachable):
            client.nodes()
