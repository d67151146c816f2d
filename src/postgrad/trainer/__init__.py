"""Parameters and optimizer."""
