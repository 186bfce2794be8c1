"""Smaller bases: quantised, pruned, shortened or distilled, from public text alone."""
