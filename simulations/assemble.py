"""From a scenario to the objects that run it: dataset, canaries, base model, plan, runtime.

The composition root of a simulation; everything is opened and checked here, before a run folder
exists.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shared.config import RunConfig
from shared.privacy.plan import PrivacyPlan
from simulations.attacks.poison import with_attackers
from simulations.attacks.runtime import make_runtime
from simulations.basepath import base_path
from simulations.canaries import WithCanaries, plan_canaries
from simulations.canaryplan import RARE_TOKEN, CanaryPlan
from simulations.clientcanaries import with_client_canaries
from simulations.dataset import FederatedDataset, open_dataset
from simulations.keyring import SimulatedKeyring
from simulations.raretokens import open_tokenizer, rare_tokens, require_readable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from client.adapter import AdaptedModel
    from client.runtime import ClientRuntime

_SMALL = 20_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Assembly:
    """The parts of a run that live next to the data."""

    runtime: ClientRuntime
    model: AdaptedModel
    dataset: FederatedDataset
    canaries: CanaryPlan


def open_clients(
    config: RunConfig,
    *,
    base_dir: Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    dealt: FederatedDataset | None = None,
) -> tuple[FederatedDataset, CanaryPlan]:
    """Open the dataset, plant the scenario's canaries in it, and add its canary clients.

    Args:
        config: the scenario.
        base_dir: what relative paths of the scenario are relative to.
        tokenizer: of the base model; loaded if canaries need one and it is not given.
        dealt: the clients' records, where they were dealt to devices already.

    Raises:
        AuditError: if the canaries that are asked for do not fit the vocabulary or the scenario.
    """
    dataset = dealt
    if dataset is None:
        dataset = open_dataset(
            config.data,
            population=config.clients.population,
            seed=config.run.seed,
            base_dir=base_dir,
        )
    dataset = with_attackers(dataset, config)
    canaries = _draw_canaries(config, dataset, base_dir=base_dir, tokenizer=tokenizer)
    return with_client_canaries(WithCanaries(dataset, canaries), config), canaries


def _draw_canaries(
    config: RunConfig,
    dataset: FederatedDataset,
    *,
    base_dir: Path,
    tokenizer: PreTrainedTokenizerBase | None,
) -> CanaryPlan:
    """Draw the scenario's canaries and check that training can read them whole."""
    audit, model = config.audit, config.model
    if audit.canaries > 0 and tokenizer is None:
        base = base_path(model.base, base_dir=base_dir)
        tokenizer = open_tokenizer(base, revision=model.revision)
    tokens: tuple[str, ...] = ()
    if tokenizer is not None and audit.canaries > 0 and RARE_TOKEN in audit.kinds:
        tokens = rare_tokens(tokenizer, wanted=audit.canaries + audit.references)
    plan = plan_canaries(
        count=audit.canaries,
        population=dataset.population,
        seed=config.run.seed,
        repeats=audit.repeats,
        kinds=audit.kinds,
        references=audit.references,
        tokens=tokens,
    )
    if tokenizer is not None:
        data = config.data
        require_readable(plan, tokenizer, max_length=data.max_length, template=data.template)
    return plan


def load_model(config: RunConfig, *, base_dir: Path) -> AdaptedModel:
    """Load the frozen base and attach the adapter."""
    from client.taskmodel import load_adapted

    base = base_path(config.model.base, base_dir=base_dir)
    return load_adapted(config, base, revision=config.model.revision)


def assemble_runtime(
    config: RunConfig,
    plan: PrivacyPlan,
    *,
    base_dir: Path,
    dealt: FederatedDataset | None = None,
    opened: tuple[FederatedDataset, CanaryPlan] | None = None,
) -> Assembly:
    """Build everything that a process needs to speak for the clients of a scenario.

    Args:
        config: the scenario.
        plan: its plan.
        base_dir: what relative paths of the scenario are relative to.
        dealt: the clients' records, where they were dealt to devices already.
        opened: what :func:`open_clients` made of the same scenario, where that was done already.
    """
    model = load_model(config, base_dir=base_dir)
    tokenizer = model.base.tokenizer
    dataset, canaries = opened or open_clients(
        config, base_dir=base_dir, tokenizer=tokenizer, dealt=dealt
    )
    _set_threads(config, model)
    distributed = plan.mode == "client-distributed"
    keyring = SimulatedKeyring(config.run.seed, dataset.population) if distributed else None
    runtime = make_runtime(config, plan=plan, model=model, source=dataset, keyring=keyring)
    return Assembly(runtime=runtime, model=model, dataset=dataset, canaries=canaries)


def _set_threads(config: RunConfig, model: AdaptedModel) -> None:
    """Set torch's threads: as the scenario says, else one for small bases.

    The products of a small model are too short to share: on two busy cores a second thread made a
    round of the quickstart several times slower (docs/log.md).
    """
    import torch

    threads = config.performance.threads
    if threads is None and sum(p.numel() for p in model.peft_model.parameters()) < _SMALL:
        threads = 1
    if threads is not None:
        torch.set_num_threads(threads)
