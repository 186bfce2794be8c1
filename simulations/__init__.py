"""Simulated federations: engines, corpora, scenarios, reports and the `fedslm` command."""
