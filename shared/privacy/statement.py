"""The privacy statement of a run: what is promised, to whom, and what is not, in plain words."""

from __future__ import annotations

import math
from dataclasses import dataclass

from shared import validate
from shared.privacy.advice import NO_PRIVACY
from shared.privacy.clauses import Clause, counted, figure, how, noise_source, observers
from shared.privacy.events import Composition, NeighboringRelation, PrivacyUnit
from shared.privacy.group import group_epsilon
from shared.privacy.likeness import slack
from shared.privacy.plan import PrivacyPlan

__all__ = ["Clause", "PrivacyStatement", "figure", "privacy_statement"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyStatement:
    """Ordered sentences with the numbers they rest on.

    Attributes:
        clauses: in the order in which they are to be read.
        epsilon: spent by the run against whoever sees only adapters; infinite in mode none.
        delta: of that epsilon; ``None`` in mode none.
        releases: noised releases about one subject at worst; 0 in mode none.
        epsilon_rdp: the Renyi cross-check.
        epsilon_observer: against whoever knows who took part when.
        epsilon_server: against the server itself.
        epsilon_group: for ``group_size`` units at once, if asked for.
        group_size: units that one person may own, or ``None``.
    """

    clauses: tuple[Clause, ...]
    epsilon: float
    delta: float | None
    releases: int
    epsilon_rdp: float
    epsilon_observer: float
    epsilon_server: float
    epsilon_group: float | None
    group_size: int | None

    def lines(self) -> tuple[str, ...]:
        """Return the sentences alone."""
        return tuple(clause.text for clause in self.clauses)

    def to_dict(self) -> dict[str, object]:
        """Return the JSON form; an infinite epsilon is ``None``, because JSON has no infinity."""
        numbers = {
            "epsilon": self.epsilon,
            "epsilon_rdp": self.epsilon_rdp,
            "epsilon_observer": self.epsilon_observer,
            "epsilon_server": self.epsilon_server,
            "epsilon_group": self.epsilon_group,
        }
        return {
            **{name: _finite_or_none(value) for name, value in numbers.items()},
            "delta": self.delta,
            "releases": self.releases,
            "group_size": self.group_size,
            "clauses": [{"topic": c.topic, "text": c.text, "alarm": c.alarm} for c in self.clauses],
        }


def privacy_statement(
    plan: PrivacyPlan,
    *,
    epsilon_spent: float,
    releases: int,
    examples_per_person: int | None = None,
    losses_measured: bool = True,
) -> PrivacyStatement:
    """Say what a run promises.

    Args:
        plan: the plan that the run followed.
        epsilon_spent: what the ledger says was spent (PLD), infinite in mode none.
        releases: noised releases about one subject at worst.
        examples_per_person: public bound k on the units that one person owns; gives the figure for
            a whole person by group privacy.
        losses_measured: whether a simulator measured held-out losses on private text.

    Returns:
        The statement.

    Raises:
        InvalidValue: if a number is out of range; ``epsilon_spent`` may be infinite but not NaN.
    """
    if not math.isinf(epsilon_spent) or epsilon_spent < 0:
        validate.non_negative(epsilon_spent=epsilon_spent)
    if releases != 0:
        validate.positive_integer(releases=releases)
    if examples_per_person is not None:
        validate.positive_integer(examples_per_person=examples_per_person)
    if plan.delta is None or plan.neighboring_relation is None or plan.unit is None:
        return _without_privacy(losses_measured=losses_measured)
    group = _group_epsilon(plan, examples_per_person)
    clauses = (
        *_promise(plan, plan.unit, plan.delta, epsilon_spent, releases),
        *how(plan),
        *observers(plan, plan.delta),
        *_inside_clients(plan),
        noise_source(plan),
        *_limits(plan.unit, examples_per_person, group, losses_measured=losses_measured),
        *(Clause(topic="warning", text=_sentence(text)) for text in plan.warnings()),
    )
    return PrivacyStatement(
        clauses=clauses,
        epsilon=epsilon_spent,
        delta=plan.delta,
        releases=releases,
        epsilon_rdp=plan.epsilon(accountant="rdp"),
        epsilon_observer=plan.observer_epsilon(),
        epsilon_server=plan.server_epsilon(),
        epsilon_group=group,
        group_size=examples_per_person,
    )


def _promise(
    plan: PrivacyPlan, unit: PrivacyUnit, delta: float, epsilon: float, releases: int
) -> tuple[Clause, ...]:
    """Say unit, adjacency, epsilon with delta and releases, and both accountants."""
    whose = {
        PrivacyUnit.EXAMPLE: "one training example of one client",
        PrivacyUnit.CLIENT: "one client with all its data",
    }[unit]
    adjacency = {
        NeighboringRelation.ADD_OR_REMOVE_ONE: "one {} is added or removed (add-or-remove-one)",
        NeighboringRelation.REPLACE_ONE: "one {} is replaced by any other (replace-one)",
    }[NeighboringRelation(str(plan.neighboring_relation))].format(unit)
    return (
        Clause(topic="unit", text=f"The unit of privacy is {whose}."),
        Clause(topic="adjacency", text=f"Two datasets are neighbours if {adjacency}."),
        Clause(
            topic="epsilon",
            text=(
                f"This run spent epsilon = {figure(epsilon)} at delta = {delta:.3g} in "
                f"{counted(releases, 'noised release')} about one {unit} at worst; the plan "
                f"allows epsilon = {figure(plan.epsilon())} in "
                f"{counted(plan.releases_after(plan.rounds), 'release')}, the cap is "
                f"{figure(plan.cap or math.inf)}."
            ),
        ),
        Clause(topic="accountant", text=_accountant(plan)),
    )


def _accountant(plan: PrivacyPlan) -> str:
    """Say which theory the figure comes from, and what the other one gives."""
    if plan.accountant == "rdp":
        return (
            "Epsilon comes from Renyi divergences of the Skellam mechanism (Agarwal, Kairouz and "
            "Liu 2021), an upper bound that holds for every size of the adapter; its integer grid "
            "is too coarse for a tighter accountant."
        )
    added = slack(Composition.of(plan.total_events()))
    likened = (
        "that of the same releases with Gaussian noise, and at most "
        f"{figure(added)} more, because on so fine an integer grid Skellam noise is that close to "
        "rounded Gaussian noise, in adapters of up to 2,147,483,647 parameters; "
    )
    return (
        "Epsilon comes from privacy loss distributions (PLD), valid for the "
        f"schedule fixed in advance; {likened if added else ''}the Renyi cross-check gives "
        f"{figure(plan.epsilon(accountant='rdp'))} for the whole plan."
    )


def _inside_clients(plan: PrivacyPlan) -> tuple[Clause, ...]:
    """State the second guarantee of a plan that also noises every step inside a client."""
    inner = plan.example
    if inner is None or inner.delta is None:
        return ()
    mechanism, sampling, _ = how(inner)
    promise = (
        f"A second guarantee holds beside the first, for one training example of one client "
        f"({inner.neighboring_relation}): epsilon = {figure(inner.epsilon())} at delta = "
        f"{inner.delta:.3g} in {inner.releases_after(inner.rounds)} noised steps at most, against "
        "everyone, the server included. The two are not added: they are about different units."
    )
    return (
        Clause(topic="second-guarantee", text=promise),
        Clause(topic="second-guarantee", text=f"{mechanism.text} {sampling.text}"),
    )


def _limits(
    unit: PrivacyUnit, size: int | None, group: float | None, *, losses_measured: bool
) -> tuple[Clause, ...]:
    """Say what is not protected."""
    clauses: list[Clause] = []
    if losses_measured:
        clauses.append(
            Clause(
                topic="not-protected",
                text=(
                    "Held-out losses in this report were measured by the simulator on private "
                    "text, without noise; epsilon does not cover them, and a deployment must not "
                    "publish such numbers."
                ),
            )
        )
    clauses.append(
        Clause(
            topic="not-protected",
            text=(
                "Choosing hyper-parameters by looking at results of other private runs is not "
                "covered, nor are the data that the base model was trained on."
            ),
        )
    )
    if unit is PrivacyUnit.EXAMPLE:
        person = (
            f"With at most {size} examples of one person, the person's epsilon is "
            f"{figure(group)} at the same delta."
            if size is not None and group is not None
            else "How many examples one person may own was not stated, so no figure for a person "
            "can be given."
        )
        text = f"Epsilon is for one example, not for one person. {person}"
        clauses.append(Clause(topic="not-per-person", text=text))
    elif size is not None and group is not None and size > 1:
        text = f"For a person who owns {size} clients, epsilon is {figure(group)}."
        clauses.append(Clause(topic="not-per-person", text=text))
    return tuple(clauses)


def _without_privacy(*, losses_measured: bool) -> PrivacyStatement:
    """Return the statement of mode none, all of it in red."""
    clauses = [
        Clause(topic="none", text=NO_PRIVACY, alarm=True),
        Clause(
            topic="who-sees-what",
            text="The server sees each client's update as it is, and so does whoever runs it.",
            alarm=True,
        ),
    ]
    if losses_measured:
        text = "Held-out losses were measured on private text."
        clauses.append(Clause(topic="not-protected", text=text, alarm=True))
    return PrivacyStatement(
        clauses=tuple(clauses),
        epsilon=math.inf,
        delta=None,
        releases=0,
        epsilon_rdp=math.inf,
        epsilon_observer=math.inf,
        epsilon_server=math.inf,
        epsilon_group=None,
        group_size=None,
    )


def _group_epsilon(plan: PrivacyPlan, size: int | None) -> float | None:
    """Return epsilon for one person's units under the whole plan, if a bound is known."""
    if size is None or plan.delta is None or plan.neighboring_relation is None:
        return None
    return group_epsilon(
        plan.total_events(), size=size, delta=plan.delta, relation=plan.neighboring_relation
    )


def _sentence(text: str) -> str:
    """Start with a capital letter."""
    return text[:1].upper() + text[1:]


def _finite_or_none(value: float | None) -> float | None:
    """Return a number that JSON has."""
    return value if value is not None and math.isfinite(value) else None
