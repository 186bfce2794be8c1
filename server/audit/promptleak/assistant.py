"""A model in conversation: what an attacker of a served model can talk to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from shared.errors import InvalidValue


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """A system prompt and what was said since; its ``repr`` shows nothing of either.

    Args:
        system: the system prompt; may be empty.
        turns: user and assistant in alternation, the user first and last.
    """

    system: str = field(repr=False)
    turns: tuple[str, ...] = field(repr=False)

    def __post_init__(self) -> None:
        """Refuse a conversation in which it is not the assistant's turn.

        Raises:
            InvalidValue: for an even number of turns.
        """
        if len(self.turns) % 2 == 0:
            msg = f"turns={len(self.turns)}, expected an odd number: the user speaks last."
            raise InvalidValue(msg)


class Assistant(ABC):
    """A model that answers under a system prompt, with its adapter and without."""

    @abstractmethod
    def respond_many(
        self, conversations: Sequence[Conversation], *, adapter: bool, room: Sequence[float]
    ) -> list[str | None]:
        """Answer the last turn of each conversation.

        Args:
            conversations: what was said so far.
            adapter: with the adapter, or with the base model alone.
            room: for each conversation, the most tokens of the answer as a multiple of the tokens
                of its system prompt (implementations add a small margin).

        Returns:
            One answer per conversation; None where the conversation does not fit the model.
        """

    def respond(
        self, system: str, turns: tuple[str, ...], *, adapter: bool, room: float = 1.0
    ) -> str | None:
        """Answer one conversation."""
        talk = Conversation(system=system, turns=turns)
        return self.respond_many([talk], adapter=adapter, room=[room])[0]


class Scripted(Assistant):
    """An assistant that is a function of the conversation; controls and demonstrations are.

    Args:
        answer: what it says.
    """

    def __init__(self, answer: Callable[[Conversation], str]) -> None:
        self._answer = answer

    def respond_many(
        self, conversations: Sequence[Conversation], *, adapter: bool, room: Sequence[float]
    ) -> list[str | None]:
        """Answer by script; adapter and room make no difference."""
        return [self._answer(talk) for talk in conversations]
