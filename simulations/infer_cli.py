"""``fedslm client infer``: an answer from this device alone."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simulations import registry_cli

if TYPE_CHECKING:
    from client.generation import Answer
    from client.inference import LocalModel
    from client.redaction import Restored

LARGEST_PROMPT = 1 << 20


def infer(
    prompt: Annotated[str, typer.Argument(help='The question, or "-" to read it from stdin.')],
    home: Annotated[
        Path | None, typer.Option(help="The device's folder; default the one it enrolled with.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Write at most so many tokens.")] = 128,
    temperature: Annotated[
        float, typer.Option(help="0 for the likeliest answer; above it, answers are drawn.")
    ] = 0.0,
    seed: Annotated[int | None, typer.Option(help="Seed of the draws.")] = None,
    quantization: Annotated[
        str,
        typer.Option(
            help='How the base is kept in memory: "none", "int8", "torchao-int8", "int4" or "nf4".'
        ),
    ] = "none",
    base: Annotated[
        str | None, typer.Option(help="Folder of the base model; default the device's own.")
    ] = None,
    base_only: Annotated[
        bool, typer.Option("--base-only", help="Answer without an adapter.")
    ] = False,
    personal: Annotated[
        bool, typer.Option("--personal", help="Answer with your own adapter, if it is not stale.")
    ] = False,
    redact: Annotated[
        bool,
        typer.Option(
            "--redact", help="Take personal data out of the question, and put it back afterwards."
        ),
    ] = False,
    stats: Annotated[
        bool,
        typer.Option(
            "--stats", help="Say on stderr how long it took; with --json it is always there."
        ),
    ] = False,
    as_json: registry_cli.AsJson = False,
) -> None:
    """Answer a question on this device, with its newest verified adapter; nothing leaves it."""
    # Before any library that could look on a hub is imported.
    os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"
    text = _prompt(prompt)
    from client.inference import LocalModel

    model = LocalModel.load(
        home,
        base=base,
        quantization=quantization,
        base_only=base_only,
        personal=personal,
        warn=lambda note: typer.echo(f"warning: {note}", err=True),
    )
    asking: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    if redact:
        answer, restored = _redacted(model, text, asking)
        _show(model, answer, restored, as_json=as_json)
    elif as_json:
        answer = model.generate(text, **asking)
        _show(model, answer, None, as_json=True)
    else:
        answer = model.generate(text, **asking, on_text=_say)
        typer.echo()
    if stats and answer.latency is not None:
        typer.echo(answer.latency.line(), err=True)


def add_commands(adapter_app: typer.Typer, client_app: typer.Typer) -> None:
    """Add these commands to the apps of ``fedslm adapter`` and ``fedslm client``."""
    client_app.command("infer")(infer)
    adapter_app.command("list")(registry_cli.adapter_list)
    adapter_app.command("show")(registry_cli.adapter_show)
    adapter_app.command("add")(registry_cli.adapter_add)
    adapter_app.command("promote")(registry_cli.adapter_promote)
    adapter_app.command("rollback")(registry_cli.adapter_rollback)
    adapter_app.command("verify")(registry_cli.adapter_verify)
    adapter_app.command("export")(registry_cli.adapter_export)
    adapter_app.command("clean")(registry_cli.adapter_clean)
    adapter_app.command("reseal")(registry_cli.adapter_reseal)


def _say(piece: str) -> None:
    """Print a piece of an answer as soon as it is written."""
    typer.echo(piece, nl=False)
    sys.stdout.flush()


def _prompt(prompt: str) -> str:
    """Return the question, from stdin if it is a dash."""
    from shared.errors import UsageError

    if prompt != "-":
        return prompt
    data = sys.stdin.buffer.read(LARGEST_PROMPT + 1)
    if not len(data) <= LARGEST_PROMPT:
        msg = f"The question has more than {LARGEST_PROMPT} bytes."
        raise UsageError(msg, hint="Shorten it; a model's window is far smaller.")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        msg = "stdin is not UTF-8 text."
        raise UsageError(msg, hint="Convert it first: iconv -t utf-8") from error


def _redacted(model: LocalModel, text: str, asking: dict[str, Any]) -> tuple[Answer, Restored]:
    """Answer a question from which personal data was taken, and put it back."""
    from client.redaction import Session, default_redactor

    session = Session()
    found = default_redactor().redact(text, session)
    answer = model.generate(found.text, **asking)
    return answer, session.restore(answer.text)


def _show(model: LocalModel, answer: Answer, restored: Restored | None, *, as_json: bool) -> None:
    """Print an answer that is complete."""
    text = answer.text if restored is None else restored.text
    if not as_json:
        typer.echo(text)
        return
    manifest = model.adapter
    result: dict[str, Any] = {
        "text": text,
        "ended": answer.ended,
        "prompt_tokens": answer.prompt_tokens,
        "tokens": answer.tokens,
        "latency": None if answer.latency is None else answer.latency.to_dict(),
        "base_digest": model.base.digest,
        "adapter": None if manifest is None else manifest.digest,
        "personal": None if model.personal is None else asdict(model.personal),
        "audit_verdict": None if manifest is None else manifest.verdict,
        "privacy": None if manifest is None else manifest.to_dict()["privacy"],
        "warnings": list(model.warnings),
    }
    _print_json(result)


def _print_json(value: dict[str, Any]) -> None:
    """Print a JSON object on stdout."""
    typer.echo(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False))
