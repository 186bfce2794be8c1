"""A device for tests: data, base model, policy and state on disk, and a server to lie to it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Context, Message, RecordDict

from client.app import app
from client.basedigest import base_digest
from client.charges import EXAMPLE
from client.state import DeviceState
from shared.canonical import canonical_json
from shared.config import RunConfig
from shared.errors import LedgerError
from shared.lora import Vector
from shared.privacy.ledger_signing import LedgerSigner, SignedHead
from shared.privacy.ledger_store import Head
from shared.privacy.plan import PrivacyPlan
from shared.scenarioplan import plan_of
from shared.wire import HEADER, Instruction, encode_instruction
from simulations.assemble import load_model
from simulations.basepath import ASSETS
from simulations.corpora import private_records
from simulations.engine import InProcessGrid
from tests.client.device import scenario, write_policy

BASE = ASSETS / "demo"
POPULATION = 10


@lru_cache(maxsize=1)
def demo_digest() -> str:
    """Return the digest of the embedded base model."""
    return base_digest(BASE)


@lru_cache(maxsize=4)
def adapter_size(config_json: str) -> int:
    """Return how many parameters an update of a scenario has."""
    from shared.configfile import parse_json

    config = parse_json(config_json)
    return load_model(config, base_dir=BASE).spec.size(config.trained_kinds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One device on disk."""

    folder: Path
    policy: Path
    base: Path = BASE

    @property
    def state(self) -> Path:
        """Return its state folder."""
        return self.folder / "state"

    def node(self) -> dict[str, str | int | float | bool]:
        """Return its node configuration."""
        return {
            "partition-id": 0,
            "data-path": str(self.folder / "notes.jsonl"),
            "base-path": str(self.base),
            "policy-path": str(self.policy),
            "state-path": str(self.state),
        }

    def releases(self, subject: str = EXAMPLE) -> float:
        """Return what the device's own ledger counted; the ledger is whole."""
        try:
            with DeviceState(self.state, create=False) as state:
                return sum(s.releases for s in state.spent() if s.subject == subject)
        except LedgerError:
            return 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What a server sends: a run's configuration and an instruction."""

    scenario: str
    plan: str
    instruction: Instruction

    def saying(self, **changes: Any) -> Round:
        """Return the same round with another instruction."""
        return replace(self, instruction=replace(self.instruction, **changes))


def make_device(folder: Path, mode: str = "example", **policy: Any) -> Device:
    """Write a device with six records and a policy that allows the demo model."""
    rows = [{"note": text} for text in private_records(0, seed=5, records=6)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "notes.jsonl").write_text(text, encoding="utf-8")
    limits = {"base_models": [demo_digest()], **policy}
    return Device(folder=folder, policy=write_policy(folder, mode, **limits))


def make_round(
    mode: str = "example",
    *,
    number: int = 1,
    run: str = "run",
    config: RunConfig | None = None,
    plan: PrivacyPlan | None = None,
    anchor: SignedHead | None = None,
) -> Round:
    """Return an honest round, or one with another plan than the scenario's."""
    config = scenario(mode) if config is None else config
    plan = plan_of(config, population=POPULATION) if plan is None else plan
    size = adapter_size(config.to_json())
    return Round(
        scenario=config.to_json(),
        plan=canonical_json(plan.to_json()),
        instruction=Instruction(
            run_id=run,
            server_round=number,
            config_digest=config.digest(),
            plan_digest=plan.digest(),
            vector=np.zeros(size, dtype=np.float32),
            anchor=anchor,
        ),
    )


def ask(device: Device, asked: Round, *, node: Mapping[str, Any] | None = None) -> RecordDict:
    """Send a round to the real ClientApp of the device and return its reply."""
    InProcessGrid(app, 1)
    message = Message(encode_instruction(asked.instruction), 1, "train", group_id="1")
    where = Context(
        run_id=1,
        node_id=1,
        node_config=dict(device.node() if node is None else node),
        state=RecordDict(),
        run_config={"scenario": asked.scenario, "plan": asked.plan},
    )
    return app(message, where).content


def code(reply: RecordDict) -> str:
    """Return the code of a failure, which is all that the reply holds; "" for an answer."""
    header = reply[HEADER]
    if "failure" not in header:
        return ""
    assert list(reply) == [HEADER]
    assert set(header) == {"protocol", "failure"}
    return str(header["failure"])


def vector_of(reply: RecordDict) -> Vector:
    """Return the update of an answer."""
    record = reply["adapter"]
    assert isinstance(record, ArrayRecord)
    return np.asarray(record["vector"].numpy(), dtype=np.float32)


class HonestLedger:
    """The key and the heads of a server's ledger."""

    def __init__(self, secret: bytes = b"s" * 32) -> None:
        self._signer = LedgerSigner(secret)

    @property
    def key(self) -> str:
        """Return its public key."""
        return self._signer.public_key

    def head(self, seq: int, name: str = "a") -> SignedHead:
        """Return a signed head."""
        return self._signer.sign(Head(seq=seq, hash=name * 64))
