"""Auditing any PEFT adapter, with the user's own member and non-member files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from client.data import Columns
from server.audit.protocol import AuditContext, Claim, Effort
from shared.errors import UsageError
from simulations.auditing.assistant import assistant_for
from simulations.auditing.external import open_external

if TYPE_CHECKING:
    from simulations.auditing.request import Request

SEED = 0


def context_of_external(
    request: Request, effort: Effort, given: Sequence[object]
) -> tuple[AuditContext, dict[str, object]]:
    """Gather what can be read of an adapter that fedslm did not make.

    Nothing is known of how it was trained, so nothing is claimed: its audits attack, and the
    verdict can be no better than inconclusive.

    Args:
        request: adapter, base and files.
        effort: how hard the audits try.
        given: the user's own prompts and attacks.

    Returns:
        The context, and digests of what is audited.
    """
    if request.adapter is None or request.base is None:
        msg = "Give --adapter and --base."
        raise UsageError(msg)
    text, prompt, response = request.columns
    named = Columns(text=text, prompt=prompt, response=response)
    external = open_external(
        request.adapter,
        request.base,
        request.members,
        request.nonmembers,
        max_length=request.max_length,
        template=request.template,
        quantization=request.quantization,
        revision=request.revision,
        device=request.device,
        columns=named if any(request.columns) else None,
        seed=SEED,
    )
    context = AuditContext(
        claim=Claim(mode="unknown", epsilon=None, delta=None, unit=None, neighboring_relation=None),
        seed=SEED,
        effort=effort,
        artefacts=(*given, *external.artefacts, assistant_for(external.model)),
    )
    return context, {"kind": "adapter", **external.facts}
