"""Release decisions: the verdict and the pointer that only a pass may move."""
