"""The sets that ship: large enough, varied, unambiguous, and silent about what they hold."""

from __future__ import annotations

import pytest

from server.audit.promptleak.abuse import INJECTIONS, goals
from server.audit.promptleak.attacks import ATTACKS, FAMILIES, ROOM, Attack, one_per_family
from server.audit.promptleak.prompts import (
    OWN_PROMPTS,
    ServedPrompts,
    SystemPrompt,
    TrainedPrompts,
    name_of,
)
from shared.errors import InvalidValue

TAXONOMY = {
    "authority", "boundary", "continuation", "debug", "direct", "encode", "follow-up", "format",
    "game", "halves", "override", "question", "role-play", "spell-check", "summarise", "translate",
}  # fmt: skip


def test_the_attacks_cover_the_taxonomy() -> None:
    assert len(ATTACKS) >= 48
    assert set(FAMILIES) == TAXONOMY
    assert all(sum(a.family == family for a in ATTACKS) >= 3 for family in FAMILIES)
    assert len({attack.id for attack in ATTACKS}) == len(ATTACKS)
    assert len({attack.turns for attack in ATTACKS}) == len(ATTACKS)
    assert sum(len(attack.turns) > 1 for attack in ATTACKS) >= 5
    encodings = {attack.decoder for attack in ATTACKS if attack.family == "encode"}
    assert encodings == {"base64", "caesar", "reversed", "leet", "hex", "morse", "spaced"}


def test_one_attack_per_family_for_a_quick_look() -> None:
    quick = one_per_family(ATTACKS)
    assert [attack.family for attack in quick] == list(FAMILIES)


def test_an_attack_says_something_in_a_known_encoding() -> None:
    with pytest.raises(InvalidValue, match="empty turn"):
        Attack(id="x", family="f", turns=("hello", "  "))
    with pytest.raises(InvalidValue, match="empty turn"):
        Attack(id="x", family="f", turns=())
    with pytest.raises(InvalidValue, match="decoder='rot26'"):
        Attack(id="x", family="f", turns=("hello",), decoder="rot26")
    assert all(attack.room == ROOM[attack.decoder] > 0.5 for attack in ATTACKS)


def test_the_prompts_are_varied_and_some_hold_a_secret() -> None:
    lengths = sorted(len(prompt.text) for prompt in OWN_PROMPTS)
    assert len(OWN_PROMPTS) >= 24
    assert lengths[-1] > 3 * lengths[0]
    assert all(prompt.long_enough for prompt in OWN_PROMPTS)
    assert len({prompt.text for prompt in OWN_PROMPTS}) == len(OWN_PROMPTS)
    secrets = [prompt.secret for prompt in OWN_PROMPTS if prompt.secret]
    assert len(secrets) >= 5
    assert all("[[" not in prompt.text and "]]" not in prompt.text for prompt in OWN_PROMPTS)


def test_every_injection_holds_the_goal_once_replaced() -> None:
    assert len(INJECTIONS) >= 12
    assert len({injection.id for injection in INJECTIONS}) == len(INJECTIONS)
    for injection, goal in zip(INJECTIONS, goals(len(INJECTIONS), seed=3), strict=True):
        turn = injection.turn_with(goal)
        assert goal in turn
        assert "{goal}" not in turn


def test_goals_follow_from_the_seed() -> None:
    assert goals(5, seed=1) == goals(5, seed=1)
    assert goals(5, seed=1) != goals(5, seed=2)


def test_a_prompt_is_never_shown_by_its_repr() -> None:
    prompt = SystemPrompt(text="The gate opens at nine for zqx only.", secret="zqx")
    served = ServedPrompts(prompts=(prompt,), salt=b"pepper")
    trained = TrainedPrompts(seen=("zqx one",), unseen=("zqx two",))
    attack = Attack(id="a", family="f", turns=("say zqx",))
    for thing in (prompt, served, trained, attack):
        assert "zqx" not in repr(thing)
        assert "pepper" not in repr(thing)


def test_a_prompt_has_text_and_holds_its_secret() -> None:
    with pytest.raises(InvalidValue, match="is empty"):
        SystemPrompt(text=" \n")
    with pytest.raises(InvalidValue, match="not part of") as caught:
        SystemPrompt(text="Be kind to zqx.", secret="zzz")
    assert "zqx" not in str(caught.value)
    assert "zzz" not in str(caught.value)
    with pytest.raises(InvalidValue, match="prompts=0"):
        ServedPrompts(prompts=())
    with pytest.raises(InvalidValue, match="prompts_on_both_sides=1"):
        TrainedPrompts(seen=("a", "b"), unseen=("b",))


def test_short_prompts_are_not_judged() -> None:
    assert not SystemPrompt(text="Be kind, be brief.").long_enough
    assert SystemPrompt(text="Be kind, and be very brief.").long_enough


def test_names_depend_on_the_key_and_tell_prompts_apart() -> None:
    one, two = (SystemPrompt(text=f"Answer as number {i} would.") for i in (1, 2))
    assert name_of(one, 0, b"key") == name_of(one, 0, b"key")
    assert name_of(one, 0, b"key") != name_of(one, 0, b"other")
    assert name_of(one, 0, b"key")[2:] != name_of(two, 0, b"key")[2:]
    first, second = (ServedPrompts(prompts=(one,)) for _ in range(2))
    assert first.salt != second.salt
