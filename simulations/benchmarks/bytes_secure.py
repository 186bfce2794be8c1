"""A round of secure aggregation over messages that are counted, for the benchmark ``bytes``."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from client.fleet.records import encode
from client.fleet.worker import from_flower
from client.secure import answer_phase
from server.collect import SecureRound
from server.messenger import Messenger
from shared.errors import SecureAggregationError
from shared.link import Downlink
from shared.lora import Vector
from shared.privacy.distributed import NoisedShare
from shared.privacy.ledger import Ledger
from shared.privacy.ledger_signing import LedgerSigner, SignedHead
from shared.privacy.mechanism import AdapterDelta, clip_update
from shared.privacy.noise import NoiseSource
from shared.privacy.plan import PrivacyPlan
from shared.privacy.planning import make_plan
from shared.seeding import data_rng
from shared.wire import (
    Instruction,
    PhaseCall,
    Records,
    decode_phase_call,
    encode_phase_reply,
    payload_bytes,
)
from simulations.keyring import SimulatedKeyring

DIGEST = "0" * 64
_SEED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """What went one way.

    Attributes:
        payload: bytes of numbers and names.
        encoded: bytes of all objects.
        objects: how many objects; each is a request of its own.
    """

    payload: int = 0
    encoded: int = 0
    objects: int = 0

    @classmethod
    def of(cls, content: Records) -> Sent:
        """Count a content."""
        tree = encode(from_flower(content))
        return cls(payload=payload_bytes(content), encoded=tree.size, objects=len(tree.contents))

    def plus(self, other: Sent) -> Sent:
        """Return the sum of two messages."""
        return Sent(
            payload=self.payload + other.payload,
            encoded=self.encoded + other.encoded,
            objects=self.objects + other.objects,
        )


def secure(size: int, cohort: int) -> tuple[Sent, Sent]:
    """Play a round of secure aggregation and return the most that a client sent and was sent.

    Raises:
        SecureAggregationError: if the sum was not opened.
    """
    plan = _distributed_plan(cohort)
    keyring = SimulatedKeyring(_SEED, cohort)
    device = Device(plan=plan, keyring=keyring, dimension=size)
    phones = Phones(device)
    outcome = SecureRound(
        phones,
        {client + 1: client for client in range(cohort)},
        plan=plan,
        roster=keyring.roster,
        instruction=instruction_of(numbers(size), plan_digest=plan.digest()),
        padding=frozenset(),
    ).run(_tell_nobody)
    if outcome.result is None:
        msg = f"The round was aborted: {outcome.failure}"
        raise SecureAggregationError(msg)
    return _most(phones.up), _most(phones.down)


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A client that has no model: its update is noise of its own, clipped and encoded."""

    plan: PrivacyPlan
    keyring: SimulatedKeyring
    dimension: int

    @property
    def digests(self) -> tuple[str, str]:
        """Return the digests of scenario and plan."""
        return DIGEST, self.plan.digest()

    def downlink_of(self, index: int) -> Downlink | None:
        """Return nothing: the adapter travels whole."""
        del index
        return None

    def update_size(self, server_round: int) -> int:
        """Return the size of its update, the same in every round."""
        del server_round
        return self.dimension

    def train_share(self, index: int, instruction: Instruction, *, cohort: int) -> NoisedShare:
        """Return a noised share."""
        mechanism = self.plan.distributed_mechanism
        delta = AdapterDelta(vector=numbers(self.dimension, index))
        clipped = clip_update(delta, clipping_norm=mechanism.clipping_norm)
        source = NoiseSource.seeded(_SEED, "share", index, instruction.server_round)
        return mechanism.share(clipped, cohort=cohort, source=source)


@dataclass(slots=True)
class _Ways:
    """What each client sent and was sent."""

    up: dict[int, Sent] = field(default_factory=dict)
    down: dict[int, Sent] = field(default_factory=dict)


class Phones(Messenger):
    """Clients that answer every phase at once, and count.

    Args:
        device: what all of them are.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._states: dict[int, Records] = {}
        self._ways = _Ways()

    @property
    def up(self) -> Mapping[int, Sent]:
        """Return what each client sent."""
        return self._ways.up

    @property
    def down(self) -> Mapping[int, Sent]:
        """Return what each client was sent."""
        return self._ways.down

    def exchange(
        self, kind: str, contents: Mapping[int, Records], *, group: str
    ) -> Iterator[tuple[int, Records | None]]:
        """Let every client answer its phase."""
        del kind, group
        for node, content in contents.items():
            reply = self._answer(node - 1, content)
            for sent, message in ((self._ways.down, content), (self._ways.up, reply)):
                sent[node] = sent.get(node, Sent()).plus(Sent.of(message))
            yield node, reply

    def _answer(self, client: int, content: Records) -> Records:
        """Answer one message."""
        call = _require(decode_phase_call(content))
        state = self._states.setdefault(client, Records())
        reply = answer_phase(call, content, runtime=self._device, client=client, state=state)
        return encode_phase_reply(reply)


def _require(call: PhaseCall | None) -> PhaseCall:
    """Return a phase of a secure aggregation.

    Raises:
        SecureAggregationError: if the message is none.
    """
    if call is None:
        msg = "A message is no phase of a secure aggregation."
        raise SecureAggregationError(msg)
    return call


def _distributed_plan(cohort: int) -> PrivacyPlan:
    """Return a plan in which everybody takes part."""
    return make_plan(
        mode="client-distributed",
        unit="client",
        neighboring_relation="add-or-remove-one",
        delta=1e-3,
        noise_multiplier=2.0,
        clipping_norm=1.0,
        sampling_probability=1.0,
        rounds=1,
        population=cohort,
        honest_fraction=0.9,
        survivor_fraction=0.7,
        min_cohort=cohort,
    )


def instruction_of(vector: Vector, *, plan_digest: str = DIGEST) -> Instruction:
    """Return what a server says, with the signed end of a ledger."""
    return Instruction(
        run_id="scenario-0123456789ab",
        server_round=1,
        config_digest=DIGEST,
        plan_digest=plan_digest,
        vector=vector,
        anchor=_anchor(),
    )


def _anchor() -> SignedHead | None:
    """Return the signed end of a new ledger."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.sqlite"
        with Ledger(path, signer=LedgerSigner.load_or_create(path.with_suffix(".key"))) as ledger:
            return ledger.signed_head()


def numbers(size: int, number: int = 0) -> Vector:
    """Return numbers no two pieces of which are alike: equal pieces would travel once."""
    drawn = data_rng(_SEED, "numbers", number).standard_normal(size, dtype=np.float32)
    return np.asarray(drawn, dtype=np.float32)


def _most(sent: Mapping[int, Sent]) -> Sent:
    """Return what the client with most bytes has."""
    return max(sent.values(), key=lambda found: found.encoded)


def _tell_nobody(answered: int) -> None:
    """Take no note."""
