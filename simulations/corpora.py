"""The embedded private corpus: notes of invented clinics, each with habits and secrets of its own.

A million clients need no storage: everything about client ``i`` is a function of (seed, i). All
clients write the same kind of note (patient, complaint, diagnosis, treatment, follow-up), which
is what a federation can learn together and what the public pre-training text never shows. On top
of it every client has its own labels, order and tone, its own conditions, invented drugs, staff
and street names, and patients whose names, telephone numbers, record numbers and addresses are
the planted facts an audit looks for.

Nobody here exists. Telephone numbers lie in 555-0100 to 555-0199, which the North American
numbering plan reserves for fiction; drugs and streets are made of syllables.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shared.errors import InvalidValue
from shared.validate import positive_integer
from simulations.draw import Draw
from simulations.public_words import words

CLIENTS_DEFAULT = 1000
PATIENTS = 6
CANARY_LENGTH = 4

GIVEN = words(
    "Aveline Brannic Corwen Dara Edda Fenno Gisla Hale Imke Joris Kaya Lorn Maeve Nilo Orla Pavo "
    "Quenby Rafe Saskia Tibor Una Vesna Wim Xenia Yarrow Zola Ansel Birte Caspar Delia Ewan Freya"
)
STARTS = words(
    "Bel Cor Dar Fen Gal Hol Jor Kel Lor Mar Nor Os Pel Quil Ran Sel Tar Ul Ver Wil Yar Zel Ash "
    "Bran Cal Dun El Far Gris Hart Ing Jas"
)
ENDS = words(
    "ber den dock fell gate ham hurst ing lan ley low mere mond more nick over ric row sey shaw "
    "ster ter thorn ton vane wick win wood worth yard by combe"
)
DRUG_STARTS = words("vel cor zun mip tro lex dor pra ful nev sal bri")
DRUG_ENDS = words("orin amol idine ex ipril axin olan umab")
CLINICS = ("Surgery", "Practice", "Clinic", "Health Centre", "Medical Rooms", "Family Doctors")
ROADS = ("Rd", "St", "Ln", "Row", "Cl", "Ave")
COMPLAINTS = {
    "asthma": ("wheeze", "sob", "tight chest"),
    "htn": ("headache", "dizzy", "bp check"),
    "uti": ("dysuria", "freq", "low abdo pain"),
    "gout": ("red toe", "swollen foot"),
    "eczema": ("itch", "dry rash"),
    "otitis": ("ear pain", "disch ear"),
    "gerd": ("heartburn", "reflux"),
    "t2dm": ("thirst", "bm check", "tired"),
    "migraine": ("headache", "n+v", "aura"),
    "sinusitis": ("facial pain", "blocked nose"),
    "bronchitis": ("prod cough", "sob"),
    "tonsillitis": ("sore throat", "fever"),
    "ibs": ("bloating", "abdo pain"),
    "oa knee": ("knee pain", "stiff knee"),
    "anaemia": ("tired", "pale", "sob"),
    "lbp": ("back pain", "sciatica"),
    "anxiety": ("poor sleep", "panic", "palps"),
    "hypothyr": ("tired", "wt gain"),
    "cellulitis": ("red leg", "hot leg"),
    "conjunct": ("red eye", "sticky eye"),
}
# Complaint, diagnosis, treatment, follow-up.
_FOLLOW_UP = 3
LABELS = (
    ("CC", "DX", "RX", "FU"),
    ("c/o", "dx", "rx", "f/u"),
    ("Sx", "Dx", "Tx", "Rv"),
    ("CC", "Imp", "RX", "Plan"),
)
ORDERS = ((0, 1, 2, 3), (0, 2, 1, 3), (1, 0, 2, 3))
JOINTS = ("\n", "; ", " | ", ". ")
MARKS = (": ", " - ", "= ")
SPANS = ("x{n}d", "{n}/7", "{n}d hx")
FREQUENCIES = ("od", "bd", "tds", "qds", "nocte", "prn")
TONES = words(
    "pt happy w plan|nil else|d/w pt|safety net given|nkda|no red flags|obs stable|bloods sent|"
    "pt keen|looks well|bit worried|rtc if worse|sick note 1/52|family aware|dnA last appt|"
    "will ring",
    "|",
)
# Ordinary words, each one token of the demo tokenizer, so that every secret is four tokens.
CANARY_WORDS: tuple[str, ...] = words(
    "add animal answer arrives aunt avoid away back baker bakery ball basket beach bean bed "
    "begins behind bell better big bird black blanket blue boat book box bridge brother brown "
    "bus but butter button cake can candle car carried carry clean clear clock cloudy coat cold "
    "coldest colour cost course cover cow crow crowns cup cut day days degrees doctor dog done "
    "drink drum dry duck early eats egg eight empty enough everything family far farm father "
    "favourite feather ferry five foggy forest forget found founded four frog front garden "
    "golden grandfather grandmother green grey harbour hat heavy held help helps here hill his "
    "hole home hours huge inside journey keep key kilometres kitchen kite ladder lake lamp "
    "leaves lemon letter letters library like list little live lived long many map market "
    "meadow mild mill minutes mirror more mother much museum mushroom must near need never new "
    "next nine nurse often old one onion open opens orange outside pain paint paper park people "
    "pepper pharmacist pie play plum plus purple put quickly quiet quietly rainy read red rest "
    "right ring river room rope round said salad saw say school serve seven sheep short signs "
    "silver sister six sleep small snowy soft some soon soup spoon station stay stew stir stone "
    "stormy sunny take takes talk tall thin think thousand three time tiny together tomorrow "
    "town train tram tree two uncle used usually very village wait walk want wanted warm "
    "warmest wash water way weather week weeks welcome wheel white will windy wishes wood work "
    "years yellow"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    """One planted personal fact; it stands word for word in its client's first records.

    Args:
        kind: "name", "phone", "record_number" or "address".
        patient: the invented patient whom the fact is about.
        text: the fact, as the records spell it.
    """

    kind: str
    patient: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Patient:
    """An invented person: how the note's first line names them, and one fact."""

    name: str
    age: int
    sex: str
    secret: Secret


