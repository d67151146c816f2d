"""Opinions on what a policy did."""
