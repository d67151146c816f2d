"""Ways of learning: demonstrations, comparisons, reinforcement."""
