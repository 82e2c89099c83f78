"""Shipped test kit: a real broker from a directory, synthetic events."""
