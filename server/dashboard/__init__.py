"""The web dashboard of a server: what runs, what was spent, who takes part, what to do about it."""
