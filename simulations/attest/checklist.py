"""A privacy statement as answers to the items of NIST SP 800-226.

The publication (final version of March 2025) orders what decides about a differentially private
release as a pyramid: parameters and unit on top; algorithms, correctness, side channels and
security in the middle; trust, access and data collection below; and lists hazards of each. Every
item is answered here from the ledger and the plans, or marked as something that the software cannot
know.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from shared.privacy.advice import LARGE_EPSILON
from shared.privacy.events import PrivacyUnit
from shared.privacy.noise import SEEDED
from simulations.attest.about import NOT_STATED
from simulations.attest.sources import Dossier, Promise

Status = Literal["stated", "attention", "not protected", "not stated"]
MEANINGFUL_EPSILON = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One answer.

    Attributes:
        topic: stable word for programs.
        question: what is asked.
        finding: the answer, in plain words.
        status: ``"stated"`` (a fact), ``"attention"`` (a fact that a reader must weigh),
            ``"not protected"`` (nothing here covers it), ``"not stated"`` (only the operator knows,
            and has not said).
    """

    topic: str
    question: str
    finding: str
    status: Status

    def to_dict(self) -> dict[str, str]:
        """Return the JSON form."""
        return {
            "topic": self.topic,
            "question": self.question,
            "finding": self.finding,
            "status": self.status,
        }


def checklist(dossier: Dossier) -> tuple[Item, ...]:
    """Return the items in the order of the pyramid, top first."""
    return (
        *(item for promise in dossier.promises for item in _guarantee(promise)),
        *_algorithms(dossier),
        *_surroundings(dossier),
    )


def _guarantee(promise: Promise) -> Iterator[Item]:
    """Answer what one guarantee says."""
    unit = promise.guarantee.unit
    yield Item(
        topic=f"unit-{unit}",
        question="Unit of privacy: whom does it hide?",
        finding=promise.texts("unit", "adjacency", "not-per-person"),
        status="attention" if unit is PrivacyUnit.EXAMPLE else "stated",
    )
    yield Item(
        topic=f"parameters-{unit}",
        question="Epsilon, with delta, relation and number of releases",
        finding=promise.texts("epsilon", "accountant"),
        status="stated",
    )
    yield _size(promise)
    yield Item(
        topic=f"observers-{unit}",
        question="Trust model: against whom does which figure hold?",
        finding=promise.texts("observers", "who-sees-what"),
        status="attention" if promise.plan.mode == "client-central" else "stated",
    )
    second = promise.texts("second-guarantee")
    if second:
        yield Item(
            topic="second-guarantee",
            question="Is there a guarantee for another unit?",
            finding=second,
            status="stated",
        )
    for text in promise.plan.warnings():
        yield Item(
            topic=f"hazard-{unit}",
            question="Hazard",
            finding=text[:1].upper() + text[1:],
            status="attention",
        )


def _size(promise: Promise) -> Item:
    """Say what an epsilon of this size can mean."""
    epsilon = promise.guarantee.spent.epsilon
    if epsilon <= MEANINGFUL_EPSILON:
        text, status = f"At most {MEANINGFUL_EPSILON:g}: a strong guarantee by itself.", "stated"
    elif epsilon <= LARGE_EPSILON:
        text = (
            f"Between {MEANINGFUL_EPSILON:g} and {LARGE_EPSILON:g}: as deployed systems have; the "
            "bound by itself allows an attacker to learn something, so an audit should stand "
            "beside it."
        )
        status = "attention"
    else:
        text = f"Above {LARGE_EPSILON:g}: the bound by itself promises next to nothing."
        status = "attention"
    return Item(
        topic=f"size-{promise.guarantee.unit}",
        question="Hazard: is epsilon small enough to mean anything?",
        finding=text,
        status=status,  # type: ignore[arg-type]
    )


