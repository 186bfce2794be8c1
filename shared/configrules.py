"""Settings that exclude or need each other, each with the reason.

Rules that pydantic cannot say field by field. A scenario keeps its private settings when only
``privacy.mode`` is set to ``none``, so mode ``none`` ignores them; the private modes are strict.
"""

from __future__ import annotations

from collections.abc import Iterator

from shared.attackrules import attack_conflicts
from shared.config import ExampleSection, PrivacySection, RunConfig
from shared.devicerules import device_problems
from shared.errors import EmptyPopulation, Problem
from shared.linkrules import link_problems
from shared.mixturerules import mixture_conflicts
from shared.policyrules import policy_conflicts
from shared.problems import conflict
from shared.rankrules import rank_conflicts
from shared.robustrules import robust_conflicts
from shared.schedulerules import schedule_problems
from shared.stoppingrules import stopping_problems
from shared.stragglerrules import straggler_conflicts
from shared.taskrules import task_conflicts


def find_conflicts(config: RunConfig) -> list[Problem]:
    """Return every rule that a scenario breaks, in the order of the file."""
    return [
        *task_conflicts(config),
        *_model(config),
        *mixture_conflicts(config),
        *_data(config),
        *_clients(config),
        *_privacy(config),
        *policy_conflicts(config),
        *rank_conflicts(config),
        *schedule_problems(config),
        *stopping_problems(config),
        *link_problems(config),
        *straggler_conflicts(config),
        *robust_conflicts(config),
        *attack_conflicts(config),
        *_audit(config),
        *_performance(config),
        *device_problems(config),
    ]


def _model(config: RunConfig) -> Iterator[Problem]:
    """Check the precision of products with the base."""
    if config.model.products == "bfloat16" and config.model.quantization == "none":
        yield conflict(
            key="model.compute_dtype",
            message='"bfloat16" and a base that is not quantised: its weights are held in float32, '
            "and would be rounded again for every product.",
            hint='Set model.quantization, or model.compute_dtype to "float32".',
        )


def _data(config: RunConfig) -> Iterator[Problem]:
    """Check the data section."""
    data = config.data
    builtin = data.path.startswith("builtin:")
    if (data.prompt is None) != (data.response is None):
        yield conflict(key="data.prompt", message="prompt and response go together.")
    if data.text is not None and data.prompt is not None:
        yield conflict(
            key="data.text",
            message="text and prompt cannot be given together.",
            hint="Use text, or prompt with response.",
        )
    if not builtin and data.partitioner == "natural" and data.client is None:
        yield conflict(
            key="data.client",
            message='partitioner "natural" needs the column that names the client.',
            hint='Or set data.partitioner to "iid", "dirichlet" or "shards".',
        )
    if data.partitioner == "dirichlet" and (data.label is None or data.dirichlet_alpha is None):
        yield conflict(key="data.partitioner", message="dirichlet needs label and dirichlet_alpha.")
    if data.partitioner == "shards" and data.shards_per_client is None:
        yield conflict(key="data.partitioner", message="shards needs shards_per_client.")


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
        yield conflict(key="clients.population", message="this partitioner needs a population.")
    if clients.population and clients.cohort is not None and clients.cohort > clients.population:
        yield Problem(
            key="clients.cohort",
            message=f"found {clients.cohort:g}, expected at most population "
            f"({clients.population}).",
        )
    if (clients.local_steps is None) == (clients.local_epochs is None):
        yield conflict(
            key="clients.local_steps",
            message="the scenario needs exactly one of local_steps and local_epochs.",
        )


def _privacy(config: RunConfig) -> Iterator[Problem]:
    """Check the privacy section; mode none ignores the rest."""
    privacy = config.privacy
    if privacy.mode == "none":
        return
    yield from _guarantee("privacy", privacy, privacy.mode)
    if privacy.mode == "example":
        yield from _steps(config, "privacy", privacy)
        if config.example.used:
            yield conflict(
                key="example",
                message="mode example says its DP-SGD in [privacy], not in [example].",
                hint="Choose a client mode to have both, or drop the section.",
            )
    else:
        yield from _client_mode(config)
        if config.example.used:
            yield from _guarantee("example", config.example, "DP-SGD beside a client mode")
            yield from _steps(config, "example", config.example)
    yield from _mechanism(config)


