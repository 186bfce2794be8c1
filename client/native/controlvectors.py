"""Test vectors of the control service: enrolment, renewal, header fields, adapters."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from shared.canonical import canonical_json
from shared.control.fedslm.control.v1 import control_pb2 as pb
from shared.crypto import Signature, SigningKey
from shared.enrolment import EnrolmentToken, encode_bytes, secret_digest
from shared.manifest import (
    PEFT_CONFIG,
    WEIGHTS,
    AdapterManifest,
    Audited,
    FileEntry,
    Privacy,
    sign_manifest,
)
from shared.orders import Order, sign_order
from shared.pki import CertificateFacts, renewal_is_due

_SECRET: Final = encode_bytes(bytes(range(32)))
_TOKEN: Final = EnrolmentToken(
    address="fleet.example.org:9093",
    fingerprint="ab" * 32,
    secret=_SECRET,
    name="phone-7",
    expires_at=1_790_000_000,
)
_START: Final = datetime(2026, 1, 1, tzinfo=UTC)
# RFC 7541, appendix C: literals that are compressed, indexed names, an indexed field.
_BLOCKS: Final = {
    "88": {":status": "200"},
    "008825a849e95ba97d7f8925a849e95bb8e8b4bf": {"custom-key": "custom-value"},
    "000a637573746f6d2d6b65798cf1e3c2e5f23a6ba0ab90f4ff": {"custom-key": "www.example.com"},
    "48826402": {":status": "302"},
    "20885f106170706c69636174696f6e2f67727063": {
        ":status": "200",
        "content-type": "application/grpc",
    },
}


def control_vectors() -> dict[str, Any]:
    """Return the vectors, ready for JSON; bytes are hexadecimal."""
    return {
        "enrolment": _enrolment(),
        "renewal": _renewal(),
        "http2_fields": _blocks(),
        "adapters": _adapters(),
    }


def _enrolment() -> dict[str, Any]:
    """Write a token, and the messages of both calls."""
    said: dict[str, Any] = {
        "certificate": "device",
        "ca": "authority",
        "name": "phone-7",
        "role": "node",
        "client_index": 0,
        "control_address": "fleet.example.org:9093",
        "fleet_address": "[::1]:9092",
        "adapter_key": "0a" * 32,
        "ledger_key": "0b" * 32,
        "base_digest": "0c" * 32,
    }
    message = {k: v.encode() if k in {"certificate", "ca"} else v for k, v in said.items()}
    request = pb.EnrollRequest(token=_SECRET, csr=b"request")
    renewed = pb.RenewResponse(certificate=b"newer", ca=b"authority")
    return {
        "token": _TOKEN.to_text(),
        "address": _TOKEN.address,
        "fingerprint": _TOKEN.fingerprint,
        "secret": _TOKEN.secret,
        "name": _TOKEN.name,
        "secret_digest": secret_digest(_SECRET).hex(),
        "csr": "request",
        "enroll_request": request.SerializeToString(deterministic=True).hex(),
        "enroll_response": pb.EnrollResponse(**message).SerializeToString(deterministic=True).hex(),
        "answer": said,
        "renew_request": pb.RenewRequest(csr=b"request").SerializeToString().hex(),
        "renew_response": renewed.SerializeToString(deterministic=True).hex(),
        "renewed": "newer",
        "no_tokens": [
            _TOKEN.to_text()[:-1],
            _TOKEN.to_text() + "A",
            replace(_TOKEN, secret=_SECRET[:-1]).to_text(),
            replace(_TOKEN, name="Phone 7").to_text(),
            replace(_TOKEN, address="fleet.example.org").to_text(),
            replace(_TOKEN, fingerprint="ab").to_text(),
            "fedslm1." + encode_bytes(b"{}"),
        ],
    }


def _renewal() -> list[dict[str, Any]]:
    """Write when a certificate is due: in the last third of its time, counted from its issue."""
    cases = []
    # Dated back by 30 days, for 30, 90 and (shorter than it was dated back) 5 days.
    for days in (30, 90, -5):
        end = _START + timedelta(days=30 + days)
        facts = CertificateFacts(
            name="phone-7", role="node", public_key=b"", serial=1, not_before=_START, not_after=end
        )
        for seconds in (-86400 * days // 3 - 1, -86400 * days // 3 + 1, -1, 1):
            now = end + timedelta(seconds=seconds)
            cases.append(
                {
                    "not_before": int(_START.timestamp()),
                    "not_after": int(end.timestamp()),
                    "now": int(now.timestamp()),
                    "due": renewal_is_due(facts, now=now),
                }
            )
    return cases


def _adapters() -> dict[str, Any]:
    """Write an order and a manifest, both signed, and weights, good and damaged."""
    key = SigningKey(bytes(range(32)))
    weights = _safetensors(np.array([[0.5], [-2.0]], dtype=np.float32))
    config = b'{"peft_type":"LORA","r":1}'
    manifest = AdapterManifest(
        name="spring",
        sequence=2,
        order=1,
        created="2026-09-21T14:13:20Z",
        base_digest="0c" * 32,
        plan_digest=None,
        ledger_head=None,
        parent=None,
        files=tuple(
            FileEntry(name=name, size=len(data), sha256=hashlib.sha256(data).hexdigest())
            for name, data in ((PEFT_CONFIG, config), (WEIGHTS, weights))
        ),
        privacy=Privacy(
            mode="example",
            epsilon=2.5,
            delta=1e-05,
            unit="example",
            neighboring_relation="add-or-remove-one",
        ),
        audit=Audited(sha256="0d" * 32, verdict="consistent"),
    )
    order = Order(
        number=2,
        kind="promote",
        digest=manifest.digest,
        sequence=2,
        replaces="0e" * 32,
        previous="0f" * 32,
        created="2026-09-21T14:13:21Z",
    )
    ordered = pb.GetOrderResponse(
        order=order.to_bytes(), signature=_signature(sign_order(order, key))
    )
    found = pb.GetManifestResponse(
        digest=manifest.digest,
        manifest=manifest.to_bytes(),
        signature=_signature(sign_manifest(manifest, key)),
        size=manifest.size,
    )
    return {
        "public_key": key.public_key,
        "order_response": ordered.SerializeToString(deterministic=True).hex(),
        "order_hash": order.hash,
        "order_number": order.number,
        "manifest_response": found.SerializeToString(deterministic=True).hex(),
        "digest": manifest.digest,
        "verdict": "consistent",
        "base_digest": manifest.base_digest,
        "weights": weights.hex(),
        "no_weights": [
            weights[:-1].hex(),
            (weights + b"\0").hex(),
            weights.replace(b"F32", b"F64").hex(),
            weights.replace(b"[0,8]", b"[4,8]").hex(),
            _safetensors(np.array([[np.nan], [1.0]], dtype=np.float32)).hex(),
        ],
    }


def _signature(found: Signature) -> pb.Signature:
    """Return a signature as the control service sends it."""
    return pb.Signature(
        domain=found.domain,
        sha256=found.sha256,
        public_key=found.public_key,
        signature=found.signature,
    )


def _safetensors(factor: NDArray[np.float32]) -> bytes:
    """Write one factor as a safetensors file."""
    entry = {"dtype": "F32", "shape": list(factor.shape), "data_offsets": [0, factor.nbytes]}
    header = canonical_json({"lora_B.weight": entry}).encode()
    return struct.pack("<Q", len(header)) + header + factor.astype("<f4").tobytes()


def _blocks() -> list[dict[str, Any]]:
    """Write blocks of header fields, and what a client keeps of them."""
    return [{"block": block, "fields": fields} for block, fields in _BLOCKS.items()]
