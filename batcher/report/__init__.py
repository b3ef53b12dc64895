"""RESULTS TO TOTALS: the live view and the table at the end."""
