"""``fedslm client``: what the owner of a device allows, what was spent, what a run would cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simulations.redact_cli import redact

if TYPE_CHECKING:
    from client.charges import Budget
    from client.policy import ClientPolicy, Refusal
    from shared.config import RunConfig
    from shared.privacy.plan import PrivacyPlan

client_app = typer.Typer(help="Look after the device of a data owner.", no_args_is_help=True)
policy_app = typer.Typer(
    help="Write, read and try out the policy of a device.", no_args_is_help=True
)
client_app.add_typer(policy_app, name="policy")
client_app.command("redact")(redact)

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Policy = Annotated[Path, typer.Argument(help="The policy file of the device.")]


@client_app.command("identity")
def identity(
    state: Annotated[Path, typer.Argument(help="The device's state folder.")],
    as_json: AsJson = False,
) -> None:
    """Print the public key of a device, for rosters; the key is made if there is none."""
    from client.keyring import load_identity

    key = load_identity(state).public_key.hex()
    _print_json({"public_key": key}) if as_json else typer.echo(key)


@policy_app.command("init")
def init(path: Annotated[Path, typer.Argument(help="Where to write it.")]) -> None:
    """Write a commented policy that allows nothing until it is filled in."""
    from client.policyfile import TEMPLATE
    from shared.errors import UsageError
    from shared.files import write_text

    if path.exists():
        msg = f"{path.name} exists already."
        raise UsageError(msg, hint="Give another name, or edit it.")
    write_text(path, TEMPLATE)
    typer.echo(f"{path} allows nothing yet: fill it in, then: fedslm client policy show {path}")


@policy_app.command("base")
def base(
    model: Annotated[str, typer.Argument(help='A transformers folder, or "demo".')],
    as_json: AsJson = False,
) -> None:
    """Print the digest of a base model, for the policy's list."""
    from shared.errors import ModelNotFound

    digest = _base_digest(model)
    if digest is None:
        msg = f"{model!r} is not a folder here."
        raise ModelNotFound(msg, hint="Give the folder that the device's base-path names.")
    _print_json({"base": model, "digest": digest}) if as_json else typer.echo(digest)


