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

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar


class FedSLMError(Exception):
    """The root of every error raised on purpose.

    Args:
        message: what was found and what was expected; safe to show and to log.
        hint: what the reader can do about it.
    """

    code: ClassVar[str] = "unexpected"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        """Return message and hint on one line."""
        return f"{self.message} {self.hint}".strip()

    def to_dict(self) -> dict[str, object]:
        """Return the JSON form that ``--json`` prints."""
        return {
            "error": self.code,
            "exit_code": self.exit_code,
            "message": self.message,
            "hint": self.hint,
        }


class UsageError(FedSLMError):
    """The command line cannot be understood."""

    code = "usage"
    exit_code = 2


class MissingDependency(FedSLMError):
    """A package behind an extra is not installed; the hint is the install line."""

    code = "missing-dependency"
    exit_code = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong in a scenario: its key path, what is wrong, what to do.

    ``code`` is the code of the :class:`ConfigError` subclass that the problem alone would raise.
    """

    key: str
    message: str
    hint: str = ""
    code: str = "invalid-value"

    def __str__(self) -> str:
        """Return ``key: message hint``."""
        return f"{self.key}: {self.message} {self.hint}".strip()


class ConfigError(FedSLMError, ValueError):
    """A scenario is wrong; ``problems`` lists everything found at once."""

    code = "config"
    exit_code = 10

    def __init__(self, message: str, *, hint: str = "", problems: Sequence[Problem] = ()) -> None:
        super().__init__(message, hint=hint)
        self.problems = tuple(problems)

    def to_dict(self) -> dict[str, object]:
        """Return the JSON form, with one object per problem."""
        problems = [{"key": p.key, "message": p.message, "hint": p.hint} for p in self.problems]
        return {**super().to_dict(), "problems": problems}


class UnknownKey(ConfigError):
    """A scenario has a section or key that does not exist."""

    code = "unknown-key"
    exit_code = 11


class InvalidValue(ConfigError):
    """A value is missing, has the wrong type, is not finite, or is out of range."""

    code = "invalid-value"
    exit_code = 12


class EmptyPopulation(ConfigError):
    """There is no client to train."""

    code = "empty-population"
    exit_code = 13


class ConflictingSettings(ConfigError):
    """Two settings exclude each other; the message says why."""

    code = "conflicting-settings"
    exit_code = 14


class ScenarioNotFound(ConfigError):
    """Neither a built-in scenario nor a file has this name."""

    code = "scenario-not-found"
    exit_code = 15


class PrivacyError(FedSLMError):
    """Something that would weaken or hide a privacy guarantee."""

    code = "privacy"
    exit_code = 20


class PrivacyBudgetExhausted(PrivacyError):
    """The next release would pass the cap; raised before any private data is touched."""

    code = "budget-exhausted"
    exit_code = 21

    def __init__(
        self, message: str, *, hint: str = "", spent: float, requested: float, cap: float
    ) -> None:
        super().__init__(message, hint=hint)
        self.spent = spent
        self.requested = requested
        self.cap = cap


class SensitivityError(PrivacyError):
    """A value is unbounded or not finite, or its bound and the mechanism disagree."""

    code = "sensitivity"
    exit_code = 22


class UnsupportedEvent(PrivacyError):
    """An accountant met an event that it cannot account for; it refuses, never ignores."""

    code = "unsupported-event"
    exit_code = 23


class PolicyRefused(PrivacyError):
    """The device's own policy refuses the round."""

    code = "policy-refused"
    exit_code = 24


class CalibrationError(PrivacyError):
    """No noise multiplier reaches the target."""

    code = "calibration"
    exit_code = 25


class LedgerError(PrivacyError):
    """The ledger cannot be read or written."""

    code = "ledger"
    exit_code = 26


class LedgerTampered(LedgerError):
    """The hash chain of the ledger is broken; names the first bad entry."""

    code = "ledger-tampered"
    exit_code = 27


class LedgerConflict(LedgerError):
    """An entry contradicts the ledger: another plan, delta, relation or scope."""

    code = "ledger-conflict"
    exit_code = 28


class ProtocolError(FedSLMError):
    """A message does not follow the protocol."""

    code = "protocol"
    exit_code = 30


class SchemaMismatch(ProtocolError):
    """Server and client disagree on plan, configuration, shapes or version."""

    code = "schema-mismatch"
    exit_code = 31


class QuorumNotReached(ProtocolError):
    """Too few clients answered."""

    code = "quorum"
    exit_code = 32


