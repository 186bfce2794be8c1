"""A server that lies to a node: the real worker refuses under the device's own policy.

``tests/integration/test_lying_server.py`` tells the same lies to the ClientApp alone; here they go
the whole way: objects, the node's own checks, frames, the worker's process, and back as a code.
"""

from __future__ import annotations

import itertools
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from client.fleet.errand import Errands, Owner
from client.fleet.fleet_pb2 import Message, Metadata
from client.fleet.identity import ServerClock
from client.fleet.messages import Answered, Question, RunInfo
from client.fleet.objects import MESSAGE, Tree, build, object_id
from client.fleet.protocol import Upload
from client.fleet.records import decode, encode
from client.fleet.settings import NodeSettings
from client.fleet.status import Board
from client.fleet.transport import Endpoint
from client.fleet.worker import from_flower, to_flower
from shared.bundle import BUNDLE_DIGEST
from shared.privacy.ledger_signing import SignedHead
from shared.wire import encode_instruction
from tests.client.device import EXAMPLE, scenario
from tests.integration.device import Device, HonestLedger, Round, code, make_device, make_round

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

NODE = 17
# A worker of the least priority, beside other tests, would wait for most of its time.
EAGER = """
from client import priority
priority.lower_priority = lambda: ()
from client.fleet import worker
worker.main()
"""
# The worker remembers what the last runs said.
RUNS = itertools.count(1)


@dataclass
class Server:
    """The calls of the protocol, answered from memory."""

    contents: dict[str, bytes] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    bundle: str = BUNDLE_DIGEST
    announced: list[Answered] = field(default_factory=list)

    def pull_object(self, node_id: int, question: Question, name: str) -> bytes:
        return self.contents[name]

    def confirm(self, node_id: int, question: Question) -> None:
        """Forget nothing."""

    def run(self, node_id: int, run_id: int) -> RunInfo:
        return RunInfo(run_id=run_id, series_id=0, bundle=self.bundle, config=self.config)

    def push_message(self, node_id: int, answered: Answered, *, seconds: float) -> Upload:
        self.announced.append(answered)
        return Upload(session_id="s", wanted=tuple(answered.tree.contents))

    def push_object(
        self, node_id: int, run_id: int, upload: Upload, name: str, content: bytes
    ) -> bool:
        return True


@dataclass
class Place:
    """A device, its node without a network, and the server that lies to it."""

    device: Device
    server: Server
    errands: Errands
    events: list[dict[str, Any]]
    number: int = 0

    def ask(self, asked: Round, change: Callable[[bytes], bytes] | None = None) -> str:
        """Send a round; return the code of the answer, "" for an update."""
        self.number = next(RUNS)
        self.server.config = {"scenario": asked.scenario, "plan": asked.plan}
        content = encode(from_flower(encode_instruction(asked.instruction)))
        contents = dict(content.contents)
        head = Metadata(
            run_id=self.number,
            src_node_id=1,
            dst_node_id=NODE,
            group_id=str(asked.instruction.server_round),
            ttl=120.0,
            message_type="train",
            created_at=time.time(),
        )
        root = build(MESSAGE, [content.root], Message(metadata=head).SerializeToString())
        contents[object_id(root)] = root
        if change is not None:
            contents = {name: change(data) for name, data in contents.items()}
        self.server.contents = contents
        question = Question(
            message_id=object_id(root),
            run_id=self.number,
            source=1,
            kind="train",
            group=head.group_id,
            created_at=head.created_at,
            ttl=head.ttl,
        )
        self.errands.handle(NODE, question)
        tree = self.server.announced[-1].tree
        inner = build_tree(tree)
        return code(to_flower(decode(inner)))


def build_tree(tree: Tree) -> Tree:
    """Return the content of an answer."""
    from client.fleet.objects import parse, under

    return under(tree, parse(tree.contents[tree.root]).children[0])


@pytest.fixture(scope="module", name="child_of")
def _child_of() -> Iterator[list[Errands]]:
    """Keep one worker warm for all lies."""
    kept: list[Errands] = []
    yield kept
    for errands in kept:
        errands.child.end()


@pytest.fixture
def place(tmp_path: Path, child_of: list[Errands]) -> Place:
    return make_place(tmp_path, child_of)


