"""Version 1 of the control service; generated code beside its source."""
