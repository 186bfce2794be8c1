"""Profiles of devices: public numbers about a kind of hardware, each with where it is from.

A number is *measured* (by others, on that hardware, with a source) or an *estimate* (arithmetic on
a data sheet, or an assumption about a household's line), and its source says which. None comes from
a user's device or data.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal, Self

from pydantic import Field, ValidationError, model_validator

from shared.configtypes import NonNegativeReal, PositiveReal, Probability, Section
from shared.errors import InvalidValue, Problem, UsageError
from shared.problems import expected
from shared.registry import suggestion

CUSTOM: Final = "custom"
_LARGEST_FILE = 1 << 16

REFERENCE_MACS: Final = 276_815_675_392
"""Multiply-adds of the reference step: Gemma-3 270M, r = 8 on q, k, v and o, 8 examples of 64
tokens, by :func:`shared.devicecost.step_macs` without its passes' calls (a test recomputes it)."""


class DeviceProfile(Section):
    """What is known of a kind of device."""

    name: str = Field(default=CUSTOM, pattern=r"^[a-z0-9][a-z0-9-]{0,31}$", description="its name")
    memory_mib: PositiveReal = Field(description="MiB that training may take, Python included")
    macs_per_second: PositiveReal | None = Field(
        default=None, description="multiply-adds a second that it sustains in float32"
    )
    reference_seconds: PositiveReal | None = Field(
        default=None,
        description="or seconds of the reference step: Gemma-3 270M, LoRA r = 8 on q, k, v and o, "
        "8 examples of 64 tokens",
    )
    up_bytes_per_second: PositiveReal = Field(description="of its link, upwards")
    down_bytes_per_second: PositiveReal = Field(description="of its link, downwards")
    watts: NonNegativeReal = Field(description="drawn by training, above idling")
    joules_per_byte: NonNegativeReal = Field(default=0.0, description="drawn by its radio")
    battery_joules: PositiveReal | None = Field(
        default=None, description="of a full battery; leave it out for mains"
    )
    battery_share: Probability = Field(
        default=0.1, description="of a full battery that a day's training may take"
    )
    quantizations: tuple[Literal["none", "int8", "torchao-int8", "int4", "nf4"], ...] = Field(
        default=("none", "int8", "torchao-int8", "int4", "nf4"),
        min_length=1,
        description="of the base that it can hold",
    )
    sources: dict[str, str] = Field(default={}, description="where each number is from")

    @model_validator(mode="after")
    def _one_speed(self) -> Self:
        if (self.macs_per_second is None) == (self.reference_seconds is None):
            msg = "exactly one of macs_per_second and reference_seconds"
            raise ValueError(msg)
        unknown = set(self.sources) - set(type(self).model_fields)
        if unknown:
            msg = "sources that name fields of the profile"
            raise ValueError(msg)
        return self

    @property
    def memory_bytes(self) -> float:
        """Bytes that training may take."""
        return self.memory_mib * (1 << 20)

    @property
    def daily_joules(self) -> float | None:
        """What a day's training may draw from a battery; None on mains."""
        return None if self.battery_joules is None else self.battery_joules * self.battery_share


def speed_of(profile: DeviceProfile) -> float:
    """Return the multiply-adds a second that a device sustains."""
    if profile.macs_per_second is not None:
        return profile.macs_per_second
    return REFERENCE_MACS / (profile.reference_seconds or float("nan"))


def profile_named(name: str) -> DeviceProfile:
    """Return a built-in profile.

    Raises:
        UsageError: for an unknown name; suggests the nearest.
    """
    found = PROFILES.get(name)
    if found is None:
        known = (*PROFILES, CUSTOM)
        msg = f"--device {name!r}, expected one of: {', '.join(known)}."
        raise UsageError(msg, hint=suggestion(name, known))
    return found


