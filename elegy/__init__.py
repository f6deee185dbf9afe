"""Elegy: a training framework for JAX."""
