"""The membership audit in plain words."""

from __future__ import annotations

from collections.abc import Sequence

from server.audit.membershiptests import Tested
from server.audit.protocol import Terms


def differs(one: Tested) -> str:
    """Say that the sides of a set can be told apart without the adapter."""
    return (
        f"Words, lengths or the base model alone already tell the two sides of the "
        f"{one.scored.name} texts apart: they differ in distribution, so what is measured on them "
        "is not, or not only, training."
    )


def above(one: Tested) -> str:
    """Say that a set is attacked better than its epsilon allows, and why that is no violation."""
    return (
        f"On the {one.scored.name} texts even the lower end of the corrected interval, "
        f"{100 * one.corrected[0]:.1f} %, lies above the {100 * (one.allowed or 0.0):.1f} % that "
        "the epsilon that applies allows. The interval is asymptotic and certifies nothing; "
        "whether the claim is wrong is for the one-run audit to say."
    )


def explain(main: Tested, tested: Sequence[Tested], terms: Terms) -> str:
    """Return the finding, without its verdict."""
    inside, outside = main.primary
    low, high = main.interval
    told = (
        f"Given one text that was trained on and one that was not ({main.scored.source}, "
        f"{inside.size} and {outside.size}), an attacker who {_does(main)} "
        f"names the right one {100 * main.auc:.1f} % of the time "
        f"({100 * (1 - terms.alpha):.0f} % interval {100 * low:.1f} to {100 * high:.1f}); guessing "
        f"gives 50 %, the base model alone {100 * main.blind_auc:.1f} %."
    )
    if main.allowed is not None:
        told += f" The epsilon that applies allows an attacker {_share(main.allowed)}."
    if main.scored.repeats > 1:
        told += f" Each planted text was there {main.scored.repeats} times."
    return f"{told} {_rate(main, terms)} {_tests(tested, terms)}"


def _does(main: Tested) -> str:
    """Say what the attacker of the primary score does."""
    if main.scored.planted:
        return "goes by the loss under the adapter"
    return "compares the adapter with the base model"


def _rate(main: Tested, terms: Terms) -> str:
    """Say how many members are found at the lowest false positive rate that can be seen."""
    seen = [rate for rate in main.rates(terms.alpha) if rate.value is not None]
    if not seen:
        return "There are too few non-members to state a rate at few false accusations."
    low, high = seen[-1].interval or (0.0, 1.0)
    return (
        f"At {100 * seen[-1].fpr:g} % false accusations it finds {100 * (seen[-1].value or 0):.1f} "
        f"% of the members ({100 * low:.1f} to {100 * high:.1f})."
    )


def _tests(tested: Sequence[Tested], terms: Terms) -> str:
    """Say which of all tests tell the sides apart."""
    count = sum(len(one.p_values) for one in tested)
    parts = [
        f"{one.scored.name} {100 * one.auc:.1f} % "
        f"({', '.join(one.detected(terms.alpha)) or 'no score'})"
        for one in tested
    ]
    return (
        f"Of {count} tests, corrected together, by set with the scores that tell its sides apart: "
        f"{'; '.join(parts)}."
    )


def _share(allowed: float) -> str:
    """Return a percentage that does not round up to certainty."""
    return "more than 99.9 %" if allowed > 0.999 else f"up to {100 * allowed:.1f} %"
