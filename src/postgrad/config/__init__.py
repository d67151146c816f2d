"""Recipes, and what is in them."""
