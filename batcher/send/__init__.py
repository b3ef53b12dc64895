"""REQUEST TO RESULT: one request's life, from the wait for a limit to its outcome."""
