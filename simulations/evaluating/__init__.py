"""``fedslm eval``: a base model before and after its adapter, on what lies on this machine."""
