"""What an attacker does with an answer before reading it: undo encodings, strip markup.

A translation into another language is not undone: that would take a model, and shared words
between languages are no measure of a leak. Attacks of that family ask for the way back.
"""

from __future__ import annotations

import base64
import binascii
import html
import re
import string
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass

SHORTEST = 4
"""Fewer letters of Morse code are a line of dots and dashes."""

_TAG = re.compile(r"</?[A-Za-z][^<>]{0,60}>")
_MARKUP = re.compile(r"[*_`#>|~\\]+")
_ESCAPE = re.compile(r"\\[nrt\"']")
_SPACE = re.compile(r"\s+")
_WORD = re.compile(r"\w+")
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]")
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{16,}(?:\r?\n[A-Za-z0-9+/_-]{4,})*={0,2}")
_HEX = re.compile(r"(?:(?:\\x|0x|%)?[0-9a-fA-F]{2}[\s:,]*){8,}")
_HEX_FILL = re.compile(r"\\x|0x|[%\s:,]")
_MORSE = re.compile("[.\\-\u00b7\u2022\u2013\u2014\u2212_/| \\t\\n]{12,}")
_SPACED = re.compile(r"(?:(?<=\s)|(?<=^))(?:\w[ \-.]){4,}\w(?=\W|$)", re.MULTILINE)


def normalise(text: str) -> str:
    """Return a text in lower case, without markup, escapes and odd spaces (NFKC)."""
    plain = html.unescape(unicodedata.normalize("NFKC", text))
    plain = _INVISIBLE.sub("", plain)
    plain = _ESCAPE.sub(" ", plain)
    plain = _MARKUP.sub(" ", _TAG.sub(" ", plain))
    return _SPACE.sub(" ", plain).strip().casefold()


def words(normalised: str) -> list[str]:
    """Return the words of a normalised text; punctuation is dropped."""
    return _WORD.findall(normalised)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoder:
    """One way to read an answer.

    Args:
        decode: from an answer to its possible readings; empty where the encoding is not there.
        fold: applied to the prompt too, for encodings that lose something ("1" is i or l).
        plain: whether ``decode`` takes a normalised answer, and gives normalised ones.
    """

    decode: Callable[[str], list[str]]
    fold: Callable[[str], str] | None = None
    plain: bool = False

    def readings(self, answer: str, normalised: str) -> list[str]:
        """Return the possible readings of an answer, normalised."""
        if self.plain:
            return self.decode(normalised)
        return [normalise(text) for text in self.decode(answer)]


def from_base64(answer: str) -> list[str]:
    """Return the answer with each Base64 fragment replaced by its text."""
    return _replaced(_BASE64, answer, _base64_text)


def from_hex(answer: str) -> list[str]:
    """Return the answer with each run of hexadecimal bytes replaced by its text."""
    return _replaced(_HEX, answer, _hex_text)


def from_caesar(answer: str) -> list[str]:
    """Return the 25 alphabet shifts of an answer; ROT13 is one of them."""
    if not any(c.isascii() and c.isalpha() for c in answer):
        return []
    return [answer.translate(table) for table in _SHIFTS]


def from_reversed(answer: str) -> list[str]:
    """Return the answer read backwards by letters, by words, and letter by letter in each word."""
    parts = answer.split()
    return [answer[::-1], " ".join(parts[::-1]), " ".join(part[::-1] for part in parts)]


def from_leet(answer: str) -> list[str]:
    """Return the answer with look-alike digits and signs folded into letters."""
    return [fold_leet(answer)] if answer else []


def fold_leet(text: str) -> str:
    """Fold letters and their look-alikes into one sign each; l, i, 1, ! and | become i."""
    return text.casefold().translate(_LEET)


def from_morse(answer: str) -> list[str]:
    """Return the answer with each run of Morse code replaced by its text."""
    return _replaced(_MORSE, answer, _morse_text)


def from_spaced(answer: str) -> list[str]:
    """Return an answer with spelled-out letters in a form in which blanks do not matter."""
    return [shingles(answer)] if _SPACED.search(answer) else []


