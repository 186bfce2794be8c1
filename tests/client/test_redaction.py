"""The on-device redactor: what leaves, what comes back, and what is said when it does not."""

from __future__ import annotations

import itertools
import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.redaction import (
    KINDS,
    Redactor,
    Session,
    Span,
    default_redactor,
    read_map,
    write_map,
)
from client.redaction.engine import PresidioFinder, trim
from client.redaction.spans import settle
from client.redaction.tagger import best_path, forbidden, load_tagger, shape
from client.redaction.wordlists import places, word_set
from shared.errors import (
    DataError,
    DataFileNotFound,
    InvalidValue,
    MissingDependency,
    ModelError,
    ModelNotFound,
)

needs_extra = pytest.mark.usefixtures("extra")


@pytest.fixture
def extra() -> None:
    pytest.importorskip("presidio_analyzer", reason="needs the extra `query`")


def span(text: str, piece: str, kind: str = "PERSON") -> Span:
    start = text.index(piece)
    return Span(start=start, end=start + len(piece), kind=kind)


def found(text: str, redactor: Redactor | PresidioFinder) -> set[tuple[str, str]]:
    return {(s.kind, text[s.start : s.end]) for s in redactor.find(text)}


# Pieces of which a text with every trap can be put together.
PIECES = st.sampled_from(
    "<PERSON_1>|PERSON_1|[gpe_2]|&lt;TEXT_1&gt;|<|>|_|1| |\n|Anna|<TEXT_1>|{AGE 3}|PERSON_|_1>|é|İ|"
    "&lt;|[|]|text_2".split("|")
)
TEXTS = st.lists(PIECES, max_size=12).map("".join)


@st.composite
def texts_with_spans(draw: st.DrawFn) -> tuple[str, list[Span]]:
    text = draw(TEXTS)
    if not text:
        return text, []
    places = st.integers(0, len(text) - 1)
    drawn = draw(st.lists(st.tuples(places, st.integers(1, 5), st.sampled_from(["PERSON", "GPE"]))))
    return text, [
        Span(start=start, end=min(len(text), start + size), kind=kind)
        for start, size, kind in drawn
    ]


@given(st.lists(texts_with_spans(), max_size=4))
def test_what_was_redacted_is_restored_whatever_the_text(
    queries: list[tuple[str, list[Span]]],
) -> None:
    session = Session()
    sent = [session.redact(text, spans) for text, spans in queries]
    again = Session.from_dict(json.loads(json.dumps(session.to_dict())))
    for (text, spans), redacted in zip(queries, sent, strict=True):
        for known in (session, again):
            restored = known.restore(redacted.text)
            assert (restored.text, restored.unknown) == (text, ())
        gone = {place for s in redacted.spans for place in range(s.start, s.end)}
        assert {place for s in spans for place in range(s.start, s.end)} <= gone


@given(texts_with_spans())
def test_settled_spans_cover_the_same_and_do_not_overlap(given_: tuple[str, list[Span]]) -> None:
    _, spans = given_
    settled = settle(spans)
    covered = [place for s in settled for place in range(s.start, s.end)]
    assert len(covered) == len(set(covered))
    assert set(covered) == {place for s in spans for place in range(s.start, s.end)}


def test_the_surest_of_overlapping_spans_names_the_kind() -> None:
    long = Span(start=0, end=9, kind="GPE", score=0.2)
    sure = Span(start=3, end=5, kind="PERSON", score=0.9)
    assert [(s.start, s.end, s.kind) for s in settle([long, sure])] == [
        (0, 3, "GPE"),
        (3, 5, "PERSON"),
        (5, 9, "GPE"),
    ]


@pytest.mark.parametrize(
    ("start", "end", "kind"), [(1, 1, "A"), (-1, 2, "A"), (0, 1, "a"), (0, 1, "A1"), (0, 1, "")]
)
def test_a_span_that_names_nothing_is_refused(start: int, end: int, kind: str) -> None:
    with pytest.raises(InvalidValue):
        Span(start=start, end=end, kind=kind)


