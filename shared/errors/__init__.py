"""Every error that fedslm raises on purpose, with a stable code and exit code.

The tree::

    FedSLMError                       1
    ├── UsageError                    2   the command line is wrong
    ├── MissingDependency             3   an extra is not installed
    ├── ConfigError                  10   the scenario is wrong (all problems at once)
    │   ├── UnknownKey               11
    │   ├── InvalidValue             12
    │   ├── EmptyPopulation          13
    │   ├── ConflictingSettings      14
    │   └── ScenarioNotFound         15
    ├── PrivacyError                 20
    │   ├── PrivacyBudgetExhausted   21   raised before the release
    │   ├── SensitivityError         22   bound and mechanism disagree
    │   ├── UnsupportedEvent         23   the accountant does not know it
    │   ├── PolicyRefused            24   the device says no
    │   ├── CalibrationError         25
    │   └── LedgerError              26
    │       ├── LedgerTampered       27
    │       └── LedgerConflict       28
    ├── ProtocolError                30
    │   ├── SchemaMismatch           31
    │   ├── QuorumNotReached         32
    │   ├── ClientFailed             33
    │   └── SecureAggregationError   34
    ├── AdapterError                 40
    │   ├── AdapterIncompatible      41
    │   ├── AdapterCorrupt           42
    │   └── AdapterUntrusted         43
    ├── AuditError                   50
    │   ├── TooFewCanaries           51
    │   ├── MissingArtefact          52
    │   ├── ReportInvalid            53
    │   └── ReleaseRefused           54
    ├── DataError                    60
    │   ├── DataFileNotFound         61
    │   ├── MalformedRow             62
    │   └── NoUsableText             63
    ├── ModelError                   70
    │   ├── ModelNotFound            71
    │   ├── TokenizerMissing         72
    │   ├── UnsupportedModel         73
    │   └── BaseModelMismatch        74
    ├── RunFolderError               80
    │   ├── OutOfDisk                81
    │   ├── RunFolderExists          82
    │   └── NotResumable             83
    └── FleetError                   90
        ├── EnrolmentRefused         91
        ├── AccessDenied             92
        ├── CertificateInvalid       93
        ├── ServerUnreachable        94
        └── AlreadyRunning           95

A message says what was found (``name=value``) and what was expected; the hint says what to do.
Messages never hold training text, prompts or tensor values. Across the trust boundary only
``code`` travels (see :mod:`shared.redact`). Each code has a heading in ``docs/errors.md``.
"""

from __future__ import annotations

from collections.abc import Iterator

from shared.errors.exchange import (
    AccessDenied,
    AlreadyRunning,
    CertificateInvalid,
    ClientFailed,
    EnrolmentRefused,
    FleetError,
    ProtocolError,
    QuorumNotReached,
    SchemaMismatch,
    SecureAggregationError,
    ServerUnreachable,
)
from shared.errors.inputs import (
    BaseModelMismatch,
    DataError,
    DataFileNotFound,
    MalformedRow,
    ModelError,
    ModelNotFound,
    NoUsableText,
    TokenizerMissing,
    UnsupportedModel,
)
from shared.errors.privacy import (
    CalibrationError,
    LedgerConflict,
    LedgerError,
    LedgerTampered,
    PolicyRefused,
    PrivacyBudgetExhausted,
    PrivacyError,
    SensitivityError,
    UnsupportedEvent,
)
from shared.errors.results import (
    AdapterCorrupt,
    AdapterError,
    AdapterIncompatible,
    AdapterUntrusted,
    AuditError,
    MissingArtefact,
    NotResumable,
    OutOfDisk,
    ReleaseRefused,
    ReportInvalid,
    RunFolderError,
    RunFolderExists,
    TooFewCanaries,
)
from shared.errors.root import FedSLMError, MissingDependency, UsageError
from shared.errors.scenario import (
    ConfigError,
    ConflictingSettings,
    EmptyPopulation,
    InvalidValue,
    Problem,
    ScenarioNotFound,
    UnknownKey,
)

__all__ = [
    "AccessDenied",
    "AdapterCorrupt",
    "AdapterError",
    "AdapterIncompatible",
    "AdapterUntrusted",
    "AlreadyRunning",
    "AuditError",
    "BaseModelMismatch",
    "CalibrationError",
    "CertificateInvalid",
    "ClientFailed",
    "ConfigError",
    "ConflictingSettings",
    "DataError",
    "DataFileNotFound",
    "EmptyPopulation",
    "EnrolmentRefused",
    "FedSLMError",
    "FleetError",
    "InvalidValue",
    "LedgerConflict",
    "LedgerError",
    "LedgerTampered",
    "MalformedRow",
    "MissingArtefact",
    "MissingDependency",
    "ModelError",
    "ModelNotFound",
    "NoUsableText",
    "NotResumable",
    "OutOfDisk",
    "PolicyRefused",
    "PrivacyBudgetExhausted",
    "PrivacyError",
    "Problem",
    "ProtocolError",
    "QuorumNotReached",
    "ReleaseRefused",
    "ReportInvalid",
    "RunFolderError",
    "RunFolderExists",
    "ScenarioNotFound",
    "SchemaMismatch",
    "SecureAggregationError",
    "SensitivityError",
    "ServerUnreachable",
    "TokenizerMissing",
    "TooFewCanaries",
    "UnknownKey",
    "UnsupportedEvent",
    "UnsupportedModel",
    "UsageError",
    "all_errors",
]


def all_errors() -> Iterator[type[FedSLMError]]:
    """Yield every error class with a code of its own, parents before children.

    Classes that only refine another one, inside one module, are told by the other's code.
    """
    queue: list[type[FedSLMError]] = [FedSLMError]
    while queue:
        cls = queue.pop(0)
        if "code" in vars(cls):
            yield cls
        queue.extend(cls.__subclasses__())
