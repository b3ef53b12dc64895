"""WHAT WAS ASKED: a job, its checks, where its requests go."""
