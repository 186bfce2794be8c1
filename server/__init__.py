"""What coordinates clients: cohort, aggregation, adapters, audits."""
