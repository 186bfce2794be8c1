"""``fedslm budget plan``: what a plan would spend, round by round, and what else it could be."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simulations.budget_common import AsJson, print_json

if TYPE_CHECKING:
    from shared.privacy.plan import PrivacyPlan


def plan_budget(
    mode: Annotated[str, typer.Option(help='"example", "client-central" or "client-distributed".')],
    delta: Annotated[float, typer.Option(help="Failure probability.")],
    rounds: Annotated[int, typer.Option(help="Server rounds.")],
    sampling_probability: Annotated[
        float | None,
        typer.Option(help="Of an example in a step, or of a client in a round."),
    ] = None,
    epsilon: Annotated[float | None, typer.Option(help="Target; the noise is derived.")] = None,
    noise_multiplier: Annotated[
        float | None, typer.Option(help="Noise over clip; epsilon is derived.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Local steps a round (mode example).")] = 1,
    population: Annotated[int, typer.Option(help="Number of clients.")] = 1000,
    dataset_size: Annotated[
        int | None, typer.Option(help="Examples of a client, for the warning about delta.")
    ] = None,
    neighboring_relation: Annotated[
        str, typer.Option(help='"add-or-remove-one" or "replace-one".')
    ] = "add-or-remove-one",
    max_participations: Annotated[
        int | None, typer.Option(help="Enforced cap on the rounds of one client.")
    ] = None,
    mechanism: Annotated[
        str, typer.Option(help='Noise of the server: "gaussian" or "correlated".')
    ] = "gaussian",
    min_separation: Annotated[
        int | None,
        typer.Option(help="Rounds between two participations (correlated noise)."),
    ] = None,
    bands: Annotated[
        int | None, typer.Option(help="Of correlated noise; default the separation.")
    ] = None,
    clipping_quantile: Annotated[
        float | None, typer.Option(help="Share of updates that the clip lets through.")
    ] = None,
    count_noise_stddev: Annotated[
        float | None,
        typer.Option(help="Noise on the count that moves the clip; default a 20th of the cohort."),
    ] = None,
    honest_fraction: Annotated[
        float | None,
        typer.Option(help="Of a cohort, not colluding with the server (client-distributed)."),
    ] = None,
    survivor_fraction: Annotated[
        float | None, typer.Option(help="Of a cohort, in the sum (client-distributed).")
    ] = None,
    min_cohort: Annotated[
        int | None, typer.Option(help="Smallest cohort that is summed (client-distributed).")
    ] = None,
    server_epsilon: Annotated[
        float | None,
        typer.Option(help="Target against the server itself, if it needs more noise."),
    ] = None,
    noise_final: Annotated[
        float | None,
        typer.Option(help="Noise of the last rounds over that of the first, in up to 8 stairs."),
    ] = None,
    vote_every: Annotated[
        int | None, typer.Option(help="Rounds from one vote of clients to the next.")
    ] = None,
    vote_noise_multiplier: Annotated[
        float | None, typer.Option(help="Noise on the sum of votes, in votes.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Write epsilon by round to this SVG file.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a plan would spend, round by round, and what other choices would cost.

    Nothing about data is needed. With --epsilon the noise is derived, with --noise-multiplier
    epsilon is.
    """
    from shared.privacy.planform import UNIT_OF_MODE
    from shared.privacy.planning import make_plan

    _refuse_no_privacy(mode)
    unit = UNIT_OF_MODE.get(mode)
    plan = make_plan(
        mode=mode,
        unit=None if unit is None else str(unit),
        neighboring_relation=neighboring_relation,
        epsilon=epsilon,
        noise_multiplier=noise_multiplier,
        delta=delta,
        clipping_norm=1.0,
        max_grad_norm=1.0,
        sampling_probability=sampling_probability,
        rounds=rounds,
        releases_per_round=steps,
        population=population,
        dataset_size=dataset_size,
        max_participations=max_participations,
        mechanism=mechanism,
        min_separation=min_separation,
        bands=bands,
        quantile=_quantile(
            clipping_quantile, count_noise_stddev, (sampling_probability or 1.0) * population
        ),
        honest_fraction=honest_fraction,
        survivor_fraction=survivor_fraction,
        min_cohort=min_cohort,
        server_epsilon=server_epsilon,
        schedule=_schedule(noise_final),
        vote=_vote(vote_every, vote_noise_multiplier),
    )
    report = plan_report(plan)
    if plot is not None:
        _plot(report, plot)
    print_json(report) if as_json else _print_plan(report)


def plan_report(plan: PrivacyPlan) -> dict[str, Any]:
    """Return everything that is said about a private plan, with stable keys.

    An epsilon that is infinite is None.
    """
    from dataclasses import asdict

    from shared.privacy.whatif import alternatives, by_round

    server = plan.server_epsilon()
    return {
        "mode": plan.mode,
        "unit": str(plan.unit),
        "neighboring_relation": str(plan.neighboring_relation),
        "epsilon": plan.epsilon(),
        "delta": plan.delta,
        "noise": plan.noise,
        "noise_multiplier": plan.noise_multiplier,
        "sampling_probability": plan.sampling_probability,
        "cohort": None if plan.mode == "example" else plan.expected_cohort,
        "rounds": plan.rounds,
        "steps": plan.releases_per_round,
        "participations": plan.participations,
        "releases": plan.releases_after(plan.rounds),
        "accountant": plan.accountant,
        "epsilon_rdp": plan.epsilon(accountant="rdp"),
        "observer_epsilon": plan.observer_epsilon(),
        "server_epsilon": None if server == float("inf") else server,
        "terms": _terms(plan),
        "by_round": [asdict(figure) for figure in by_round(plan)],
        "what_if": [asdict(choice) for choice in alternatives(plan)],
        "warnings": list(plan.warnings()),
    }