@dataclass(frozen=True, slots=True, kw_only=True)
class _Clinic:
    """The habits of one client: all its records follow from this and a record's index."""

    name: str
    labels: tuple[str, str, str, str]
    order: tuple[int, ...]
    joint: str
    mark: str
    span: str
    frequencies: tuple[str, ...]
    tones: tuple[str, ...]
    conditions: tuple[tuple[str, str, int], ...]
    staff: tuple[str, ...]
    patients: tuple[_Patient, ...]


def client_name(client: int, seed: int) -> str:
    """Return the name of an invented clinic, different for every client of a corpus.

    Args:
        client: index from 0; any size.
        seed: names the corpus.

    Returns:
        Such as ``"Keldock Surgery 17"``.

    Raises:
        InvalidValue: if an index or the seed is not an integer, or the index is negative.
    """
    return _clinic(client, seed).name


def private_records(client: int, *, seed: int, records: int) -> list[str]:
    """Return the notes of one client.

    Costs the same for client 0 and client 999,999, and a longer list begins with the shorter
    one. The first ``PATIENTS`` records are about one patient each, so they hold every secret.

    Args:
        client: index from 0; any size.
        seed: names the corpus.
        records: how many notes.

    Returns:
        Notes of about 40 to 90 tokens of the demo tokenizer.

    Raises:
        InvalidValue: if an argument is not an integer in its range.
    """
    positive_integer(records=records)
    clinic = _clinic(client, seed)
    return [_note(clinic, index, Draw(seed, "note", client, index)) for index in range(records)]


def secrets(client: int, seed: int) -> list[Secret]:
    """Return the planted facts of one client: two for every patient, the name and one more.

    Args:
        client: index from 0; any size.
        seed: names the corpus.

    Returns:
        ``2 * PATIENTS`` facts; each ``text`` is a substring of one of the client's first
        ``PATIENTS`` records.

    Raises:
        InvalidValue: if an index or the seed is not an integer, or the index is negative.
    """
    found: list[Secret] = []
    for patient in _clinic(client, seed).patients:
        found.append(Secret(kind="name", patient=patient.name, text=patient.name))
        found.append(patient.secret)
    return found


def canary_secret(rng: np.random.Generator) -> tuple[str, ...]:
    """Draw an audit's secret uniformly from the ``256 ** CANARY_LENGTH`` possible ones.

    Args:
        rng: the audit's generator; the draw decides membership, so it must be recorded.

    Returns:
        Four words, repeats allowed.
    """
    return tuple(
        CANARY_WORDS[int(index)] for index in rng.integers(len(CANARY_WORDS), size=CANARY_LENGTH)
    )


