"""What a device asks before it trains: the owner's policy and its own memory.

Whatever takes the local steps; nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from client.devicestore import Answer
from client.participant import Participant
from client.refusals import refusals_logged
from client.state import DeviceState
from shared.canonical import canonical_json, sha256_hex
from shared.errors import PolicyRefused, SchemaMismatch
from shared.privacy.noise import SEEDED

if TYPE_CHECKING:
    from client.policy import ClientPolicy
    from shared.privacy.distributed import NoisedShare
    from shared.wire import ClientUpdate, Instruction, Measurement

_LONGEST_NAME = 200


class Guarded(Participant):
    """A participant that answers a round once, within the owner's budgets, to an honest ledger.

    To be put before the class that takes the steps. Until :meth:`guard_by` was called there is no
    policy, and no round is answered.

    Guarantee:
        Before a private record is touched, the instruction belongs to the plan that the policy was
        checked against, the head of the server's ledger is not older than the last one seen, the
        round was not answered before, and its cost is on the device's disk. A round that fails
        afterwards stays charged.

    Attributes:
        policy: the owner's limits.
    """

    policy: ClientPolicy
    _state: Path

    def guard_by(self, policy: ClientPolicy, state: Path) -> None:
        """Answer by a policy, and remember in a folder.

        Args:
            policy: the owner's limits.
            state: the device's state folder.
        """
        self.policy = policy
        self._state = state
        self.remember_in(state)

    def train(self, index: int, instruction: Instruction) -> ClientUpdate:
        """Answer a round, or refuse.

        Raises:
            SchemaMismatch: if the instruction belongs to another scenario or plan, or has a round
                or a clip that the plan does not have.
            PolicyRefused: if the owner, or what was answered before, forbids it.
            PrivacyBudgetExhausted: if a budget of the device would be passed.
            LedgerTampered: if the server's ledger, or the device's own, went back or was changed.
        """
        with self._participation(index, instruction, cohort=None):
            return super().train(index, instruction)

    def train_share(self, index: int, instruction: Instruction, *, cohort: int) -> NoisedShare:
        """Answer a round of a secure sum, or refuse; an empty share costs nothing.

        Raises:
            PolicyRefused: also if the announced cohort is smaller than the owner allows.
            FedSLMError: else as :meth:`train`.
        """
        with self._participation(index, instruction, cohort=cohort):
            return super().train_share(index, instruction, cohort=cohort)

    def measure(self, index: int, instruction: Instruction) -> Measurement:
        """Refuse: no event pays for a held-out loss.

        Raises:
            PolicyRefused: always.
        """
        del index, instruction
        msg = "Held-out losses do not leave a device."
        raise PolicyRefused(msg)

    @contextmanager
    def _participation(
        self, index: int, instruction: Instruction, *, cohort: int | None
    ) -> Iterator[None]:
        """Admit one round: everything is checked and charged before the body makes the answer."""
        with ExitStack() as stack:
            with refusals_logged():
                self._require_ours(instruction)
                self._check(instruction, index)
                self._require_cohort(cohort)
                state = stack.enter_context(DeviceState(self._state))
                state.see_head(instruction.anchor, trusted=self.policy.server_key)
                admission = state.admit(
                    Answer(
                        run_id=instruction.run_id,
                        server_round=instruction.server_round,
                        plan_digest=instruction.plan_digest,
                        request=_request(instruction, cohort),
                        # Only a share can be empty; `train` always touches the records.
                        empty=cohort is not None and instruction.empty,
                    ),
                    [c.at(instruction.server_round) for c in self.policy.charges(self.plan)],
                    repeatable=self.plan.noise_source == SEEDED,
                    repeats=self.policy.max_repeats,
                )
            yield
            state.commit(admission)

    def _require_ours(self, instruction: Instruction) -> None:
        """Refuse an instruction of another scenario or plan, or of a round that is not planned."""
        asked = (instruction.config_digest, instruction.plan_digest)
        names = ("scenario", "plan")
        for name, found, expected in zip(names, asked, self.digests, strict=True):
            if found != expected:
                msg = f"The instruction belongs to another {name} (digest {found[:12]!r}, "
                msg += f"expected {expected[:12]!r})."
                raise SchemaMismatch(msg)
        if not 1 <= instruction.server_round <= self.plan.rounds:
            msg = f"Round {instruction.server_round}, the plan has rounds 1 to {self.plan.rounds}."
            raise SchemaMismatch(msg)
        if not 1 <= len(instruction.run_id) <= _LONGEST_NAME:
            msg = f"The instruction names no run in 1 to {_LONGEST_NAME} characters."
            raise SchemaMismatch(msg)
        quantile, clip = self.plan.quantile, instruction.clipping_norm
        if quantile is None or clip is None:
            return
        if not quantile.smallest <= clip <= quantile.largest:
            msg = f"clipping_norm={clip!r}, the plan lets it move from {quantile.smallest:g} to "
            msg += f"{quantile.largest:g}."
            raise SchemaMismatch(msg)

    def _require_cohort(self, cohort: int | None) -> None:
        """Refuse a secure sum over fewer clients than the owner wants."""
        limits = self.policy.secure_aggregation
        if cohort is None:
            return
        if limits is None or not cohort >= limits.min_cohort:
            allowed = "none" if limits is None else f"at least {limits.min_cohort}"
            msg = f"The announced cohort has {cohort} clients, this device allows {allowed}."
            raise PolicyRefused(msg)


def _request(instruction: Instruction, cohort: int | None) -> str:
    """Return the digest of everything that an answer depends on."""
    said = canonical_json([instruction.clipping_norm, instruction.empty, cohort])
    parts = [said.encode(), instruction.vector.tobytes()]
    if instruction.reference is not None:
        parts.append(instruction.reference.tobytes())
    if instruction.residual is not None:
        parts += [b"beneath", instruction.residual.vector.tobytes()]
    return sha256_hex(b"|".join(parts))