def read_profile(path: Path) -> DeviceProfile:
    """Read a profile from a TOML file.

    Raises:
        InvalidValue: if it cannot be read, is no TOML, or a key is unknown, missing or out of
            range; names every such key.
    """
    try:
        data = path.read_bytes()
        if not len(data) <= _LARGEST_FILE:
            msg = f"{path.name} has {len(data)} bytes, expected at most {_LARGEST_FILE}."
            raise InvalidValue(msg)
        table = tomllib.loads(data.decode("utf-8"))
    except OSError as error:
        msg = f"{path.name} cannot be read ({error.strerror})."
        raise InvalidValue(msg, hint="Check the path and its permissions.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        msg = f"{path.name} is not valid TOML: {error}."
        raise InvalidValue(msg, hint="docs/devices.md shows a profile.") from error
    return _checked(table, path.name)


def _checked(table: Mapping[str, Any], label: str) -> DeviceProfile:
    """Validate a table, and name everything that is wrong with it."""
    try:
        return DeviceProfile.model_validate(table)
    except ValidationError as error:
        problems = [
            Problem(
                key=".".join(str(part) for part in item["loc"]) or "profile",
                message=f"expected: {expected(item)}.",
            )
            for item in error.errors(include_url=False, include_input=False)
        ]
    lines = "\n".join(f"  {problem}" for problem in problems)
    msg = f"{label} is no device profile:\n{lines}"
    raise InvalidValue(msg, hint="docs/devices.md names every key.", problems=problems)


_EFT = "measured: EdgeFlowerTune (arXiv 2605.08636), Gemma-3 270M, r = 8, sequence 64, batch 8"
_LINE = "estimate: a household's line"
_ANY = "client/quantization.py: runs on any CPU that torch runs on"

PROFILES: Final[Mapping[str, DeviceProfile]] = MappingProxyType(
    {
        profile.name: profile
        for profile in (
            DeviceProfile(
                name="pi5",
                memory_mib=3072.0,
                macs_per_second=1.5e10,
                up_bytes_per_second=2.5e6,
                down_bytes_per_second=6.25e6,
                watts=5.0,
                sources={
                    "memory_mib": "estimate: a board of 4 GiB, 1 GiB left to the system",
                    "macs_per_second": "estimate: a fifth of the peak of four Cortex-A76 at "
                    "2.4 GHz, 8 float32 multiply-adds a cycle and core",
                    "up_bytes_per_second": f"{_LINE}, 20 Mbit/s up",
                    "down_bytes_per_second": f"{_LINE}, 50 Mbit/s down",
                    "watts": "estimate: 8 W under load, 3 W idle",
                    "quantizations": _ANY,
                },
            ),
            DeviceProfile(
                name="jetson",
                memory_mib=3072.0,
                reference_seconds=12.0,
                up_bytes_per_second=2.5e6,
                down_bytes_per_second=6.25e6,
                watts=8.0,
                sources={
                    "memory_mib": "estimate: a Jetson Nano of 4 GB, 1 GB left to the system",
                    "reference_seconds": f"{_EFT}: 10 to 14 s a step on a Jetson Nano 4 GB",
                    "up_bytes_per_second": f"{_LINE}, 20 Mbit/s up",
                    "down_bytes_per_second": f"{_LINE}, 50 Mbit/s down",
                    "watts": "estimate: the power mode of 10 W, 2 W idle",
                    "quantizations": _ANY,
                },
            ),
            DeviceProfile(
                name="phone-mid",
                memory_mib=1536.0,
                reference_seconds=172.0,
                up_bytes_per_second=1.25e6,
                down_bytes_per_second=3.75e6,
                watts=3.0,
                joules_per_byte=5e-7,
                battery_joules=6.2e4,
                battery_share=0.1,
                quantizations=("none", "int8", "torchao-int8", "int4"),
                sources={
                    "memory_mib": "estimate: a fifth of a phone of 8 GB, so that the system keeps "
                    "the process; EdgeFlowerTune's own takes about 1,070 MB",
                    "reference_seconds": f"{_EFT}: 170 to 174 s a step on a Snapdragon 778G",
                    "up_bytes_per_second": "estimate: a mobile network, 10 Mbit/s up",
                    "down_bytes_per_second": "estimate: a mobile network, 30 Mbit/s down",
                    "watts": "estimate: a phone's processor held at its long-term limit",
                    "joules_per_byte": "estimate: a radio of 0.6 W at 10 Mbit/s",
                    "battery_joules": "estimate: 4,500 mAh at 3.85 V",
                    "battery_share": "assumption: what an owner may not notice",
                    "quantizations": "bitsandbytes, which nf4 needs, has no wheel for Android",
                },
            ),
            DeviceProfile(
                name="laptop",
                memory_mib=8192.0,
                macs_per_second=3.0e10,
                up_bytes_per_second=2.5e6,
                down_bytes_per_second=6.25e6,
                watts=20.0,
                battery_joules=1.8e5,
                battery_share=0.2,
                sources={
                    "memory_mib": "estimate: half of 16 GiB; --measure takes this machine's",
                    "macs_per_second": "estimate: two to three cores at the 12e9 that one core "
                    "of a server sustained; --measure takes this machine's",
                    "up_bytes_per_second": f"{_LINE}, 20 Mbit/s up",
                    "down_bytes_per_second": f"{_LINE}, 50 Mbit/s down",
                    "watts": "estimate: a processor of 25 W under load, 5 W idle",
                    "battery_joules": "estimate: 50 Wh",
                    "battery_share": "assumption: what an owner may not notice",
                    "quantizations": _ANY,
                },
            ),
        )
    }
)
"""The built-in profiles by name."""
