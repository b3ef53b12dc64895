"""The terminal while a run is at work."""
