"""Adapters that the server keeps: versions by content, signed, put in use, taken back."""

from __future__ import annotations

from server.registry.check import RegistryReport, verify_registry
from server.registry.history import SignedOrder
from server.registry.opening import server_registry
from server.registry.runs import add_run
from server.registry.store import AdapterRegistry, Collected
from server.registry.versions import AdapterVersion

__all__ = [
    "AdapterRegistry",
    "AdapterVersion",
    "Collected",
    "RegistryReport",
    "SignedOrder",
    "add_run",
    "server_registry",
    "verify_registry",
]
