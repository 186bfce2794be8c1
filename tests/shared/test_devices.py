"""Device profiles: sourced, strict, and in agreement with the measurements they are from."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared import errors
from shared.baseshape import GEMMA_270M
from shared.devicecost import Setup, bytes_up, round_cost, step_macs
from shared.devices import (
    PROFILES,
    REFERENCE_MACS,
    DeviceProfile,
    profile_named,
    read_profile,
    speed_of,
)
from tests.shared.deviceshapes import ATTENTION_270M, spec_of

REFERENCE = Setup(max_length=64, batch_size=8, physical_batch=8, local_steps=10, kinds="AB")
GOOD = """
memory_mib = 1000.0
macs_per_second = 1e10
up_bytes_per_second = 1e6
down_bytes_per_second = 2e6
watts = 4.0
"""


@pytest.mark.parametrize("name", PROFILES)
def test_every_number_of_a_profile_has_a_source_that_says_what_it_is(name: str) -> None:
    profile = PROFILES[name]
    said = {key for key in type(profile).model_fields if key in profile.model_fields_set}
    assert (said | {"quantizations"}) - {"name", "sources"} == set(profile.sources)
    numbers = {k: v for k, v in profile.sources.items() if k != "quantizations"}
    assert all(v.startswith(("measured:", "estimate:", "assumption:")) for v in numbers.values())


def test_the_published_steps_and_uploads_come_out() -> None:
    # EdgeFlowerTune: 170 to 174 s and 10 to 14 s a step, about 1,700 and 115 s a round of 10 steps,
    # 2,949,120 bytes up at r = 8.
    spec = spec_of(ATTENTION_270M, 8)
    phone = round_cost(GEMMA_270M, spec, REFERENCE, PROFILES["phone-mid"])
    jetson = round_cost(GEMMA_270M, spec, REFERENCE, PROFILES["jetson"])
    assert phone.step_seconds == pytest.approx(172, rel=0.03)
    assert phone.seconds == pytest.approx(1_700, rel=0.05)
    assert jetson.step_seconds == pytest.approx(12, rel=0.03)
    assert jetson.seconds == pytest.approx(115, rel=0.1)
    assert bytes_up(spec, REFERENCE) - 2_949_120 < 300


def test_the_reference_step_is_counted_by_hand() -> None:
    tokens, layers = 512, 18
    linear = layers * (2 * 640 * 1024 + 2 * 640 * 256 + 3 * 640 * 2048)
    head, attention = 640 * 262_144, layers * 64 * 1024
    # Forwards, backwards by the input, and by the factors.
    adapter = layers * 8 * (2 * (640 + 1024) + 2 * (640 + 256))
    assert tokens * (2 * (linear + head + attention) + 3 * adapter) == REFERENCE_MACS
    counted = step_macs(GEMMA_270M, spec_of(ATTENTION_270M, 8), REFERENCE)
    # What calls cost is not part of the reference.
    assert 0 < counted - REFERENCE_MACS < 0.001 * REFERENCE_MACS


def test_a_speed_is_what_was_said_or_follows_from_the_reference() -> None:
    assert speed_of(PROFILES["pi5"]) == 1.5e10
    assert speed_of(PROFILES["jetson"]) == REFERENCE_MACS / 12.0


def test_an_unknown_device_is_refused_with_a_suggestion() -> None:
    with pytest.raises(errors.UsageError) as caught:
        profile_named("pi-5")
    assert "pi5" in caught.value.hint


def test_a_profile_is_read_from_toml(tmp_path: Path) -> None:
    path = tmp_path / "box.toml"
    path.write_text(f'name = "box"\n{GOOD}\n[sources]\nwatts = "a meter"\n', encoding="utf-8")
    profile = read_profile(path)
    assert (profile.name, profile.memory_mib, profile.daily_joules) == ("box", 1000.0, None)
    assert profile.sources == {"watts": "a meter"}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "memory_mib"),
        (GOOD + "wats = 3.0", "wats"),
        (GOOD.replace("4.0", '"4"'), "watts"),
        (GOOD.replace("4.0", "nan"), "watts"),
        (GOOD.replace("1000.0", "-1.0"), "memory_mib"),
        (GOOD.replace("1e10", "inf"), "macs_per_second"),
        (GOOD + "reference_seconds = 3.0", "exactly one"),
        (GOOD.replace("macs_per_second = 1e10", ""), "exactly one"),
        (GOOD + "battery_share = 1.5", "battery_share"),
        (GOOD + "battery_joules = 0.0", "battery_joules"),
        (GOOD + 'quantizations = ["fp8"]', "quantizations"),
        (GOOD + "quantizations = []", "quantizations"),
        (GOOD + 'name = "A B"', "name"),
        (GOOD + '[sources]\nwats = "x"', "sources"),
        ("= 3", "not valid TOML"),
    ],
)
def test_a_malformed_profile_is_refused_and_named(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "box.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(errors.InvalidValue) as caught:
        read_profile(path)
    assert named in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_a_file_that_is_no_profile_is_refused(tmp_path: Path) -> None:
    with pytest.raises(errors.InvalidValue, match="cannot be read"):
        read_profile(tmp_path / "none.toml")
    large = tmp_path / "large.toml"
    large.write_text("#" * 70_000, encoding="utf-8")
    with pytest.raises(errors.InvalidValue, match="70000 bytes"):
        read_profile(large)
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(errors.InvalidValue, match="TOML"):
        read_profile(tmp_path / "bytes.toml")


def test_a_profile_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        PROFILES["pi5"].memory_mib = 1.0
    assert isinstance(PROFILES["pi5"], DeviceProfile)
