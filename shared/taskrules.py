"""Rules about what is trained: the variant of the adapter, and the task of the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from shared.adaptermethod import METHODS
from shared.classtally import MOST_LABELS
from shared.errors import Problem
from shared.methodrules import method_conflicts
from shared.problems import conflict

if TYPE_CHECKING:
    from shared.config import RunConfig

REFUSED_VARIANTS: Mapping[str, str] = MappingProxyType(
    {
        "dora": "its weight is m (W0 + B A) / |W0 + B A|, not linear in m, A or B: no mean of "
        "clients' tensors is the mean of their models under any policy, and |W0 + B A| belongs to "
        "each client's own quantised copy of the base.",
    }
)
"""Why each of the other variants is refused."""


def task_conflicts(config: RunConfig) -> Iterator[Problem]:
    """Yield what contradicts the variant of the adapter, or the task."""
    reason = REFUSED_VARIANTS.get(config.lora.variant)
    if reason is not None:
        yield conflict(
            key="lora.variant",
            message=f'"{config.lora.variant}" cannot be federated here: {reason}',
            hint='Use "lora" or "rslora"; "ia3" trains magnitudes alone, whose mean is exact.',
        )
    if config.lora.variant in METHODS:
        yield from method_conflicts(config)
    task = config.task
    if not task.classifies and task.labels:
        yield conflict(key="task.labels", message='needs task.kind = "classification".')
    if task.classifies:
        yield from _classification(config)


def _classification(config: RunConfig) -> Iterator[Problem]:
    """Check what goes with texts that are classified."""
    labels, data = config.task.labels, config.data
    unlike = len(set(labels)) == len(labels) and all(label.strip() == label for label in labels)
    if not (2 <= len(labels) <= MOST_LABELS and unlike and all(labels)):
        yield conflict(
            key="task.labels",
            message=f"found {len(labels)} labels, expected 2 to {MOST_LABELS} different ones, "
            "without white space around them.",
            hint="List them here: labels that are read off private data are a release of them.",
        )
    if data.label is None or data.text is None or data.path.startswith("builtin:"):
        yield conflict(
            key="data.label",
            message="classification needs data.text and data.label, the columns of text and label.",
        )
    if config.model.quantization != "none":
        yield conflict(
            key="model.quantization",
            message="classification trains its head in float32, on an encoder that is small.",
            hint='Set it to "none".',
        )
    if config.policy not in {"ffa", "fedavg"}:
        yield conflict(
            key="aggregation.policy",
            message=f'"{config.policy}" and classification: it handles pairs of factors, and the '
            "head is no pair.",
            hint='Use "ffa" or "fedavg"; the head is averaged exactly by both.',
        )
    if config.audit.profile != "none" or config.audit.canaries or config.audit.client_canaries:
        yield conflict(
            key="audit.profile",
            message="audits and canaries score the next token, which a classifier does not have.",
            hint='Set audit.profile to "none" and canaries to 0.',
        )