class ClientFailed(ProtocolError):
    """A client answered with an error code."""

    code = "client-failed"
    exit_code = 33


class SecureAggregationError(ProtocolError):
    """A message of the secure aggregation is not what an honest party would have sent."""

    code = "secure-aggregation"
    exit_code = 34


class AdapterError(FedSLMError):
    """An adapter cannot be used."""

    code = "adapter"
    exit_code = 40


class AdapterIncompatible(AdapterError):
    """The adapter belongs to another base model or has other shapes."""

    code = "adapter-incompatible"
    exit_code = 41


class AdapterCorrupt(AdapterError):
    """The adapter's files are damaged."""

    code = "adapter-corrupt"
    exit_code = 42


class AdapterUntrusted(AdapterError):
    """Raised when signature, base model or audit verdict of an adapter is not what it must be."""

    code = "adapter-untrusted"
    exit_code = 43


class AuditError(FedSLMError):
    """An audit cannot be run or its data are unusable."""

    code = "audit"
    exit_code = 50


class TooFewCanaries(AuditError):
    """There are too few canaries on one side for a number to mean anything."""

    code = "too-few-canaries"
    exit_code = 51


class MissingArtefact(AuditError):
    """An audit was asked for without something that it reads."""

    code = "missing-artefact"
    exit_code = 52


class ReportInvalid(AuditError):
    """An audit report does not follow from its own evidence, or its signature does not hold."""

    code = "report-invalid"
    exit_code = 53


class ReleaseRefused(AuditError):
    """The release gate refuses an adapter: an audit found a violation, or none was run."""

    code = "release-refused"
    exit_code = 54


class DataError(FedSLMError):
    """Training data cannot be used."""

    code = "data"
    exit_code = 60


class DataFileNotFound(DataError):
    """A data file does not exist or cannot be read."""

    code = "data-file-not-found"
    exit_code = 61


class MalformedRow(DataError):
    """A row cannot be parsed; names file, line and column, never the content."""

    code = "malformed-row"
    exit_code = 62


class NoUsableText(DataError):
    """A client has no text left to train on."""

    code = "no-usable-text"
    exit_code = 63


class ModelError(FedSLMError):
    """A base model cannot be used."""

    code = "model"
    exit_code = 70


class ModelNotFound(ModelError):
    """The base model is neither built in, nor a folder, nor reachable on a hub."""

    code = "model-not-found"
    exit_code = 71


class TokenizerMissing(ModelError):
    """The base model folder has no tokenizer."""

    code = "tokenizer-missing"
    exit_code = 72


class UnsupportedModel(ModelError):
    """The architecture or a module of it is not supported; says what would be needed."""

    code = "unsupported-model"
    exit_code = 73


class BaseModelMismatch(ModelError):
    """The frozen base changed or is not the one that was announced."""

    code = "base-model-mismatch"
    exit_code = 74


class RunFolderError(FedSLMError):
    """The run folder cannot be used."""

    code = "run-folder"
    exit_code = 80


class OutOfDisk(RunFolderError):
    """No space is left for the run folder; what was finished is intact."""

    code = "out-of-disk"
    exit_code = 81


class RunFolderExists(RunFolderError):
    """The run folder already holds a run."""

    code = "run-folder-exists"
    exit_code = 82


class NotResumable(RunFolderError):
    """The run folder holds nothing that can be resumed under this scenario."""

    code = "not-resumable"
    exit_code = 83


class FleetError(FedSLMError):
    """Raised when a server's or a device's folder, process or connection is not as it must be."""

    code = "fleet"
    exit_code = 90


class EnrolmentRefused(FleetError):
    """Raised for an enrolment token that is unknown, expired, used up or not for this server."""

    code = "enrolment-refused"
    exit_code = 91


class AccessDenied(FleetError):
    """Raised when a node or a person is not enrolled, was revoked, or may not do this."""

    code = "access-denied"
    exit_code = 92


class CertificateInvalid(FleetError):
    """Raised for a key, request or certificate that is damaged, expired or of another authority."""

    code = "certificate-invalid"
    exit_code = 93


class ServerUnreachable(FleetError):
    """Raised when the server does not answer, or something else answers in its place."""

    code = "server-unreachable"
    exit_code = 94


class AlreadyRunning(FleetError):
    """Raised when another process runs from the same folder or holds the same address."""

    code = "already-running"
    exit_code = 95


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
