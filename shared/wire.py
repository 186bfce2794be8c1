"""The only codec between domain objects and Flower records.

A message carries at most one flat float32 vector and one small record of scalars: many arrays a
message cost far more than many bytes. Everything that arrives is checked here: names, types,
shapes, protocol version, configuration digest. A reply carries no count, loss or norm; a failure
carries a code and nothing else.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from shared.classtally import MOST_LABELS
from shared.errors import ClientFailed, SchemaMismatch
from shared.link import Coded, Downlink, Link
from shared.lora import Vector
from shared.messages import PHASES as PHASES
from shared.messages import STAGES as STAGES
from shared.messages import ClientUpdate as ClientUpdate
from shared.messages import Instruction as Instruction
from shared.messages import Introduction as Introduction
from shared.messages import Measurement as Measurement
from shared.messages import Phase as Phase
from shared.messages import PhaseCall as PhaseCall
from shared.messages import PhaseReply as PhaseReply
from shared.messages import Stage as Stage
from shared.privacy.ledger_signing import SignedHead
from shared.privacy.vote import LARGEST_VOTE
from shared.redact import known_codes
from shared.wirefields import ADAPTER as ADAPTER
from shared.wirefields import HEADER as HEADER
from shared.wirefields import PROTOCOL as PROTOCOL
from shared.wirefields import REFERENCE, array_of, expect, field_of, header_of, shown, vector_of
from shared.wirefields import VECTOR as VECTOR
from shared.wireresidual import RESIDUAL, put_residual, take_residual

CODEC: Final = "codec"
Records: TypeAlias = RecordDict
_ANCHOR: Final[dict[str, type]] = {"seq": int, "hash": str, "public_key": str, "signature": str}


def encode_instruction(instruction: Instruction) -> RecordDict:
    """Write an instruction as Flower records."""
    records = _records(_told(instruction), instruction.vector, instruction.coded)
    if instruction.reference is not None:
        records[REFERENCE] = _whole(instruction.reference)
    put_residual(records, instruction.residual)
    return records


def decode_instruction(records: RecordDict, downlink: Downlink | None = None) -> Instruction:
    """Read an instruction.

    Args:
        records: what the server sent.
        downlink: reads a coded adapter; one that came whole is taken with any.

    Raises:
        SchemaMismatch: if a field is missing, has another type, or the version differs.
    """
    header = header_of(records, also=(REFERENCE, RESIDUAL))
    moving = "clipping-norm" in header
    compared = REFERENCE in records
    return Instruction(
        **_addressed(header),
        vector=_adapter(records, header, downlink),
        clipping_norm=field_of(header, "clipping-norm", float) if moving else None,
        empty=field_of(header, "empty", bool),
        anchor=_anchor(header),
        reference=np.array(vector_of(records, REFERENCE)) if compared else None,
        residual=take_residual(records, header),
    )


def encode_phase_call(call: PhaseCall, instruction: Instruction | None = None) -> RecordDict:
    """Write what a phase sends to a client, with the instruction where the client is to train."""
    phase = {"phase": call.phase, "payload": call.payload}
    if instruction is None:
        return _records({**_address(call), **phase}, None)
    return _records({**_told(instruction), **phase}, instruction.vector, instruction.coded)


def decode_phase_call(records: RecordDict) -> PhaseCall | None:
    """Read what a phase sends; None for a message that is not part of a secure aggregation.

    Raises:
        SchemaMismatch: if a field is missing or has another type, or the phase is unknown.
    """
    header = header_of(records, also=(REFERENCE, RESIDUAL))
    if "phase" not in header:
        return None
    header_of(records)
    return PhaseCall(
        phase=_phase(header),
        payload=field_of(header, "payload", bytes),
        **_addressed(header),
    )


def encode_phase_reply(reply: PhaseReply) -> RecordDict:
    """Write a client's answer in a phase."""
    return _records({"protocol": PROTOCOL, "phase": reply.phase, "payload": reply.payload}, None)


def decode_phase_reply(records: RecordDict, *, phase: Phase) -> PhaseReply:
    """Read a client's answer in a phase.

    Raises:
        ClientFailed: if the client reports a failure; names its code only.
        SchemaMismatch: if a field is missing, has another type, or another phase is answered.
    """
    header = header_of(records)
    _refuse_failure(header)
    expect("phase", _phase(header), phase)
    return PhaseReply(phase=phase, payload=field_of(header, "payload", bytes))


