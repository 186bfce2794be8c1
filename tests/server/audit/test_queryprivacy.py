"""Query privacy: the counts by hand, the bounds by scipy, and redactors that lie."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from scipy import stats

from server.audit.protocol import AuditContext, Claim, Finding, Terms
from server.audit.querycounts import (
    Counts,
    FindsNothing,
    Labelled,
    LabelledQuery,
    QueryRedactor,
    left_over,
    solid,
)
from server.audit.queryprivacy import CONTROL, LabelledQueries, QueryPrivacy
from server.audit.queryreading import LEVEL
from shared.errors import AuditError, InvalidValue, MissingArtefact

CLAIM = Claim(mode="none", epsilon=None, delta=None, unit=None, neighboring_relation=None)
TERMS = Terms(claim=CLAIM, seed=1)


def labelled(text: str, *pieces: tuple[str, str]) -> LabelledQuery:
    labels = tuple(
        Labelled(start=text.index(piece), end=text.index(piece) + len(piece), kind=kind)
        for piece, kind in pieces
    )
    return LabelledQuery(text=text, labels=labels)


class ByList(QueryRedactor):
    """Takes out what it was told, by ``<X_n>``."""

    name = "a list"

    def __init__(self, *known: tuple[str, str], lies: bool = False) -> None:
        control = [(CONTROL.text[s.start : s.end], s.kind) for s in CONTROL.labels]
        self._known = (*known, *control)
        self._lies = lies
        self._back: dict[str, str] = {}

    def redact(self, query: str) -> tuple[str, Sequence[Labelled]]:
        self._back = {}
        taken = [
            Labelled(start=query.index(word), end=query.index(word) + len(word), kind=kind)
            for word, kind in self._known
            if word in query
        ]
        taken.sort(key=lambda span: span.start)
        sent, done = "", 0
        for number, span in enumerate(taken):
            name = f"<X_{number}>"
            self._back[name] = query[span.start : span.end]
            sent += query[done : span.start] + name
            done = span.end
        return (query if self._lies else sent + query[done:]), taken

    def restore(self, answer: str) -> tuple[str, int]:
        for name, word in self._back.items():
            answer = answer.replace(name, word)
        return answer, answer.count("<PERSON_987654321>")


ANN = labelled("Ann Lee of Oslo is 34.", ("Ann Lee", "PERSON"), ("Oslo", "GPE"), ("34", "AGE"))


def measure(
    redactor: QueryRedactor, *queries: LabelledQuery, promised: dict[str, float] | None = None
) -> dict[str, Any]:
    given = LabelledQueries(queries=queries, source="a test", promised=promised or {})
    context = AuditContext(claim=CLAIM, seed=1, artefacts=(redactor, given))
    evidence: dict[str, Any] = json.loads(json.dumps(QueryPrivacy().measure(context)))
    return evidence


def conclude(evidence: dict[str, Any]) -> Finding:
    return QueryPrivacy().conclude(evidence, TERMS)


def counted(kind: str, evidence: dict[str, Any]) -> dict[str, int]:
    [row] = [row for row in evidence["kinds"] if row["kind"] == kind]
    return {key: value for key, value in row.items() if key != "kind"}


def many(hidden: int, missed: int, **changes: Any) -> dict[str, Any]:
    """Evidence of one kind of which some were hidden and some were not."""
    query, redactor = labelled("I am Ann.", ("Ann", "PERSON")), ByList(("Ann", "PERSON"))
    other = labelled("I am Bob.", ("Bob", "PERSON"))
    evidence = measure(redactor, *[query] * hidden, *[other] * missed)
    return {**evidence, **changes}


def test_counts_by_hand() -> None:
    redactor = ByList(("Ann", "PERSON"), ("Oslo", "PERSON"), ("is", "NRP"))
    evidence = measure(redactor, ANN)
    # Of "Ann Lee", "ann" goes and "lee" stays: no run of five of "annlee" leaves.
    assert counted("PERSON", evidence) == {
        "count": 1,
        "hidden": 0,
        "touched": 1,
        "exact": 0,
        "found": 2,
        "right": 2,
        "right_kind": 1,
        "characters": 6,
        "characters_left": 3,
        "grams": 2,
        "grams_left": 0,
    }
    assert counted("GPE", evidence)["hidden"] == 1
    assert counted("GPE", evidence)["exact"] == 0
    assert counted("AGE", evidence)["touched"] == 0
    assert (counted("NRP", evidence)["found"], counted("NRP", evidence)["right"]) == (1, 0)
    assert (evidence["plain_characters"], evidence["plain_removed"]) == (4, 2)
    assert (evidence["restored"], evidence["restored_in_answer"]) == (1, 1)


def test_a_name_that_stands_unlabelled_elsewhere_is_residue() -> None:
    query = labelled("Castellanos? ask castellanos", ("Castellanos", "PERSON"))
    evidence = measure(ByList(("Castellanos", "PERSON")), query)
    row = counted("PERSON", evidence)
    assert (row["hidden"], row["grams"], row["grams_left"]) == (1, 7, 7)


@pytest.mark.parametrize(
    ("sent", "taken", "pieces"),
    [
        ("a <X> b", [(2, 5)], ["a ", " b"]),
        ("a <X>", [(2, 7)], ["a ", ""]),
        ("<X><Y> b", [(0, 1), (1, 5)], ["", "", " b"]),
        ("a Ann b", [], ["a Ann b"]),
        ("a  b", [(2, 5)], None),
        ("a <X> c", [(2, 5)], None),
        ("<X> b", [(2, 5)], None),
        ("a <X> b", [(2, 5), (4, 6)], None),
        ("a <X> b", [(3, 3)], None),
        ("<X>", [(0, 8)], None),
        ("a Ann b!", [], None),
        ("a Ann b", [(2, 5)], None),
        ("a <1> b", [(2, 5)], ["a ", " b"]),
    ],
)
def test_what_leaves_must_be_the_query_with_pieces_taken_out(
    sent: str, taken: list[tuple[int, int]], pieces: list[str] | None
) -> None:
    spans = [Labelled(start=a, end=b, kind="PERSON") for a, b in taken]
    assert left_over("a Ann b", sent, spans) == pieces


def test_a_redactor_that_says_so_and_does_not_hides_nothing() -> None:
    evidence = measure(ByList(("Ann Lee", "PERSON"), ("Oslo", "GPE"), lies=True), ANN)
    assert evidence["untraceable"] == 1
    assert counted("PERSON", evidence)["hidden"] == 0
    finding = conclude(evidence)
    assert (finding.verdict, finding.value, finding.positive_control) == ("inconclusive", 0, False)


def test_what_stands_for_a_name_may_not_hold_it() -> None:
    query, label = "I am Person Annabel.", Labelled(start=12, end=19, kind="PERSON")
    assert left_over(query, "I am Person <annabel_1>.", [label]) is None
    assert left_over(query, "I am Person <PERSON_1>.", [label]) == ["I am Person ", "."]
    word = Labelled(start=5, end=11, kind="PERSON")
    assert left_over(query, "I am <PERSON_1> Annabel.", [word]) == ["I am ", " Annabel."]


def test_a_redactor_that_finds_nothing_has_recall_zero_and_fails_its_control() -> None:
    finding = conclude(measure(FindsNothing(), *[ANN] * 40))
    assert (finding.value, finding.positive_control) == (0.0, False)
    assert finding.verdict == "inconclusive"
    assert finding.evidence["derived"]["characters_left"] == 1.0
    assert "positive control was not caught" in finding.explanation


def test_the_control_is_labelled_where_it_should_be() -> None:
    assert [CONTROL.text[s.start : s.end] for s in CONTROL.labels] == [
        "John Smith",
        "john.smith@example.org",
        "+1 212 555 0123",
    ]


def test_a_good_redactor_is_consistent_and_its_evidence_holds_no_text() -> None:
    redactor = ByList(("Ann Lee", "PERSON"), ("Oslo", "GPE"), ("34", "AGE"))
    evidence = measure(redactor, *[ANN] * 60)
    finding = conclude(evidence)
    assert (finding.verdict, finding.value, finding.positive_control) == ("consistent", 1.0, True)
    assert (finding.strength, finding.detected) == ("descriptive", False)
    assert (finding.n_in, finding.n_out) == (180, 60)
    assert conclude(json.loads(json.dumps(finding.evidence))) == finding
    stored = json.dumps(finding.to_dict())
    for word in ("Ann", "Lee", "Oslo", "John", "Smith", "example.org", "555"):
        assert word not in stored


def test_intervals_are_exact_and_corrected_over_kinds() -> None:
    evidence = many(50, 10)
    finding = conclude(evidence)
    exact = stats.binomtest(50, 60).proportion_ci(confidence_level=0.95, method="exact")
    assert finding.interval == pytest.approx((exact.low, exact.high))
    two = conclude({**evidence, "protected": ["PERSON", "GPE"]})
    wider = stats.binomtest(50, 60).proportion_ci(confidence_level=0.975, method="exact")
    assert two.interval == pytest.approx((wider.low, wider.high))


def test_below_the_gate_is_said_and_is_no_violation_without_a_promise() -> None:
    finding = conclude(many(60, 40))
    assert (finding.verdict, finding.detected) == ("consistent", True)
    assert finding.evidence["derived"]["below_gate"] == ["PERSON"]
    assert "Below 90% beyond doubt: PERSON" in finding.explanation


def test_a_broken_promise_is_a_violation() -> None:
    finding = conclude(many(60, 40, promised={"PERSON": 0.9}))
    assert (finding.verdict, finding.strength) == ("violation", "conformance")
    p = stats.binomtest(60, 100, 0.9, alternative="less").pvalue
    assert finding.evidence["derived"]["broken_promises"] == {"PERSON": pytest.approx(p)}


@pytest.mark.parametrize("promise", [0.5, 0.9, 0.99, 1.0])
@pytest.mark.parametrize("promises", [1, 2])
def test_a_kept_promise_is_broken_by_chance_at_most_as_often_as_said(
    promise: float, promises: int
) -> None:
    """The exact chance over all outcomes of 60 examples, not a simulation: at most 1e-3."""
    base = many(60, 0)
    promised = {f"KIND{k}" if k else "PERSON": promise for k in range(promises)}
    chance = 0.0
    for hidden in range(61):
        row = {**base["kinds"][0], "hidden": hidden, "touched": 60, "exact": 0}
        found = conclude({**base, "kinds": [row], "promised": promised})
        if found.verdict == "violation":
            chance += float(stats.binom.pmf(hidden, 60, promise))
    assert chance <= LEVEL / promises


@pytest.mark.parametrize(
    ("evidence", "reason"),
    [
        (lambda: many(28, 0), "Fewer than 29 examples"),
        (lambda: many(40, 0, protected=["PERSON", "GPE"]), "Fewer than 29 examples"),
        (lambda: many(40, 0, protected=["GPE"]), "no example of anything"),
        (lambda: many(40, 0, promised={"GPE": 0.9}), "Fewer than 29 examples"),
        (lambda: many(40, 0, protected=[]), "no example of anything"),
    ],
)
def test_too_little_to_tell_is_inconclusive(
    evidence: Callable[[], dict[str, Any]], reason: str
) -> None:
    finding = conclude(evidence())
    assert finding.verdict == "inconclusive"
    assert reason in finding.explanation


def test_a_redactor_that_swallows_invented_placeholders_fails_its_control() -> None:
    class Swallows(ByList):
        def restore(self, answer: str) -> tuple[str, int]:
            return super().restore(answer)[0], 0

    finding = conclude(measure(Swallows(("Ann", "PERSON")), *[ANN] * 30))
    assert finding.positive_control is False


@pytest.mark.parametrize(
    "change",
    [
        {"kinds": None},
        {"kinds": [{}]},
        {"kinds": [{"kind": "PERSON"}]},
        {"protected": "PERSON"},
        {"protected": [3]},
        {"promised": []},
        {"promised": {"PERSON": 2}},
        {"queries": 0},
        {"restored": 41},
        {"untraceable": -1},
        {"control": {}},
        {"redactor": 3},
        {"source": None},
    ],
)
def test_malformed_evidence_is_an_audit_error(change: dict[str, Any]) -> None:
    with pytest.raises(AuditError):
        conclude(many(40, 0, **change))


def test_a_part_larger_than_its_whole_is_an_audit_error() -> None:
    evidence = many(40, 0)
    evidence["kinds"][0]["hidden"] = 41
    with pytest.raises(AuditError, match="larger"):
        conclude(evidence)


def test_both_artefacts_are_needed() -> None:
    given = LabelledQueries(queries=(ANN,), source="a test")
    for artefacts in ((), (given,), (FindsNothing(),)):
        context = AuditContext(claim=CLAIM, seed=1, artefacts=artefacts)
        assert "queries" in QueryPrivacy().cost(context)
        with pytest.raises(MissingArtefact):
            QueryPrivacy().measure(context)


@pytest.mark.parametrize("label", [(0, 0), (0, 99), (-1, 2), (3, 4)])
def test_labels_that_mark_nothing_are_refused(label: tuple[int, int]) -> None:
    with pytest.raises(InvalidValue) as caught:
        LabelledQuery(text="Ann !", labels=(Labelled(start=label[0], end=label[1], kind="A"),))
    assert "Ann" not in str(caught.value)


def test_queries_must_be_there_and_promises_be_shares() -> None:
    with pytest.raises(InvalidValue, match="queries=0"):
        LabelledQueries(queries=(), source="none")
    for promise in (0.0, 1.1, True, float("nan")):
        with pytest.raises(InvalidValue, match=r"promised\.PERSON"):
            LabelledQueries(queries=(ANN,), source="s", promised={"PERSON": promise})


def test_no_query_is_shown() -> None:
    shown = repr(LabelledQueries(queries=(ANN,), source="s")) + repr(ANN)
    assert "Ann" not in shown


def test_letters_and_digits_alone_count() -> None:
    assert solid("O'Neil-Straße 5 ") == "oneilstrasse5"


def test_no_label_gives_no_row() -> None:
    count = Counts()
    count.add(labelled("What is rain?"), FindsNothing())
    assert (count.labels, count.hidden, count.to_dict()["kinds"]) == (0, 0, [])
