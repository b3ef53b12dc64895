"""HOW FAST: the limits of a model and of a key, and the gate that waits for them."""
