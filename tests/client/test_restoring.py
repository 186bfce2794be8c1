"""Personal data put back piece by piece; oracle: the whole answer restored at once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from client.redaction import RestoringStream, Session, Span

KNOWN = Session()
KNOWN.redact(
    "Jane met Roe in Rome.",
    [
        Span(start=0, end=4, kind="PERSON", score=1.0),
        Span(start=9, end=12, kind="PERSON", score=1.0),
        Span(start=16, end=20, kind="GPE", score=1.0),
    ],
)
PARTS = st.sampled_from(
    "<PERSON_1> <person 2> [GPE_1] {Person-1} PERSON_2 &lt;GPE_1&gt; < PERSON_1 > <PERSON_9> "
    "< [ { &l & _ 1 PERSON PERSON_ ONE_1 > ] } &gt; x\n .".split(" ")
)


@given(st.lists(PARTS | st.just(" "), max_size=8), st.lists(st.integers(1, 4), max_size=40))
def test_pieces_are_the_whole_answer_restored(parts: list[str], sizes: list[int]) -> None:
    text = "".join(parts)
    stream, said, place = RestoringStream(KNOWN), "", 0
    for size in [*sizes, len(text)]:
        said += stream.push(text[place : place + size])
        place += size
    assert said + stream.finish() == KNOWN.restore(text).text


def test_text_that_is_no_placeholder_is_not_held_back() -> None:
    stream = RestoringStream(KNOWN)
    assert [stream.push(piece) for piece in ("She, ", "<PERSON", "_1>", ", a < b; ")] == [
        "She, ",
        "",
        "Jane",
        ", a < b; ",
    ]
