"""The policy file of a device: TOML, written by its owner, read at every message.

Nothing in it has a permissive default: what the owner does not allow is refused, and a key that the
owner must decide about is missing until it is there. All problems are reported at once.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, StringConstraints, ValidationError
from pydantic_core import PydanticCustomError

from shared.configtypes import (
    NonNegativeInt,
    OpenUnit,
    PositiveInt,
    PositiveReal,
    Probability,
    Section,
)
from shared.errors import ConfigError, InvalidValue, PolicyRefused, Problem, UnknownKey
from shared.policies import PolicyName
from shared.privacy.terms import MIN_COHORT
from shared.problems import expected
from shared.registry import suggestion

SCHEMA = 1
Mode = Literal["none", "example", "client-central", "client-distributed"]
Relation = Literal["add-or-remove-one", "replace-one"]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Cohort = Annotated[PositiveInt, Field(ge=MIN_COHORT)]
Percent = Annotated[PositiveInt, Field(le=100)]
Switch = Annotated[bool, Field(strict=True)]
_CLOCK = r"([01]\d|2[0-3]):[0-5]\d"
_WINDOW = re.compile(rf"{_CLOCK}-({_CLOCK}|24:00)")


def _window(text: str) -> str:
    """Return a window of the day as it was written, if it is one."""
    start, _, end = text.partition("-")
    if not _WINDOW.fullmatch(text) or start == end:
        msg = 'two different times, "HH:MM-HH:MM"'
        raise PydanticCustomError("window", msg)
    return text


Window = Annotated[str, AfterValidator(_window)]

TEMPLATE = """\
# What this device allows, whatever a server asks for. docs/device-policy.md explains each key.
# As it stands it allows nothing: fill in the lists, and one section per privacy unit.
schema = 1
modes = []        # "example", or "client-central" and "client-distributed", or "none" alone
base_models = []  # digests of base models that may be trained on; fedslm client policy base FOLDER
aggregation = []  # "ffa", "fedavg", "rolora", "flexlora", "fedex"
max_rounds = 1    # of one run
max_repeats = 0   # further answers to one round, after a crash of the server; each is charged

# server_key = ""      # 64 hex digits: the key that signs the server's ledger; then every round
#                      # must come with a head of that ledger
# seeded_noise = true  # for rehearsals only: the server knows the noise, it protects nobody
# votes = true         # let the server see, beside an update, whether the adapter got better on
#                      # records that are held out; it is trusted with both (client-central)
# asynchronous = true  # accept asynchronous rounds: when this device answers then has a part in
#                      # the adapter, and no budget counts what that time says

# What everything that ever leaves this device may reveal about one record.
# [example]
# max_epsilon = 4.0
# delta = 1e-6
# neighboring_relation = "add-or-remove-one"  # or "replace-one"
# min_noise_multiplier = 0.7
# max_sampling_probability = 0.1

# What it may reveal about all the records of this device together.
# [client]
# max_epsilon = 8.0
# delta = 1e-6
# neighboring_relation = "add-or-remove-one"
# min_noise_multiplier = 0.5

# Mode client-distributed needs this too.
# [secure_aggregation]
# roster = "roster.json"  # who may be in a cohort; beside this file
# min_cohort = 20
# honest_fraction = 0.7   # share of any cohort that you trust not to help the server

# What must be the case while this device works; all keys that are given must hold at once.
# What the system does not tell counts as not met; see docs/deploy/device.md.
# [conditions]
# hours = ["22:00-06:00"]       # by this device's own clock and time zone
# mains_power = true            # not on battery
# networks = ["wired", "wifi"]  # "wired", "wifi", "mobile"
# max_load = 0.5                # of other programs, for each core, over the last minute
# min_free_memory_mb = 2000     # what other programs leave free
# min_battery_percent = 40      # charge of the emptiest battery
# max_temperature_celsius = 70  # of the hottest part that says how hot it is
# pause_when_busy = true        # stop as soon as other programs need the processor

