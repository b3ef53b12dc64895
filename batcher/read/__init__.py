"""FILE TO PROMPTS: what stands in the input, row by row."""
