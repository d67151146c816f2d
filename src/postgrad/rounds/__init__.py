"""A round: its manifest, its stages, and the report that shows what happened."""
