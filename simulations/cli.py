"""The ``fedslm`` command: noun, then verb; the composition root of the program.

Results go to stdout (``--json`` for machines), everything else to stderr. Heavy packages are
imported inside the commands, so that ``--help`` is quick. Every expected error is one message and
its own exit code; see docs/errors.md.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simulations.adapter_cli import adapter_app
from simulations.audit_cli import audit_app
from simulations.base_cli import base_app
from simulations.bench_cli import bench_app
from simulations.budget_cli import budget_app
from simulations.client_cli import client_app
from simulations.enrol_cli import add_commands as add_enrolment
from simulations.eval_cli import evaluate_model
from simulations.export_adapters_cli import add_commands as add_exports
from simulations.export_cli import export_app
from simulations.fetch_cli import add_commands as add_fetching
from simulations.infer_cli import add_commands as add_answers
from simulations.native_cli import add_commands as add_native
from simulations.node_cli import add_commands as add_node
from simulations.personal_cli import add_commands as add_personal
from simulations.plan_cli import plan_device
from simulations.rotate_cli import rotate
from simulations.server_cli import server_app
from simulations.study_cli import study_app
from simulations.trim_cli import add_commands as add_trimming
from simulations.up_cli import add_commands as add_up
from simulations.user_cli import user_app

if TYPE_CHECKING:
    from shared.configfile import ResolvedConfig
    from shared.errors import FedSLMError

app = typer.Typer(
    name="fedslm",
    help="Fine-tune small language models on data that never leaves its owner's device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
config_app = typer.Typer(help="Look at a scenario without running it.", no_args_is_help=True)
app.add_typer(config_app, name="config")
app.add_typer(audit_app, name="audit")
app.add_typer(adapter_app, name="adapter")
app.add_typer(base_app, name="base")
app.add_typer(budget_app, name="budget")
app.add_typer(bench_app, name="bench")
app.add_typer(client_app, name="client")
app.add_typer(export_app, name="export")
app.add_typer(server_app, name="server")
server_app.add_typer(user_app, name="user")
server_app.command("rotate")(rotate)
add_enrolment(client_app)
add_node(client_app)
add_native(client_app)
add_fetching(client_app)
add_trimming(client_app)
add_answers(adapter_app, client_app)
add_exports(export_app)
add_personal(client_app)
app.add_typer(study_app, name="study")
app.command("plan")(plan_device)
app.command("eval")(evaluate_model)
add_up(app)

Scenario = Annotated[str, typer.Argument(help="A built-in scenario, or the path of a TOML file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one setting; repeatable."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Engine = Annotated[
    str | None, typer.Option(help='"inprocess" or "flower"; the same as --set run.engine=...')
]
Seed = Annotated[int | None, typer.Option(help="The same as --set run.seed=...")]


def _version(value: bool) -> None:
    """Print the version and leave."""
    if value:
        from importlib.metadata import version

        typer.echo(f"fedslm {version('fedslm')}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Hold the options of the program itself."""
    del version


