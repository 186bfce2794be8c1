"""Charging: who may be charged for what, and the writing of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from shared.errors import InvalidValue, LedgerConflict
from shared.privacy.events import Composition, PrivacyEvent
from shared.privacy.ledger_state import Account, Terms, add_charges, read_accounts, write_terms
from shared.privacy.ledger_store import Db, Entry, append, subjects_digest
from shared.privacy.plan import PrivacyPlan


def charge(
    db: Db, entry: Entry, names: tuple[str, ...], event: PrivacyEvent, plan: PrivacyPlan
) -> None:
    """Decide about every subject, then write entries and state.

    Raises:
        PrivacyBudgetExhausted: if one of them would pass its cap.
        LedgerConflict: if one of them is counted on other terms than the plan's.
    """
    asked = Composition.of(event)
    found = accounts(db, names, entry.scope, plan)
    for name in names:
        if not found[name].fits(asked, plan, entry.plan_digest):
            raise found[name].refusal(asked, plan, entry.plan_digest)
    append(db, [replace(entry, subject=name) for name in names])
    db.execute(
        "INSERT INTO reservations VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            entry.reservation,
            entry.run_id,
            entry.server_round,
            entry.attempt,
            entry.scope,
            entry.plan_digest,
            entry.event,
            subjects_digest(names),
            entry.idempotency_key,
            "reserved",
        ),
    )
    write_terms(db, found.values())
    add_charges(db, names, entry.scope, entry.plan_digest, asked, sign=1)


def accounts(db: Db, names: tuple[str, ...], scope: str, plan: PrivacyPlan) -> dict[str, Account]:
    """Return the subjects' accounts as a plan finds them, new ones included.

    Raises:
        LedgerConflict: if one of them is counted on other terms than the plan's.
    """
    known = read_accounts(db, names, scope)
    terms = Terms.of(plan)
    return {
        name: known[name].under(plan)
        if name in known
        else Account(subject=name, scope=scope, terms=terms)
        for name in names
    }


def require_part_of_plan(event: PrivacyEvent, plan: PrivacyPlan) -> None:
    """Require that an event was announced: each of its releases is of a kind that the plan has.

    Raises:
        LedgerConflict: if it has another mechanism, noise, grid or sampling.
    """
    asked, planned = Composition.of(event), Composition.of(plan.every_round())
    if planned.private and not asked.private:
        msg = "a non-private event was asked for under a private plan."
        raise LedgerConflict(msg, hint="Use plan.event_for_participation().")
    if not dict(asked.counts()).keys() <= dict(planned.counts()).keys():
        msg = "an event has another mechanism, noise or sampling probability than the plan."
        raise LedgerConflict(msg, hint="Use plan.event_for_participation().")


def require_subjects(subjects: Sequence[str]) -> tuple[str, ...]:
    """Require at least one subject, each once; return them ascending.

    Raises:
        InvalidValue: otherwise, or if a name cannot be stored.
    """
    names = tuple(sorted(subjects)) if not isinstance(subjects, str) else ()
    if not (names and all(map(_storable, names)) and len(set(names)) == len(names)):
        msg = f"{len(names)} subjects, expected at least one, none empty, each once."
        raise InvalidValue(msg, hint="A round without subjects releases nothing: skip it.")
    return names


def require_names(**names: str | None) -> None:
    """Require non-empty strings that every store can hold; ``None`` is for what is optional.

    Raises:
        InvalidValue: for any other value.
    """
    for key, value in names.items():
        if not (value is None or _storable(value)):
            msg = f"{key}={value!r}, expected a non-empty string of Unicode text without NUL."
            raise InvalidValue(msg)


def _storable(text: str) -> bool:
    """Tell whether both stores hold a text as it is: no NUL, no half of a surrogate pair."""
    return bool(text) and not any(c == "\0" or "\ud800" <= c <= "\udfff" for c in text)