def _terms(plan: PrivacyPlan) -> dict[str, Any]:
    """Return the terms of a mechanism that has some, and what follows from them."""
    if plan.distributed is not None:
        return plan.distributed.to_json()
    if plan.correlated is not None:
        return {**plan.correlated.to_json(), "sensitivity": plan.correlated.sensitivity}
    found: dict[str, Any] = {}
    if plan.schedule is not None:
        last = plan.noise_multiplier_of(plan.rounds)
        found |= {"noise_final": plan.schedule.final, "noise_multiplier_of_last_round": last}
    if plan.vote is not None:
        found |= {
            "vote_every": plan.vote.every,
            "vote_noise_multiplier": plan.vote.noise_multiplier,
            "votes": plan.vote.among(plan.rounds),
            "least_noise_multiplier": plan.least_noise_multiplier,
        }
    if plan.quantile is not None and plan.noise_multiplier is not None:
        of_update = plan.quantile.split(plan.noise_multiplier)
        found |= {**plan.quantile.to_json(), "noise_multiplier_of_update": of_update}
    return found


def _schedule(final: float | None) -> Any:  # noqa: ANN401
    """Return noise that changes over the rounds, if it was asked for."""
    from shared.privacy.noiseschedule import NoiseSchedule

    return None if final is None else NoiseSchedule(final=final)


def _vote(every: int | None, noise: float | None) -> Any:  # noqa: ANN401
    """Return the terms of votes, if they were asked for."""
    from shared.errors import ConflictingSettings
    from shared.privacy.vote import VoteTerms

    if every is None and noise is None:
        return None
    if every is None or noise is None:
        msg = "--vote-every and --vote-noise-multiplier go together."
        raise ConflictingSettings(msg)
    return VoteTerms(every=every, noise_multiplier=noise)


def _quantile(target: float | None, stddev: float | None, cohort: float) -> Any:  # noqa: ANN401
    """Return quantile clipping that starts at a clip of 1, if it was asked for."""
    from shared.errors import ConflictingSettings
    from shared.privacy.quantile import QuantileClipping

    if target is None:
        if stddev is not None:
            msg = "--count-noise-stddev without --clipping-quantile."
            raise ConflictingSettings(msg, hint="A fixed clip counts nobody.")
        return None
    return QuantileClipping(
        target=target,
        learning_rate=0.2,
        count_noise_stddev=cohort / 20 if stddev is None else stddev,
        initial=1.0,
    )


def _refuse_no_privacy(mode: str) -> None:
    """Refuse to plan a budget for mode none."""
    from shared.errors import InvalidValue

    if mode == "none":
        msg = "mode='none' has no budget to plan."
        raise InvalidValue(msg, hint="Use --mode example, client-central or client-distributed.")


def _plot(report: dict[str, Any], path: Path) -> None:
    """Draw epsilon by round."""
    from shared.files import write_text
    from simulations.plots import epsilon_by_round

    figures = report["by_round"]
    drawn = epsilon_by_round(
        [figure["rounds"] for figure in figures],
        [figure["epsilon"] for figure in figures],
        [figure["epsilon_rdp"] for figure in figures],
        None,
        accountant=report["accountant"],
    )
    write_text(path, drawn)


def _print_plan(report: dict[str, Any]) -> None:
    """Print a plan as tables."""
    from rich.console import Console
    from rich.table import Table

    console = Console(soft_wrap=True)
    console.print(_headline(report), highlight=False)
    server = report["server_epsilon"]
    console.print(
        f"against whoever sees only adapters {report['epsilon']:.4f}, who also knows when a "
        f"client took part {report['observer_epsilon']:.4f}, the server itself "
        f"{'infinite' if server is None else f'{server:.4f}'}",
        highlight=False,
    )
    for name, value in report["terms"].items():
        console.print(f"  {name} {value:g}", highlight=False)
    uneven = len({figure["noise_multiplier"] for figure in report["by_round"]}) > 1
    noise = ["noise"] if uneven else []
    rounds = Table("rounds", "epsilon", "by RDP", *noise, box=None, pad_edge=False)
    for figure in report["by_round"]:
        cells = [f"{figure['epsilon']:.4f}", f"{figure['epsilon_rdp']:.4f}"]
        cells += [f"{figure['noise_multiplier']:.4f}"] if uneven else []
        rounds.add_row(str(figure["rounds"]), *cells)
    console.print(rounds)
    console.print(_choices(report["what_if"]))
    for warning in report["warnings"]:
        console.print(f"[yellow]warning[/yellow] {warning}", highlight=False)


def _headline(report: dict[str, Any]) -> str:
    """Return epsilon with everything that it must never stand without."""
    releases = report["releases"]
    return (
        f"epsilon {report['epsilon']:.4f} at delta {report['delta']:.3g}, per {report['unit']}, "
        f"{report['neighboring_relation']}, {releases} release{'' if releases == 1 else 's'}, "
        f"noise multiplier {report['noise_multiplier']:.4f}, by {report['accountant'].upper()} "
        f"(RDP: {report['epsilon_rdp']:.4f})"
    )


def _choices(rows: list[dict[str, Any]]) -> Any:  # noqa: ANN401  (rich is imported lazily)
    """Return the table of other choices."""
    from rich.table import Table

    names = ("what if", "rounds", "cohort", "sampling", "noise", "epsilon")
    table = Table(*names, box=None, pad_edge=False)
    for row in rows:
        table.add_row(
            row["change"],
            str(row["rounds"]),
            "-" if row["cohort"] is None else f"{row['cohort']:g}",
            f"{row['sampling_probability']:g}",
            f"{row['noise_multiplier']:.4f}",
            f"{row['epsilon']:.4f}",
        )
    return table
