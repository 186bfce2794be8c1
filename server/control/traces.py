"""One OpenTelemetry span for each call, where the package is installed (``fedslm[otel]``).

Where spans go is the business of whoever starts the process; without a provider they go nowhere. A
span holds method and status, and nothing about who called.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer


class Traces:
    """Makes spans; does nothing where OpenTelemetry is not installed."""

    def __init__(self) -> None:
        self._tracer: Tracer | None = None
        try:
            from opentelemetry import trace
        except ImportError:
            return
        self._tracer = trace.get_tracer("fedslm.control")

    def called(self, method: str, status: str, *, seconds: float) -> None:
        """Record one finished call."""
        if self._tracer is None:
            return
        from opentelemetry.trace import SpanKind, StatusCode

        end = time.time_ns()
        service, _, name = method.rpartition("/")
        facts = {
            "rpc.system": "grpc",
            "rpc.service": service,
            "rpc.method": name,
            "rpc.grpc.status": status,
        }
        start = end - round(seconds * 1e9)
        span = self._tracer.start_span(
            method, kind=SpanKind.SERVER, start_time=start, attributes=facts
        )
        if status != "OK":
            span.set_status(StatusCode.ERROR)
        span.end(end)
