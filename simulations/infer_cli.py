"""``fedslm client infer``: an answer from this device alone."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simulations import registry_cli

if TYPE_CHECKING:
    from client.generation import Answer
    from client.inference import LocalModel

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
        str | None,
        typer.Option(
            help='With torch, how the base is kept in memory: "none", "int8", "torchao-int8", '
            '"int4" or "nf4"; default as on disk.'
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            help="Folder of the base model, or of an export with it; default the device's own."
        ),
    ] = None,
    runtime: Annotated[
        str | None,
        typer.Option(help='"torch", "onnx" or "llama"; default what the base\'s folder is for.'),
    ] = None,
    kv_cache: Annotated[
        str | None,
        typer.Option(
            help='Keys and values between tokens: "none"; "int8" with onnx, if exported so; '
            '"q8_0" or "q4_0" with llama.'
        ),
    ] = None,
    base_only: Annotated[
        bool, typer.Option("--base-only", help="Answer without an adapter.")
    ] = False,
    personal: Annotated[
        bool, typer.Option("--personal", help="Answer with your own adapter, if it is not stale.")
    ] = False,
    public_key: Annotated[
        str | None,
        typer.Option(
            metavar="HEX",
            help="Without a device: the key that signed the export, whose own adapter answers.",
        ),
    ] = None,
    stop: Annotated[
        list[str] | None,
        typer.Option(help="A text that ends the answer and is left out; may be repeated."),
    ] = None,
    chat: Annotated[
        bool,
        typer.Option(
            "--chat",
            help="Ask as a user's turn of the base's chat template, as adapters trained with "
            'data.template = "chat" know it.',
        ),
    ] = False,
    stream: Annotated[
        bool | None,
        typer.Option(
            "--stream/--no-stream",
            help="Print each piece as it is written; with --json, an object a line; "
            "default for text.",
        ),
    ] = None,
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
        runtime=runtime,
        quantization=quantization,
        kv_cache=kv_cache,
        base_only=base_only,
        personal=personal,
        public_key=public_key,
        warn=lambda note: typer.echo(f"warning: {note}", err=True),
    )
    asking: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    asking |= {"stop": stop or [], "chat": chat}
    piece_by_piece = not as_json if stream is None else stream
    answer, counts = _answer(
        model,
        text,
        asking,
        redact=redact,
        say=_say_json if as_json else _say,
        stream=piece_by_piece,
    )
    if as_json:
        _print_json(_facts(model, answer, counts), lines=piece_by_piece)
    else:
        typer.echo(None if piece_by_piece else answer.text)
    if counts is not None:
        found = ", ".join(f"{count} {kind}" for kind, count in counts.items())
        typer.echo(f"taken out of the question: {found or 'nothing'}", err=True)
    if stats and answer.latency is not None:
        typer.echo(f"{model.runtime}: {answer.latency.line()}", err=True)


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


def _say_json(piece: str) -> None:
    """Print a piece as an object on a line of its own."""
    typer.echo(json.dumps({"piece": piece}, ensure_ascii=False))
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


def _answer(
    model: LocalModel,
    text: str,
    asking: dict[str, Any],
    *,
    redact: bool,
    say: Callable[[str], None],
    stream: bool,
) -> tuple[Answer, dict[str, int] | None]:
    """Answer a question; with what was taken out of it, by kind, if anything was to be."""
    told = say if stream else None
    if not redact:
        return model.generate(text, **asking, on_text=told), None
    return model.generate_redacted(text, **asking, on_text=told)


def _facts(model: LocalModel, answer: Answer, counts: dict[str, int] | None) -> dict[str, Any]:
    """Return an answer that is complete in JSON's terms."""
    manifest = model.adapter
    return {
        "text": answer.text,
        "ended": answer.ended,
        "prompt_tokens": answer.prompt_tokens,
        "tokens": answer.tokens,
        "latency": None if answer.latency is None else answer.latency.to_dict(),
        "runtime": model.runtime,
        "kv_cache": model.kv_cache,
        "base_digest": model.base_digest,
        "adapter": None if manifest is None else manifest.digest,
        "personal": None if model.personal is None else asdict(model.personal),
        "audit_verdict": None if manifest is None else manifest.verdict,
        "privacy": None if manifest is None else manifest.to_dict()["privacy"],
        "redacted": counts,
        "warnings": list(model.warnings),
    }


def _print_json(value: dict[str, Any], *, lines: bool) -> None:
    """Print a JSON object on stdout, on one line after others."""
    indent = None if lines else 2
    typer.echo(json.dumps(value, indent=indent, sort_keys=True, ensure_ascii=False))
