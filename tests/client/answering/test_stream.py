"""Pieces of text: the whole text, cut at a stop text, never half a character."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.answering.stream import MOST_STOPS, TextStream
from client.inference import base_folder
from shared.errors import InvalidValue


def by_bytes(ids: Sequence[int]) -> str:
    return bytes(ids).decode("utf-8", errors="replace")


def told(text: bytes, stops: Sequence[str], before: bytes = b"") -> tuple[list[str], TextStream]:
    stream = TextStream(by_bytes, list(before), stops)
    pieces = [stream.push(byte) for byte in text]
    return [*pieces, stream.finish()], stream


def truth(text: str, stops: Sequence[str]) -> str:
    """Cut where a stop text is first complete, character by character."""
    for size in range(1, len(text) + 1):
        found = [text[:size].find(stop) for stop in stops if stop in text[:size]]
        if found:
            return text[: min(found)]
    return text


words = st.text(alphabet="ab<é€😀", max_size=12)


@given(words, st.lists(st.text(alphabet="ab<é€", min_size=1, max_size=3), max_size=3), words)
def test_pieces_are_the_text_up_to_the_first_stop(text: str, stops: list[str], before: str) -> None:
    pieces, stream = told(text.encode(), stops, before.encode())
    assert "".join(pieces) == truth(text, stops)
    assert stream.stopped == any(stop in text for stop in stops)
    assert not any("\ufffd" in piece for piece in pieces)


@given(words, st.text(alphabet="ab<é€", min_size=1, max_size=3))
def test_nothing_of_a_stop_text_is_ever_given_out(text: str, stop: str) -> None:
    pieces, _ = told(text.encode(), [stop])
    shown = ""
    for piece in pieces:
        shown += piece
        assert truth(text, [stop]).startswith(shown)


def test_a_character_comes_when_all_of_its_bytes_are_there() -> None:
    pieces, _ = told("a€b".encode(), [])
    assert pieces == ["a", "", "", "€", "b", ""]
    half = "a€".encode()[:-1]
    assert "".join(told(half, [])[0]) == half.decode(errors="replace")


@given(st.text(max_size=40))
def test_the_demo_tokenizer_gives_back_what_it_was_given(text: str) -> None:
    """Oracle: the tokenizer's own decoding of everything at once."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(base_folder("demo") / "tokenizer.json"))
    ids = tokenizer.encode("The king " + text, add_special_tokens=False).ids
    begin = tokenizer.encode("The king", add_special_tokens=False).ids
    if ids[: len(begin)] != begin:
        return
    stream = TextStream(lambda some: str(tokenizer.decode(list(some))), begin)
    said = "".join([*(stream.push(token) for token in ids[len(begin) :]), stream.finish()])
    assert tokenizer.decode(begin) + said == tokenizer.decode(ids)


def test_each_token_is_decoded_with_few_others() -> None:
    most = 0

    def decode(ids: Sequence[int]) -> str:
        nonlocal most
        most = max(most, len(ids))
        return by_bytes(ids)

    stream = TextStream(decode, list(b"x" * 500))
    assert "".join(stream.push(byte) for byte in "né".encode() * 200) == "né" * 200
    assert most < 16


@pytest.mark.parametrize("stops", ["text", [""], ["x" * 257], ["x"] * (MOST_STOPS + 1)])
def test_stop_texts_are_few_and_short(stops: Sequence[str]) -> None:
    with pytest.raises(InvalidValue):
        TextStream(by_bytes, stops=stops)