@app.command()
def simulate(
    scenario: Annotated[
        str | None, typer.Argument(help="A built-in scenario, or the path of a TOML file.")
    ] = None,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder; default runs/NAME-DATE-TIME.")
    ] = None,
    engine: Engine = None,
    seed: Seed = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an unfinished run (newest, or --out).")
    ] = False,
    ledger: Annotated[
        str | None,
        typer.Option(
            envvar="FEDSLM_LEDGER",
            help="A ledger that several runs share: a file, or postgresql://user@host/database.",
        ),
    ] = None,
    ledger_key: Annotated[
        Path | None,
        typer.Option(
            envvar="FEDSLM_LEDGER_KEY",
            help="Key that signs the ledger; made if missing. Default beside the ledger's file.",
        ),
    ] = None,
    list_them: Annotated[
        bool, typer.Option("--list", help="List the built-in scenarios and leave.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run a federation of simulated clients and leave a run folder with a report."""
    if list_them:
        _list_scenarios(as_json=as_json)
        return
    from shared.errors import UsageError

    if scenario is None:
        msg = "No scenario given."
        raise UsageError(msg, hint="Try: fedslm simulate quickstart, or fedslm simulate --list")
    extra = [f'run.engine="{engine}"'] if engine is not None else []
    extra += [f"run.seed={seed}"] if seed is not None else []
    resolved = _open(scenario, [*(overrides or []), *extra])
    shared = (ledger, ledger_key)
    _simulate(resolved, out=out, resume=resume, shared_ledger=shared, as_json=as_json)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs.")],
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
    as_json: AsJson = False,
) -> None:
    """Put finished runs side by side."""
    from simulations.compare import COLUMNS, as_markdown, read_summaries, row

    summaries = read_summaries(runs)
    if as_json:
        _print_json({"runs": summaries})
    elif markdown:
        typer.echo(as_markdown(summaries))
    else:
        from rich.console import Console
        from rich.table import Table

        table = Table(*COLUMNS, box=None, pad_edge=False)
        for summary in summaries:
            table.add_row(*row(summary))
        Console(soft_wrap=True).print(table)


@config_app.command("show")
def config_show(scenario: Scenario, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Print a scenario with every default filled in and where each value came from."""
    resolved = _open(scenario, overrides)
    if not as_json:
        typer.echo(resolved.to_toml(), nl=False)
        return
    values = resolved.config.model_dump(mode="json")
    _print_json({"source": resolved.source, "config": values, "origins": dict(resolved.origins)})


@config_app.command("check")
def config_check(scenario: Scenario, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Check a scenario; exit 0 if it is valid, else say everything that is wrong."""
    resolved = _open(scenario, overrides)
    digest = resolved.config.digest()
    if as_json:
        _print_json({"valid": True, "source": resolved.source, "digest": digest})
    else:
        typer.echo(f"{resolved.source} is valid (digest {digest[:12]}).")


@app.command()
def doctor(
    home: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Look into the folder of a server or of a device too."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check this machine and installation for the usual troubles."""
    from simulations.doctor import exit_code, run_checks, to_dict

    checks = run_checks(home=home)
    if as_json:
        _print_json(to_dict(checks))
    else:
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        colours = {"ok": "green", "warning": "yellow", "failed": "red"}
        table = Table(box=None, pad_edge=False)
        for column in ("check", "status", "found", "what to do"):
            table.add_column(column, overflow="fold")
        for check in checks:
            status = f"[{colours[check.status]}]{check.status}[/]"
            # In an install line, [client] is no style.
            table.add_row(check.name, status, escape(check.found), escape(check.hint))
        Console().print(table)
    if exit_code(checks):
        raise typer.Exit(1)


def _open(scenario: str, overrides: list[str] | None) -> ResolvedConfig:
    """Load a scenario with overrides."""
    from simulations.catalog import open_scenario

    return open_scenario(scenario, overrides or [])


def _list_scenarios(*, as_json: bool) -> None:
    """Print the built-in scenarios."""
    from simulations.catalog import scenarios

    found = scenarios()
    if as_json:
        _print_json({"scenarios": [{"name": s.name, "about": s.about} for s in found]})
        return
    width = max(len(s.name) for s in found)
    for item in found:
        typer.echo(f"{item.name:<{width}}  {item.about}")


def _simulate(
    resolved: ResolvedConfig,
    *,
    out: Path | None,
    resume: bool,
    shared_ledger: tuple[str | None, Path | None],
    as_json: bool,
) -> None:
    """Run a resolved scenario and print what came out."""
    from simulations.progress import show_progress
    from simulations.runfolder import default_folder, latest_folder
    from simulations.simulate import simulate as run

    name = resolved.config.run.name
    folder = out or (latest_folder(name) if resume else None) or default_folder(name)
    with show_progress(resolved.config.run.rounds, quiet=as_json) as progress:
        result = run(
            resolved,
            folder=folder,
            resume=resume,
            progress=progress,
            ledger=shared_ledger[0],
            ledger_key=shared_ledger[1],
        )
    if as_json:
        _print_json({**result.summary, "run_folder": str(result.folder)})
    else:
        from simulations.summarytable import print_summary

        print_summary(result.summary, result.folder)
    if result.summary["status"] == "budget-exhausted":
        from shared.errors import PrivacyBudgetExhausted

        raise typer.Exit(PrivacyBudgetExhausted.exit_code)


def _print_json(value: dict[str, Any]) -> None:
    """Print a JSON object on stdout."""
    typer.echo(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False))


def _report(error: FedSLMError, *, as_json: bool) -> int:
    """Print one clear error and return its exit code."""
    if as_json:
        _print_json(error.to_dict())
    typer.echo(f"error [{error.code}]: {error.message}", err=True)
    if error.hint:
        typer.echo(f"  {error.hint}", err=True)
    return error.exit_code


def run(arguments: Sequence[str]) -> int:
    """Run one command line; the process edge where errors become exit codes.

    Args:
        arguments: what follows ``fedslm``.

    Returns:
        The exit code.
    """
    from shared.errors import FedSLMError

    try:
        app(list(arguments))
    except FedSLMError as error:
        return _report(error, as_json="--json" in arguments)
    except ModuleNotFoundError as error:
        from simulations.missing import missing

        told = missing(error)
        if told is None:
            raise
        return _report(told, as_json="--json" in arguments)
    except KeyboardInterrupt:
        typer.echo("interrupted; a command that has --resume goes on with it", err=True)
        return 130
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else 0
    return 0


def main() -> None:
    """Run the command line of this process."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