def _algorithms(dossier: Dossier) -> Iterator[Item]:
    """Answer for mechanism, sampling, composition, randomness and correctness."""
    seeded = any(promise.plan.noise_source == SEEDED for promise in dossier.promises)
    evidence = dossier.evidence
    yield Item(
        topic="mechanism",
        question="Mechanism: what is clipped, and what noise is added?",
        finding=_texts(dossier, "mechanism"),
        status="stated",
    )
    yield Item(
        topic="sampling",
        question="Is sampling as run the sampling as accounted?",
        finding=_texts(dossier, "sampling")
        + " Sampler, mechanism and ledger read one plan, and the ledger refuses an event that the "
        "plan does not contain; that the coins themselves were honest, a ledger cannot show.",
        status="stated",
    )
    yield Item(
        topic="composition",
        question="Composition: over what is the loss added up?",
        finding=f"{_texts(dossier, 'composition')} Runs in the ledger: "
        f"{', '.join(evidence.runs)}. {evidence.entries} entries, "
        f"{evidence.open_reservations} reservations open (they count in full).",
        status="stated",
    )
    yield Item(
        topic="randomness",
        question="Where does the noise come from?",
        finding=_texts(dossier, "noise-source"),
        status="not protected" if seeded else "stated",
    )
    yield _floating_point(dossier)
    yield Item(
        topic="side-channels",
        question="Side channels: timing, memory, traffic, errors",
        finding="Timing, memory, power and the size of traffic are not protected. Error messages "
        "of clients carry a code of a fixed list and nothing else.",
        status="not protected",
    )
    yield _audit(dossier)


def _floating_point(dossier: Dossier) -> Item:
    """Say whether the last bits of a release are part of the proof."""
    on_grid = [p.guarantee.unit for p in dossier.promises if p.plan.distributed is not None]
    floating = [p.guarantee.unit for p in dossier.promises if p.plan.distributed is None]
    said = [
        f"Per {unit}: releases are integers with noise on the same grid, and the proof covers "
        "every bit."
        for unit in on_grid
    ]
    said += [
        f"Per {unit}: the noise is floating-point; attacks on the last bits (Mironov 2012) are not "
        "covered by the proof. Releases are rounded to 32 bits."
        for unit in floating
    ]
    return Item(
        topic="floating-point",
        question="Floating point: is the noise exact?",
        finding=" ".join(said),
        status="attention" if floating else "stated",
    )


def _audit(dossier: Dossier) -> Item:
    """Say how hard it was attacked."""
    verdict = dossier.run.audit
    return Item(
        topic="audit",
        question="Was the result attacked?",
        finding="No audit is recorded beside this ledger."
        if verdict is None
        else f"The run's own audit says: {verdict}. No audit can show that something is private.",
        status="attention" if verdict in {None, "violation", "inconclusive"} else "stated",
    )


def _surroundings(dossier: Dossier) -> Iterator[Item]:
    """Answer for what lies outside the mechanism, mostly in the operator's words."""
    about = dossier.about
    yield Item(
        topic="not-protected",
        question="What is not protected?",
        finding=_texts(dossier, "not-protected")
        + " Facts that many clients share, participation itself and prompts at inference are not "
        "protected either.",
        status="not protected",
    )
    if dossier.run.losses_measured:
        yield Item(
            topic="non-private-releases",
            question="Releases from the same data without noise",
            finding="The run folder holds held-out losses that were measured without noise. "
            f"Others: {about.other_releases or NOT_STATED}.",
            status="not protected",
        )
    else:
        yield _operator(
            "non-private-releases",
            "Releases from the same data without noise",
            about.other_releases,
        )
    yield _operator("tuning", "Hyper-parameter tuning on private data", about.hyperparameter_tuning)
    yield _operator("preprocessing", "Pre-processing before the noise", about.preprocessing)
    yield _operator("security", "Data security and access control", about.security)
    simulated = bool(dossier.run.losses_measured)
    yield Item(
        topic="collection",
        question="Data collection: what leaves the device?",
        finding="This was a simulation: one machine held the text of all clients. In a deployment "
        "of the same plan one vector of the adapter's size leaves a client in a round."
        if simulated
        else "Text, tokens, gradients, counts and losses stay on the client; one vector of the "
        "adapter's size leaves it in a round.",
        status="attention" if simulated else "stated",
    )


def _operator(topic: str, question: str, words: str | None) -> Item:
    """Quote the operator, or say that nothing was said."""
    return Item(
        topic=topic,
        question=question,
        finding=NOT_STATED[:1].upper() + NOT_STATED[1:] + "." if words is None else words,
        status="not stated" if words is None else "stated",
    )


def _texts(dossier: Dossier, topic: str) -> str:
    """Return the sentences of all guarantees about a topic, each once."""
    return " ".join(dict.fromkeys(promise.texts(topic) for promise in dossier.promises))
