"""``fedslm plan``: which settings let a kind of device take part, and what a round costs it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simulations.budget_common import AsJson, print_json

if TYPE_CHECKING:
    from shared.configfile import ResolvedConfig
    from shared.devices import DeviceProfile


def plan_device(
    scenario: Annotated[
        str, typer.Argument(help="A built-in scenario, or the path of a TOML file.")
    ],
    device: Annotated[
        str | None, typer.Option(help="pi5, jetson, phone-mid, laptop or custom (with --profile).")
    ] = None,
    mix: Annotated[
        bool, typer.Option("--mix", help="Plan every profile of devices.mix, and all together.")
    ] = False,
    profile: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A device profile in TOML.")
    ] = None,
    rounds_per_day: Annotated[
        float | None,
        typer.Option(help="How often the server asks; bounds a day's time and battery."),
    ] = None,
    max_seconds: Annotated[
        float | None, typer.Option(help="Of a round; default server.deadline_seconds.")
    ] = None,
    measure: Annotated[
        bool,
        typer.Option("--measure", help="Take speed and memory of this machine from real steps."),
    ] = False,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one setting; repeatable."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Choose settings with which a kind of device can train a scenario, with the reasons.

    Reads the scenario, the shape of its base model and a public profile of the device; never data.
    What the privacy plan does not read is set; what changes it, or what is learned, is proposed
    with its effect. Exit 14 if nothing fits.
    """
    from simulations.catalog import open_scenario
    from simulations.planreport import device_report, limits_of, mix_report
    from simulations.plantext import print_device, print_mix

    resolved = open_scenario(scenario, overrides or [])
    limits = limits_of(
        resolved.config,
        max_seconds=_positive("--max-seconds", max_seconds),
        rounds_per_day=_positive("--rounds-per-day", rounds_per_day),
    )
    if mix:
        _refuse_one(device, profile, measure=measure)
        fleet = mix_report(resolved.config, base_dir=Path.cwd(), limits=limits)
        print_json(fleet) if as_json else print_mix(fleet)
        return
    chosen = _profile(device, profile)
    if measure:
        chosen = _measured(resolved, chosen)
    report = device_report(resolved.config, base_dir=Path.cwd(), profile=chosen, limits=limits)
    print_json(report) if as_json else print_device(report)


def _refuse_one(device: str | None, profile: Path | None, *, measure: bool) -> None:
    """Refuse options about one device beside those about a fleet.

    Raises:
        UsageError: if one was given.
    """
    from shared.errors import UsageError

    if device is not None or profile is not None or measure:
        msg = "--mix with --device, --profile or --measure: the mix names its profiles."
        raise UsageError(msg, hint="Leave the option out, or leave out --mix.")


def _positive(option: str, value: float | None) -> float | None:
    """Require a positive number where there is one.

    Raises:
        UsageError: for anything else.
    """
    import math

    from shared.errors import UsageError

    if value is None or (math.isfinite(value) and value > 0):
        return value
    msg = f"{option} {value!r}, expected a number above 0."
    raise UsageError(msg)


def _profile(device: str | None, path: Path | None) -> DeviceProfile:
    """Return the profile that is asked for.

    Raises:
        UsageError: if none is, or a file is given for a built-in one.
    """
    from shared.devices import CUSTOM, PROFILES, profile_named, read_profile
    from shared.errors import UsageError

    if device is None and path is None:
        msg = "fedslm plan needs --device or --mix."
        raise UsageError(msg, hint=f"One of {', '.join(PROFILES)}; or --profile FILE.")
    if device in {None, CUSTOM}:
        if path is None:
            msg = "--device custom needs --profile FILE."
            raise UsageError(msg, hint="docs/devices.md shows a profile.")
        return read_profile(path)
    if path is not None:
        msg = f"--profile with --device {device}: a built-in profile is not read from a file."
        raise UsageError(msg, hint="Use --device custom.")
    return profile_named(str(device))


def _measured(resolved: ResolvedConfig, profile: DeviceProfile) -> DeviceProfile:
    """Replace speed and memory of a profile by those of this machine.

    Raises:
        UsageError: for a profile of another machine.
    """
    from shared.devices import CUSTOM
    from shared.errors import UsageError
    from simulations.planmeasure import measured_profile

    if profile.name not in {"laptop", CUSTOM}:
        msg = f"--measure with --device {profile.name}: this machine is none."
        raise UsageError(msg, hint="Use --device laptop, or run it on the device.")
    return measured_profile(resolved.config, profile, base_dir=Path.cwd())
