"""Products straight from weights that lie packed in memory: what all such layouts have in common."""
