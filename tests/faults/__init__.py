"""What goes wrong in a fleet, with real processes: see docs/deploy/faults.md."""
