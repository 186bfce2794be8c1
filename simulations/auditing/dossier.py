"""Everything the audits of a run read, gathered from its folder, its ledger and its model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from server.adapters import read_released
from server.prepared import IDENTITY
from shared.configfile import parse_json
from shared.errors import RunFolderError
from shared.lora import Vector
from shared.privacy.ledger import Ledger
from shared.privacy.plan import PrivacyPlan
from simulations.assemble import Assembly, assemble_runtime
from simulations.canaries import included_records
from simulations.runfolder import SUMMARY, RunFolder
from simulations.scope import shared_scope

if TYPE_CHECKING:
    from client.training import Example
    from shared.config import RunConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Dossier:
    """A finished run with its model loaded and its ledger open.

    Attributes:
        assembly: model (with the released adapter), data, canaries.
        plan: the plan that ran.
        folder: the run folder.
        ledger: the ledger that the run charged, for reading.
        scope: what that ledger calls the run's data.
        privacy: the ``privacy`` object of the run's summary: what it claims.
        released: the trained factors of the released adapter.
    """

    assembly: Assembly
    plan: PrivacyPlan
    folder: RunFolder
    ledger: Ledger
    scope: str
    privacy: Mapping[str, Any]
    released: Vector

    @property
    def config(self) -> RunConfig:
        """The scenario."""
        return self.assembly.runtime.config

    def included_examples(self) -> list[Example]:
        """Return the canaries that were planted, as training sees them."""
        from client.tokenization import make_examples

        data, tokenizer = self.config.data, self.assembly.model.base.tokenizer
        return make_examples(
            included_records(self.assembly.canaries),
            tokenizer,
            max_length=data.max_length,
            template=data.template,
        )


@contextmanager
def open_dossier(run_dir: Path, *, base_dir: Path, ledger: str | None = None) -> Iterator[Dossier]:
    """Open a finished run for auditing.

    Args:
        run_dir: its folder.
        base_dir: what relative paths of the scenario are relative to.
        ledger: the shared ledger that it charged; the folder's own if not given.

    Raises:
        RunFolderError: if the folder holds no finished run.
        AdapterCorrupt: if its adapter is damaged.
        FedSLMError: whatever opening its data, base or ledger raises.
    """
    from simulations.budget_common import open_ledger

    folder = RunFolder(run_dir)
    summary, identity = (read_json_of(folder, name) for name in (SUMMARY, IDENTITY))
    try:
        config = parse_json(_dumped(identity["config"]))
        plan = PrivacyPlan.from_json(identity["plan"])
    except (KeyError, TypeError) as error:
        msg = f"{run_dir.name}/{IDENTITY} lacks a scenario or a plan."
        raise RunFolderError(msg, hint="Copy the whole run folder again.") from error
    assembly = assemble_runtime(config, plan, base_dir=base_dir)
    _require_base(assembly, summary)
    spec = assembly.model.spec
    factors, residual = read_released(folder.adapter, spec)
    assembly.model.load(factors)
    assembly.model.beneath.rest_on(residual)
    scope = config.data.path if ledger is None else shared_scope(config.data.path, base_dir)
    with open_ledger(ledger or str(run_dir)) as opened:
        yield Dossier(
            assembly=assembly,
            plan=plan,
            folder=folder,
            ledger=opened,
            scope=scope,
            privacy=summary["privacy"],
            released=spec.flatten(factors, config.trained_kinds),
        )


def _require_base(assembly: Assembly, summary: Mapping[str, Any]) -> None:
    """Refuse a base that is not the one that the run trained on."""
    found, expected = assembly.model.base.digest, summary.get("base_digest")
    if found != expected:
        msg = f"base_digest={found[:12]}, the run was trained on {str(expected)[:12]}."
        raise RunFolderError(msg, hint="Audit the run with the base model that it was made with.")


def read_json_of(folder: RunFolder, name: str) -> dict[str, Any]:
    """Return a JSON file of a finished run.

    Raises:
        RunFolderError: if it is not there.
    """
    value = folder.read_json(name) if folder.path.is_dir() else None
    if value is None:
        msg = f"{folder.path.name} has no {name}, expected a finished run."
        raise RunFolderError(msg, hint="Give a run folder; finish the run with --resume.")
    return value


def _dumped(value: object) -> str:
    """Return a value as JSON text."""
    import json

    return json.dumps(value)