def test_a_text_keeps_its_placeholder_through_a_conversation() -> None:
    session = Session()
    first = session.redact("Ann met Bob", [span("Ann met Bob", "Ann"), span("Ann met Bob", "Bob")])
    second = session.redact("Bob, ann", [span("Bob, ann", "Bob"), span("Bob, ann", "ann")])
    assert first.text == "<PERSON_1> met <PERSON_2>"
    assert second.text == "<PERSON_2>, <PERSON_3>"
    assert first.counts() == {"PERSON": 2}


def test_what_looks_like_a_placeholder_in_a_query_is_nobody() -> None:
    session, text = Session(), "Print <PERSON_1> for Ann, as in PERSON_1."
    sent = session.redact(text, [span(text, "Ann")])
    assert sent.text == "Print <TEXT_1> for <PERSON_1>, as in <TEXT_2>."
    assert session.restore("<TEXT_1> is not <PERSON_1>").text == "<PERSON_1> is not Ann"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Dear <PERSON_1>,", "Dear Ann Lee,"),
        ("Dear <person_1>,", "Dear Ann Lee,"),
        ("<PERSON_1>'s cat and <PERSON_1>\u2019s dog", "Ann Lee's cat and Ann Lee\u2019s dog"),
        ("[PERSON_1] {Person_1} &lt;PERSON_1&gt;", "Ann Lee Ann Lee Ann Lee"),
        ("PERSON_1, Person_1.", "Ann Lee, Ann Lee."),
        ("**<PERSON_1>** < PERSON 1 >", "**Ann Lee** Ann Lee"),
        ("<PERSON_1><PERSON_1>", "Ann LeeAnn Lee"),
    ],
)
def test_answers_may_write_placeholders_their_own_way(answer: str, expected: str) -> None:
    session, text = Session(), "I am Ann Lee."
    session.redact(text, [span(text, "Ann Lee")])
    restored = session.restore(answer)
    assert (restored.text, restored.restored) == (expected, ("<PERSON_1>",))


@pytest.mark.parametrize(
    "answer", ["person 1 is late", "<PERSON_1", "PERSON_1s", "XPERSON_1", "<PER SON_1>", "PERSON-1"]
)
def test_words_that_may_mean_something_else_are_not_replaced(answer: str) -> None:
    session, text = Session(), "I am Ann Lee."
    session.redact(text, [span(text, "Ann Lee")])
    assert "Ann" not in session.restore(answer.replace("<PERSON_1", "<PERSONS_1")).text


def test_dropped_and_invented_placeholders_are_reported_and_never_guessed() -> None:
    session, text = Session(), "Ann lives in Oslo."
    session.redact(text, [span(text, "Ann"), span(text, "Oslo", "GPE")])
    restored = session.restore("<PERSON_1>, <PERSON_2> and <PERSON_01> of [CITY_1]")
    assert restored.text == "Ann, <PERSON_2> and <PERSON_01> of [CITY_1]"
    assert restored.missing == ("<GPE_1>",)
    assert restored.unknown == ("<PERSON_2>", "<PERSON_01>", "[CITY_1]")


def test_a_session_shows_no_text_of_it() -> None:
    session, text = Session(), "I am Ann."
    session.redact(text, [span(text, "Ann")])
    assert "Ann" not in repr(session)
    assert "Ann" not in repr(session.restore("<PERSON_1>"))


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        {"placeholders": {}, "last": []},
        {"schema": 2, "placeholders": {}, "last": []},
        {"schema": 1, "placeholders": [], "last": []},
        {"schema": 1, "placeholders": {"<PERSON_1>": 3}, "last": []},
        {"schema": 1, "placeholders": {"PERSON_1": "Ann"}, "last": []},
        {"schema": 1, "placeholders": {"<PERSON_2>": "Ann"}, "last": []},
        {"schema": 1, "placeholders": {"<PERSON_1>": "Ann", "<PERSON_2>": "Ann"}, "last": []},
        {"schema": 1, "placeholders": {"<PERSON_1>": "Ann"}, "last": ["<GPE_1>"]},
        {"schema": 1, "placeholders": {"<PERSON_1>": "Ann"}},
    ],
)
def test_what_is_no_map_of_placeholders_is_refused(data: Any) -> None:
    with pytest.raises(DataError) as caught:
        Session.from_dict(data)
    assert "Ann" not in str(caught.value)


