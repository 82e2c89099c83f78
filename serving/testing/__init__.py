"""Fakes for what serves a student: shipped for tests and benchmarks."""
