"""Runs models and turns what their ops do into records."""
