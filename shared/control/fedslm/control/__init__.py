"""The namespace of the protocol package."""
