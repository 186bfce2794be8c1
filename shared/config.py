"""The scenario: every setting of a run, validated once at the boundary.

Sections are frozen pydantic models that refuse unknown keys, NaN and infinity. Only the
``performance`` section may not change a guarantee; :meth:`RunConfig.digest` covers all others and
travels in every message, ledger entry and manifest. Epsilon, delta, unit and neighbouring relation
have no defaults: a scenario says them.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, Strict

from shared.canonical import canonical_json, sha256_hex
from shared.computedtype import ComputeDtype, default_compute_dtype
from shared.configaggregation import AggregationSection
from shared.configattack import AttackSection
from shared.configclock import BufferSection, ClockSection
from shared.configdevices import DevicesSection
from shared.configevaluation import EvaluationSection
from shared.configexample import ExampleSection as ExampleSection
from shared.configlink import LinkSection
from shared.configmixture import MixtureSection
from shared.configperformance import PerformanceSection
from shared.configpersonal import PersonalSection
from shared.configstopping import StoppingSection
from shared.configtask import TaskSection
from shared.configtypes import (
    NonNegativeInt,
    OpenUnit,
    PositiveInt,
    PositiveReal,
    Probability,
    Section,
)
from shared.policies import Policy, policy_in_force
from shared.schedules import ScheduleName

Mode = Literal["none", "example", "client-central", "client-distributed"]
CanaryKind = Literal["secret", "rare-token"]


class RunSection(Section):
    """Which run this is."""

    name: str = Field(description="name of the scenario, used for the run folder")
    rounds: PositiveInt = Field(description="number of training rounds")
    seed: NonNegativeInt = Field(default=0, description="seed of data order, init and simulation")
    engine: Literal["inprocess", "flower"] = Field(
        default="inprocess", description="in this process, or Flower's own simulation engine"
    )
    warm_start: str | None = Field(
        default=None, description="finished run, or its adapter folder, to go on from"
    )


class ModelSection(Section):
    """The frozen base model."""

    base: str = Field(default="demo", description='"demo", a transformers folder, or a hub id')
    quantization: Literal["none", "int8", "torchao-int8", "int4", "nf4"] = Field(
        default="none", description="how the frozen base is stored"
    )
    compute_dtype: ComputeDtype | None = Field(
        default=None,
        description="of products with a quantised base; default bfloat16 for nf4, else float32",
    )
    revision: str | None = Field(default=None, description="hub revision; pin it")

    @property
    def products(self) -> ComputeDtype:
        """The precision of products with the frozen base."""
        return self.compute_dtype or default_compute_dtype(self.quantization)


class LoraSection(Section):
    """The adapter."""

    r: PositiveInt = Field(default=4, description="rank")
    alpha: PositiveReal = Field(default=8.0, description="scale numerator; s = alpha / r")
    variant: Literal["lora", "rslora", "dora", "ia3", "prompt"] = Field(
        default="lora",
        description='"lora", "rslora" (s = alpha / sqrt(r)), "ia3" or "prompt", which have no r or '
        'alpha; "dora" is refused with the reason',
    )
    prompt_tokens: PositiveInt = Field(default=8, description="vectors of a prompt")
    target_modules: Literal["all-linear"] | tuple[str, ...] = Field(
        default="all-linear", description="module names that carry an adapter"
    )
    dropout: Annotated[float, Strict(), Field(ge=0, lt=1)] = Field(
        default=0.0, description="dropout on the adapter's input"
    )
    seed: NonNegativeInt | None = Field(
        default=None, description="seed of the first A; default run.seed"
    )


class DataSection(Section):
    """The private text and how it is dealt to clients."""

    path: str = Field(description='"builtin:clinics", a file, or "hf:<dataset id>"')
    format: Literal["auto", "jsonl", "csv", "parquet", "text", "datasets", "builtin"] = Field(
        default="auto", description="format of the file; auto goes by its ending"
    )
    text: str | None = Field(default=None, description="column that holds the text")
    prompt: str | None = Field(default=None, description="column that holds the prompt")
    response: str | None = Field(default=None, description="column that holds the response")
    template: str = Field(
        default="plain", description='"plain", "chat", or text with {prompt} and {response}'
    )
    client: str | None = Field(default=None, description="column that names the client")
    partitioner: Literal["natural", "iid", "dirichlet", "shards"] = Field(
        default="natural", description="how records become clients"
    )
    dirichlet_alpha: PositiveReal | None = Field(
        default=None, description="concentration; smaller means more different clients"
    )
    label: str | None = Field(default=None, description="column for dirichlet and shards")
    shards_per_client: PositiveInt | None = Field(default=None, description="shards per client")
    min_records: PositiveInt = Field(default=1, description="drop natural clients with fewer")
    max_records: PositiveInt | None = Field(
        default=None, description="bound on the records of one client"
    )
    records: PositiveInt | None = Field(
        default=None, description="records per client of the built-in corpus"
    )
    max_length: PositiveInt = Field(default=128, description="tokens per example, cut beyond")
    holdout: Annotated[float, Strict(), Field(ge=0, lt=1)] = Field(
        default=0.2, description="share of each client's records that is never trained on"
    )
    split: str | None = Field(default=None, description="split of a datasets-library id")


class ClientsSection(Section):
    """Who takes part and what each does in a round."""

    population: NonNegativeInt | None = Field(
        default=None, description="number of clients; natural data may leave it out"
    )
    cohort: PositiveReal | None = Field(
        default=None, description="expected number of clients a round; default everyone"
    )
    local_steps: PositiveInt | None = Field(default=None, description="optimizer steps a round")
    local_epochs: PositiveReal | None = Field(default=None, description="or passes over the data")
    batch_size: PositiveInt = Field(default=8, description="examples a step (expected, in example)")
    learning_rate: PositiveReal = Field(default=0.1, description="client learning rate")
    optimizer: Literal["sgd", "adamw"] = Field(default="sgd", description="client optimizer")
    schedule: ScheduleName = Field(
        default="constant", description="client learning rate over the rounds"
    )
    warmup_rounds: NonNegativeInt = Field(
        default=0, description="first rounds, in which the client learning rate rises"
    )
    max_participations: PositiveInt | None = Field(
        default=None, description="rounds one client may take part in (example mode)"
    )


class ServerSection(Section):
    """What the server does with the mean update; post-processing of the release."""

    optimizer: Literal["mean", "momentum", "adam"] = Field(
        default="mean", description="how the mean update moves the adapter"
    )
    learning_rate: PositiveReal = Field(default=1.0, description="server learning rate")
    momentum: Annotated[float, Strict(), Field(ge=0, lt=1)] = Field(
        default=0.9, description="decay of the first moment"
    )
    second_momentum: Annotated[float, Strict(), Field(ge=0, lt=1)] = Field(
        default=0.99, description="decay of adam's second moment"
    )
    adaptivity: PositiveReal = Field(default=1e-3, description="adam's tau, added to the root")
    schedule: ScheduleName = Field(
        default="constant", description="server learning rate over the rounds"
    )
    averaging: Annotated[float, Strict(), Field(ge=0, lt=1)] = Field(
        default=0.0, description="share of the last rounds whose adapters are averaged"
    )
    quorum: Annotated[float, Strict(), Field(ge=0, le=1)] = Field(
        default=0.5, description="share of the cohort that must answer"
    )
    deadline_seconds: PositiveReal = Field(default=600.0, description="wait for a round")
    over_selection: Annotated[float, Strict(), Field(ge=1)] = Field(
        default=1.0, description="ask so many times the cohort, and leave out who is late"
    )


class PrivacySection(Section):
    """The guarantee; say it, nothing here is assumed."""

    mode: Mode = Field(description='"none", "example", "client-central" or "client-distributed"')
    neighboring_relation: Literal["add-or-remove-one", "replace-one"] | None = Field(
        default=None, description="which neighbouring data sets are compared"
    )
    epsilon: PositiveReal | None = Field(default=None, description="target; noise is derived")
    noise_multiplier: PositiveReal | None = Field(
        default=None, description="noise stddev over the clip; epsilon is derived"
    )
    delta: OpenUnit | None = Field(default=None, description="failure probability")
    clipping_norm: PositiveReal | None = Field(
        default=None, description="L2 bound of a whole client update (client modes)"
    )
    max_grad_norm: PositiveReal | None = Field(
        default=None, description="L2 bound of one example's gradient (example)"
    )
    sampling_probability: Probability | None = Field(
        default=None, description="chance of an example to be in a local step (example)"
    )
    cap: PositiveReal | None = Field(
        default=None, description="epsilon that the ledger never lets pass; default the plan's"
    )
    noise_source: Literal["os-entropy", "seeded-simulation"] = Field(
        default="os-entropy", description="seeded noise repeats a run and protects nobody"
    )
    mechanism: Literal["gaussian", "correlated"] = Field(
        default="gaussian",
        description="noise of the server; correlated noise needs no secret sampling of clients",
    )
    bands: PositiveInt | None = Field(
        default=None,
        description="bands of correlated noise; default the rounds between participations",
    )
    noise_schedule: Literal["constant", "linear"] = Field(
        default="constant", description="noise multiplier over the rounds, in up to eight stairs"
    )
    noise_final: PositiveReal | None = Field(
        default=None, description="noise of the last rounds over that of the first (linear)"
    )
    clipping_quantile: OpenUnit | None = Field(
        default=None,
        description="share of updates that the clip should let through; moves clipping_norm",
    )
    clipping_learning_rate: PositiveReal = Field(
        default=0.2, description="how fast the clip follows its quantile"
    )
    count_noise_stddev: PositiveReal | None = Field(
        default=None,
        description="noise on the count that moves the clip; default a twentieth of the cohort",
    )
    honest_fraction: Probability | None = Field(
        default=None,
        description="share of a cohort that does not collude with the server (client-distributed)",
    )
    survivor_fraction: Probability | None = Field(
        default=None,
        description="share of a cohort that must be in the sum (client-distributed)",
    )
    min_cohort: Annotated[int, Strict(), Field(ge=3)] | None = Field(
        default=None, description="smallest cohort that is summed (client-distributed)"
    )
    server_epsilon: PositiveReal | None = Field(
        default=None,
        description="target against the server itself (client-distributed); may ask for more noise",
    )


class AuditSection(Section):
    """How hard the adapter is attacked before it is shown."""

    canaries: NonNegativeInt = Field(
        default=0, description="planted secrets of each kind; a fair coin keeps each in or out"
    )
    kinds: tuple[CanaryKind, ...] = Field(
        default=("secret", "rare-token"),
        description='"secret" is four random words, "rare-token" one token used nowhere else',
    )
    repeats: PositiveInt = Field(default=1, description="copies of a canary in its client's data")
    references: PositiveInt = Field(
        default=512, description="fresh secrets of each kind to rank against, where there are any"
    )
    client_canaries: NonNegativeInt = Field(
        default=0, description="invented clients with a random direction as update (client modes)"
    )
    releases: bool = Field(
        default=True, strict=True, description="keep what every round released, for the audits"
    )
    profile: Literal["none", "smoke", "release", "extended"] = Field(
        default="smoke", description="which audits run at the end"
    )


class RunConfig(Section):
    """A whole scenario."""

    run: RunSection
    model: ModelSection = ModelSection()
    task: TaskSection = TaskSection()
    lora: LoraSection = LoraSection()
    mixture: MixtureSection = MixtureSection()
    data: DataSection
    clients: ClientsSection = ClientsSection()
    server: ServerSection = ServerSection()
    clock: ClockSection = ClockSection()
    buffer: BufferSection = BufferSection()
    privacy: PrivacySection
    example: ExampleSection = ExampleSection()
    aggregation: AggregationSection = AggregationSection()
    link: LinkSection = LinkSection()
    attack: AttackSection = AttackSection()
    audit: AuditSection = AuditSection()
    evaluation: EvaluationSection = EvaluationSection()
    personal: PersonalSection = PersonalSection()
    stopping: StoppingSection = StoppingSection()
    performance: PerformanceSection = PerformanceSection()
    devices: DevicesSection = DevicesSection()

    @property
    def policy(self) -> str:
        """The aggregation policy in force: ffa under DP, fedavg without, unless said."""
        if self.aggregation.policy is not None:
            return self.aggregation.policy
        return "fedavg" if self.privacy.mode == "none" else "ffa"

    @property
    def policy_facts(self) -> Policy:
        """What the policy in force moves and sends."""
        said = self.aggregation
        return policy_in_force(self.policy, share=said.share, refactors=said.refactor_every > 0)

    @property
    def trained_kinds(self) -> str:
        """Which factors move over the run, and are sent to clients: ``"B"`` or ``"AB"``."""
        return self.policy_facts.moved

    def sent_kinds(self, server_round: int) -> str:
        """Return which factors clients train and send in a round, counted from 1."""
        return self.policy_facts.sent(server_round)

    @property
    def asked_cohort(self) -> float | None:
        """Expected number of clients that a round asks, with over-selection; None is everyone."""
        cohort = self.clients.cohort
        return None if cohort is None else cohort * self.server.over_selection

    @property
    def adapter_seed(self) -> int:
        """The public seed from which everybody makes the first A."""
        return self.run.seed if self.lora.seed is None else self.lora.seed

    @property
    def steps_are_private(self) -> bool:
        """Tell whether local steps are DP-SGD: mode example, or DP-SGD beside a client mode."""
        return self.privacy.mode == "example" or (self.privacy.mode != "none" and self.example.used)

    def digest(self) -> str:
        """Return the SHA-256 of everything but the ``performance`` section."""
        return sha256_hex(canonical_json(self.model_dump(mode="json", exclude={"performance"})))

    def to_json(self) -> str:
        """Return the canonical JSON that :func:`shared.configfile.parse_json` reads."""
        return canonical_json(self.model_dump(mode="json"))


def sections() -> dict[str, type[Section]]:
    """Return the section models by name, in the order of a scenario file."""
    return {name: _section(field.annotation) for name, field in RunConfig.model_fields.items()}


def _section(annotation: object) -> type[Section]:
    """Return the section class of a field."""
    if not (isinstance(annotation, type) and issubclass(annotation, Section)):
        msg = f"{annotation!r} is not a section."
        raise TypeError(msg)
    return annotation
