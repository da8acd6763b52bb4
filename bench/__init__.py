"""Measurements: each prints what was measured, on which machine, with which versions."""
