"""Settings that exclude or need each other, each with the reason.

Rules that pydantic cannot say field by field. A scenario keeps its private settings when only
``privacy.mode`` is set to ``none``, so mode ``none`` ignores them; the private modes are strict.
"""

from __future__ import annotations

from collections.abc import Iterator

from shared.config import RunConfig
from shared.errors import ConflictingSettings, EmptyPopulation, Problem


def find_conflicts(config: RunConfig) -> list[Problem]:
    """Return every rule that a scenario breaks, in the order of the file."""
    return [*_data(config), *_clients(config), *_privacy(config)]


def _data(config: RunConfig) -> Iterator[Problem]:
    """Check the data section."""
    data = config.data
    builtin = data.path.startswith("builtin:")
    if (data.prompt is None) != (data.response is None):
        yield _conflict(key="data.prompt", message="prompt and response go together.")
    if data.text is not None and data.prompt is not None:
        yield _conflict(
            key="data.text",
            message="text and prompt cannot be given together.",
            hint="Use text, or prompt with response.",
        )
    if not builtin and data.partitioner == "natural" and data.client is None:
        yield _conflict(
            key="data.client",
            message='partitioner "natural" needs the column that names the client.',
            hint='Or set data.partitioner to "iid", "dirichlet" or "shards".',
        )
    if data.partitioner == "dirichlet" and (data.label is None or data.dirichlet_alpha is None):
        yield _conflict(
            key="data.partitioner", message="dirichlet needs label and dirichlet_alpha."
        )
    if data.partitioner == "shards" and data.shards_per_client is None:
        yield _conflict(key="data.partitioner", message="shards needs shards_per_client.")


def _clients(config: RunConfig) -> Iterator[Problem]:
    """Check the clients section."""
    clients, data = config.clients, config.data
    if clients.population == 0:
        yield Problem(
            key="clients.population",
            message="found 0 clients, expected at least 1.",
            code=EmptyPopulation.code,
        )
    if clients.population is None and (
        data.partitioner != "natural" or data.path.startswith("builtin:")
    ):
        yield _conflict(key="clients.population", message="this partitioner needs a population.")
    if clients.population and clients.cohort is not None and clients.cohort > clients.population:
        yield Problem(
            key="clients.cohort",
            message=f"found {clients.cohort:g}, expected at most population "
            f"({clients.population}).",
        )
    if (clients.local_steps is None) == (clients.local_epochs is None):
        yield _conflict(
            key="clients.local_steps",
            message="the scenario needs exactly one of local_steps and local_epochs.",
        )


def _privacy(config: RunConfig) -> Iterator[Problem]:
    """Check the privacy section; mode none ignores the rest."""
    privacy, clients = config.privacy, config.clients
    if privacy.mode == "none":
        return
    for key in ("delta", "neighboring_relation"):
        if getattr(privacy, key) is None:
            yield _conflict(
                key=f"privacy.{key}", message=f'mode "{privacy.mode}" needs it; no default.'
            )
    if (privacy.epsilon is None) == (privacy.noise_multiplier is None):
        yield _conflict(
            key="privacy.epsilon",
            message=f'mode "{privacy.mode}" needs exactly one of epsilon and noise_multiplier.',
        )
    if privacy.mode == "client-central":
        if privacy.clipping_norm is None:
            yield _conflict(key="privacy.clipping_norm", message="client-central needs it.")
        if clients.max_participations is not None:
            yield _conflict(
                key="clients.max_participations",
                message="cannot be used together with client-central: a cap on participations "
                "breaks the independent sampling that the accountant assumes.",
            )
        return
    for key in ("max_grad_norm", "sampling_probability"):
        if getattr(privacy, key) is None:
            yield _conflict(key=f"privacy.{key}", message="mode example needs it.")
    if clients.local_steps is None:
        yield _conflict(
            key="clients.local_epochs",
            message="mode example needs local_steps: a number of steps that depends on the "
            "client's data would itself be a release.",
        )


def _conflict(*, key: str, message: str, hint: str = "") -> Problem:
    """Make a problem that is about two settings."""
    return Problem(key=key, message=message, hint=hint, code=ConflictingSettings.code)
