"""HOW MUCH: prices, the budget, what was spent."""
