"""What another setting would do to the privacy plan: noise for the same epsilon, or epsilon."""

from __future__ import annotations

from dataclasses import dataclass

from shared.config import RunConfig
from shared.scenarioplan import plan_of


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyEffect:
    """The privacy plan of a scenario, before and after a change.

    Attributes:
        epsilon: of the plan, before and after.
        noise_multiplier: over the clip, before and after.
    """

    epsilon: tuple[float, float]
    noise_multiplier: tuple[float, float]

    @property
    def none(self) -> bool:
        """Whether the plan is what it was."""
        before, after = self.noise_multiplier
        return before == after and self.epsilon[0] == self.epsilon[1]

    def __str__(self) -> str:
        """Say it in one line."""
        if self.none:
            return "the plan stays what it is"
        noise = "noise multiplier {:.4g} to {:.4g}".format(*self.noise_multiplier)
        before, after = self.epsilon
        # A target is reached to the accuracy of the calibration, never passed.
        if abs(after - before) <= 1e-2 * before:
            return f"{noise} for epsilon {max(before, after):.4g}"
        return f"{noise}, epsilon {before:.4g} to {after:.4g}"


def effect_of(before: RunConfig, after: RunConfig, *, population: int) -> PrivacyEffect | None:
    """Compare the privacy plans of two scenarios; None in mode ``none``.

    Both are made by :func:`shared.scenarioplan.plan_of`, the same that a run would follow. Where
    DP-SGD stands beside a client mode, the plan that differs is reported.

    Args:
        before: a scenario.
        after: the same with another setting.
        population: number of clients; public.

    Raises:
        PrivacyError: if a plan cannot be made, or passes its cap.
    """
    if before.privacy.mode == "none":
        return None
    first, second = plan_of(before, population=population), plan_of(after, population=population)
    if first.digest() == second.digest():
        pair = (first, first)
    elif first.example is not None and second.example is not None:
        same = first.noise_multiplier == second.noise_multiplier
        pair = (first.example, second.example) if same else (first, second)
    else:
        pair = (first, second)
    epsilons = tuple(plan.epsilon() for plan in pair)
    noises = tuple(plan.noise_multiplier or 0.0 for plan in pair)
    return PrivacyEffect(
        epsilon=(epsilons[0], epsilons[1]), noise_multiplier=(noises[0], noises[1])
    )
