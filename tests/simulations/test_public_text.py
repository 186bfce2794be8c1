from __future__ import annotations

import re
from itertools import islice

from simulations.draw import Draw
from simulations.public_text import GENRES, public_documents


def test_public_text_repeats_with_its_seed_and_differs_without() -> None:
    first = list(islice(public_documents(1), 200))
    assert first == list(islice(public_documents(1), 200))
    assert first != list(islice(public_documents(2), 200))
    assert all(document.strip() == document != "" for document in first)


def test_public_text_does_its_sums_right() -> None:
    """The oracle is Python's arithmetic, over the genre that claims to add."""
    claims = 0
    for document in islice(public_documents(5), 3000):
        for left, sign, right, result in re.findall(
            r"(\d+) (plus|minus|\+|-) (\d+) (?:is|=) (\d+)", document
        ):
            claims += 1
            signed = -int(right) if sign in {"minus", "-"} else int(right)
            assert int(left) + signed == int(result)
    assert claims > 100


def test_public_text_names_the_coldest_day() -> None:
    reports = [text for text in islice(public_documents(6), 3000) if text.startswith("The weather")]
    assert len(reports) > 50
    for report in reports:
        days = {
            day: int(degrees)
            for day, degrees in re.findall(r"(\w+) will be \w+ with (\d+)", report)
        }
        coldest = re.search(r"coldest day will be (\w+)", report)
        assert coldest is not None
        assert coldest[1] == min(days, key=days.__getitem__)


def test_every_genre_occurs() -> None:
    assert len(GENRES) >= 10
    for genre in GENRES:
        assert len({genre(Draw(1, index)) for index in range(20)}) > 5
