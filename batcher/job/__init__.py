"""WHAT WAS ASKED: a job, its checks, the endpoint of its requests."""
