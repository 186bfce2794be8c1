"""Audits that attack an adapter before it is released."""