def _guarantee(section: str, said: PrivacySection | ExampleSection, who: str) -> Iterator[Problem]:
    """Check what every guarantee must say."""
    for key in ("delta", "neighboring_relation"):
        if getattr(said, key) is None:
            yield conflict(key=f"{section}.{key}", message=f'mode "{who}" needs it; no default.')
    if (said.epsilon is None) == (said.noise_multiplier is None):
        yield conflict(
            key=f"{section}.epsilon",
            message=f'mode "{who}" needs exactly one of epsilon and noise_multiplier.',
        )


def _steps(
    config: RunConfig, section: str, said: PrivacySection | ExampleSection
) -> Iterator[Problem]:
    """Check the settings of DP-SGD inside a client."""
    for key in ("max_grad_norm", "sampling_probability"):
        if getattr(said, key) is None:
            yield conflict(key=f"{section}.{key}", message="mode example needs it.")
    if config.clients.local_steps is None:
        yield conflict(
            key="clients.local_epochs",
            message="mode example needs local_steps: a number of steps that depends on the "
            "client's data would itself be a release.",
        )


def _client_mode(config: RunConfig) -> Iterator[Problem]:
    """Check the settings of a mode that protects whole clients."""
    privacy, mode = config.privacy, config.privacy.mode
    if privacy.clipping_norm is None:
        yield conflict(key="privacy.clipping_norm", message=f"{mode} needs it.")
    if config.clients.max_participations is not None:
        yield conflict(
            key="clients.max_participations",
            message=f"cannot be used together with {mode}: a cap on participations "
            "breaks the independent sampling that the accountant assumes.",
        )
    if mode != "client-distributed" and privacy.server_epsilon is not None:
        yield conflict(
            key="privacy.server_epsilon",
            message=f"{mode} has a server that is trusted; only client-distributed bounds it.",
        )
    if mode == "client-distributed":
        for key in ("honest_fraction", "survivor_fraction", "min_cohort"):
            if getattr(privacy, key) is None:
                yield conflict(key=f"privacy.{key}", message=f"{mode} needs it; no default.")


def _mechanism(config: RunConfig) -> Iterator[Problem]:
    """Check mechanisms that go with client-central alone, and not with each other."""
    privacy = config.privacy
    extras = {
        "mechanism": privacy.mechanism == "correlated",
        "clipping_quantile": privacy.clipping_quantile is not None,
    }
    for key, used in extras.items():
        if used and privacy.mode != "client-central":
            yield conflict(
                key=f"privacy.{key}",
                message=f"cannot be used together with {privacy.mode}: the server does it, on "
                "clipped updates, in client-central.",
            )
    if all(extras.values()):
        yield conflict(
            key="privacy.clipping_quantile",
            message="cannot be used together with correlated noise: one clip holds for the run.",
        )


def _audit(config: RunConfig) -> Iterator[Problem]:
    """Check the audit section."""
    audit = config.audit
    if len(set(audit.kinds)) != len(audit.kinds):
        yield Problem(key="audit.kinds", message="names a kind twice, expected each at most once.")
    if audit.canaries > 0 and not audit.kinds:
        yield conflict(
            key="audit.kinds",
            message=f"names no kind, and audit.canaries is {audit.canaries}.",
            hint='Name "secret", "rare-token" or both, or set audit.canaries to 0.',
        )
    if audit.client_canaries > 0 and config.privacy.mode == "example":
        yield conflict(
            key="audit.client_canaries",
            message="cannot be used together with example: an invented client is a client's "
            "update, and mode example protects single examples.",
            hint='Use audit.canaries there, or a client mode or "none".',
        )


def _performance(config: RunConfig) -> Iterator[Problem]:
    """Check the performance section."""
    performance = config.performance
    if performance.client_gpus > 0 and not performance.device.startswith("cuda"):
        yield conflict(
            key="performance.client_gpus",
            message=f"client_gpus={performance.client_gpus:g} and device={performance.device!r}: "
            "actors would hold GPUs that nothing computes on.",
            hint='Set performance.device to "cuda", or leave client_gpus out.',
        )
    if performance.client_gpus > 1 and not performance.client_gpus.is_integer():
        yield conflict(
            key="performance.client_gpus",
            message=f"found {performance.client_gpus:g}, expected a share of one GPU or a whole "
            "number: Ray splits none but the first.",
        )
    workers, threads = config.performance.workers, config.performance.threads or 1
    if workers != "auto" and workers > 1 and threads > 1:
        yield conflict(
            key="performance.workers",
            message=f"workers={workers} and threads={threads}: several threads do not survive the "
            "fork that makes a worker.",
            hint="Leave one of them out: workers share many small clients, threads a large base.",
        )
