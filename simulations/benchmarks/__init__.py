"""Measurements that a reader can repeat: ``fedslm bench list`` and ``fedslm bench run NAME``."""
