"""Which codes a scenario may ask for, and why not."""

from __future__ import annotations

import pytest

from shared.configfile import resolve
from shared.errors import ConfigError
from tests.integration.scenario import TABLES

DISTRIBUTED = (
    "privacy.mode=client-distributed",
    "privacy.honest_fraction=0.9",
    "privacy.survivor_fraction=0.7",
    "privacy.min_cohort=3",
)


def accepted(*overrides: str) -> bool:
    return bool(resolve(TABLES, overrides, source="test").config.link)


@pytest.mark.parametrize("mode", ["none", "example", "client-central"])
@pytest.mark.parametrize("up", ["fp16", "int8", "int4", "topk"])
def test_every_code_goes_with_modes_whose_server_reads_updates(mode: str, up: str) -> None:
    assert accepted(f"privacy.mode={mode}", f"link.up={up}", "link.down=delta")


@pytest.mark.parametrize("up", ["fp16", "int8", "int4", "topk"])
def test_masked_integers_have_no_other_code(up: str) -> None:
    assert accepted(*DISTRIBUTED, "link.down=fp16", "link.entropy=true")
    with pytest.raises(ConfigError, match="masked integers of one common grid"):
        accepted(*DISTRIBUTED, f"link.up={up}")


def test_no_length_tells_of_an_update_without_noise() -> None:
    assert accepted("privacy.mode=example", "link.up=int4", "link.entropy=true")
    assert accepted("privacy.mode=none", "link.up=int4", "link.entropy=true")
    assert accepted("link.down=delta", "link.entropy=true")
    with pytest.raises(ConfigError, match="tell the network"):
        accepted("link.up=int4", "link.entropy=true")


def test_a_moving_clip_follows_no_rounding() -> None:
    assert accepted("privacy.clipping_quantile=0.5", "link.down=fp16")
    with pytest.raises(ConfigError, match="norms of rounded updates"):
        accepted("privacy.clipping_quantile=0.5", "link.up=int8")


def test_packing_needs_something_to_pack() -> None:
    with pytest.raises(ConfigError, match=r"packs what is coded"):
        accepted("link.entropy=true")


@pytest.mark.parametrize("wrong", ["up=gzip", "down=int4", "block=4", "keep=0.0", "keep=1.0"])
def test_other_words_and_numbers_are_refused(wrong: str) -> None:
    with pytest.raises(ConfigError):
        accepted(f"link.{wrong}")
