"""Defences: what the model reads under each, and what the output filter lets out."""

from __future__ import annotations

import pytest

from server.audit.promptleak.controls import ENCODINGS
from server.audit.promptleak.defences import DEFENCES, REFUSAL, blocked
from server.audit.promptleak.prompts import OWN_PROMPTS

LONGER = [prompt.text for prompt in OWN_PROMPTS if len(prompt.text.split()) >= 12]


def test_the_prompt_stands_in_every_system_message_unchanged() -> None:
    assert [d.name for d in DEFENCES] == [
        "none", "no-repeat", "top-secret", "reminder", "ignore-injections", "output-filter",
    ]  # fmt: skip
    for defence in DEFENCES:
        assert LONGER[0] in defence.system_for(LONGER[0])
        assert defence.turn_for("Hello?").startswith("Hello?")
        changed = (defence.system_for("p"), defence.turn_for("t")) != ("p", "t")
        assert changed is defence.worded
    assert [d.name for d in DEFENCES if not d.worded] == ["none", "output-filter"]


@pytest.mark.parametrize("encoding", sorted(ENCODINGS))
def test_the_filter_reads_encodings(encoding: str) -> None:
    assert all(blocked(prompt, ENCODINGS[encoding](prompt)) for prompt in LONGER)


def test_the_filter_holds_back_parts_and_lets_other_answers_out() -> None:
    for prompt, other in zip(LONGER, [*LONGER[1:], LONGER[0]], strict=True):
        listed = prompt.split()
        assert blocked(prompt, " ".join(listed[len(listed) // 2 :]))
        assert not blocked(prompt, other)
        assert not blocked(prompt, "")


def test_a_prompt_of_few_words_is_looked_for_as_a_whole() -> None:
    assert blocked(
        "Unverwechselbare Gartenpflanzenberatung anbieten",
        "Ich soll unverwechselbare Gartenpflanzenberatung anbieten.",
    )
    assert not blocked("Unverwechselbare Gartenpflanzenberatung anbieten", "Ich soll anbieten.")


def test_only_the_filter_changes_answers() -> None:
    said = [LONGER[0], "Good morning."]
    for defence in DEFENCES:
        expected = [REFUSAL, "Good morning."] if defence.filtered else said
        assert defence.released(LONGER[0], said) == expected
