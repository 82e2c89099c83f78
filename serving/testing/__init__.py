"""Shipped test kit: a vLLM server's API over an engine in this process, with faults to order."""
