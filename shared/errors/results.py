"""What is wrong with adapters, audits and run folders: codes 40 to 59 and 80 to 89."""

from __future__ import annotations

from shared.errors.root import FedSLMError


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
