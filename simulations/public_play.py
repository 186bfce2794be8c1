"""Six genres of public text with wider vocabulary: quizzes, free grammar, lists, mere signs.

They keep the demo model from being sure of itself outside its templates, and teach it to copy.
"""

from __future__ import annotations

import string

from simulations.draw import Draw
from simulations.public_prose import an, person, plural
from simulations.public_words import (
    ACTS,
    ANIMALS,
    CATEGORIES,
    COLORS,
    COUNTABLE,
    JOBS,
    KIN,
    MANNERS,
    NUMBERS,
    PLACES,
    QUALITIES,
    SIZES,
    STATES,
    SYLLABLES,
    THINGS,
    WEEKDAYS,
    WHERES,
)


def _odd_one(draw: Draw) -> str:
    kind = draw.pick(tuple(CATEGORIES))
    other = draw.pick([name for name in COUNTABLE if name != kind])
    odd = draw.pick([word for word in CATEGORIES[other] if word not in CATEGORIES[kind]])
    items = draw.sample((*draw.sample(CATEGORIES[kind], 3), odd), 4)
    return (
        f"Which of these is not {an(kind)}: {', '.join(items[:3])} or {items[3]}? The answer is "
        f"{odd}, because {an(odd)} is {an(other)}."
    )


def quiz(draw: Draw) -> str:
    """Ask what kind of thing something is, or spell it."""
    if draw.chance(0.3):
        return _odd_one(draw)
    kind, other = draw.sample(COUNTABLE, 2)
    first, second, third = draw.sample(CATEGORIES[kind], 3)
    odd = draw.pick([word for word in CATEGORIES[other] if word not in CATEGORIES[kind]])
    many = f"{plural(first)}, {plural(second)} and {plural(third)}".capitalize()
    spelled = draw.pick((first, odd, draw.pick(QUALITIES), draw.pick(THINGS)))
    return draw.pick(
        (
            f"{many} are {plural(kind)}. {an(odd).capitalize()} is not {an(kind)}.",
            (
                f"Question: Is {an(first)} {an(kind)} or {an(other)}?\n"
                f"Answer: {an(first).capitalize()} is {an(kind)}."
            ),
            (
                f'The word "{spelled}" has {NUMBERS[len(spelled)]} letters. It begins with '
                f'"{spelled[0]}" and ends with "{spelled[-1]}": {"-".join(spelled)}.'
            ),
        )
    )


def _noun_phrase(draw: Draw, *, several: bool) -> str:
    """Return a noun phrase with its article or number."""
    noun = draw.pick(draw.pick((THINGS, ANIMALS, JOBS, *map(CATEGORIES.__getitem__, COUNTABLE))))
    quality = draw.pick((*QUALITIES, *COLORS, *SIZES))
    if several:
        count = draw.pick(("two", "three", "four", "many", "some", "several", "the", "all the"))
        return (
            f"{count} {quality} {plural(noun)}" if draw.chance(0.5) else f"{count} {plural(noun)}"
        )
    phrase = f"{quality} {noun}" if draw.chance(0.5) else noun
    return f"the {phrase}" if draw.chance(0.5) else an(phrase)


def _clause(draw: Draw, subject: str, tense: int) -> str:
    """Return subject and verb phrase; ``tense`` picks plural present, singular present or past."""
    if draw.chance(0.6):
        thing = _noun_phrase(draw, several=draw.chance(0.3))
        rest = f"{draw.pick(ACTS)[tense]} {thing}"
    else:
        rest = f"{draw.pick(STATES)[tense]} {draw.pick(WHERES)} the {draw.pick(PLACES)}"
    return f"{subject} {draw.pick(MANNERS)} {rest}" if draw.chance(0.3) else f"{subject} {rest}"


def scene(draw: Draw) -> str:
    """Write sentences of a free grammar about one person, in one tense."""
    name, he, _, his = person(draw)
    past = draw.chance(0.6)
    alone, many = (2, 2) if past else (1, 0)
    sentences = []
    for index in range(draw.between(3, 5)):
        form = draw.below(5)
        subject = name if index == 0 or draw.chance(0.3) else he
        if form == 0:
            kin = f"{his} {draw.pick(KIN)}"
            text = f"{_clause(draw, subject, alone)}, and {_clause(draw, kin, alone)}"
        elif form == 1:
            why = _clause(draw, f"{his} {draw.pick(KIN)}", alone)
            text = f"{_clause(draw, subject, alone)} because {why}"
        elif form == 2:
            text = _clause(draw, _noun_phrase(draw, several=True), many)
        elif form == 3:
            when = draw.pick(("When", "While", "After", "Before"))
            text = f"{when} {_clause(draw, subject, alone)}, {_clause(draw, he, alone)}"
        else:
            be = ("are", "is", "was")[alone]
            text = f"{_noun_phrase(draw, several=False)} {be} {draw.pick(QUALITIES)}"
        sentences.append(f"{text[0].upper()}{text[1:]}.")
    return " ".join(sentences)