def encode_update(update: ClientUpdate) -> RecordDict:
    """Write a client's update as Flower records."""
    header = {
        "protocol": PROTOCOL,
        "server-round": update.server_round,
        "config-digest": update.config_digest,
        "stage": update.stage,
    }
    if update.vote is not None:
        header["vote"] = update.vote
    return _records(header, update.vector, update.coded)


def decode_update(
    records: RecordDict,
    *,
    server_round: int,
    config_digest: str,
    stage: Stage,
    size: int,
    link: Link | None = None,
    votes: bool = False,
) -> ClientUpdate:
    """Read an update and check that it answers this round of this run.

    A vector with NaN or infinity is accepted here: what it becomes (the zero update) is decided
    where it is clipped or averaged, so that failure looks like any other update on the wire.
    The vector is a view of the message's own bytes, which nobody can write to: nothing is copied.
    A coded one is made of them, and is finite.

    Args:
        records: what the client sent.
        server_round: the round that is open.
        config_digest: digest of the scenario.
        stage: what the privacy mode requires of an update.
        size: number of parameters expected.
        link: the code that the scenario says; None for float32. No other is read.
        votes: whether the round has a vote; an update without one is not taken then, nor one with
            a vote in any other round.

    Raises:
        ClientFailed: if the client reports a failure; names its code only.
        SchemaMismatch: if anything does not match.
    """
    header = header_of(records)
    _refuse_failure(header)
    update = ClientUpdate(
        server_round=field_of(header, "server-round", int),
        config_digest=field_of(header, "config-digest", str),
        stage=stage,
        vector=_sent(records, header, link, size),
        vote=field_of(header, "vote", int) if votes else None,
    )
    if not votes:
        expect("vote", header.get("vote"), None)
    elif not abs(update.vote or 0) <= LARGEST_VOTE:
        expect("vote", update.vote, "-1, 0 or 1")
    expect("stage", field_of(header, "stage", str), stage)
    expect("server-round", update.server_round, server_round)
    expect("config-digest", update.config_digest, config_digest)
    expect("number of parameters", update.vector.size, size)
    return update


def encode_measurement(measurement: Measurement) -> RecordDict:
    """Write a held-out loss as Flower records."""
    header: dict[str, Any] = {
        "protocol": PROTOCOL,
        "loss": float(measurement.loss),
        "tokens": int(measurement.tokens),
    }
    if measurement.classes:
        header["classes"] = list(measurement.classes)
    return _records(header, None)


def decode_measurement(records: RecordDict) -> Measurement:
    """Read a held-out loss.

    Raises:
        ClientFailed: if the client reports a failure.
        SchemaMismatch: if a field is missing or has another type.
    """
    header = header_of(records)
    _refuse_failure(header)
    tokens = field_of(header, "tokens", int)
    classes = field_of(header, "classes", list) if "classes" in header else []
    sizes = len(classes) % 3 == 0 and len(classes) <= 3 * MOST_LABELS
    if not (sizes and all(type(n) is int and 0 <= n <= tokens for n in classes)):
        msg = f"Found {len(classes)} counts by class, expected three for each, of {tokens} texts."
        raise SchemaMismatch(msg)
    return Measurement(loss=field_of(header, "loss", float), tokens=tokens, classes=tuple(classes))


def encode_introduction(introduction: Introduction) -> RecordDict:
    """Write which client a node speaks for."""
    return _records({"protocol": PROTOCOL, "client": introduction.client}, None)


def decode_introduction(records: RecordDict) -> Introduction:
    """Read which client a node speaks for.

    Raises:
        SchemaMismatch: if a field is missing or has another type.
    """
    return Introduction(client=field_of(header_of(records), "client", int))


def encode_failure(code: str) -> RecordDict:
    """Write a failure: a known code and nothing else."""
    return _records({"protocol": PROTOCOL, "failure": code}, None)


def failure_code(records: RecordDict) -> str | None:
    """Return the code of a failure that a client of our own wrote; None for any other content."""
    header = records.get(HEADER)
    code = header.get("failure") if isinstance(header, ConfigRecord) else None
    return code if isinstance(code, str) and code in known_codes() else None


