"""Tokens to text, piece by piece: no half character, and nothing of a stop text, is given out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from shared.errors import InvalidValue

_CONTEXT = 8
"""Tokens of the prompt that decoding sees, so that a first space is not taken for a margin."""

_UNFINISHED = "\ufffd"
"""What a tokenizer writes for a character of which bytes are missing."""

MOST_STOPS = 16
LONGEST_STOP = 256


class TextStream:
    """The text of one answer as its tokens come.

    The pieces together are the text of all tokens, cut before the first stop text. A character
    is given out once all of its bytes are there; what may be the beginning of a stop text, once
    it turns out to be none. Each token is decoded with few others, so that an answer takes time
    in proportion to its length.

    Args:
        decode: tokens to text, U+FFFD for a character of which bytes are missing.
        before: tokens of the prompt.
        stops: texts that end an answer and are not part of it.

    Attributes:
        stopped: whether a stop text came.

    Raises:
        InvalidValue: for a stop text that is empty or too long, or too many of them.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        before: Sequence[int] = (),
        stops: Sequence[str] = (),
    ) -> None:
        check_stops(stops)
        self.stopped = False
        self._decode = decode
        self._stops = tuple(stops)
        self._known = list(before[-_CONTEXT:])
        self._fresh: list[int] = []
        self._shown = 0
        self._held = ""

    def push(self, token: int) -> str:
        """Take a token; return the text that can be given out, which may be empty."""
        if self.stopped:
            return ""
        self._fresh.append(token)
        text = self._text()
        whole = text.rstrip(_UNFINISHED)
        piece = whole[self._shown :]
        self._shown = max(self._shown, len(whole))
        if whole == text:
            self._known, self._fresh, self._shown = (self._known + self._fresh)[-_CONTEXT:], [], 0
        return self._release(piece)

    def finish(self) -> str:
        """Return what is left, once no token comes any more."""
        if self.stopped:
            return ""
        rest = self._text()[self._shown :] if self._fresh else ""
        self._fresh = []
        piece = self._release(rest)
        last, self._held = self._held, ""
        return piece + last

    def _text(self) -> str:
        """Return the text of the fresh tokens; a space before them is kept."""
        head = self._decode(self._known) if self._known else ""
        full = self._decode(self._known + self._fresh)
        return full[len(head) :] if full.startswith(head) else self._decode(self._fresh)

    def _release(self, piece: str) -> str:
        """Hold back what may be the beginning of a stop text; cut before a whole one."""
        text = self._held + piece
        found = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def check_stops(stops: Sequence[str]) -> None:
    """Require few, short texts.

    Raises:
        InvalidValue: otherwise.
    """
    if isinstance(stops, str) or not len(stops) <= MOST_STOPS:
        msg = f"stop: expected at most {MOST_STOPS} texts."
        raise InvalidValue(msg)
    if not all(isinstance(stop, str) and 1 <= len(stop) <= LONGEST_STOP for stop in stops):
        msg = f"stop: expected texts of 1 to {LONGEST_STOP} characters."
        raise InvalidValue(msg)


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of a text that a stop text begins with."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