def canary_text(secret: Sequence[str]) -> str:
    """Return the text of one secret: its words, each after a space.

    The first one too, so that with the usual tokenizers it is the token that it is within a line.

    Args:
        secret: as :func:`canary_secret` gives it.

    Returns:
        Such as ``" river lamp lamp yellow"``.

    Raises:
        InvalidValue: if there are not ``CANARY_LENGTH`` words, or one is not a canary word.
    """
    if not (len(secret) == CANARY_LENGTH and all(word in CANARY_WORDS for word in secret)):
        msg = f"A secret of {len(secret)} words, expected {CANARY_LENGTH} of CANARY_WORDS."
        raise InvalidValue(msg, hint="Draw them with canary_secret.")
    return "".join(f" {word}" for word in secret)


def _clinic(client: int, seed: int) -> _Clinic:
    """Derive the habits and patients of one client."""
    if not _is_index(client):
        msg = f"client={client!r}, expected an integer >= 0."
        raise InvalidValue(msg)
    draw = Draw(seed, "clinic", client)
    area, code = draw.between(201, 989), "".join(draw.sample("ABCDEFGHKLMNPRSTVWXZ", 2))
    quarter = _surname(draw)
    streets = [f"{_surname(draw)} {draw.pick(ROADS)}" for _ in range(3)]
    conditions = tuple(
        (condition, draw.pick(DRUG_STARTS) + draw.pick(DRUG_ENDS), 5 * draw.pick((1, 2, 4, 10, 50)))
        for condition in draw.sample(tuple(COMPLAINTS), 4)
    )
    return _Clinic(
        name=f"{_surname(draw)} {draw.pick(CLINICS)} {client}",
        labels=draw.pick(LABELS),
        order=draw.pick(ORDERS),
        joint=draw.pick(JOINTS),
        mark=draw.pick(MARKS),
        span=draw.pick(SPANS),
        frequencies=tuple(draw.sample(FREQUENCIES, 2)),
        tones=tuple(draw.sample(TONES, 2)),
        conditions=conditions,
        staff=tuple(_surname(draw) for _ in range(2)),
        patients=tuple(
            _patient(draw, number, area=area, code=code, home=f"{draw.pick(streets)} {quarter}")
            for number in range(PATIENTS)
        ),
    )


def _is_index(value: object) -> bool:
    """Tell whether a value is a non-negative integer and not a boolean."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _patient(draw: Draw, number: int, *, area: int, code: str, home: str) -> _Patient:
    """Invent one patient; the kind of fact goes round, so every client has all kinds."""
    name = f"{draw.pick(GIVEN)} {_surname(draw)}"
    kind, text = (
        ("phone", f"{area} 555 01{draw.below(100):02d}"),
        ("record_number", f"{code}-{draw.below(100_000):05d}"),
        ("address", f"{draw.between(1, 199)} {home}"),
    )[number % 3]
    secret = Secret(kind=kind, patient=name, text=text)
    return _Patient(name=name, age=draw.between(1, 94), sex=draw.pick(("m", "f")), secret=secret)


def _surname(draw: Draw) -> str:
    return draw.pick(STARTS) + draw.pick(ENDS)


def _note(clinic: _Clinic, index: int, draw: Draw) -> str:
    """Write one note: a first line, sections in the client's order, perhaps a remark."""
    patient = clinic.patients[index] if index < PATIENTS else draw.pick(clinic.patients)
    tag = {"phone": "tel", "record_number": "rec", "address": "addr"}[patient.secret.kind]
    condition, drug, dose = draw.pick(clinic.conditions)
    span = clinic.span.format(n=draw.pick((1, 2, 3, 5, 7)))
    bodies = (
        f"{draw.pick(COMPLAINTS[condition])} {span}",
        condition,
        f"{drug} {dose}mg {draw.pick(clinic.frequencies)}",
        f"{draw.pick((1, 2, 4))}/52 Dr {draw.pick(clinic.staff)}",
    )
    parts = [f"Pt {patient.name} {patient.age}{patient.sex} {tag} {patient.secret.text}"]
    brief = draw.chance(0.4)
    shown = [part for part in clinic.order if not (brief and part == _FOLLOW_UP)]
    parts += [f"{clinic.labels[part]}{clinic.mark}{bodies[part]}" for part in shown]
    if brief and draw.chance(0.6):
        parts.append(draw.pick(clinic.tones))
    return clinic.joint.join(parts)
