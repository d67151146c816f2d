"""Models: found, loaded, given heads, saved."""
