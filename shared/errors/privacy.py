"""What would weaken or hide a privacy guarantee: codes 20 to 29."""

from __future__ import annotations

from shared.errors.root import FedSLMError


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
