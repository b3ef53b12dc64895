"""ONE RUN: from its first check to its output; `run` is the name of the function in the API."""