def make_place(folder: Path, child_of: list[Errands], **policy: Any) -> Place:
    device = make_device(folder, **policy)
    events: list[dict[str, Any]] = []
    settings = NodeSettings(
        endpoint=Endpoint(host="127.0.0.1", port=1, ca=None),
        key=folder / "node.key",
        policy=device.policy,
        status=folder / "status.json",
        node_config={k: v for k, v in device.node().items() if isinstance(v, str | int)},
        bundles=frozenset({BUNDLE_DIGEST}),
        command=(sys.executable, "-P", "-c", EAGER),
    )
    server = Server()
    errands = Errands(
        settings,
        client=server,  # type: ignore[arg-type]
        clock=ServerClock(),
        owner=Owner(device.policy, lambda: ()),
        board=Board(settings.status, lambda event: events.append(dict(event))),
        stop=threading.Event(),
    )
    if child_of:
        errands.child = child_of[0].child
    else:
        child_of.append(errands)
    return Place(device=device, server=server, errands=errands, events=events)


def test_an_honest_round_is_answered_and_charged(place: Place) -> None:
    assert place.ask(make_round()) == ""
    assert place.device.releases() == 2.0


PLANS: dict[str, tuple[Callable[[], Round], str]] = {
    "less noise": (lambda: make_round(config=scenario(noise_multiplier=0.3)), "policy-refused"),
    "seeded noise": (
        lambda: make_round(config=scenario(noise_source="seeded-simulation")),
        "policy-refused",
    ),
    "another mode": (lambda: make_round("client-central"), "policy-refused"),
    "no privacy": (lambda: make_round("none"), "policy-refused"),
    "another relation": (
        lambda: make_round(config=scenario(neighboring_relation="replace-one")),
        "policy-refused",
    ),
    "a round that is not planned": (lambda: make_round(number=6), "schema-mismatch"),
    "a plan digest that is not the plan's": (
        lambda: make_round().saying(plan_digest="0" * 64),
        "schema-mismatch",
    ),
    "a scenario digest of another": (
        lambda: make_round().saying(config_digest="0" * 64),
        "schema-mismatch",
    ),
    "a plan with less noise than its digest": (lambda: weaker(make_round()), "policy-refused"),
    "no run": (lambda: make_round(run=""), "schema-mismatch"),
    "a plan that is no plan": (lambda: replace(make_round(), plan="[]"), "schema-mismatch"),
    "a plan of a thousand brackets": (
        lambda: replace(make_round(), plan="[" * 100_000),
        "schema-mismatch",
    ),
    "a scenario that is none": (lambda: replace(make_round(), scenario="{}"), ""),
}


def weaker(asked: Round) -> Round:
    """Return a round whose plan was changed after its digest was made."""
    plan = json.loads(asked.plan)
    return replace(asked, plan=json.dumps({**plan, "noise_multiplier": 0.01}))


@pytest.mark.parametrize("kind", PLANS)
def test_a_plan_that_lies_is_refused_and_costs_nothing(place: Place, kind: str) -> None:
    make, expected = PLANS[kind]
    found = place.ask(make())
    assert found == expected or (not expected and found)
    assert place.device.releases() == 0


def test_a_round_repeated_is_refused(place: Place) -> None:
    assert place.ask(make_round()) == ""
    assert place.ask(make_round()) == "policy-refused"
    assert place.device.releases() == 2.0


def test_a_ledger_that_went_back_is_refused(place: Place) -> None:
    ledger = HonestLedger()
    assert place.ask(make_round(anchor=ledger.head(5))) == ""
    older: list[SignedHead | None] = [ledger.head(4), ledger.head(5, "b"), None]
    for head in older:
        assert place.ask(make_round(number=2, anchor=head)) in {"ledger-tampered", "policy-refused"}
    assert place.device.releases() == 2.0


def test_another_base_model_is_refused(tmp_path: Path, child_of: list[Errands]) -> None:
    other = make_place(tmp_path, child_of, base_models=["0" * 64])
    assert other.ask(make_round()) == "policy-refused"
    assert other.device.releases() == 0


def test_another_bundle_is_refused_before_anything_is_fetched(place: Place) -> None:
    place.server.bundle = "0" * 64
    asked: list[str] = []

    def pull(node_id: int, question: Question, name: str) -> bytes:
        asked.append(name)
        return b""

    place.server.pull_object = pull  # type: ignore[method-assign]
    assert place.ask(make_round()) == "policy-refused"
    assert asked == []


def test_objects_that_were_changed_on_the_way_are_refused(place: Place) -> None:
    assert place.ask(make_round(), change=lambda data: data[:-1] + b"x") == "schema-mismatch"
    assert place.device.releases() == 0


def test_the_owner_tightens_the_policy_between_two_rounds(place: Place) -> None:
    assert place.ask(make_round()) == ""
    make_device(place.device.folder, example={**EXAMPLE, "min_noise_multiplier": 50.0})
    assert place.ask(make_round(number=2)) == "policy-refused"
    place.device.policy.unlink()
    place.errands._owner._asked = -10.0  # asked at most once a second
    assert place.ask(make_round(number=2)) == "policy-refused"
    assert place.device.releases() == 2.0
