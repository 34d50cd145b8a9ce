"""Qconfigs from templates: which op gets which dtype, with a log of every change."""
