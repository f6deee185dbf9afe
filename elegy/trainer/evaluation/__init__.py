"""Passes over data without training: the evaluations of a fit, `evaluate` and `predict`."""
