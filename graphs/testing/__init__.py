"""Shipped test kit: a scripted teacher, its HTTP server and faults to order."""
