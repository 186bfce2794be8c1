"""From a run folder or an adapter to what the audits read."""
