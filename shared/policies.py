"""LoRA aggregation policies as facts: what is trained and sent when, and what that allows.

``y = W0 x + s B A x``. A policy says which factors move over a run, which of them a client trains
and sends in a round, whether the mean of what is sent is the mean of the products ``B A``, and
whether the server's step is linear in what is sent. Only a linear policy may be summed under masks
or protected by noise that is added to a sum (docs/aggregation.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final, Literal

from shared.errors import InvalidValue

PolicyName = Literal["ffa", "fedavg", "rolora", "flexlora", "fedex"]
Share = Literal["AB", "A"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """One way to turn updates of factors into the next adapter.

    Attributes:
        name: as ``aggregation.policy`` names it.
        moved: kinds of factors that change over a run; what the server sends and keeps.
        cycle: kinds that clients train and send, round by round, from the start again at its end.
        exact: whether the new product is the mean of the clients' products (of its best rank r).
        linear: whether the server's mean is linear in what clients send.
        kept: kinds that clients train beside those, and keep to themselves.
        residual: whether what the means of factors leave over is put into the base.
    """

    name: PolicyName
    moved: str
    cycle: tuple[str, ...]
    exact: bool
    linear: bool
    kept: str = ""
    residual: bool = False

    def sent(self, server_round: int) -> str:
        """Return the kinds that are trained and sent in a round, counted from 1."""
        if not server_round >= 1:
            msg = f"server_round={server_round}, expected at least 1."
            raise InvalidValue(msg)
        return self.cycle[(server_round - 1) % len(self.cycle)]

    def trained(self, server_round: int) -> str:
        """Return the kinds that a client's steps move in a round, sent or kept."""
        return "".join(sorted(self.sent(server_round) + self.kept))

    @property
    def local(self) -> str:
        """Return the kinds that clients' steps move in some round."""
        return "".join(sorted({*"".join(self.cycle), *self.kept}))

    @property
    def alternates(self) -> bool:
        """Tell whether what is sent differs from round to round."""
        return len(set(self.cycle)) > 1

    @property
    def probed_round(self) -> int:
        """Return the first round in which most can be read off an update: where A is sent."""
        return next((n for n, kinds in enumerate(self.cycle, start=1) if "A" in kinds), 1)


_ALL = (
    Policy(name="ffa", moved="B", cycle=("B",), exact=True, linear=True),
    Policy(name="fedavg", moved="AB", cycle=("AB",), exact=False, linear=True),
    # B first: while B is zero, A has no gradient.
    Policy(name="rolora", moved="AB", cycle=("B", "A"), exact=True, linear=True),
    Policy(name="flexlora", moved="AB", cycle=("AB",), exact=True, linear=False),
    Policy(name="fedex", moved="AB", cycle=("AB",), exact=True, linear=False, residual=True),
)
POLICIES: Final[Mapping[str, Policy]] = MappingProxyType({p.name: p for p in _ALL})


def policy_in_force(name: str, *, share: Share, refactors: bool) -> Policy:
    """Return a policy with what a scenario adds to it.

    Args:
        name: of :data:`POLICIES`.
        share: which factors clients send of those that they train; under ``fedavg``, ``"A"`` keeps
            each client's B to itself.
        refactors: whether the server writes the product as other factors now and then; under
            ``ffa``, A then moves too, and is sent to clients.
    """
    policy = POLICIES[name]
    if share == "A" and name == "fedavg":
        return replace(policy, moved="A", cycle=("A",), kept="B")
    return replace(policy, moved="AB") if refactors and name == "ffa" else policy
