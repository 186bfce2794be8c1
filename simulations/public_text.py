"""Public text for pre-training: an endless, seeded stream of invented English documents.

The embedded demo model has to come from text that anybody may publish, and that contains no
clinical note, no secret and no real person. So the text is generated: sixteen genres, each a small
grammar that keeps its own promises (verbs agree, pronouns and names refer to the same person
throughout, sums are right, the coldest day of a forecast really is the coldest).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from simulations import public_play, public_prose
from simulations.draw import Draw

GENRES: tuple[Callable[[Draw], str], ...] = (
    public_prose.story,
    public_prose.encyclopaedia,
    public_prose.recipe,
    public_prose.letter,
    public_prose.dialogue,
    public_prose.how_to,
    public_prose.arithmetic,
    public_prose.weather,
    public_prose.health,
    public_prose.notice,
    public_play.quiz,
    public_play.scene,
    public_play.scene,
    public_play.timetable,
    public_play.catalogue,
    public_play.catalogue,
    public_play.glossary,
    public_play.glossary,
    public_play.letters,
)


def public_documents(seed: int) -> Iterator[str]:
    """Generate public documents for ever, of a random genre each.

    Args:
        seed: names the stream; the same seed gives the same documents everywhere.

    Yields:
        One document of 5 to about 70 words, without a final newline.

    Example:
        >>> stream = public_documents(1)
        >>> next(stream) == next(public_documents(1))
        True
    """
    draw = Draw(seed, "public")
    while True:
        yield draw.pick(GENRES)(draw)
