"""Built-in scenarios; line 1 of each is the command that runs it."""
