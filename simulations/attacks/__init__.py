"""Simulated attackers: who they are, what they do to their text and updates, what they achieve.

Of the simulations alone: nothing of ``client/`` or ``server/`` imports it.
"""