# What an adapter must be to be used here; the server's signature and the base are always checked.
# [adapters]
# verdicts = ["consistent"]  # of the audit; "inconclusive" is taken too unless you leave it out
# unaudited = true           # use adapters that nobody attacked
# audit_key = ""             # 64 hex digits: the key that must have signed the audit
# max_megabytes = 100        # of all files of one adapter
"""


class BudgetSection(Section):
    """What this device's data may spend in one privacy unit, over all runs together."""

    max_epsilon: PositiveReal = Field(description="most that all runs together may spend")
    delta: OpenUnit = Field(description="the device counts with this one, whatever a plan says")
    neighboring_relation: Relation = Field(description="which neighbours are compared")
    min_noise_multiplier: PositiveReal = Field(description="floor under the noise")


class ExampleSection(BudgetSection):
    """The budget of one record, in mode example or beside a client mode."""

    max_sampling_probability: Probability = Field(description="of a record in a local step")


class SecureAggregationSection(Section):
    """What mode client-distributed needs to know about the other clients."""

    roster: Annotated[str, Field(min_length=1)] = Field(description="file of enrolled clients")
    roster_digest: Digest | None = Field(default=None, description="SHA-256 of that file")
    min_cohort: Cohort = Field(description="fewest clients in a round")
    honest_fraction: Probability = Field(description="share that does not help the server")


class ConditionsSection(Section):
    """When the device may work; a key that is missing asks for nothing."""

    hours: tuple[Window, ...] | None = Field(
        default=None, min_length=1, description="times of day, by the device's own clock"
    )
    mains_power: Switch = Field(default=False, description="only while not on battery")
    networks: tuple[Literal["wired", "wifi", "mobile"], ...] | None = Field(
        default=None, min_length=1, description="kinds of network"
    )
    max_load: PositiveReal | None = Field(
        default=None, description="of other programs, for each core, over the last minute"
    )
    min_free_memory_mb: PositiveInt | None = Field(
        default=None, description="what other programs leave free, in MiB"
    )
    min_battery_percent: Percent | None = Field(
        default=None, description="charge of the emptiest battery"
    )
    max_temperature_celsius: PositiveReal | None = Field(
        default=None, description="of the hottest part that says how hot it is"
    )
    pause_when_busy: Switch = Field(
        default=False, description="stop as soon as other programs need the processor"
    )


class AdaptersSection(Section):
    """Which adapters the device uses; a key that is missing leaves what is usual."""

    verdicts: tuple[Literal["consistent", "inconclusive"], ...] = Field(
        default=("consistent", "inconclusive"), min_length=1, description="of the audit"
    )
    unaudited: Switch = Field(default=False, description="whether one without an audit is used")
    audit_key: Digest | None = Field(default=None, description="public key of the auditor")
    max_megabytes: PositiveInt = Field(default=1000, description="of all files of an adapter")


class PolicyFile(Section):
    """A whole policy file."""

    # `schema` is taken by pydantic.
    version: Literal[1] = Field(alias="schema", description="version of this form")
    modes: tuple[Mode, ...] = Field(min_length=1, description="privacy modes accepted")
    base_models: tuple[Digest, ...] = Field(min_length=1, description="digests of base models")
    aggregation: tuple[PolicyName, ...] = Field(
        min_length=1, description="aggregation policies accepted"
    )
    max_rounds: PositiveInt = Field(description="most rounds of one run")
    max_repeats: NonNegativeInt = Field(default=0, description="further answers to one round")
    server_key: Digest | None = Field(default=None, description="public key of its ledger")
    seeded_noise: Switch = Field(default=False, description="accept noise that the server knows")
    votes: Switch = Field(default=False, description="vote on the adapter by held-out records")
    asynchronous: Switch = Field(default=False, description="accept rounds that wait for nobody")
    example: ExampleSection | None = None
    client: BudgetSection | None = None
    secure_aggregation: SecureAggregationSection | None = None
    conditions: ConditionsSection | None = None
    adapters: AdaptersSection | None = None


def read_policy_file(path: Path) -> PolicyFile:
    """Read and check a policy file.

    Args:
        path: a TOML file.

    Raises:
        PolicyRefused: if there is no such file; a device without a policy takes part in nothing.
        ConfigError: with every problem found (UnknownKey or InvalidValue where that tells more).
    """
    try:
        tables = _tables(path)
    except OSError as error:
        msg = f"The policy {path.name} cannot be read ({error.strerror})."
        hint = "A device without a policy takes part in nothing; see: fedslm client policy init"
        raise PolicyRefused(msg, hint=hint) from error
    try:
        file = PolicyFile.model_validate(tables)
    except ValidationError as error:
        raise _error(path, _problems(error)) from None
    conflicts = _conflicts(file)
    if conflicts:
        raise _error(path, conflicts)
    return file


