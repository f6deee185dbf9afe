"""Predictions in files that run without this library."""
