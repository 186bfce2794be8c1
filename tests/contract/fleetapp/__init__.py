"""A tiny app: the server sends an array, each client adds one to it."""