def payload_bytes(records: RecordDict) -> int:
    """Return the bytes of arrays and scalars that a message carries."""
    return sum(record.count_bytes() for record in records.values())


def _records(
    header: dict[str, Any], vector: Vector | None, coded: Coded | None = None
) -> RecordDict:
    """Join a header and an optional vector, coded or not."""
    if coded is not None:
        data = np.frombuffer(coded.data, dtype=np.uint8)
        named = RecordDict({HEADER: ConfigRecord({**header, CODEC: coded.codec})})
        named[ADAPTER] = ArrayRecord({VECTOR: Array(data)})
        return named
    records = RecordDict({HEADER: ConfigRecord(header)})
    if vector is not None:
        records[ADAPTER] = _whole(vector)
    return records


def _whole(vector: Vector) -> ArrayRecord:
    """Write a vector in four bytes a number."""
    return ArrayRecord({VECTOR: Array(np.ascontiguousarray(vector, dtype=np.float32))})


def _address(message: Instruction | PhaseCall) -> dict[str, Any]:
    """Return the header fields that say what a message belongs to."""
    return {
        "protocol": PROTOCOL,
        "run-id": message.run_id,
        "server-round": message.server_round,
        "config-digest": message.config_digest,
        "plan-digest": message.plan_digest,
    }


def _told(instruction: Instruction) -> dict[str, Any]:
    """Return the header fields of an instruction."""
    header = {**_address(instruction), "empty": instruction.empty}
    if instruction.clipping_norm is not None:
        header["clipping-norm"] = float(instruction.clipping_norm)
    if instruction.anchor is not None:
        header |= {f"ledger-{name}": getattr(instruction.anchor, name) for name in _ANCHOR}
    return header


def _addressed(header: ConfigRecord) -> dict[str, Any]:
    """Read the header fields that say what a message belongs to."""
    return {
        "run_id": field_of(header, "run-id", str),
        "server_round": field_of(header, "server-round", int),
        "config_digest": field_of(header, "config-digest", str),
        "plan_digest": field_of(header, "plan-digest", str),
    }


def _anchor(header: ConfigRecord) -> SignedHead | None:
    """Read the signed end of the server's ledger, if the message carries one."""
    if not any(f"ledger-{name}" in header for name in _ANCHOR):
        return None
    values: dict[str, Any] = {
        name: field_of(header, f"ledger-{name}", kind) for name, kind in _ANCHOR.items()
    }
    return SignedHead(**values)


def _phase(header: ConfigRecord) -> Phase:
    """Read the name of a phase."""
    name = field_of(header, "phase", str)
    for phase in PHASES:
        if phase == name:
            return phase
    msg = f"Found phase={shown(name)}, expected one of: {', '.join(PHASES)}."
    raise SchemaMismatch(msg)


def _refuse_failure(header: ConfigRecord) -> None:
    """Raise if a client reports a failure; only a known code is repeated."""
    if "failure" not in header:
        return
    code = field_of(header, "failure", str)
    shown = code if code in known_codes() else "unexpected"
    msg = f"A client failed with code {shown!r}."
    raise ClientFailed(msg, hint="See docs/errors.md; the device's own log says more.")


def _adapter(records: RecordDict, header: ConfigRecord, downlink: Downlink | None) -> Vector:
    """Return the adapter of an instruction, a copy; coded or whole."""
    if CODEC not in header:
        return np.array(vector_of(records))
    if downlink is None:
        msg = "An instruction has a coded adapter, expected float32."
        raise SchemaMismatch(msg)
    return downlink.decode(_coded(records, header))


def _sent(records: RecordDict, header: ConfigRecord, link: Link | None, size: int) -> Vector:
    """Return the vector of an update in the code of the scenario and in no other."""
    if link is None:
        expect("codec", header.get(CODEC), None)
        return vector_of(records)
    return link.decode(_coded(records, header), size)


def _coded(records: RecordDict, header: ConfigRecord) -> Coded:
    """Return a coded vector; its bytes are those of the message, not yet looked at."""
    name, data = field_of(header, CODEC, str), array_of(records, "uint8")
    return Coded(codec=name, data=data.tobytes())
