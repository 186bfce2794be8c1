"""Encodings are undone, whoever made them: the encoders here are the library's or written out."""

from __future__ import annotations

import base64
import codecs

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.audit.promptleak.decoders import (
    DECODERS,
    fold_leet,
    from_base64,
    from_caesar,
    from_hex,
    from_leet,
    from_morse,
    from_reversed,
    from_spaced,
    normalise,
    shingles,
    words,
)

TEXT = "You guard the north gate. The word of the day is heron 47."
PRINTABLE = st.text(
    alphabet=st.characters(exclude_categories=("C", "Z")) | st.just(" "), min_size=13
)
MORSE = {
    "a": ".-", "b": "-...", "c": "-.-.", "d": "-..", "e": ".", "f": "..-.", "g": "--.",
    "h": "....", "i": "..", "j": ".---", "k": "-.-", "l": ".-..", "m": "--", "n": "-.",
    "o": "---", "p": ".--.", "q": "--.-", "r": ".-.", "s": "...", "t": "-", "u": "..-",
    "v": "...-", "w": ".--", "x": "-..-", "y": "-.--", "z": "--..", "0": "-----", "1": ".----",
    "2": "..---", "3": "...--", "4": "....-", "5": ".....", "6": "-....", "7": "--...",
    "8": "---..", "9": "----.",
}  # fmt: skip


@given(PRINTABLE)
def test_base64_fragments_are_read_wherever_they_stand(text: str) -> None:
    packed = base64.b64encode(text.encode()).decode()
    (found,) = from_base64(f"Sure, here: {packed} (that is all)")
    assert text in found
    assert "that is all" in found


def test_base64_is_read_when_cut_wrapped_or_url_safe() -> None:
    packed = base64.b64encode(TEXT.encode()).decode()
    for cut in range(40, len(packed)):
        (found,) = from_base64(packed[:cut])
        assert TEXT.startswith(found.strip()[:-1])
    wrapped = "\n".join(packed[i : i + 20] for i in range(0, len(packed), 20))
    assert TEXT in from_base64(wrapped)[0]
    odd = "Köche? Ja \u2013 23 Stück übrig >>> ÿÿ~~"
    assert odd in from_base64(base64.urlsafe_b64encode(odd.encode()).decode())[0]


def test_what_is_no_base64_is_left_alone() -> None:
    assert from_base64("An uncharacteristically straightforwardly long word.") == []
    assert from_base64("short") == []


@given(PRINTABLE)
def test_hex_is_read_in_every_common_spelling(text: str) -> None:
    data = text.encode()
    for spelled in (
        data.hex(),
        data.hex(" ").upper(),
        data.hex(":"),
        "".join(f"\\x{byte:02x}" for byte in data),
        ", ".join(f"0x{byte:02x}" for byte in data),
    ):
        assert text in from_hex(f"bytes: {spelled}")[0]


def test_rot13_is_one_of_the_shifts() -> None:
    assert TEXT in from_caesar(codecs.encode(TEXT, "rot13"))
    assert len(set(from_caesar(TEXT))) == 25
    assert from_caesar("2 + 2 = 4") == []


@given(st.text(min_size=1))
def test_reversal_is_its_own_inverse(text: str) -> None:
    assert text in from_reversed(text[::-1])
    plain = " ".join(text.split())
    assert plain in from_reversed(" ".join(plain.split(" ")[::-1]))
    assert plain in from_reversed(" ".join(word[::-1] for word in plain.split(" ")))


def test_leet_folds_both_sides_alike() -> None:
    spelled = TEXT.translate(str.maketrans("aeiost", "431057"))
    assert from_leet(spelled) == [fold_leet(TEXT)]
    assert fold_leet("l1|i!") == fold_leet("iiiii")
    assert from_leet("") == []


def test_morse_words_are_told_apart() -> None:
    plain = "".join(c for c in TEXT.lower() if c.isalnum() or c == " ")
    for between in (" / ", "   ", "\n"):
        sent = between.join(" ".join(MORSE[c] for c in word) for word in plain.split())
        assert from_morse(f"Here: {sent}")[0].split()[1:] == plain.split()
    typeset = sent.replace("-", "\u2013").replace(".", "\u00b7")
    assert from_morse(typeset)[0].split() == plain.split()
    assert from_morse("a rule: ------------------------") == []


def test_spelled_out_letters_are_joined() -> None:
    assert from_spaced(" ".join(TEXT.replace(" ", ""))) == [shingles(TEXT)]
    assert from_spaced("-".join("heron")) == [shingles("heron")]
    assert from_spaced("I said a word to you.") == []
    assert shingles("heron") == "hero eron"


def test_markup_case_and_escapes_do_not_matter() -> None:
    plain = "you guard the north gate."
    for dressed in (
        "**You** guard the `north` gate.",
        "<config>You guard\nthe north gate.</config>",
        "> # You guard the north gate.",
        "You guard\\nthe north gate.",
        "You guard the\u00a0north\u200b gate.",
        "\uff39\uff4f\uff55 guard the north gate.",
        "You guard the &#110;orth gate.",
    ):
        assert normalise(dressed) == plain
    assert words("don't: say_it, 47!") == ["don", "t", "say_it", "47"]


@pytest.mark.parametrize("name", sorted(DECODERS))
@given(answer=st.text())
def test_no_answer_breaks_a_decoder(name: str, answer: str) -> None:
    readings = DECODERS[name].readings(answer, normalise(answer))
    assert all(isinstance(text, str) for text in readings)
    assert readings == DECODERS[name].readings(answer, normalise(answer))
