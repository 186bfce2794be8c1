"""The on-device redactor: what finds personal data in a query, all of it together.

Two finders look at every text. Presidio's recognisers know what has a form (cards with their check
digit, IBANs, telephone numbers by the rules of each country, e-mail and network addresses). The
tagger of :mod:`client.redaction.tagger` knows what has none: names, places, streets, organisations.
Where a spaCy model with entities is installed, it is asked too. Nothing is downloaded, and no text
leaves the process.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from client.redaction.placeholders import Redacted, Session
from client.redaction.spans import Finder, Span, settle
from client.redaction.tagger import load_tagger
from client.redaction.wordlists import INSTALL, word_set
from shared.errors import InvalidValue, MissingDependency, ModelNotFound

KINDS = (
    "PERSON",
    "STREET_ADDRESS",
    "GPE",
    "ORGANIZATION",
    "PHONE_NUMBER",
    "EMAIL_ADDRESS",
    "CREDIT_CARD",
    "IBAN_CODE",
    "US_SSN",
    "US_DRIVER_LICENSE",
    "IP_ADDRESS",
    "DOMAIN_NAME",
    "DATE_TIME",
    "AGE",
    "ZIP_CODE",
    "NRP",
    "TITLE",
    "ID_NUMBER",
)
"""Kinds that the redactor looks for; GPE is a place, NRP a nationality, religion or party."""

LEAST_SCORE = 0.35
"""Findings of Presidio below this are dropped: what has the form alone, and no word around it."""

_LANGUAGE = "en"
_RENAMED = {"LOCATION": "GPE", "URL": "DOMAIN_NAME", "FACILITY": "GPE"}
# Any run of seven or more capitals and digits with at least five digits: some number of something.
_IDENTIFIER = r"(?<![A-Za-z0-9])(?=(?:[A-Z]*[0-9]){5})[A-Z0-9]{7,}(?![A-Za-z0-9])"
_IDENTIFIER_SCORE = 0.4
_EDGES = " \t\r\n,;:.!?\"'()[]{}<>«»“”\u2018\u2019"
_POSSESSIVE = re.compile("['\u2019]s?$")
_NAMES = ("PERSON", "ORGANIZATION", "GPE", "STREET_ADDRESS")
# What says little on its own is not looked for again: a later "34" need not be the age.
_COMMON = frozenset({"AGE", "DATE_TIME", "TITLE", "NRP"})
_SHORTEST_NAME = 3


class PresidioFinder:
    """What has a form, by ``presidio-analyzer``; with a spaCy model also names and places.

    Args:
        spacy_model: name or folder of an installed spaCy model that finds entities; None for none.

    Raises:
        MissingDependency: if ``presidio-analyzer`` is not installed.
        ModelNotFound: if the spaCy model is not installed.
    """

    def __init__(self, *, spacy_model: str | None = None) -> None:
        try:
            from presidio_analyzer import AnalyzerEngine, RecognizerRegistry
            from presidio_analyzer.nlp_engine import SpacyNlpEngine
        except ImportError as error:
            msg = "presidio-analyzer is not installed."
            raise MissingDependency(msg, hint=INSTALL) from error
        engine: Any = SpacyNlpEngine(
            models=[{"lang_code": _LANGUAGE, "model_name": spacy_model or ""}]
        )
        # Given ready, because the engine would fetch a model that is not there.
        engine.nlp = {_LANGUAGE: _spacy(spacy_model)}
        registry = RecognizerRegistry(supported_languages=[_LANGUAGE])
        for recognizer in _recognizers(named=spacy_model is not None):
            registry.add_recognizer(recognizer)
        self._analyzer: Any = AnalyzerEngine(
            registry=registry, nlp_engine=engine, supported_languages=[_LANGUAGE]
        )

    def find(self, text: str) -> list[Span]:
        """Return what Presidio finds; findings may overlap."""
        found = self._analyzer.analyze(text=text, language=_LANGUAGE, score_threshold=LEAST_SCORE)
        return [
            Span(
                start=result.start,
                end=result.end,
                kind=_RENAMED.get(result.entity_type, result.entity_type),
                score=float(result.score),
            )
            for result in found
        ]


def _spacy(model: str | None) -> Any:  # noqa: ANN401
    """Return a spaCy pipeline: an installed model, or one that splits words and nothing else."""
    import spacy

    if model is None:
        return spacy.blank(_LANGUAGE)
    try:
        return spacy.load(model)
    except OSError as error:
        msg = "the spaCy model is not installed."
        raise ModelNotFound(
            msg, hint="Install it as its makers say; fedslm downloads nothing."
        ) from error


def _recognizers(*, named: bool) -> list[Any]:
    """Return Presidio's recognisers of what we look for."""
    from phonenumbers import SUPPORTED_REGIONS
    from presidio_analyzer import Pattern, PatternRecognizer, predefined_recognizers

    known = predefined_recognizers
    found = [
        known.CreditCardRecognizer(),
        known.IbanRecognizer(),
        known.IpRecognizer(),
        known.UsSsnRecognizer(),
        known.UsLicenseRecognizer(),
        known.UrlRecognizer(),
        known.DateRecognizer(),
        known.PhoneRecognizer(supported_regions=sorted(SUPPORTED_REGIONS & _REGIONS)),
        # Presidio's own would fetch a list of domains to check an address with.
        PatternRecognizer(
            supported_entity="EMAIL_ADDRESS",
            patterns=known.EmailRecognizer.PATTERNS,
            context=known.EmailRecognizer.CONTEXT,
        ),
        PatternRecognizer(
            supported_entity="ID_NUMBER",
            patterns=[Pattern("identifier", _IDENTIFIER, _IDENTIFIER_SCORE)],
            global_regex_flags=re.DOTALL,
        ),
    ]
    if named:
        found.append(known.SpacyRecognizer())
    return found


