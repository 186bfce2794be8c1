"""Finished runs become versions: what a run folder says goes into the manifest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from server.registry.store import AdapterRegistry
from server.registry.versions import AdapterVersion
from shared.errors import AdapterCorrupt
from shared.manifest import REPORT, REPORT_SIGNATURE, RUN_MANIFEST

ADAPTER = "adapter"
_LARGEST = 1 << 24


def add_run(
    registry: AdapterRegistry,
    run_dir: Path,
    *,
    name: str | None = None,
    parent: str | None = None,
    audit_key: str | None = None,
    withheld: bool = False,
) -> AdapterVersion:
    """Add the adapter of a finished run (or a released folder) to a registry.

    Adding the same run twice gives the same version.

    Args:
        registry: opened with its signing key.
        run_dir: a run folder with ``adapter/`` and ``audit.json``, or an adapter's own folder with
            ``fedslm.json``.
        name: of the line of adapters; the run folder's name by default.
        parent: digest of the version that training went on from.
        audit_key: the public key that must have signed the audit report.
        withheld: keep it as evidence alone.

    Returns:
        The version; it is not in use before it is promoted.

    Raises:
        AdapterCorrupt: if the folder is no finished run.
        ReleaseRefused: as :meth:`AdapterRegistry.add`.
    """
    folder = run_dir / ADAPTER if (run_dir / ADAPTER).is_dir() else run_dir
    facts = _read(folder / RUN_MANIFEST)
    return registry.add(
        folder,
        name=name or run_dir.resolve().name,
        base_digest=_text(facts, "base_digest"),
        plan_digest=_text(facts, "plan_digest"),
        ledger_head=_text(facts, "ledger_head"),
        parent=parent,
        audit=_read_if_there(run_dir / REPORT),
        audit_signature=_read_if_there(run_dir / REPORT_SIGNATURE),
        audit_key=audit_key,
        withheld=withheld,
    )


def _read_if_there(path: Path) -> Mapping[str, Any] | None:
    """Read a JSON object of a run, or return None if there is no such file."""
    return _read(path) if path.exists() else None


def _read(path: Path) -> Mapping[str, Any]:
    """Read a JSON object of a run."""
    try:
        with path.open("rb") as stream:
            data = stream.read(_LARGEST + 1)
        value = json.loads(data.decode("utf-8")) if len(data) <= _LARGEST else None
    except (OSError, ValueError, RecursionError) as error:
        msg = f"{path.name} is missing or damaged."
        raise AdapterCorrupt(msg, hint="Give the folder of a finished run.") from error
    if not isinstance(value, dict):
        msg = f"{path.name} is no JSON object of a reasonable size."
        raise AdapterCorrupt(msg, hint="Give the folder of a finished run.")
    return value


def _text(facts: Mapping[str, Any], key: str) -> str:
    """Return a text of the run's manifest."""
    value = facts.get(key)
    if not isinstance(value, str):
        msg = f"{RUN_MANIFEST} has no {key}."
        raise AdapterCorrupt(msg, hint="Give the folder of a finished run.")
    return value
