"""Labelled queries, the device's redactor under audit, and how its tagger was trained."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest

from client.redaction import default_redactor
from client.redaction.tagger import WEIGHTS
from server.audit.protocol import AuditContext, Claim, Finding, Terms
from server.audit.querycounts import LabelledQuery
from server.audit.queryprivacy import LabelledQueries, QueryPrivacy
from shared.errors import DataFileNotFound, InvalidValue, MalformedRow
from simulations.auditing.queries import (
    DeviceRedactor,
    embedded_queries,
    load_queries,
    parse_marked,
)

PRESIDIO = Path(__file__).parents[3] / "../shared/data/audit/pii/synth_dataset_v2.json"


@pytest.fixture
def extra() -> None:
    pytest.importorskip("presidio_analyzer", reason="needs the extra `query`")


def audit(queries: LabelledQueries) -> Finding:
    claim = Claim(mode="none", epsilon=None, delta=None, unit=None, neighboring_relation=None)
    context = AuditContext(claim=claim, seed=1, artefacts=(DeviceRedactor(), queries))
    evidence = json.loads(json.dumps(QueryPrivacy().measure(context)))
    return QueryPrivacy().conclude(evidence, Terms(claim=claim, seed=1))


def pieces(query: LabelledQuery) -> list[tuple[str, str]]:
    return [(query.text[label.start : label.end], label.kind) for label in query.labels]


def test_marks_become_labels() -> None:
    query = parse_marked("I am [Ann Lee](PERSON) of [Oslo](GPE) [sic].")
    assert query.text == "I am Ann Lee of Oslo [sic]."
    assert pieces(query) == [("Ann Lee", "PERSON"), ("Oslo", "GPE")]


def test_the_embedded_queries_hold_every_sort_and_some_hold_nothing() -> None:
    given = embedded_queries()
    kinds = {label.kind for query in given.queries for label in query.labels}
    assert kinds >= {"PERSON", "GPE", "STREET_ADDRESS", "ORGANIZATION", "CREDIT_CARD", "US_SSN"}
    assert sum(not query.labels for query in given.queries) >= 5
    assert not any("](" in query.text for query in given.queries)


def test_the_shape_of_presidio_research_is_read(tmp_path: Path) -> None:
    path = tmp_path / "queries.json"
    span = {"start_position": 5, "end_position": 8, "entity_type": "PERSON", "entity_value": "Ann"}
    path.write_text(json.dumps([{"full_text": "I am Ann", "spans": [span], "x": 1}]), "utf-8")
    given = load_queries(path, protected=frozenset({"PERSON"}), promised={"PERSON": 0.9})
    assert pieces(given.queries[0]) == [("Ann", "PERSON")]
    assert (given.source, given.promised) == ("queries.json", {"PERSON": 0.9})


@pytest.mark.parametrize(
    "data",
    [
        {},
        ["Ann"],
        [{"full_text": "Ann"}],
        [{"full_text": 3, "spans": []}],
        [{"full_text": "Ann", "spans": [{}]}],
        [{"full_text": "Ann", "spans": 3}],
        [{"full_text": "Ann", "spans": [{"start_position": "0", "end_position": 1}]}],
    ],
)
def test_another_shape_is_refused_without_showing_it(tmp_path: Path, data: Any) -> None:
    path = tmp_path / "queries.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(MalformedRow) as caught:
        load_queries(path)
    assert "Ann" not in str(caught.value)


def test_what_is_no_file_or_no_json_or_empty_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "queries.json"
    with pytest.raises(DataFileNotFound):
        load_queries(path)
    path.write_text("{", encoding="utf-8")
    with pytest.raises(MalformedRow, match="not JSON"):
        load_queries(path)
    path.write_text("[]", encoding="utf-8")
    with pytest.raises(InvalidValue, match="queries=0"):
        load_queries(path)


@pytest.mark.usefixtures("extra")
def test_the_device_hides_most_of_the_embedded_queries() -> None:
    finding = audit(embedded_queries())
    derived = finding.evidence["derived"]
    assert finding.positive_control
    assert derived["hidden"] >= 0.9
    assert derived["removed_needlessly"] <= 0.05
    assert derived["restored"] == derived["restored_in_answer"] == 1.0
    stored = json.dumps(finding.to_dict())
    assert not any(
        text in stored
        for query in embedded_queries().queries
        for text, _ in pieces(query)
        if len(text) > 4 and not text.isdigit()
    )


@pytest.mark.usefixtures("extra")
def test_every_query_starts_a_new_conversation() -> None:
    redactor = DeviceRedactor()
    for name in ("Ingeborg Lund", "Mateusz Nowak"):
        sent, taken = redactor.redact(f"My name is {name}.")
        assert (sent, len(taken)) == ("My name is <PERSON_1>.", 1)
        assert redactor.restore("<PERSON_1>, <PERSON_2>") == (f"{name}, <PERSON_2>", 1)


@pytest.mark.slow
@pytest.mark.usefixtures("extra")
@pytest.mark.skipif(not PRESIDIO.exists(), reason="needs ../shared/data/audit/pii")
def test_recall_on_presidio_research_by_kind() -> None:
    finding = audit(load_queries(PRESIDIO))
    derived = finding.evidence["derived"]
    recall = {k: row["recall"]["hidden"] for k, row in derived["kinds"].items() if row["recall"]}
    for kind in ("PERSON", "GPE", "STREET_ADDRESS", "ORGANIZATION", "DATE_TIME", "AGE"):
        assert recall[kind] >= 0.9, kind
    for kind in ("CREDIT_CARD", "PHONE_NUMBER", "EMAIL_ADDRESS", "US_SSN", "IP_ADDRESS"):
        assert recall[kind] == 1.0, kind
    assert derived["restored"] == 1.0
    # docs/audits/query-privacy.md says where it is not good enough.
    assert derived["below_gate"] == ["TITLE"]
    assert derived["removed_needlessly"] < 0.08


@pytest.mark.slow
@pytest.mark.usefixtures("extra")
@pytest.mark.skipif(not PRESIDIO.exists(), reason="needs ../shared/data/audit/pii")
def test_patterns_alone_are_not_enough() -> None:
    from client.redaction import Redactor, Session
    from client.redaction.engine import PresidioFinder

    given = load_queries(PRESIDIO)
    patterns = Redactor(finders=(PresidioFinder(),))
    people = [q for q in given.queries if any(k.kind == "PERSON" for k in q.labels)][:100]
    left = {True: 0, False: 0}
    for query in people:
        name = next(text for text, kind in pieces(query) if kind == "PERSON")
        for both, redactor in ((True, default_redactor()), (False, patterns)):
            left[both] += name in redactor.redact(query.text, Session()).text
    assert left[False] >= 95
    assert left[True] <= 10


def test_made_up_sentences_are_labelled_where_their_slots_are() -> None:
    pytest.importorskip("phonenumbers", reason="needs the extra `query`")
    from simulations.auditing.taggersentences import Sentences
    from simulations.auditing.taggertraining import TAGS

    source, again = Sentences(3), Sentences(3)
    for _ in range(200):
        sentence = source.draw()
        assert sentence == again.draw()
        for span in sentence.spans:
            piece = sentence.text[span.start : span.end]
            assert piece == piece.strip()
            assert f"B-{span.kind}" in TAGS
        assert "{" not in sentence.text


@pytest.mark.slow
def test_training_again_gives_the_shipped_weights() -> None:
    from simulations.auditing.taggertraining import dumped, train

    shipped = WEIGHTS.read_text(encoding="utf-8")
    try:
        if json.loads(shipped)["phonenumbers"] != version("phonenumbers"):
            pytest.skip("trained with the tables of another phonenumbers")
    except PackageNotFoundError:
        pytest.skip("needs the extra `query`")
    assert dumped(train()) == shipped
