"""What the owner of a device allows, whatever a server asks for.

The first form of the policy: which modes, how much epsilon, how much noise, which base model. It is
read from the node's own configuration, never from a message, and it has no permissive default.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from shared.errors import PolicyRefused
from shared.privacy.plan import PrivacyPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientPolicy:
    """The limits of one device.

    Attributes:
        modes: privacy modes the owner accepts; ``"none"`` only if it is named.
        max_epsilon: most that one plan may spend about the owner's data.
        min_noise_multiplier: floor under the plan's noise.
        base_digest: the only base model accepted, or None for any.
    """

    modes: frozenset[str]
    max_epsilon: float
    min_noise_multiplier: float
    base_digest: str | None = None

    @classmethod
    def from_node_config(cls, config: Mapping[str, object]) -> ClientPolicy:
        """Read the policy from a node's own configuration.

        Keys: ``policy-modes`` (comma-separated), ``policy-max-epsilon``,
        ``policy-min-noise-multiplier`` and, optionally, ``policy-base-digest``.

        Raises:
            PolicyRefused: if a limit is missing or not a finite number > 0; a device without a
                policy takes part in nothing.
        """
        modes = config.get("policy-modes")
        if not isinstance(modes, str) or not modes.strip():
            msg = "node_config has no policy-modes."
            raise PolicyRefused(msg, hint='Say which modes you accept, such as "example".')
        digest = config.get("policy-base-digest")
        return cls(
            modes=frozenset(mode.strip() for mode in modes.split(",")),
            max_epsilon=_limit(config, "policy-max-epsilon"),
            min_noise_multiplier=_limit(config, "policy-min-noise-multiplier"),
            base_digest=None if digest is None else str(digest),
        )

    def check(self, plan: PrivacyPlan, *, base_digest: str) -> None:
        """Refuse a plan or a base model that the owner does not allow.

        The epsilon that counts is the one against whoever knows in which rounds this device took
        part: the device knows that the server knows it.

        Raises:
            PolicyRefused: naming the limit.
        """
        if plan.mode not in self.modes:
            msg = f"mode={plan.mode!r} is not among the modes this device accepts."
            raise PolicyRefused(msg)
        if self.base_digest is not None and base_digest != self.base_digest:
            msg = "The base model is not the one this device accepts."
            raise PolicyRefused(msg)
        if plan.mode == "none":
            return
        noise = plan.noise_multiplier or 0.0
        if not noise >= self.min_noise_multiplier:
            msg = f"noise_multiplier={noise:g}, this device wants at least "
            raise PolicyRefused(f"{msg}{self.min_noise_multiplier:g}.")
        spends = plan.observer_epsilon()
        if not spends <= self.max_epsilon:
            msg = f"The plan may spend epsilon={spends:.4g}, this device allows "
            raise PolicyRefused(f"{msg}{self.max_epsilon:g}.")


def _limit(config: Mapping[str, object], key: str) -> float:
    """Return a limit that must be a finite number above zero."""
    value = config.get(key)
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf"):
        return float(value)
    msg = f"node_config has no {key}, expected a finite number > 0."
    raise PolicyRefused(msg)