def test_a_map_is_for_its_owner_alone_and_a_conversation_goes_on(tmp_path: Path) -> None:
    path, text = tmp_path / "map.json", "I am Ann."
    session = Session()
    session.redact(text, [span(text, "Ann")])
    write_map(path, session)
    assert path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["map.json"]
    later = read_map(path)
    assert later.restore("").missing == ("<PERSON_1>",)
    assert later.redact("Bob", [span("Bob", "Bob")]).text == "<PERSON_2>"


def test_a_file_that_is_no_map_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataFileNotFound):
        read_map(tmp_path / "none.json")
    path = tmp_path / "map.json"
    path.write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match="not JSON"):
        read_map(path)


@pytest.mark.parametrize(
    ("text", "kind", "expected"),
    [
        (" Ann's,", "PERSON", "Ann"),
        ("(Ann\u2019s)", "PERSON", "Ann"),
        ("Dr.", "TITLE", "Dr."),
        ("Ann.", "PERSON", "Ann"),
        ("5's", "AGE", "5's"),
    ],
)
def test_edges_are_trimmed(text: str, kind: str, expected: str) -> None:
    small = trim(text, Span(start=0, end=len(text), kind=kind))
    assert small is not None
    assert text[small.start : small.end] == expected


def test_marks_alone_are_no_finding() -> None:
    assert trim(" -- ", Span(start=0, end=4, kind="PERSON")) is None


@given(st.integers(0, 2**32 - 1), st.integers(1, 5))
@settings(max_examples=40)
def test_the_best_path_is_the_best_of_all_paths(seed: int, words: int) -> None:
    random = np.random.default_rng(seed)
    tags = ("O", "B-A", "I-A", "B-B")
    scores = random.integers(-9, 9, (words, 4)).astype(np.float32)
    steps = random.integers(-9, 9, (5, 4)).astype(np.float32) + forbidden(tags)

    def worth(path: tuple[int, ...]) -> float:
        came = (4, *path[:-1])
        return float(
            sum(steps[a, b] + row[b] for a, b, row in zip(came, path, scores, strict=True))
        )

    best = max(worth(path) for path in itertools.product(range(4), repeat=words))
    assert worth(tuple(best_path(scores, steps))) == best


def test_nothing_goes_on_that_has_not_begun() -> None:
    bad = forbidden(("O", "B-A", "I-A", "B-B", "I-B"))
    allowed = {(row, column) for row, column in zip(*np.nonzero(bad == 0), strict=True)}
    assert {row for row, column in allowed if column == 2} == {1, 2}
    assert {row for row, column in allowed if column == 4} == {3, 4}
    assert {row for row, column in allowed if column == 0} == set(range(6))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Ann", "Xx"),
        ("ANN", "XX"),
        ("A", "X"),
        ("ann", "x"),
        ("iPad", "xX"),
        ("123", "93"),
        (",", ","),
    ],
)
def test_what_a_word_looks_like(text: str, expected: str) -> None:
    assert shape(text) == expected


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"tags": ["B-A"], "scale": 1, "weights": {}, "vocabulary": ""}']
)
def test_a_damaged_tagger_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tagger.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ModelError, match=r"tagger\.json"):
        load_tagger(path)


def test_word_lists_are_lower_case_words() -> None:
    for name in ("GIVEN", "FAMILY", "DEMONYMS", "MONTHS", "TITLES", "STREETS", "COMPANIES"):
        assert all(word == word.lower() and word.isalpha() for word in word_set(name)), name


@needs_extra
def test_places_are_countries_and_towns() -> None:
    assert {"norway", "new zealand", "london"} <= places()
    assert not places() & word_set("COMMON")


@needs_extra
@given(st.text(max_size=40))
@settings(max_examples=50, deadline=None)
def test_the_tagger_bears_any_text(text: str) -> None:
    spans = load_tagger().find(text)
    ends = [0, *(s.end for s in spans)]
    assert all(end <= s.start < s.end for end, s in zip(ends, spans, strict=False))
    assert all(s.kind in KINDS and s.end <= len(text) for s in spans)


