"""Helpers that make a calibrated model better: the choice of observers, and learned rounding of weights."""
