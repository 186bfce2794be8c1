"""Questions about leakage, each answered by a family of small runs."""
