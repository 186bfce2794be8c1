"""Hold every conversation of an attack, in batches, turn by turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from server.audit.promptleak.assistant import Assistant, Conversation
from server.audit.promptleak.attacks import Attack
from server.audit.promptleak.defences import NONE, Defence
from server.audit.promptleak.prompts import SystemPrompt
from shared.errors import AuditError


@dataclass(slots=True)
class _Thread:
    """One conversation as it goes on."""

    conversation: Conversation
    defence: Defence
    left: tuple[str, ...]
    room: float
    answers: list[str]
    fits: bool = True


def interview(
    assistant: Assistant,
    prompts: Sequence[SystemPrompt],
    attacks: Sequence[Attack],
    *,
    adapter: bool,
    defence: Defence = NONE,
) -> list[list[tuple[str, ...] | None]]:
    """Try every attack on every prompt.

    Args:
        assistant: who answers.
        prompts: what to protect.
        attacks: what to say.
        adapter: with the adapter, or with the base model alone.
        defence: how the prompt is protected.

    Returns:
        For each prompt and attack, the answers of the conversation in order; None where it did not
        fit the model. A follow-up that no longer fits is left out, and the answers so far count.

    Raises:
        AuditError: if the assistant gives another number of answers than it was asked for.
    """
    return interview_under(assistant, prompts, attacks, [defence], adapter=adapter)[0]


def interview_under(
    assistant: Assistant,
    prompts: Sequence[SystemPrompt],
    attacks: Sequence[Attack],
    defences: Sequence[Defence],
    *,
    adapter: bool,
) -> list[list[list[tuple[str, ...] | None]]]:
    """Try every attack on every prompt under every defence, all of them in the same batches.

    Returns:
        For each defence what :func:`interview` returns.

    Raises:
        AuditError: if the assistant gives another number of answers than it was asked for.
    """
    tables = [
        [
            [_start(prompt, attack.turns, defence, attack.room) for attack in attacks]
            for prompt in prompts
        ]
        for defence in defences
    ]
    threads = [thread for table in tables for row in table for thread in row]
    while waiting := [thread for thread in threads if thread.left and thread.fits]:
        _one_turn(assistant, waiting, adapter=adapter)
    return [
        [[tuple(t.answers) if t.answers else None for t in row] for row in table]
        for table in tables
    ]


def answer_once(
    assistant: Assistant, talks: Sequence[Conversation], *, adapter: bool, room: float
) -> list[str | None]:
    """Answer conversations, and check that each got its answer.

    Raises:
        AuditError: if the assistant gives another number of answers than it was asked for.
    """
    answers = assistant.respond_many(talks, adapter=adapter, room=[room] * len(talks))
    _check(answers, len(talks))
    return answers


def _start(prompt: SystemPrompt, turns: tuple[str, ...], defence: Defence, room: float) -> _Thread:
    """Begin a conversation; nobody has spoken yet."""
    talk = Conversation(system=defence.system_for(prompt.text), turns=(defence.turn_for(turns[0]),))
    return _Thread(conversation=talk, defence=defence, left=turns, room=room, answers=[])


def _one_turn(assistant: Assistant, threads: Sequence[_Thread], *, adapter: bool) -> None:
    """Let the assistant answer each conversation, and say the next line of the attack."""
    talks = [thread.conversation for thread in threads]
    rooms = [thread.room for thread in threads]
    answers = assistant.respond_many(talks, adapter=adapter, room=rooms)
    _check(answers, len(threads))
    for thread, answer in zip(threads, answers, strict=True):
        thread.left = thread.left[1:]
        if answer is None:
            thread.fits = False
            continue
        thread.answers.append(answer)
        if thread.left:
            following = thread.defence.turn_for(thread.left[0])
            said = (*thread.conversation.turns, answer, following)
            thread.conversation = Conversation(system=thread.conversation.system, turns=said)


def _check(answers: Sequence[str | None], expected: int) -> None:
    """Refuse a wrong number of answers."""
    if len(answers) != expected:
        msg = f"answers={len(answers)}, expected {expected}: one for each conversation."
        raise AuditError(msg)
