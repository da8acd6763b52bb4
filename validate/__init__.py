"""Compares a bundle with its checkpoint: is it still the same model? Called by `cli` and at the end of a build."""
