"""Batch files of providers: their input, and their output taken as answers."""