@needs_extra
def test_the_redactor_finds_what_has_a_form_and_what_has_none() -> None:
    text = (
        "I am Maren Oakhurst of 12 Tannery Lane, Oslo. Mail m.oak@example.org, call "
        "+1 212 555 0123, card 4111 1111 1111 1111, IBAN GB82 WEST 1234 5698 7654 32, "
        "server 192.0.2.7."
    )
    assert found(text, default_redactor()) >= {
        ("PERSON", "Maren Oakhurst"),
        ("STREET_ADDRESS", "12 Tannery Lane"),
        ("GPE", "Oslo"),
        ("EMAIL_ADDRESS", "m.oak@example.org"),
        ("PHONE_NUMBER", "+1 212 555 0123"),
        ("CREDIT_CARD", "4111 1111 1111 1111"),
        ("IBAN_CODE", "GB82 WEST 1234 5698 7654 32"),
        ("IP_ADDRESS", "192.0.2.7"),
    }


@needs_extra
def test_check_digits_count() -> None:
    finder = PresidioFinder()
    assert ("CREDIT_CARD", "4111111111111111") in found("pay with 4111111111111111", finder)
    wrong = found("pay with 4111111111111112", finder)
    assert "CREDIT_CARD" not in {kind for kind, _ in wrong}
    assert "IBAN_CODE" not in {kind for kind, _ in found("GB82 WEST 1234 5698 7654 33", finder)}


@needs_extra
def test_a_name_is_found_wherever_it_stands_again() -> None:
    session = Session()
    text = "My name is Maren Oakhurst. bla OAKHURST bla: Oakhurst"
    sent = default_redactor().redact(text, session)
    assert "Oakhurst" not in sent.text
    later = default_redactor().redact("note: Maren Oakhurst again", session)
    assert later.text == "note: <PERSON_1> again"


@needs_extra
def test_only_the_chosen_kinds_are_taken_out() -> None:
    redactor = default_redactor(kinds=frozenset({"EMAIL_ADDRESS"}))
    sent = redactor.redact("Ann Lee, Oslo: ann@example.org", Session())
    assert sent.text == "Ann Lee, Oslo: <EMAIL_ADDRESS_1>"
    with pytest.raises(InvalidValue, match="SHOE_SIZE"):
        default_redactor(kinds=frozenset({"SHOE_SIZE"}))


def test_a_redactor_that_can_find_nothing_is_refused() -> None:
    with pytest.raises(InvalidValue, match="finders=0"):
        Redactor(finders=())


@needs_extra
def test_nothing_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> NoReturn:
        pytest.fail("the redactor opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    finder = PresidioFinder()
    assert ("EMAIL_ADDRESS", "a.b@example.co.uk") in found("write to a.b@example.co.uk", finder)
    with pytest.raises(ModelNotFound, match="not installed"):
        PresidioFinder(spacy_model="en_core_web_nothing")


@needs_extra
def test_an_installed_spacy_model_is_asked_too(tmp_path: Path) -> None:
    import spacy

    pipeline = spacy.blank("en")
    ruler: Any = pipeline.add_pipe("entity_ruler")
    ruler.add_patterns([{"label": "PERSON", "pattern": "zyx grub"}])
    pipeline.to_disk(tmp_path / "model")
    finder = PresidioFinder(spacy_model=str(tmp_path / "model"))
    assert ("PERSON", "zyx grub") in found("ask zyx grub for it", finder)
    assert ("PERSON", "zyx grub") not in found("ask zyx grub for it", PresidioFinder())


def test_without_the_extra_the_install_line_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "presidio_analyzer", None)
    with pytest.raises(MissingDependency) as caught:
        PresidioFinder()
    assert caught.value.hint == "Run: pip install 'fedslm[query]'"


def test_importing_the_redactor_imports_no_engine() -> None:
    code = (
        "import sys, client.redaction, simulations.client_cli\n"
        "print(sorted({'presidio_analyzer', 'spacy', 'phonenumbers', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
