"""The life of tokens under any order of events, against a model that fits on one page.

The claim: at most one key ever gets in with one token, whatever happens in between.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
)

from server.fleetdb import FleetDatabase
from shared.errors import AccessDenied, EnrolmentRefused

NAMES = ("a", "b")
KEYS = tuple(bytes([n]) * 97 for n in range(3))
VALID = 100.0


@dataclass(kw_only=True)
class Issued:
    """What the model knows of a token."""

    name: str
    expires: float
    void: bool = False
    key: bytes | None = None


@dataclass(kw_only=True)
class Person:
    """What the model knows of a name."""

    key: bytes | None = None
    index: int | None = None
    past: list[bytes] = field(default_factory=list)


class TokenLife(RuleBasedStateMachine):
    """Issue, redeem, revoke, wait, restart; compare with the model after each step."""

    tokens = Bundle("tokens")

    @initialize()
    def start(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="fedslm-tokens-"))
        self.path = self.folder / "fleet.sqlite"
        self.fleet = FleetDatabase(self.path)
        self.now = 1_000_000.0
        self.issued: dict[str, Issued] = {}
        self.people = {name: Person() for name in NAMES}
        self.got_in: dict[str, set[bytes]] = {}

    def teardown(self) -> None:
        if hasattr(self, "fleet"):
            self.fleet.close()
            shutil.rmtree(self.folder)

    def used_keys(self) -> set[bytes]:
        held = {p.key for p in self.people.values() if p.key is not None}
        return held | {key for p in self.people.values() for key in p.past}

    @rule(target=tokens, name=st.sampled_from(NAMES))
    def issue(self, name: str) -> str | MultipleResults[str]:
        try:
            token = self.fleet.new_token(name, valid_seconds=VALID, now=self.now)
        except EnrolmentRefused:
            assert self.people[name].key is not None
            return multiple()
        assert self.people[name].key is None
        for other in self.issued.values():
            other.void = other.void or (other.name == name and other.key is None)
        self.issued[token] = Issued(name=name, expires=self.now + VALID)
        return token

    @rule(token=tokens, key=st.sampled_from(KEYS))
    def redeem(self, token: str, key: bytes) -> None:
        known = self.issued.get(token)
        fresh = (
            known is not None
            and known.key is None
            and not known.void
            and key not in self.used_keys()
        )
        again = known is not None and known.key == key and self.people[known.name].key == key
        good = known is not None and self.now < known.expires and (fresh or again)
        try:
            found = self.fleet.redeem(token, key, now=self.now)
        except EnrolmentRefused:
            assert not good
            return
        assert good
        assert known is not None
        person = self.people[known.name]
        if fresh:
            known.key = person.key = key
            if person.index is None:
                indices = [p.index for p in self.people.values() if p.index is not None]
                person.index = len(indices)
        assert (found.name, found.client_index) == (known.name, person.index)
        self.got_in.setdefault(token, set()).add(key)

    @rule(name=st.sampled_from(NAMES))
    def revoke(self, name: str) -> None:
        person = self.people[name]
        # A token that expired is open as well until another one sweeps it away.
        try:
            entry = self.fleet.revoke(name, "why not", now=self.now)
        except AccessDenied:
            assert person.key is None
            return
        assert (entry is None) == (person.key is None)
        for token in self.issued.values():
            token.void = token.void or (token.name == name and token.key is None)
        if person.key is not None:
            person.past.append(person.key)
            person.key = None

    @rule(seconds=st.sampled_from([1.0, 101.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def restart(self) -> None:
        self.fleet.close()
        self.fleet = FleetDatabase(self.path)

    @rule(key=st.sampled_from(KEYS))
    def guess(self, key: bytes) -> None:
        self.redeem("A" * 43, key)

    @rule(token=tokens)
    def come_again(self, token: str) -> None:
        known = self.issued.get(token)
        if known is not None and known.key is not None:
            self.redeem(token, known.key)

    @rule(token=tokens)
    def come_with_the_newest_key(self, token: str) -> None:
        known = self.issued.get(token)
        newest = None if known is None else self.people[known.name].key
        if newest is not None:
            self.redeem(token, newest)

    @invariant()
    def one_key_a_token(self) -> None:
        assert all(len(keys) == 1 for keys in getattr(self, "got_in", {}).values())

    @invariant()
    def who_is_in_is_who_should_be(self) -> None:
        if not hasattr(self, "fleet"):
            return
        expected = {p.key for p in self.people.values() if p.key is not None}
        assert {key for key in KEYS if self.fleet.allowed(key)} == expected


TokenLife.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestTokenLife = pytest.mark.slow(TokenLife.TestCase)
