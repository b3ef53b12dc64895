"""Answers to findings: scores, votes, comparisons, the report."""
