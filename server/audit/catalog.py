"""Which audits there are, and which of them a profile runs."""

from __future__ import annotations

from server.audit.clientcanary import ClientCanary
from server.audit.exposure import Exposure
from server.audit.extraction import Extraction
from server.audit.inversion import Inversion
from server.audit.ledger import LedgerAudit
from server.audit.mechanism import Mechanism
from server.audit.membership import Membership
from server.audit.onerun import OneRun
from server.audit.promptleak.audit import PromptLeak
from server.audit.protocol import Audit
from server.audit.queryprivacy import QueryPrivacy
from server.audit.shadow import ShadowMembership
from server.audit.span import Span
from shared.registry import Registry

AUDITS: Registry[Audit] = Registry("audit")
for _audit in (
    LedgerAudit(),
    Mechanism(),
    ClientCanary(),
    Span(),
    OneRun(),
    Exposure(),
    Membership(),
    Extraction(),
    PromptLeak(),
    QueryPrivacy(),
    Inversion(),
    ShadowMembership(),
):
    AUDITS.add(_audit.name, _audit)

PROFILES: Registry[tuple[str, ...]] = Registry("audit profile")
PROFILES.add("none", ())
_EXTENDED = {Inversion.name, ShadowMembership.name}
_SMOKE = tuple(name for name in AUDITS if name not in {QueryPrivacy.name, *_EXTENDED})
PROFILES.add("smoke", _SMOKE)
PROFILES.add("release", (*_SMOKE, QueryPrivacy.name))
PROFILES.add("extended", tuple(AUDITS))