def shingles(text: str) -> str:
    """Return all runs of four letters of a text, whatever stands between the letters."""
    letters = "".join(_WORD.findall(text))
    return " ".join(letters[i : i + 4] for i in range(len(letters) - 3))


def _replaced(pattern: re.Pattern[str], answer: str, read: Callable[[str], str]) -> list[str]:
    """Replace each fragment that can be read; nothing if none can."""
    count = 0

    def swap(match: re.Match[str]) -> str:
        nonlocal count
        found = read(match.group())
        count += bool(found)
        return f" {found} " if found else match.group()

    replaced = pattern.sub(swap, answer)
    return [replaced] if count else []


def _base64_text(fragment: str) -> str:
    """Return the text of a Base64 fragment, also cut off or URL-safe; empty if it is none."""
    packed = _SPACE.sub("", fragment).rstrip("=").translate(_URL_SAFE)
    # A cut fragment is read as far as whole groups of four reach.
    for packing in (packed + "=" * (-len(packed) % 4), packed[: len(packed) // 4 * 4]):
        try:
            return _readable(base64.b64decode(packing, validate=True))
        except (binascii.Error, ValueError):
            continue
    return ""


def _hex_text(fragment: str) -> str:
    """Return the text of hexadecimal bytes; empty if they are none."""
    digits = _HEX_FILL.sub("", fragment)
    try:
        return _readable(bytes.fromhex(digits[: len(digits) // 2 * 2]))
    except ValueError:
        return ""


def _readable(data: bytes) -> str:
    """Return bytes as text if nearly all of it is printable; empty otherwise."""
    text = data.decode("utf-8", errors="ignore")
    good = sum(c.isprintable() or c.isspace() for c in text)
    # Bytes that are no text are dropped above; a cut fragment may lack the end of its last letter.
    whole = len(text.encode()) >= 0.7 * len(data)
    return text if text and whole and good >= 0.9 * len(text) else ""


def _morse_text(fragment: str) -> str:
    """Return the text of Morse code; words end at a stroke or at three blanks."""
    plain = fragment.strip().translate(_DASHES)
    found = []
    for word in re.split(r"\s*[/|\n]+\s*|\s{3,}", plain):
        letters = [_FROM_MORSE.get(code, "") for code in word.split()]
        found.append("".join(letters))
    text = " ".join(part for part in found if part)
    return text if len(text) >= SHORTEST else ""


def _shift(by: int) -> dict[int, str]:
    """Return the table that moves each ASCII letter by so many places."""
    lower, upper = string.ascii_lowercase, string.ascii_uppercase
    moved = lower[by:] + lower[:by] + upper[by:] + upper[:by]
    return {ord(a): b for a, b in zip(lower + upper, moved, strict=True)}


_SHIFTS = tuple(_shift(by) for by in range(1, 26))
_URL_SAFE = str.maketrans("-_", "+/")
_DASHES = str.maketrans("\u00b7\u2022\u2013\u2014\u2212_", "..----")
_LEET = str.maketrans("4@301!|l5$7+8926", "aaeoiiiissttbgzg")
_CODES = (
    ".- -... -.-. -.. . ..-. --. .... .. .--- -.- .-.. -- -. --- .--. --.- .-. ... - ..- ...- "
    ".-- -..- -.-- --.. ----- .---- ..--- ...-- ....- ..... -.... --... ---.. ----."
)
_FROM_MORSE = dict(zip(_CODES.split(), string.ascii_lowercase + string.digits, strict=True))

DECODERS: Mapping[str, Decoder] = {
    "base64": Decoder(decode=from_base64),
    "hex": Decoder(decode=from_hex),
    "caesar": Decoder(decode=from_caesar, plain=True),
    "reversed": Decoder(decode=from_reversed),
    "leet": Decoder(decode=from_leet, fold=fold_leet),
    "morse": Decoder(decode=from_morse),
    "spaced": Decoder(decode=from_spaced, fold=shingles),
}
"""Every decoder is tried on every answer, whatever the attack asked for."""