# Regions by whose rules a number without a country code is read.
_REGIONS = frozenset(
    "US GB CA AU IN DE FR ES IT NL BE CH AT SE NO DK FI PL CZ PT IE BR MX ZA HU".split()
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Redactor:
    """Finds personal data in a query and takes it out.

    Args:
        finders: what looks at a text.
        kinds: which kinds are taken out.

    Raises:
        InvalidValue: without a finder or a kind.
    """

    finders: tuple[Finder, ...]
    kinds: frozenset[str] = frozenset(KINDS)

    def __post_init__(self) -> None:
        """Refuse a redactor that can find nothing."""
        if not (self.finders and self.kinds):
            msg = f"finders={len(self.finders)} kinds={len(self.kinds)}, expected one or more."
            raise InvalidValue(msg)

    def find(self, text: str, *, session: Session | None = None) -> list[Span]:
        """Return what is personal in a text: in order, nothing overlapping.

        What was found once is found wherever its words stand again, in this text and, with a
        session, in later ones.
        """
        spans = [span for finder in self.finders for span in finder.find(text)]
        # First settled with every kind, so that a kind nobody asked for can claim what is its own.
        kept = [span for span in settle(spans) if span.kind in self.kinds]
        trimmed = [small for span in kept if (small := trim(text, span)) is not None]
        known = {} if session is None else self._known(session)
        named = [
            replace(span, kind=known.get(text[span.start : span.end], span.kind))
            for span in trimmed
        ]
        names = {
            **{text[s.start : s.end]: s.kind for s in named if s.kind in _NAMES},
            **known,
        }
        again = [span for span in _repeats(text, names) if span.kind in self.kinds]
        settled = settle([*named, *again])
        return [small for span in settled if (small := trim(text, span)) is not None]

    def _known(self, session: Session) -> dict[str, str]:
        """Return the kind of every text that a session knows and that tells something."""
        kinds = sorted(self.kinds - _COMMON)
        return {value: kind for kind in kinds for value in session.values(kind)}

    def redact(self, text: str, session: Session) -> Redacted:
        """Return a query as it may leave; ``session`` learns what was replaced."""
        return session.redact(text, self.find(text, session=session))


def trim(text: str, span: Span) -> Span | None:
    """Return a span without marks and blanks at its ends, and names without ``'s``; None if empty.

    A title keeps its full stop.
    """
    start, end = span.start, span.end
    while start < end and text[start] in _EDGES:
        start += 1
    edges = _EDGES.replace(".", "") if span.kind == "TITLE" else _EDGES
    while start < end and text[end - 1] in edges:
        end -= 1
    if span.kind in _NAMES:
        possessive = _POSSESSIVE.search(text[start:end])
        end -= len(possessive.group()) if possessive else 0
    if not any(letter.isalnum() for letter in text[start:end]):
        return None
    return Span(start=start, end=end, kind=span.kind, score=span.score)


def _repeats(text: str, names: Mapping[str, str]) -> list[Span]:
    """Return where known texts, or the words of known names of people, stand as whole words."""
    wanted = dict(names)
    for value, kind in names.items():
        if kind == "PERSON":
            for word in re.findall(r"[^\W\d_]+", value):
                if _telling(word):
                    wanted.setdefault(word, kind)
    return [
        Span(start=match.start(), end=match.end(), kind=kind, score=0.0)
        for value, kind in wanted.items()
        for match in re.finditer(rf"(?<!\w){re.escape(value)}(?!\w)", text)
    ]


def _telling(word: str) -> bool:
    """Tell whether a word of a name is a name on its own, and not an ordinary word."""
    return (
        len(word) >= _SHORTEST_NAME and word[0].isupper() and word.lower() not in word_set("COMMON")
    )


@cache
def default_redactor(
    *, kinds: frozenset[str] | None = None, spacy_model: str | None = None
) -> Redactor:
    """Return the redactor that ships: Presidio and the tagger, and a spaCy model if one is named.

    Args:
        kinds: which of :data:`KINDS` to take out; None for all.
        spacy_model: name or folder of an installed spaCy model.

    Raises:
        InvalidValue: for an unknown kind.
        MissingDependency: if the ``query`` extra is not installed.
        ModelNotFound: if the spaCy model is not installed.
    """
    chosen = frozenset(KINDS if kinds is None else kinds)
    unknown = sorted(chosen - set(KINDS))
    if unknown:
        msg = f"kinds={unknown}, expected some of {', '.join(KINDS)}."
        raise InvalidValue(msg)
    finders: Sequence[Finder] = (PresidioFinder(spacy_model=spacy_model), load_tagger())
    return Redactor(finders=tuple(finders), kinds=chosen)
