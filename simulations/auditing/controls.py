"""Positive controls: the same audits where they must succeed.

A null result says nothing unless the same attack is known to work. Two controls are made here:

* a *planted leak*: the released adapter, trained further on the included canaries alone and without
  any privacy. It shows that these attacks see these canaries when they have been memorised.
* the *non-private twin*: the same scenario in mode ``none``, trained from the start. It shows more:
  that the canaries would have been learned in this very training set-up if privacy had not stopped
  it. It costs a whole run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from server.audit.protocol import AuditContext, Control, Finding
from server.audit.run import run_audits
from shared.errors import ReportInvalid
from shared.seeding import data_rng
from simulations.forks import Fork

if TYPE_CHECKING:
    from client.adapter import AdaptedModel
    from client.training import Example

LEAK = "planted leak: this adapter, trained further on the included canaries without privacy"
TWIN = "the non-private twin of this run"
PASSES = 40
LEARNING_RATE = 5e-3
BATCH = 32


def controls_from(
    report: Mapping[str, Any], *, source: str, canaries: Mapping[str, Any]
) -> dict[str, Control]:
    """Read what each audit found on a control run.

    Args:
        report: the parsed ``audit.json`` of the control.
        source: what to call it.
        canaries: counts of this run's canaries, to tell whether the two can be compared.

    Returns:
        One control per audit of the control's report.

    Raises:
        ReportInvalid: if the control claims an epsilon itself, or its report is malformed.
    """
    if report.get("epsilon_claimed") is not None:
        msg = "the control run claims an epsilon, expected a run without privacy."
        raise ReportInvalid(msg, hint="Run the same scenario with --set privacy.mode=none.")
    findings = report.get("findings")
    if not isinstance(findings, Sequence):
        msg = "the control's report has no findings, expected an audit.json."
        raise ReportInvalid(msg)
    comparable = _counts(report.get("canaries")) == _counts(canaries)
    return {
        str(found["audit"]): Control(
            source=source,
            detected=found.get("detected"),
            comparable=comparable,
            value=found.get("value"),
            interval=_pair(found.get("interval")),
        )
        for found in findings
        if isinstance(found, Mapping) and "audit" in found
    }


def leak_controls(
    context: AuditContext,
    model: AdaptedModel,
    examples: Sequence[Example],
    names: Sequence[str],
    *,
    seed: int,
) -> dict[str, Control]:
    """Run audits on a planted leak and return what they found.

    Args:
        context: the audit's context; its target reads ``model``.
        model: the model under audit; it is as before when this returns.
        examples: the included canaries, as training sees them.
        names: which audits.
        seed: of the order of examples.

    Returns:
        One control per audit.
    """
    with planted_leak(model, examples, seed=seed):
        report = run_audits(context, names, profile="control")
    return {finding.audit: _control(finding) for finding in report.findings}


class ControlsElsewhere(Mapping[str, Control]):
    """Controls that a forked process makes while this one runs audits that need none.

    Args:
        names: which audits get a control.
        make: makes all of them; called here if the other process fails.
    """

    def __init__(self, names: Sequence[str], make: Callable[[], Mapping[str, Control]]) -> None:
        self._names = tuple(names)
        self._make = make
        self._made: Mapping[str, Control] | None = None
        self._fork = Fork(self._serve)
        self._fork.ask(b"")

    def __getitem__(self, name: str) -> Control:
        """Return a control; waits for all of them, unless there is none for this audit."""
        if name not in self._names:
            raise KeyError(name)
        if self._made is None:
            answer = self._fork.answer()
            self._fork.close()
            self._made = self._make() if answer is None else _controls(answer)
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        """Return the names of the audits that get a control."""
        return iter(self._names)

    def __len__(self) -> int:
        """Return how many audits get one."""
        return len(self._names)

    def close(self) -> None:
        """Let the other process go, whatever it is doing."""
        self._fork.close()

    def _serve(self, request: bytes) -> bytes:
        """Make the controls and write them; runs in the other process."""
        del request
        made = {name: control.to_dict() for name, control in self._make().items()}
        return json.dumps(made).encode()


@contextmanager
def planted_leak(model: AdaptedModel, examples: Sequence[Example], *, seed: int) -> Iterator[None]:
    """Train an adapter on a few examples for as long as the block lasts.

    Args:
        model: changed inside the block, and set back after it.
        examples: what it memorises.
        seed: of the order of examples.
    """
    from client.training import TrainSettings, train_plain

    before = {name: np.array(factor) for name, factor in model.factors().items()}
    settings = TrainSettings(
        local_epochs=float(PASSES),
        batch_size=min(BATCH, len(examples)),
        learning_rate=LEARNING_RATE,
        optimizer="adamw",
    )
    try:
        train_plain(model, examples, settings, rng=data_rng(seed, "planted-leak"))
        yield
    finally:
        model.load(before)


def _controls(written: bytes) -> dict[str, Control]:
    """Read what a forked process wrote."""
    return {name: Control.from_dict(said) for name, said in json.loads(written).items()}


def _control(finding: Finding) -> Control:
    """Return what a finding on a planted leak shows."""
    return Control(
        source=LEAK, detected=finding.detected, value=finding.value, interval=finding.interval
    )


def _counts(canaries: object) -> object:
    """Return what two runs must share for their canaries to be compared."""
    if not isinstance(canaries, Mapping):
        return None
    return [
        {key: kind.get(key) for key in ("kind", "included", "held_out", "repeats")}
        for kind in canaries.get("kinds", ())
    ]


def _pair(value: object) -> tuple[float, float] | None:
    """Return an interval that JSON held."""
    if not isinstance(value, Sequence) or len(value) != 2:
        return None
    return float(value[0]), float(value[1])
