"""Text from a causal language model, one prompt at a time, piece by piece, on any runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING

from client.answering.engine import Draws
from client.answering.stream import TextStream
from client.latency import Latency
from shared import validate
from shared.errors import InvalidValue

if TYPE_CHECKING:
    from client.answering.engine import Engine


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a model wrote.

    Attributes:
        text: without the prompt, the end token and the stop text.
        prompt_tokens: how many tokens the prompt had.
        tokens: how many were written; what was cut off at a stop text is among them.
        ended: "end" (the model ended it), "stop" (a stop text came), "length" (``max_tokens``) or
            "window" (the model's window is full).
        latency: how long it took; two answers that differ in nothing else are equal.
    """

    text: str
    prompt_tokens: int
    tokens: int
    ended: str
    latency: Latency | None = field(default=None, compare=False)


@dataclass(slots=True)
class _Written:
    """What is known of a text while it is written."""

    marks: list[float]
    tokens: list[int] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class Generator:
    """Writes on from a prompt.

    Args:
        engine: a model in some runtime.
    """

    engine: Engine

    def answer(
        self,
        prompt: str,
        *,
        max_tokens: int,
        temperature: float,
        top_k: int,
        seed: int | None,
        stop: Sequence[str] = (),
        chat: bool = False,
        on_text: Callable[[str], None] | None = None,
    ) -> Answer:
        """Write an answer; arguments and errors as ``client.inference.LocalModel.generate``."""
        written = _Written(marks=[perf_counter()])
        draws = Draws.of(temperature, top_k, seed)
        ids, room = self._encode(prompt, max_tokens, chat=chat)
        limit = min(max_tokens, room)
        pieces: list[str] = []
        stream = TextStream(self.engine.decode, ids, stop)
        for piece in self._write(ids, written, limit, draws, stream):
            pieces.append(piece)
            if on_text is not None:
                on_text(piece)
        full = "window" if room < max_tokens else "length"
        ended = "stop" if stream.stopped else full if len(written.tokens) == limit else "end"
        return Answer(
            text="".join(pieces),
            prompt_tokens=len(ids),
            tokens=len(written.tokens),
            ended=ended,
            latency=Latency.of(written.marks, perf_counter()),
        )

    def pieces(
        self,
        prompt: str,
        *,
        max_tokens: int,
        temperature: float,
        top_k: int,
        seed: int | None,
        stop: Sequence[str] = (),
        chat: bool = False,
    ) -> Iterator[str]:
        """Yield the pieces of an answer as they are written."""
        ids, room = self._encode(prompt, max_tokens, chat=chat)
        draws = Draws.of(temperature, top_k, seed)
        stream = TextStream(self.engine.decode, ids, stop)
        return self._write(ids, _Written([]), min(max_tokens, room), draws, stream)

    def _encode(self, prompt: str, max_tokens: int, *, chat: bool = False) -> tuple[list[int], int]:
        """Return the tokens of a prompt and how many fit behind them."""
        validate.positive_integer(max_tokens=max_tokens)
        encode = self.engine.ask if chat else self.engine.encode
        ids, window = encode(prompt), self.engine.window
        room = 1 << 31 if window is None else window - len(ids)
        if not room >= 1:
            msg = f"The prompt has {len(ids)} tokens, expected fewer than {window}."
            raise InvalidValue(msg, hint="That is the model's window; shorten the prompt.")
        return ids, room

    def _write(
        self, ids: list[int], written: _Written, limit: int, draws: Draws, stream: TextStream
    ) -> Iterator[str]:
        """Yield pieces of text; write down what was chosen, and when."""
        turn, step, ends = self.engine.turn(), ids, self.engine.ends
        while len(written.tokens) < limit and not stream.stopped:
            token = draws.choose(turn.feed(step))
            written.marks.append(perf_counter())
            if token in ends:
                break
            written.tokens.append(token)
            step = [token]
            if piece := stream.push(token):
                yield piece
        if piece := stream.finish():
            yield piece
