"""How fast, in how much memory: this package and its peers on the same work, each side in processes of its own."""
