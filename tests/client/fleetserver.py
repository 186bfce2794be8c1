"""A server's side of enrolment without a network: what answers a device's request in tests."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from shared.enrolment import EnrolmentAnswer, EnrolmentToken, Role
from shared.errors import ServerUnreachable
from shared.pki import Authority, request_key

AUTHORITY = Authority.create("test fleet", days=3650)
SECRETS = [base64.urlsafe_b64encode(bytes([n]) * 32).decode().rstrip("=") for n in range(9)]
BASE = "ba" * 32
LEDGER = "1e" * 32


def token_text(number: int = 0, *, name: str = "clinic-7", **change: Any) -> str:
    """Write a token as a server would, without our code."""
    fields: dict[str, Any] = {
        "a": "localhost:9096",
        "f": AUTHORITY.fingerprint,
        "s": SECRETS[number],
        "n": name,
        "e": int((datetime.now(UTC) + timedelta(hours=1)).timestamp()),
        **change,
    }
    body = base64.urlsafe_b64encode(json.dumps(fields).encode()).decode().rstrip("=")
    return f"fedslm1.{body}"


@dataclass(kw_only=True)
class Answers:
    """Signs what it is asked to; keeps the keys that came; may lose its answers on the way."""

    role: Role = "node"
    change: dict[str, Any] = field(default_factory=dict)
    lose: int = 0
    now: datetime | None = None
    authority: Authority = AUTHORITY
    certified_name: str | None = None
    keys: list[bytes] = field(default_factory=list)

    def __call__(self, token: EnrolmentToken, csr: bytes) -> EnrolmentAnswer:
        self.keys.append(request_key(csr))
        if self.lose > 0:
            self.lose -= 1
            msg = "The reply was lost."
            raise ServerUnreachable(msg)
        name = self.certified_name or token.name
        certificate = self.authority.sign_request(
            csr, name=name, role=self.role, days=30, now=self.now
        )
        answer = EnrolmentAnswer(
            certificate=certificate,
            ca=self.authority.certificate,
            name=token.name,
            role=self.role,
            client_index=3 if self.role == "node" else None,
            control_address="localhost:9093",
            fleet_address="localhost:9092",
            ledger_key=LEDGER,
            adapter_key="ad" * 32,
            base_digest=BASE,
        )
        return replace(answer, **self.change)