@policy_app.command("show")
def show(
    policy: Policy,
    state: Annotated[
        Path | None, typer.Option(help="The device's state folder: what was spent so far.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a device allows, what was spent of it, and what is left."""
    from client.policy import ClientPolicy
    from client.policyfile import read_policy_file

    limits = ClientPolicy.load(policy)
    report = device_report(limits, state)
    asked = read_policy_file(policy).conditions
    report["conditions"] = {} if asked is None else asked.model_dump(exclude_defaults=True)
    _print_json(report) if as_json else _print_report(report)


@policy_app.command("check")
def check(
    policy: Policy,
    scenario: Annotated[
        str, typer.Argument(help="A built-in scenario, or the path of a TOML file.")
    ],
    population: Annotated[
        int | None, typer.Option(help="Number of clients, where the scenario does not say it.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one setting; repeatable."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say whether a device would take part; exit 0 if so, 24 with every reason if not."""
    from client.policy import ClientPolicy
    from shared.errors import PolicyRefused
    from shared.scenarioplan import plan_of
    from simulations.catalog import open_scenario

    limits = ClientPolicy.load(policy)
    resolved = open_scenario(scenario, overrides or [])
    config = resolved.config
    plan = plan_of(config, population=_population(config, population))
    digest = _base_digest(config.model.base)
    reasons = limits.refusals(plan, config, base_digest=digest)
    answer = _answer(limits, plan, reasons)
    found = {"scenario": resolved.source, "base_digest": digest, **answer}
    _print_json(found) if as_json else _print_answer(found)
    if reasons:
        raise typer.Exit(PolicyRefused.exit_code)


def _population(config: RunConfig, given: int | None) -> int:
    """Return the number of clients, from the command line or the scenario."""
    from shared.errors import UsageError
    from shared.validate import positive_integer

    population = given if given is not None else config.clients.population
    if population is None:
        msg = "The scenario does not say how many clients there are."
        raise UsageError(msg, hint="Give --population.")
    positive_integer(population=population)
    return population


def _base_digest(model: str) -> str | None:
    """Return the digest of a base model that is here; None for one that is not."""
    from client.basedigest import base_digest
    from client.edge.program import MANIFEST, load_step
    from simulations.basepath import base_path

    folder = Path(base_path(model, base_dir=Path.cwd()))
    if (folder / MANIFEST).is_file():
        return load_step(folder).base_digest
    return base_digest(folder) if folder.is_dir() else None


def _answer(
    limits: ClientPolicy, plan: PrivacyPlan, reasons: tuple[Refusal, ...]
) -> dict[str, Any]:
    """Return the decision about a plan, with what it would cost where it is allowed."""
    return {
        "takes_part": not reasons,
        "mode": plan.mode,
        "rounds": plan.rounds,
        "reasons": [{"limit": r.limit, "found": r.found, "allowed": r.allowed} for r in reasons],
        "costs": [] if reasons else _costs(limits, plan),
    }


def _costs(limits: ClientPolicy, plan: PrivacyPlan) -> list[dict[str, Any]]:
    """Return what a whole run would cost, counted as the device counts."""
    charges = () if plan.mode == "none" else limits.charges(plan)
    return [
        {
            "unit": str(charge.plan.unit),
            "epsilon": charge.plan.epsilon(),
            "delta": charge.plan.delta,
            "neighboring_relation": str(charge.plan.neighboring_relation),
            "noise_multiplier": charge.plan.least_noise_multiplier,
            "releases": charge.plan.releases_after(charge.plan.rounds),
            "max_epsilon": charge.plan.cap,
        }
        for charge in charges
    ]


def device_report(limits: ClientPolicy, folder: Path | None) -> dict[str, Any]:
    """Return a policy and a state in JSON's terms."""
    secure = limits.secure_aggregation
    spent, state = _state(folder)
    return {
        "modes": sorted(limits.modes),
        "base_models": sorted(limits.base_models),
        "aggregation": sorted(limits.aggregation),
        "max_rounds": limits.max_rounds,
        "max_repeats": limits.max_repeats,
        "server_key": limits.server_key,
        "seeded_noise": limits.seeded_noise,
        "asynchronous": limits.asynchronous,
        "secure_aggregation": None
        if secure is None
        else {
            "roster": secure.roster.name,
            "min_cohort": secure.min_cohort,
            "honest_fraction": secure.honest_fraction,
        },
        "budgets": [_budget(budget, spent if folder else None) for budget in limits.budgets],
        "state": state,
    }


def _state(folder: Path | None) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return what each unit spent, by subject, and the state itself."""
    from client.charges import UNPROTECTED

    if folder is None:
        return {}, None
    from client.state import DeviceState

    with DeviceState(folder, create=False) as state:
        whole = state.verify()
        spent = {entry.subject: entry for entry in state.spent()}
        heads = state.heads()
    return spent, {
        "entries": whole.entries,
        "open_reservations": whole.open_reservations,
        "unprotected": UNPROTECTED in spent,
        "server_heads": [
            {"public_key": head.public_key, "seq": head.seq, "hash": head.hash} for head in heads
        ],
    }


def _budget(budget: Budget, spent: dict[str, Any] | None) -> dict[str, Any]:
    """Return a budget with what is left of it; an earlier, lower cap stays in force."""
    from client.charges import CLIENT, EXAMPLE

    found = (spent or {}).get({"example": EXAMPLE, "client": CLIENT}[str(budget.unit)])
    used = 0.0 if found is None else found.epsilon
    cap = budget.max_epsilon if found is None else min(budget.max_epsilon, found.cap)
    counted = spent is not None
    return {
        "unit": str(budget.unit),
        "max_epsilon": budget.max_epsilon,
        "delta": budget.delta,
        "neighboring_relation": str(budget.neighboring_relation),
        "min_noise_multiplier": budget.min_noise_multiplier,
        "max_sampling_probability": budget.max_sampling_probability,
        "spent": {"epsilon": used, "delta": budget.delta} if counted else None,
        "cap": cap if counted else None,
        "remaining": max(0.0, cap - used) if counted else None,
        "releases": 0 if found is None else round(found.releases),
    }


def _print_report(report: dict[str, Any]) -> None:
    """Print a policy in plain words."""
    typer.echo(f"This device takes part in: {', '.join(report['modes'])}.")
    typer.echo(f"  base models: {', '.join(digest[:12] for digest in report['base_models'])}")
    typer.echo(f"  aggregation: {', '.join(report['aggregation'])}")
    typer.echo(f"  rounds of one run: at most {report['max_rounds']}")
    typer.echo(f"  further answers to one round: at most {report['max_repeats']}, each charged")
    key = report["server_key"]
    signed = "the first key seen is trusted" if key is None else f"signed by {key[:12]}"
    typer.echo(f"  ledger of the server: {signed}")
    if report["seeded_noise"]:
        typer.echo("  seeded noise is accepted: the server knows it, it PROTECTS NOBODY")
    if report["asynchronous"]:
        typer.echo("  asynchronous rounds are accepted: no budget counts what answer times say")
    secure = report["secure_aggregation"]
    if secure is not None:
        typer.echo(
            f"  cohorts: at least {secure['min_cohort']} clients of {secure['roster']}, of whom "
            f"{secure['honest_fraction']:.0%} are trusted not to help the server"
        )
    if not report["budgets"]:
        typer.echo("There is no budget: what leaves this device is NOT PROTECTED.")
    for budget in report["budgets"]:
        _print_budget(budget)
    for key, value in report["conditions"].items():
        wanted = ", ".join(value) if isinstance(value, tuple) else value
        typer.echo(f"It works only while: {key} = {wanted}")
    if report["state"] is not None:
        _print_state(report["state"])


def _print_budget(budget: dict[str, Any]) -> None:
    """Print a budget and what is left of it."""
    whose = {"example": "One record", "client": "All records of this device together"}
    typer.echo(
        f"{whose[budget['unit']]}: epsilon at most {budget['max_epsilon']:g} at delta "
        f"{budget['delta']:g}, {budget['neighboring_relation']}, over all runs together."
    )
    typer.echo(f"  noise multiplier: at least {budget['min_noise_multiplier']:g}")
    if budget["max_sampling_probability"] is not None:
        most = budget["max_sampling_probability"]
        typer.echo(f"  chance of a record to be in a step: at most {most:g}")
    if budget["spent"] is not None:
        typer.echo(
            f"  spent: epsilon {budget['spent']['epsilon']:.4f} in {budget['releases']} releases; "
            f"left: {budget['remaining']:.4f} of {budget['cap']:g}"
        )


def _print_state(state: dict[str, Any]) -> None:
    """Print what the device remembers."""
    typer.echo(
        f"The device's ledger is whole: {state['entries']} entries, "
        f"{state['open_reservations']} answers charged and not finished."
    )
    if state["unprotected"]:
        typer.echo("Records left this device WITHOUT NOISE: no epsilon holds for them any more.")
    for head in state["server_heads"][-1:]:
        typer.echo(f"The server's ledger: entry {head['seq']}, key {head['public_key'][:12]}.")


def _print_answer(found: dict[str, Any]) -> None:
    """Print whether the device would take part, and why not."""
    if not found["takes_part"]:
        typer.echo(f"This device would not take part in {found['scenario']}:")
        for reason in found["reasons"]:
            typer.echo(f"  {reason['limit']}: {reason['found']}; allowed: {reason['allowed']}")
        return
    typer.echo(f"This device would take part in {found['scenario']}.")
    if found["base_digest"] is None:
        typer.echo("  The base model is not here: its digest was not compared.", err=True)
    for cost in found["costs"]:
        left = cost["max_epsilon"] - cost["epsilon"]
        typer.echo(
            f"  The whole run costs epsilon {cost['epsilon']:.4f} at delta {cost['delta']:g}, per "
            f"{cost['unit']}, {cost['neighboring_relation']}, in {cost['releases']} releases; "
            f"of an unspent budget of {cost['max_epsilon']:g} it leaves {left:.4f}."
        )


def _print_json(value: dict[str, Any]) -> None:
    """Print a JSON object on stdout."""
    typer.echo(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False))
