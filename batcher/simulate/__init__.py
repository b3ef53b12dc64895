"""The embedded gateway: a real HTTP server on loopback, for demos, tests and benchmarks."""
