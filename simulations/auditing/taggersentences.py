"""Sentences with labelled personal data, on which the tagger of the redactor is trained.

A sentence is a pattern of ours filled with names, streets and numbers that are put together at
random: half of the names are real given and family names, half are made of the letter habits of
those, so that the tagger learns what stands around a name rather than a list. Nobody is meant.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from client.redaction.spans import Span
from client.redaction.wordlists import places, word_set
from simulations.auditing.taggerpatterns import PATTERNS, PLAIN

Random = np.random.Generator

_SLOT = re.compile(r"\{([A-Z_]+)\}")
_KIND = {"GIVEN": "PERSON", "FAMILY": "PERSON", "STREET_NAME": "STREET_ADDRESS"}
_DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
_MONTHS = (
    "January February March April May June July August September October November December"
).split()
_TITLES = "Mr. Mrs. Ms. Miss Dr. Prof. Mr Mrs Ms Dr Professor Doctor Sir Herr Frau Madame".split()
_WAYS = (
    "Street|St|St.|Street|Road|Rd|Rd.|Road|Avenue|Ave|Lane|Drive|Boulevard|Court|Place|Square|Way|"
    "Close|Terrace|Ridge|Park|Hill|Bridge|Forge|Mill|Cove|Gardens|Turnpike|Crossing|Meadow|Route"
).split("|")
_BEFORE_WAYS = (
    "Rue de|Rue|Via|Calle|Avenida|Rua|Avenue de|Boulevard|Piazza|Chemin des|Plaza|ul.|Am|Place"
).split("|")
_AFTER_WAYS = "strasse|straße|weg|gatan|vägen|vej|gade|katu|tie|straat|laan|plein|gata|veien".split(
    "|"
)
_UNITS = ("Apt. {}", "Apt {}", "Suite {}", "Unit {}", "Floor {}", "Flat {}", "#{}")
_FIRMS = (
    "Inc|Ltd|LLC|GmbH|Group|& Sons|Bank|Insurance|Systems|Partners|Airlines|Foods|Technologies|"
    "Corporation|Labs|Media|Motors|Consulting"
).split("|")
_WORDS = (
    "Clean Power Data First National Global Direct Blue Open Green Health Home Smart Digital "
    "Energy United General Care Social Finance Media Service Research Design Standard Express "
    "Capital Union Star City Street Public Science Red Sun River Trust Link Point Score Walk Ball "
    "Life Price"
).split()
_HOUSES = "Hospital University College Museum Orchestra Library Institute Clinic School".split()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sentence:
    """A made-up sentence, and where personal data stands in it."""

    text: str
    spans: tuple[Span, ...]


class Sentences:
    """A source of made-up sentences.

    Args:
        seed: names the sequence of sentences.
    """

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._patterns = [line.replace("\\n", "\n") for line in PATTERNS.strip().splitlines()]
        self._plain = PLAIN.strip().splitlines()
        self._given = sorted(word_set("GIVEN"))
        self._family = sorted(word_set("FAMILY"))
        self._people = sorted(word_set("DEMONYMS"))
        self._towns = sorted(name for name in places() if name.replace(" ", "").isalpha())
        self._habits = {"given": habits(self._given), "family": habits(self._family)}
        self._habits["town"] = habits([name for name in self._towns if " " not in name][::5])
        self._fill: Mapping[str, Callable[[], str]] = {
            "GIVEN": self._given_name,
            "FAMILY": self._family_name,
            "PERSON": self._person,
            "GPE": self._town,
            "ORGANIZATION": self._firm,
            "STREET_ADDRESS": self._address,
            "STREET_NAME": self._street,
            "NRP": lambda: self._one(self._people).capitalize(),
            "TITLE": lambda: self._one(_TITLES),
            "AGE": lambda: str(self._random.integers(1, 99)),
            "DATE_TIME": self._date,
            "ZIP_CODE": self._zip,
            "PHONE_NUMBER": self._phone,
            "CREDIT_CARD": self._card,
            "US_DRIVER_LICENSE": self._licence,
        }

    def draw(self) -> Sentence:
        """Return the next sentence; about one in five holds nothing personal."""
        random = self._random.random()
        if random < 0.2:
            text, spans = self._one(self._plain), list[Span]()
            if self._random.random() < 0.5:
                text = f"{text} {self._one(self._plain)}"
        else:
            text, spans = self._filled(self._one(self._patterns))
            if random < 0.4:
                more, further = self._filled(self._one(self._patterns + self._plain))
                shift = len(text) + 1
                text = f"{text} {more}"
                spans += [
                    Span(start=s.start + shift, end=s.end + shift, kind=s.kind) for s in further
                ]
        if self._chance(0.1):
            lowered = text.lower()
            text = lowered if len(lowered) == len(text) else text
        return Sentence(text=text, spans=tuple(spans))

    def _filled(self, pattern: str) -> tuple[str, list[Span]]:
        """Fill the slots of a pattern."""
        text, spans, done = "", [], 0
        for slot in _SLOT.finditer(pattern):
            text += pattern[done : slot.start()]
            value = self._fill[slot.group(1)]()
            kind = _KIND.get(slot.group(1), slot.group(1))
            spans.append(Span(start=len(text), end=len(text) + len(value), kind=kind))
            text += value
            done = slot.end()
        return text + pattern[done:], spans

    def _one(self, choices: list[str]) -> str:
        return choices[int(self._random.integers(len(choices)))]

    def _chance(self, p: float) -> bool:
        return bool(self._random.random() < p)

    def _digits(self, count: int) -> str:
        return "".join(str(digit) for digit in self._random.integers(0, 10, count))

    def _word(self, known: list[str], kind: str, share: float = 0.5) -> str:
        """Return a known word, or one made of the letter habits of the known ones."""
        if self._chance(share):
            return capital(self._one(known))
        return capital(invented(self._habits[kind], self._random))

    def _given_name(self) -> str:
        name = self._word(self._given, "given")
        return f"{name}-{self._word(self._given, 'given')}" if self._chance(0.03) else name

    def _family_name(self) -> str:
        name = self._word(self._family, "family")
        if self._chance(0.05):
            return self._one(["O'", "Mc", "van ", "de ", "von ", "Van der ", "Al-", "D'"]) + name
        if self._chance(0.05):
            return f"{name}{self._one([' ', '-'])}{self._word(self._family, 'family')}"
        return name

    def _person(self) -> str:
        draw = self._random.random()
        given, family = self._given_name(), self._family_name()
        if draw < 0.1:
            return given
        if draw < 0.3:
            return f"{given} {chr(65 + int(self._random.integers(26)))}. {family}"
        if draw < 0.34:
            return f"{given[0]}. {family}"
        if draw < 0.38:
            return f"{family}, {given}"
        return f"{given} {family}"

    def _town(self) -> str:
        name = self._word(self._towns, "town", share=0.65)
        if self._chance(0.08):
            return name.upper()
        if self._chance(0.05):
            return self._one(["New", "San", "Saint", "Bad", "Port", "St.", "Los"]) + f" {name}"
        return name

    def _firm(self) -> str:
        name, draw = self._family_name(), self._random.random()
        if draw < 0.25:
            return f"{name} {self._one(_FIRMS)}"
        if draw < 0.35:
            return f"{name} and {self._family_name()}"
        if draw < 0.45:
            return f"{name}, {self._family_name()} and {self._family_name()}"
        if draw < 0.6:
            return f"{self._town()} {self._one(_HOUSES)}"
        if draw < 0.78:
            count = int(self._random.integers(2, 4))
            words = " ".join(self._one(_WORDS) for _ in range(count))
            return f"{words} {self._one(_FIRMS)}" if self._chance(0.3) else words
        if draw < 0.85:
            return self._one([name[:4].capitalize() + "soft", name[:5] + "ex", name[:3].upper()])
        return self._word(self._towns, "town", share=0.0) + self._one(["", "", "tec", "ware", "co"])

    def _street(self) -> str:
        name = self._one([self._family_name(), self._town(), self._given_name()])
        draw = self._random.random()
        if draw < 0.45:
            return f"{name} {self._one(_WAYS)}"
        if draw < 0.65:
            return f"{self._one(_BEFORE_WAYS)} {name}"
        if draw < 0.9:
            return name + self._one(_AFTER_WAYS)
        return f"{name} {self._one(['utca', 'út', 'ulice', 'cesta', 'tänav', 'sokak', 'Allee'])}"

    def _address(self) -> str:
        draw, number = self._random.random(), str(self._random.integers(1, 9999))
        if draw < 0.06:
            return f"{self._one(['P.O. Box', 'PO Box', 'Box'])} {number}"
        if draw < 0.09:
            return f"the corner of {self._street()} and {number} {self._street()}"
        small = str(self._random.integers(1, 200))
        street = self._street()
        if draw < 0.4:
            address = f"{number} {street}"
        elif draw < 0.75:
            address = f"{street} {small}{self._one(['', '', '', 'a', 'B', '/3', '-5'])}"
        else:
            address = f"{number} {street} {small}"
        if self._chance(0.3):
            unit = self._one(list(_UNITS)).format(self._random.integers(1, 999))
            address += self._one([" ", ", ", "\n", "\n "]) + unit
        if self._chance(0.15):
            town = self._town()
            address += self._one([", ", "\n", "\n "]) + f"{town} {self._zip()}"
            address += self._one(["", f", {self._town()}", f"\n {self._town()}"])
        return address

    def _date(self) -> str:
        day, year = int(self._random.integers(1, 29)), int(self._random.integers(1920, 2030))
        month = self._one(_MONTHS)
        number = _MONTHS.index(month) + 1
        forms = [
            f"{year}",
            f"{year}",
            month,
            self._one(_DAYS),
            self._one(_DAYS),
            f"{month} {day}",
            f"{day} {month}",
            f"{day}. {month} {year}",
            f"{month} {day}, {year}",
            f"{month} {year}",
            f"{self._one(_DAYS)}, {month} {day}",
            f"{year}-{number:02}-{day:02}",
            f"{year}-{number:02}-{day:02} {day:02}:{number:02}:{day + 20}",
            f"{number}/{day}/{year}",
            f"{day:02}.{number:02}.{year}",
            f"{month[:3]} {day}",
            f"the {day}th of {month}",
            f"the {year // 10 * 10}s",
        ]
        return self._one(forms)

    def _zip(self) -> str:
        digits = self._digits(5)
        letters = "".join(chr(65 + int(k)) for k in self._random.integers(0, 26, 4))
        british = f"{letters[:2]}{digits[0]} {digits[1]}{letters[2:]}"
        return self._one([digits, digits, digits, digits[:4], f"{digits}-{digits[:4]}", british])

    def _phone(self) -> str:
        d = self._digits(14)
        forms = [
            f"{d[:3]}-{d[3:6]}-{d[6:10]}",
            f"({d[:3]}) {d[3:6]}-{d[6:10]}",
            f"{d[:3]} {d[3:6]} {d[6:10]}",
            f"+{d[:2]} {d[2:5]} {d[5:8]} {d[8:11]}",
            f"+{d[:2]} ({d[2]}){d[3:5]} {d[5:8]} {d[8:10]} {d[10:12]}",
            f"0{d[:2]} {d[2:5]} {d[5:7]} {d[7:9]}",
            f"0{d[:3]} {d[3:9]}",
            f"0{d[:4]}/{d[4:10]}",
            f"{d[:2]} {d[2:5]} {d[5:8]}",
            f"{d[:2]} {d[2:4]} {d[4:6]} {d[6:8]}",
            f"{d[:2]}-{d[2:5]} {d[5:7]} {d[7:9]}",
            d[:10],
            f"0{d[:9]}",
            f"00{d[:2]} {d[2:4]} {d[4:11]}",
        ]
        return self._one(forms)

    def _card(self) -> str:
        d = self._digits(16)
        spaced = " ".join(d[k : k + 4] for k in range(0, 16, 4))
        return self._one([d, d, d[:15], d[:14], d[:13], spaced, spaced.replace(" ", "-")])

    def _licence(self) -> str:
        letters = "".join(chr(65 + int(k)) for k in self._random.integers(0, 26, 2))
        return self._one([letters[0] + self._digits(7), letters + self._digits(6), self._digits(8)])


def capital(name: str) -> str:
    """Return a name with a capital at the start of each word."""
    return " ".join(word[:1].upper() + word[1:] for word in name.split(" "))


def habits(words: list[str]) -> dict[str, str]:
    """Return which letters follow which two letters in some words; ``^`` starts, ``$`` ends."""
    found: dict[str, str] = {}
    for word in words:
        marked = f"^^{word}$"
        for k in range(2, len(marked)):
            found[marked[k - 2 : k]] = found.get(marked[k - 2 : k], "") + marked[k]
    return found


def invented(letters: Mapping[str, str], random: Random) -> str:
    """Return a word of 3 to 12 letters that follows the habits of others."""
    while True:
        word = "^^"
        while not word.endswith("$") and len(word) < 15:
            choices = letters[word[-2:]]
            word += choices[int(random.integers(len(choices)))]
        if word.endswith("$") and 3 <= len(word) - 3 <= 12:
            return word[2:-1]
