"""What the audit of query privacy reads: labelled queries, and the redactor of the device.

The queries below are our own, written by hand and not by the grammar that the tagger is trained on.
Nobody is meant: telephone numbers are those reserved for fiction, cards and accounts are the test
numbers of their issuers, and addresses on the net belong to documentation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from client.redaction.engine import Redactor, default_redactor
from client.redaction.placeholders import Session
from server.audit.querycounts import Labelled, LabelledQuery, QueryRedactor
from server.audit.queryprivacy import LabelledQueries
from shared.errors import DataFileNotFound, MalformedRow

# [text](KIND) marks what is personal.
_MARKED = """
My name is [Oluwaseun Adeyemi](PERSON) and I would like to close my account.
hi, [gareth pryce](PERSON) here, why was i charged twice this week?
Could you translate this letter to [Mrs.](TITLE) [Castellanos](PERSON) into polite Spanish?
[Dr.](TITLE) [Hyun-woo Baek](PERSON) told me to double the dose, is that safe with ibuprofen?
My neighbour [Torvald](PERSON) plays the drums until midnight; what can I do about it?
Draft a complaint to [Brightwater Energy Ltd](ORGANIZATION) about my last invoice.
I was let go by [Halvorsen Logistics](ORGANIZATION) after [Ms](TITLE) [Figueroa](PERSON) took over.
Does [Quillfeather Books](ORGANIZATION) in [Aberystwyth](GPE) still buy second-hand novels?
We fly from [Ljubljana](GPE) to [Casablanca](GPE) with two children, what should we pack?
Is it safe to drink the water in [Guadalajara](GPE) in [August](DATE_TIME)?
I live in [Thunder Bay](GPE) and my furnace stopped working, who can I call?
Send the replacement to [17 Tannery Lane](STREET_ADDRESS), [Kilkenny](GPE), please.
My new address is [4402 Juniper Ridge Road](STREET_ADDRESS), [Flagstaff](GPE) [86004](ZIP_CODE).
How do I get from [Via dei Tintori 8](STREET_ADDRESS) to the station in [Ferrara](GPE)?
The parcel was left at [Lindenallee 23](STREET_ADDRESS) instead of [Lindenallee 32](STREET_ADDRESS).
Call me on [212-555-0147](PHONE_NUMBER) after lunch or leave a message.
My number changed from [(312) 555-0188](PHONE_NUMBER) to [+44 20 7946 0321](PHONE_NUMBER).
Reach the office at [+1 416 555 0134](PHONE_NUMBER) and ask for [Priyanka](PERSON).
Why does the form refuse [m.oyelaran@example.org](EMAIL_ADDRESS) as an address?
Forward it to [legal-team@example.com](EMAIL_ADDRESS) and to [jo@example.net](EMAIL_ADDRESS).
The card [4111 1111 1111 1111](CREDIT_CARD) was declined at the petrol station.
Please remove [5555555555554444](CREDIT_CARD) and use [378282246310005](CREDIT_CARD) from now on.
Is [GB82 WEST 1234 5698 7654 32](IBAN_CODE) a valid account for a standing order?
I transferred the rent to [DE89370400440532013000](IBAN_CODE) on [3 May](DATE_TIME).
Somebody from [203.0.113.77](IP_ADDRESS) keeps trying to log in to my server.
The router at [198.51.100.24](IP_ADDRESS) answers, the one at [192.0.2.9](IP_ADDRESS) does not.
My blog is [www.example.com](DOMAIN_NAME), can you suggest a better headline?
Why is [https://example.org/menu](DOMAIN_NAME) so slow on my phone?
I am [34](AGE), pregnant, and my iron is low; which food helps?
My father is [81](AGE) years old and forgets to drink, how much water does he need?
Our [7](AGE)-year-old daughter [Annelise](PERSON) has a rash on both arms.
I was born on [14 February 1987](DATE_TIME), which vaccines do I need?
My appointment is on [2026-03-19](DATE_TIME), can it be moved to [Thursday](DATE_TIME)?
As a [Lithuanian](NRP) citizen, do I need a visa for [Brazil](GPE)?
My [Turkish](NRP) colleague [Emirhan](PERSON) celebrates next week, what is a good gift?
A toast for [Siobhan](PERSON) and [Mateusz](PERSON), who met at [Trinity College](ORGANIZATION).
Rewrite politely: [Kowalczyk](PERSON) never answers my mails and [Dupree](PERSON) ignores me.
[Ingeborg](PERSON) wants to know whether her cat may eat tuna.
[Rashida Okafor](PERSON)'s landlord kept the deposit; what can she do under the law?
[Bjarne Lund](PERSON) sued [Nordhavn Shipping](ORGANIZATION) in [2019](DATE_TIME), who won?
Please book a table for four under the name [Abernathy](PERSON).
Explain to [Leilani](PERSON), who is [9](AGE), why the sky is blue.
My social security number is [219-09-9345](US_SSN), is it needed for a library card?
What is the best way to remove red wine from a carpet?
How long do I boil an egg that comes straight from the fridge?
Explain the difference between a list and a tuple in Python.
Which vitamins are in spinach, and how much of it should one eat?
Write a limerick about a frog who wanted to fly.
My back hurts after running; which stretches help?
Convert 250 grams of flour to cups, please.
Why do cats purr?
What does it mean when a contract says that a clause is severable?
"""

_MARK = re.compile(r"\[([^\]]+)\]\(([A-Z_]+)\)")
_HINT = "Expected a JSON list of objects with full_text and spans, as presidio-research writes it."


def parse_marked(line: str) -> LabelledQuery:
    """Read a query in which ``[text](KIND)`` marks what is personal.

    Raises:
        InvalidValue: if a mark holds no letter or digit.
    """
    plain, labels, done = "", [], 0
    for mark in _MARK.finditer(line):
        plain += line[done : mark.start()]
        labels.append(
            Labelled(start=len(plain), end=len(plain) + len(mark.group(1)), kind=mark.group(2))
        )
        plain += mark.group(1)
        done = mark.end()
    return LabelledQuery(text=plain + line[done:], labels=tuple(labels))


def embedded_queries() -> LabelledQueries:
    """Return our own labelled queries."""
    lines = _MARKED.strip().splitlines()
    return LabelledQueries(
        queries=tuple(parse_marked(line) for line in lines), source="embedded queries"
    )


def load_queries(
    path: Path,
    *,
    protected: frozenset[str] | None = None,
    promised: Mapping[str, float] | None = None,
    keep: Callable[[Mapping[str, Any]], bool] | None = None,
) -> LabelledQueries:
    """Read labelled queries in the shape of presidio-research's ``synth_dataset_v2.json``.

    Args:
        path: a JSON list of objects with ``full_text`` and ``spans``, each span with
            ``start_position``, ``end_position`` and ``entity_type``.
        protected: the kinds that are meant to be hidden; None for every kind that is labelled.
        promised: promised recall by kind.
        keep: says of an entry whether it counts; None for all.

    Raises:
        DataFileNotFound: if the file cannot be read.
        MalformedRow: if it is not such a list; the entry's number is given, not its text.
        InvalidValue: if there is no query, or a label lies outside its text.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        msg = f"{path.name} cannot be read."
        raise DataFileNotFound(msg, hint="Give a file of labelled queries.") from error
    except ValueError as error:
        msg = f"{path.name} is not JSON."
        raise MalformedRow(msg, hint=_HINT) from error
    if not isinstance(data, list):
        msg = f"{path.name} holds no list."
        raise MalformedRow(msg, hint=_HINT)
    queries = tuple(
        _query(entry, number, path.name)
        for number, entry in enumerate(data)
        if keep is None or (isinstance(entry, dict) and keep(entry))
    )
    return LabelledQueries(
        queries=queries, source=path.name, protected=protected, promised=dict(promised or {})
    )


def _query(entry: Any, number: int, name: str) -> LabelledQuery:  # noqa: ANN401
    """Read one entry."""
    try:
        labels = tuple(
            Labelled(
                start=_integer(span["start_position"]),
                end=_integer(span["end_position"]),
                kind=str(span["entity_type"]),
            )
            for span in entry["spans"] or ()
        )
        words = entry["full_text"]
        if not isinstance(words, str):
            raise TypeError
    except (KeyError, TypeError) as error:
        msg = f"{name}: entry {number} lacks a key or has a wrong type."
        raise MalformedRow(msg, hint=_HINT) from error
    return LabelledQuery(text=words, labels=labels)


def _integer(value: Any) -> int:  # noqa: ANN401
    """Return an integer as it is; nothing else is one."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError
    return value


class DeviceRedactor(QueryRedactor):
    """The redactor of the device, a new conversation for every query.

    Args:
        redactor: what to audit; None for the one that ships.
        name: what to call it in a report.

    Raises:
        MissingDependency: without a redactor, if the ``query`` extra is not installed.
    """

    def __init__(self, redactor: Redactor | None = None, *, name: str = "") -> None:
        self._redactor = default_redactor() if redactor is None else redactor
        self._name = name or "The redactor that ships (Presidio and the tagger)"
        self._session = Session()

    @property
    def name(self) -> str:
        """What it is."""
        return self._name

    def redact(self, query: str) -> tuple[str, Sequence[Labelled]]:
        """Redact a query in a new conversation."""
        self._session = Session()
        found = self._redactor.redact(query, self._session)
        taken = [Labelled(start=s.start, end=s.end, kind=s.kind) for s in found.spans]
        return found.text, taken

    def restore(self, answer: str) -> tuple[str, int]:
        """Restore an answer with the last query's conversation."""
        restored = self._session.restore(answer)
        return restored.text, len(restored.unknown)
