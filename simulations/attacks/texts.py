"""Attackers and defences in words, from a run's summary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def attack_text(attack: Mapping[str, Any]) -> str:
    """Say in a sentence that a run has attackers, and what became of a backdoor."""
    text = f"this run contains simulated attackers: {attack['clients']} clients, {attack['kind']}"
    if attack["scale"] != 1.0:
        text += f" times {attack['scale']:g}"
    backdoor = attack["backdoor"]
    if backdoor is not None and backdoor["prompts"] > 0:
        text += (
            f"; the backdoor works on {backdoor['success']:.0%} of {backdoor['prompts']} prompts"
        )
        text += f" ({backdoor['base_success']:.0%} without the adapter)"
    return text


def defence_text(defence: Mapping[str, Any]) -> str:
    """Say which rule made one update of many."""
    text, attackers, bound = str(defence["rule"]), defence["attackers"], defence["norm_bound"]
    if attackers is not None:
        some = f"{attackers}" if isinstance(attackers, int) else f"{attackers:.0%}"
        text += f" against {some} attackers a round"
    if bound is not None:
        text += f", updates bounded at {bound:g} ({defence['shortened']} were longer)"
    return text
