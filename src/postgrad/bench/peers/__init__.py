"""Scripts for other projects' interpreters: they import a peer and the standard library, nothing of this package."""
