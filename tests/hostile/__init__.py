"""What somebody hostile sends, and what becomes of it. docs/threat-model.md names each test."""
