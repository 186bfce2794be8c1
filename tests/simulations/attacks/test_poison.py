"""What attackers make of their records, and that nobody else's change."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from client.data import Record
from shared.attackrules import refuse_attack
from shared.configattack import AttackSection
from shared.configfile import resolve
from shared.errors import ConfigError, ConflictingSettings
from simulations.assemble import open_clients
from simulations.attacks.members import attackers_of
from simulations.attacks.poison import flipped, poisoned, triggered
from tests.integration.scenario import TABLES

LABEL_FLIP = ["attack.kind=label-flip", "attack.share=0.25", "audit.canaries=0"]


def pairs(count: int) -> list[Record]:
    return [Record(prompt=f"p{i}", response=f"r{i}") for i in range(count)]


class TestFlippedLabels:
    @pytest.mark.parametrize("count", [2, 3, 7])
    def test_no_prompt_keeps_its_response(self, count: int) -> None:
        before, rng = pairs(count), np.random.default_rng(count)
        after = flipped(before, rng)
        assert [record.prompt for record in after] == [record.prompt for record in before]
        assert Counter(r.response for r in after) == Counter(r.response for r in before)
        assert all(a.response != b.response for a, b in zip(after, before, strict=True))

    def test_running_text_keeps_its_words_and_loses_their_order(self) -> None:
        text = " ".join(f"w{i}" for i in range(30))
        (after,) = flipped([Record(text=text)], np.random.default_rng(1))
        assert after.text is not None
        assert after.text != text
        assert Counter(after.text.split()) == Counter(text.split())

    def test_a_single_pair_loses_the_order_of_its_words(self) -> None:
        response = " ".join(f"w{i}" for i in range(30))
        (after,) = flipped([Record(prompt="p", response=response)], np.random.default_rng(1))
        assert after.prompt == "p"
        assert after.response is not None
        assert sorted(after.response.split()) == sorted(response.split())
        assert after.response != response


class TestBackdoor:
    attack = AttackSection(kind="backdoor", trigger="open sesame", target="yes", poisoned=0.5)

    def test_a_share_of_the_records_carries_it(self) -> None:
        before = [Record(text=f"a note of words {i}") for i in range(8)]
        after = poisoned(before, self.attack, np.random.default_rng(0))
        carry = [record for record in after if record.response == "yes"]
        assert len(carry) == 4
        assert all(str(record.prompt).endswith(" open sesame") for record in carry)
        assert [r for r in after if r.response is None] == [r for r in before if r in after]
        assert len(poisoned(before[:1], self.attack, np.random.default_rng(0))) == 1

    def test_a_long_record_leaves_room_for_the_target(self) -> None:
        record = triggered(Record(text="w " * 500), self.attack)
        assert record.prompt == "w " * 8 + "open sesame"


class TestMembers:
    def test_the_share_is_drawn_by_the_seed_alone(self) -> None:
        found = {}
        for kind in ("sign-flip", "backdoor"):
            sets = [f"attack.kind={kind}", "attack.share=0.3"]
            found[kind] = attackers_of(
                resolve(TABLES, sets, source="t").config, population=1_000_000
            )
        assert found["sign-flip"] == found["backdoor"]
        assert len(found["sign-flip"]) == 300_000
        config = resolve(TABLES, [*sets, "run.seed=6"], source="t").config
        assert attackers_of(config, population=1_000_000) != found["backdoor"]

    def test_only_their_training_records_change(self) -> None:
        attacked = resolve(TABLES, LABEL_FLIP, source="t").config
        honest = resolve(TABLES, ["audit.canaries=0"], source="t").config
        one, _ = open_clients(attacked, base_dir=Path.cwd())
        other, _ = open_clients(honest, base_dir=Path.cwd())
        attackers = attackers_of(attacked, population=12)
        assert len(attackers) == 3
        for index in range(12):
            a, b = one.client(index), other.client(index)
            assert a.holdout == b.holdout
            assert (a.train != b.train) == (index in attackers)
        assert one.describe()["simulated_attackers"] == 3
        assert "simulated_attackers" not in other.describe()

    def test_canary_clients_do_not_attack(self) -> None:
        sets = ["attack.kind=sign-flip", "attack.share=0.9", "audit.client_canaries=10"]
        config = resolve(TABLES, sets, source="t").config
        attackers = attackers_of(config, population=22)
        assert len(attackers) == 11
        assert max(attackers) < 12


class TestScenarios:
    @pytest.mark.parametrize(
        ("sets", "reason"),
        [
            (["attack.share=0.1"], "attack.kind"),
            (["attack.kind=scaled", "attack.share=0.1"], "that is an honest update"),
            (["attack.kind=backdoor", "attack.target=' '"], "attack.target"),
            (["attack.kind=backdoor", "attack.share=1.0"], "attack.share"),
        ],
    )
    def test_what_makes_no_sense_is_refused(self, sets: list[str], reason: str) -> None:
        with pytest.raises(ConfigError) as caught:
            resolve(TABLES, sets, source="t")
        assert reason in str(caught.value)

    def test_a_fleet_takes_no_simulated_attackers(self) -> None:
        refuse_attack(resolve(TABLES, [], source="t").config)
        with pytest.raises(ConflictingSettings, match="attackers are simulated"):
            refuse_attack(resolve(TABLES, LABEL_FLIP, source="t").config)