def read_adapters_section(path: Path) -> AdaptersSection:
    """Read what a policy file demands of adapters; the rest of it need not be filled in.

    Args:
        path: a TOML file; without one, or without the section, what is usual is demanded.

    Raises:
        ConfigError: if the file cannot be read, or with every problem of the section.
    """
    try:
        found = _tables(path).get("adapters", {})
    except FileNotFoundError:
        found = {}
    except OSError as error:
        msg = f"The policy {path.name} cannot be read ({error.strerror})."
        raise InvalidValue(msg, hint="Make it readable for whoever uses the device.") from error
    try:
        return AdaptersSection.model_validate(found)
    except ValidationError as error:
        raise _error(path, _problems(error, ("adapters",))) from None


def _tables(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        InvalidValue: if it is not TOML; OSError if it cannot be read.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        msg = f"{path.name} is not valid TOML: {error}."
        raise InvalidValue(msg, hint="Fix the line it names.") from error


def _conflicts(file: PolicyFile) -> list[Problem]:
    """Return the rules between sections that a file breaks.

    A budget that is named must be protected by every round, or it would not bound what leaves:
    a round that protects clients alone says more about one record than its section counts.
    """
    modes = set(file.modes)
    budgets = {"example": file.example, "client": file.client}
    named = [name for name, section in budgets.items() if section is not None]
    found: list[Problem] = []

    def add(key: str, message: str) -> None:
        found.append(Problem(key=key, message=message))

    if "none" in modes and (len(modes) > 1 or named):
        add("modes", '"none" stands alone: a round without noise voids every budget.')
    if "example" in modes and file.example is None:
        add("example", 'is missing; mode "example" needs it.')
    if "example" in modes and file.client is not None:
        add("client", 'mode "example" protects no client: drop the mode, or this section.')
    client_modes = sorted(modes & {"client-central", "client-distributed"})
    if client_modes and file.client is None:
        add("client", f"is missing; mode {client_modes[0]!r} needs it.")
    if client_modes and "example" in modes:
        add(
            "modes",
            "example and client modes protect different units; one policy promises one of them.",
        )
    if "client-distributed" in modes and file.secure_aggregation is None:
        add("secure_aggregation", 'is missing; mode "client-distributed" needs it.')
    return found


def _problems(error: ValidationError, inside: tuple[str, ...] = ()) -> list[Problem]:
    """Translate pydantic's errors, which may be about one section alone, into problems."""
    problems: dict[str, Problem] = {}
    for item in error.errors(include_url=False):
        where = [*inside, *(str(part) for part in item["loc"])]
        key = ".".join(part for part in where if not part.isdigit())
        if key in problems:
            continue
        if item["type"] == "extra_forbidden":
            hint = suggestion(where[-1], _keys(where[:-1]))
            problem = Problem(key=key, message="unknown key.", hint=hint, code=UnknownKey.code)
        elif item["type"] == "missing":
            problem = Problem(key=key, message="is missing; it has no default.")
        else:
            message = f"found {item['input']!r}, expected: {expected(item)}."
            problem = Problem(key=key, message=message)
        problems[key] = problem
    return list(problems.values())


def _keys(section: list[str]) -> list[str]:
    """Return the keys of a section of the file; of the top for no section."""
    models: dict[str, type[Section]] = {
        "example": ExampleSection,
        "client": BudgetSection,
        "secure_aggregation": SecureAggregationSection,
        "conditions": ConditionsSection,
        "adapters": AdaptersSection,
    }
    model = models.get(section[0] if section else "", PolicyFile)
    return [field.alias or name for name, field in model.model_fields.items()]


def _error(path: Path, problems: list[Problem]) -> ConfigError:
    """Write one error about all problems."""
    cls = UnknownKey if any(p.code == UnknownKey.code for p in problems) else InvalidValue
    count = f"{len(problems)} problem{'' if len(problems) == 1 else 's'}"
    body = "\n".join(f"  {problem}" for problem in problems)
    return cls(f"The policy {path.name} has {count}:\n{body}", problems=problems)
