"""What ``fedslm client status`` says: everything that the device itself knows, asked of nobody."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from client.nodelog import read_log
from shared.errors import AlreadyRunning, FedSLMError

if TYPE_CHECKING:
    from client.home import DeviceHome

_HEARD = frozenset({"joined", "back", "message", "answered", "refused", "failed", "run-over"})
_CONNECTED = frozenset({"idle", "working"})
_SHOWN = 8
_SECOND_LOOK = 2.1


def status_of(home: DeviceHome) -> dict[str, Any]:
    """Return the state of a device in JSON's terms; a part that cannot be read says why.

    Args:
        home: the device's folder.
    """
    config = home.config
    events = list(read_log(home.log))
    return {
        "name": config.name,
        "role": config.role,
        "client_index": config.client_index,
        "server": {"fleet": config.fleet, "control": config.control},
        "left": home.left,
        "node": _node(home, events),
        "certificate": _or_error(lambda: _certificate(home)),
        "conditions": _conditions(home),
        "policy": _or_error(lambda: _policy(home)),
        "work": _work(events),
        "adapter": _or_error(lambda: _adapter(home)),
        "personal": _or_error(lambda: _personal(home)),
    }


def running(home: DeviceHome) -> bool:
    """Tell whether a node runs from this folder: whether it holds the folder."""
    try:
        with home.running():
            return False
    except AlreadyRunning:
        return True


def _node(home: DeviceHome, events: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what the node says about itself, as far as it is still true."""
    from client.fleet.status import read_status

    runs = running(home)
    said = read_status(home.path) or {}
    heard = [event.get("at") for event in events if event.get("event") in _HEARD]
    contact = heard[-1] if heard else None
    state = said.get("state") if runs else "stopped"
    if state in _CONNECTED:
        contact = round(time.time(), 3)
    kept = {key: said.get(key) for key in ("since", "reasons", "run_id", "worker", "error")}
    facts = kept if runs else dict.fromkeys(kept)
    return {
        "running": runs,
        "state": state,
        **facts,
        "clock_offset": said.get("clock_offset"),
        "last_contact": contact,
    }


def _certificate(home: DeviceHome) -> dict[str, Any]:
    """Return until when the device's certificate is good."""
    from shared.pki import read_certificate
    from shared.privatefiles import read_private

    facts = read_certificate(read_private(home.certificate))
    left = facts.not_after - datetime.now(UTC)
    return {
        "not_after": facts.not_after.isoformat(timespec="seconds"),
        "days_left": round(left.total_seconds() / 86_400, 1),
    }


def _conditions(home: DeviceHome) -> list[dict[str, Any]]:
    """Return the owner's conditions and what is the case."""
    from client.conditions import Conditions

    conditions = Conditions(home.policy)
    found = conditions.report()
    if any(condition.name == "pause_when_busy" for condition in found):
        # How much others use is what changed between two looks.
        time.sleep(_SECOND_LOOK)
        found = conditions.report()
    return [condition._asdict() for condition in found]


def _policy(home: DeviceHome) -> dict[str, Any]:
    """Return what the device allows and what was spent, by its own ledger."""
    from client.policy import ClientPolicy
    from client.state import NOTES
    from simulations.client_cli import device_report

    limits = ClientPolicy.load(home.policy)
    return device_report(limits, home.state if (home.state / NOTES).is_file() else None)


def _work(events: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what was asked of the device, and what became of it, as far as the log goes."""
    kinds = ("answered", "refused", "failed", "late")
    counts = Counter(str(event.get("event")) for event in events)
    done = [event for event in events if event.get("event") in kinds]
    said = [event for event in events if event.get("event") == "log"]
    reasons = [event for event in said if "refused [" in str(event.get("text"))]
    return {
        **{kind: counts[kind] for kind in kinds},
        "recent": done[-_SHOWN:],
        "reasons": [
            {"at": event.get("at"), "text": str(event.get("text"))} for event in reasons[-_SHOWN:]
        ],
    }


def _adapter(home: DeviceHome) -> dict[str, Any] | None:
    """Return the adapter in use; None before the first."""
    from client.adapterrules import AdapterPolicy
    from client.adapterstore import STATE, AdapterStore

    key = home.config.adapter_key
    if key is None or not (home.adapters / STATE).is_file():
        return None
    policy = AdapterPolicy.of_owner(home.policy)
    store = AdapterStore(home.adapters, trusted_key=key, base_digest=None, policy=policy)
    current = store.current()
    refused = store.refusals()
    return {
        "current": None if current is None else current.digest,
        "name": None if current is None else current.manifest.name,
        "previous": store.memory().previous,
        "refused": [{"digest": r.digest, "code": r.code, "at": r.at} for r in refused[-_SHOWN:]],
    }


def _personal(home: DeviceHome) -> dict[str, Any] | None:
    """Return the owner's own adapter and whether it is stale; None if there is none."""
    from dataclasses import asdict

    from client.personalstore import NAME, PersonalStore

    if not (home.personal / NAME).is_file():
        return None
    facts = PersonalStore(home.personal).facts()
    shared = _adapter(home) or {}
    return (
        None
        if facts is None
        else {**asdict(facts), "stale": facts.adapter != shared.get("current")}
    )


def _or_error(read: Any) -> Any:  # noqa: ANN401 - whatever JSON holds
    """Return a part, or the code of why there is none."""
    try:
        return read()
    except FedSLMError as error:
        return {"error": {"code": error.code, "message": error.message}}