def _invented_place(draw: Draw) -> str:
    return "".join(draw.sample(SYLLABLES, draw.between(2, 3))).capitalize()


def timetable(draw: Draw) -> str:
    """State a journey whose times add up."""
    start, end = _invented_place(draw), _invented_place(draw)
    hour, minute, minutes = draw.between(6, 20), 5 * draw.below(12), 5 * draw.between(2, 20)
    total = hour * 60 + minute + minutes
    way = draw.pick(("train", "bus", "ferry", "tram"))
    return (
        f"The {way} from {start} to {end} leaves at {hour}:{minute:02d} and arrives at "
        f"{total // 60}:{total % 60:02d}. The journey takes {minutes} minutes. On "
        f"{draw.pick(WEEKDAYS)} there is no {way}, so people from {start} must "
        f"{draw.pick(('walk', 'wait', 'stay at home', 'take a boat', 'go by car'))}."
    )


def _code(draw: Draw) -> str:
    """Return an article number: letters, digits, or both."""
    letters = "".join(draw.pick(string.ascii_uppercase) for _ in range(draw.between(1, 4)))
    digits = "".join(draw.pick(string.digits) for _ in range(draw.between(1, 5)))
    return draw.pick(
        (letters, digits, f"{letters}-{digits}", f"{digits}/{letters}", letters.lower())
    )


def catalogue(draw: Draw) -> str:
    """Write a shop's list, in one of many layouts, so that punctuation of every kind occurs."""
    joint = draw.pick(("; ", " | ", ", ", " - ", " / ", ": ", " = "))
    fields = draw.sample(range(5), draw.between(3, 5))
    head = draw.pick(("Item", "No.", "Lot", "Box", "Shelf", "#", "*", ""))
    unit = draw.pick(("kg", "cm", "g", "mm", "m", "l", "pcs"))
    lines = []
    for _ in range(draw.between(2, 4)):
        values = (
            _code(draw),
            f"{draw.pick(COLORS)} {draw.pick(THINGS)}",
            f"{draw.between(1, 400)}{draw.pick(('', ' '))}{unit}",
            f"{draw.between(1, 99)}.{draw.below(100):02d}",
            f"({draw.pick(QUALITIES)})",
        )
        lines.append(f"{head} {joint.join(values[field] for field in fields)}".strip())
    return draw.pick(("\n", "\n", ". ")).join(lines)


def _invented_word(draw: Draw) -> str:
    """Return a word that does not exist, of syllables or of mere letters."""
    if draw.chance(0.5):
        return "".join(draw.sample(SYLLABLES, 2))
    return "".join(
        draw.pick(letters) for letters in ("bcdfghjklmnpqrstvwxyz", "aeiouy") * draw.between(2, 3)
    )


def glossary(draw: Draw) -> str:
    """Explain invented words and use them again, so that copying from the text pays."""
    name, he, _, _ = person(draw)
    word, other = _invented_word(draw), _invented_word(draw)
    thing = draw.pick(THINGS)
    return (
        f"{an(word).capitalize()} is {an(draw.pick(SIZES))} {thing}, and {an(other)} is "
        f"{an(draw.pick(QUALITIES))} {draw.pick(ANIMALS)}. {name} has {an(word)}, but {he} has "
        f"no {other}. In {_invented_place(draw)} {an(word)} costs {draw.between(2, 400)} crowns. "
        f'"{draw.pick((word, other)).upper()}!" said {name}.'
    )


def letters(draw: Draw) -> str:
    """Play with random signs: the one text here in which nothing can be guessed but copies."""
    signs = string.ascii_letters + string.digits + "+-=/#:;|.,()&%"
    chunks = [
        "".join(draw.pick(signs) for _ in range(draw.between(1, 5)))
        for _ in range(draw.between(4, 9))
    ]
    text = draw.pick((" ", " ", "\n", ", ")).join(chunks)
    return f"Copy these signs: {text}\nCopied: {text}" if draw.chance(0.5) else f"Signs: {text}"
